"""`pwoa doctor`: fine on a fine machine, 4 where an attack or the file format lies; nothing secret is
told."""
import json

import pytest
import torch

from pwoa_cli.attacks import FIXED
from pwoa_cli.files import sparse
from pwoa_cli.workflows import doctor


def test_a_machine_that_is_fine(here, pwoa, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, out, err = pwoa("doctor", "--json")
    found = json.loads(out)
    assert code == 0, err
    names = [check["name"] for check in found["checks"]]
    assert names == ["attacks", "sparse file", "output folder", "device"]
    assert found["environment"]["torch"] == torch.__version__ and "hf_secret" not in out + err
    code, out, _ = pwoa("doctor")
    assert code == 0 and out.startswith("# pwoa doctor") and "FAILED" not in out
    # neither trivially robust nor trivially broken
    held = int(out.partition("network (")[2].partition(" of ")[0])
    assert 8 <= held <= 24


@pytest.mark.parametrize(("spoil", "name"), [
    (lambda m: m.setattr(sparse, "load", lambda path: {k: torch.zeros(50, 40) for k in (
        "0.01.weight", "0.1.weight", "0.9.weight")}), "sparse file"),
    (lambda m: m.setitem(FIXED, "apgd-ce", type(FIXED["apgd-ce"])(
        "apgd-ce", lambda model, x, y, **options: x, cost=1)), "attacks")])
def test_what_lies_is_named(here, pwoa, monkeypatch, spoil, name):
    spoil(monkeypatch)
    code, out, _ = pwoa("doctor", "--json")
    failed = [check["name"] for check in json.loads(out)["checks"] if not check["ok"]]
    assert code == 4 and failed == [name]
    assert f"- {name}: FAILED: " in doctor.markdown(json.loads(out))
