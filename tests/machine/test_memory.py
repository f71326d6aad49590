"""What may be taken for what a file asks for: of free memory, or as much as was said; how much was
held at most."""
import subprocess
import sys

import pytest
import torch

from pwoa_cli.errors import InputError
from pwoa_cli.machine import memory


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setattr(memory, "_said", None)


def test_without_a_word_it_is_a_share_of_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e10)
    memory.check_room(8e9, "a.pt: its tensors")
    with pytest.raises(InputError, match=r"a.pt: its tensors would take 8.1 GB of memory, expected at most "
                                         r"8 GB \(80% of what is free\)") as caught:
        memory.check_room(8.1e9, "a.pt: its tensors")
    assert caught.value.hint == "If the file is right: --max-memory 8.1GB"


def test_what_was_said_counts(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e10)
    memory.limit(2e10)
    memory.check_room(1.9e10, "a")
    memory.limit(1e6)
    with pytest.raises(InputError, match="expected at most 0.001 GB \\(--max-memory\\)"):
        memory.check_room(1.1e6, "a")


def test_free_memory_is_a_number_of_bytes():
    assert 1e6 < memory.free_bytes(torch.device("cpu")) < 1e14


CHILD = """
import sys
from unittest.mock import MagicMock
sys.modules["torch"] = MagicMock()  # half a GB
from pwoa_cli.machine import memory
print(memory.peak_bytes())
"""
PARENT = """
import subprocess, sys
held = b"x" * 400_000_000
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where the maximum outlives fork and exec")
def test_the_peak_of_a_program_is_not_that_of_the_one_that_started_it():
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) < 3e8


def test_a_peak_that_nothing_tells_is_none(monkeypatch):
    assert (memory.peak_bytes() or 0) > 1e6
    monkeypatch.setattr(sys, "platform", "elsewhere")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_bytes() is None
