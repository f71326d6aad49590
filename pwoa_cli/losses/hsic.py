"""Normalised HSIC of a batch: nHSIC(a, b) = tr(R_a R_b), R = K~ (K~ + eps m I)^-1, K~ = H K H, H = I - 11'/m.

Fukumizu et al. 2007 (eq. 4, the normalised cross-covariance operator); Jian et al. 2022, eq. 2-4. Gaussian
kernel exp(-|a_i - a_j|^2 / (2 sigma^2 d)) on inputs and hidden layers, linear kernel on one-hot or soft
labels, eps = 1e-5.

Since R = I - c (K~ + c I)^-1 with c = eps m, one Cholesky factor per kernel gives R and, as dR = c A^-1 dK~
A^-1, its gradient too. The authors write K H for K~ and invert it explicitly: the same trace, in exact
arithmetic.
Legend: m or B batch size, d feature dimension, M hidden layers.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-5


class _GaussianKernel(torch.autograd.Function):
    """exp(-|z_i - z_j|^2 / (2 sigma^2 d)); one (B, B) x (B, d) product in each direction instead of
    autograd's three."""

    @staticmethod
    def forward(ctx: Any, z_BD: Tensor, sigma: float) -> Tensor:
        z_BD = z_BD - z_BD.mean(0)  # distances do not change, and float32 cancels less in |a|^2 + |b|^2 - 2ab
        gram = z_BD @ z_BD.T
        square = gram.diagonal()
        distance = (square[:, None] + square[None] - 2 * gram).clamp_min(0)
        distance.fill_diagonal_(0)
        scale = 1 / (2 * sigma**2 * z_BD.shape[1])
        kernel = torch.exp(-scale * distance)
        ctx.save_for_backward(z_BD, kernel)
        ctx.scale = scale
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z_BD, kernel = ctx.saved_tensors
        s = -ctx.scale * (grad + grad.T) * kernel  # dL/d distance, both orders of a pair
        return (2 * (torch.diag(s.sum(1)) - s)) @ z_BD, None


class _Resolvent(torch.autograd.Function):
    """R = K~ (K~ + c I)^-1 = I - c A^-1 for a stack of kernels (..., m, m), in float64 where the device has
    it.

    A's condition number reaches 1 / EPSILON: a float32 factor is off by 1e-3 (as in the original), a float64
    one of a 128 x 128 kernel costs under a millisecond.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Tensor) -> Tensor:
        m = kernel.shape[-1]
        c = EPSILON * m
        wide = _centre(_wide(kernel))
        identity = torch.eye(m, dtype=wide.dtype, device=wide.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(wide + c * identity).L)
        ctx.save_for_backward(inverse)
        ctx.c, ctx.like = c, kernel
        return (identity - c * inverse).to(kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        inverse, = ctx.saved_tensors
        grad = grad.to(inverse)
        return _centre(ctx.c * (inverse @ (grad + grad.mT) @ inverse) / 2).to(ctx.like)


def _wide(kernel: Tensor) -> Tensor:
    if kernel.device.type == "mps":  # no float64 and no batched Cholesky there; the (m, m) kernels are small
        kernel = kernel.cpu()
    return kernel.double()


def _centre(kernel: Tensor) -> Tensor:
    """H K H: rows and columns with mean zero."""
    kernel = kernel - kernel.mean(-1, keepdim=True)
    return kernel - kernel.mean(-2, keepdim=True)


def flatten(features: Tensor) -> Tensor:
    """(B, ...) -> (B, d) in float32 or wider; channels_last features are not copied (kernels ignore feature
    order)."""
    if features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last):
        features = features.permute(0, 2, 3, 1)
    flat = features.flatten(1)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def gaussian_kernel(features: Tensor, *, sigma: float) -> Tensor:
    """Kernel matrix (B, B) of features (B, ...), entries exp(-|a_i - a_j|^2 / (2 sigma^2 d)) in 0..1.

    Args: sigma: > 0, in units of the root mean square distance per dimension. Differentiable once in
    `features`.
    """
    with torch.autocast(features.device.type, enabled=False):
        return _GaussianKernel.apply(flatten(features), sigma)


def linear_kernel(labels: Tensor, *, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Kernel matrix (B, B) of inner products of labels (B,) int64 as one-hot vectors, 1 where two agree, or
    of soft labels (B, K), shares of K classes."""
    hot = (labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, num_classes)).to(dtype)
    return hot @ hot.T


def resolvent(kernel: Tensor) -> Tensor:
    """R = K~ (K~ + eps m I)^-1 of kernels (..., m, m), symmetric, eigenvalues in [0, 1). Differentiable once.

    A kernel with non-finite entries gives a non-finite result, never a silent replacement.
    """
    with torch.autocast(kernel.device.type, enabled=False):
        return _Resolvent.apply(kernel)


def nhsic(resolvent_a: Tensor, resolvent_b: Tensor) -> Tensor:
    """tr(R_a R_b), >= 0, of symmetric resolvents (..., m, m); broadcasts, so (M, m, m) with (m, m) gives
    (M,)."""
    return (resolvent_a * resolvent_b).sum((-2, -1))


def bottleneck(inputs: Tensor, labels: Tensor, hidden: Sequence[Tensor], *, num_classes: int,
               sigma: float) -> tuple[Tensor, Tensor]:
    """nHSIC(x, z_j) and nHSIC(y, z_j) of every hidden layer: two tensors (M,), differentiable in `hidden`.

    Args: inputs: (B, ...) natural images. labels: (B,) int64, or soft ones (B, K). hidden: M tensors
    (B, ...), any shapes. sigma: > 0.
    Raises: ValueError if B < 2 or a batch size differs.
    """
    batch = len(inputs)
    if batch < 2 or any(len(z) != batch for z in (labels, *hidden)):
        raise ValueError(f"nHSIC needs equal batches of at least 2, got "
                         f"{[len(z) for z in (inputs, labels, *hidden)]}")
    with torch.no_grad():
        fixed = resolvent(torch.stack([gaussian_kernel(inputs, sigma=sigma),
                                       linear_kernel(labels, num_classes=num_classes,
                                                     dtype=flatten(inputs).dtype)]))
    layers = resolvent(torch.stack([gaussian_kernel(z, sigma=sigma) for z in hidden]))
    return nhsic(layers, fixed[0]), nhsic(layers, fixed[1])
