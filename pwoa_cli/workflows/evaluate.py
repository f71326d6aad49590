"""The main path of `pwoa eval`: find model, teacher, data and threat -> attack both on the same samples ->
result.

`pwoa prune` ends with the same measurement.
"""
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pwoa_cli import attacks
from pwoa_cli.checkpoints import hub
from pwoa_cli.checkpoints.architecture import is_file
from pwoa_cli.checkpoints.model import Loaded, Source
from pwoa_cli.checkpoints.shards import checkpoint_sha256
from pwoa_cli.data import datasets
from pwoa_cli.data.choices import Choices, of_report
from pwoa_cli.data.samples import samples
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import sample_file, units
from pwoa_cli.evaluation.comparison import compare, findings, measure, notes
from pwoa_cli.evaluation.evaluate import BLOCK
from pwoa_cli.evaluation.results import Evaluation, by_class, to_json, unfinished_json
from pwoa_cli.evaluation.units import Unfinished
from pwoa_cli.evaluation.words import WORST
from pwoa_cli.files import run_folder
from pwoa_cli.files.atomic import each
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.files.plain import read_json
from pwoa_cli.machine import seeds
from pwoa_cli.machine.devices import device_named
from pwoa_cli.machine.environment import environment
from pwoa_cli.progress import Progress, Say
from pwoa_cli.reports import schema
from pwoa_cli.reports.gates import Gate, judged, resolved
from pwoa_cli.reports.write import write
from pwoa_cli.workflows.setup import Subject, data_fields, data_notes, open_subject, open_teacher

TEACHER = "teacher"


@dataclass(frozen=True)
class Request:
    """What the user asked `pwoa eval` for. source.path: a file, a run folder, or "" for the newest run; eps:
    "8/255"."""

    source: Source
    attacks: str = "fgsm,pgd,cw"
    teacher: Source | None = None  # what the model is compared with
    teacher_is_source: bool = False  # the file that the model was pruned from: read as it was then
    data: str | None = None
    choices: Choices = field(default_factory=Choices)
    norm: str | None = None
    eps: str | None = None
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
    it what it is compared with. kept: what was kept for --resume, filled by `execute`.
    """

    request: Request
    subject: Subject
    loaded: Mapping[str, Loaded]
    device: str
    kept: list[Unfinished] = field(default_factory=list)

    @property
    def models(self) -> dict[str, nn.Module]:
        """The networks, by the names of `loaded`."""
        return {who: loaded.model for who, loaded in self.loaded.items()}


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
    seeds.check(request.seed)
    device = device_named(request.device)
    of_run = not request.source.path or Path(request.source.path).is_dir()
    if of_run:
        request = _of_run(request, Path(request.source.path) if request.source.path else run_folder.newest(),
                          say=say)
    subject = open_subject(request.source, data=request.data, choices=request.choices,
                           norm=request.norm, eps=request.eps,
                           device=device, say=say, near_chance="possible" if of_run else "of pruned")
    attacks.check_norm(attacks.parse(request.attacks), subject.norm)
    samples(subject.dataset, request.n, seed=request.seed)  # n fits the data
    loaded = {"model": subject.loaded}
    if request.teacher is not None:
        like, teacher = subject.loaded, replace(request.teacher, trust_pickle=request.source.trust_pickle)
        if request.teacher_is_source:
            teacher = replace(teacher, arch=like.arch, options=like.arch_options, mean=like.mean or (),
                              std=like.std or ())
        other, own = (TEACHER, "pruned") if of_run else ("compared", "model")
        loaded = {other: open_teacher(teacher, subject, device=device, say=say, flag="--compare"),
                  own: subject.loaded}
    checked = resolved(request.gates, attacks.typed(request.attacks), compared=len(loaded) > 1)
    return Job(replace(request, gates=checked), subject, loaded, str(device))


def _of_run(request: Request, folder: Path, *, say: Say) -> Request:
    """The request for a run: its model; its teacher, if that file is still the same, its data and threat
    unless asked for."""
    missing = [name for name in run_folder.FINISHED if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is no finished run: a folder without {' and '.join(missing)}.",
                         hint="Name a finished run's folder, or the checkpoint itself.")
    made = schema.validate(read_json(folder / "report.json"), where=str(folder / "report.json"))
    say(f"run: {folder}")
    model = made["model"]
    if model.get("file_sha256") not in (None, file_sha256(folder / "model.safetensors")):
        raise InputError(f"{folder} is of two runs: its model.safetensors is not the one that its "
                         "report.json is of.",
                         hint=f"Measure the file by itself: pwoa eval {folder / 'model.safetensors'}")
    # the very file that was pruned is read as it was then, --arch, --mean, --std, --entry and --keep included
    is_source = request.teacher is None and model.get("teacher_sha256") == model["sha256"]
    teacher = request.teacher or _same_file(run_folder.beside(model.get("teacher", model["source"]), folder),
                                            model.get("teacher_sha256", model["sha256"]),
                                            model.get("reading", {}) if is_source else {}, say=say)
    norm = request.norm or made["threat"]["norm"]
    eps = request.eps or (repr(made["threat"]["eps"]) if norm == made["threat"]["norm"] else None)
    return replace(request, source=replace(request.source, path=str(folder / "model.safetensors")),
                   teacher=teacher, teacher_is_source=is_source, norm=norm, eps=eps,
                   choices=request.choices if request.data or request.choices != Choices() else
                   of_report(made["data"].get("choices", {})),
                   data=request.data or _data_of(made["data"], folder))


def _data_of(data: Mapping[str, Any], folder: Path) -> str:
    """The --data of a run, where it is now. Raises: InputError if it is a file or folder that has gone."""
    name = data.get("argument", data["name"])
    where = name if name in datasets.KNOWN else run_folder.beside(name, folder)
    if where not in datasets.KNOWN and not os.path.exists(os.path.expanduser(where)):
        raise InputError(f"{name}, the data of {folder}, is not there any more.",
                         hint="Name it: --data FILE, a folder or a known data set.")
    return where


def _same_file(path: str, sha256: str, reading: Mapping[str, Any], *, say: Say) -> Source | None:
    """The teacher of a run. Args: reading: which of several models in its file it was, and other choices of
    its reader."""
    if hub.is_name(path):  # a report may come from anybody: nothing is fetched because it says so
        say(f"warning: its teacher is {path}, which may have to be downloaded; the pruned model is measured "
            f"alone (--compare {shlex.quote(path)} names it)")
        return None
    if not Path(path).is_file():
        say(f"warning: its teacher {path} is not there any more; the pruned model is measured alone "
            "(--compare FILE names one)")
        return None
    if checkpoint_sha256(path) != sha256:
        raise InputError(f"{path} is not the file that the run was distilled from: its SHA-256 differs.",
                         hint="Name the teacher: --compare FILE")
    return Source(path, entry=reading.get("entry"), keep=reading.get("keep"))


def execute(job: Job, *, progress: Progress, say: Say) -> Outcome:
    """Attack the model, and what it is compared with on the same samples."""
    request, subject = job.request, job.subject
    x = samples(subject.dataset, request.n, seed=request.seed)
    try:
        found = measure(job.models, x, norm=subject.norm, eps=subject.eps, attack_names=request.attacks,
                        seed=request.seed, batch_size=request.batch_size,
                        progress=progress, say=say, seconds=request.max_seconds,
                        keep_inputs=request.keep_inputs, unfinished=partial(_unfinished, job, say=say))
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
    teacher = to_json(others[0]) if several else None
    drop = compare(others[0], last) if several else None
    labels = x.labels.cpu()
    classes = {who: by_class(scores, labels) for who, scores in found.items()} if request.per_class else None
    result = schema.build_eval(
        norm=subject.norm, eps=subject.eps, results=to_json(last), seconds=seconds,
        models={who: {"source": loaded.source, "sha256": loaded.sha256, "arch": loaded.arch}
                for who, loaded in job.loaded.items()},
        model=request.source.path, environment=environment(device=job.device, seed=request.seed),
        notes=[*_late(found, job), *data_notes(subject), *notes(found)], findings=findings(found),
        classes=classes,
        attacks=[attack.name for attack in attacks.parse(request.attacks)],
        unfinished={who: unfinished_json(scores, request.n) for who, scores in found.items()},
        data=data_fields(subject, n=request.n, seed=request.seed), teacher=teacher, drop=drop,
        headings=list(found))
    if request.gates:
        result["gates"] = judged(result, request.gates, strict=request.strict)
    return Outcome(result, found, x.index, labels)


def _unfinished(job: Job, who: str, sha256: str, *, say: Say) -> Unfinished | None:
    """Where the finished parts of this very evaluation are kept; None, with a warning, where nothing can be
    written."""
    loaded = job.loaded[who]
    reading = (loaded.arch, sorted(loaded.arch_options.items()), loaded.normalisation.mean,
               loaded.normalisation.std)
    own = units.of_folder(Path(loaded.arch.partition(":")[0])) if is_file(loaded.arch) else ""
    key = units.key(loaded.model, who, sha256, job.subject.norm, job.subject.eps, job.request.seed, BLOCK,
                    job.device, reading, own, units.code())
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
        writes = [partial(save, folder / "samples.npz", inputs=False),
                  partial(write, folder, outcome.result), *writes]
    each(*writes)


def forget(outcome: Outcome, job: Job) -> None:
    """Remove what was kept for --resume, where the figures are shown or written, unless time ran out."""
    if not any(evaluation.unfinished for evaluation in outcome.found.values()):
        for kept in job.kept:
            kept.clear()


