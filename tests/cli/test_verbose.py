"""--verbose: versions, when each line was said, which readings were tried, what an error was caused by."""
import re
from pathlib import Path

import pytest
from helpers.cli_world import BUDGET, PRUNE, TINY

from pwoa_cli.workflows import info

EVAL = ["eval", "model.pt", *TINY, "--attacks", "fgsm"]


@pytest.mark.parametrize("args", [EVAL, PRUNE, ["info", "model.pt"]])
def test_quiet_and_verbose_exclude_each_other(here, pwoa, args):
    said = "error: --quiet and --verbose exclude each other.\nhint: Leave one of them out.\n"
    assert pwoa(*args, "-q", "-v") == pwoa(*args, "--verbose", "--quiet") == (2, "", said)


@pytest.mark.parametrize("args", [EVAL, ["info", "model.pt", *TINY[:2]]])
def test_every_line_has_its_time_and_more_is_said(here, pwoa, args):
    code, out, err = pwoa(*args, "--verbose")
    plain_code, plain, less = pwoa(*args)
    assert code == plain_code == 0 and len(err.splitlines()) > len(less.splitlines())
    assert all(re.match(r"\[\d+\.\d s\] ", line) for line in err.splitlines())
    assert re.search(r"\] python 3\.\S+, torch \S+, .*threads \d+\b", err, re.M)
    assert re.search(r"\]   tried as read \d+\.\d%.* of \d+ images$", err, re.M)
    without = re.sub(r"^\[.*?\] ", "", err, flags=re.M).splitlines()
    assert [line for line in less.splitlines() if "took" not in line and line not in without] == []


def test_an_error_says_its_causes(here, pwoa):
    Path("tiny.npz").write_bytes(b"no archive")
    code, _, err = pwoa(*EVAL)
    assert code == 2 and "ValueError" not in err
    code, _, err = pwoa(*EVAL, "-v")
    assert code == 2 and "Traceback" not in err
    assert re.search(r"^  raised InputError at \S+errors\.py:\d+ in reading: tiny\.npz ", err, re.M)
    assert re.search(r"^  because of BadZipFile at \S+\.py:\d+ in \w+: File is not a zip file", err, re.M)


def test_what_a_machine_can_do_wrong_names_its_cause(here, pwoa, monkeypatch):
    def fails(*args, **options):
        raise OSError(28, "No space left on device", "disk/file")

    monkeypatch.setattr(info, "describe", fails)
    _, _, err = pwoa("info", "model.pt", "-v")
    assert "error: disk/file: No space left on device." in err and "because of OSError at " in err


def test_verbose_is_of_this_call(here, pwoa):
    assert pwoa("prune", "model.pt", "--sparsity", "0.9", *TINY, *BUDGET, "--out", "run", "-v")[0] == 0
    assert "verbose" not in Path("run/config.toml").read_text()
