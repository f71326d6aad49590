"""What a training run is: `Plan`, which stays the same, and `State`, all that changes."""
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.data import datasets
from pwoa_cli.pruning import admm
from pwoa_cli.pruning.curves import Curve
from pwoa_cli.pruning.groups import Groups
from pwoa_cli.training import objective
from pwoa_cli.training.recipe import EFFORT, Recipe

FUSED = ("cpu", "cuda")  # devices; others take torch's own choice


@dataclass(frozen=True)
class Plan:
    """What stays the same during a run.

    groups: of weights, by layer. normed: weights whose outputs' mean a bias or a batch norm in training takes
    off. begun: sparsity from which the ramp grows, that of a student that was pruned before. sparsity: a
    fraction of `budget`, weights, groups or macs. macs: multiplications with each parameter for one image,
    for a budget of them. terms: `objective.terms`, or what computes the same.
    """

    recipe: Recipe
    teacher: nn.Module
    hidden: tuple[str, ...]
    groups: Mapping[str, Groups]
    normed: frozenset[str]
    sparsity: float
    num_classes: int
    eps: float
    norm: str
    split: datasets.Split
    augment: str
    seed: int
    steps_per_epoch: int
    sparsify_steps: int
    steps: int
    begun: float = 0.0
    budget: str = "weights"
    macs: Mapping[str, int] = field(default_factory=dict)
    terms: Callable[..., dict[str, Tensor]] = objective.terms

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the prunable parameters."""
        return tuple(dict.fromkeys(name for group in self.groups.values() for name in group.parts))

    @property
    def epochs(self) -> float:
        """Of both phases together, two decimals."""
        return round(self.steps / self.steps_per_epoch, 2)


@dataclass(frozen=True)
class State:
    """All that changes. Student and optimiser are updated in place (that is what torch offers); the rest is
    replaced.

    masks: {parameter name: bool, True = kept}; admm: None outside the paper's first phase; step: steps done;
    curves: what allocation by sensitivity measured at the start; average: of the student's state since the
    masks are fixed; lr_scale: of the recipe's learning rates, lowered where the loss exploded. factors: the
    masks as numbers, 1 = kept, in the parameters' type, for one product over all of them; see `masked`.
    """

    student: nn.Module
    optimizer: torch.optim.Optimizer
    masks: dict[str, Tensor]
    admm: admm.Admm | None
    step: int
    curves: dict[str, Curve] | None = None
    average: dict[str, Tensor] | None = None
    lr_scale: float = 1.0
    factors: dict[str, Tensor] = field(default_factory=dict)


def masked(state: State, masks: dict[str, Tensor]) -> State:
    """The state with these masks."""
    parameters = dict(state.student.named_parameters())
    return replace(state, masks=masks,
                   factors={name: torch.empty_like(parameters[name].detach()).copy_(mask)
                            for name, mask in masks.items()})


def plan_steps(recipe: Recipe, images: int, sparsity: float) -> tuple[int, int, int]:
    """(steps per epoch, steps of the sparsify phase, steps of both) for a training set of `images`."""
    per_epoch = max(1, images // recipe.batch_size)
    epochs = recipe.epochs * EFFORT[recipe.effort] * max(0.5, -math.log10(1 - sparsity)) ** recipe.stretch
    steps = max(2, round(epochs * per_epoch))
    return per_epoch, min(steps - 1, max(1, round(recipe.sparsify * steps))), steps


def to_dict(state: State) -> dict[str, Any]:
    """The state as plain tensors, numbers and dictionaries that `torch.save` writes and weights_only
    reads."""
    splitting = None if state.admm is None else {"z": state.admm.z, "u": state.admm.u, "rho": state.admm.rho}
    return {"student": state.student.state_dict(), "optimizer": state.optimizer.state_dict(),
            "masks": state.masks, "admm": splitting, "step": state.step, "curves": state.curves,
            "average": state.average, "lr_scale": state.lr_scale}


def from_dict(plan: Plan, student: nn.Module, saved: Mapping[str, Any]) -> State:
    """The state of `to_dict` again, on a student of the same architecture (its weights are overwritten) and
    on its device, wherever what was saved lies: best on the CPU, as an optimiser counts its steps there."""
    student.load_state_dict(saved["student"])
    optimizer = optimizer_for(plan.recipe, student, plan.recipe.lr)
    _restore(optimizer, saved["optimizer"])
    device = next(student.parameters()).device
    splitting = None if saved["admm"] is None else admm.Admm(**on(device, saved["admm"]))
    state = State(student, optimizer, {}, splitting, saved["step"], saved["curves"],
                  on(device, saved["average"]), saved["lr_scale"])
    return masked(state, on(device, saved["masks"]))


def _restore(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """What an optimiser added up, to be gone on with in the way that this one computes in: another device's
    may be another, and so may the layout of the sums there, which a fused step takes for the parameters'."""
    ways = [{way: group[way] for way in ("fused", "foreach")} for group in optimizer.param_groups]
    groups = [old | way for old, way in zip(saved["param_groups"], ways, strict=True)]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for parameter, found in optimizer.state.items():
        for name, sums in found.items():
            if name != "step" and isinstance(sums, Tensor) and sums.shape == parameter.shape:
                found[name] = torch.empty_like(parameter, dtype=sums.dtype).copy_(sums)


def on(device: torch.device, value: Any) -> Any:
    """A copy of dictionaries and lists with their tensors on a device; whatever else is in them as it is."""
    if isinstance(value, Mapping):
        return {key: on(device, item) for key, item in value.items()}
    if isinstance(value, list):
        return [on(device, item) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def weights_of(plan: Plan, student: nn.Module) -> dict[str, nn.Parameter]:
    """The prunable parameters of a student by name."""
    parameters = dict(student.named_parameters())
    return {name: parameters[name] for name in plan.weights}


def optimizer_for(recipe: Recipe, student: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The recipe's optimiser over all that a student trains, as one kernel where the device has it."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    fused = all(p.device.type in FUSED and _dense(p) for p in parameters) or None
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=recipe.weight_decay, fused=fused)
    return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
                           fused=fused)


def _dense(parameter: Tensor) -> bool:
    """Whether its entries lie in memory without gaps: a fused step on a CPU walks through memory, and steps
    wrong, without a word, over those of a parameter with gaps (torch 2.14)."""
    reach = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    return parameter.is_floating_point() and reach + 1 == parameter.numel()
