"""What surrounds the command: a stream that cannot encode a file name, a machine without a home folder."""
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.cli_world import PRUNE, RUN_FILES, start

from pwoa_cli.data import datasets
from pwoa_cli.files import run_folder
from pwoa_cli.workflows import evaluate, prune, setup

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


def test_a_file_name_that_is_no_utf_8_costs_neither_the_run_nor_its_command(here, pwoa):
    """A byte of Latin-1, as old archives have them: Python knows it as a lone surrogate."""
    name = os.fsdecode(b"m\xff.pt")
    os.rename("model.pt", name)
    code, out, err = pwoa("prune", name, *PRUNE[2:], "--out", "run", "--quiet")
    assert code == 0 and out.startswith("# m\\udcff.pt pruned to 90% sparsity"), err
    assert sorted(os.listdir("run")) == RUN_FILES
    code, out, err = pwoa("eval", "run", "--n", "20", "--attacks", "fgsm", "--json", "--out", "out")
    assert code == 0 and json.loads(out)["models"]["teacher"]["source"] == name, err
    first = Path("run/model.safetensors").read_bytes()
    code, _, err = pwoa("prune", "--config", "run/config.toml", "--out", "again", "--quiet")
    assert code == 0 and Path("again/model.safetensors").read_bytes() == first, err


@pytest.mark.parametrize("command", ["eval", "prune"])
@pytest.mark.parametrize("seed", ["-1", "1000000000000000000", str(2**64), "9" * 5000, "1e3", "x"])
def test_a_seed_that_is_none_is_refused(here, pwoa, command, seed):
    args = ["eval", "model.pt", *EVAL] if command == "eval" else PRUNE
    code, out, err = pwoa(*args, "--seed", seed, "--quiet")
    assert code == 2 and not out and f"error: --seed {seed} is not a whole number of at least 0" in err


def test_the_largest_seed_is_one(here, pwoa):
    most = str(10**18 - 1)
    attacks = ["--attacks", "pgd,apgd-t,square,fmn", "--mix-ratio", "0.5"]
    code, _, err = pwoa(*PRUNE, *attacks, "--seed", most, "--out", "run", "--quiet")
    assert code == 0, err
    code, out, err = pwoa("report", "run", "--json")
    assert json.loads(out)["environment"]["seed"] == int(most)


def test_a_run_that_was_moved_finds_what_was_moved_with_it(here, pwoa):
    folder = run_folder.newest()
    alike = ["--n", "20", "--attacks", "fgsm", "--json"]
    code, expected, _ = pwoa("eval", str(folder), *alike)
    assert code == 0
    Path("moved/deep").mkdir(parents=True)
    for name in ("model.pt", "tiny.npz", "pwoa-runs"):
        os.rename(name, f"moved/{name}")
    os.rename(f"moved/{folder}", "moved/pwoa-runs/renamed")
    for where in ("moved", "moved/deep", "."):
        os.chdir(here / where)
        code, out, err = pwoa("eval", os.path.relpath(here / "moved/pwoa-runs/renamed"), *alike)
        assert code == 0 and json.loads(out)["student"] == json.loads(expected)["student"], err
        assert json.loads(out)["teacher"] == json.loads(expected)["teacher"]


def test_a_run_that_was_moved_alone_says_what_it_lacks(here, pwoa):
    os.mkdir("else")
    os.rename(run_folder.newest(), "else/run")
    os.chdir("else")
    os.remove("../tiny.npz")
    code, out, err = pwoa("eval", "run", "--n", "20", "--attacks", "fgsm", "--quiet")
    assert code == 2 and not out
    assert err.endswith("error: tiny.npz, the data of run, is not there any more.\n"
                        "hint: Name it: --data FILE, a folder or a known data set.\n")


def test_a_run_folder_that_is_removed_during_the_run_is_made_again(here, pwoa, monkeypatch):
    fit = prune.fit

    def removed(*args, **options):
        student = fit(*args, **options)
        shutil.rmtree("run")
        return student

    monkeypatch.setattr(prune, "fit", removed)
    code, out, err = pwoa(*PRUNE, "--out", "run")
    assert code == 0 and "| fgsm |" in out and "warning: run was removed during the run" in err
    assert sorted(os.listdir("run")) == [name for name in RUN_FILES if name != "metrics.jsonl"]
    execute = evaluate.execute

    def gone(*args, **options):
        found = execute(*args, **options)
        shutil.rmtree("out")
        return found

    monkeypatch.setattr(evaluate, "execute", gone)
    code, out, err = pwoa("eval", "model.pt", *EVAL, "--out", "out")
    assert code == 0 and sorted(os.listdir("out")) == ["report.json", "report.md", "samples.npz"], err
