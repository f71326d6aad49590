"""FGSM, PGD and CW: ascent on the loss inside the eps-ball, written here and tested on models with a known
worst case.

FGSM: Goodfellow et al. 2015. PGD: Madry et al. 2018. CW: PGD on the margin loss of Carlini & Wagner 2017, as
in PwoA. x clean inputs (B,C,H,W) in [0,1], y labels (B,), t targets (B,), adv iterates, alpha step, z logits
(B,K), norm "linf", "l2" or "l1". Untargeted attacks climb the loss of y; targeted ones descend the loss of t,
and succeed where t wins.
"""
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn

from pwoa_cli.attacks.base import distance, per_sample, project, reached, wrong

STEP_FRACTION = 8  # alpha = eps / 8 unless a step size is given


def ce_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """m = log sum_{j != y} exp(z_j) - z_y, shape (B,): cross-entropy is softplus(m), so both climb in the
    same direction.

    The gradient of cross-entropy is sigmoid(m) times that of m, and a step uses its direction only.
    sigmoid(m) vanishes in float32 for confident or rescaled logits and then hides the direction; m does not.
    """
    return torch.logsumexp(_others(logits, labels), dim=1) - _own(logits, labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """CW's f = max_{j != y} z_j - z_y, shape (B,): positive exactly when misclassified."""
    return _others(logits, labels).max(dim=1).values - _own(logits, labels)


LOSSES = {"ce": ce_margin, "margin": margin}


def fgsm(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str,
         generator: Generator | None = None, targets: Tensor | None = None) -> Tensor:
    """Fast gradient sign method: adv = clip(x + eps * sign(grad CE)); the steepest step of size eps in l2 and
    l1.

    Goodfellow et al. 2015. Args: inputs: (B,C,H,W) in [0,1]; labels: (B,); eps > 0; generator: not used, no
    randomness;
        targets: (B,) classes to reach, against the gradient of their loss; labels do not matter then.
    Returns: (B,C,H,W) in [0,1] and in the ball; a sample with zero gradient comes back unchanged.
    """
    grad, _, _ = ascent(model, inputs, labels if targets is None else targets, loss="ce",
                        targeted=targets is not None)
    return project(stepped(inputs, grad, size=eps, norm=norm), inputs, eps=eps, norm=norm)


def pgd(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
        steps: int = 20, step_size: float | None = None, restarts: int = 1, loss: str = "ce",
        random_start: bool = True, targets: Tensor | None = None, every_step: bool = False) -> Tensor:
    """Projected gradient ascent: adv <- project(adv + alpha * direction(grad loss)), Madry et al. 2018.

    Starts uniformly in the ball. A sample leaves the run at its first misclassified iterate, which is
    returned; a sample that never breaks comes back as its last iterate (of the last restart), found sooner
    where its iterates repeat, as those of a model that is no random one may.
    Args: inputs: (B,C,H,W) in [0,1]; labels: (B,); eps > 0; step_size: unit of inputs, default eps / 8;
        loss: "ce" or "margin"; random_start: False starts at x, then restarts repeat the same run; targets:
        (B,) classes to reach instead: a sample leaves at its first iterate that is given its target;
        every_step: no sample leaves, all go on climbing to their last iterate, as adversarial training wants
        them.
    Returns: (B,C,H,W) in [0,1] and in the ball. Raises: KeyError on another loss.
    """
    alpha = eps / STEP_FRACTION if step_size is None else step_size
    classes = labels if targets is None else targets
    run = partial(_ascend, model, eps=eps, norm=norm, alpha=alpha, steps=steps, loss=loss,
                  targeted=targets is not None, every_step=every_step)
    result, standing = inputs.clone(), torch.arange(len(inputs), device=inputs.device)
    for _ in range(restarts):
        if not len(standing):
            break
        x, y = inputs[standing], classes[standing]
        start = uniform_start(x, eps=eps, norm=norm, generator=generator) if random_start else x
        result[standing], broken = run(start, x, y)
        standing = standing[~broken]
    return result


def ascent(model: nn.Module, adv: Tensor, classes: Tensor, *, loss: str,
           targeted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """What an attack climbs: the loss of the labels, or minus the loss of the targets. Returns: as
    `slope`."""
    def value(logits: Tensor) -> Tensor:
        return -LOSSES[loss](logits, classes) if targeted else LOSSES[loss](logits, classes)

    return slope(model, adv, value)


def slope(model: nn.Module, adv: Tensor, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The steepest way up of a function of the logits (B,K) that gives (B,).

    Returns: its gradient with respect to the inputs alone (B,C,H,W), not finite entries as 0; its value (B,);
    logits (B,K).
    """
    adv = adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(adv)
        # half-precision logits tie too often
        height = value(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    grad, = torch.autograd.grad(height.sum(), adv)
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0), height.detach(), logits.detach()


def direction(grad: Tensor, norm: str) -> Tensor:
    """Steepest ascent in linf or l2: sign(grad), or grad / |grad|_2; zero where the gradient is zero."""
    if norm == "linf":
        return grad.sign()
    # tiny gradients: squares would underflow
    grad = grad / per_sample(distance(grad, "linf"), grad).clamp_min(1e-38)
    return grad / per_sample(distance(grad, norm), grad).clamp_min(1e-12)  # zero gradient -> no step


def _ascend(model: nn.Module, start: Tensor, x: Tensor, y: Tensor, *, eps: float, norm: str, alpha: float,
            steps: int,
            loss: str, targeted: bool, every_step: bool) -> tuple[Tensor, Tensor]:
    """One run from `start`: the first iterate of each sample that succeeds, or the last one, and who
    succeeded.

    A step is a map of the iterate alone, so one that comes again brings all that followed it again, and none
    of that succeeded: such a sample leaves on the point of its cycle that it would end on. Sign steps do end
    in cycles (docs/benchmarks.md). One earlier iterate is kept to compare with, in the manner of Brent 1980.
    """
    result, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    adv, rows, judge = start, torch.arange(len(x), device=x.device), reached if targeted else wrong
    kept, kept_at, ends = adv, 0, torch.full_like(rows, steps)  # ends: the step at which a sample leaves
    # the forward pass of step k judges iterate k; the last one needs no gradient
    for step in range(steps + 1):
        if step < steps:
            grad, _, logits = ascent(model, adv, y, loss=loss, targeted=targeted)
        else:
            grad, logits = adv, _logits(model, adv)
        fooled = judge(logits, y)
        result[rows], broken[rows] = adv, fooled
        if step > kept_at:
            again = (adv == kept).flatten(1).all(1)
            ends = torch.where(again, step + (steps - step) % (step - kept_at), ends)
        if step >= kept_at * 5 // 4 + 16:  # a longer and longer way, for longer and longer cycles
            kept, kept_at = adv, step
        over = fooled | (step >= ends)
        if over.any() and not every_step:
            rows, adv, x, y, grad, kept, ends = (t[~over] for t in (rows, adv, x, y, grad, kept, ends))
        if step == steps or not len(rows):
            break
        adv = project(stepped(adv, grad, size=alpha, norm=norm), x, eps=eps, norm=norm)
    return result, broken


@torch.no_grad()
def _logits(model: nn.Module, adv: Tensor) -> Tensor:
    return model(adv)


def stepped(adv: Tensor, grad: Tensor, *, size: float, norm: str) -> Tensor:
    """adv moved by `size` along the steepest ascent; in l1 that depends on how far each pixel may still
    move."""
    return adv + (_l1_step(adv, grad, size) if norm == "l1" else size * direction(grad, norm))


def _l1_step(adv: Tensor, grad: Tensor, size: float) -> Tensor:
    """The step of largest <grad, step> with |step|_1 <= size and adv + step in [0,1].

    Pixels go to their limit in the order of |grad| until `size` is spent: the greedy answer to this linear
    programme.
    """
    flat, pixels = grad.flatten(1), adv.flatten(1)
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    room = torch.where(flat > 0, 1 - pixels, pixels).masked_fill(flat == 0, 0).gather(1, order)
    spent_before = room.cumsum(1) - room
    taken = torch.minimum(room, (size - spent_before).clamp_min(0))
    return (flat.sign() * torch.zeros_like(room).scatter(1, order, taken)).view_as(adv)


def uniform_start(x: Tensor, *, eps: float, norm: str, generator: Generator) -> Tensor:
    """Uniform in the eps-ball around x, clipped to [0,1]; l2 and l1: a Gaussian or Laplace direction times
    eps * u^(1/d)."""
    device = generator.device  # a CPU generator gives the same start on every device
    if norm == "linf":
        delta = torch.rand(x.shape, generator=generator, device=device).mul_(2).sub_(1)
    else:
        delta = torch.randn(x.shape, generator=generator, device=device)
        if norm == "l1":  # |N(0,1)| only lends its sign: -log(1 - u) is exponential, so delta is Laplace
            delta = delta.sign() * -torch.log1p(-torch.rand(x.shape, generator=generator, device=device))
        radius = torch.rand(len(x), generator=generator, device=device) ** (1 / x[0].numel())
        delta *= per_sample(radius / distance(delta, norm), delta)
    return project(x + eps * delta.to(x.device), x, eps=eps, norm=norm)


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], float("-inf"))
