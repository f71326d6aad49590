"""Versions and machine, as a report needs them."""
from helpers.report_samples import report

from pwoa_cli.machine.environment import environment


def test_environment_has_what_the_schema_asks():
    found = environment(device="cpu", seed=3)
    # the schema refuses others
    assert report(environment=found)["environment"] == found and found["seed"] == 3
    assert found.keys() >= {"timm", "torchvision", "device_name"} and found["cpu_count"] >= 1
