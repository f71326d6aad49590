"""The bar on a terminal: one line a phase, whatever the user does meanwhile."""
import textwrap

import pytest
from helpers.terminal import Screen, Terminal

from pwoa_cli.cli.console import _cropped

WORK = textwrap.dedent("""
    import sys, time
    from pwoa_cli.cli.console import Console
    console = Console()
    console.say("before the bar")
    try:
        with console.progress() as progress:
            progress.update("load", 1, 1)
            for step in range(999):
                text = f"step {step / 100:.2f} | more than there is room for | loss 1.23"
                progress.update("prune", step, 999, text)
                time.sleep(0.005)
    except KeyboardInterrupt:
        console.say("interrupted")
        sys.exit(130)""")


def test_the_screen_breaks_lines_anew():
    screen = Screen(10)
    screen.write("before\r\n" + "x" * 15 + "\r\x1b[2Kab")
    assert screen.lines() == ["before", "x" * 10, "ab"]
    screen.resize(5)
    assert screen.lines() == ["befor", "e", "xxxxx", "xxxxx", "ab"] and (screen.x, screen.y) == (2, 4)
    screen.resize(20)
    screen.write("c")
    assert screen.lines() == ["before", "xxxxxxxxxxabc"]


@pytest.mark.parametrize("widths", [[60], [100], [100, 60], [60, 100], [100, 60, 100], [40]])
def test_ctrl_c_and_resizing_leave_one_line_a_phase(widths):
    terminal = Terminal(WORK, columns=widths[0])
    terminal.until("step 0.")
    for shown, columns in enumerate(widths[1:], start=1):
        terminal.resize(columns)
        terminal.until(f"step {shown}.")
    terminal.press("\x03")
    assert terminal.until(None) == 130
    before, load, prune, interrupted = terminal.screen.lines()
    assert (before, interrupted) == ("before the bar", "interrupted")
    assert "load 100%" in load and "prune" in prune and "^C" not in prune


@pytest.mark.parametrize(("columns", "left"), [
    (59, "prune 30% | epoch 6/20 | finetune | loss 1.23 | eta 12m 05s"),
    (58, "prune 30% | epoch 6/20 | loss 1.23 | eta 12m 05s"),
    (40, "prune 30% | epoch 6/20 | eta 12m 05s"),
    (32, "prune 30% | epoch… | eta 12m 05s"),
    (20, "prune 30% | … | eta 12m 05s")])
def test_what_is_left_out_is_in_the_middle(columns, left):
    assert _cropped("prune 30% | epoch 6/20 | finetune | loss 1.23 | eta 12m 05s", columns) == left
    assert _cropped("prune 30%", columns) == "prune 30%"
