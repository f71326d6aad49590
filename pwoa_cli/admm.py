"""ADMM splitting for weight sparsity (Boyd et al. 2011, sec. 3.1.1, scaled form; Jian et al. 2022, eq. 9-12).

w weights, z sparse copy, u scaled dual, all shaped like the layer weight and keyed by its name; rho penalty > 0.
    w-step: loss + rho/2 |w - z + u|^2        z <- project(w + u)        u <- u + w - z
The published code starts every epoch again from z = project(w) and keeps u; it is followed here.
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pwoa_cli.structure import project

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Admm:
    """Everything that ADMM carries from step to step."""

    z: dict[str, Tensor]
    u: dict[str, Tensor]
    rho: float


def begin(weights: Weights, zero_groups: Mapping[str, int], *, structure: str, rho: float) -> Admm:
    """z = project(w), u = 0."""
    return Admm(z=_project(weights, zero_groups, structure), u={n: torch.zeros_like(w) for n, w in weights.items()}, rho=rho)


def begin_epoch(state: Admm, weights: Weights, zero_groups: Mapping[str, int], *, structure: str) -> Admm:
    """z = project(w) again, u and rho kept."""
    return replace(state, z=_project(weights, zero_groups, structure))


def update(state: Admm, weights: Weights, zero_groups: Mapping[str, int], *, structure: str, growth: float, rho_max: float) -> Admm:
    """z <- project(w + u), u <- u + w - z, rho <- min(growth * rho, rho_max)."""
    z = _project({n: w.detach() + state.u[n] for n, w in weights.items()}, zero_groups, structure)
    u = {n: state.u[n] + w.detach() - z[n] for n, w in weights.items()}
    return Admm(z=z, u=u, rho=min(growth * state.rho, rho_max))


def penalty(state: Admm, weights: Weights) -> Tensor:
    """sum over layers of rho/2 |w - z + u|^2: scalar, differentiable in the weights."""
    return sum(state.rho / 2 * (w - state.z[n] + state.u[n]).square().sum() for n, w in weights.items())


def _project(weights: Weights, zero_groups: Mapping[str, int], structure: str) -> dict[str, Tensor]:
    return {n: project(w, zero_groups[n], structure) for n, w in weights.items()}
