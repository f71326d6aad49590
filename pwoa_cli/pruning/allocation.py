"""How many groups each layer loses so that the whole network reaches one sparsity.

    uniform       the same fraction in every layer (the paper)
    erk           density proportional to (sum of dimensions) / (product of dimensions) (Evci et al. 2020)
    lamp          lowest score / sum of all scores not lower in its layer, over all (Lee et al. 2021, eq. 4)
    global        lowest score over all layers
    sensitivity   least summed damage by curves measured layer by layer (curves.py)

Unstructured quotas add up to exactly round(sparsity * total); whole filters or columns come as near as they
can. Where groups overlap, rows of one and columns of another, what all of them leave is counted, each weight
once. Of multiplications those groups go first that are worth least for each that goes with them: early layers
make most of them. No layer is emptied and none is starved: every layer keeps the groups of `least_kept`.
Where blocks of neighbours lose as many (n:m), every layer loses the same fraction, whatever the method is.
"""
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from pwoa_cli.pruning.curves import Curve, marginal
from pwoa_cli.pruning.groups import Groups, by_block, nonzero, overlap, single, smallest

Layers = Mapping[str, Groups]
Scores = Mapping[str, Tensor]  # (G,) by layer, what each group is worth
Curves = Mapping[str, Curve] | None
NO_MACS: Mapping[str, int] = MappingProxyType({})
Method = Callable[[Layers, Scores, int, Curves], dict[str, int]]

# What a layer keeps at the least. Global magnitude left 1 of 768 weights in the first layer of a plain CNN,
# and of its accuracy nothing; in a ResNet-20 that prunes well (90%) the least layer has 0.12 of the density.
SHARE = 0.05  # of what the network's density leaves it
PER_ROW = 1  # single weights for each output, where the network's density leaves it as many


def quotas(groups: Layers, scores: Scores, sparsity: float, *, method: str, curves: Curves = None,
           of: str = "weights", macs: Mapping[str, int] = NO_MACS) -> dict[str, int]:
    """Groups to zero by layer, for a fraction `sparsity` in 0..1 of all weights, groups or multiplications.

    Args: scores: (G,) by layer. method: one of ALLOCATIONS. curves: of every layer, for "sensitivity". of:
    "weights", "groups" or "macs". macs: {parameter: multiplications with all its entries}, of the whole
    network, for "macs".
    Returns: {layer: groups}, 0 <= groups <= groups of the layer - those of `least_kept`.
    Raises: ValueError for an unknown method, or if keeping a group in every layer forbids the sparsity.
    """
    target = round(sparsity * sum(group.weights for group in groups.values()))
    most = sum((group.count - 1) * group.size for group in groups.values())
    if single(groups) and target > most:
        raise ValueError(f"sparsity {sparsity:g} asks for {target} zeros, but a weight must stay in each of "
                         f"{len(groups)} layers: at most {most}")
    if method not in ALLOCATIONS:
        raise ValueError(f"allocation {method!r}, expected one of {', '.join(ALLOCATIONS)}")
    if by_block(groups):
        return {layer: round(sparsity * group.count) for layer, group in groups.items()}
    # MPS has no float64: quotas are made where they can be
    here = {layer: s.cpu() if s.device.type == "mps" else s for layer, s in scores.items()}
    if of == "groups":
        priced = {layer: replace(group, price=1) for layer, group in groups.items()}
        return ALLOCATIONS[method](priced, here, round(sparsity * sum(g.count for g in groups.values())),
                                   curves)
    if of == "macs":
        each = per_entry(groups, macs)
        priced = {layer: replace(group, price=group.worth(each)) for layer, group in groups.items()}
        return _searched(priced, here, sparsity * sum(macs.values()), ALLOCATIONS[method], curves, each)
    if overlap(groups):
        total = nonzero(groups, dict.fromkeys(groups, 0))
        return _searched(groups, here, sparsity * total, ALLOCATIONS[method], curves)
    return ALLOCATIONS[method](groups, here, target, curves)


def gone(groups: Layers, lost: Mapping[str, int], *, of: str = "weights",
         macs: Mapping[str, int] = NO_MACS) -> float:
    """The fraction that goes with so many groups of each layer. Args: of, macs: as of `quotas`; of weights
    those in the tensors of the groups."""
    none = dict.fromkeys(groups, 0)
    if of == "groups":
        return sum(lost.values()) / sum(group.count for group in groups.values())
    if of == "macs":
        each, total = per_entry(groups, macs), sum(macs.values())
        return (nonzero(groups, none, each) - nonzero(groups, lost, each)) / total
    return 1 - nonzero(groups, lost) / nonzero(groups, none)


def per_entry(groups: Layers, macs: Mapping[str, int]) -> dict[str, int]:
    """Multiplications with each entry of the groups' weights by name. Args: macs: as of `quotas`."""
    return {name: macs.get(name, 0) // math.prod(part.shape)
            for group in groups.values() for name, part in group.parts.items()}


def _searched(groups: Layers, scores: Scores, target: float, method: Method, curves: Curves,
              each: Mapping[str, int] | None = None) -> dict[str, int]:
    """Quotas of groups that overlap: by bisection over what they would cost if they did not. Args: target:
    what is to go, of what `each` entry counts for."""
    total = nonzero(groups, dict.fromkeys(groups, 0), each)
    wanted, low, high = total - target, 0, sum(group.weights for group in groups.values())
    best, error = dict.fromkeys(groups, 0), abs(target)
    while high - low > 1:
        middle = (low + high) // 2
        lost = method(groups, scores, middle, curves)
        left = nonzero(groups, lost, each)
        if abs(left - wanted) < error:
            best, error = lost, abs(left - wanted)
        low, high = (middle, high) if left > wanted else (low, middle)
    return best


def least_kept(groups: Layers, target: int) -> dict[str, int]:
    """Groups that each layer keeps whatever the scores say, where `target` of all weights go.

    With u = density * groups of the layer, what `uniform` leaves it: at least SHARE * u, at least
    min(u, PER_ROW * rows) single weights, and at least one group. Where every u is 1 or more, these sum to at
    most what the network keeps; of single weights in layers so small that they would sum to more, each keeps
    one, and of what is more than one the share that is there.
    """
    total = sum(group.weights for group in groups.values())
    found = {}
    for layer, group in groups.items():
        alike = (total - target) * group.count // total
        rows = next(iter(group.parts.values())).shape[0] if group.size == 1 and not group.price else 0
        found[layer] = max(1, int(SHARE * alike), min(alike, PER_ROW * rows))
    kept, wanted = total - target - len(groups), sum(found.values()) - len(groups)
    if single(groups) and 0 <= kept < wanted:
        found = {layer: 1 + (count - 1) * kept // wanted for layer, count in found.items()}
    return found


def uniform(groups: Layers, _scores: Scores, target: int, _curves: Curves) -> dict[str, int]:
    """The same density everywhere."""
    return _by_density(dict.fromkeys(groups, 1.0), groups, target)


def erk(groups: Layers, _scores: Scores, target: int, _curves: Curves) -> dict[str, int]:
    """Density in proportion to (sum of dimensions) / (product of dimensions)."""
    shapes = {layer: next(iter(group.parts.values())).shape for layer, group in groups.items()}
    return _by_density({layer: sum(shape) / math.prod(shape) for layer, shape in shapes.items()}, groups,
                       target)


def lamp(groups: Layers, scores: Scores, target: int, _curves: Curves) -> dict[str, int]:
    """The lowest of each score over the sum of those not lower in its layer."""
    return _cheapest(groups, {layer: _lamp(s) for layer, s in scores.items()}, target)


def by_score(groups: Layers, scores: Scores, target: int, _curves: Curves) -> dict[str, int]:
    """The lowest scores over all layers."""
    return _cheapest(groups, {layer: s.sort().values[:-1] for layer, s in scores.items()}, target)


def sensitivity(groups: Layers, _scores: Scores, target: int, curves: Curves) -> dict[str, int]:
    """The least summed damage by the curves, which are needed. Raises: ValueError without them."""
    if curves is None:
        raise ValueError("allocation 'sensitivity' needs the curve of every layer")
    return _cheapest(groups, {layer: marginal(curves[layer]) / (1 if group.price else group.size)
                              for layer, group in groups.items()}, target)


ALLOCATIONS: dict[str, Method] = {
    "uniform": uniform, "erk": erk, "lamp": lamp, "global": by_score, "sensitivity": sensitivity}


def _cheapest(groups: Layers, scores: Mapping[str, Tensor], target: int) -> dict[str, int]:
    """Groups under one threshold over all layers. scores: (G - 1,) ascending, of which the strongest, those
    that a layer keeps at the least, are not for sale."""
    least = least_kept(groups, target)
    scores = {layer: s[: groups[layer].count - least[layer]] / (groups[layer].price or 1)
              for layer, s in scores.items()}
    everything = torch.cat(list(scores.values()))
    if {group.size for group in groups.values()} == {1}:
        chosen = smallest(everything, target)
    else:  # groups differ in size: the cheapest ones first, to the nearest group
        cost = [size for layer, s in scores.items() for size in [groups[layer].size] * len(s)]
        flags = [False] * len(cost)
        for i in torch.argsort(everything, stable=True).tolist():
            if cost[i] <= 2 * target:
                flags[i] = True
                target -= cost[i]
        chosen = torch.tensor(flags)
    counts = torch.stack([part.sum() for part in chosen.split([len(s) for s in scores.values()])])
    return dict(zip(scores, counts.tolist(), strict=True))


def _lamp(strength: Tensor) -> Tensor:
    """Scores in 0..1 of all groups but the strongest, ascending (Lee et al. 2021, eq. 4): each over the sum
    of those not weaker."""
    values = strength.sort().values
    not_weaker = values.flip(0).cumsum(0, dtype=torch.double).flip(0).clamp_min(1e-300)
    # rounding must not make a stronger group cheaper than a weaker one: quota and magnitude go together
    return torch.cummax(values / not_weaker, 0).values[:-1]


def _by_density(shape: Mapping[str, float], layers: Layers, target: int) -> dict[str, int]:
    """Kept fraction of each layer = min(1, factor * shape), factor by bisection; rounding by largest
    remainder."""
    groups, size = ({n: g.count for n, g in layers.items()}, {n: g.size for n, g in layers.items()})
    total_kept = sum(groups[n] * size[n] for n in groups) - target
    low, high = 0.0, 1 / min(shape.values())
    for _ in range(200):
        factor = (low + high) / 2
        kept = sum(min(1.0, factor * shape[n]) * groups[n] * size[n] for n in groups)
        low, high = (factor, high) if kept < total_kept else (low, factor)
    wanted = {n: (1 - min(1.0, high * shape[n])) * groups[n] for n in groups}
    most = {n: groups[n] - least for n, least in least_kept(layers, target).items()}
    quota = {n: min(most[n], int(wanted[n] + 1e-9)) for n in groups}
    missing = target - sum(quota[n] * size[n] for n in groups)
    by_remainder = sorted(groups, key=lambda n: quota[n] - wanted[n])
    while True:
        room = [n for n in by_remainder if quota[n] < most[n]]
        if not any(size[n] <= 2 * missing for n in room):
            return quota
        for name in room:
            if size[name] <= 2 * missing:  # one group more comes nearer to the target
                quota[name] += 1
                missing -= size[name]
