"""One step of pruning under self-distillation and the HSIC bottleneck: state in, state and losses out.

    loss = alpha T^2 KL(teacher || student) + hidden_weight sum_j |z_j - z_j^T|^2 / |z_j^T|^2
         + lambda_x sum_j nHSIC(x, z_j) - lambda_y sum_j nHSIC(y, z_j)  [+ ADMM penalty]         (Jian et al. 2022, eq. 5-8)

Everything that changes is in `State`; everything that does not is in `Plan`. Batch, noise and learning rate are pure
functions of (seed, step), so a state stopped anywhere goes on as if it had never stopped.
"""
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli import admm, allocation, data, distill, hsic, schedule, structure
from pwoa_cli.config import Recipe
from pwoa_cli.cpu import keep_freed_memory
from pwoa_cli.errors import PwoaError
from pwoa_cli.layers import capture


@dataclass(frozen=True)
class Plan:
    """What stays the same during a run. weights: names of the prunable parameters; companions: for each of them, the
    parameters (out,) that fall silent with a filter (its bias, its batch norm's scale and shift)."""

    recipe: Recipe
    teacher: nn.Module
    hidden: tuple[str, ...]
    weights: tuple[str, ...]
    companions: Mapping[str, tuple[str, ...]]
    sparsity: float
    structure: str
    num_classes: int
    eps: float
    split: data.Split
    augment: str
    seed: int
    steps_per_epoch: int
    sparsify_steps: int
    steps: int


@dataclass(frozen=True)
class State:
    """All that changes. Student and optimiser are updated in place (that is what torch offers); the rest is replaced.

    masks: {parameter name: bool, True = kept}; admm: None outside the paper's first phase; step: steps done.
    """

    student: nn.Module
    optimizer: torch.optim.Optimizer
    masks: dict[str, Tensor]
    admm: admm.Admm | None
    step: int


def plan_steps(recipe: Recipe, images: int, sparsity: float) -> tuple[int, int, int]:
    """(steps per epoch, steps of the sparsify phase, steps of both) for a training set of `images`."""
    per_epoch = max(1, images // recipe.batch_size)
    epochs = recipe.epochs * max(1.0, -math.log10(1 - sparsity)) ** recipe.stretch
    steps = max(2, round(epochs * per_epoch))
    return per_epoch, min(steps - 1, max(1, round(recipe.sparsify * steps))), steps


def begin(plan: Plan, student: nn.Module) -> State:
    """The state before the first step: nothing masked."""
    state = State(student, _optimizer(plan.recipe, student, plan.recipe.lr), masks={}, admm=None, step=0)
    if plan.recipe.method == "admm":
        weights = _weights(plan, state)
        state = replace(state, admm=admm.begin(weights, _quotas(plan, weights, plan.sparsity), structure=plan.structure, rho=plan.recipe.rho))
    return state


def to_dict(state: State) -> dict[str, Any]:
    """The state as plain tensors, numbers and dictionaries that `torch.save` writes and weights_only reads."""
    splitting = None if state.admm is None else {"z": state.admm.z, "u": state.admm.u, "rho": state.admm.rho}
    return {"student": state.student.state_dict(), "optimizer": state.optimizer.state_dict(), "masks": state.masks, "admm": splitting,
            "step": state.step}


def from_dict(plan: Plan, student: nn.Module, saved: Mapping[str, Any]) -> State:
    """The state of `to_dict` again, on a student of the same architecture (its weights are overwritten)."""
    student.load_state_dict(saved["student"])
    optimizer = _optimizer(plan.recipe, student, plan.recipe.lr)
    optimizer.load_state_dict(saved["optimizer"])
    splitting = None if saved["admm"] is None else admm.Admm(**saved["admm"])
    return State(student, optimizer, dict(saved["masks"]), splitting, saved["step"])


def step(plan: Plan, state: State) -> tuple[State, dict[str, Tensor]]:
    """One optimiser step; returns the next state and the step's losses as detached scalars on the device.

    Order inside a step as in the published code: masks or phase change, forward, HSIC, z/u update, penalty, backward.
    """
    state = _enter(plan, state)
    x, y, labels_hold = _inputs(plan, state.step)
    _train_mode(plan.recipe, state.student)
    torch.manual_seed(_seed(plan.seed, "dropout", state.step))
    with torch.no_grad(), capture(plan.teacher, _teacher_hidden(plan)) as teacher_hidden:
        teacher_logits = plan.teacher(x)
        teacher_hidden = list(teacher_hidden)
    with capture(state.student, _student_hidden(plan)) as hidden:
        logits = state.student(x)
        hidden = list(hidden)
    terms = _terms(plan, logits, teacher_logits, hidden, teacher_hidden, x, y, labels_hold)
    if state.admm is not None:
        state = _admm_update(plan, state)
        terms["admm"] = admm.penalty(state.admm, _weights(plan, state))
    weight = {"kl": plan.recipe.alpha * plan.recipe.temperature**2, "hidden": plan.recipe.hidden_weight, "admm": 1.0,
              "hsic_x": plan.recipe.lambda_x, "hsic_y": -plan.recipe.lambda_y}
    loss = sum(weight[name] * value for name, value in terms.items())
    _descend(plan, state, loss)
    return replace(state, step=state.step + 1), {name: value.detach() for name, value in (terms | {"loss": loss}).items()}


def run(plan: Plan, state: State, *, report: Callable[[State, dict[str, float]], None], every: int = 20) -> State:
    """Step until the plan is done; `report` gets the state and the mean losses of every `every` steps.

    Raises: PwoaError when a loss is no longer finite, naming the step and the terms.
    """
    keep_freed_memory()
    sums: dict[str, Tensor] = {}
    count = 0
    while state.step < plan.steps:
        state, losses = step(plan, state)
        sums = {name: value + sums.get(name, 0) for name, value in losses.items()}
        count += 1
        if state.step % every == 0 or state.step in (plan.sparsify_steps, plan.steps):
            means = {name: value.item() / count for name, value in sums.items()}
            bad = [name for name, value in means.items() if not math.isfinite(value)]
            if bad:
                raise PwoaError(f"The loss is not finite by step {state.step} of {plan.steps}: {', '.join(bad)}.",
                                hint="Lower the learning rate: pwoa prune ... --set lr=1e-4.")
            report(state, means)
            sums, count = {}, 0
    return state


def sparsity_at(plan: Plan, step_number: int) -> float:
    """Sparsity that the masks have from this step on (the ramp moves them `mask_updates` times, then they stay)."""
    updates = min(plan.recipe.mask_updates, plan.sparsify_steps)
    stage = step_number * updates // plan.sparsify_steps
    return schedule.cubic_sparsity(plan.sparsity, (stage + 1) / updates) if stage < updates else plan.sparsity


def _enter(plan: Plan, state: State) -> State:
    """Phase changes and mask moves that are due before this step."""
    recipe, now = plan.recipe, state.step
    hard_prune = recipe.method == "admm" and now == plan.sparsify_steps
    if hard_prune or (recipe.finetune_lr and now == plan.sparsify_steps):
        state = replace(state, optimizer=_optimizer(recipe, state.student, recipe.finetune_lr or recipe.lr), admm=None)
    if state.admm is not None and now and now % plan.steps_per_epoch == 0:
        weights = _weights(plan, state)
        state = replace(state, admm=admm.begin_epoch(state.admm, weights, _quotas(plan, weights, plan.sparsity), structure=plan.structure))
    ramp_moves = recipe.method == "ramp" and now <= plan.sparsify_steps and (not now or sparsity_at(plan, now) != sparsity_at(plan, now - 1))
    if hard_prune or ramp_moves:
        state = replace(state, masks=_masked(plan, state, plan.sparsity if hard_prune else sparsity_at(plan, now)))
    return state


def _masked(plan: Plan, state: State, sparsity: float) -> dict[str, Tensor]:
    """Choose masks for this sparsity and zero what they cut, companions of silent filters included."""
    weights = _weights(plan, state)
    zero_groups = _quotas(plan, weights, sparsity)
    masks = {name: structure.keep_mask(w, zero_groups[name], plan.structure) for name, w in weights.items()}
    for name in weights if plan.structure == "filter" else ():
        alive = masks[name].flatten(1).any(1)
        for companion in plan.companions.get(name, ()):  # silent only where every filter that feeds it is
            masks[companion] = masks[companion] | alive if companion in masks else alive
    apply_masks(state.student, masks)
    return masks


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every masked parameter entry to +0.0 (a product would leave -0.0)."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, keep in masks.items():
            parameters[name].masked_fill_(~keep, 0.0)


def _admm_update(plan: Plan, state: State) -> State:
    """The z/u update at the first batch of every `admm_every`-th epoch but the first."""
    period = plan.recipe.admm_every * plan.steps_per_epoch
    if state.step == 0 or state.step % period:
        return state
    weights = _weights(plan, state)
    return replace(state, admm=admm.update(state.admm, weights, _quotas(plan, weights, plan.sparsity), structure=plan.structure,
                                           growth=plan.recipe.rho_growth, rho_max=plan.recipe.rho_max))


def _quotas(plan: Plan, weights: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    return allocation.quotas(weights, sparsity, method=plan.recipe.allocation, structure=plan.structure)


def _weights(plan: Plan, state: State) -> dict[str, Tensor]:
    parameters = dict(state.student.named_parameters())
    return {name: parameters[name] for name in plan.weights}


def _optimizer(recipe: Recipe, student: nn.Module, lr: float) -> torch.optim.Optimizer:
    parameters = [p for p in student.parameters() if p.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _learning_rate(plan: Plan, now: int) -> float:
    recipe = plan.recipe
    common = {"steps_per_epoch": plan.steps_per_epoch, "period": recipe.admm_every}
    if not recipe.finetune_lr:
        return schedule.learning_rate(recipe.schedule, recipe.lr, step=now, steps=plan.steps, **common)
    if now < plan.sparsify_steps:
        return schedule.learning_rate(recipe.schedule, recipe.lr, step=now, steps=plan.sparsify_steps, **common)
    return schedule.learning_rate(recipe.finetune_schedule, recipe.finetune_lr, step=now - plan.sparsify_steps,
                                  steps=plan.steps - plan.sparsify_steps, **common)


def generator(seed: int, *use: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one use, a pure function of the seed and the use's name and numbers."""
    return torch.Generator(device).manual_seed(_seed(seed, *use))


def _seed(seed: int, *use: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, *use)).encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=2)
def _order(images: int, seed: int, epoch: int) -> Tensor:
    return data.epoch_order(images, seed=seed, epoch=epoch)


def _inputs(plan: Plan, now: int) -> tuple[Tensor, Tensor, bool]:
    """Batch of this step: varied images (B, C, H, W), labels (B,), and whether the labels still describe the images."""
    recipe = plan.recipe
    epoch, batch = divmod(now, plan.steps_per_epoch)
    index = _order(len(plan.split), plan.seed, epoch)[batch * recipe.batch_size:(batch + 1) * recipe.batch_size]
    x, y = plan.split.batch(index)
    draw = generator(plan.seed, "inputs", now, device=x.device)
    x = data.augment(x, plan.augment, draw)
    mixed = recipe.cutmix > 0 and torch.rand((), generator=generator(plan.seed, "mix", now)).item() < recipe.cutmix
    if mixed:
        x = distill.cutmix(x, generator=draw)
    scale = recipe.noise_scale * (1.0 if recipe.noise == "gaussian" else plan.eps)
    return distill.add_noise(x, kind=recipe.noise, scale=scale, generator=draw), y, not mixed


def _train_mode(recipe: Recipe, student: nn.Module) -> None:
    student.train()
    if recipe.batch_norm == "freeze":
        for m in student.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.eval()


def _teacher_hidden(plan: Plan) -> tuple[str, ...]:
    return plan.hidden if plan.recipe.hidden_weight else ()


def _student_hidden(plan: Plan) -> tuple[str, ...]:
    return plan.hidden if plan.recipe.hidden_weight or plan.recipe.lambda_x or plan.recipe.lambda_y else ()


def _terms(plan: Plan, logits: Tensor, teacher_logits: Tensor, hidden: list[Tensor], teacher_hidden: list[Tensor],
           x: Tensor, y: Tensor, labels_hold: bool) -> dict[str, Tensor]:
    """Loss terms before their weights; those with weight 0 are not computed."""
    recipe = plan.recipe
    terms = {"kl": distill.kl(logits, teacher_logits, temperature=recipe.temperature, reduction=recipe.kl_reduction)}
    if recipe.hidden_weight:
        terms["hidden"] = distill.hidden_error(hidden, teacher_hidden)
    if recipe.lambda_x or recipe.lambda_y:
        hsic_x, hsic_y = hsic.bottleneck(x, y, hidden, num_classes=plan.num_classes, sigma=recipe.sigma)
        terms["hsic_x"] = hsic_x.sum()
        if labels_hold:  # a mixed image has no single label
            terms["hsic_y"] = hsic_y.sum()
    return terms


def _descend(plan: Plan, state: State, loss: Tensor) -> None:
    """One optimiser step, after which masked entries are +0.0 again, whatever momentum says."""
    for group in state.optimizer.param_groups:
        group["lr"] = _learning_rate(plan, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    apply_masks(state.student, state.masks)
