"""The commands as functions: `pwoa_cli.prune`, `pwoa_cli.evaluate` and `pwoa_cli.export`. Nothing is printed;
errors are `pwoa_cli.errors.InputError` (wrong use or input) and `PwoaError` (a run that broke), one sentence
each.
"""
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.checkpoints.normalisation import of_user
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.words import WORST
from pwoa_cli.files import run_folder
from pwoa_cli.progress import Progress, Say
from pwoa_cli.reports import several, tables
from pwoa_cli.workflows import evaluate as evaluation
from pwoa_cli.workflows import export as exporting
from pwoa_cli.workflows import prune as pruning
from pwoa_cli.workflows.parameters import checked
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_request import Request
from pwoa_cli.workflows.search import goal, size_bytes

PathText = str | PathLike[str]
Names = str | Sequence[str]
Device = str | torch.device


def _nothing(*_: object) -> None: ...


@dataclass(frozen=True)
class Score:
    """Accuracy in 0..1 of n samples, with its Wilson 95% interval."""

    accuracy: float
    n: int
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Result:
    """What was measured. scores: of the pruned model, or of the one that was evaluated, by attack ("clean",
    "pgd-20", ...); teacher: of what it is compared with, {} for nothing. report: report.json, with
    everything else. curve: of the model over all attacks by eps, 0.0 for clean, where one was asked for;
    without the radii that time did not suffice for.
    """

    scores: Mapping[str, Score]
    teacher: Mapping[str, Score]
    report: Mapping[str, Any]
    curve: Mapping[float, Score] = field(default_factory=dict, kw_only=True)

    @property
    def worst(self) -> Score | None:
        """Over all attacks that were asked for; None where time did not suffice, or nothing was attacked."""
        attacks = [name for name in self.scores if name != "clean"]
        if self.short or not attacks:
            return None
        return self.scores[WORST if WORST in attacks else attacks[0]]

    @property
    def unreliable(self) -> list[str]:
        """Why the figures must not be believed; [] where nothing says so."""
        return [finding["text"] for finding in self.report.get("findings", []) if finding["unreliable"]]

    @property
    def short(self) -> bool:
        """Whether an attack that was asked for has no figure: unfinished, or without gradient."""
        return tables.falls_short(self.report)


@dataclass(frozen=True)
class Pruned(Result):
    """A run: its folder, and the pruned model in it."""

    folder: Path
    model: Path


@dataclass(frozen=True)
class Exported:
    """What was written. size_bytes: of the file. largest_difference: of its logits from the model's, on the
    images that report["compared_on"] names. measured: both under attack, where values were rounded. report:
    what `pwoa export --json` gives, with everything else.
    """

    path: Path
    size_bytes: int
    format: str
    largest_difference: float
    measured: Result | None
    report: Mapping[str, Any]


@checked
def prune(model: PathText, sparsity: float | None = None, *, max_loss: float | None = None,
          held_out: int | None = None, channels: float | None = None, macs: float | None = None,
          nm: str | None = None, target_bytes: int | str | None = None, out: PathText | None = None,
          structure: str | None = None, recipe: PathText = "default",
          settings: Mapping[str, Any] | None = None, teacher: PathText | None = None,
          arch: PathText | None = None, normalize: str | None = None,
          mean: Sequence[float] | None = None, std: Sequence[float] | None = None, entry: str | None = None,
          trust_pickle: bool = False,
          num_classes: int | None = None, data: PathText | None = None, norm: str | None = None,
          eps: float | str | None = None, attacks: Names = "fgsm,pgd-10,pgd-20,cw", samples: int = 1000,
          seed: int = 0, device: Device = "auto", compile: str = "auto", progress: Progress = _nothing,
          say: Say = _nothing) -> Pruned:
    """What `pwoa prune` does: distil a pruned copy, save it, measure both under attack.

    Args: model, teacher: a checkpoint or a run's folder. sparsity: fraction of zeros, in (0, 1). out: a new
        or empty folder, or one where the same run was stopped, which goes on; None: a new one under
        pwoa-runs. settings: fields of the recipe, such as {"epochs": 2}. max_loss: in place of sparsity: as
        many zeros as lose at most so many points of the worst case, in (0, 100), on held_out training images.
        channels, macs: in place of sparsity: fraction of channels or of multiplications to remove, in (0, 1).
        nm, target_bytes: in place of sparsity: "2:4" lets 2 of every 4 neighbours stay; the most bytes that
        the file may have, 500_000 or "500k". structure: "unstructured", "filter", "column", "channel" or such
        as "block:4x1"; None: "channel" with channels or macs, else "unstructured".
        mean, std: a number a channel, in the place of normalize. trust_pickle: run code that the file holds.
        eps: a number in units of inputs in [0,1], or "8/255"; None: the file's or the data set's. attacks:
        "fgsm,cw" or ["fgsm", "cw"]. progress: called with (phase, steps done, steps in all, text); say: with
        every sentence for people. The others as the command's options of that name.
    Raises: InputError, PwoaError.
    """
    created = datetime.now()
    most = size_bytes(target_bytes, flag="--target-bytes", example="500k") \
        if isinstance(target_bytes, str) else target_bytes
    zeros, removed, saved = (None if share is None else str(share) for share in (sparsity, channels, macs))
    wanted = goal(zeros, max_loss, held_out, removed, saved, nm, most)
    source = _source(model, arch=arch, normalize=normalize, mean=mean, std=std, entry=entry,
                     trust_pickle=trust_pickle, num_classes=num_classes)
    with run_folder.opened(None if out is None else Path(out), model_name=run_folder.name_for(str(model)),
                           sparsity=str(wanted), now=created, run=True) as folder:
        request = Request(source, **asdict(wanted), structure=structure or "", recipe=str(recipe),
                          overrides={key: str(value) for key, value in (settings or {}).items()},
                          teacher=None if teacher is None else Source(run_folder.model_of(str(teacher)),
                                                                      trust_pickle=trust_pickle),
                          data=None if data is None else str(data), norm=norm, eps=_eps(eps),
                          attacks=_names(attacks), n=samples, seed=seed, device=str(device),
                          compile=compile)
        report = pruning.execute(prepare(request, say=say), folder, say=say, progress=progress,
                                 created=created)
        pruning.keep(folder, report)
    return Pruned(_scores(report["student"]), _scores(report["teacher"]), report, folder,
                  folder / "model.safetensors")


class Options(TypedDict, total=False):
    """Those of `evaluate`, for type checkers: its result depends on whether it gets a list."""

    compare: PathText | None
    arch: PathText | None
    normalize: str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    entry: str | None
    trust_pickle: bool
    num_classes: int | None
    data: PathText | None
    norm: str | None
    eps: float | str | None
    attacks: Names
    curve: Sequence[float | str] | None
    samples: int
    seed: int
    batch_size: int | None
    device: Device
    max_seconds: float | None
    progress: Progress
    say: Say


@overload
def evaluate(  # type: ignore[overload-overlap]  # text is a sequence of text, too: this one is first
        model: PathText, **options: Unpack[Options]) -> Result: ...


@overload
def evaluate(model: Sequence[PathText], **options: Unpack[Options]) -> dict[str, Result]: ...


@checked
def evaluate(model: PathText | Sequence[PathText], *, compare: PathText | None = None,
             arch: PathText | None = None, normalize: str | None = None, mean: Sequence[float] | None = None,
             std: Sequence[float] | None = None, entry: str | None = None, trust_pickle: bool = False,
             num_classes: int | None = None, data: PathText | None = None,
             norm: str | None = None, eps: float | str | None = None, attacks: Names = "fgsm,pgd,cw",
             curve: Sequence[float | str] | None = None, samples: int = 1000, seed: int = 0,
             batch_size: int | None = None, device: Device = "auto", max_seconds: float | None = None,
             progress: Progress = _nothing, say: Say = _nothing) -> Result | dict[str, Result]:
    """What `pwoa eval` does: accuracy under attack of a checkpoint, or of a run beside its teacher.

    Args: model: a checkpoint or a run's folder; several in a list, on the same samples: then the result of
        each by its name in the table, `teacher` being that of the reference. compare: another checkpoint or
        run, on the same samples. curve: radii like eps, at which the attacks are run too. max_seconds: stop
        then; what is not finished is no figure (`Result.short`). The others as in `prune`.
    Raises: InputError, PwoaError.
    """
    paths = [model] if isinstance(model, str | PathLike) else model
    sources = [_source(path, arch=arch, normalize=normalize, mean=mean, std=std, entry=entry,
                       trust_pickle=trust_pickle, num_classes=num_classes, run=True) for path in paths]
    if not sources:
        raise InputError("evaluate([]) names no model.", hint="For example: evaluate([\"a.pt\", \"b.pt\"])")
    radii = [str(_eps(one)) for one in (() if curve is None else curve)]
    job = evaluation.prepare(evaluation.Request(
        sources[0], others=sources[1:], attacks=_names(attacks),
        teacher=None if compare is None else Source(run_folder.model_of(str(compare))),
        data=None if data is None else str(data), norm=norm, eps=_eps(eps),
        curve=",".join(radii) if radii else None, n=samples, seed=seed,
        batch_size=batch_size, device=str(device), max_seconds=max_seconds), say=say)
    outcome = evaluation.execute(job, progress=progress, say=say)
    evaluation.forget(outcome, job)
    report = outcome.result
    if isinstance(model, str | PathLike):
        return _result(report)
    if job.several is None:  # a list of one
        return {several.headings([sources[0].path])[0]: _result(report)}
    return {who: _result(several.view(report, who), who) for who in several.compared(report)}


@checked
def export(model: PathText, format: str, out: PathText | None = None, *, dtype: str = "fp32",
           prefix: str = "", like: PathText | None = None, arch: PathText | None = None,
           normalize: str | None = None, mean: Sequence[float] | None = None,
           std: Sequence[float] | None = None, entry: str | None = None, trust_pickle: bool = False,
           num_classes: int | None = None, data: PathText | None = None,
           norm: str | None = None, eps: float | str | None = None, attacks: Names = "fgsm,pgd,cw",
           samples: int = 1000, measure: bool = True, seed: int = 0, progress: Progress = _nothing,
           say: Say = _nothing) -> Exported:
    """What `pwoa export` does: write a model in a form that others read, read it again and compare.

    Args: model: a checkpoint or a run's folder. format: "sparse", "slim", "dense" or "onnx". out: a new file;
        None: MODEL-FORMAT with its ending, in the current folder. dtype: "fp32", or what the format has of
        "bf16", "fp16" and "int8". prefix, like: of a dense file, before each name, and the checkpoint whose
        envelope it gets. measure: attack both models where values are rounded. The others as in `prune`.
    Raises: InputError; PwoaError if the file gives other logits, or needs what the machine has not.
    """
    job = exporting.prepare(exporting.Request(
        _source(model, arch=arch, normalize=normalize, mean=mean, std=std, entry=entry,
                trust_pickle=trust_pickle, num_classes=num_classes, run=True), format,
        None if out is None else Path(out), dtype=dtype, prefix=prefix,
        like=None if like is None else str(like), data=None if data is None else str(data), norm=norm,
        eps=_eps(eps), attacks=_names(attacks), n=samples, seed=seed, measure=measure), say=say)
    outcome = exporting.execute(job, progress=progress, say=say)
    outcome.forget()
    report = outcome.result
    made = report.get("evaluation")
    return Exported(job.out, report["file_bytes"], format, report["largest_difference"],
                    _result(made) if made else None, report)


def _result(report: Mapping[str, Any], who: str = "") -> Result:
    """Args: who: its name among the models of the report, where they are several."""
    who = who or report.get("headings", ["model"])[-1]
    return Result(_scores(report.get("results", report.get("student", {}))),
                  _scores(report.get("teacher", {})), report,
                  curve={point["eps"]: _score(point["scores"][who]) for point in report.get("curve", [])
                         if who in point["scores"]})


def _source(model: PathText, *, normalize: str | None, mean: Sequence[float] | None,
            std: Sequence[float] | None, arch: PathText | None, run: bool = False, **said: Any) -> Source:
    """Args: run: a folder stays a folder, as it brings its teacher. said: other fields of `Source`."""
    taken_off, divided_by = of_user(normalize, *(None if values is None else tuple(map(float, values))
                                                 for values in (mean, std)))
    path = str(model) if run else run_folder.model_of(str(model))
    return Source(path, mean=taken_off, std=divided_by, arch=None if arch is None else str(arch), **said)


def _names(attacks: Names) -> str:
    return attacks if isinstance(attacks, str) else ",".join(attacks)


def _eps(eps: float | str | None) -> str | None:
    return eps if eps is None or isinstance(eps, str) else repr(float(eps))


def _scores(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    return {name: _score(score) for name, score in found.items()}


def _score(found: Mapping[str, Any]) -> Score:
    return Score(found["accuracy"], found["n"], (found["ci95"][0], found["ci95"][1]))

