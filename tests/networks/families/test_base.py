"""Blocks counted from keys, and modules put where their keys begin."""
import pytest
import torch
from torch import nn

from pwoa_cli.networks.families.base import add_at, count_blocks


@pytest.mark.parametrize(("keys", "first", "expected"), [
    (["a1.0.x", "a1.1.x", "a2.0.x"], 1, [2, 1]), (["a0.0.x"], 0, [1]), (["a0.0.x"], 1, []),
    (["a1.1.x"], 1, []), ([], 1, []), (["a1.0.x", "a3.0.x"], 1, []), (["a1.0"], 1, []), (["b1.0.x"], 1, []),
    ([f"a1.{j}.x" for j in range(12)], 1, [12])])
def test_count_blocks_wants_numbers_without_gaps(keys, first, expected):
    assert count_blocks(dict.fromkeys(keys, torch.zeros(1)), "a{}.{}", first=first) == expected


def test_add_at_makes_what_is_on_the_way():
    root = nn.Module()
    add_at(root, "a.0.b", nn.Linear(1, 1, bias=False))
    add_at(root, "a.1", nn.Linear(1, 1, bias=False))
    assert list(root.state_dict()) == ["a.0.b.weight", "a.1.weight"]
