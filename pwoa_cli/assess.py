"""The main path of `pwoa eval`: find model, teacher, data and threat -> attack both on the same samples -> result.

`pwoa prune` ends with the same measurement.
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pwoa_cli import attacks, hub, report, run
from pwoa_cli.checkpoint import Source
from pwoa_cli.checkpoint_file import file_sha256
from pwoa_cli.errors import InputError
from pwoa_cli.evaluate import BLOCK, Result, evaluate, paired_drop, to_json
from pwoa_cli.subject import Progress, Say, Subject, device_named, open_subject, open_teacher, samples, short_path


@dataclass(frozen=True)
class Request:
    """What the user asked `pwoa eval` for. source.path: a file, a run folder, or "" for the newest run; eps: "8/255"."""

    source: Source
    attacks: str = "fgsm,pgd,cw"
    teacher: Source | None = None
    teacher_is_source: bool = False  # the file that the model was pruned from: read as it was then
    data: str | None = None
    norm: str | None = None
    eps: str | None = None
    n: int = 1000
    seed: int = 0
    batch_size: int = BLOCK
    device: str = "auto"


@dataclass(frozen=True)
class Job:
    """A request with everything found and checked. models: what to measure, by name: teacher, pruned; or model alone."""

    request: Request
    subject: Subject
    models: Mapping[str, nn.Module]
    device: str


def prepare(request: Request, *, say: Say) -> Job:
    """Find and check everything before the first attack. Raises: InputError for anything that would fail later."""
    attacks.parse(request.attacks)
    device = device_named(request.device)
    of_run = not request.source.path or Path(request.source.path).is_dir()
    if of_run:
        request = _of_run(request, Path(request.source.path) if request.source.path else run.newest(), say=say)
    subject = open_subject(request.source, data=request.data, norm=request.norm, eps=request.eps, device=device, say=say,
                           near_chance="possible" if of_run else "doubted")
    attacks.check_norm(attacks.parse(request.attacks), subject.norm)
    samples(subject.dataset, request.n, seed=request.seed)  # n fits the data
    models: dict[str, nn.Module] = {"model": subject.model}
    if request.teacher is not None:
        like, teacher = subject.loaded, replace(request.teacher, trust_pickle=request.source.trust_pickle)
        if request.teacher_is_source:
            teacher = replace(teacher, arch=like.arch, options=like.arch_options, mean=like.mean or (), std=like.std or ())
        models = {"teacher": open_teacher(teacher, subject, device=device, say=say).model, "pruned": subject.model}
    return Job(request, subject, models, str(device))


def _of_run(request: Request, folder: Path, *, say: Say) -> Request:
    """The request for a run: its model; its teacher, if that file is still the same, its data and threat unless asked for."""
    missing = [name for name in run.FINISHED if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is no finished run: a folder without {' and '.join(missing)}.",
                         hint="Name a finished run's folder, or the checkpoint itself.")
    made = report.validate(run.read_json(folder / "report.json"), where=str(folder / "report.json"))
    say(f"run: {folder}")
    model = made["model"]
    # the very file that was pruned is read as it was then, --arch, --mean, --std, --entry and --keep included
    is_source = request.teacher is None and model.get("teacher_sha256") == model["sha256"]
    teacher = request.teacher or _same_file(model.get("teacher", model["source"]), model.get("teacher_sha256", model["sha256"]),
                                            model.get("reading", {}) if is_source else {}, say=say)
    norm = request.norm or made["threat"]["norm"]
    eps = request.eps or (repr(made["threat"]["eps"]) if norm == made["threat"]["norm"] else None)
    return replace(request, source=replace(request.source, path=str(folder / "model.safetensors")), teacher=teacher,
                   teacher_is_source=is_source, norm=norm, eps=eps, data=request.data or made["data"].get("argument", made["data"]["name"]))


def _same_file(path: str, sha256: str, reading: Mapping[str, Any], *, say: Say) -> Source | None:
    """The teacher of a run. Args: reading: which of several models in its file it was, and other choices of its reader."""
    if not hub.is_name(path) and not Path(path).is_file():
        say(f"warning: its teacher {path} is not there any more; the pruned model is measured alone (--teacher FILE names one)")
        return None
    if (hub.pretrained(path).sha256 if hub.is_name(path) else file_sha256(path)) != sha256:
        raise InputError(f"{path} is not the file that the run was distilled from: its SHA-256 differs.",
                         hint="Name the teacher to compare with: --teacher FILE")
    return Source(path, entry=reading.get("entry"), keep=reading.get("keep"))


def execute(job: Job, *, progress: Progress) -> dict[str, Any]:
    """Attack the model, and the teacher on the same samples; the JSON object of `pwoa eval`."""
    request, subject = job.request, job.subject
    x, y = samples(subject.dataset, request.n, seed=request.seed)
    results = measure(job.models, x, y, subject=subject, attack_names=request.attacks, seed=request.seed,
                      batch_size=request.batch_size, progress=progress)
    several = len(results) > 1
    seconds = {f"{who} {name}" if several else name: r.seconds for who, scores in results.items() for name, r in scores.items()}
    compared = {"teacher": to_json(results["teacher"]), "drop": compare(results["teacher"], results["pruned"])} if several else {}
    return report.build_eval(
        norm=subject.norm, eps=subject.eps, results=to_json(list(results.values())[-1]), seconds=seconds,
        model=request.source.path, environment=report.environment(device=job.device, seed=request.seed),
        notes=nonfinite_notes(results), data=data_fields(subject, n=request.n, seed=request.seed), **compared)


def data_fields(subject: Subject, *, n: int, seed: int) -> dict[str, Any]:
    """What a report says of the samples."""
    return {"name": subject.dataset.name, "where": short_path(subject.dataset.where), "n": n, "seed": seed}


def measure(models: Mapping[str, nn.Module], x: Tensor, y: Tensor, *, subject: Subject, attack_names: str, seed: int,
            progress: Progress, batch_size: int = BLOCK) -> dict[str, dict[str, Result]]:
    """`evaluate` of each model on the same samples x (n, C, H, W), y (n,), under the subject's threat.

    Returns: {model: {attack: result}}.
    """
    each = (1 + len(attacks.parse(attack_names))) * len(x)
    results: dict[str, dict[str, Result]] = {}
    for who, model in models.items():
        finished: dict[str, int] = {}  # samples by attack

        def show(name: str, done: int, _total: int) -> None:  # called in this round of the loop only
            finished[name] = done
            progress("evaluate", len(results) * each + sum(finished.values()), len(models) * each,
                     f"{who} {name}" if len(models) > 1 else name)

        show("clean", 0, len(x))
        results[who] = evaluate(model, x, y, attacks=attack_names, norm=subject.norm, eps=subject.eps, seed=seed,
                                batch_size=batch_size, progress=show)
    return results


def compare(teacher: Mapping[str, Result], student: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    """Drop in points with its paired 95% interval, by attack, of two evaluations on the same samples."""
    return {name: report.in_points(*paired_drop(teacher[name].correct, student[name].correct)) for name in teacher}


def nonfinite_notes(results: Mapping[str, Mapping[str, Result]]) -> list[str]:
    """A sentence for every attack that met logits which are no numbers."""
    return [f"{who}: {name} met NaN or infinite logits on {r.nonfinite} samples, counted as broken."
            for who, scores in results.items() for name, r in scores.items() if r.nonfinite]


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """report.md and report.json of a run or an evaluation; the JSON comes last, as a run with it is finished."""
    run.write_text_atomic(folder / "report.md", report.markdown(result))
    run.write_json(folder / "report.json", result)
