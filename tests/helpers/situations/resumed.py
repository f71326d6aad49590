"""Hints on runs that were stopped, and on folders that somebody is at."""

import shlex
from pathlib import Path

import numpy as np
import pytest

import pwoa_cli
from helpers.cli_world import PRUNE
from helpers.situations import EVAL, prints
from helpers.situations.files import raises
from pwoa_cli.evaluation import units
from pwoa_cli.files import locks, sparse
from pwoa_cli.files.run_folder import LOCK
from pwoa_cli.training import loop

REPLAY = "cli/replay.py:_unfinished: "
RUN = Path("my run")
RESUME = ["prune", "--resume", "--out", RUN]


def stopped(tool, out=RUN):
    """A run that was stopped in a folder."""
    with tool.patch.context() as patch:
        patch.setattr(sparse, "save", raises(KeyboardInterrupt()))
        assert tool.run(*PRUNE, "--out", out)[0] == 130


def words_of(hint):
    """The command that a hint ends with."""
    return shlex.split(hint.rpartition("pwoa ")[2])


@prints("files/run_folder.py:check_finished: Finish", "files/run_folder.py:newest: Finish")
def runs_to_be_finished_first(tool):
    stopped(tool)
    hint = tool.refused("eval", RUN, "--n", "20", "--attacks", "fgsm")
    assert tool.refused("report", RUN) == hint
    tool.works(*words_of(hint))
    tool.works("eval", RUN, "--n", "20", "--attacks", "fgsm")
    Path("pwoa-runs").rename("old")
    stopped(tool, "pwoa-runs/model-0.9-20260102-030405")
    tool.works(*words_of(tool.refused("eval", "--n", "20", "--attacks", "fgsm")))
    tool.works("eval", "--n", "20", "--attacks", "fgsm")


@prints(REPLAY + "Leave", REPLAY + "See", REPLAY + "The", "files/run_folder.py:newest_unfinished")
def which_run_goes_on(tool):
    hint = tool.refused("prune", "--resume")
    assert hint.startswith("Name its folder: pwoa prune --resume --out DIR;")
    tool.works(*words_of(hint))
    tool.works(*words_of(tool.refused("prune", "--resume", "--out", "absent")))
    stopped(tool)
    tool.works(*words_of(tool.refused(*RESUME, "--config", RUN / "config.toml")))
    under = Path("pwoa-runs/model-0.9-20260102-030405")
    stopped(tool, under)
    tool.works(*words_of(tool.refused("prune", "--resume", "--config", under / "config.toml")))
    made = dict(data="tiny.npz", eps=0.5, samples=20, attacks="fgsm", out="api", settings={"epochs": 0.1})
    with tool.patch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "step", raises(KeyboardInterrupt()))
        pwoa_cli.prune("model.pt", 0.9, **made)
    assert "pwoa_cli.prune, with the same out" in tool.refused("prune", "--resume", "--out", "api")
    assert pwoa_cli.prune("model.pt", 0.9, **made).model.is_file()


@prints(
    "workflows/prune_resume.py:keeper_of: Go",
    "workflows/prune_resume.py:keeper_of: Say",
    "files/keeper.py:kept",
)
def what_a_run_goes_on_from(tool):
    stopped(tool)
    tool.works(*words_of(tool.refused(*PRUNE, "--seed", "3", "--out", RUN)))
    stopped(tool, "third run")
    Path("tiny.npz").rename("moved.npz")
    with np.load("moved.npz") as arrays:
        np.savez("tiny.npz", **{name: array[::-1] for name, array in arrays.items()})
    Path("there").mkdir()
    Path("moved.npz").rename("there/tiny.npz")
    hint = tool.refused(*RESUME[:-1], "third run")
    assert hint.endswith(" --data PATH")
    tool.works(*words_of(hint.replace("PATH", "there/tiny.npz")))
    Path("there/tiny.npz").rename("tiny.npz")
    stopped(tool, "other run")
    Path("other run/state.pt").write_bytes(b"")
    hint = tool.refused(*RESUME[:-1], "other run")
    (name,) = shlex.split(hint.removeprefix("Remove ").partition(", and")[0])
    Path(name).unlink()
    tool.works(*RESUME[:-1], "other run")


@prints(
    "files/run_folder.py:opened",
    "files/locks.py:held: {} If",
    "files/locks.py:held: {}",
    "evaluation/units.py:fault",
    "evaluation/units.py:get",
)
def folders_that_somebody_is_at(tool):
    words = [*PRUNE, "--out", RUN]
    with locks.held(RUN / LOCK, what="it", hint=""):
        tool.follow(words, "--out DIR", "--out 'another run'")
        with tool.patch.context() as patch:
            patch.setattr("socket.gethostname", lambda: "elsewhere")
            hint = tool.refused(*words)
        (name,) = shlex.split(hint.partition(" is gone, remove ")[2])
        Path(name).unlink()
        tool.works(*words)
    folders, fault = [], units.Unfinished.fault
    with tool.patch.context() as patch:
        patch.setattr(units.Unfinished, "fault", lambda kept: folders.append(kept.folder) or fault(kept))
        patch.setattr(units.Unfinished, "clear", units.Unfinished.tidy)
        tool.works(*EVAL)
    for part in folders[0].glob("*.npz"):
        part.write_bytes(b"cut")
    with locks.held(folders[0] / LOCK, what="it", hint=""):
        tool.refused(*EVAL, "--resume")
        tool.works(*EVAL)
    tool.works(*EVAL, "--resume")
