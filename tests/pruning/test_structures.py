"""Structures that a pattern names: blocks of a matrix, so many of every few neighbours."""
import pytest
import torch

from pwoa_cli.pruning.allocation import quotas
from pwoa_cli.pruning.criteria import magnitude
from pwoa_cli.pruning.groups import kept, masks, scores_by_layer, structure_of


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masked(kind, weights, sparsity, method="uniform"):
    """{name: mask} at this sparsity of all weights together."""
    groups = structure_of(kind).groups(weights, {}, {}, {})
    scores = scores_by_layer(groups, magnitude(weights))
    return masks(groups, kept(groups, scores, quotas(groups, scores, sparsity, method=method)))


@pytest.mark.parametrize(("stay", "of"), [(1, 2), (2, 4), (1, 4), (3, 4), (2, 8)])
@pytest.mark.parametrize("shape", [(3, 8), (3, 16, 2, 3), (2, 8, 5)])
def test_the_largest_of_each_neighbours_along_the_inputs_stay(stay, of, shape):
    """At each tap by itself, against plain Python."""
    weight = drawn(*shape)
    found = masked(f"{stay}:{of}", {"w": weight}, 1 - stay / of)["w"]
    flat, seen = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None], found.view(*shape[:2], -1)
    for out in range(shape[0]):
        for tap in range(flat.shape[2]):
            for first in range(0, shape[1], of):
                inputs = range(first, first + of)
                largest = sorted(inputs, key=lambda i, o=out, t=tap: -flat[o, i, t].abs().item())[:stay]
                assert [i for i in inputs if seen[out, i, tap]] == sorted(largest)


def test_a_linear_layer_is_what_nvidia_s_kernels_take():
    """torch's own conversion, on the CPU: its compressed form holds all that is there."""
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )

    weight = drawn(32, 64).half()
    pruned = weight * masked("2:4", {"w": weight}, 0.5)["w"]
    assert torch.equal(
        sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(pruned)), pruned)


@pytest.mark.parametrize("lost", range(0, 49, 5))
def test_on_the_way_blocks_lose_as_many_to_one_and_exactly_as_many_together(lost):
    """The weakest first of those that are next in their blocks; ties by index."""
    weight = drawn(6, 8).round(decimals=1)
    (group,) = structure_of("2:4").groups({"w": weight}, {}, {}, {}).values()
    gone = ~group.keep(weight.square().flatten(), lost)
    blocks = [list(range(i, i + 4)) for i in range(0, 48, 4)]
    expected, order = set(), [sorted(block, key=lambda i: (weight.flatten()[i].square().item(), i))
                              for block in blocks]
    everywhere, more = divmod(lost, len(blocks))
    for block in order:
        expected |= set(block[:everywhere])
    following = sorted((block[everywhere] for block in order if everywhere < 4),
                       key=lambda i: (weight.flatten()[i].square().item(), i))
    expected |= set(following[:more])
    assert set(gone.nonzero().flatten().tolist()) == expected and len(expected) == lost


def test_every_layer_loses_the_same_whatever_the_allocation_is():
    weights = {"small": 0.01 * drawn(4, 4), "large": drawn(16, 8, 3, 3)}
    for method in ("uniform", "lamp", "global"):
        found = masked("2:4", weights, 0.5, method=method)
        assert all(mask.float().mean() == 0.5 for mask in found.values())


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 1), (2, 3), (8, 36)])
def test_blocks_are_those_of_torch_s_block_sparse_rows(rows, columns):
    weights = {"conv": drawn(8, 4, 3, 3), "fc": drawn(16, 72)}
    found = masked(f"block:{rows}x{columns}", weights, 0.5, method="lamp")
    for name, weight in weights.items():
        blocks = weight.flatten(1).to_sparse_bsr((rows, columns)).values()
        left = (weight * found[name]).flatten(1).to_sparse_bsr((rows, columns)).values()
        strongest = blocks.square().sum((1, 2)).sort(descending=True).values[:len(left)]
        assert left.square().sum((1, 2)).sort(descending=True).values.tolist() == pytest.approx(
            strongest.tolist(), rel=1e-5)
        assert (left != 0).all() and int(found[name].sum()) == len(left) * rows * columns
    size = rows * columns
    total, zeros = (sum(f(m) for m in found.values()) for f in (torch.numel, lambda m: int((~m).sum())))
    assert abs(zeros - total / 2) <= max(size, total / 2 - (total - len(weights) * size))


@pytest.mark.parametrize(("kind", "shape", "fits"), [
    ("2:4", (10, 8), True), ("2:4", (10, 6), False),
    ("2:4", (10, 4, 3, 3), True), ("2:4", (8, 1, 3, 3), False),
    ("block:4x1", (8, 3, 3, 3), True), ("block:4x1", (10, 8), False), ("block:2x9", (8, 3, 3, 3), True),
    ("block:2x5", (8, 3, 3, 3), False)])
def test_what_can_be_cut_into_them(kind, shape, fits):
    assert structure_of(kind).fits(shape) == fits


@pytest.mark.parametrize("kind", ["", "4:2", "2:2", "0:4", "2:4:8", "block", "block:0x4", "block:4", "n:m",
                                  "block:2x", "٢:4", "2:444", "filters"])
def test_no_other_names(kind):
    with pytest.raises(ValueError, match="expected unstructured, filter, column, channel, block:RxC or N:M"):
        structure_of(kind)
