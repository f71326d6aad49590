"""A world for tests of the command line, and ways to run it in this process and in one of its own."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pwoa_cli
from helpers import small_models as small
from pwoa_cli.cli import main
from pwoa_cli.machine import signals

PACKAGE = Path(pwoa_cli.__file__).parent
TINY = ["--data", "tiny.npz", "--eps", "0.5", "--n", "20"]
BUDGET = ["--epochs", "0.1", "--batch-size", "16", "--attacks", "fgsm"]
PRUNE = ["prune", "model.pt", "--sparsity", "0.9", *TINY, *BUDGET]
RUN_FILES = ["config.toml", "metrics.jsonl", "model.safetensors", "report.json", "report.md"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained network, its data, and one finished run of it."""
    folder = tmp_path_factory.mktemp("world")
    small.save(small.sparse_lenet(), folder / "model.pt")
    small.write_npz(folder / "tiny.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert in_process(patch, *PRUNE, "--quiet") == 0
    shutil.copy(next(folder.glob("pwoa-runs/*/model.safetensors")), folder / "pruned.safetensors")
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world, to work in."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pwoa(monkeypatch, capfd):
    """Run the command as the entry point does: (exit code, stdout, stderr)."""
    for name, value in {"COLUMNS": "60", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)

    def call(*args):
        capfd.readouterr()
        code = in_process(monkeypatch, *args)
        return code, *capfd.readouterr()

    return call


def in_process(patch, *args):
    """Exit code of the command, run as its entry point does."""
    threads = torch.get_num_threads()
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in signals.NAMES}
    patch.setattr(sys, "argv", ["pwoa", *map(str, args)])
    torch.set_num_threads(1)
    try:
        main.main()
    except SystemExit as stop:
        return stop.code or 0
    finally:
        torch.use_deterministic_algorithms(False)  # --deterministic is for the rest of a process
        for number, handler in before.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)


def start(*args, threads="1", **options):
    """A process of its own, for what cannot be had in this one."""
    own = {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(PACKAGE.parent), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-m", "pwoa_cli", *args], env=os.environ | own, text=True,
                            stdin=subprocess.DEVNULL,
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options)


