"""One step of pruning under self-distillation and the HSIC bottleneck: state in, state and losses out.

    loss = what a recipe asks of the student on one batch (objective.py)  [+ ADMM penalty]

Jian et al. 2022, eq. 5-8.

Everything that changes is in `State`; everything that does not is in `Plan`. Batch, noise and learning rate
are pure functions of (seed, step), so a state stopped anywhere goes on as if it had never stopped. What `run`
remembers beside it, of the steps since its last report, is in the position that it hands out after each step.
"""
import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.errors import PwoaError
from pwoa_cli.machine.memory import keep_freed_memory
from pwoa_cli.machine.seeds import number
from pwoa_cli.progress import Say
from pwoa_cli.pruning import admm
from pwoa_cli.pruning.curves import Curve
from pwoa_cli.training import averaging, force, inputs, masks, objective, schedule
from pwoa_cli.training.masks import hold, sparsity_at
from pwoa_cli.training.recipe import Recipe
from pwoa_cli.training.state import Plan, State, from_dict, masked, on, optimizer_for, to_dict, weights_of

# A loss has exploded if it is not finite, or so many times that of a student that answers all images alike:
# with half of the weights no pruning makes it so large, with fewer the steps after a mask move may come near.
EXPLODED_DENSE, EXPLODED = 1, 3
GROWN = 2  # times the loss of a step that no rate is to blame for: the first, and that of ADMM's hard prune
RATE = 0.25  # what the learning rates are multiplied by then, before all is done again from the start
RESTARTS = 4  # down to 1/256 of the recipe's rate
# after each step: how many are done, and what gives the position, from which another `run` goes on
Keep = Callable[[int, Callable[[], dict[str, Any]]], None]


def begin(plan: Plan, student: nn.Module, *, curves: dict[str, Curve] | None = None) -> State:
    """The state before the first step: nothing masked, curves measured where the allocation needs them and
    none are given."""
    state = State(student, optimizer_for(plan.recipe, student, plan.recipe.lr), masks={}, admm=None, step=0,
                  curves=curves)
    slopes = partial(gradients, plan, state)
    if plan.recipe.allocation == "sensitivity" and curves is None:
        state = replace(state, curves=masks.damage_curves(plan, student, slopes))
    if plan.recipe.method == "admm":
        lost = masks.quotas(plan, state, plan.sparsity, slopes)
        splitting = admm.begin(weights_of(plan, student), plan.groups, lost, rho=plan.recipe.rho)
        state = replace(state, admm=splitting)
    return state


def step(plan: Plan, state: State) -> tuple[State, dict[str, Tensor]]:
    """One optimiser step; returns the next state and the step's losses as detached scalars on the device.

    Order inside a step as in the published code: masks or phase change, forward, HSIC, z/u update, penalty,
    backward.
    """
    state = _enter(plan, state)
    terms = _forward(plan, state)
    if state.admm is not None:
        splitting = _admm_update(plan, state, state.admm)
        state = replace(state, admm=splitting)
        terms["admm"] = admm.penalty(splitting, weights_of(plan, state.student))
    weighted = _weighted(plan, state, terms)
    loss, share = _sum(weighted), force.share(plan, state, weighted)
    _descend(plan, state, loss)
    state = replace(state, step=state.step + 1, average=_averaged(plan, state))
    return state, {name: value.detach() for name, value in (terms | {"loss": loss} | share).items()}


def run(plan: Plan, state: State, *, report: Callable[[State, dict[str, float]], None],
        every: int = 20, restarted: Say = lambda text: None, keep: Keep = lambda step, position: None,
        earlier: Mapping[str, Any] | None = None) -> State:
    """Step until the plan is done; `report` gets the state and the mean losses of every `every` steps: of
    each term over the steps that have it (HSIC's may be in a few, its share of the gradient always is).

    Args: state: of `begin`, with `earlier` too. keep: see Keep; positions hold what `to_dict` says. earlier:
    the position where a run of this very plan was stopped: this one ends as that would have, bit for bit on
    a CPU.

    Where the loss explodes, all is done again from the state given, at a quarter of the rate: `restarted`
    gets a sentence, the state's lr_scale has the rate, and so have the losses reported from then on. At the
    lowest rate a large loss is let pass.
    Raises: PwoaError when a loss is not finite at the lowest rate, or in the first step already, naming the
    step and the terms.
    """
    keep_freed_memory()
    # the optimiser's and the student's tensors change in place
    saved = copy.deepcopy(to_dict(state))
    blind = objective.of_constant(plan.recipe, teacher=plan.teacher, hidden=plan.hidden,
                                  batch=inputs.batch(plan, state.step)) or math.inf
    trail = _Trail(state.step)
    if earlier:
        state = from_dict(plan, state.student, earlier["state"])
        trail = _Trail(**on(next(state.student.parameters()).device, earlier["trail"]))
        saved["lr_scale"] = state.lr_scale
    while True:
        try:
            last = state.lr_scale <= RATE**RESTARTS
            return _run(plan, state, trail, report=report, every=every, keep=keep,
                        blind=math.inf if last else blind)
        except _Explosion as explosion:
            if explosion.at_once or last:
                raise PwoaError(f"The loss is not finite by step {explosion.step} of {plan.steps}: "
                                f"{explosion}.", hint=_RHO if str(explosion) == "admm, loss" else _RATE
                                ) from None
            saved["lr_scale"] *= RATE
            restarted(f"the loss exploded by step {explosion.step} of {plan.steps} ({explosion}): once "
                      f"more from step {saved['step']}, at {saved['lr_scale']:g} of the recipe's learning "
                      "rate.")
            state = from_dict(plan, state.student, copy.deepcopy(saved))
            trail = _Trail(state.step)


@dataclass
class _Trail:
    """What a run remembers of its steps: the first one; the losses since the last report, by term; the loss
    of the last step that no rate is to blame for."""

    start: int
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    blameless: Tensor = field(default_factory=partial(torch.tensor, 0.0))


_RATE = "Limit the gradient, or lower the learning rate: pwoa prune ... --set clip=5, or --set lr=1e-4"
_RHO = "The splitting's penalty alone grows too large: pwoa prune ... --set rho=0.01 --set rho_max=1"


class _Explosion(Exception):
    """A loss that cannot come back. at_once: in the first step already, so that no rate helps."""

    def __init__(self, what: str, step: int, *, at_once: bool):
        super().__init__(what)
        self.step, self.at_once = step, at_once


def _run(plan: Plan, state: State, trail: _Trail, *, report: Callable[[State, dict[str, float]], None],
         every: int, keep: Keep, blind: float) -> State:
    """`run` at one rate. Args: blind: loss of a student that answers all alike. Raises: _Explosion."""
    pruned_hard = plan.sparsify_steps if plan.recipe.method == "admm" else trail.start
    while state.step < plan.steps:
        state, losses = step(plan, state)
        if state.step - 1 in (trail.start, pruned_hard):
            trail.blameless = torch.as_tensor(_distilled(plan, losses))
        for name, value in losses.items():
            trail.seen.setdefault(name, []).append(value)
        if state.step % every == 0 or state.step in (plan.sparsify_steps, plan.steps):
            means = _sound(plan, state, trail, every=every, blind=blind)
            report(state, means | ({"lr_scale": state.lr_scale} if state.lr_scale != 1 else {}))
            trail.seen = {}
        keep(state.step, partial(_position, state, trail))
    finish(plan, state)
    # of the last step, whose loss nobody saw; batch norms' statistics, which no loss in training sees
    if bad := [name for name, t in state.student.state_dict().items() if not t.isfinite().all()]:
        raise _Explosion(f"weights {bad[0]}", state.step, at_once=False)
    return state


def _sound(plan: Plan, state: State, trail: _Trail, *, every: int, blind: float) -> dict[str, float]:
    """Mean losses of the steps since the last report. Raises: _Explosion if nothing can come of them."""
    # the device is waited for once
    found = torch.stack([torch.stack(values).mean() for values in trail.seen.values()]).tolist()
    means = dict(zip(trail.seen, found, strict=True))
    if bad := [name for name, value in means.items() if not math.isfinite(value)]:
        at_once = state.step - trail.start <= every and not math.isfinite(trail.seen["loss"][0].item())
        raise _Explosion(", ".join(bad), state.step, at_once=at_once)
    limit = blind * (EXPLODED_DENSE if _sparsity(plan, state) <= 0.5 else EXPLODED)
    distilled = _distilled(plan, means)
    if distilled > max(limit, GROWN * trail.blameless.item()):
        raise _Explosion(f"{distilled:.3g}", state.step, at_once=False)
    if distilled > blind / 2 and _dead(plan, state):
        raise _Explosion("every image gets the same answer", state.step, at_once=False)
    return means


def _position(state: State, trail: _Trail) -> dict[str, Any]:
    """What `run` takes as `earlier`: tensors that the next step changes in place, so write or copy it
    before."""
    return {"state": to_dict(state), "trail": vars(trail)}


def _distilled(plan: Plan, losses: Mapping[str, Any]) -> Any:
    """The loss without the splitting's penalty, which grows with rho, and HSIC, which cannot explode (it lies
    between 0 and the images of a batch) and which not every step has."""
    weight = objective.weights(plan.recipe)
    apart = ("admm", *objective.BOTTLENECK)
    return sum(weight[name] * value for name, value in losses.items() if name in weight.keys() - apart)


def finish(plan: Plan, state: State) -> None:
    """Turn the student, in place, into what is saved: the average of its weights, batch-norm statistics taken
    again.

    Done once more it changes nothing.
    """
    if state.average is not None:
        state.student.load_state_dict(state.average)
    if plan.recipe.bn_reestimate:
        varied = plan.recipe.bn_inputs == "varied"
        later = range(plan.steps, plan.steps + plan.recipe.bn_reestimate)
        batches = (inputs.batch(plan, now).x if varied else inputs.images(plan, now)[0] for now in later)
        averaging.reestimate(state.student, batches)


def _dead(plan: Plan, state: State) -> bool:
    """Whether the student answers all images alike, as one whose units are all off does for ever."""
    x = inputs.batch(plan, state.step - 1).x
    with torch.no_grad():
        logits, told = (model.eval()(x).float().var(0, correction=0).sum()
                        for model in (state.student, plan.teacher))
    return bool(logits < 1e-8 * told)  # a teacher that does so too is not to be left behind


def _sparsity(plan: Plan, state: State) -> float:
    """Of the masks that there are."""
    kept = [mask.sum() for name, mask in state.masks.items() if name in plan.weights]
    total = sum(mask.numel() for name, mask in state.masks.items() if name in plan.weights)
    return 1 - int(torch.stack(kept).sum()) / total if kept else 0.0


def _enter(plan: Plan, state: State) -> State:
    """Phase changes and mask moves that are due before this step."""
    recipe, now = plan.recipe, state.step
    hard_prune = recipe.method == "admm" and now == plan.sparsify_steps
    if hard_prune or (recipe.finetune_lr and now == plan.sparsify_steps):
        fresh = optimizer_for(recipe, state.student, recipe.finetune_lr or recipe.lr)
        state = replace(state, optimizer=fresh, admm=None)
    slopes = partial(gradients, plan, state)
    if state.admm is not None and now and now % plan.steps_per_epoch == 0:
        lost = masks.quotas(plan, state, plan.sparsity, slopes)
        again = admm.begin_epoch(state.admm, weights_of(plan, state.student), plan.groups, lost)
        state = replace(state, admm=again)
    due = now <= plan.sparsify_steps and (not now or sparsity_at(plan, now) != sparsity_at(plan, now - 1))
    if hard_prune or (recipe.method == "ramp" and due):
        sparsity = plan.sparsity if hard_prune else sparsity_at(plan, now)
        state = masked(state, masks.moved(plan, state, sparsity, slopes))
    return state


def gradients(plan: Plan, state: State) -> dict[str, Tensor]:
    """Gradient of this step's loss with respect to the weights, pruned ones included; the student stays as it
    is."""
    weights = weights_of(plan, state.student)
    buffers = {name: b.clone() for name, b in state.student.named_buffers()}
    loss = _sum(_weighted(plan, state, _forward(plan, state)))
    # of what a pass leaves out, as blocks that are skipped at random, they are zero
    slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for name, buffer in state.student.named_buffers():
            buffer.copy_(buffers[name])
    return dict(zip(weights, slopes, strict=True))


def _admm_update(plan: Plan, state: State, splitting: admm.Admm) -> admm.Admm:
    """The z/u update at the first batch of every `admm_every`-th epoch but the first."""
    period = plan.recipe.admm_every * plan.steps_per_epoch
    if state.step == 0 or state.step % period:
        return splitting
    lost = masks.quotas(plan, state, plan.sparsity, partial(gradients, plan, state))
    return admm.update(splitting, weights_of(plan, state.student), plan.groups, lost,
                       growth=plan.recipe.rho_growth, rho_max=plan.recipe.rho_max)


def _learning_rate(plan: Plan, now: int) -> float:
    recipe = plan.recipe
    common = {"steps_per_epoch": plan.steps_per_epoch, "period": recipe.admm_every}
    if not recipe.finetune_lr:
        return schedule.learning_rate(recipe.schedule, recipe.lr, step=now, steps=plan.steps, **common)
    if now < plan.sparsify_steps:
        return schedule.learning_rate(recipe.schedule, recipe.lr, step=now, steps=plan.sparsify_steps,
                                      **common)
    return schedule.learning_rate(recipe.finetune_schedule, recipe.finetune_lr,
                                  step=now - plan.sparsify_steps,
                                  steps=plan.steps - plan.sparsify_steps, **common)


def _forward(plan: Plan, state: State) -> dict[str, Tensor]:
    """Loss terms of this step's batch, before their weights."""
    batch = inputs.attacked(plan, state.student, inputs.batch(plan, state.step), state.step)
    _train_mode(plan.recipe, state.student)
    torch.manual_seed(number(plan.seed, "dropout", state.step))
    # a look goes twice through its graph, which a compiled one does not allow
    terms = objective.terms if force.looks(plan, state.step) else plan.terms
    return terms(objective.at_step(plan.recipe, state.step), student=state.student, teacher=plan.teacher,
                 hidden=plan.hidden, batch=batch, num_classes=plan.num_classes)


def _weighted(plan: Plan, state: State, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weight = objective.weights(objective.at_step(plan.recipe, state.step))
    return {name: weight[name] * value for name, value in terms.items()}


def _sum(weighted: Mapping[str, Tensor]) -> Tensor:
    total = sum(weighted.values())
    assert isinstance(total, Tensor)  # `Recipe` refuses to teach nothing
    return total


def _averaged(plan: Plan, state: State) -> dict[str, Tensor] | None:
    """The average with the student after this step. It begins with the second phase, as its members then
    share their masks: an average over moving masks would hold weights that the last mask cuts, learned for a
    denser network."""
    count = state.step + 1 - plan.sparsify_steps
    if not plan.recipe.ema or count < 1:
        return None
    return averaging.moved(state.average or {}, state.student, decay=plan.recipe.ema, count=count)


def _train_mode(recipe: Recipe, student: nn.Module) -> None:
    student.train()
    if recipe.batch_norm == "freeze":
        for m in student.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.eval()


def _descend(plan: Plan, state: State, loss: Tensor) -> None:
    """One optimiser step, after which masked entries are +0.0 again, whatever momentum says."""
    for group in state.optimizer.param_groups:
        group["lr"] = state.lr_scale * _learning_rate(plan, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if plan.recipe.clip:
        nn.utils.clip_grad_norm_([p for group in state.optimizer.param_groups for p in group["params"]],
                                 plan.recipe.clip)
    state.optimizer.step()
    hold(state.student, state.factors)
