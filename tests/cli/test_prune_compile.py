"""`pwoa prune --compile`: it is said, kept in config.toml, gone on with; without a graph a run goes on."""
import json
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.cli_world import PRUNE

from pwoa_cli.training import compilation, loop

LONG = [*PRUNE, "--epochs", "1", "--compile", "on"]  # 16 steps


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Graphs without kernels of their own, which take a minute."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()


def test_a_compiled_run_says_what_it_waits_for_and_goes_on_where_it_was_stopped(here, pwoa, monkeypatch):
    code, _, err = pwoa(*LONG, "--out", "whole")
    assert code == 0 and "compiling teacher, student and loss" in err and "compiled in" in err
    table = tomllib.loads(Path("whole/config.toml").read_text())
    assert table["compiled"] is True and table["command"]["compile"] == "on"
    real = loop.step

    def stops(plan, state):
        if state.step == 9:
            raise KeyboardInterrupt
        return real(plan, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", stops)
        assert pwoa(*LONG, "--out", "again", "--checkpoint-every", "0.001")[0] == 130
    code, _, err = pwoa(*[word if word != "on" else "off" for word in LONG], "--out", "again")
    assert code == 2 and "compiled is True there and not set here" in err
    code, _, err = pwoa("prune", "--resume", "--out", "again")
    assert code == 0 and "compiling" in err and "goes on from step" in err
    whole, again = (Path(name, "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert whole == again


def test_a_run_that_is_not_compiled_says_and_keeps_nothing_of_it(here, pwoa):
    code, _, err = pwoa(*PRUNE, "--out", "plain")
    assert code == 0 and "compil" not in err
    assert "compiled" not in tomllib.loads(Path("plain/config.toml").read_text())


def test_without_a_graph_the_run_goes_on_as_it_is_and_the_report_says_so(here, pwoa, monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler is here")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    code, out, err = pwoa(*LONG, "--json", "--out", "broken")
    assert code == 0 and "warning: the training step is not compiled and runs as it is: " in err
    assert any("no compiler is here" in note for note in json.loads(out)["notes"])


def test_a_dry_run_times_compiled_steps(here, pwoa):
    code, out, err = pwoa(*LONG, "--dry-run")
    assert code == 0 and err.index("compiled in") < err.index("timing a few steps") and "ms a step" in out
