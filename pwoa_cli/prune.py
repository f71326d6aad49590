"""The main path of `pwoa prune`: set up and check -> sparsify -> masked finetune -> save and verify -> measure -> report."""
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pwoa_cli
from pwoa_cli import allocation, attacks, checkpoint, layers, models, report, run, sparse_file, training
from pwoa_cli import data as datasets
from pwoa_cli.config import Recipe, read_recipe
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.evaluate import BLOCK, Result, evaluate, paired_drop, to_json
from pwoa_cli.subject import Source, Subject, device_named, open_model, open_subject, samples

Say = Callable[[str], None]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked `pwoa prune` for; None: inferred or the recipe's. eps as typed ("8/255")."""

    source: Source
    sparsity: float
    structure: str = "unstructured"
    recipe: str = "default"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    data: str | None = None
    norm: str | None = None
    eps: str | None = None
    attacks: str = "fgsm,pgd-10,pgd-20,cw"
    n: int = 1000
    seed: int = 0
    device: str = "auto"
    out: Path | None = None


@dataclass(frozen=True)
class Job:
    """A request with everything found, checked and decided; nothing is written yet."""

    request: Request
    subject: Subject
    teacher: checkpoint.Loaded
    plan: training.Plan
    device: torch.device
    dead: int
    seconds: dict[str, float]


def prepare(request: Request, *, say: Say, change_data: Callable[[datasets.Dataset], datasets.Dataset] | None = None) -> Job:
    """Load, infer and check everything that a run needs, before its first epoch and its first file.

    Args: change_data: applied to the data set that was found (benchmarks hold training images out with it).
    Raises: InputError for anything that would fail later.
    """
    seconds: dict[str, float] = {}
    attacks.parse(request.attacks)
    device = device_named(request.device)
    with _timed(seconds, "load"):
        subject = open_subject(request.source, data=request.data, norm=request.norm, eps=request.eps, device=device, say=say)
        if change_data:
            subject = replace(subject, dataset=change_data(subject.dataset))
        recipe = read_recipe(request.recipe, data=subject.dataset.name, overrides=request.overrides)
        x, _ = samples(subject.dataset, request.n, seed=request.seed)  # also: n fits the data
        teacher = _teacher(request, subject, device, say=say)
    weights, dead = _prunable(subject.model, x[:2], request.structure)
    try:
        allocation.quotas(weights, request.sparsity, method=recipe.allocation, structure=request.structure)
        hidden = tuple(layers.hidden_layers(subject.model, x[:2], recipe.hidden))
    except ValueError as error:
        raise InputError(f"{request.source.path}: {error}.", hint="A lower --sparsity, or another pattern: --set hidden=auto") from None
    _check_hidden(subject.model, teacher.model, hidden, recipe, x[:2])
    zeros = sum(w.numel() - int(w.count_nonzero()) for w in weights.values())
    total = sum(w.numel() for w in weights.values())
    if zeros > request.sparsity * total:
        raise InputError(f"{request.source.path} is pruned already: {100 * zeros / total:.1f}% of its weights are zero, {100 * request.sparsity:g}% were asked for.",
                         hint="Ask for more: --sparsity above what it has.")
    per_epoch, sparsify_steps, steps = training.plan_steps(recipe, len(subject.dataset.train))
    plan = training.Plan(
        recipe=recipe, teacher=teacher.model, hidden=hidden, weights=tuple(weights), companions=_companions(subject.model, x[:2]),
        sparsity=request.sparsity, structure=request.structure, num_classes=subject.loaded.num_classes, eps=subject.eps,
        split=subject.dataset.train, augment=subject.dataset.augment if recipe.augment == "auto" else recipe.augment,
        seed=request.seed, steps_per_epoch=per_epoch, sparsify_steps=sparsify_steps, steps=steps)
    say(f"prune {total} weights in {len(weights)} layers to {100 * request.sparsity:g}% zeros ({request.structure}), recipe {recipe.name}: "
        f"{steps} steps, {recipe.epochs:g} epochs; hidden layers: {', '.join(n.removeprefix('net.') for n in hidden)}")
    return Job(request, subject, teacher, plan, device, dead, seconds)


def execute(job: Job, folder: Path, *, say: Say, progress: Progress, created: datetime) -> dict[str, Any]:
    """Prune, save, verify, measure; every file of the run folder but metrics.jsonl is written whole or not at all.

    Returns: the report, as in report.json.
    """
    request, subject, seconds = job.request, job.subject, job.seconds
    environment = report.environment(device=str(job.device), seed=request.seed)
    run.write_toml(folder / "config.toml", _config(job, environment))
    student = _logged_fit(job, folder, progress=progress)
    with _timed(seconds, "save"):
        file_bytes, state = _save(job, student, folder / "model.safetensors")
    say(f"saved and verified {folder / 'model.safetensors'} ({report.size(file_bytes)})")
    x, y = samples(subject.dataset, request.n, seed=request.seed)
    with _timed(seconds, "evaluate"):
        teacher_scores, student_scores = (
            evaluate(model, x, y, attacks=request.attacks, norm=subject.norm, eps=subject.eps, seed=request.seed,
                     progress=lambda name, done, total, who=who: progress(f"{who} {name}", done, total, ""))
            for who, model in (("teacher", job.teacher.model), ("pruned", student)))
    parameters = dict(student.named_parameters())
    result = report.build(
        created=created, norm=subject.norm, eps=subject.eps, target=request.sparsity, structure=request.structure,
        model={"source": request.source.path, "sha256": subject.loaded.sha256, "arch": subject.loaded.arch,
               "num_classes": subject.loaded.num_classes, "teacher": job.teacher.source, "teacher_sha256": job.teacher.sha256},
        layers=[{"name": n.removeprefix("net."), "shape": list(parameters[n].shape), "nonzero": int(parameters[n].count_nonzero()),
                 "total": parameters[n].numel()} for n in job.plan.weights],
        size={"dense_bytes": sparse_file.dense_bytes(state), "file_bytes": file_bytes, "limit_bytes": sparse_file.limit_bytes(state)},
        macs=layers.macs(student, x), teacher=to_json(teacher_scores), student=to_json(student_scores),
        drop=compare(teacher_scores, student_scores), seconds=seconds, environment=environment, recipe=asdict(job.plan.recipe),
        data={"name": subject.dataset.name, "where": subject.dataset.where, "n": request.n, "seed": request.seed}, notes=_notes(job))
    run.write_text_atomic(folder / "report.md", report.markdown(result))
    run.write_json(folder / "report.json", result)
    return result


def compare(teacher: Mapping[str, Result], student: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    """Drop in points with its paired 95% interval, by attack, of two evaluations on the same samples."""
    return {name: report.in_points(*paired_drop(teacher[name].correct, student[name].correct)) for name in teacher}


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def _teacher(request: Request, subject: Subject, device: torch.device, *, say: Say) -> checkpoint.Loaded:
    """The model to distil from: --teacher, with the same classes, else the model itself."""
    if request.teacher is None:
        return subject.loaded
    teacher = open_model(Source(request.teacher), device=device, say=say)
    if teacher.num_classes != subject.loaded.num_classes:
        raise InputError(f"--teacher {request.teacher} has {teacher.num_classes} classes, {request.source.path} has {subject.loaded.num_classes}.",
                         hint="A teacher must know the same classes in the same order.")
    x, _ = subject.dataset.train.batch(torch.arange(2))
    try:
        teacher.model(x)
    except RuntimeError as error:
        raise InputError(f"--teacher {request.teacher} cannot take images {tuple(x.shape[1:])}: {str(error).splitlines()[0]}",
                         hint="A teacher must take the images that the model takes.") from None
    return teacher


def _prunable(model: nn.Module, x: Tensor, structure: str) -> tuple[dict[str, nn.Parameter], int]:
    """Weights that count, and the number of dead ones left out. With filters the logits' own layer keeps its rows."""
    everything = {f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, layers.PRUNABLE)}
    weights = layers.prunable(model, models.live_parameters(model, x))
    if structure == "filter" and weights:
        weights.pop(layers.logit_layer(model, x) + ".weight", None)
    if not weights:
        raise InputError("The model has no convolution or linear layer that could be pruned.", hint="See what it holds, or give another --structure.")
    return weights, sum(w.numel() for n, w in everything.items() if n not in weights and structure != "filter")


def _check_hidden(student: nn.Module, teacher: nn.Module, hidden: tuple[str, ...], recipe: Recipe, x: Tensor) -> None:
    if not recipe.hidden_weight or teacher is student:
        return
    names = dict(teacher.named_modules())
    shapes = []
    for model in (student, teacher):
        with torch.no_grad(), layers.capture(model, [n for n in hidden if n in names]) as outputs:
            model(x)
            shapes.append([tuple(z.shape) for z in outputs])
    if shapes[0] != shapes[1] or len(shapes[0]) < len(hidden):
        raise InputError("Hidden layers of model and --teacher differ, so they cannot be matched.", hint="Distil from the logits alone: --set hidden_weight=0")


def _companions(model: nn.Module, x: Tensor) -> dict[str, tuple[str, ...]]:
    """{weight: parameters (out,) that would still speak when its filter is zero}: own bias, batch norm scale and shift."""
    norms = layers.batch_norms(model, x)
    parameters = dict(model.named_parameters())
    found = {}
    for name, m in model.named_modules():
        if isinstance(m, layers.PRUNABLE):
            wanted = [f"{name}.bias"] + [f"{norms[name]}.{kind}" for kind in ("weight", "bias") if name in norms]
            found[f"{name}.weight"] = tuple(w for w in wanted if w in parameters)
    return found


def fit(job: Job, *, note: Callable[[training.State, dict[str, float]], None]) -> nn.Module:
    """Run both phases; returns the pruned model in eval mode and plain memory layout. The subject stays as it was."""
    student = copy.deepcopy(job.subject.model).requires_grad_(True).to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
    plan = replace(job.plan, teacher=copy.deepcopy(job.teacher.model).to(memory_format=torch.channels_last).eval())
    with torch.random.fork_rng():
        torch.manual_seed(job.request.seed)  # dropout, where a model has it
        state = training.run(plan, training.begin(plan, student), report=note)
    return state.student.to(memory_format=torch.contiguous_format).eval()


def _logged_fit(job: Job, folder: Path, *, progress: Progress) -> nn.Module:
    """`fit` with its losses in metrics.jsonl and its phases timed."""
    plan, seconds, start = job.plan, job.seconds, time.perf_counter()
    seconds |= {"sparsify": 0.0, "finetune": 0.0}
    with run.MetricsLog(folder / "metrics.jsonl") as log:

        def note(state: training.State, losses: dict[str, float]) -> None:
            phase = "sparsify" if state.step <= plan.sparsify_steps else "finetune"
            now = time.perf_counter() - start
            seconds[phase] = now - (seconds["sparsify"] if phase == "finetune" else 0.0)
            log.append({"step": state.step, "epoch": state.step / plan.steps_per_epoch, "phase": phase, "seconds": now, **losses})
            epoch = -(-state.step // plan.steps_per_epoch)
            progress("prune", state.step, plan.steps, f"epoch {epoch}/{-(-plan.steps // plan.steps_per_epoch)} | {phase} | loss {losses['loss']:.3g}")

        return fit(job, note=note)


def _save(job: Job, student: nn.Module, path: Path) -> tuple[int, dict[str, Tensor]]:
    """Write the sparse file and prove it: reloaded tensors and logits equal the pruned model's bit for bit."""
    subject = job.subject
    state = {n.removeprefix("net."): t.detach().cpu() for n, t in student.state_dict().items() if n.startswith("net.")}
    metadata = checkpoint.to_metadata(subject.loaded) | {
        "data": subject.dataset.name, "norm": subject.norm, "eps": repr(subject.eps), "recipe": job.plan.recipe.name,
        "source_sha256": subject.loaded.sha256, "pwoa_version": pwoa_cli.__version__, "seed": str(job.request.seed)}
    file_bytes = sparse_file.save(state, path, metadata=metadata)
    again = pwoa_cli.load(path).to(job.device)
    x, _ = samples(subject.dataset, min(100, len(subject.dataset.test)), seed=job.request.seed)
    with torch.no_grad():
        equal = torch.equal(again(x), student(x))
    if not equal:
        raise PwoaError(f"{path} does not give the pruned model's logits when it is loaded again.", hint="Please report this, with the checkpoint: the file is kept.")
    _check_zeros(job, student)
    return file_bytes, state


def _check_zeros(job: Job, student: nn.Module) -> None:
    """Exactly the wanted zeros, none of them -0.0: a property that the file's readers may rely on."""
    parameters = dict(student.named_parameters())
    kept = torch.cat([parameters[n].detach().flatten() for n in job.plan.weights])
    assert not (kept[kept == 0].signbit()).any(), "masked_fill leaves +0.0"
    if job.request.structure == "unstructured":
        assert int((kept == 0).sum()) >= round(job.request.sparsity * len(kept)), "masks hold until the end"


def _config(job: Job, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Everything resolved, so that the same command can be given again."""
    request, subject = job.request, job.subject
    return {"model": request.source.path, "sha256": subject.loaded.sha256, "arch": subject.loaded.arch, "teacher": job.teacher.source,
            "num_classes": subject.loaded.num_classes, "mean": subject.loaded.mean, "std": subject.loaded.std,
            "data": subject.dataset.name, "data_where": subject.dataset.where, "norm": subject.norm, "eps": subject.eps,
            "sparsity": request.sparsity, "structure": request.structure, "attacks": request.attacks, "n": request.n, "seed": request.seed,
            "hidden_layers": list(job.plan.hidden), "weights": list(job.plan.weights), "steps": job.plan.steps,
            "recipe": asdict(job.plan.recipe), "environment": dict(environment), "eval_block": BLOCK}


def _notes(job: Job) -> list[str]:
    notes = list(job.subject.loaded.notes)
    if job.dead:
        notes.append(f"{job.dead} weights never reach the logits; they are not pruned and do not count.")
    if job.request.structure == "filter":
        notes.append("The layer that gives the logits keeps all its rows and does not count.")
    notes.append("No adversarial example was generated while pruning.")
    return notes
