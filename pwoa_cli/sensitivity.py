"""How much each layer's zeros move the model's answers: the measure behind allocation = "sensitivity".

    damage_l(s) = KL(softmax(t/T) || softmax(s_l/T)) T^2, t the teacher's logits, s_l those of the model whose layer l alone
                  has lost its weakest groups, a fraction s of them; mean over natural and noisy training images

No labels, no gradients, no test images. Layer by layer as in He et al. 2018 (AMC, sec. 3) and Li et al. 2017 (fig. 2), who
looked at accuracy; answers on noisy images say more about robustness than accuracy on natural ones.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pwoa_cli import distill
from pwoa_cli.allocation import Curve
from pwoa_cli.structure import keep_mask, strength

DENSITIES = (0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0)  # fractions of a layer's groups that are kept; 0: all but one


def curves(model: nn.Module, teacher: nn.Module, batches: Sequence[Tensor], *, weights: Mapping[str, nn.Parameter],
           structure: str, temperature: float,
           silence: Callable[[str, Tensor], Iterable[tuple[nn.Parameter, Tensor]]]) -> dict[str, Curve]:
    """damage_l at each of DENSITIES for every layer; the model comes back bit for bit, in eval mode.

    Args: batches: inputs (B, C, H, W), at least one. weights: layers (out, ...) by name. silence: what goes with a mask:
    (parameter, mask of its shape) of the weight itself and of its companions.
    """
    model.eval()
    with torch.no_grad():
        answers = [teacher(x) for x in batches]

        def damage() -> float:
            terms = [distill.kl(model(x), t, temperature=temperature) for x, t in zip(batches, answers, strict=True)]
            return temperature**2 * torch.stack(terms).mean().item()

        base, found = damage(), {}
        for name, weight in weights.items():
            groups = len(strength(weight, structure))
            lost = sorted({min(groups - 1, groups - int(d * groups)) for d in DENSITIES} - {0})
            masked = {n: silence(name, keep_mask(weight, n, structure)) for n in lost}
            found[name] = [(0, 0.0)] + [(n, _without(parameters, damage) - base) for n, parameters in masked.items()]
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

