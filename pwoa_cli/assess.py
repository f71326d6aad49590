"""The main path of `pwoa eval`: find model, teacher, data and threat -> attack both on the same samples -> result."""
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pwoa_cli import attacks, report, run
from pwoa_cli.errors import InputError
from pwoa_cli.evaluate import BLOCK, evaluate, to_json
from pwoa_cli.prune import compare
from pwoa_cli.subject import Source, Subject, device_named, open_model, open_subject, probe, samples

Say = Callable[[str], None]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked `pwoa eval` for; source None: the newest run. eps as typed ("8/255")."""

    source: Source | None
    attacks: str = "fgsm,pgd,cw"
    teacher: str | None = None
    data: str | None = None
    norm: str | None = None
    eps: str | None = None
    n: int = 1000
    seed: int = 0
    batch_size: int = BLOCK
    device: str = "auto"


@dataclass(frozen=True)
class Job:
    """A request with everything found and checked."""

    request: Request
    subject: Subject
    teacher: Subject | None


def prepare(request: Request, *, say: Say) -> Job:
    """Find and check everything before the first attack. Raises: InputError for anything that would fail later."""
    attacks.parse(request.attacks)
    device = device_named(request.device)
    if request.source is None:
        request = _newest(request, say=say)
    subject = open_subject(request.source, data=request.data, norm=request.norm, eps=request.eps, device=device, say=say)
    samples(subject.dataset, request.n, seed=request.seed)  # n fits the data
    if request.teacher is None:
        return Job(request, subject, None)
    teacher = open_model(Source(request.teacher), device=device, say=say)
    right = probe(teacher.model, subject.dataset, classes=teacher.num_classes, what=request.teacher)
    say(f"  it is right on {100 * right:.1f}% of the same training images")
    return Job(request, subject, replace(subject, loaded=teacher))


def _newest(request: Request, *, say: Say) -> Request:
    """The request for the newest finished run: its model, its teacher if the file is still the same, its data and threat."""
    folder = run.newest()
    made = report.validate(run.read_json(folder / "report.json"), where=str(folder / "report.json"))
    say(f"newest run: {folder}")
    teacher = request.teacher or made["model"].get("teacher", made["model"]["source"])
    if request.teacher is None:
        teacher = _same_file(teacher, made["model"].get("teacher_sha256", made["model"]["sha256"]), say=say)
    where = made["data"].get("where", "")
    data = request.data or (where if Path(where).exists() else made["data"]["name"])
    return replace(request, source=Source(str(folder / "model.safetensors")), teacher=teacher, data=data,
                   norm=request.norm or made["threat"]["norm"], eps=request.eps or repr(made["threat"]["eps"]))


def _same_file(path: str, sha256: str, *, say: Say) -> str | None:
    from pwoa_cli.checkpoint import file_sha256

    if not Path(path).is_file():
        say(f"warning: its teacher {path} is not there any more; the pruned model is measured alone (--teacher names one)")
        return None
    if file_sha256(path) != sha256:
        raise InputError(f"{path} is not the file that the run was distilled from: its SHA-256 differs.",
                         hint="Name the teacher to compare with: --teacher FILE")
    return path


def execute(job: Job, *, progress: Progress) -> dict[str, Any]:
    """Attack the model, and the teacher on the same samples; the JSON object of `pwoa eval`."""
    request, subject = job.request, job.subject
    x, y = samples(subject.dataset, request.n, seed=request.seed)
    results = {}
    for who, side in (("teacher", job.teacher), ("model", subject)):
        if side is not None:
            results[who] = evaluate(side.model, x, y, attacks=request.attacks, norm=subject.norm, eps=subject.eps, seed=request.seed,
                                    batch_size=request.batch_size, progress=lambda name, done, total, who=who: progress(f"{who} {name}", done, total, ""))
    seconds = {f"{who} {name}": r.seconds for who, scores in results.items() for name, r in scores.items()}
    compared = {"teacher": to_json(results["teacher"]), "drop": compare(results["teacher"], results["model"])} if job.teacher else {}
    notes = [f"{who}: {name} met NaN or infinite logits on {r.nonfinite} samples, counted as broken." for who, scores in results.items()
             for name, r in scores.items() if r.nonfinite]
    return report.build_eval(
        norm=subject.norm, eps=subject.eps, results=to_json(results["model"]), seconds=seconds, model=request.source.path,
        environment=report.environment(device=request.device, seed=request.seed), notes=notes,
        data={"name": subject.dataset.name, "where": subject.dataset.where, "n": request.n, "seed": request.seed}, **compared)
