"""How long a training will take on this machine: a few of its own steps, timed."""
import statistics
import time
from dataclasses import dataclass, replace

from torch import nn

from pwoa_cli import training
from pwoa_cli.cpu import keep_freed_memory

STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """seconds: of the whole training; a step takes seconds_per_step."""

    seconds: float
    seconds_per_step: float
    steps: int

    def __str__(self) -> str:
        """training: about 12 min on this machine (75 ms a step x 9,374 steps)"""
        step = f"{self.seconds_per_step:.2g} s" if self.seconds_per_step >= 1 else f"{1000 * self.seconds_per_step:.0f} ms"
        return f"training: about {_rough(self.seconds)} on this machine ({step} a step x {self.steps:,} steps)"


def _rough(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def measure(plan: training.Plan, student: nn.Module) -> Estimate:
    """Begin the plan and time its first step and then STEPS warm ones; the student is changed, so pass a copy.

    With mix_ratio, attacked and other batches are timed apart and weighed.
    """
    keep_freed_memory()
    start = time.perf_counter()
    state, _ = _timed(plan, training.begin(plan, student))
    once, per_step = time.perf_counter() - start, 0.0  # with what is measured or reconstructed before the first step
    for ratio, share in ((0.0, 1 - plan.recipe.mix_ratio), (1.0, plan.recipe.mix_ratio)):
        if share:
            alike, seconds = replace(plan, recipe=replace(plan.recipe, mix_ratio=ratio)), []
            for _ in range(STEPS):
                state, taken = _timed(alike, state)
                seconds.append(taken)
            per_step += share * statistics.median(seconds)
    return Estimate(once + per_step * (plan.steps - 1), per_step, plan.steps)


def _timed(plan: training.Plan, state: training.State) -> tuple[training.State, float]:
    start = time.perf_counter()
    state, losses = training.step(plan, state)
    losses["loss"].item()  # waits for the device
    return state, time.perf_counter() - start
