"""The smallest perturbation that changes the answer: FMN in linf, l2 and l1, and Carlini & Wagner's attack in
l2.

FMN: Pintor et al. 2021, Algorithm 1. CW-L2: Carlini & Wagner 2017, section VI-A, with f of margin 0.
x clean inputs (B,C,H,W) in [0,1], adv iterates, z logits (B,K), f = max_{j != y} z_j - z_y the margin
(positive when misclassified; targeted: z_t - max_{j != t} z_j), size |adv - x|_norm (B,). An eps does not
steer these attacks: they return the smallest success that they saw, whatever its norm, and x where there is
none. One run gives the accuracy at every eps.
"""
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from pwoa_cli.attacks.base import DUAL, distance, per_sample, project
from pwoa_cli.attacks.gradient import ascent, direction
from pwoa_cli.errors import InputError

# share of the largest logit by which a success must win: rounding in another batch must not undo it
CLEAR = 1e-5
# keeps tanh off -1 and 1: a pixel at 0 or 1 has 8% of the slope that a grey one has, instead of none
INSIDE = 0.02
TINY = 1e-30


@dataclass(frozen=True)
class _Best:
    """The smallest success so far: inputs (B,C,H,W) and norm (B,), which is infinite where nothing was
    found."""

    adv: Tensor
    size: Tensor

    def updated(self, adv: Tensor, size: Tensor, success: Tensor) -> "_Best":
        better = success & (size < self.size)
        return _Best(torch.where(per_sample(better, adv), adv, self.adv),
                     torch.where(better, size, self.size))


def fmn(model: nn.Module, inputs: Tensor, labels: Tensor, *, norm: str, eps: float | None = None,
        generator: Generator | None = None, steps: int = 100, step_size: float = 1.0, gamma: float = 0.05,
        as_published: bool = False, targets: Tensor | None = None) -> Tensor:
    """Fast minimum-norm attack: steps along grad f inside a ball that shrinks on success and grows otherwise.

    Until the first success the radius is (1 + gamma) (size + |f| / |grad f|_dual), just beyond the linearised
    boundary (the paper has no factor: on a linear model it then comes to the boundary and never crosses it);
    from then on it is multiplied by 1 - gamma or 1 + gamma. Step size and gamma fall along a cosine to 1/100
    of step_size and to 0.001.
    Args: inputs: (B,C,H,W) in [0,1]; labels: (B,); eps, generator: not used; step_size: l2 length in the unit
        of inputs; as_published: the paper's choices: no factor beyond the linearised boundary, the gradient
        also of pixels that the
            box holds back, and in linf a step along the gradient instead of its sign (20 digits on the
            bundled LeNet: 15 found with a median of 0.61, where the default finds all 20 with 0.34);
        targets: (B,) classes to reach instead.
    Returns: (B,C,H,W) in [0,1]: the smallest success, x where there is none.
    """
    classes, targeted = (labels, False) if targets is None else (targets, True)
    adv, best = inputs, _nothing(inputs)
    farthest = distance(torch.maximum(inputs, 1 - inputs), norm)
    radius = torch.full_like(best.size, math.inf)
    for step in range(steps):
        decay = (1 + math.cos(math.pi * step / steps)) / 2
        alpha, change = step_size * (0.01 + 0.99 * decay), 0.001 + (gamma - 0.001) * decay
        grad, f, logits = ascent(model, adv, classes, loss="margin", targeted=targeted)
        grad = grad if as_published else _inward(grad, adv)
        size, success = distance(adv - inputs, norm), _clear(f, logits, targeted=targeted)
        best = best.updated(adv, size, success)
        # zero gradient: as far as the box goes
        linear = size + f.abs() / distance(grad, DUAL[norm]).clamp_min(TINY)
        first = linear.nan_to_num(math.inf) * (1 if as_published else 1 + change)
        beyond = torch.where(best.size.isfinite(), radius * (1 + change), first)
        radius = torch.where(success, torch.minimum(radius * (1 - change), best.size),
                             beyond).minimum(farthest)
        way = direction(grad.sign() if norm == "linf" and not as_published else grad, "l2")
        adv = project(adv + alpha * way, inputs, eps=radius, norm=norm)
    return best.adv


def cw_l2(model: nn.Module, inputs: Tensor, labels: Tensor, *, norm: str = "l2", eps: float | None = None,
          generator: Generator | None = None, steps: int = 200, searches: int = 9, step_size: float = 0.05,
          targets: Tensor | None = None) -> Tensor:
    """Carlini & Wagner's l2 attack: minimise |adv - x|_2^2 + c max(-f, 0) over w, adv = x + image(w) -
    image(w_0).

    image(w) = (1 + tanh w) / 2. Written as a difference, adv starts at x exactly although w_0 is kept finite.
    Adam, whose step size falls linearly within a search; c is searched for by bisection, `searches` times,
    from twice the value that a linear model needs, 4 |f| / |grad f|^2, so that the scale of the logits does
    not matter.
    Args: inputs: (B,C,H,W) in [0,1]; labels: (B,); norm: "l2"; eps, generator: not used; step_size: unit of
        w; targets: (B,) classes to reach instead.
    Returns: (B,C,H,W) in [0,1]: the smallest success, x where there is none. Raises: InputError on another
    norm.
    """
    if norm != "l2":
        raise InputError(f"cw-l2 attacks in the norm l2, got {norm}.",
                         hint="Use --attacks fmn,cw or --norm l2")
    classes, targeted = (labels, False) if targets is None else (targets, True)
    grad, f, _ = ascent(model, inputs, classes, loss="margin", targeted=targeted)
    slope = distance(grad, "l2").clamp_min(TINY)
    c = (4 * f.abs() / slope / slope).nan_to_num(1.0).clamp(1e-10, 1e10)
    low, high, best = torch.zeros_like(c), torch.full_like(c, math.inf), _nothing(inputs)
    for _ in range(searches):
        run = _cw_run(model, inputs, classes, c, steps=steps, step_size=step_size, targeted=targeted)
        found = run.size.isfinite()
        best = best.updated(run.adv, run.size, found)
        low, high = torch.where(found, low, c), torch.where(found, c, high)
        c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
    return best.adv


def _cw_run(model: nn.Module, x: Tensor, classes: Tensor, c: Tensor, *, steps: int, step_size: float,
            targeted: bool) -> _Best:
    """Adam (beta 0.9, 0.999) on w for one c (B,); the chain rule through tanh by hand, so that the box cannot
    stop it."""
    w = torch.atanh((2 * x - 1) * (1 - 2 * INSIDE))
    first, mean, square, best = torch.tanh(w), torch.zeros_like(w), torch.zeros_like(w), _nothing(x)
    for step in range(1, steps + 1):
        tanh = torch.tanh(w)
        adv = (x + (tanh - first) / 2).clamp(0, 1)
        grad, f, logits = ascent(model, adv, classes, loss="margin", targeted=targeted)
        success = _clear(f, logits, targeted=targeted)
        best = best.updated(adv, distance(adv - x, "l2"), success)
        pull = 2 * (adv - x) - per_sample(torch.where(success, 0, c), x) * grad
        slope = pull * (1 - tanh**2) / 2
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        alpha = step_size * (1 - (step - 1) / steps)
        w = w - alpha * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return best


def _inward(grad: Tensor, adv: Tensor) -> Tensor:
    """The gradient without the pixels that it would push out of [0,1]: they have no share in what a step
    gains."""
    return torch.where(((grad > 0) & (adv >= 1)) | ((grad < 0) & (adv <= 0)), 0, grad)


def _nothing(inputs: Tensor) -> _Best:
    return _Best(inputs, torch.full((len(inputs),), math.inf, dtype=inputs.dtype, device=inputs.device))


def _clear(f: Tensor, logits: Tensor, *, targeted: bool) -> Tensor:
    """(B,) bool: f wins by more than rounding; for an untargeted attack also logits that are not finite."""
    finite = logits.isfinite().all(1)
    return torch.where(finite, f > CLEAR * logits.abs().amax(1), not targeted)
