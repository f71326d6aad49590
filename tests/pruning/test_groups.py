"""Masks of groups: exact counts, ties by index, growing back."""
import pytest
import torch
from helpers.plans import keep_mask, regrown_mask, strength
from torch import nn

from pwoa_cli.pruning.groups import STRUCTURES, companion_masks, masks, smallest


def test_keep_mask_breaks_ties_by_index():
    keep = keep_mask(torch.tensor([[1.0, -1.0, 1.0, 2.0]]), 2)
    assert keep.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("kind", [*STRUCTURES, "block:1x2", "block:1x3", "block:3x1"])
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


@pytest.mark.parametrize("conv", [
    nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 6, 3, groups=6),
    nn.ConvTranspose3d(4, 6, 2, groups=2)])
def test_filters_of_transposed_convolutions_are_their_outputs(conv):
    """A zero filter is a channel that is zero for every input; a zero column is a tap that is heard by
    none."""
    weights, companions = {"weight": conv.weight}, {"weight": ("bias",)}
    groups = STRUCTURES["filter"].groups(weights, companions, {"weight": conv.groups}, {})["weight"]
    assert groups.count == conv.out_channels
    keep = torch.ones(groups.count, dtype=torch.bool)
    keep[[1, 4]] = False
    sides = (3,) * (conv.weight.ndim - 2)
    with torch.no_grad():
        for name, mask in (masks({"weight": groups}, {"weight": keep})
                           | companion_masks({"weight": groups}, {"weight": keep})).items():
            conv.get_parameter(name).masked_fill_(~mask, 0.0)
        out = conv(torch.rand(1, conv.in_channels, *sides)).flatten(2).abs().sum(2)[0]
    assert (out == 0).nonzero().flatten().tolist() == [1, 4]
    columns = STRUCTURES["column"].groups(weights, {}, {"weight": conv.groups}, {})["weight"]
    first = columns.parts["weight"].spread(torch.arange(columns.count) == 0)
    expected = torch.zeros_like(first)
    expected[(0, slice(None), *(0 for _ in sides))] = True  # input 0, its first tap, in all filters
    assert torch.equal(first, expected)
    assert columns.count * columns.size == conv.weight.numel()


@pytest.mark.parametrize("count", range(7))
def test_scores_that_are_no_numbers_still_give_exactly_as_many(count):
    """NaN first, infinities by index."""
    scores = torch.tensor([torch.inf, 1.0, torch.nan, -torch.inf, torch.inf, torch.nan])
    chosen = smallest(scores, count)
    assert int(chosen.sum()) == count
    assert chosen.nonzero().flatten().tolist() == sorted([2, 3, 5, 1, 0, 4][:count])
