"""A disk that is full at any moment: each write of a whole run fails once in turn. No half file is left, the
figures are printed or kept, and one sentence and the exit code say it."""
import json
import os
import resource
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_world import PACKAGE, PRUNE

from pwoa_cli.files import metrics, sparse
from pwoa_cli.reports import ci

FULL = OSError(28, "No space left on device")
EVAL = ["eval", "model.pt", "--data", "tiny.npz", "--eps", "0.5", "--n", "20", "--attacks", "fgsm",
        "--out", "run", "--save-samples", "saved.npz"]
COMMANDS = {"prune": [*PRUNE, "--out", "run"], "eval": EVAL}


class Disk:
    """Numbers the writes of a run, and is full at one of them: the sync of a file, its rename, a line of the
    log."""

    def __init__(self, patch, full_at):
        self.count, self.full_at, self.at = 0, full_at, ""
        sync, replace, real_open = os.fsync, os.replace, open

        def fsync(handle):
            if stat.S_ISREG(os.fstat(handle).st_mode):
                self.take("sync")
            sync(handle)

        def rename(temporary, target):
            self.take(Path(target).name)
            replace(temporary, target)

        def logged(*args, **options):
            return Log(real_open(*args, **options), self)

        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", rename)
        patch.setattr(metrics, "open", logged, raising=False)

    def take(self, what):
        self.count += 1
        if self.count == self.full_at:
            self.at = what
            raise FULL


class Log:
    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def write(self, data):
        self.disk.take("metrics.jsonl")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def whole(folder):
    """That every file under a folder is whole, and none is a temporary one; their names."""
    readers = {".json": lambda p: json.loads(p.read_text()), ".toml": lambda p: tomllib.loads(p.read_text()),
               ".npz": lambda p: dict(np.load(p)), ".safetensors": sparse.load, ".pt": Path.read_bytes,
               ".md": Path.read_text,
               ".jsonl": lambda p: [json.loads(line) for line in p.read_text().splitlines()]}
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        readers[path.suffix](path)
    return {path.name for path in files}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_full_at_each_write_in_turn(here, pwoa, monkeypatch, command):
    seen, number = [], 0
    while not seen or seen[-1]:
        number += 1
        for path in ("run", "saved.npz", "pwoa-runs/.eval"):
            subprocess.run(["rm", "-rf", path], check=True)
        with monkeypatch.context() as patch:
            disk = Disk(patch, number)
            code, out, err = pwoa(*COMMANDS[command])
        seen.append(disk.at)
        names = whole(here) and whole(here / "run")
        printed, kept = "| fgsm |" in out, "report.json" in names
        assert "Traceback" not in err and err.count("No space left") == (1 if disk.at else 0), err
        if "warning: " in err and "error: " not in err or not disk.at:
            assert code == 0 and printed and kept, (disk.at, err)  # the log, or a part for --resume
        else:
            assert code == 4 and err.count("error: ") == err.count("hint: ") == 1, (disk.at, err)
            # before there are figures there is nothing to keep
            assert printed or command == "prune" and not names & {"report.json", "model.safetensors"}
            assert ("\nGo on: pwoa prune --resume --out run\n" in err) == ("state.pt" in names), err
    assert len(seen) > 8 and {"report.json", "report.md"} <= set(seen)


@pytest.mark.parametrize(("command", "limit"), [("prune", 2_000), ("prune", 3_900), ("eval", 500),
                                                ("eval", 1_500)])
def test_a_limit_on_the_size_of_files_is_as_a_full_disk(here, command, limit):
    """The operating system's own refusal, which reaches what is written below Python too."""
    process = subprocess.run([sys.executable, "-m", "pwoa_cli", *COMMANDS[command]], capture_output=True,
                             text=True, timeout=100, env=os.environ | {
                                 "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"},
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert process.returncode == 4 and "Traceback" not in process.stderr
    assert process.stderr.count("error: ") == 1 and "File too large" in process.stderr
    assert "ulimit -f" in process.stderr
    assert ("Go on: " in process.stderr) == (here / "run" / "state.pt").exists()
    assert command == "prune" or "| fgsm |" in process.stdout
    whole(here / "run")


def test_what_ci_would_show_costs_neither_the_verdict_nor_the_exit_code(here, pwoa, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/full")
    code, out, err = pwoa(*EVAL, "--min", "clean=1.0", "--min", "fgsm=1.0", "--junit", "gates.xml")
    assert code == 1 and "| fgsm |" in out and Path("gates.xml").is_file()
    assert err.count("warning: the step summary cannot be written: No space left on device") == 1
    assert ci.summarise("# Title", []) == "No space left on device"
