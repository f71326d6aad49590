"""How strongly the HSIC bottleneck pulls: the norm of its gradient over that of the whole loss's.

    share = |g / k| / |G - (1 - 1/k) g|

g gradient of the weighted HSIC terms of a step that has them, G that of its whole loss, k = hsic_every. The
terms come in every k-th step with k times their weight (objective.at_step): g / k is their mean force, and
below the line is the gradient of the loss with that. Both are of the weights that are kept.

It is looked at in a few steps of a training, the same ones whenever it is stopped, and changes nothing there.
"""
from collections.abc import Mapping

import torch
from torch import Tensor

from pwoa_cli.training.objective import BOTTLENECK
from pwoa_cli.training.state import Plan, State

LOOKS = 20  # at the most
STEPS = 200  # of training for a look, which takes as long as a step: half a percent of the time


def _looks(steps: int, every: int) -> frozenset[int]:
    """The steps that are looked at, evenly spread, each one with HSIC terms."""
    count = min(LOOKS, max(1, steps // STEPS))
    return frozenset(int((i + 0.5) * steps / count) // every * every for i in range(count))


def looks(plan: Plan, now: int) -> bool:
    """Whether the step `now` is looked at, if it has HSIC terms."""
    return now in _looks(plan.steps, plan.recipe.hsic_every)


def share(plan: Plan, state: State, weighted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"hsic_share": scalar} in a step that is looked at, else {}; also where nothing can be told: a gradient
    that is zero or not finite. Args: weighted: the step's terms times their weights, with their graph."""
    every, there = plan.recipe.hsic_every, [weighted[name] for name in BOTTLENECK if name in weighted]
    if not there or not looks(plan, state.step):
        return {}
    pull, whole = (_gradient(state, torch.stack(terms).sum()) for terms in (there, list(weighted.values())))
    norm = (whole - (1 - 1 / every) * pull).norm()
    return {"hsic_share": pull.norm() / every / norm} if 0 < norm < torch.inf else {}


def _gradient(state: State, loss: Tensor) -> Tensor:
    """Of all that is trained, but for masked entries, in one vector (P,)."""
    trained = {name: p for name, p in state.student.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True,
                                 materialize_grads=True)
    return torch.cat([(slope * state.masks[name] if name in state.masks else slope).flatten()
                      for name, slope in zip(trained, slopes, strict=True)])
