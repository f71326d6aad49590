"""How many groups each layer loses so that the whole network reaches one sparsity.

    uniform       the same fraction in every layer (the paper)
    erk           density proportional to (sum of dimensions) / (product of dimensions) (Evci et al. 2020, sec. 3)
    lamp          smallest w_i^2 / sum of all w_j^2 not smaller in its layer, over all layers (Lee et al. 2021, eq. 4)
    global        smallest magnitude over all layers
    sensitivity   least summed damage by curves measured layer by layer (sensitivity.py)

Unstructured quotas add up to exactly round(sparsity * total); whole filters or columns come as near as they can.
No layer is emptied: every layer keeps a group.
"""
from collections.abc import Mapping

import torch
from torch import Tensor

from pwoa_cli import structure as structures

ALLOCATIONS = ("uniform", "erk", "lamp", "global")  # from the weights alone

Curve = list[tuple[int, float]]  # (groups lost, damage), ascending, from (0, 0.0) to all groups but one


def quotas(weights: Mapping[str, Tensor], sparsity: float, *, method: str, structure: str = "unstructured",
           curves: Mapping[str, Curve] | None = None) -> dict[str, int]:
    """Groups to zero by layer, for a fraction `sparsity` in 0..1 of all weights.

    Args: weights: layer weights (out, ...) by name. method: one of ALLOCATIONS, or "sensitivity", with the
        curve of every layer.
    Returns: {name: groups}, 0 <= groups <= groups of the layer - 1.
    Raises: ValueError for an unknown method, or if keeping a group in every layer forbids the sparsity.
    """
    # MPS has no float64: scores are made where they can be
    strength = {name: structures.strength(w.cpu() if w.device.type == "mps" else w, structure) for name, w in weights.items()}
    size = {name: w.numel() // len(strength[name]) for name, w in weights.items()}  # weights in a group
    target = round(sparsity * sum(w.numel() for w in weights.values()))
    most = sum((len(s) - 1) * size[name] for name, s in strength.items())
    if structure == "unstructured" and target > most:
        raise ValueError(f"sparsity {sparsity:g} asks for {target} zeros, but a weight must stay in each of {len(weights)} layers: "
                         f"at most {most}")
    if method == "sensitivity" and curves is not None:
        return _cheapest({name: marginal(curves[name]) / size[name] for name in weights}, size, target)
    if method in ("lamp", "global"):
        score = _lamp if method == "lamp" else _magnitude
        return _cheapest({name: score(s) for name, s in strength.items()}, size, target)
    if method not in ALLOCATIONS:
        raise ValueError(f"allocation {method!r}, expected one of {ALLOCATIONS}")
    density = {name: 1.0 for name in weights} if method == "uniform" else _erk_shape(weights)
    return _by_density(density, {name: len(s) for name, s in strength.items()}, size, target)


def _cheapest(scores: dict[str, Tensor], size: dict[str, int], target: int) -> dict[str, int]:
    """Groups under one threshold over all layers. scores: by layer, (groups - 1,) ascending: its strongest is not for sale."""
    everything = torch.cat(list(scores.values()))
    if set(size.values()) == {1}:
        chosen = structures.smallest(everything, target)
    else:  # groups differ in size: the cheapest ones first, to the nearest group
        cost = [size[name] for name, s in scores.items() for _ in range(len(s))]
        chosen = torch.zeros_like(everything, dtype=torch.bool)
        for i in torch.argsort(everything, stable=True).tolist():
            if cost[i] <= 2 * target:
                chosen[i] = True
                target -= cost[i]
    counts = [int(part.sum()) for part in chosen.split([len(s) for s in scores.values()])]
    return dict(zip(scores, counts, strict=True))


def _magnitude(strength: Tensor) -> Tensor:
    return strength.sort().values[:-1]


def _lamp(strength: Tensor) -> Tensor:
    """Scores in 0..1 of all groups but the strongest, ascending (Lee et al. 2021, eq. 4): each over the sum of those not weaker."""
    values = strength.sort().values
    not_weaker = values.flip(0).cumsum(0, dtype=torch.double).flip(0).clamp_min(1e-300)
    # rounding must not make a stronger group cheaper than a weaker one: quota and magnitude go together
    return torch.cummax(values / not_weaker, 0).values[:-1]


def _erk_shape(weights: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: sum(w.shape) / w.numel() for name, w in weights.items()}


def _by_density(shape: dict[str, float], groups: dict[str, int], size: dict[str, int], target: int) -> dict[str, int]:
    """Kept fraction of each layer = min(1, factor * shape), factor by bisection; rounding by largest remainder."""
    total_kept = sum(groups[n] * size[n] for n in groups) - target
    low, high = 0.0, 1 / min(shape.values())
    for _ in range(200):
        factor = (low + high) / 2
        kept = sum(min(1.0, factor * shape[n]) * groups[n] * size[n] for n in groups)
        low, high = (factor, high) if kept < total_kept else (low, factor)
    wanted = {n: (1 - min(1.0, high * shape[n])) * groups[n] for n in groups}
    quota = {n: min(groups[n] - 1, int(wanted[n] + 1e-9)) for n in groups}
    missing = target - sum(quota[n] * size[n] for n in groups)
    by_remainder = sorted(groups, key=lambda n: quota[n] - wanted[n])
    while True:
        room = [n for n in by_remainder if quota[n] < groups[n] - 1]
        if not any(size[n] <= 2 * missing for n in room):
            return quota
        for name in room:
            if size[name] <= 2 * missing:  # one group more comes nearer to the target
                quota[name] += 1
                missing -= size[name]


def marginal(curve: Curve) -> Tensor:
    """Damage of each further group (groups - 1,) float64, ascending: slopes of the curve's lower convex hull.

    With them the cheapest groups of all layers together give the least summed damage (a separable convex programme); a
    layer that a first loss would spoil but a larger one hardly more is cheap or dear as a whole.
    """
    hull: Curve = []
    for point in curve:
        while len(hull) > 1 and _slope(hull[-1], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    pieces = [torch.full((b[0] - a[0],), _slope(a, b), dtype=torch.double) for a, b in zip(hull, hull[1:], strict=False)]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.double)


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
