"""How much each layer's zeros move the model's answers: the measure behind allocation = "sensitivity".

    damage_l(s) = KL(softmax(t/T) || softmax(s_l/T)) T^2

t: the teacher's logits; s_l: those of the model whose layer l alone has lost its weakest groups, a fraction s
of them; the mean over natural and noisy training images.

No labels, no gradients, no test images. Layer by layer as in He et al. 2018 (AMC, sec. 3) and Li et al. 2017
(fig. 2), who looked at accuracy; answers on noisy images say more about robustness than accuracy on natural
ones.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pwoa_cli.losses import distill
from pwoa_cli.pruning.groups import Groups, companion_masks, masks

# fractions of a layer's groups that are kept; 0: all but one
DENSITIES = (0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0)
Curve = list[tuple[int, float]]  # (groups lost, damage), ascending, from (0, 0.0) to all groups but one


def marginal(curve: Curve) -> Tensor:
    """Damage of each further group (groups - 1,) float64, ascending: slopes of the curve's lower convex hull.

    With them the cheapest groups of all layers together give the least summed damage (a separable convex
    programme); a layer that a first loss would spoil but a larger one hardly more is cheap or dear as a
    whole.
    """
    hull: Curve = []
    for point in curve:
        while len(hull) > 1 and _slope(hull[-1], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    pieces = [torch.full((b[0] - a[0],), _slope(a, b), dtype=torch.double)
              for a, b in zip(hull, hull[1:], strict=False)]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.double)


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def measured(model: nn.Module, teacher: nn.Module, batches: Sequence[Tensor], *, groups: Mapping[str, Groups],
             scores: Mapping[str, Tensor], temperature: float) -> dict[str, Curve]:
    """damage_l at each of DENSITIES for every layer; the model comes back bit for bit, in eval mode.

    Args: batches: inputs (B, C, H, W), at least one. scores: (G,) by layer.
    """
    model.eval()
    whole = {layer: torch.ones_like(s, dtype=torch.bool) for layer, s in scores.items()}
    with torch.no_grad():
        answers = [teacher(x) for x in batches]

        def damage() -> float:
            terms = [distill.kl(model(x), t, temperature=temperature)
                     for x, t in zip(batches, answers, strict=True)]
            return temperature**2 * torch.stack(terms).mean().item()

        base, found = damage(), {}
        for layer, group in groups.items():
            found[layer] = [(0, 0.0)]
            for lost in sorted({min(group.count - 1, group.count - int(d * group.count))
                                for d in DENSITIES} - {0}):
                flags = {layer: group.keep(scores[layer], lost)}
                silent = companion_masks(groups, whole | flags)  # one that other layers feed too still speaks
                gone = masks(groups, flags) | {name: silent[name] for name in group.companions}
                parameters = [(model.get_parameter(name), mask) for name, mask in gone.items()]
                found[layer].append((lost, _without(parameters, damage) - base))
    return found


def _without(masked: Iterable[tuple[nn.Parameter, Tensor]], damage: Callable[[], float]) -> float:
    """The damage while the masks hold."""
    saved = [(p, p.detach().clone(), keep) for p, keep in masked]
    for p, _, keep in saved:
        p.masked_fill_(~keep, 0.0)
    try:
        return damage()
    finally:
        for p, before, _ in saved:
            p.copy_(before)
