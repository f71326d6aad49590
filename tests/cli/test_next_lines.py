"""Every "next:" line is run as it is printed, in the situation that prints it."""
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.cli_world import BUDGET, PRUNE, TINY

NET = """
from pwoa_cli.networks.families.small import LeNet


def fn(num_classes=4):
    return LeNet(size=8, widths=(4, 8), hidden=16, num_classes=num_classes)
"""


def next_of(err):
    command, = re.findall(r"^next: (pwoa .*)$", err, re.M)
    return shlex.split(command)[1:]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")


@pytest.mark.parametrize("options", [
    [], ["--arch", "my net.py:fn"], ["--normalize", "none"], ["--mean", "0.1", "--std", "0.9"],
    ["--num-classes", "4"], ["--data", "tiny.npz", "--labels-from", "0"]])
def test_what_info_says_is_next(here, pwoa, options):
    Path("my net.py").write_text(NET)
    shutil.copy("model.pt", "a model's.pt")
    code, _, err = pwoa("info", "a model's.pt", *options)
    assert code == 0, err
    words = next_of(err)
    more = TINY if "--data" not in words else TINY[2:]
    code, out, err = pwoa(*words, *more, *BUDGET)
    assert code == 0 and out.startswith("# a model's.pt pruned to 90% sparsity"), err


@pytest.mark.parametrize("out", [[], ["--out", "my run"]])
@pytest.mark.parametrize("arch", [[], ["--arch", "my net.py:fn"]])
def test_what_prune_says_is_next(here, pwoa, out, arch):
    Path("my net.py").write_text(NET)
    code, _, err = pwoa(*PRUNE, *out, *arch)
    assert code == 0, err
    words = next_of(err)
    words[words.index("pgd,cw,aa")] = "fgsm"  # the same command, less work
    code, printed, err = pwoa(*words, "--n", "20")
    assert code == 0 and "| teacher | pruned | drop |" in printed, err
