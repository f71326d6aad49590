"""The main path of `pwoa eval`: find model, teacher, data and threat -> attack both on the same samples ->
result.

`pwoa prune` ends with the same measurement.
"""
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli import attacks
from pwoa_cli.checkpoints.model import Loaded, Source
from pwoa_cli.data.choices import Choices
from pwoa_cli.data.samples import View, samples
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import sample_file, security_curve, units
from pwoa_cli.evaluation.comparison import compare, findings, measure, notes
from pwoa_cli.evaluation.evaluate import BLOCK
from pwoa_cli.evaluation.results import Evaluation, by_class, to_json, unfinished_json
from pwoa_cli.evaluation.units import Unfinished
from pwoa_cli.evaluation.words import WORST, told
from pwoa_cli.files import run_folder
from pwoa_cli.files.atomic import each
from pwoa_cli.machine import seeds
from pwoa_cli.machine.devices import device_named
from pwoa_cli.machine.environment import environment
from pwoa_cli.machine.environment import log as log_environment
from pwoa_cli.progress import Progress, Say
from pwoa_cli.reports import curve, schema
from pwoa_cli.reports.gates import Gate, judged, resolved
from pwoa_cli.reports.numbers import radius
from pwoa_cli.reports.write import write
from pwoa_cli.workflows import finished_run
from pwoa_cli.workflows.setup import (
    Subject,
    data_fields,
    data_notes,
    open_subject,
    open_teacher,
    own_code,
    pruned_already,
)
from pwoa_cli.workflows.several import COMPARED, TEACHER, Asked, Several, as_read, open_several


@dataclass(frozen=True)
class Request:
    """What the user asked `pwoa eval` for. source.path: a file, a run folder, or "" for the newest run; eps:
    "8/255"."""

    source: Source
    others: Sequence[Source] = ()  # more models, for one table
    attacks: str = "fgsm,pgd,cw"
    teacher: Source | None = None  # what the model is compared with
    teacher_is_source: bool = False  # the file that the model was pruned from: read as it was then
    alone: bool = False  # a run's model is wanted without its teacher
    data: str | None = None
    choices: Choices = field(default_factory=Choices)
    norm: str | None = None
    eps: str | None = None
    curve: str | None = None  # radii of a security curve: "0,2/255,8/255"
    n: int = 1000
    seed: int = 0
    batch_size: int | None = None
    device: str = "auto"
    max_seconds: float | None = None
    resume: bool = False
    per_class: bool = False
    keep_inputs: bool = False
    gates: Sequence[Gate] = ()
    strict: bool = False


@dataclass(frozen=True)
class Job:
    """A request with everything found and checked. loaded: what to measure, by name: the model last, before
    it what it is compared with. several: whether they are of one table; then the reference, if there is one,
    is the first. kept: what was kept for --resume, filled by `execute`.
    """

    request: Request
    subject: Subject
    loaded: Mapping[str, Loaded]
    device: str
    several: Several | None = None
    kept: list[Unfinished] = field(default_factory=list)

    @property
    def models(self) -> dict[str, nn.Module]:
        """The networks, by the names of `loaded`."""
        return {who: loaded.model for who, loaded in self.loaded.items()}

    @property
    def radii(self) -> tuple[float, ...]:
        """Those at which the attacks are run; the threat's own alone where no curve was asked for."""
        return _radii(self.request, self.subject)


@dataclass(frozen=True, eq=False)
class Outcome:
    """An evaluation: result, the JSON object of `pwoa eval`; found, by model; index and labels of the samples
    (n,)."""

    result: dict[str, Any]
    found: Mapping[str, Evaluation]
    index: Tensor
    labels: Tensor


def prepare(request: Request, *, say: Say) -> Job:
    """Find and check everything before the first attack. Raises: InputError for anything that would fail
    later."""
    attacks.parse(request.attacks)
    if request.curve is not None:  # its numbers; in a norm that is not known yet, radii may be large
        security_curve.radii(request.curve, norm=request.norm or "l2", threat=1.0)
    seeds.check(request.seed)
    device = device_named(request.device)
    log_environment(device=str(device))
    if request.others:
        return _job_of_several(request, device, say=say)
    of_run = not request.source.path or Path(request.source.path).is_dir()
    if of_run:
        request = _of_run(request, Path(request.source.path) if request.source.path else run_folder.newest(),
                          say=say)
    subject = open_subject(request.source, data=request.data, choices=request.choices,
                           norm=request.norm, eps=request.eps,
                           device=device, say=say, attacked=bool(attacks.parse(request.attacks)),
                           near_chance="possible" if of_run else "of pruned")
    _check(request, subject)
    loaded = {"model": subject.loaded}
    if request.teacher is not None:
        like, teacher = subject.loaded, replace(request.teacher, trust_pickle=request.source.trust_pickle)
        if request.teacher_is_source:
            teacher = as_read(teacher, like)
        other, own = (TEACHER, "pruned") if of_run else (COMPARED, "model")
        loaded = {other: open_teacher(teacher, subject, device=device, say=say, flag="--compare"),
                  own: subject.loaded}
    checked = resolved(request.gates, attacks.typed(request.attacks), compared=len(loaded) > 1)
    return Job(replace(request, gates=checked), subject, loaded, str(device))


def _job_of_several(request: Request, device: torch.device, *, say: Say) -> Job:
    """`prepare` for a table of several models."""
    asked = Asked(data=request.data, choices=request.choices, norm=request.norm, eps=request.eps,
                  compare=request.teacher, trust_pickle=request.source.trust_pickle, device=device,
                  attacked=bool(attacks.parse(request.attacks)))
    several = open_several((request.source, *request.others), asked, say=say)
    _check(request, several.subject)
    checked = resolved(request.gates, attacks.typed(request.attacks), compared=bool(several.reference))
    return Job(replace(request, gates=checked), several.subject, several.loaded, str(device), several)


def _check(request: Request, subject: Subject) -> None:
    """Raises: InputError if the attacks do not know the norm, or the data has fewer samples."""
    if named := attacks.parse(request.attacks):
        attacks.check_norm(named, subject.threat[0])
    samples(subject.dataset, request.n, seed=request.seed)
    _radii(request, subject)


def _radii(request: Request, subject: Subject) -> tuple[float, ...]:
    if request.curve is None:
        return () if subject.eps is None else (subject.eps,)
    if subject.norm is None or subject.eps is None or not attacks.parse(request.attacks):
        raise InputError("--curve is accuracy under attack over eps, but no attack is named.",
                         hint="For example: --attacks pgd,cw")
    return security_curve.radii(request.curve, norm=subject.norm, threat=subject.eps)


def _of_run(request: Request, folder: Path, *, say: Say) -> Request:
    """The request for a run: its model; its teacher, if that file is still the same, its data and threat
    unless asked for."""
    run = finished_run.read(folder, say=say)
    teacher = request.teacher or (None if request.alone else finished_run.teacher_source(run))
    if not request.alone and teacher is None and (why := finished_run.no_teacher(run)):
        say(f"warning: its teacher {why[0]}; the pruned model is measured alone ({why[1]})")
    norm, eps = run.threat(request.norm, request.eps)
    return replace(request, source=replace(request.source, path=run.model), teacher=teacher,
                   teacher_is_source=request.teacher is None and run.is_source, norm=norm, eps=eps,
                   choices=request.choices if request.data else request.choices.over(run.choices),
                   data=request.data or run.data)


def execute(job: Job, *, progress: Progress, say: Say) -> Outcome:
    """Attack the model, and what it is compared with on the same samples."""
    request, subject = job.request, job.subject
    x = samples(subject.dataset, request.n, seed=request.seed)
    at = _measuring(job, x, progress=progress, say=say)
    try:
        found = at(subject.eps, keep_inputs=request.keep_inputs)
        over_eps = {} if request.curve is None else security_curve.measured_at(
            job.radii, found, at, at=subject.threat[1])
    finally:
        for kept in job.kept:
            kept.tidy()
    several, (*others, last) = len(found) > 1, found.values()
    if request.resume and not any(kept.taken for kept in job.kept) and any(kept.there for kept in job.kept):
        say("what is finished there is of other samples or attacks, or without the inputs that are wanted "
            "now: nothing was taken over")
    if taken := sum(kept.taken for kept in job.kept):
        say(f"{taken} finished part{'s' * (taken > 1)} of an earlier run {'were' if taken > 1 else 'was'} "
            "taken over")
    seconds = {f"{who} {name}" if several else name: s for who, scores in found.items()
               for name, s in _seconds(scores).items()}
    labels = x.labels.cpu()
    threat = float(subject.eps or 0)
    points = security_curve.points(over_eps, at=threat) or None if over_eps else None
    rises = [doubt for doubt in security_curve.doubts(over_eps).get(threat, [])
             if doubt["check"] == "curve-rises"]
    classes = {who: by_class(scores, labels) for who, scores in found.items()} if request.per_class else None
    models = {who: {"source": loaded.source, "sha256": loaded.sha256, "arch": loaded.arch,
                    "inferred": list(loaded.notes)}
              for who, loaded in job.loaded.items()}
    common: dict[str, Any] = dict(
        norm=subject.norm, eps=subject.eps, seconds=seconds,
        environment=environment(device=job.device, seed=request.seed),
        notes=[*_late(found, job), *_late_curve(points or (), job),
               *data_notes(subject, n=request.n, seed=request.seed),
               *(pruned_already(job.loaded[TEACHER]) if TEACHER in job.loaded else ()), *notes(found),
               *told(rises), *curve.doubts(points or ())],
        findings=[*findings(found), *rises],
        curve=points, classes=classes, attacks=[attack.name for attack in attacks.parse(request.attacks)],
        unfinished={who: unfinished_json(scores, request.n) for who, scores in found.items()},
        data=data_fields(subject, n=request.n, seed=request.seed))
    if job.several:
        result = _of_several(job.several, found, models, common)
    else:
        result = schema.build_eval(
            model=request.source.path, results=to_json(last), models=models,
            teacher=to_json(others[0]) if several else None,
            drop=compare(others[0], last) if several else None, headings=list(found), **common)
    if request.gates:
        result["gates"] = judged(result, request.gates, strict=request.strict)
    return Outcome(result, found, x.index, labels)


def _measuring(job: Job, x: View, *, progress: Progress, say: Say) -> Callable[..., dict[str, Evaluation]]:
    """What measures the models at a radius: all radii share the time of --max-seconds, the threat's own comes
    first."""
    request, start = job.request, time.monotonic()

    def at(eps: float | None, *, keep_inputs: bool = False) -> dict[str, Evaluation]:
        where = "" if eps == job.subject.eps else f"at eps {radius(eps or 0)}, "

        def tell(phase: str, done: int, total: int, text: str = "") -> None:
            progress(phase, done, total, (where + text).rstrip(", "))

        left = None if request.max_seconds is None else max(
            0.0, request.max_seconds - (time.monotonic() - start))
        return measure(job.models, x, norm=job.subject.norm, eps=eps, attack_names=request.attacks,
                       seed=request.seed, batch_size=request.batch_size, progress=tell, say=say, seconds=left,
                       keep_inputs=keep_inputs, unfinished=partial(_unfinished, job, eps=eps, say=say))

    return at


def _of_several(several: Several, found: Mapping[str, Evaluation], models: Mapping[str, dict[str, Any]],
                common: Mapping[str, Any]) -> dict[str, Any]:
    """The report of one table, each model's drop against the reference, paired."""
    reference = several.reference
    entries = {who: models[who] | dict(several.known.get(who, {})) | {
        "scores": to_json(scores),
        "drop": {} if reference in (None, who) else compare(found[str(reference)], scores)}
        for who, scores in found.items()}
    return schema.build_several(models=entries, reference=reference,
                                **dict(common) | {"notes": [*several.notes, *common["notes"]]})


def _unfinished(job: Job, who: str, sha256: str, *, eps: float | None, say: Say) -> Unfinished | None:
    """Where the finished parts of this very evaluation are kept; None, with a warning, where nothing can be
    written."""
    loaded = job.loaded[who]
    reading = (loaded.arch, sorted(loaded.arch_options.items()), loaded.normalisation.mean,
               loaded.normalisation.std)
    key = units.key(loaded.model, who, sha256, job.subject.norm, eps, job.request.seed, BLOCK,
                    job.device, reading, own_code(loaded), units.code())
    kept = Unfinished(run_folder.UNFINISHED / key, reuse=job.request.resume)
    if why := kept.fault():
        say(f"warning: what is finished cannot be kept, so --resume will not go on from it: {why}")
        return None
    if kept.there and not job.request.resume:
        say("warning: finished parts of this very evaluation are there; those of the same attacks will be "
            "replaced. --resume goes on from them")
    job.kept.append(kept)
    if job.request.resume and len(job.kept) == len(job.loaded) and not any(one.there for one in job.kept):
        say("nothing to resume: no finished part of this evaluation is there; it starts from the beginning")
    return kept


def _seconds(scores: Evaluation) -> dict[str, float]:
    """By attack; what went into attacks that were not finished under their names together."""
    found = {name: r.seconds for name, r in scores.items() if name != WORST}
    if scores.unfinished:
        attacks = sum(seconds for name, seconds in found.items() if name != "clean")
        found[f"unfinished {'+'.join(scores.unfinished)}"] = max(0.0, scores.seconds - attacks)
    return found


def _late(found: Mapping[str, Evaluation], job: Job) -> list[str]:
    """What time did not suffice for."""
    request, sentences = job.request, []
    more = ("The same command with --resume goes on." if any(kept.made + kept.taken for kept in job.kept) else
            "Nothing was finished that --resume could go on from: give it more time.")
    for who, evaluation in found.items():
        parts = [f"{name} is done with {part['n']} of {part['of']} samples"
                 for name, part in unfinished_json(evaluation, request.n).items()]
        if parts:
            title = f"{who}: " if len(found) > 1 else ""
            sentences.append(f"{title}unfinished: stopped after {request.max_seconds:g} s: "
                             f"{', '.join(parts)}, so there is no worst case. {more}")
    return sentences


def _late_curve(points: Sequence[Mapping[str, Any]], job: Job) -> list[str]:
    """At which radii time did not suffice for a point of the curve."""
    left = ", ".join(radius(eps) for eps in curve.unfinished({"curve": points}))
    return [f"the curve is unfinished at eps {left}: stopped after {job.request.max_seconds:g} s. The same "
            "command with --resume goes on."] if left else []


def keep(outcome: Outcome, *, folder: Path | None, saved: Path | None) -> None:
    """Write what was asked for, whichever can be written.

    Args: folder: for report.json, report.md and samples.npz. saved: for the samples with their adversarial
    inputs.
    Raises: as `files.atomic.each`.
    """
    save = partial(sample_file.save, found=outcome.found, index=outcome.index, labels=outcome.labels)
    writes = [partial(save, saved, inputs=True)] if saved else []
    if folder:
        folder.mkdir(parents=True, exist_ok=True)  # it may have been removed while the attacks ran
        own = folder / "samples.npz"
        there = saved is not None and saved.resolve() == own.resolve()
        writes = [*([] if there else [partial(save, own, inputs=False)]),
                  partial(write, folder, outcome.result), *writes]
    each(*writes)


def forget(outcome: Outcome, job: Job) -> None:
    """Remove what was kept for --resume, where the figures are shown or written, unless time ran out."""
    if not any(evaluation.unfinished for evaluation in outcome.found.values()
               ) and not curve.unfinished(outcome.result):
        for kept in job.kept:
            kept.clear()


