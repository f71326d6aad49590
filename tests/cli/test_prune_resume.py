"""`pwoa prune` stopped anywhere, by whatever signal, goes on and ends as a run that was left alone."""
import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_world import PRUNE, RUN_FILES, in_process, start
from helpers.processes import on_closing_terminal, signal_in_step, wait

import pwoa_cli
from pwoa_cli.evaluation import evaluate
from pwoa_cli.files import run_folder, sparse
from pwoa_cli.files.metrics import read_metrics
from pwoa_cli.reports import write as writing
from pwoa_cli.workflows import prune

LONG = [*PRUNE, "--epochs", "5", "--attacks", "fgsm,pgd-3", "--set", "ema=0.9"]  # 80 steps
LONGER = [*LONG, "--epochs", "40"]  # 640: time to send a signal to another process
GO_ON = "Go on: pwoa prune --resume --out "


def made(folder):
    """What a run found and wrote, without times."""
    folder = Path(folder)
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES
    report = json.loads((folder / "report.json").read_text())
    for name in ("created", "seconds"):
        del report[name]
    rows = [{key: value for key, value in row.items() if key != "seconds"}
            for row in read_metrics(folder / "metrics.jsonl")]
    return report, rows, (folder / "model.safetensors").read_bytes()


def alone(world, folder, args):
    """What a run wrote that was left alone."""
    shutil.copytree(world, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert in_process(patch, *args, "--quiet", "--out", "whole") == 0
    return made(folder / "whole")


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    return alone(world, tmp_path_factory.mktemp("whole"), LONG)


@pytest.fixture(scope="module")
def longer(world, tmp_path_factory):
    return alone(world, tmp_path_factory.mktemp("longer"), LONGER)


def raising(monkeypatch, place, name, *, call):
    """KeyboardInterrupt in place of a call of a function, before or after it."""
    real, calls = getattr(place, name), []

    def stops(*args, **options):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(place, name, stops)


STOPS = {
    "first step": lambda patch: signal_in_step(patch, step=1),
    "step 39": lambda patch: signal_in_step(patch, step=39),
    "last step": lambda patch: signal_in_step(patch, step=80),
    "save": lambda patch: raising(patch, sparse, "save", call=1),
    "saved": lambda patch: raising(patch, prune, "measure", call=1),
    "evaluation": lambda patch: raising(patch, evaluate, "_made", call=3),
    "report": lambda patch: raising(patch, writing, "write_json", call=1),
    "reported": lambda patch: raising(patch, prune, "clear", call=1)}


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_stopped_anywhere_goes_on_by_what_is_said(here, pwoa, monkeypatch, whole, stop):
    with monkeypatch.context() as patch:
        STOPS[stop](patch)
        code, out, err = pwoa(*LONG, "--out", "stopped")
    assert code == 130 and not out and "Traceback" not in err
    said = err.splitlines()[-1]
    assert said == f"{GO_ON}stopped"
    code, _, err = pwoa(*shlex.split(said.removeprefix("Go on: pwoa ")), "--quiet")
    assert code == 0, err
    assert made("stopped") == whole


def test_the_same_command_goes_on_too(here, pwoa, monkeypatch, whole):
    with monkeypatch.context() as patch:
        signal_in_step(patch, step=30)
        assert pwoa(*LONG, "--out", "stopped")[0] == 130
    code, _, err = pwoa(*LONG, "--out", "stopped")
    assert code == 0 and "goes on from step 30 of 80 in stopped" in err
    assert made("stopped") == whole
    code, _, err = pwoa(*LONG, "--out", "stopped")
    assert code == 2 and "stopped exists and is not empty; nothing in it was touched" in err
    code, _, err = pwoa("prune", "--resume", "--out", "stopped")
    assert code == 2 and "stopped holds no unfinished run" in err


OTHERS = [
    (["--seed", "3"], "seed is 0 there and 3 here"), (["--norm", "l2"], "norm is linf there and l2 here"),
    (["--set", "lr=5e-4"], "recipe.lr is 0.0015 there and 0.0005 here"),
    (["--epochs", "6"], "steps is 80 there and 96 here")]


def test_another_configuration_is_refused_with_the_first_difference(here, pwoa, monkeypatch):
    with monkeypatch.context() as patch:
        signal_in_step(patch, step=30)
        assert pwoa(*LONG, "--out", "stopped")[0] == 130
    before = {path.name: path.read_bytes() for path in Path("stopped").iterdir()}
    for more, said in OTHERS:
        code, out, err = pwoa(*LONG, *more, "--out", "stopped")
        assert code == 2 and not out and said in err.replace("\n", " ")
        assert "pwoa prune --resume --out stopped" in err and "kept in" not in err
    assert before == {path.name: path.read_bytes() for path in Path("stopped").iterdir()}


def test_a_run_goes_on_with_the_same_images_wherever_they_are(here, pwoa, monkeypatch, whole):
    with monkeypatch.context() as patch:
        signal_in_step(patch, step=30)
        assert pwoa(*LONG, "--out", "stopped")[0] == 130
    Path("elsewhere").mkdir()
    Path("tiny.npz").rename("elsewhere/tiny.npz")
    resume = ["prune", "--resume", "--out", "stopped"]
    code, _, err = pwoa(*resume)
    assert code == 2 and "tiny.npz" in err
    with np.load("elsewhere/tiny.npz") as arrays:
        np.savez("tiny.npz", **{name: array[::-1] for name, array in arrays.items()})
    code, _, err = pwoa(*resume)
    assert code == 2 and " other images or labels than the run was begun with" in err.replace("\n", " ")
    assert f"{shlex.join(resume)} --data PATH" in err
    code, _, err = pwoa(*resume, "--data", "elsewhere/tiny.npz")
    assert code == 0 and "goes on from step 30 of 80" in err
    (report, *rest), (expected, *others) = made("stopped"), whole
    assert report["data"].pop("where") == "elsewhere/tiny.npz" and expected["data"]["where"] == "tiny.npz"
    assert rest == others


def test_the_newest_unfinished_run_goes_on(here, pwoa, monkeypatch):
    shutil.copy("model.pt", "other.pt")
    with monkeypatch.context() as patch:
        signal_in_step(patch, step=2)
        assert pwoa(*PRUNE, "--epochs", "1")[0] == 130
    time.sleep(1.1)  # names of runs tell seconds apart
    with monkeypatch.context() as patch:
        signal_in_step(patch, step=2)
        assert pwoa("prune", "other.pt", *PRUNE[2:], "--epochs", "1")[0] == 130
    first, second = sorted(filter(run_folder.is_unfinished, Path("pwoa-runs").iterdir()))
    assert first.name.startswith("model-") and second.name.startswith("other-")
    code, _, err = pwoa("prune", "model.pt", "--resume")
    assert code == 0 and f"wrote {first}" in err
    code, _, err = pwoa("prune", "--resume", "--json")
    assert code == 0 and f"wrote {second}" in err
    for args in ([], ["model.pt"]):
        code, _, err = pwoa("prune", *args, "--resume")
        assert code == 2 and "no unfinished run" in err and "--out DIR" in err
    code, _, err = pwoa("prune", "--resume", "--config", f"{first}/config.toml")
    assert code == 2 and "Leave one of them away" in err


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_the_state_and_says_how_to_go_on(here, stop):
    process = start(*PRUNE, "--epochs", "10000", "--out", "my run")
    log = Path("my run/metrics.jsonl")
    wait(process, lambda: log.exists() and log.stat().st_size)
    process.send_signal(stop)
    begun = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and not out and "Traceback" not in err
    assert time.monotonic() - begun < 5 and err.endswith(f"{GO_ON}'my run'\n")
    assert sorted(os.listdir("my run")) == ["config.toml", "metrics.jsonl", "state.pt"]


def test_who_asks_twice_does_not_wait_and_loses_no_more_than_the_last_steps(here, pwoa, longer):
    """Ctrl-C and again Ctrl-C, in the middle of whatever is being done."""
    process, log = start(*LONGER, "--out", "twice"), Path("twice/metrics.jsonl")
    wait(process, lambda: log.exists() and log.stat().st_size)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and "Traceback" not in err and err.endswith(f"{GO_ON}twice\n")
    assert pwoa("prune", "--resume", "--out", "twice")[0] == 0
    assert made("twice") == longer


def test_a_run_that_was_stopped_goes_on_from_python_too(here, pwoa, monkeypatch, whole):
    def call():
        return pwoa_cli.prune("model.pt", 0.9, data="tiny.npz", eps=0.5, samples=20, attacks="fgsm,pgd-3",
                              settings={"epochs": 5, "batch_size": 16, "ema": 0.9}, out="api")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        raising(patch, evaluate, "_made", call=3)
        call()
    assert Path("api/state.pt").is_file() and list(Path("api/parts").glob("*/*.npz"))
    code, _, err = pwoa("prune", "--resume", "--out", "api")
    assert code == 2 and "same call of pwoa_cli.prune, with the same out, goes on" in err.replace("\n", " ")
    call()
    report, *more = made("api")
    assert report["command"] == {} and [report | {"command": whole[0]["command"]}, *more] == list(whole)


def test_two_runs_do_not_share_a_folder_and_a_list_tells_which_are_at_work(here, pwoa):
    """The second is refused before it writes; --resume does not take a run that somebody is at."""
    out = "pwoa-runs/first"
    process = start(*PRUNE, "--epochs", "1000", "--out", out)
    log = Path(out, "metrics.jsonl")
    wait(process, lambda: log.exists() and len(read_metrics(log)) > 8)
    for args in ([*PRUNE, "--out", out], ["eval", "model.pt", *PRUNE[4:8], "--out", out],
                 ["prune", "--resume", "--out", out]):
        code, said, err = pwoa(*args)
        assert code == 2 and not said
        assert args[0] == "eval" or f"{out} is being written by process {process.pid} on " in err
    code, _, err = pwoa("prune", "--resume")
    assert code == 2 and "no unfinished run under pwoa-runs (1 still at work)" in err
    state, = [entry["state"] for entry in json.loads(pwoa("runs", "--json")[1])["runs"]
              if entry["folder"] == out]
    assert re.fullmatch(r"running, [1-9]\d?%", state)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert re.search(r"unfinished, [1-9]\d?%", pwoa("runs")[1])


def test_a_terminal_that_closes_while_pruning(here):
    """The bar's terminal is gone: the state is kept all the same."""
    log = Path("closed/metrics.jsonl")
    process = on_closing_terminal([*PRUNE, "--epochs", "10000", "--out", "closed"],
                                  lambda: log.exists() and log.stat().st_size)
    assert process.wait(timeout=10) == 130
    assert sorted(os.listdir("closed")) == ["config.toml", "metrics.jsonl", "state.pt"]


def test_an_unfinished_run_that_is_killed(here, pwoa, longer):
    """With -9, again and again: each time it comes further, and in the end it is as one that was left
    alone."""
    args, log = [*LONGER, "--checkpoint-every", "0.001", "--out", "killed"], Path("killed/metrics.jsonl")
    steps = []
    for row in (1, 3):
        process = start(*args)
        wait(process, lambda row=row: log.exists() and len(read_metrics(log)) >= row)
        process.kill()
        process.communicate(timeout=30)
        steps.append(read_metrics(log)[-1]["step"])
    code, _, err = pwoa(*args)
    assert code == 0, err
    assert made("killed") == longer and steps == sorted(steps)
