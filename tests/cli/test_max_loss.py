"""`pwoa prune --max-loss`: what a search writes and says, how it is typed, given again, refused."""
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.cli_world import BUDGET, RUN_FILES, TINY
from helpers.processes import signal_in_step

import pwoa_cli
from pwoa_cli.errors import InputError
from pwoa_cli.files.metrics import read_metrics
from pwoa_cli.reports import schema, search
from pwoa_cli.workflows import prune, prune_search
from pwoa_cli.workflows import search as targets

SEARCH = ["prune", "model.pt", "--max-loss", "70", *TINY, *BUDGET]


@pytest.fixture
def few_stages(monkeypatch):
    monkeypatch.setattr(targets, "STAGES", 3)


def test_a_search_writes_a_run_and_the_way_there_and_is_given_again_to_the_byte(here, pwoa, few_stages):
    code, out, err = pwoa(*SEARCH, "--held-out", "24")
    assert code == 0, err
    folder = next(Path("pwoa-runs").glob("model-loss70-*"))
    assert sorted(p.name for p in folder.iterdir()) == RUN_FILES
    made = json.loads((folder / "report.json").read_text())
    way = made["search"]
    assert way["max_loss"] == 70 and way["held_out"] == 24 and way["attack"] == "fgsm"
    assert len(way["stages"]) == 3 and out == (folder / "report.md").read_text()
    assert re.search(r"^- search: 82% is the most that was found to lose at most 70 points of fgsm on the "
                     r"images held out; on the test images it loses .*, within the limit$", out, re.M)
    assert "| 3 | 82% | " in out and "24 of 256 training images are held out to judge by" in err
    assert "prune 900 weights in 4 layers as far as the worst case loses at most 70 points" in err
    assert re.search(r"^prune \d+% \| stage 2, 70% \| epoch ", err, re.M)
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["max_loss"] == 70 and config["held_out"] == 24 and "sparsity" not in config
    assert pwoa("prune", "--config", folder / "config.toml", "--out", "again")[0] == 0
    assert Path("again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads(Path("again/report.json").read_text())["search"] == way


def test_the_function_gives_the_same(here, pwoa, few_stages):
    assert pwoa(*SEARCH, "--out", "a")[0] == 0
    run = pwoa_cli.prune("model.pt", max_loss=70, out="b", data="tiny.npz", eps=0.5, samples=20,
                         attacks="fgsm", settings={"epochs": 0.1, "batch_size": 16})
    assert run.model.read_bytes() == Path("a/model.safetensors").read_bytes()
    assert run.report["search"] == json.loads(Path("a/report.json").read_text())["search"]
    for wrong in ({}, {"sparsity": 0.9, "max_loss": 1.0}, {"max_loss": 100.0}, {"sparsity": 0.9,
                                                                               "held_out": 9}):
        with pytest.raises(InputError):
            pwoa_cli.prune("model.pt", **wrong)


@pytest.mark.parametrize(("args", "message", "hint"), [
    ([], "Missing option '--sparsity' (or '--max-loss', ", "See pwoa prune --help"),
    (["--max-loss", "1", "--sparsity", "0.9"], "--sparsity 0.9 and --max-loss 1 both say how many weights go",
     "--sparsity 0.9, or --max-loss 1"),
    (["--max-loss", "0"], "--max-loss 0 is not between 0 and 100 points", "--max-loss 1"),
    (["--max-loss", "-1"], "--max-loss -1 is not between 0 and 100 points", "--max-loss 1"),
    (["--max-loss", "100"], "--max-loss 100 is not between", "--max-loss 1"),
    (["--max-loss", "nan"], "--max-loss nan is not between", "--max-loss 1"),
    (["--max-loss", "100", "--sparsity", "0.9"], "--max-loss 100 is not between", "--max-loss 1"),
    (["--max-loss", "1", "--sparsity", "0.99000001"], "--sparsity 0.99000001 and --max-loss 1 both say",
     "--sparsity 0.99000001, or --max-loss 1"),
    (["--max-loss", "500%"], "--max-loss 500% is not a number of points.", "--max-loss 1"),
    (["--max-loss", "x"], "--max-loss x is not a number of points", "--max-loss 1"),
    (["--max-loss", "1%"], "Did you mean 1?", "--max-loss 1"),
    (["--max-loss", "0,5"], "Did you mean 0.5?", "--max-loss 0.5"),
    (["--sparsity", "0.9", "--held-out", "50"], "--held-out 50 is for --max-loss", "--held-out away"),
    (["--max-loss", "1", "--held-out", "1"], "--held-out 1 is not a whole number of at least 2",
     "--held-out 100")])
def test_wrong_use_is_told_before_anything_is_loaded(here, pwoa, args, message, hint):
    before = sorted(here.rglob("*"))
    code, out, err = pwoa("prune", "model.pt", *args)
    assert code == 2 and not out and len(err.splitlines()) == 2, err
    assert message in err.splitlines()[0] and hint in err.splitlines()[1]
    assert sorted(here.rglob("*")) == before


def test_what_looks_like_a_fraction_is_told_what_it_means_and_what_it_takes(here, pwoa):
    code, out, err = pwoa("prune", "model.pt", "--max-loss", "0.01", *TINY, *BUDGET)
    assert code == 2 and not out and "--max-loss 0.01 is in points: 1 image in 10,000" in err
    assert re.search(r"on 20 images held out, even a model that loses nothing has an interval up to \d", err)
    assert re.search(r"^hint: --max-loss \d+$", err, re.M), "no 5% of 256 images would tell"
    assert "Traceback" not in err and not list(Path().glob("pwoa-runs/model-loss*/model.safetensors"))


def test_no_sparsity_leaves_no_model_and_says_why(here, pwoa, monkeypatch):
    fit = prune.fit

    def spoiled(job, **options):
        student = fit(job, **options)
        torch.nn.init.zeros_(student.net.linear2.weight)
        return student

    monkeypatch.setattr(prune, "fit", spoiled)
    code, out, err = pwoa("prune", "model.pt", "--max-loss", "20", *TINY, *BUDGET, "--out", "none")
    assert code == 2 and not out and "error: No sparsity was found that loses at most 20 points: 6.2% " in err
    assert sorted(p.name for p in Path("none").iterdir()) == ["config.toml", "metrics.jsonl"]
    assert "No pruned model was written." in err


def test_what_is_typed_beside_a_config_wins(here, pwoa, few_stages):
    assert pwoa(*SEARCH, "--held-out", "30", "--out", "a")[0] == 0
    code, out, err = pwoa("prune", "--config", "a/config.toml", "--sparsity", "0.9", "--out", "b", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["sparsity"]["target"] == 0.9 and "search" not in made
    assert not {"max_loss", "held_out"} & made["command"].keys()
    code, out, err = pwoa("prune", "--config", "b/config.toml", "--max-loss", "75", "--json")
    made = json.loads(out)
    assert made["search"]["max_loss"] == 75 and "sparsity" not in made["command"]


def test_a_dry_run_gives_a_range(here, pwoa):
    code, out, err = pwoa(*SEARCH, "--dry-run")
    assert code == 0 and re.search(r"^search: about \S+s \(\d+ stages, \d+ steps\) if it ends at 50%, \S+s "
                                   r"\(\d+ stages, \d+ steps\) if it ends at 99%, attacks", out, re.M), out
    planned = json.loads(pwoa(*SEARCH, "--dry-run", "--json")[1])
    assert [one["highest"] for one in planned["search"]] == [0.5, 0.99]
    assert not list(Path("pwoa-runs").glob("model-loss*"))
    assert "(of a stage: a third of the 0.1 that were asked for)" in out


def test_a_loss_on_the_test_images_beyond_the_limit_is_said_and_is_exit_3(here, pwoa, few_stages,
                                                                        monkeypatch):
    build = schema.build

    def worse(**fields):
        drop = {name: entry | {"points": 71.0} for name, entry in fields["drop"].items()}
        return build(**fields | {"drop": drop})

    monkeypatch.setattr(schema, "build", worse)
    code, out, err = pwoa(*SEARCH, "--out", "a")
    assert code == 3 and ", more than the limit" in out
    assert search.exceeded(json.loads(Path("a/report.json").read_text()))
    shutil.copytree("a", "b")
    assert pwoa("report", "a")[0] == 3 and pwoa("report", "a", "b")[0] == 3


def assert_alike(whole, cut):
    """Two searches wrote the same: report, model, steps of the log, and nothing else is left."""
    reports = [json.loads(Path(name, "report.json").read_text()) for name in (whole, cut)]
    for report in reports:
        del report["created"], report["seconds"]
    assert reports[0] == reports[1]
    assert Path(whole, "model.safetensors").read_bytes() == Path(cut, "model.safetensors").read_bytes()
    steps = [[(row["stage"], row["step"]) for row in read_metrics(Path(name, "metrics.jsonl"))]
             for name in (whole, cut)]
    assert steps[0] == steps[1]
    assert sorted(p.name for p in Path(cut).iterdir()) == RUN_FILES


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_search_that_is_stopped_goes_on_after_its_last_stage(here, pwoa, few_stages, monkeypatch, stage):
    """In the middle of a stage: the same bytes as of one that was left alone."""
    assert pwoa(*SEARCH, "--held-out", "24", "--out", "whole")[0] == 0
    real, calls = prune_search._trained, []

    def stops(job, start, found, *, train, **options):
        calls.append(len(found.stages) + 1)
        made = real(job, start, found, train=train, **options)
        if calls[-1] == stage:
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch:
        patch.setattr(prune_search, "_trained", stops)
        code, _, err = pwoa(*SEARCH, "--held-out", "24", "--out", "cut")
    assert code == 130 and "Go on: pwoa prune --resume --out cut" in " ".join(err.split())
    code, _, err = pwoa("prune", "--resume", "--out", "cut")
    assert code == 0 and (stage == 1 or f"goes on after stage {stage - 1}" in err), err
    assert_alike("whole", "cut")


@pytest.mark.parametrize("stop", [1, 4, 7, 12], ids=lambda step: f"step {step} of all")
def test_a_search_that_is_stopped_within_a_stage_goes_on_from_its_step(here, pwoa, few_stages, monkeypatch,
                                                                       stop):
    """Stages of 5, 9 and 13 steps or so: a signal comes in one of them, and no step is done twice."""
    words = [*SEARCH, "--held-out", "24", "--epochs", "1"]
    assert pwoa(*words, "--out", "whole")[0] == 0
    seen = signal_in_step(monkeypatch, step=stop)
    code, _, err = pwoa(*words, "--out", "cut")
    assert code == 130 and "Go on: pwoa prune --resume --out cut" in " ".join(err.split())
    assert re.search(r"unfinished, stage \d", pwoa("runs", ".")[1])
    done = len(seen)
    code, _, err = pwoa("prune", "--resume", "--out", "cut")
    assert code == 0 and f"goes on from step {seen[done - 1] + 1} of" in err, err
    assert seen[done] == seen[done - 1] + 1 or seen[done] == 0  # the stage was at its last step
    assert_alike("whole", "cut")
