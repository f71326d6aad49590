"""The search of `pwoa prune --max-loss`: train a stage from the last accepted student -> attack it on images
held out -> accept or refuse -> the next sparsity, until nothing is left between.

A stage is accepted where the upper end of the paired 95% interval of what the worst case loses against the
teacher is at most the limit.
"""
import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from pwoa_cli import attacks
from pwoa_cli.attacks.base import frozen
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.comparison import compare, measure
from pwoa_cli.evaluation.intervals import paired_drop
from pwoa_cli.evaluation.results import Evaluation
from pwoa_cli.evaluation.words import in_points
from pwoa_cli.machine.seeds import number
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import Normalized
from pwoa_cli.progress import Progress, Say
from pwoa_cli.reports import numbers
from pwoa_cli.reports.gates import deciding
from pwoa_cli.training import duration
from pwoa_cli.training.recipe import EFFORT
from pwoa_cli.workflows.held_out import PARTS
from pwoa_cli.workflows.prune_job import at_sparsity
from pwoa_cli.workflows.prune_request import Job
from pwoa_cli.workflows.search import Search, Stage, next_sparsity, up_to

# job of a stage, what its lines in metrics.jsonl say -> student, notes of rates that were lowered
Train = Callable[[Job, Mapping[str, Any], Progress], tuple[nn.Module, list[str]]]
SIDES = ("teacher", "pruned")


@dataclass(frozen=True)
class Found:
    """What a search ends with. job: that of the accepted sparsity; student: as it was accepted; notes: of its
    training; table: the way there, as in report.json."""

    job: Job
    student: nn.Module
    notes: list[str]
    table: dict[str, Any]


def find(job: Job, *, train: Train, say: Say, progress: Progress,
         earlier: Mapping[str, Any] | None = None,
         over: Callable[[Mapping[str, Any]], None] = lambda way: None) -> Found:
    """The sparsest student, by stages, that keeps the limit of a job with images held out.

    Args: train: trains a stage. over: gets, after each stage, what the search goes on from, plain values and
    tensors; earlier: such a one, of the same job. Raises: InputError if the images held out cannot tell, or
    no sparsity keeps the limit.
    """
    job.seconds.update({"sparsify": 0.0, "finetune": 0.0, "search": 0.0})
    teacher = _attacked(job, job.teacher.model, SIDES[0], progress=progress, say=say)
    _check_can_tell(job, teacher)
    search, found = Search(layers.zeros_of(job.counted.weights)), Found(job, job.subject.model, [], {})
    if earlier is not None:
        search, found = _of_earlier(job, earlier)
        job.seconds.update(earlier["seconds"])
        say(f"goes on after stage {len(search.stages)}")
    while (sparsity := next_sparsity(search)) is not None:
        try:
            stage_job = at_sparsity(job, sparsity)
        except InputError as error:
            say(f"{_percent(sparsity)} is left out: {error.message}")
            search = replace(search, unreachable=(*search.unreachable, sparsity))
            continue
        named = partial(_named, progress, len(search.stages) + 1, sparsity)
        student, notes = _trained(stage_job, found.student, search, train=train, say=say, progress=named)
        stage = _judged(stage_job, teacher, _attacked(job, student, SIDES[1], progress=named, say=say))
        search = replace(search, stages=(*search.stages, stage))
        say(_verdict(job, stage, len(search.stages)))
        if stage.accepted:
            found = Found(stage_job, student, [*found.notes, *notes], {})
        over(_kept(job, search, found))
    if search.accepted is None:
        raise _nothing(job, search)
    return replace(found, table=_table(job, teacher, search))


def _kept(job: Job, search: Search, found: Found) -> dict[str, Any]:
    """How far a search is and what it took, as plain values and tensors."""
    accepted = search.accepted is not None
    return {"search": json.dumps(asdict(search)), "notes": list(found.notes),
            "student": found.student.state_dict() if accepted else None,
            "seconds": {phase: job.seconds[phase] for phase in ("sparsify", "finetune", "search")}}


def _of_earlier(job: Job, earlier: Mapping[str, Any]) -> tuple[Search, Found]:
    """The inverse of `_kept`, for the same job."""
    words = json.loads(earlier["search"])
    stages = [Stage(**{**stage, "ci95": tuple(stage["ci95"])}) for stage in words["stages"]]
    search = Search(words["begun"], tuple(stages), tuple(words["unreachable"]))
    if search.accepted is None:
        return search, Found(job, job.subject.model, list(earlier["notes"]), {})
    student = copy.deepcopy(job.subject.model).eval()
    student.load_state_dict(earlier["student"])
    accepted = at_sparsity(job, search.accepted.sparsity)
    return search, Found(accepted, student, list(earlier["notes"]), {})


# --- a stage ---------------------------------------------------------------

def _trained(job: Job, start: nn.Module, search: Search, *, train: Train, say: Say,
             progress: Progress) -> tuple[nn.Module, list[str]]:
    """A student of the job's sparsity that begins as `start`, the last one that was accepted."""
    count, plan = len(search.stages) + 1, job.plan
    say(f"stage {count}: {_percent(plan.sparsity)} zeros from {_percent(_begun(search))}, {plan.steps} steps")
    loaded = replace(job.subject.loaded, model=cast(Normalized, start))
    # a seed of its own: a stage that saw the same batches again would learn less
    plan = replace(plan, begun=_begun(search), seed=number(plan.seed, "stage", count))
    stage = replace(job, subject=replace(job.subject, loaded=loaded), plan=plan, seconds={})
    student, notes = train(stage, {"stage": count, "sparsity": plan.sparsity}, progress)
    for phase, seconds in stage.seconds.items():
        job.seconds[phase] = job.seconds.get(phase, 0.0) + seconds
    return student, [f"Stage {count}: {note}" for note in notes]


def _begun(search: Search) -> float:
    return search.accepted.sparsity if search.accepted else 0.0


def _attacked(job: Job, model: nn.Module, who: str, *, progress: Progress, say: Say) -> Evaluation:
    """The flags of a model on the images held out."""
    assert job.held_out is not None
    subject, start = job.subject, time.perf_counter()
    found = measure({who: model}, job.held_out, norm=subject.norm, eps=subject.eps,
                    attack_names=job.request.attacks, seed=job.request.seed, progress=progress, say=say)[who]
    job.seconds["search"] += time.perf_counter() - start
    return found


def _judged(job: Job, teacher: Evaluation, student: Evaluation) -> Stage:
    """What the stage loses in the last figure: the worst case, or the only attack.

    A student whose figures must not be believed, though the teacher's may, is refused: of many students the
    search would take the one that only hides its gradients.
    """
    known = {finding.check for finding in teacher.findings if finding.unreliable}
    doubts = [finding.text for finding in student.findings
              if finding.unreliable and finding.check not in known]
    doubts += [f"{name} has no figure." for name in teacher if name not in student]
    drop, plan = list(compare(teacher, student).values())[-1], job.plan
    low, high = drop["ci95"]
    kept = high <= _limit(job)
    return Stage(plan.sparsity, plan.steps, plan.steps / plan.steps_per_epoch, drop["points"], (low, high),
                 accepted=kept and not doubts, why=doubts[0] if kept and doubts else "")


def _limit(job: Job) -> float:
    assert job.request.max_loss is not None
    return job.request.max_loss


# --- what is said ---------------------------------------------------------------

def _named(progress: Progress, count: int, sparsity: float, phase: str, done: int, total: int,
           text: str) -> None:
    progress(phase, done, total, f"stage {count}, {_percent(sparsity)} | {text}".rstrip(" |"))


def _percent(sparsity: float) -> str:
    return f"{numbers.percent_of_weights(sparsity)}%"


def _loss(stage: Stage) -> str:
    return f"{numbers.with_interval({'points': stage.points, 'ci95': stage.ci95})} points"


def _verdict(job: Job, stage: Stage, count: int) -> str:
    asked = f"at most {_limit(job):g} wanted"
    end = "accepted" if stage.accepted else f"refused: {stage.why}" if stage.why else f"refused, {asked}"
    return f"stage {count}: {_percent(stage.sparsity)} loses {_loss(stage)}: {end}"


def _table(job: Job, teacher: Evaluation, search: Search) -> dict[str, Any]:
    """`search` of report.json."""
    return {"max_loss": _limit(job), "attack": list(teacher)[-1], "held_out": len(job.held_out or ()),
            "stages": [asdict(stage) for stage in search.stages], "unreachable": list(search.unreachable)}


# --- what ends it ---------------------------------------------------------------

def _check_can_tell(job: Job, teacher: Evaluation) -> None:
    """Every attack has a figure, and a student that answers as the teacher does would be accepted."""
    asked = [attack.name for attack in attacks.parse(job.request.attacks)]
    if missing := [name for name in asked if name not in teacher]:
        others = ",".join(name for name in asked if name in teacher)
        raise InputError(f"{missing[0]} has no figure for the teacher, so its worst case is not known.",
                         hint=f"Leave it out: --attacks {others}" if others else
                         "One that needs no gradient: --attacks square")
    name, last = list(teacher.items())[-1]
    needed, high = last.n, _of_equals(last.accuracy, last.n)
    while _of_equals(last.accuracy, needed) > _limit(job):
        needed = math.ceil(1.05 * needed)
    if needed > last.n:
        raise InputError(f"--max-loss {_limit(job):g}: on {last.n:,} images held out, even a model that "
                         f"loses nothing has an interval up to {high:.2g} points of {name}.",
                         hint=_more(job, needed, enough=high))


def _of_equals(accuracy: float, n: int) -> float:
    """Upper end in points of the paired interval of two models that are right on the same of n samples."""
    flags = torch.arange(n) < round(accuracy * n)
    return in_points(*paired_drop(flags, flags))["ci95"][1]


def _nothing(job: Job, search: Search) -> InputError:
    """The error that no sparsity keeps the limit."""
    if not search.stages:
        return InputError(f"--structure {job.request.structure} allows none of the sparsities down to "
                          f"{_percent(min(search.unreachable))}.", hint="--structure unstructured")
    least, count = min(search.stages, key=lambda stage: stage.sparsity), len(job.held_out or ())
    gap = _limit(job) - least.points
    message = (f"No sparsity was found that loses at most {numbers.points(_limit(job))}: "
               f"{_percent(least.sparsity)} loses {_loss(least)} on {count:,} training images held out")
    if least.why:
        return InputError(f"{message}, and is refused: {least.why}", hint=f"Longer stages: {_longer(job)}")
    if gap <= 0:
        more = _up(least.ci95[1])
        return InputError(f"{message}.", hint=f"Longer stages: {_longer(job)}"
                                              f"{f', or --max-loss {more}' * (float(more) < 100)}")
    needed = deciding(count, half=least.ci95[1] - least.points, gap=gap)
    return InputError(f"{message}: only its interval is beyond, and about {needed:,} images would decide.",
                      hint=_more(job, needed, enough=least.ci95[1]))


def _longer(job: Job) -> str:
    """The option that makes stages longer: epochs that were named are no other's to multiply."""
    recipe = job.plan.recipe
    if "epochs" in job.request.overrides or recipe.effort == "max":
        return f"--epochs {5 * EFFORT[recipe.effort] * recipe.epochs:g}"
    return "--effort max"


def _more(job: Job, needed: int, *, enough: float) -> str:
    """The next command to try where images are too few: more of them, where there are, or a limit."""
    there = len(job.subject.dataset.train) + len(job.held_out or ())
    more = f"--held-out {needed}, or " if needed <= there // PARTS else ""
    return f"{more}--max-loss {_up(enough)}"


def _up(points: float) -> str:
    """Rounded up to two digits that count."""
    digits = 1 - math.floor(math.log10(max(points, 1e-6)))
    return f"{math.ceil(points * 10**digits) / 10**digits:g}"


# --- how long it takes ---------------------------------------------------------------

RANGE = (0.5, 0.99)  # of the weights that are there: an estimate is made for these two answers
_TIMED = 32  # images


def times(job: Job, one: duration.Estimate) -> list[dict[str, Any]]:
    """Stages, steps and seconds of a search that ends at either end of RANGE, from the time of a step."""
    begun, attacked, found = layers.zeros_of(job.counted.weights), _seconds_of_attacks(job), []
    for highest in RANGE:
        steps: list[int] = []
        for sparsity in up_to(begun, begun + highest * (1 - begun)):
            with suppress(InputError):  # it cannot be reached, and costs nothing
                steps.append(at_sparsity(job, sparsity).plan.steps)
        seconds = sum(steps) * one.seconds_per_step + (len(steps) + 1) * attacked
        found.append({"highest": highest, "stages": len(steps), "steps": sum(steps), "seconds": seconds})
    return found


def _seconds_of_attacks(job: Job) -> float:
    """Of one model, from the passes that they are known to need and one there and back, timed when warm."""
    assert job.held_out is not None
    model, x = job.teacher.model, job.held_out[:_TIMED].requires_grad_()
    with frozen(model):
        for _ in range(2):
            start = time.perf_counter()
            torch.autograd.grad(model(x).sum(), x)[0].sum().item()  # waits for the device
            seconds = time.perf_counter() - start
    passes = sum(attack.cost for attack in attacks.parse(job.request.attacks)) * len(job.held_out)
    return passes * seconds / (3 * len(x))  # a backward pass counts twice


def words(found: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for people."""
    ends = ", ".join(f"{numbers.duration(one['seconds'])} ({one['stages']} stages, {one['steps']:,} steps) "
                     f"if it ends at {_percent(one['highest'])}" for one in found)
    return f"search: about {ends}, attacks on the images held out included"
