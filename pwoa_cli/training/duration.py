"""How long a training will take on this machine: a few of its own steps, timed."""
import statistics
import time
from dataclasses import dataclass, replace

from torch import nn

from pwoa_cli.machine.memory import keep_freed_memory
from pwoa_cli.training import loop
from pwoa_cli.training.recipe import Recipe
from pwoa_cli.training.state import Plan, State

STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """seconds: of the whole training; a step takes seconds_per_step. work: images of a step x millions of
    prunable weights."""

    seconds: float
    seconds_per_step: float
    steps: int
    work: float

    def __str__(self) -> str:
        """training: about 12 min on this machine (75 ms a step x 9,374 steps; 0.9 ms per million weights and
        image)"""
        return (f"training: about {_rough(self.seconds)} on this machine ({_short(self.seconds_per_step)} a "
                f"step x {self.steps:,} steps; {_short(self.seconds_per_step / self.work)} per million "
                "weights and image)")


def _short(seconds: float) -> str:
    """Two digits at least: 2.5 s, 265 ms, 7.7 ms, 0.043 ms."""
    if seconds >= 1:
        return f"{seconds:.2g} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"


def _rough(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def work(plan: Plan, student: nn.Module) -> float:
    """Images of a step x millions of prunable weights: what the cost of a step is told by."""
    return plan.recipe.batch_size * sum(student.get_parameter(name).numel() for name in plan.weights) / 1e6


def measure(plan: Plan, student: nn.Module) -> Estimate:
    """Begin the plan and time its first step and then STEPS warm ones; the student is changed, so pass a
    copy.

    Attacked batches and others, steps with HSIC and without are timed apart and weighed.
    """
    keep_freed_memory()
    start = time.perf_counter()
    state, _ = _timed(plan, loop.begin(plan, student))
    # with what is measured or reconstructed before the first step
    once, per_step = time.perf_counter() - start, 0.0
    for alike, share in _kinds(plan.recipe):
        seconds = []
        for _ in range(STEPS):
            state, taken = _timed(replace(plan, recipe=alike), state)
            seconds.append(taken)
        per_step += share * statistics.median(seconds)
    return Estimate(once + per_step * (plan.steps - 1), per_step, plan.steps, work(plan, student))


def _kinds(recipe: Recipe) -> list[tuple[Recipe, float]]:
    """Recipes all of whose steps take as long as some of this one's, with the share of those."""
    ratio, every = recipe.mix_ratio, recipe.hsic_every
    batches = [({"mix_ratio": 0.0}, 1 - ratio), ({"mix_ratio": 1.0}, ratio)]
    terms: list[tuple[dict[str, float], float]] = [({"hsic_every": 1}, 1 / every),
                                                   ({"lambda_x": 0.0, "lambda_y": 0.0}, 1 - 1 / every)]
    return [(replace(recipe, **batch, **term), of_batch * of_term)  # type: ignore[arg-type]
            for batch, of_batch in batches for term, of_term in terms if of_batch * of_term]


def _timed(plan: Plan, state: State) -> tuple[State, float]:
    start = time.perf_counter()
    state, losses = loop.step(plan, state)
    losses["loss"].item()  # waits for the device
    return state, time.perf_counter() - start
