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
    keep = ~smallest(strength(weight, structure), zero_groups)
    if structure == "unstructured":
        return keep.view(weight.shape)
    if structure == "filter":
        return keep.view(-1, *[1] * (weight.ndim - 1)).expand(weight.shape).clone()
    return keep.view(1, *weight.shape[1:]).expand(weight.shape).clone()


def project(weight: Tensor, zero_groups: int, structure: str) -> Tensor:
    """Euclidean projection of a weight on the set of tensors with `zero_groups` zero groups (Jian et al. 2022, eq. 12)."""
    return weight.detach().masked_fill(~keep_mask(weight, zero_groups, structure), 0.0)
