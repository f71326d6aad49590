"""ADMM splitting for weight sparsity (Boyd et al. 2011, sec. 3.1.1, scaled form; Jian et al. 2022, eq. 9-12).

w weights, z sparse copy, u scaled dual, all shaped like the layer weight and keyed by its name; rho penalty >
0.
    w-step: loss + rho/2 |w - z + u|^2        z <- project(w + u)        u <- u + w - z
The published code starts every epoch again from z = project(w) and keeps u; it is followed here.
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pwoa_cli.pruning.criteria import magnitude
from pwoa_cli.pruning.groups import Groups, kept, masks, scores_by_layer

Weights = Mapping[str, Tensor]
Layers = Mapping[str, Groups]


@dataclass(frozen=True)
class Admm:
    """Everything that ADMM carries from step to step."""

    z: dict[str, Tensor]
    u: dict[str, Tensor]
    rho: float


def begin(weights: Weights, groups: Layers, lost: Mapping[str, int], *, rho: float) -> Admm:
    """z = project(w), u = 0. Args: lost: groups to zero by layer."""
    return Admm(z=project(weights, groups, lost), u={n: torch.zeros_like(w) for n, w in weights.items()},
                rho=rho)


def begin_epoch(state: Admm, weights: Weights, groups: Layers, lost: Mapping[str, int]) -> Admm:
    """z = project(w) again, u and rho kept."""
    return replace(state, z=project(weights, groups, lost))


def update(state: Admm, weights: Weights, groups: Layers, lost: Mapping[str, int], *, growth: float,
           rho_max: float) -> Admm:
    """z <- project(w + u), u <- u + w - z, rho <- min(growth * rho, rho_max)."""
    z = project({n: w.detach() + state.u[n] for n, w in weights.items()}, groups, lost)
    u = {n: state.u[n] + w.detach() - z[n] for n, w in weights.items()}
    return Admm(z=z, u=u, rho=min(growth * state.rho, rho_max))


def penalty(state: Admm, weights: Weights) -> Tensor:
    """sum over layers of rho/2 |w - z + u|^2: scalar, differentiable in the weights."""
    total: Tensor = _Penalty.apply(state.rho, [state.z[n] for n in weights], [state.u[n] for n in weights],
                                   *weights.values())
    return total


class _Penalty(torch.autograd.Function):
    """Written out because torch differentiates operations over lists layer by layer: the gradient is
    rho (w - z + u)."""

    @staticmethod
    def forward(ctx: Any, rho: float, z: list[Tensor], u: list[Tensor], *weights: Tensor) -> Tensor:
        apart = torch._foreach_add(torch._foreach_sub(weights, z), u)
        ctx.save_for_backward(*apart)
        ctx.rho = rho
        return rho / 2 * torch.stack(torch._foreach_norm(apart)).square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *torch._foreach_mul(list(ctx.saved_tensors), ctx.rho * grad)


def project(weights: Weights, groups: Layers, lost: Mapping[str, int]) -> dict[str, Tensor]:
    """Euclidean projection on the weights with `lost` zero groups by layer (Jian et al. 2022, eq. 12): the
    groups of least norm go, whatever the criterion is."""
    flags = kept(groups, scores_by_layer(groups, magnitude(weights)), lost)
    return {name: weights[name].detach().masked_fill(~mask, 0.0)
            for name, mask in masks(groups, flags).items()}
