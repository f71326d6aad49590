"""What a run goes on from: written at once, at bounded cost, and refused where it is of something else."""
from pathlib import Path

import pytest
import torch

from pwoa_cli.errors import InputError
from pwoa_cli.files import keeper
from pwoa_cli.files.keeper import Keeper

OF = {"sparsity": 0.9, "recipe": {"lr": 1e-3}, "mean": (0.5, 0.5), "none": None}


def make(of=OF, **options):
    return Keeper(Path("."), **{"of": of, "warn": print} | options)


def test_a_state_comes_back_as_it_was():
    kept = make()
    assert kept.kept() is None
    state = {"w": torch.randn(3, 4), "masks": {"a.weight": torch.tensor([True, False])}, "step": 7,
             "curves": {"a": [(0, 0.0), (3, 0.5)]}, "lowered": ["x"], "none": None}
    assert kept.keep(state)
    found = make(dict(reversed(OF.items()))).kept()
    assert torch.equal(found.pop("w"), state.pop("w"))
    assert torch.equal(found.pop("masks")["a.weight"], state.pop("masks")["a.weight"]) and found == state
    kept.clear()
    assert kept.kept() is None and not list(Path().iterdir())


def test_a_state_of_something_else_is_refused():
    make().keep({"step": 1})
    with pytest.raises(InputError, match="state.pt is of another run") as caught:
        make(OF | {"sparsity": 0.8}).kept()
    assert "Remove state.pt" in caught.value.hint


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:100], lambda data: data[:-100], lambda data: b"no state",
    lambda data: data[:64] + bytes(64) + data[128:]])
def test_a_damaged_state_is_one_sentence(damage):
    kept = make()
    kept.keep({"step": 1, "w": torch.zeros(100)})
    kept.path.write_bytes(damage(kept.path.read_bytes()))
    with pytest.raises(InputError, match="state.pt (cannot be read|is of another)") as caught:
        kept.kept()
    assert "begins again" in caught.value.hint and "\n" not in caught.value.message


def test_it_takes_no_more_than_its_share_of_the_time(monkeypatch):
    """A state that takes 3 s is written every 150 s, one that takes 10 ms every 60 s."""
    now, cost = [0.0], [3.0]
    kept = make(clock=lambda: now[0])
    save = torch.save

    def takes(*args):
        now[0] += cost[0]
        save(*args)

    monkeypatch.setattr(keeper.torch, "save", takes)
    for seconds, least in ((3.0, 150.0), (0.01, 60.0)):
        cost[0] = seconds
        now[0] += 1000.0
        assert kept.due
        kept.keep({})
        end = now[0]
        now[0] = end + least - 0.1
        assert not kept.due
        now[0] = end + least
        assert kept.due


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"),
                                   RuntimeError("PytorchStreamWriter failed\nat 3")])
def test_a_full_disk_is_said_once_and_costs_neither_run_nor_the_state_before(monkeypatch, error):
    said = []
    kept = make(warn=said.append)
    kept.keep({"step": 1})

    def full(state, file):
        file.write(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(keeper.torch, "save", full)
        assert not kept.keep({"step": 2}) and not kept.keep({"step": 3})
    assert len(said) == 1 and said[0].startswith("warning: the run cannot be kept to go on from: state.pt ")
    assert "\n" not in said[0] and make().kept() == {"step": 1} and len(list(Path().iterdir())) == 1
