"""What goes to stdout, what to stderr, in which form."""
import ast
import io
import json
import math
import sys

import pytest
from helpers.cli_world import PACKAGE
from rich.text import Text

from pwoa_cli.cli import console
from pwoa_cli.cli.console import Console, Progress
from pwoa_cli.errors import InputError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _terminal(monkeypatch) -> Terminal:
    """Make stderr a terminal of 60 columns (called in the test: pytest's capture puts its own stderr back
    after a fixture)."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    return stream


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _work(progress: Progress, clock: Clock, *, phase: str, steps: int, seconds: float,
          stop: int | None = None) -> None:
    for step in range(steps if stop is None else stop):
        clock.now += seconds
        progress.update(phase, step + 1, steps, f"epoch {step // 10 + 1}/{steps // 10}")


def _lines(capsys, clock: Clock, *jobs: dict) -> list[str]:
    progress = Progress(console.lines(clock=clock), clock=clock)
    for job in jobs:
        _work(progress, clock, **job)
    progress.close()
    return capsys.readouterr().err.splitlines()


def test_streams(capsys):
    out = Console()
    out.say("reading [x]")
    out.warn("careful")
    out.error(InputError("model.pt [red]is[/red] not [/x] a checkpoint.", hint="pwoa info model.pt"))
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err == ("reading [x]\nwarning: careful\n"
                        "error: model.pt [red]is[/red] not [/x] a checkpoint.\nhint: pwoa info model.pt\n")


def test_no_hint_no_line(capsys):
    Console().error(InputError("broken."))
    assert capsys.readouterr().err == "error: broken.\n"


def test_quiet_keeps_warnings_and_errors(capsys):
    out = Console(quiet=True)
    out.say("nothing")
    with out.progress() as progress:
        progress.update("prune", 1, 2)
    out.warn("w")
    out.say("warning: of a workflow")
    out.error(InputError("e"))
    assert capsys.readouterr().err == "warning: w\nwarning: of a workflow\nerror: e\n"


def test_control_characters_and_broken_names_are_made_visible(capsys):
    Console().say("a\x1b[2J\x07b\udcff\tc é\nd")
    assert capsys.readouterr().err == "a\\x1b[2J\\x07b\\udcff\tc é\nd\n"


def test_messages_wrap_between_words_on_a_terminal_and_not_elsewhere(capsys, monkeypatch):
    terminal = _terminal(monkeypatch)
    error = InputError("the folder " + "/very/long/path-name" * 5 + " is " + "quite " * 20 + "full.")
    Console().error(error)
    lines = terminal.getvalue().splitlines()
    assert "/very/long/path-name" * 5 in lines  # still one piece to copy
    assert all(len(line) <= 60 for line in lines if "/" not in line) and len(lines) == 5
    monkeypatch.undo()
    Console().error(error)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_wrapped_lines_keep_their_indent(monkeypatch):
    stream = _terminal(monkeypatch)
    Console().say("  " + "word " * 20)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and all(line.startswith("  word") and len(line) <= 60 for line in lines)


def test_the_table_takes_the_width_of_a_dumb_terminal_too(capsys, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    Console().result("", {}, table=lambda: Text("word " * 30))
    assert max(map(len, stream.getvalue().splitlines())) <= 60 and "\x1b" not in stream.getvalue()


def test_json_is_one_object_and_nothing_else(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())  # even on a terminal
    out = Console(json=True)
    out.say("for people")
    with out.progress() as progress:
        progress.update("prune", 1, 1)
    out.result("# text", {"accuracy": math.nan, "drop": [math.inf, 1.5], "name": "é [x]"},
               table=lambda: Text("table"))
    text = sys.stdout.getvalue()
    assert text.count("\n") == 1
    made = json.loads(text, parse_constant=pytest.fail)
    assert made == {"accuracy": None, "drop": [None, 1.5], "name": "é [x]"}
    assert capsys.readouterr().err == "for people\nprune 100%\n"


def test_result_is_markdown_in_a_pipe_and_the_table_on_a_terminal(capsys, monkeypatch):
    Console().result("# markdown [x]\n", {}, table=lambda: Text("table [x]"))
    assert capsys.readouterr().out == "# markdown [x]\n"
    monkeypatch.setattr(sys, "stdout", Terminal())
    Console().result("# markdown [x]\n", {}, table=lambda: Text("table [x]"))
    Console().result("only text", {})
    assert sys.stdout.getvalue() == "table [x]\nonly text\n"


def test_plain_lines_the_first_the_last_and_ever_fewer_between_them(capsys):
    lines = _lines(capsys, Clock(), {"phase": "prune", "steps": 100, "seconds": 1},
                   {"phase": "finetune", "steps": 20, "seconds": 1})
    assert lines == ["prune 1% | epoch 1/10", "prune 6% | epoch 1/10 | eta 1m 34s",
                     "prune 11% | epoch 2/10 | eta 1m 29s", "prune 21% | epoch 3/10 | eta 1m 19s",
                     "prune 41% | epoch 5/10 | eta 59s", "prune 71% | epoch 8/10 | eta 29s",
                     "prune 100% | epoch 10/10 | took 1m 39s",
                     "finetune 5% | epoch 1/2", "finetune 30% | epoch 1/2 | eta 14s",
                     "finetune 55% | epoch 2/2 | eta 9.0s", "finetune 100% | epoch 2/2 | took 19s"]


def test_plain_lines_show_where_a_phase_was_left(capsys):
    lines = _lines(capsys, Clock(), {"phase": "prune", "steps": 100, "seconds": 1, "stop": 4},
                   {"phase": "save", "steps": 1, "seconds": 1})
    assert lines == ["prune 1% | epoch 1/10", "prune 4% | epoch 1/10 | eta 1m 36s", "save 100% | epoch 1/0"]


def test_eta_counts_from_where_a_resumed_phase_stands(capsys):
    clock = Clock()
    progress = Progress(console.lines(clock=clock), clock=clock)
    progress.update("prune", 50, 100)
    clock.now = 10
    progress.update("prune", 60, 100)
    assert capsys.readouterr().err.splitlines() == ["prune 50%", "prune 60% | eta 40s"]


def test_100_percent_only_when_over(capsys):
    with Console().progress() as progress:
        progress.update("a", 9999, 10000)
        progress.update("b", 0, 0)
    assert capsys.readouterr().err == "a 99%\nb 100%\n"


def test_an_interrupted_run_says_where_it_stood(capsys):
    with pytest.raises(KeyboardInterrupt), Console().progress() as progress:
        progress.update("prune", 1, 10)
        progress.update("prune", 4, 10, "epoch 2/5")
        raise KeyboardInterrupt
    assert capsys.readouterr().err.splitlines()[-1].startswith("prune 40% | epoch 2/5 | eta ")


@pytest.mark.parametrize("setting", [("TERM", "dumb"), ("TERM", ""), ("CI", "true")])
def test_no_bar_where_it_cannot_be_drawn(monkeypatch, setting):
    terminal = _terminal(monkeypatch)
    monkeypatch.setenv(*setting)
    with Console().progress() as progress:
        progress.update("prune", 1, 1, "loss 1.2")
    assert terminal.getvalue() == "prune 100% | loss 1.2\n"


def test_bar_on_a_terminal_reads_no_markup_and_keeps_the_result_apart(capsys, monkeypatch):
    terminal = _terminal(monkeypatch)
    with Console().progress() as progress:
        progress.update("prune", 1, 2, "epoch 1/2 | loss [x] [/y]")
        print("result")
        progress.update("prune", 2, 2, "epoch 2/2 | loss [x] [/y]")
        progress.update("save", 1, 1)
    text = terminal.getvalue()
    assert "prune 100% | epoch 2/2 | loss [x] [/y]" in text and "save 100%" in text and "━" in text
    assert capsys.readouterr().out == "result\n"


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        printing = path.parent.name == "cli" and path.name in ("main.py", "console.py")
        assert printing or not [f for f in calls if getattr(f, "id", "") == "print"], path
