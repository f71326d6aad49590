"""One step of pruning under self-distillation and the HSIC bottleneck: state in, state and losses out.

    loss = what a recipe asks of the student on one batch (objective.py)  [+ ADMM penalty]    (Jian et al. 2022, eq. 5-8)

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

from pwoa_cli import admm, allocation, average, data, objective, obs, schedule, sensitivity, structure, vary
from pwoa_cli.attacks import gradient
from pwoa_cli.attacks.base import frozen
from pwoa_cli.config import EFFORT, Recipe, noise_scales
from pwoa_cli.cpu import keep_freed_memory
from pwoa_cli.errors import PwoaError

CALIBRATION = 512  # inputs on which layers are measured before the first step: each image twice
ATTACK_STEPS = 10


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
    norm: str
    split: data.Split
    augment: str
    seed: int
    steps_per_epoch: int
    sparsify_steps: int
    steps: int


@dataclass(frozen=True)
class State:
    """All that changes. Student and optimiser are updated in place (that is what torch offers); the rest is replaced.

    masks: {parameter name: bool, True = kept}; admm: None outside the paper's first phase; step: steps done; curves: what
    allocation by sensitivity measured at the start; average: of the student's state since the masks are fixed.
    """

    student: nn.Module
    optimizer: torch.optim.Optimizer
    masks: dict[str, Tensor]
    admm: admm.Admm | None
    step: int
    curves: dict[str, allocation.Curve] | None = None
    average: dict[str, Tensor] | None = None


def plan_steps(recipe: Recipe, images: int, sparsity: float) -> tuple[int, int, int]:
    """(steps per epoch, steps of the sparsify phase, steps of both) for a training set of `images`."""
    per_epoch = max(1, images // recipe.batch_size)
    epochs = recipe.epochs * EFFORT[recipe.effort] * max(0.5, -math.log10(1 - sparsity)) ** recipe.stretch
    steps = max(2, round(epochs * per_epoch))
    return per_epoch, min(steps - 1, max(1, round(recipe.sparsify * steps))), steps


def begin(plan: Plan, student: nn.Module) -> State:
    """The state before the first step: nothing masked, curves measured where the allocation needs them."""
    state = State(student, _optimizer(plan.recipe, student, plan.recipe.lr), masks={}, admm=None, step=0)
    if plan.recipe.allocation == "sensitivity":
        state = replace(state, curves=_curves(plan, student))
    if plan.recipe.method == "admm":
        quotas = _quotas(plan, state, plan.sparsity)
        state = replace(state, admm=admm.begin(_weights(plan, state), quotas, structure=plan.structure, rho=plan.recipe.rho))
    return state


def to_dict(state: State) -> dict[str, Any]:
    """The state as plain tensors, numbers and dictionaries that `torch.save` writes and weights_only reads."""
    splitting = None if state.admm is None else {"z": state.admm.z, "u": state.admm.u, "rho": state.admm.rho}
    return {"student": state.student.state_dict(), "optimizer": state.optimizer.state_dict(), "masks": state.masks,
            "admm": splitting, "step": state.step, "curves": state.curves, "average": state.average}


def from_dict(plan: Plan, student: nn.Module, saved: Mapping[str, Any]) -> State:
    """The state of `to_dict` again, on a student of the same architecture (its weights are overwritten)."""
    student.load_state_dict(saved["student"])
    optimizer = _optimizer(plan.recipe, student, plan.recipe.lr)
    optimizer.load_state_dict(saved["optimizer"])
    splitting = None if saved["admm"] is None else admm.Admm(**saved["admm"])
    return State(student, optimizer, dict(saved["masks"]), splitting, saved["step"], saved["curves"], saved["average"])


def step(plan: Plan, state: State) -> tuple[State, dict[str, Tensor]]:
    """One optimiser step; returns the next state and the step's losses as detached scalars on the device.

    Order inside a step as in the published code: masks or phase change, forward, HSIC, z/u update, penalty, backward.
    """
    state = _enter(plan, state)
    terms = _forward(plan, state)
    if state.admm is not None:
        state = _admm_update(plan, state)
        terms["admm"] = admm.penalty(state.admm, _weights(plan, state))
    loss = _loss(plan, terms)
    _descend(plan, state, loss)
    state = replace(state, step=state.step + 1, average=_averaged(plan, state))
    return state, {name: value.detach() for name, value in (terms | {"loss": loss}).items()}


def run(plan: Plan, state: State, *, report: Callable[[State, dict[str, float]], None], every: int = 20) -> State:
    """Step until the plan is done; `report` gets the state and the mean losses of every `every` steps: of each term over the
    steps that have it (mixed batches have no label term).

    Raises: PwoaError when a loss is no longer finite, naming the step and the terms.
    """
    keep_freed_memory()
    seen: dict[str, list[Tensor]] = {}
    while state.step < plan.steps:
        state, losses = step(plan, state)
        for name, value in losses.items():
            seen.setdefault(name, []).append(value)
        if state.step % every == 0 or state.step in (plan.sparsify_steps, plan.steps):
            means = {name: torch.stack(values).mean().item() for name, values in seen.items()}
            bad = [name for name, value in means.items() if not math.isfinite(value)]
            if bad:
                raise PwoaError(f"The loss is not finite by step {state.step} of {plan.steps}: {', '.join(bad)}.",
                                hint="Limit the gradient, or lower the learning rate: pwoa prune ... --set clip=5, or --set lr=1e-4.")
            report(state, means)
            seen = {}
    finish(plan, state)
    return state


def finish(plan: Plan, state: State) -> None:
    """Turn the student, in place, into what is saved: the average of its weights, batch-norm statistics taken again.

    Done once more it changes nothing.
    """
    if state.average is not None:
        state.student.load_state_dict(state.average)
    if plan.recipe.bn_reestimate:
        varied, later = plan.recipe.bn_inputs == "varied", range(plan.steps, plan.steps + plan.recipe.bn_reestimate)
        average.reestimate(state.student, (_inputs(plan, step).x if varied else _images(plan, step)[0] for step in later))


def sparsity_at(plan: Plan, step_number: int) -> float:
    """Sparsity that the masks have from this step on (the ramp moves them `mask_updates` times, then they stay)."""
    updates = 1 if plan.recipe.start == "obs" else min(plan.recipe.mask_updates, plan.sparsify_steps)
    stage = step_number * updates // plan.sparsify_steps
    return schedule.cubic_sparsity(plan.sparsity, (stage + 1) / updates) if stage < updates else plan.sparsity


def _enter(plan: Plan, state: State) -> State:
    """Phase changes and mask moves that are due before this step."""
    recipe, now = plan.recipe, state.step
    hard_prune = recipe.method == "admm" and now == plan.sparsify_steps
    if hard_prune or (recipe.finetune_lr and now == plan.sparsify_steps):
        state = replace(state, optimizer=_optimizer(recipe, state.student, recipe.finetune_lr or recipe.lr), admm=None)
    if state.admm is not None and now and now % plan.steps_per_epoch == 0:
        quotas = _quotas(plan, state, plan.sparsity)
        state = replace(state, admm=admm.begin_epoch(state.admm, _weights(plan, state), quotas, structure=plan.structure))
    moved = now <= plan.sparsify_steps and (not now or sparsity_at(plan, now) != sparsity_at(plan, now - 1))
    ramp_moves = recipe.method == "ramp" and moved
    if hard_prune or ramp_moves:
        state = replace(state, masks=_masked(plan, state, plan.sparsity if hard_prune else sparsity_at(plan, now)))
    return state


def _masked(plan: Plan, state: State, sparsity: float) -> dict[str, Tensor]:
    """Choose masks for this sparsity and zero what they cut, companions of silent filters included."""
    zero_groups, weights = _quotas(plan, state, sparsity), _weights(plan, state)
    if plan.recipe.start == "obs":
        _reconstruct(plan, state, zero_groups)
    fraction = schedule.regrow_fraction(plan.recipe.regrow, step=state.step, steps=plan.sparsify_steps)
    if fraction and state.masks:
        slopes = _gradients(plan, state)
        masks = {name: structure.regrown_mask(w, slopes[name], zero_groups[name], plan.structure, fraction=fraction)
                 for name, w in weights.items()}
        for name, w in weights.items():
            _forget(state.optimizer, w, masks[name] & ~state.masks[name])
    else:
        masks = {name: structure.keep_mask(w, zero_groups[name], plan.structure) for name, w in weights.items()}
    masks = _with_companions(plan, masks)
    apply_masks(state.student, masks)
    return masks


def _forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, where: Tensor) -> None:
    """Set to zero what the optimiser added up for these entries: while they were masked, gradients reached them all the same."""
    for kept in optimizer.state.get(parameter, {}).values():
        if isinstance(kept, Tensor) and kept.shape == parameter.shape:
            kept.masked_fill_(where, 0.0)


def _with_companions(plan: Plan, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of all layers, and with filters those of the parameters that fall silent with them."""
    found = dict(masks)
    for name in masks if plan.structure == "filter" else ():
        alive = masks[name].flatten(1).any(1)
        for companion in plan.companions.get(name, ()):  # silent only where every filter that feeds it is
            found[companion] = found[companion] | alive if companion in found else alive
    return found


def _gradients(plan: Plan, state: State) -> dict[str, Tensor]:
    """Gradient of this step's loss with respect to the weights, pruned ones included; the student stays as it is."""
    weights, buffers = _weights(plan, state), {name: b.clone() for name, b in state.student.named_buffers()}
    slopes = torch.autograd.grad(_loss(plan, _forward(plan, state)), list(weights.values()))
    with torch.no_grad():
        for name, buffer in state.student.named_buffers():
            buffer.copy_(buffers[name])
    return dict(zip(weights, slopes, strict=True))


def _reconstruct(plan: Plan, state: State, zeros: Mapping[str, int]) -> None:
    """Give every layer that `obs` knows its zeros, on natural and varied images through the dense network."""
    normed = {name for name, companions in plan.companions.items() if companions and plan.recipe.batch_norm == "train"}
    found = obs.reconstructed(state.student.eval(), zeros, _calibration(plan), normed=normed)
    with torch.no_grad():
        for name, tensor in found.items():
            state.student.get_parameter(name).copy_(tensor)


def _curves(plan: Plan, student: nn.Module) -> dict[str, allocation.Curve]:
    parameters = dict(student.named_parameters())
    weights = {name: parameters[name] for name in plan.weights}
    whole = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}

    def silence(name: str, keep: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        masks = _with_companions(plan, whole | {name: keep})
        return [(parameters[n], mask) for n, mask in masks.items() if n == name or n not in whole]

    return sensitivity.curves(student, plan.teacher, _calibration(plan), weights=weights, structure=plan.structure,
                              temperature=plan.recipe.temperature, silence=silence)


def _calibration(plan: Plan) -> list[Tensor]:
    """Inputs to measure layers on, CALIBRATION in all: half as many images, each once as it is and once as in training."""
    batches = range(plan.steps, plan.steps + max(1, CALIBRATION // (2 * plan.recipe.batch_size)))
    return [x for step in batches for x in (_images(plan, step)[0], _inputs(plan, step).x)]


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
    quotas = _quotas(plan, state, plan.sparsity)
    return replace(state, admm=admm.update(state.admm, _weights(plan, state), quotas, structure=plan.structure,
                                           growth=plan.recipe.rho_growth, rho_max=plan.recipe.rho_max))


def _quotas(plan: Plan, state: State, sparsity: float) -> dict[str, int]:
    return allocation.quotas(_weights(plan, state), sparsity, method=plan.recipe.allocation, structure=plan.structure,
                             curves=state.curves)


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


def _images(plan: Plan, now: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels (B,) of this step as they are in the data set."""
    epoch, batch = divmod(now, plan.steps_per_epoch)
    first, size = batch * plan.recipe.batch_size, plan.recipe.batch_size
    return plan.split.batch(_order(len(plan.split), plan.seed, epoch)[first:first + size])


def _inputs(plan: Plan, now: int) -> objective.Batch:
    """Batch of this step: images varied at random, with and without noise, and labels."""
    recipe = plan.recipe
    x, y = _images(plan, now)
    draw = generator(plan.seed, "inputs", now, device=x.device)
    x = vary.augment(x, plan.augment, draw)
    mix = torch.rand((), generator=generator(plan.seed, "mix", now)).item() if recipe.cutmix or recipe.mixup else 1.0
    if mix < recipe.cutmix:
        x = vary.cutmix(x, generator=draw)
    elif mix < recipe.cutmix + recipe.mixup:
        x = vary.mixup(x, generator=draw)
    eps = plan.eps if plan.norm == "linf" else plan.eps / math.sqrt(x[0].numel())  # of one pixel, so that sign noise is on the ball
    noisy = vary.add_noise(x, scales=noise_scales(recipe, eps=eps), clean=recipe.noise_clean, generator=draw)
    return objective.Batch(noisy, x, y, labels_hold=mix >= recipe.cutmix + recipe.mixup)


def _attacked(plan: Plan, student: nn.Module, batch: objective.Batch, now: int) -> objective.Batch:
    """The batch, or in a fraction mix_ratio of the steps its adversarial examples for the student: PGD of ATTACK_STEPS steps
    of eps/4 (Jian et al. 2022, sec. V-D) around the images without noise, to which no noise is added either: the ball is the
    threat model's. The label of a mixed image is what the teacher says."""
    if torch.rand((), generator=generator(plan.seed, "attack", now)).item() >= plan.recipe.mix_ratio:
        return batch
    with torch.no_grad():
        labels = batch.labels if batch.labels_hold else plan.teacher(batch.clean).argmax(1)
    with frozen(student):
        found = gradient.pgd(student, batch.clean, labels, eps=plan.eps, norm=plan.norm, steps=ATTACK_STEPS,
                             step_size=plan.eps / 4, every_step=True, generator=generator(plan.seed, "start", now))
    return batch._replace(x=found)


def _forward(plan: Plan, state: State) -> dict[str, Tensor]:
    """Loss terms of this step's batch, before their weights."""
    batch = _attacked(plan, state.student, _inputs(plan, state.step), state.step)
    _train_mode(plan.recipe, state.student)
    torch.manual_seed(_seed(plan.seed, "dropout", state.step))
    return objective.terms(plan.recipe, student=state.student, teacher=plan.teacher, hidden=plan.hidden, batch=batch,
                           num_classes=plan.num_classes)


def _loss(plan: Plan, terms: Mapping[str, Tensor]) -> Tensor:
    weight = objective.weights(plan.recipe)
    return sum(weight[name] * value for name, value in terms.items())


def _averaged(plan: Plan, state: State) -> dict[str, Tensor] | None:
    """The average with the student after this step. It begins with the second phase, as its members then share their masks:
    an average over moving masks would hold weights that the last mask cuts, learned for a denser network."""
    count = state.step + 1 - plan.sparsify_steps
    if not plan.recipe.ema or count < 1:
        return None
    return average.moved(state.average or {}, state.student, decay=plan.recipe.ema, count=count)


def _train_mode(recipe: Recipe, student: nn.Module) -> None:
    student.train()
    if recipe.batch_norm == "freeze":
        for m in student.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.eval()


def _descend(plan: Plan, state: State, loss: Tensor) -> None:
    """One optimiser step, after which masked entries are +0.0 again, whatever momentum says."""
    for group in state.optimizer.param_groups:
        group["lr"] = _learning_rate(plan, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if plan.recipe.clip:
        nn.utils.clip_grad_norm_([p for group in state.optimizer.param_groups for p in group["params"]], plan.recipe.clip)
    state.optimizer.step()
    apply_masks(state.student, state.masks)
