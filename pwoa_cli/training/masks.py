"""Which weights are zero from which step on: masks of a plan, chosen, applied, forgotten by the optimiser."""
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pwoa_cli.pruning import allocation, curves, obs
from pwoa_cli.pruning.criteria import CRITERIA, Slopes, magnitude
from pwoa_cli.pruning.groups import companion_masks, kept, masks, regrown, scores_by_layer
from pwoa_cli.training import schedule
from pwoa_cli.training.inputs import calibration
from pwoa_cli.training.state import Plan, State, weights_of


def sparsity_at(plan: Plan, step_number: int) -> float:
    """Sparsity that the masks have from this step on (the ramp moves them `mask_updates` times, then they
    stay)."""
    updates = 1 if plan.recipe.start == "obs" else min(plan.recipe.mask_updates, plan.sparsify_steps)
    stage = step_number * updates // plan.sparsify_steps
    if stage >= updates:
        return plan.sparsity
    return schedule.cubic_sparsity(plan.sparsity, (stage + 1) / updates, start=plan.begun)


def scores(plan: Plan, student: nn.Module, slopes: Slopes) -> dict[str, Tensor]:
    """What each group is worth, (G,) by layer."""
    worth = CRITERIA[plan.recipe.criterion](weights_of(plan, student), slopes)
    return scores_by_layer(plan.groups, worth)


def quotas(plan: Plan, state: State, sparsity: float, slopes: Slopes) -> dict[str, int]:
    """Groups to zero by layer at this sparsity of the whole network."""
    worth = scores(plan, state.student, slopes)
    return allocation.quotas(plan.groups, worth, sparsity, method=plan.recipe.allocation, curves=state.curves,
                             of=plan.budget, macs=plan.macs)


def moved(plan: Plan, state: State, sparsity: float, slopes: Slopes) -> dict[str, Tensor]:
    """Choose masks for this sparsity and zero what they cut, companions of silent groups included.

    Args: slopes: gives the loss's gradients by weight, where they are wanted.
    """
    lost = quotas(plan, state, sparsity, slopes)
    if plan.recipe.start == "obs":
        _reconstruct(plan, state, lost)
    worth = scores(plan, state.student, slopes)
    fraction = schedule.regrow_fraction(plan.recipe.regrow, step=state.step, steps=plan.sparsify_steps)
    if fraction and state.masks:
        steep = scores_by_layer(plan.groups, magnitude(slopes()))
        flags = {layer: regrown(worth[layer], steep[layer], lost[layer], fraction=fraction)
                 for layer in plan.groups}
        found = masks(plan.groups, flags)
        for name, weight in weights_of(plan, state.student).items():
            _forget(state.optimizer, weight, found[name] & ~state.masks[name])
    else:
        flags = kept(plan.groups, worth, lost)
        found = masks(plan.groups, flags)
    found |= companion_masks(plan.groups, flags)
    apply_masks(state.student, found)
    return found


def _forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, where: Tensor) -> None:
    """Set to zero what the optimiser added up for these entries: gradients reached them while they were
    masked."""
    for sums in optimizer.state.get(parameter, {}).values():
        if isinstance(sums, Tensor) and sums.shape == parameter.shape:
            sums.masked_fill_(where, 0.0)


def _reconstruct(plan: Plan, state: State, zeros: Mapping[str, int]) -> None:
    """Give every layer that `obs` knows its zeros, on natural and varied images through the dense network."""
    normed = plan.normed if plan.recipe.batch_norm == "train" else frozenset()
    found = obs.reconstructed(state.student.eval(), zeros, calibration(plan), normed=normed)
    with torch.no_grad():
        for name, tensor in found.items():
            state.student.get_parameter(name).copy_(tensor)


def damage_curves(plan: Plan, student: nn.Module, slopes: Slopes) -> dict[str, curves.Curve]:
    """What the loss of a layer's weakest groups does to the student's answers, by layer."""
    return curves.measured(student, plan.teacher, calibration(plan), groups=plan.groups,
                           scores=scores(plan, student, slopes), temperature=plan.recipe.temperature)


def apply_masks(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Set every masked parameter entry to +0.0 (a product would leave -0.0)."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, keep in found.items():
            parameters[name].masked_fill_(~keep, 0.0)


def hold(model: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """`apply_masks` between two moves, of all parameters at once: what is finite and masked becomes +0.0.
    Args: factors: of the state."""
    if factors:
        parameters = dict(model.named_parameters())
        held = [parameters[name].detach() for name in factors]
        torch._foreach_mul_(held, list(factors.values()))
        torch._foreach_add_(held, 0.0)  # -0.0, which products leave, becomes +0.0
