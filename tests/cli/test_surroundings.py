"""What surrounds the command: a stream that cannot encode a file name, a machine without a home folder."""
import json
import os
from pathlib import Path

import pytest
from helpers.cli_world import start

from pwoa_cli.data import datasets
from pwoa_cli.workflows import setup

EVAL = ["--data", "tiny.npz", "--eps", "0.5", "--n", "20", "--attacks", "fgsm"]


@pytest.mark.parametrize("form", ["--json", "--seed=0"])
def test_a_file_name_that_stdout_cannot_encode_does_not_cost_the_result(here, monkeypatch, form):
    os.rename("model.pt", "модель.pt")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    process = start("eval", "модель.pt", *EVAL, "--out", "out", form)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    name = "\\u043c\\u043e\\u0434\\u0435\\u043b\\u044c.pt"
    assert name in out and Path("out/report.json").is_file()
    if form == "--json":
        assert json.loads(out)["model"]["source"] == "модель.pt"


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_a_machine_without_a_home_folder(here, pwoa, monkeypatch):
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("PWOA_DATA", raising=False)
    code, out, err = pwoa("eval", "model.pt", *EVAL)
    assert code == 0 and "clean" in out, err
    assert setup.short_path("/a/b") == "/a/b" and len(datasets.places()) == 3
    code, _, err = pwoa("eval", "model.pt", *EVAL[2:], "--data", "~/absent.npz")
    assert code == 2 and "absent.npz: no such file or folder" in err
