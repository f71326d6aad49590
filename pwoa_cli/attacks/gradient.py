"""FGSM, PGD and CW: ascent on the loss inside the eps-ball, written here and tested on models with a known worst case.

FGSM: Goodfellow et al. 2015. PGD: Madry et al. 2018. CW: PGD on the margin loss of Carlini & Wagner 2017, as in PwoA.
x clean inputs (B,C,H,W) in [0,1], y labels (B,), adv iterates, alpha step, z logits (B,K), norm "linf" or "l2".
"""
import torch
from torch import Generator, Tensor, nn

from .base import distance, per_sample, project, wrong

STEP_FRACTION = 8  # alpha = eps / 8 unless a step size is given


def ce_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """m = log sum_{j != y} exp(z_j) - z_y, shape (B,): cross-entropy is softplus(m), so both climb in the same direction.

    The gradient of cross-entropy is sigmoid(m) times that of m, and a step uses its direction only. sigmoid(m)
    vanishes in float32 for confident or rescaled logits and then hides the direction; m does not.
    """
    return torch.logsumexp(_others(logits, labels), dim=1) - _own(logits, labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """CW's f = max_{j != y} z_j - z_y, shape (B,): positive exactly when misclassified."""
    return _others(logits, labels).max(dim=1).values - _own(logits, labels)


LOSSES = {"ce": ce_margin, "margin": margin}


def fgsm(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str,
         generator: Generator | None = None) -> Tensor:
    """Fast gradient sign method: adv = clip(x + eps * sign(grad CE)); for l2 the gradient over its norm.

    Goodfellow et al. 2015. Args: inputs: (B,C,H,W) in [0,1]; labels: (B,); eps > 0; generator: not used, no randomness.
    Returns: (B,C,H,W) in [0,1] and in the ball; a sample with zero gradient comes back unchanged.
    """
    grad, _ = _gradient(model, inputs, labels, loss="ce")
    return project(inputs + eps * _direction(grad, norm), inputs, eps=eps, norm=norm)


def pgd(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
        steps: int = 20, step_size: float | None = None, restarts: int = 1, loss: str = "ce",
        random_start: bool = True) -> Tensor:
    """Projected gradient ascent: adv <- project(adv + alpha * direction(grad loss)), Madry et al. 2018.

    Starts uniformly in the ball. A sample leaves the run at its first misclassified iterate, which is returned; a
    sample that never breaks comes back as its last iterate (of the last restart).
    Args: inputs: (B,C,H,W) in [0,1]; labels: (B,); eps > 0; step_size: unit of inputs, default eps / 8;
        loss: "ce" or "margin"; random_start: False starts at x, then restarts repeat the same run.
    Returns: (B,C,H,W) in [0,1] and in the ball. Raises: KeyError on another loss.
    """
    alpha = eps / STEP_FRACTION if step_size is None else step_size
    result, standing = inputs.clone(), torch.arange(len(inputs), device=inputs.device)
    for _ in range(restarts):
        if not len(standing):
            break
        x, y = inputs[standing], labels[standing]
        start = _random_start(x, eps=eps, norm=norm, generator=generator) if random_start else x
        result[standing], broken = _ascend(model, start, x, y, eps=eps, norm=norm, alpha=alpha, steps=steps, loss=loss)
        standing = standing[~broken]
    return result


def _ascend(model: nn.Module, start: Tensor, x: Tensor, y: Tensor, *, eps: float, norm: str, alpha: float, steps: int,
            loss: str) -> tuple[Tensor, Tensor]:
    """One run from `start`: the first misclassified or last iterate of each sample, and who is misclassified."""
    result, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    adv, rows = start, torch.arange(len(x), device=x.device)
    for step in range(steps + 1):  # the forward pass of step k judges iterate k; the last one needs no gradient
        grad, fooled = _gradient(model, adv, y, loss=loss) if step < steps else (adv, _fooled(model, adv, y))
        result[rows], broken[rows] = adv, fooled
        if fooled.any():
            rows, adv, x, y, grad = (t[~fooled] for t in (rows, adv, x, y, grad))
        if step == steps or not len(rows):
            break
        adv = project(adv + alpha * _direction(grad, norm), x, eps=eps, norm=norm)
    return result, broken


def _gradient(model: nn.Module, adv: Tensor, labels: Tensor, *, loss: str) -> tuple[Tensor, Tensor]:
    """Gradient of the loss with respect to the inputs alone (B,C,H,W), and who is misclassified (B,)."""
    adv = adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(adv)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half-precision logits tie too often
        total = LOSSES[loss](wide, labels).sum()
    return torch.autograd.grad(total, adv)[0], wrong(logits.detach(), labels)


@torch.no_grad()
def _fooled(model: nn.Module, adv: Tensor, labels: Tensor) -> Tensor:
    return wrong(model(adv), labels)


def _direction(grad: Tensor, norm: str) -> Tensor:
    """Steepest ascent in the norm: sign(grad), or grad / |grad|_2; zero where the gradient is zero or not finite."""
    grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
    if norm == "linf":
        return grad.sign()
    grad = grad / per_sample(distance(grad, "linf"), grad).clamp_min(1e-38)  # tiny gradients: squares would underflow
    return grad / per_sample(distance(grad, norm), grad).clamp_min(1e-12)  # zero gradient -> no step


def _random_start(x: Tensor, *, eps: float, norm: str, generator: Generator) -> Tensor:
    """Uniform in the eps-ball around x, clipped to [0,1]; l2: a Gaussian direction times eps * u^(1/d)."""
    device = generator.device  # a CPU generator gives the same start on every device
    if norm == "linf":
        delta = torch.rand(x.shape, generator=generator, device=device).mul_(2).sub_(1)
    else:
        delta = torch.randn(x.shape, generator=generator, device=device)
        radius = torch.rand(len(x), generator=generator, device=device) ** (1 / x[0].numel())
        delta *= per_sample(radius / distance(delta, norm), delta)
    return project(x + eps * delta.to(x.device), x, eps=eps, norm=norm)


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], float("-inf"))
