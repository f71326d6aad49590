"""What the student learns from the teacher: answers, hidden layers, where it looks and how it reacts to
noise.

    alpha T^2 KL(softmax(t/T) || softmax(s/T))   answers (Hinton et al. 2015; Jian et al. 2022, eq. 5)
    |s - t|^2 / |t|^2                            logits before softmax (Ba & Caruana 2014)
    sum_j d(z_j, z_j^T)                          hidden layers, four distances (`hidden_error`)
    1 - cos(map, map^T)                          class activation maps (e2KD, Parchami-Araghi et al. 2024)

Legend: B images, C classes or channels, P positions; s, z student, t, z^T teacher. Everything is at least
float32.
"""
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pwoa_cli.losses.hsic import flatten

# of the layer's mean variance: a channel that is silent in the teacher must not outweigh all others
CHANNEL_FLOOR = 0.01


def kl(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float, reduction: str = "batchmean") -> Tensor:
    """KL(softmax(teacher/T) || softmax(student/T)) of logits (B, C); multiply by alpha T^2 for the loss.

    Args: reduction: "batchmean" (mean over the batch) or "mean" (over batch and classes, as the paper's code
        does, which is 1/C of the former).
    """
    log_student = F.log_softmax(student_BC.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_BC.float() / temperature, dim=1)
    total = F.kl_div(log_student, log_teacher, log_target=True, reduction="sum")
    return total / (student_BC.numel() if reduction == "mean" else len(student_BC))


class _RelativeError(torch.autograd.Function):
    """|z - t|^2 / |t|^2. Written out because hidden layers are large: mse_loss and its backward pass over
    them seven times."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor) -> Tensor:
        difference = z - t
        power = _square_norm(t).clamp_min(1e-12 * t.numel())  # a silent layer has no power
        ctx.save_for_backward(difference, power)
        return _square_norm(difference) / power

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        difference, power = ctx.saved_tensors
        return difference * (2 * grad / power), None


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _square_norm(t: Tensor) -> Tensor:
    """Sum of squares, in one pass and without a copy of a channels_last tensor."""
    flat = flatten(t).reshape(-1)
    return torch.dot(flat, flat)


# --- logits ---------------------------------------------------------------

def logit_error(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """sum |s - t|^2 / sum |t|^2 over a batch of logits (B, C), each image's mean over the classes taken off
    first.

    Ba & Caruana 2014 match logits before softmax; softmax does not see the mean, and relative to the
    teacher's variance the weight is the same for any model. Also for differences of logits between an image
    and its noisy copy: logit_error(s(x + n) - s(x), t(x + n) - t(x)) asks for the teacher's reaction to the
    noise (found here).
    """
    s, t = (_wide(logits) - _wide(logits).mean(1, keepdim=True) for logits in (student_BC, teacher_BC))
    return _RelativeError.apply(s, t.to(s.dtype))


# --- hidden layers ---------------------------------------------------------------

def _channel_error(z: Tensor, t: Tensor) -> Tensor:
    z, t = _by_channel(z), _by_channel(t)
    variance = (t - t.mean(0)).square().mean(0)  # t.var(0) takes ten times as long
    variance = variance.clamp_min(CHANNEL_FLOOR * variance.mean()).clamp_min(1e-12)  # a silent layer has none
    return ((z - t) * variance.rsqrt()).square().mean()


def _by_channel(z: Tensor) -> Tensor:
    """(N, C): every position of every image as a row; no copy of channels_last maps and of tokens."""
    return (z if z.ndim == 3 else z.movedim(1, -1)).flatten(0, -2)


def _attention_error(z: Tensor, t: Tensor) -> Tensor:
    return (_attention(z) - _attention(t)).square().sum(1).mean()


def _attention(z: Tensor) -> Tensor:
    """Mean square over the channels at each position, (B, P), of norm 1; units without positions stand for
    positions."""
    power = z.square()
    if z.ndim > 2:
        power = power.mean(2 if z.ndim == 3 else 1)
    return F.normalize(power.flatten(1), dim=1)


def _cka_error(z: Tensor, t: Tensor) -> Tensor:
    of_z, of_t = _centred_gram(z), _centred_gram(t)
    norms = [gram.square().sum().clamp_min(1e-24).sqrt() for gram in (of_z, of_t)]  # a silent layer has none
    return 1 - (of_z * of_t).sum() / (norms[0] * norms[1])


def _centred_gram(z: Tensor) -> Tensor:
    """(B, B) inner products of the images' features around their mean; the small matrix is centred, not the
    large one."""
    flat = flatten(z)
    gram = flat @ flat.T
    gram = gram - gram.mean(0)
    return gram - gram.mean(1, keepdim=True)


_HIDDEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relative": _RelativeError.apply, "channels": _channel_error, "attention": _attention_error,
    "cka": _cka_error}
HIDDEN_LOSSES = tuple(_HIDDEN)


def hidden_error(student: Sequence[Tensor], teacher: Sequence[Tensor], *, kind: str = "relative") -> Tensor:
    """sum_j d(z_j, t_j) over hidden layers (B, C, ...), tokens (B, P, C) or units (B, C): scalar >= 0, 0
    where they agree.

    Args: kind: d, each without unit, so that one weight serves all layers:
        "relative": |z - t|^2 / |t|^2 (FitNets, Romero et al. 2015);
        "channels": mean over channels c of mean (z_c - t_c)^2 / var t_c, over batch and positions: weak
        channels count
            as much as strong ones; the variance is at least CHANNEL_FLOOR of the layer's mean one;
        "attention": mean over the batch of |q(z) - q(t)|^2, q the squared channel mean at each position, of
        norm 1
            (Zagoruyko & Komodakis 2017);
        "cka": 1 - <K, L> / (|K| |L|), K and L centred linear kernels (B, B) (Kornblith et al. 2019): blind to
        rotations
            and scale of the features. "attention" and "cka" take layers of different widths too.
    Raises: KeyError for another kind.
    """
    wide = [_wide(z) for z in student]
    return torch.stack([_HIDDEN[kind](z, t.to(z.dtype)) for z, t in zip(wide, teacher, strict=True)]).sum()


# --- explanations ---------------------------------------------------------------

def positions(z: Tensor) -> int:
    """How many positions a hidden layer has: maps (B, C, ...), tokens (B, P, C); 1 for units (B, C)."""
    return z.shape[1] if z.ndim == 3 else math.prod(z.shape[2:])


def class_map(logits_BC: Tensor, features: Tensor, classes_B: Tensor, *, differentiable: bool) -> Tensor:
    """Class activation map (B, P) of one class per image: sum_c a_c z_c, a_c the mean over positions of d
    logit / d z_c.

    GradCAM (Selvaraju et al. 2017) without its ReLU, so that evidence against the class counts and no map is
    empty. With global pooling and a linear head a_c is the head's weight / P.
    Args: features: a hidden layer z on the way to the logits, (B, C, ...), tokens (B, P, C) or units (B, C);
        of a layer with one position the channels count as positions. logits_BC, classes_B: may be those of
        the first images only, whose maps are then the first. differentiable: keep the graph of the gradient,
        for the student.
    """
    chosen = logits_BC.gather(1, classes_B[:, None]).sum()
    gradient, = torch.autograd.grad(chosen, features, create_graph=differentiable, retain_graph=True)
    if positions(features) == 1:
        return (gradient * features).flatten(1)
    if features.ndim == 3:
        return (gradient.mean(1, keepdim=True) * features).sum(2)
    return (gradient.mean(tuple(range(2, features.ndim)), keepdim=True) * features).sum(1).flatten(1)


def map_error(student_BP: Tensor, teacher_BP: Tensor) -> Tensor:
    """1 - cos(student, teacher), the mean over a batch of maps (B, P): in 0..2."""
    return 1 - (F.normalize(_wide(student_BP), dim=1) * F.normalize(_wide(teacher_BP), dim=1)).sum(1).mean()
