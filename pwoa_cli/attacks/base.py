"""What every attack shares: the ball around an input, who is misclassified, and a model that an attack leaves
as it was.

x clean inputs (B,C,H,W) float in [0,1]; adv adversarial inputs of the same shape; y labels (B,) long in
0..K-1; logits (B,K); eps > 0 radius of the ball |adv - x|_norm <= eps with norm "linf", "l2" or "l1".
"""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NORMS = ("linf", "l2", "l1")
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}  # norm of gradients by that of perturbations
SLACK = 1e-6  # float32 rounding of one pixel of x + delta; far below one 255th


def distance(delta: Tensor, norm: str) -> Tensor:
    """Norm of every sample of delta (B,...): max |delta| for linf, sqrt(sum delta^2) for l2, sum |delta| for
    l1. Returns (B,)."""
    flat = delta.flatten(1)
    if norm == "l1":
        return flat.abs().sum(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape (B,) as (B,1,...,1), to broadcast over `like` (B,...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def project(adv: Tensor, inputs: Tensor, *, eps: float | Tensor, norm: str) -> Tensor:
    """Move adv into the eps-ball around inputs and into [0,1]; eps: one radius, or (B,), one for each sample.

    linf: clamp to [x - eps, x + eps]; l2: scale the perturbation by min(1, eps / |adv - x|_2); l1: lower
    every |delta_i| by the same theta, not below 0 (Duchi et al. 2008). The box comes last: clamping to a box
    that holds x never moves a pixel away from x, so the result stays in the ball.
    """
    if norm == "linf":
        radius = per_sample(eps, adv) if isinstance(eps, Tensor) else eps
        return torch.clamp(adv, inputs - radius, inputs + radius).clamp(0, 1)
    delta = adv - inputs
    if norm == "l1":
        size = delta.abs() - per_sample(_l1_threshold(delta, eps), delta)
        return (inputs + delta.sign() * size.clamp_min(0)).clamp(0, 1)
    factor = (eps / distance(delta, norm).clamp_min(1e-12)).clamp_max(1)  # zero perturbation stays zero
    return (inputs + delta * per_sample(factor, delta)).clamp(0, 1)


def _l1_threshold(delta: Tensor, eps: float | Tensor) -> Tensor:
    """theta = max(0, max_k (sum of the k largest |delta_i| - eps) / k), shape (B,): sum max(|delta_i| -
    theta, 0) <= eps."""
    largest_first = delta.flatten(1).abs().sort(dim=1, descending=True).values.double()
    count = torch.arange(1, largest_first.shape[1] + 1, device=delta.device)
    radius = eps[:, None] if isinstance(eps, Tensor) else eps
    return ((largest_first.cumsum(1) - radius) / count).amax(1).clamp_min(0).to(delta.dtype)


def slack(inputs: Tensor, *, eps: float, norm: str) -> float:
    """How far float32 rounding may carry an answer out of the ball, d the number of pixels.

    linf: SLACK. l2 and l1 add what d rounded pixels add up to: sqrt(d) 2^-24, and min(d 2^-22, eps / 1000),
    as the l1 projection of the reference exceeds its ball by d 2^-23 (1.1e-4 for 784 pixels, 5.1e-4 for 3072,
    1.8e-2 for 150528).
    """
    pixels = inputs[0].numel()
    rounding = {"linf": 0.0, "l2": pixels**0.5 * 2**-24, "l1": min(pixels * 2**-22, eps / 1000)}
    return SLACK * max(1.0, eps) + rounding[norm]


def outside(adv: Tensor, inputs: Tensor, *, eps: float, norm: str) -> Tensor:
    """(B,) bool: a pixel is not finite or more than SLACK out of [0,1], or |adv - x| exceeds eps by more than
    `slack`."""
    pixels = adv.flatten(1)
    boxed = ((pixels >= -SLACK) & (pixels <= 1 + SLACK)).all(1)  # False for NaN
    return ~(boxed & (distance(adv - inputs, norm) <= eps + slack(inputs, eps=eps, norm=norm)))


def contain(adv: Tensor, inputs: Tensor, *, eps: float, norm: str) -> Tensor:
    """What may count of an attack's answer: finite, in [0,1], in the eps-ball.

    Samples within `slack` of the ball stay bit for bit (the reference attacks round there); others are
    projected; a NaN or infinite pixel becomes the clean one.
    """
    adv = torch.where(adv.isfinite(), adv, inputs).to(inputs.dtype).clamp(0, 1)
    far = outside(adv, inputs, eps=eps, norm=norm)
    return torch.where(per_sample(far, adv), project(adv, inputs, eps=eps, norm=norm), adv)


def wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool: the largest logit is not the label's, or a logit is not finite (a NaN must never look
    robust)."""
    return (logits.argmax(1) != labels) | ~logits.isfinite().all(1)


def reached(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) bool: what a targeted attack wants: the largest logit is the target's, and all logits are
    finite."""
    return (logits.argmax(1) == targets) & logits.isfinite().all(1)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; every module's mode and requires_grad as before
    afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p in trainable:
            p.requires_grad_(True)
