"""What may be taken for what a file asks for: of free memory, or as much as was said."""
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
