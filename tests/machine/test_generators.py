"""Torch's global generators are afterwards as they were, on whatever device; a device that is not in use is
not started."""
from pathlib import Path

import pytest
import torch

import pwoa_cli
from pwoa_cli.machine.generators import drawn_since, own_draws, put_back, states


class Stand:
    """A generator of a device that this machine lacks: reads and sets as torch.mps and torch.cuda do."""

    def __init__(self):
        self.own = torch.Generator().manual_seed(0)

    def get(self, device=None):
        return self.own.get_state()

    def get_all(self):
        return [self.own.get_state()]

    def set(self, state, device=0):
        assert device == 0
        self.own.set_state(state)


@pytest.fixture(params=["cpu", "mps", "cuda"])
def draw(request, monkeypatch):
    """Draws one number on a machine with that device in use."""
    stand = Stand()
    if request.param == "mps":
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.mps, "get_rng_state", stand.get)
        monkeypatch.setattr(torch.mps, "set_rng_state", stand.set)
    if request.param == "cuda":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", stand.get_all)
        monkeypatch.setattr(torch.cuda, "set_rng_state", stand.set)
    return lambda: torch.rand((), generator=None if request.param == "cpu" else stand.own).item()


def test_what_is_drawn_inside_changes_nothing_afterwards(draw):
    before = states()
    first = draw()
    put_back(before)
    with pytest.raises(KeyError), own_draws():
        draw(), draw()
        raise KeyError
    assert not drawn_since(before)
    assert draw() == first
    assert drawn_since(before)


def test_a_device_started_inside_is_left_as_it_is(monkeypatch):
    stand = Stand()
    with own_draws():
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", stand.get_all)
        monkeypatch.setattr(torch.cuda, "set_rng_state", stand.set)
        torch.rand((), generator=stand.own)
        drawn = stand.get()
    assert torch.equal(stand.get(), drawn)


def test_a_device_that_is_not_in_use_is_not_started(monkeypatch):
    def started():
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", started)
    with own_draws():
        torch.rand(1)
    for path in Path(pwoa_cli.__file__).parent.rglob("*.py"):  # torch's own would start it
        assert "fork_rng(" not in path.read_text(), path
