"""Versions and machine, as a report needs them."""
import importlib.metadata

from helpers.report_samples import report

import pwoa_cli
from pwoa_cli.machine.environment import environment


def test_environment_has_what_the_schema_asks():
    found = environment(device="cpu", seed=3)
    # the schema refuses others
    assert report(environment=found)["environment"] == found and found["seed"] == 3
    assert found.keys() >= {"timm", "torchvision", "device_name"} and found["cpu_count"] >= 1


def test_the_version_is_that_of_the_code_that_runs_not_of_what_is_installed(monkeypatch):
    """A checkout on the path before an older installation wrote the installation's version into reports."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    found = environment(device="cpu", seed=0)
    assert found["pwoa"] == pwoa_cli.__version__ and found["timm"] == "0.0.1"
