"""Masks of groups: exact counts, ties by index, growing back."""
import pytest
import torch
from helpers.plans import keep_mask, regrown_mask, strength

from pwoa_cli.pruning.groups import STRUCTURES


def test_keep_mask_breaks_ties_by_index():
    keep = keep_mask(torch.tensor([[1.0, -1.0, 1.0, 2.0]]), 2)
    assert keep.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize(("lost", "fraction"), [(0, 0.5), (3, 0.0), (3, 0.5), (5, 0.99)])
def test_regrown_masks_equal_the_slow_way(kind, lost, fraction):
    g = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(6, 2, 3, generator=g), torch.randn(6, 2, 3, generator=g)
    strong, slope = (strength(t, kind).tolist() for t in (weight, gradient))
    order = sorted(range(len(strong)), key=lambda i: -strong[i])
    keep = len(strong) - lost
    grown = min(int(fraction * keep), lost)
    survivors = order[:keep - grown]
    survivors += sorted(set(order) - set(survivors), key=lambda i: -slope[i])[:grown]
    mask = regrown_mask(weight, gradient, lost, kind, fraction=fraction)
    alive = strength(mask.double(), kind) > 0
    assert sorted(alive.nonzero().flatten().tolist()) == sorted(survivors)
    if fraction == 0:
        assert torch.equal(mask, keep_mask(weight, lost, kind))
