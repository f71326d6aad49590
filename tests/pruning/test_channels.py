"""Groups that overlap: channels of a chain, of a concatenation, of a sum; every weight counts once."""
import pytest
import torch

from pwoa_cli.pruning.allocation import ALLOCATIONS, gone, quotas
from pwoa_cli.pruning.criteria import magnitude
from pwoa_cli.pruning.groups import STRUCTURES, companion_masks, kept, masks, nonzero, scores_by_layer

# three layers in a chain, and one that reads a concatenation of the outputs of the first two
SHAPES = {"a": (4, 3, 2, 2), "b": (6, 4, 1, 1), "c": (5, 10), "d": (2, 5)}
COUPLED = {"a": {"a": {0: range(4)}, "b": {1: range(4)}, "c": {1: [0, 1, 2, 3] + [-1] * 6},
                 "norm": {0: [0, 1, 2, 3] + [-1] * 6}},
           "b": {"b": {0: range(6)}, "c": {1: [-1] * 4 + [*range(6)]}, "norm": {0: [-1] * 4 + [*range(6)]}},
           "c": {"c": {0: range(5)}, "d": {1: range(5)}, "bias": {0: range(5)}}}


def weights(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def groups():
    return STRUCTURES["channel"].groups(weights(), {}, {}, COUPLED)


def test_masks_are_rows_and_columns_by_hand():
    flags = {"a": torch.tensor([True, False, True, True]), "b": torch.arange(6) != 5,
             "c": torch.arange(5) > 1}
    found = masks(groups(), flags)
    for i, j in ((i, j) for i in range(5) for j in range(10)):
        heard = flags["a"][j] if j < 4 else flags["b"][j - 4]
        assert found["c"][i, j] == (flags["c"][i] & heard)
    assert torch.equal(found["b"][:, :, 0, 0], flags["b"][:, None] & flags["a"])
    assert torch.equal(found["d"], flags["c"].expand(2, 5))
    beside = companion_masks(groups(), flags)
    assert beside["norm"].tolist() == [*flags["a"].tolist(), *flags["b"].tolist()]
    assert torch.equal(beside["bias"], flags["c"])
    alone = companion_masks(groups(), {"a": flags["a"]})
    assert alone["norm"].tolist() == [*flags["a"].tolist()] + [True] * 6
    lost = {layer: int((~flag).sum()) for layer, flag in flags.items()}
    assert nonzero(groups(), lost) == sum(int(mask.sum()) for mask in found.values())


@pytest.mark.parametrize("method", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.75])
def test_sparsity_counts_each_weight_once(method, sparsity):
    """The zeros of the masks are the wanted fraction, to the nearest channel."""
    made = groups()
    scores = scores_by_layer(made, magnitude(weights()))
    curves = {layer: [(0, 0.0), (group.count - 1, float(group.count))] for layer, group in made.items()}
    lost = quotas(made, scores, sparsity, method=method, curves=curves)
    found = masks(made, kept(made, scores, lost))
    zeros = sum(int((~mask).sum()) for mask in found.values())
    total = sum(w.numel() for w in weights().values())
    assert abs(zeros - sparsity * total) <= max(group.size for group in made.values())
    assert all(n < made[layer].count for layer, n in lost.items())
    by_count = quotas(made, scores, sparsity, method=method, curves=curves, of="groups")
    assert abs(sum(by_count.values()) - sparsity * 15) <= 1 or sparsity == 0.75


def test_a_channel_that_a_layer_gives_and_reads_counts_its_weight_once():
    """A sum over a layer: rows and columns of one tensor are of the same set."""
    coupled = {"w": {"w": {0: range(4), 1: range(4)}}}
    made = STRUCTURES["channel"].groups({"w": torch.ones(4, 4)}, {}, {}, coupled)
    keep = torch.tensor([True, False, True, True])
    assert masks(made, {"w": keep})["w"].sum() == nonzero(made, {"w": 1}) == 9
    assert made["w"].scores({"w": torch.ones(4, 4)}).tolist() == [8.0] * 4


def macs(each, kept=None):
    """Multiplications with the weights that stay, by a slow loop."""
    return sum(each[name] for name, shape in SHAPES.items()
               for flag in (kept[name] if kept else torch.ones(shape)).flatten().tolist() if flag)


@pytest.mark.parametrize("method", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.75])
def test_multiplications_are_those_of_the_masks_and_of_layers_beside(method, sparsity):
    """To the nearest channel of what the whole network multiplies, a layer without a group included."""
    each = {"a": 64, "b": 16, "c": 1, "d": 1}
    table = {name: times * weights()[name].numel() for name, times in each.items()} | {"beside": 500}
    made = groups()
    scores = scores_by_layer(made, magnitude(weights()))
    curves = {layer: [(0, 0.0), (group.count - 1, float(group.count))] for layer, group in made.items()}
    lost = quotas(made, scores, sparsity, method=method, curves=curves, of="macs", macs=table)
    taken = macs(each) - macs(each, masks(made, kept(made, scores, lost)))
    assert taken == pytest.approx(gone(made, lost, of="macs", macs=table) * (macs(each) + 500))
    assert abs(taken - sparsity * (macs(each) + 500)) <= max(group.worth(each) for group in made.values())


def test_channels_go_that_are_worth_least_for_what_they_multiply():
    """Alike in every layer but for their price: those of the dearest layer go first."""
    alike = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    made = groups()
    scores = {layer: torch.ones(group.count) for layer, group in made.items()}
    table = {name: times * alike[name].numel() for name, times in {"a": 1, "b": 1, "c": 1000, "d": 1}.items()}
    for count in (1, 2, 3):
        lost = {"a": 0, "b": 0, "c": count}
        share = gone(made, lost, of="macs", macs=table)
        assert quotas(made, scores, share, method="global", of="macs", macs=table) == lost
        assert quotas(made, scores, gone(made, lost), method="global") != lost  # ties by index, of all layers


def test_the_fraction_that_goes_is_of_what_was_asked():
    made, lost = groups(), {"a": 2, "b": 3, "c": 0}
    assert gone(made, lost, of="groups") == pytest.approx(5 / 15)
    assert gone(made, lost) == 1 - nonzero(made, lost) / nonzero(made, dict.fromkeys(made, 0))
