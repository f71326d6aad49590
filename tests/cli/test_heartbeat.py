"""A sign of life where nothing else is said, and silence where nobody wants one."""
import io
import sys

import pytest
import torch
from helpers.cli_world import start

from pwoa_cli.cli import console
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.heartbeat import Heartbeat, _short


@pytest.fixture
def heart(monkeypatch):
    """(heartbeat, advance): the console's, whose clock is set by hand; what is written is on stderr."""
    now = [0.0]
    made = Heartbeat(lambda line: sys.stderr.write(f"{line}\n"), clock=lambda: now[0])
    monkeypatch.setattr(console, "HEARTBEAT", made)

    def advance(seconds):
        for _ in range(seconds):
            now[0] += 1.0
            made.beat()

    return advance


def test_beats_come_more_rarely_the_longer_it_takes(heart, capsys):
    Console().say("run: a\nloading torch")
    heart(75)
    assert capsys.readouterr().err.splitlines()[2:] == [
        f"still working, {passed} after: loading torch" for passed in ("5.0s", "10s", "20s", "40s", "1m 10s")]


def test_what_is_said_puts_the_next_beat_off(heart, capsys):
    for text in ("first", "second " * 20):
        Console().say(text)
        heart(4)
    assert "still" not in capsys.readouterr().err
    heart(1)
    said = capsys.readouterr().err
    assert said.startswith("still working, 5.0s after: second second") and len(said) < 80


@pytest.mark.parametrize(("line", "short"), [
    ("prune 32% | epoch 2/7", "prune 32% | epoch 2/7"), ("x" * 60, "x" * 47 + "…"),
    ("prune 32% | epoch 2/7 | sparsify | loss 15.5 | eta 2h 54m",
     "prune 32% | epoch 2/7 | sparsify… | eta 2h 54m"),
    ("evaluate 28% | compared pgd-20 block 1/2 | eta 6m 20s",
     "evaluate 28% | compared pgd-20 blo… | eta 6m 20s"),
    ("a | " + "b" * 60, "a | " + "b" * 43 + "…")])
def test_of_a_long_line_of_progress_how_long_it_takes_is_kept(line, short):
    assert _short(line) == short and len(short) <= 48


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_beats_when_quiet_or_over(heart, capsys, quiet):
    out = Console(quiet=quiet)
    out.say("warning: careful")
    if not quiet:
        out.result("# done", {})
    heart(60)
    assert capsys.readouterr().err == "warning: careful\n"


def test_progress_is_said_by_its_own_lines(heart, capsys):
    with Console().progress() as progress:
        progress.update("prune", 0, 10)
        heart(6)
    assert capsys.readouterr().err == "prune 0%\nstill working, 5.0s after: prune 0%\n"


def test_a_bar_needs_none(heart, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    Console().say("before")
    with Console().progress() as progress:
        progress.update("prune", 0, 10)
        heart(60)
    assert "still" not in sys.stderr.getvalue()


def test_the_program_beats(tmp_path):
    """The work is a network of the user's that takes its time to be made, when it is first tried."""
    (tmp_path / "slow.py").write_text("import os, time\ndef fn():\n    if not os.path.exists('tried'):\n"
                                      "        os.mkdir('tried')\n        time.sleep(5.8)\n"
                                      "    raise OSError\n")
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "model.pt")
    said = start("info", "model.pt", "--arch", "slow.py:fn", cwd=tmp_path).communicate(timeout=60)[1]
    assert "loading torch\nstill working, " in said and " after: loading torch\nerror: " in said
