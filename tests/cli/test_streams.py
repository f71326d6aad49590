"""Streams that are closed, full, broken or not to be closed: a command ends well, its result is not lost."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli_world import PACKAGE, start

from pwoa_cli.cli import streams
from pwoa_cli.cli.console import Console
from pwoa_cli.files import run_folder

EVAL = ["eval", "model.pt", "--data", "tiny.npz", "--eps", "0.5", "--n", "20", "--attacks", "fgsm"]
REPORT = ["report.json", "report.md", "samples.npz"]


def shell(redirections, *args):
    """pwoa in a shell with redirections of its own, which Python's subprocess cannot make: `>&-`."""
    command = ["sh", "-c", f'"$@" {redirections}', "sh", sys.executable, "-m", "pwoa_cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)})


@pytest.mark.parametrize("redirections", [">&-", "2>&-", ">&- 2>&-", ">&- 2>&- <&-", "2>/dev/full",
                                          "| true"])
def test_a_stream_that_nobody_wants_costs_nothing(here, redirections):
    done = shell(redirections, *EVAL, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir("out")) == REPORT and "Traceback" not in done.stderr
    assert ("| fgsm |" in done.stdout) == (">&-" not in redirections.replace("2>&-", "")
                                           and "true" not in redirections)


def test_a_result_that_cannot_be_printed_is_kept_and_the_exit_code_says_it(here):
    for args in ([*EVAL, "--out", "out"], ["report", str(run_folder.newest())]):
        done = shell(">/dev/full", *args)
        assert done.returncode == 4
        assert "error: stdout cannot be written: No space left on device; the result" in done.stderr
        assert "hint: " in done.stderr and "Traceback" not in done.stderr
    assert sorted(os.listdir("out")) == REPORT


def test_the_same_command_with_resume_shows_what_could_not_be_printed(here):
    assert shell(">/dev/full", *EVAL).returncode == 4
    again = shell("", *EVAL, "--resume")
    assert again.returncode == 0 and "| fgsm |" in again.stdout and "taken over" in again.stderr


LOUD = """\
import ctypes, os, sys
from pwoa_cli.networks.families.small import LeNet
print("while it is imported")

class Loud(LeNet):
    def forward(self, x):
        print("from a forward")
        os.write(1, b"below Python\\n")
        sys.stdout.close()
        sys.stderr.close()
        return super().forward(x)

def loud(): return Loud(size=8, widths=(4, 8), hidden=16, num_classes=4)
"""


def test_what_a_user_s_code_prints_goes_to_stderr(here):
    Path("own.py").write_text(LOUD)
    process = start(*EVAL, "--arch", "own.py:loud", "--json", "--out", "out")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["results"]["clean"] and out.count("\n") == 1
    for words in ("while it is imported", "from a forward", "below Python", "wrote out"):
        assert words in err


def test_stdout_is_as_it_was_afterwards(capfd):
    before = sys.stdout
    with pytest.raises(KeyError), streams.apart():
        print("for people")
        os.write(1, b"below\n")
        Console().result("the result", {})
        raise KeyError
    print("after")
    out, err = capfd.readouterr()
    assert sys.stdout is before and (out, err) == ("the result\nafter\n", "for people\nbelow\n")


@pytest.mark.parametrize(("target", "fails"), [("pipe", False), ("/dev/full", True)])
def test_only_a_reader_that_has_gone_is_no_error(target, fails):
    if target == "pipe":
        read, descriptor = os.pipe()
        os.close(read)
    else:
        descriptor = os.open(target, os.O_WRONLY)
    stream = streams._Text(descriptor, "ascii")
    stream.write("é" * 100_000)
    stream.close()  # does not close the descriptor
    os.close(descriptor)
    assert stream.sink.failure is not None
    assert streams.fault(stream) == ("No space left on device" if fails else "")


def test_a_pipe_that_does_not_block_gets_all_of_it(here):
    """As a parent such as Node.js leaves it: a full pipe answers EAGAIN."""
    own = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    read, write = os.pipe()
    os.set_blocking(write, False)
    code = "from pwoa_cli.cli import streams; import sys; streams.prepare(); sys.stdout.write('x' * 300_000)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=write, env=own) as process, open(read) as pipe:
        os.close(write)
        assert len(pipe.read()) == 300_000
    assert process.returncode == 0
