"""How long an evaluation will take on this machine: short versions of its attacks, run and timed on a part of
a block.

An attack's time is cost x samples x seconds per pass and sample, as its short version shows them; attacks
that go on only with what cheaper ones left have as many samples as hold out against the short versions.
"""
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli import attacks
from pwoa_cli.attacks import Attack, autoattack, mixed, parse, stages
from pwoa_cli.data.samples import View, samples
from pwoa_cli.evaluation.evaluate import BLOCK, evaluate
from pwoa_cli.evaluation.results import Evaluation
from pwoa_cli.evaluation.words import WORST
from pwoa_cli.progress import Say
from pwoa_cli.reports.numbers import duration
from pwoa_cli.workflows.evaluate import Job

SECONDS = 12.0  # that the short versions may take together, as far as LEAST samples allow
LEAST = 4  # samples
SPREAD = 2.0  # where it was measured, times lie between the half and twice the estimate (docs/benchmarks.md)
PGD = parse("pgd-10")[0]
SHORT = {
    "apgd": Attack("short apgd", partial(autoattack.apgd_ce, steps=10), cost=30),
    "fab": Attack("short fab", partial(autoattack.fab_t, steps=2), cost=80, min_classes=2),
    "square": Attack("short square", partial(autoattack.square, queries=300), cost=300,
                     needs_gradients=False),
}
_MIXED = {"apgd": partial(mixed.part, name="apgd-ce", steps=10),
          "fab": partial(mixed.part, name="fab-t", steps=2),
          "square": partial(mixed.part, name="square", queries=300)}
SHORT |= {f"mixed {kind}": replace(SHORT[kind], name=f"short mixed {kind}", run=run)
          for kind, run in _MIXED.items()}
LONG = 100  # steps of PGD and CW, above which many samples leave in cycles (attacks/gradient.py)
EARLIEST = 1 / 8  # of its passes: what was left of pgd-1000 on a LeNet (docs/benchmarks.md)
# of the time of a pass: squares shrink, more are known to change nothing
LATER = dict.fromkeys(("square", "mixed square"), 0.7)


@dataclass(frozen=True)
class Estimate:
    """seconds: by attack, of all models together, "clean" with all checks among them; None: of a plug-in,
    whose passes are not known. samples: on which the short versions were timed."""

    seconds: Mapping[str, float | None]
    samples: int

    @property
    def total(self) -> float:
        """Seconds of all that is known."""
        return sum(s for s in self.seconds.values() if s is not None)

    @property
    def least(self) -> float:
        """Seconds that it takes at the least, as far as it was measured."""
        return sum((s or 0.0) * (EARLIEST if _at_most(name) else 1)
                   for name, s in self.seconds.items()) / SPREAD

    def __str__(self) -> str:
        """attacks: about 12m on this machine (6m to 24m): fgsm 0.1s, aa 12m"""
        each = ", ".join(f"{name} {'unknown' if s is None else _at_most(name) + duration(s)}"
                         for name, s in self.seconds.items())
        return (f"attacks: about {duration(self.total)} on this machine, {duration(self.least)} to "
                f"{duration(self.total * SPREAD)}, by short ones on {self.samples} samples: {each}")

    def to_json(self) -> dict[str, Any]:
        """As in the object of `pwoa eval --dry-run --json`."""
        return {"seconds": self.total, "seconds_from": self.least,
                "seconds_to": self.total * SPREAD, "seconds_by_attack": dict(self.seconds),
                "at_most": [name for name in self.seconds if _at_most(name)], "timed_on": self.samples}


def _at_most(name: str) -> str:
    """Before the time of an attack whose samples leave earlier than can be known."""
    found = attacks.plan(name)
    return "at most about " if found and found[1] > LONG else ""


def estimate(job: Job, *, say: Say) -> Estimate:
    """Run the short versions on a part of a block of each model, and count."""
    chosen = sorted(attacks.parse(job.request.attacks), key=lambda attack: attack.cost)
    kinds = {_kind(stage) for attack in chosen for stage in stages(attack)}
    short = [PGD, *(SHORT[kind] for kind in SHORT if kind in kinds)]
    x = samples(job.subject.dataset, job.request.n, seed=job.request.seed)
    say(f"timing short versions of the attacks, on {' and '.join(job.models)}")
    part = _part(list(job.models.values()), x, sum(attack.cost for attack in short))
    total: dict[str, float | None] = {}
    for who, model in job.models.items():
        found = _of_model(model, x, part, short, chosen, job)
        if left := [attack.name for attack in chosen if attack.name not in found]:
            say(f"warning: {who} lets no gradient through to its inputs; not run on it: {', '.join(left)}")
        for name, seconds in found.items():
            before = total.get(name, 0.0)
            total[name] = None if seconds is None or before is None else before + seconds
    times = len(job.radii) or 1  # each point of a curve is an evaluation of its own
    return Estimate({name: seconds and seconds * times for name, seconds in total.items()}, part)


def _part(models: Sequence[nn.Module], x: View, passes: int) -> int:
    """On how many samples the short versions are timed: all of a block, unless so many passes take too
    long."""
    least = x[:LEAST]
    _ = [_pass(model, least) for model in models]  # warm-up
    each = sum(_pass(model, least) for model in models) / len(least)
    return min(len(x), BLOCK, max(LEAST, int(SECONDS / (passes * each))))


def _pass(model: nn.Module, x: Tensor) -> float:
    """Seconds of a pass forwards."""
    start = time.perf_counter()
    with torch.no_grad():
        model(x).sum().item()  # waits for the device
    return time.perf_counter() - start


def _of_model(model: nn.Module, x: View, part: int, short: Sequence[Attack], chosen: Sequence[Attack],
              job: Job) -> dict[str, float | None]:
    """Seconds by attack of one model; without gradient, of the attacks that need none."""
    start, n = time.perf_counter(), len(x)
    timed = evaluate(model, x[:part], x.labels[:part], attacks=short, norm=job.subject.norm,
                     eps=job.subject.eps, seed=job.request.seed, batch_size=job.request.batch_size)
    attacked = sum(r.seconds for name, r in timed.items() if name != WORST)
    checks = time.perf_counter() - start - attacked
    right = holding = n * timed["clean"].accuracy
    found: dict[str, float | None] = {"clean": checks + timed["clean"].seconds * n / part}
    for attack in chosen:
        if attack.version:
            found[attack.name] = None
        elif PGD.name in timed or not attack.needs_gradients:  # without gradient, none that needs one is run
            seconds = 0.0
            for stage in stages(attack):
                seconds += stage.cost * _rate(timed, stage) * (holding if attack.cascade else right)
                holding = n * _held(timed, part)
            found[attack.name] = seconds
    return found


def _kind(attack: Attack) -> str:
    """Which of SHORT an attack is timed by; "" for PGD."""
    if attack.name == "closing":  # APGD in float32
        return "apgd"
    kind = next((kind for kind in ("apgd", "fab", "square") if attack.name.startswith(kind)), "")
    return f"mixed {kind}" if getattr(attack.run, "func", None) is mixed.part else kind


def _rate(timed: Evaluation, attack: Attack) -> float:
    """Seconds for a pass of a sample."""
    kind = _kind(attack)
    short = SHORT.get(kind, PGD)
    result = timed[short.name] if short.name in timed else timed[PGD.name]
    return LATER.get(kind, 1.0) * result.seconds / max(1, int(result.attacked.sum())) / short.cost


def _held(timed: Evaluation, part: int) -> float:
    """Share of the samples that no short version broke; never none, as they are few and weak."""
    return (part * min(r.accuracy for r in timed.values()) + 1) / (part + 2)
