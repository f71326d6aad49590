"""What surrounds the command: a stream that cannot encode a file name, a machine without a home folder."""
import ctypes
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cli_world import PRUNE, RUN_FILES, start
from helpers.processes import swallows_a_signal

from pwoa_cli.data import datasets
from pwoa_cli.evaluation import gradients
from pwoa_cli.files import run_folder
from pwoa_cli.training import layout
from pwoa_cli.workflows import bench, evaluate, prune, setup

EVAL = ["--data", "tiny.npz", "--eps", "0.5", "--n", "20", "--attacks", "fgsm"]
BENCH = ["bench", "model.pt", "--batch", "1", "--seconds", "0.01", "--runtimes"]


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


@pytest.mark.parametrize(("words", "module", "name", "instead"), [
    ([*BENCH, "onnx,eager"], torch.onnx, "export",
     AttributeError("module 'torch._dynamo' has no attribute 'exc'")),
    ([*BENCH, "eager"], bench, "conclusion", None),
    (["export", "model.pt", "--format", "onnx"], torch.onnx, "export", AttributeError("exc")),
    (["export", "model.pt", "--format", "onnx"], torch.onnx, "export", None),
    (["eval", "model.pt", *EVAL], gradients, "probe", AttributeError("exc")),
    (["eval", "model.pt", *EVAL, "--out", "out"], gradients, "probe", AttributeError("exc")),
    ([*PRUNE, "--out", "out"], layout, "_pass", ImportError("exc"))], ids=str)
def test_a_signal_that_foreign_code_swallows_ends_the_command(here, pwoa, monkeypatch, words, module, name,
                                                              instead):
    """It was taken for a network that torch cannot export, a runtime that is not here."""
    swallows_a_signal(monkeypatch, module, name, instead=instead)
    code, _, err = pwoa(*words)
    assert code == 130 and "interrupted" in err.splitlines()[-1] + err.splitlines()[-2], err
    assert "error" not in err


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
    assert code == 2 and not out and f"error: --seed {seed[:40]} is not a whole number of at least 0" in err


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


def test_deterministic_runs_give_the_same_bytes_with_any_number_of_threads(here):
    made = []
    for threads in ("1", "2"):
        process = start(*PRUNE, "--deterministic", "--json", "--quiet", "--out", threads, threads=threads)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        report = json.loads(out)
        assert (report["environment"]["threads"], report["environment"]["deterministic"]) == (1, True)
        made.append((Path(threads, "model.safetensors").read_bytes(), report["student"]["fgsm"]["accuracy"]))
    assert made[0] == made[1]


def test_an_operation_without_a_deterministic_algorithm_is_a_sentence(here, pwoa, monkeypatch):
    def refused(*args, **options):
        raise RuntimeError("put_ does not have a deterministic implementation, but you set "
                           "'torch.use_deterministic_algorithms(True)'. You can turn off determinism ...")

    monkeypatch.setattr(evaluate, "execute", refused)
    code, out, err = pwoa("eval", "model.pt", *EVAL, "--quiet")
    assert code == 2 and not out and err.startswith("error: --deterministic: put_ does not have")
    assert "hint: Leave --deterministic out" in err


def unprivileged():
    """Let root, as containers run, be refused by permissions too."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: gone after exec


@pytest.mark.parametrize(("args", "code", "says"), [
    (["eval", "model.pt", *EVAL], 0, "warning: what is finished cannot be kept"),
    (["eval", "model.pt", *EVAL, "--out", "out"], 2, "output folder out cannot be written: Permission"),
    (["eval", "model.pt", *EVAL, "--save-samples", "s.npz"], 2, "s.npz cannot be written: Permission denied"),
    (PRUNE, 2, "output folder pwoa-runs cannot be written: Permission denied"),
    (["runs"], 0, ""), (["report"], 0, "")], ids=lambda value: value[0] if isinstance(value, list) else None)
def test_folders_that_can_only_be_read_and_a_home_that_is_not_there(here, monkeypatch, args, code, says):
    monkeypatch.setenv("HOME", "/nonexistent")
    folders = [here, *(path for path in here.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        process = start(*args, preexec_fn=unprivileged)
        out, err = process.communicate(timeout=60)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert process.returncode == code and says in err and "Traceback" not in err, err
    assert bool(out) == (code == 0)
