"""Sparsity structures: which weights stand or fall together, and masks with an exact number of zeros.

    unstructured   every weight for itself
    filter         an output filter (conv) or neuron (linear): one row of the (out, rest) matrix
    column         one column of the (out, in * kh * kw) matrix: the same input tap in every filter

Jian et al. 2022, sec. IV-A. A group's strength is its L2 norm. Groups are chosen by count, not by threshold, ties by
index: `<= threshold` would remove every tie and one group too many.
"""
import torch
from torch import Tensor

STRUCTURES = ("unstructured", "filter", "column")


def strength(weight: Tensor, structure: str) -> Tensor:
    """Squared L2 norm (G,) of each group of a weight (out, ...); G = numel, out, or in * kh * kw.

    Raises: ValueError for a structure not in STRUCTURES.
    """
    if structure not in STRUCTURES:
        raise ValueError(f"structure {structure!r}, expected one of {STRUCTURES}")
    square = weight.detach().square()
    if structure == "unstructured":
        return square.flatten()
    return square.flatten(1).sum(1 if structure == "filter" else 0)


def smallest(scores: Tensor, count: int) -> Tensor:
    """Boolean (G,) with exactly `count` True at the smallest scores (G,), ties by lowest index."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if count <= 0:
        return chosen
    threshold = scores.kthvalue(min(count, len(scores))).values
    chosen = scores < threshold
    ties = (scores == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def keep_mask(weight: Tensor, zero_groups: int, structure: str) -> Tensor:
    """Boolean mask shaped like weight, False on its `zero_groups` weakest groups; each False is one zero weight."""
    return _spread(~smallest(strength(weight, structure), zero_groups), weight, structure)


def _spread(keep: Tensor, weight: Tensor, structure: str) -> Tensor:
    """A flag for each group (G,) as a mask shaped like the weight."""
    if structure == "unstructured":
        return keep.view(weight.shape)
    if structure == "filter":
        return keep.view(-1, *[1] * (weight.ndim - 1)).expand(weight.shape).clone()
    return keep.view(1, *weight.shape[1:]).expand(weight.shape).clone()


def regrown_mask(weight: Tensor, gradient: Tensor, zero_groups: int, structure: str, *, fraction: float) -> Tensor:
    """As `keep_mask`, but `fraction` (0..1) of the groups it keeps, its weakest, make room for those of the largest gradient
    among all others (RigL, Evci et al. 2020, sec. 3, step 3-4): boolean, with exactly `zero_groups` False groups.

    Args: gradient: of the loss with respect to the weight, zeros included; same shape. Ties by index.
    """
    magnitude, slope = strength(weight, structure), strength(gradient, structure)
    grown = min(int(fraction * (len(magnitude) - zero_groups)), zero_groups)
    kept = ~smallest(magnitude, zero_groups + grown)
    return _spread(~smallest(slope.masked_fill(kept, float("inf")), zero_groups), weight, structure)


def project(weight: Tensor, zero_groups: int, structure: str) -> Tensor:
    """Euclidean projection of a weight on the set of tensors with `zero_groups` zero groups (Jian et al. 2022, eq. 12)."""
    return weight.detach().masked_fill(~keep_mask(weight, zero_groups, structure), 0.0)
