"""The main path of `pwoa prune`: set up and check -> sparsify -> masked finetune -> save and verify -> measure -> report."""
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pwoa_cli
from pwoa_cli import allocation, assess, attacks, checkpoint, estimate, layers, models, objective, report, run, show
from pwoa_cli import sparse_file, training
from pwoa_cli import data as datasets
from pwoa_cli.checkpoint import Source
from pwoa_cli.config import Recipe, check, read_recipe
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.evaluate import BLOCK
from pwoa_cli.results import to_json
from pwoa_cli.structure import STRUCTURES, keep_mask
from pwoa_cli.subject import Progress, Say, Subject, device_named, open_subject, open_teacher, samples, short_path


LOGITS_ALONE = "Distilled from the logits of --teacher alone: its hidden layers are not those of the model, or not asked for."


@dataclass(frozen=True)
class Request:
    """What the user asked `pwoa prune` for; None: inferred or the recipe's. sparsity: in (0, 1). eps as typed ("8/255")."""

    source: Source
    sparsity: float
    structure: str = "unstructured"
    recipe: str = "default"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    teacher: Source | None = None
    data: str | None = None
    norm: str | None = None
    eps: str | None = None
    attacks: str = "fgsm,pgd-10,pgd-20,cw"
    n: int = 1000
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Job:
    """A request with everything found, checked and decided; nothing is written yet. dead: weights that never reach the logits.
    uncounted: names of other matrices that do."""

    request: Request
    subject: Subject
    teacher: checkpoint.Loaded
    plan: training.Plan
    device: torch.device
    dead: int
    uncounted: tuple[str, ...]
    seconds: dict[str, float]


# --- set up and check -------------------------------------------------------------------------------------------------

def prepare(request: Request, *, say: Say, change_data: Callable[[datasets.Dataset], datasets.Dataset] | None = None) -> Job:
    """Load, infer and check everything that a run needs, before its first epoch and its first file.

    Args: change_data: applied to the data set that was found (benchmarks hold training images out with it).
    Raises: InputError for anything that would fail later.
    """
    seconds: dict[str, float] = {}
    attacks.parse(request.attacks)
    if request.structure not in STRUCTURES:
        raise InputError(f"--structure {request.structure} is none of {', '.join(STRUCTURES)}.",
                         hint="For example: --structure filter")
    read_recipe(request.recipe, overrides=request.overrides)
    device = device_named(request.device)
    with _timed(seconds, "load"):
        subject = open_subject(request.source, data=request.data, norm=request.norm, eps=request.eps, device=device, say=say)
        if change_data:
            subject = replace(subject, dataset=change_data(subject.dataset))
        attacks.check_norm(attacks.parse(request.attacks), subject.norm)
        x = samples(subject.dataset, request.n, seed=request.seed)  # also: n fits the data
        teacher = open_teacher(request.teacher, subject, device=device, say=say) if request.teacher else subject.loaded
        live = models.live_parameters(subject.model, x[:2])
        weights, dead = _prunable(subject.model, x[:2], live, request.structure)
        plan = _plan(request, subject, teacher, weights, x[:2], device)
    if plan.recipe.precision == "bf16" and objective.multiplies_bf16(device) is False:
        say(f"warning: precision = bf16 is likely slower than float32 here: {device.type} has no instructions for it.")
    total, epochs = sum(w.numel() for w in weights.values()), round(plan.steps / plan.steps_per_epoch, 2)
    say(f"prune {total:,} weights in {len(weights)} layers to {100 * request.sparsity:g}% zeros ({request.structure}), "
        f"recipe {plan.recipe.name}: {plan.steps} steps, {epochs:g} epoch{'s' * (epochs != 1)}; "
        f"{len(plan.hidden)} hidden layers: {_some(_public(plan.hidden))}")
    if teacher is not subject.loaded and not _matches_layers(plan.recipe):
        say(LOGITS_ALONE)
    return Job(request, subject, teacher, plan, device, dead, tuple(layers.uncounted(subject.model, live)), seconds)


def _public(names: Iterable[str]) -> list[str]:
    """Names as the user's checkpoint has them, without our wrapper's prefix."""
    return [name.removeprefix("net.") for name in names]


def _some(names: Sequence[str], most: int = 9) -> str:
    """All names, or of more than `most` the first four and the last: config.toml has them all."""
    return ", ".join(names if len(names) <= most else [*names[:4], "...", names[-1]])


def _settled(recipe: Recipe, request: Request, device: torch.device) -> Recipe:
    """The recipe without "auto": what it means for this structure and on this device. With filters it regrows nothing, unless
    that is asked for on the command line, where `_check_structure` says why it cannot be.

    Global magnitude compares sums over groups, which grow with their size: of filters it leaves small layers a single one.
    """
    settled = {"precision": "bf16" if objective.multiplies_bf16(device) else "float32",
               "allocation": "global" if request.structure == "unstructured" else "lamp"}
    recipe = replace(recipe, **{name: value for name, value in settled.items() if getattr(recipe, name) == "auto"})
    return replace(recipe, regrow=0.0) if request.structure == "filter" and "regrow" not in request.overrides else recipe


def _plan(request: Request, subject: Subject, teacher: checkpoint.Loaded, weights: Mapping[str, nn.Parameter],
          x: Tensor, device: torch.device) -> training.Plan:
    """Everything decided that stays the same during the run."""
    recipe = read_recipe(request.recipe, data=subject.dataset.name, overrides=request.overrides)
    recipe = _settled(recipe, request, device)
    where = request.source.path
    _check_sparsity(weights, request.sparsity, where)
    _check_structure(recipe, request.structure)
    _check_reachable(weights, request, recipe)
    try:
        hidden = tuple(layers.hidden_layers(subject.model, x, recipe.hidden))
    except ValueError as error:
        raise InputError(f"{where}: {error}.", hint="--set hidden=auto, inner or another pattern of module names") from None
    if _matches_layers(recipe) and teacher is not subject.loaded and not _same_hidden(subject.model, teacher.model, hidden, x):
        if asked := [name for name in ("hidden_weight", "explain_weight") if name in request.overrides]:
            raise InputError("Hidden layers of the model and of --teacher differ, so they cannot be matched.",
                             hint=f"Distil from the logits alone: {' '.join(f'--set {name}=0' for name in asked)}")
        recipe = check(replace(recipe, hidden_weight=0.0, explain_weight=0.0), where="recipe for this --teacher")
    if recipe.neighbour_weight and objective.random_in_training(subject.model, x):
        raise InputError(f"neighbour_weight = {recipe.neighbour_weight:g} compares answers to an image and to its noisy copy, but the "
                         "model answers at random in training (dropout): nothing would be the noise's doing alone.",
                         hint="--set neighbour_weight=0")
    per_epoch, sparsify_steps, steps = training.plan_steps(recipe, len(subject.dataset.train), request.sparsity)
    return training.Plan(
        recipe=recipe, teacher=teacher.model, hidden=hidden, weights=tuple(weights), companions=_companions(subject.model, x),
        sparsity=request.sparsity, structure=request.structure, num_classes=subject.loaded.num_classes, eps=subject.eps,
        norm=subject.norm,
        split=subject.dataset.train, augment=subject.dataset.augment if recipe.augment == "auto" else recipe.augment,
        seed=request.seed, steps_per_epoch=per_epoch, sparsify_steps=sparsify_steps, steps=steps)


def _matches_layers(recipe: Recipe) -> bool:
    """Whether the loss compares layers of student and teacher, and not their logits alone."""
    return bool(recipe.hidden_weight or recipe.explain_weight)


def _prunable(model: nn.Module, x: Tensor, reached: set[str], structure: str) -> tuple[dict[str, nn.Parameter], int]:
    """Weights that count, and the number of dead ones left out. With filters the logits' own layer keeps its rows.

    Args: reached: names of the parameters that reach the logits.
    """
    live = layers.prunable(model, reached)
    dead = sum(w.numel() for w in layers.prunable(model, None).values()) - sum(w.numel() for w in live.values())
    modules = dict(model.named_modules())
    weights = {name: w for name, w in live.items() if w.requires_grad  # the author's frozen ones stay
               and (structure == "unstructured" or isinstance(modules[name.rpartition(".")[0]], layers.PRUNABLE))}
    if structure == "filter" and weights:
        weights.pop(layers.logit_layer(model, x) + ".weight", None)
    if not weights:
        raise InputError(f"The model has no weights that could be pruned ({structure}).",
                         hint="Whole filters and columns are those of convolutions and linear layers: --structure unstructured")
    return weights, dead


def _check_sparsity(weights: Mapping[str, Tensor], sparsity: float, where: str) -> None:
    """At least one weight goes, and the model has fewer zeros than are wanted."""
    total = sum(w.numel() for w in weights.values())
    zeros = total - sum(int(w.count_nonzero()) for w in weights.values())
    if not round(sparsity * total):
        raise InputError(f"--sparsity {sparsity:g} of the {total:,} weights of {where} is less than one weight.",
                         hint="Nine weights in ten: --sparsity 0.9")
    if zeros > sparsity * total:
        raise InputError(f"{where} is pruned already: {show.percent_of_weights(zeros / total)}% of its weights are zero, "
                         f"{100 * sparsity:g}% were asked for.", hint=f"Ask for more: --sparsity above {zeros / total:.4g}")


def _check_structure(recipe: Recipe, structure: str) -> None:
    """Options of the recipe that belong to some structures only."""
    if recipe.start == "obs" and structure != "unstructured":
        raise InputError(f"start = 'obs' reconstructs around single weights; --structure is {structure}.",
                         hint="--set start=dense")
    if recipe.regrow and structure == "filter":  # weight, scale and shift are zero together: no gradient says what it is worth
        raise InputError("regrow cannot bring whole filters back: a silent filter has no gradient.", hint="--set regrow=0")


def _check_reachable(weights: Mapping[str, Tensor], request: Request, recipe: Recipe) -> None:
    """The groups of the structure come within a point of the wanted sparsity while every layer keeps one."""
    where, kind, wanted = request.source.path, request.structure, request.sparsity
    try:
        method = "uniform" if recipe.allocation == "sensitivity" else recipe.allocation  # that is measured later
        quotas = allocation.quotas(weights, wanted, method=method, structure=kind)
    except ValueError as error:
        raise InputError(f"{where}: {error}.", hint="A lower --sparsity.") from None
    zeros = sum(w.numel() - int(keep_mask(w, quotas[name], kind).sum()) for name, w in weights.items())
    most = zeros / sum(w.numel() for w in weights.values())
    if most < wanted - 0.01:
        raise InputError(f"{where}: {100 * wanted:g}% cannot be reached with whole {kind}s, as one must stay in each of "
                         f"{len(weights)} layers: at most {show.percent_of_weights(most)}%.",
                         hint=f"--sparsity {int(100 * most) / 100:g}")


def _same_hidden(student: nn.Module, teacher: nn.Module, hidden: tuple[str, ...], x: Tensor) -> bool:
    """Whether hidden layers can be matched: of the same names and shapes in both models."""
    shapes = []
    for model in (student, teacher):
        names = dict(model.named_modules())
        with torch.no_grad(), layers.capture(model, [n for n in hidden if n in names]) as outputs:
            model(x)
            shapes.append([tuple(z.shape) for z in outputs])
    return shapes[0] == shapes[1]


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


# --- the run ----------------------------------------------------------------------------------------------------------

def execute(job: Job, folder: Path, *, say: Say, progress: Progress, created: datetime) -> dict[str, Any]:
    """Prune, save, verify, measure; every file of the run folder but metrics.jsonl is written whole or not at all.

    Returns: the report, as in report.json.
    """
    request, subject, seconds = job.request, job.subject, job.seconds
    environment = report.environment(device=str(job.device), seed=request.seed)
    run.write_toml(folder / "config.toml", _config(job, environment))
    student = _logged_fit(job, folder, say=say, progress=progress)
    with _timed(seconds, "save"):
        size = _save(job, student, folder / "model.safetensors")
    say(f"saved and verified {folder / 'model.safetensors'} ({show.size(size['file_bytes'])})")
    x = samples(subject.dataset, request.n, seed=request.seed)
    with _timed(seconds, "evaluate"):
        scores = assess.measure({"teacher": job.teacher.model, "pruned": student}, x, subject=subject,
                                attack_names=request.attacks, seed=request.seed, progress=progress, say=say)
    result = report.build(
        created=created, norm=subject.norm, eps=subject.eps, target=request.sparsity, structure=request.structure, size=size,
        model=_origin(job), layers=_layers(job, student), macs=layers.macs(student, x[:1]), teacher=to_json(scores["teacher"]),
        student=to_json(scores["pruned"]), drop=assess.compare(scores["teacher"], scores["pruned"]), seconds=seconds,
        environment=environment, recipe=asdict(job.plan.recipe), notes=[*_notes(job), *assess.notes(scores)],
        findings=assess.findings(scores),
        data=assess.data_fields(subject, n=request.n, seed=request.seed) | {"argument": request.data or subject.dataset.name})
    assess.write(folder, result)
    return result


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def fit(job: Job, *, note: Callable[[training.State, dict[str, float]], None]) -> nn.Module:
    """Run both phases; returns the pruned model in eval mode and plain memory layout. The subject stays as it was."""
    plan, student = _copies(job)
    with torch.random.fork_rng():  # training seeds the global generator for dropout
        state = training.run(plan, training.begin(plan, student), report=note)
    return state.student.to(memory_format=torch.contiguous_format).eval()


def time_to_fit(job: Job) -> estimate.Estimate:
    """How long `fit` will take, from a few of its steps on copies."""
    with torch.random.fork_rng():
        return estimate.measure(*_copies(job))


def _copies(job: Job) -> tuple[training.Plan, nn.Module]:
    """The plan with a teacher of its own, and the student, both in the faster memory layout."""
    flat = all(t.ndim != 5 for t in job.subject.model.state_dict().values())
    layout = torch.channels_last if flat else torch.contiguous_format  # 1.5 times as fast on a CPU; not made for 3D convolutions
    student = copy.deepcopy(job.subject.model).to(memory_format=layout)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.0)  # -0.0, as products with masks leave it, becomes +0.0
    teacher = copy.deepcopy(job.teacher.model).to(memory_format=layout).eval().requires_grad_(False)
    return replace(job.plan, teacher=teacher), student


def _logged_fit(job: Job, folder: Path, *, say: Say, progress: Progress) -> nn.Module:
    """`fit` with its losses in metrics.jsonl and its phases timed."""
    plan, seconds, start = job.plan, job.seconds, time.perf_counter()
    seconds |= {"sparsify": 0.0, "finetune": 0.0}
    epochs = -(-plan.steps // plan.steps_per_epoch)
    progress("prune", 0, plan.steps, f"epoch 1/{epochs}")
    notes: list[tuple[int, float]] = []  # (step, time)
    with run.MetricsLog(folder / "metrics.jsonl") as log:

        def note(state: training.State, losses: dict[str, float]) -> None:
            phase = "sparsify" if state.step <= plan.sparsify_steps else "finetune"
            now = time.perf_counter() - start
            notes.append((state.step, now))
            if len(notes) == 2:  # what is measured once before the first step is in the first note's time
                per_step = (now - notes[0][1]) / (state.step - notes[0][0])
                rest = per_step * (plan.steps - state.step)
                say(str(estimate.Estimate(now + rest, per_step, plan.steps, estimate.work(plan, job.subject.model))))
            seconds[phase] = now - (seconds["sparsify"] if phase == "finetune" else 0.0)
            log.append({"step": state.step, "epoch": state.step / plan.steps_per_epoch, "phase": phase, "seconds": now, **losses})
            epoch = -(-state.step // plan.steps_per_epoch)
            progress("prune", state.step, plan.steps, f"epoch {epoch}/{epochs} | {phase} | loss {losses['loss']:.3g}")

        return fit(job, note=note)


def _save(job: Job, student: nn.Module, path: Path) -> dict[str, int]:
    """Write the sparse file and prove it: loaded again, its logits equal the pruned model's bit for bit. Returns the sizes."""
    _check_zeros(job, student)
    subject = job.subject
    state = {n.removeprefix("net."): t.detach().cpu() for n, t in student.state_dict().items() if n.startswith("net.")}
    metadata = checkpoint.to_metadata(subject.loaded) | {
        "data": subject.dataset.name, "norm": subject.norm, "eps": repr(subject.eps), "recipe": job.plan.recipe.name,
        "source": Path(subject.loaded.source).name, "source_sha256": subject.loaded.sha256,
        "pwoa_version": pwoa_cli.__version__, "seed": str(job.request.seed)}
    file_bytes = sparse_file.save(state, path, metadata=metadata)
    arch = subject.loaded.arch if ".py:" in subject.loaded.arch else None  # the user named that file in this very command
    again = pwoa_cli.load(path, arch=arch).to(job.device)
    x = samples(subject.dataset, min(100, len(subject.dataset.test)), seed=job.request.seed)[:]
    with torch.no_grad():
        equal = torch.equal(again(x), student(x))
    if not equal:
        raise PwoaError(f"{path} does not give the pruned model's logits when it is loaded again.",
                        hint="Please report this, with the checkpoint: the file is kept.")
    return {"dense_bytes": sparse_file.dense_bytes(state), "file_bytes": file_bytes,
            "limit_bytes": sparse_file.limit_bytes(state)}


def _check_zeros(job: Job, student: nn.Module) -> None:
    """Exactly the wanted zeros, none of them -0.0: a property that the file's readers may rely on."""
    parameters = dict(student.named_parameters())
    weights = torch.cat([parameters[n].detach().flatten() for n in job.plan.weights])
    assert not weights[weights == 0].signbit().any(), "masked_fill leaves +0.0"
    if job.request.structure == "unstructured":
        assert int((weights == 0).sum()) >= round(job.request.sparsity * len(weights)), "masks hold until the end"


# --- what is said about it --------------------------------------------------------------------------------------------

def _config(job: Job, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Everything resolved, so that the same command can be given again."""
    request, subject, origin = job.request, job.subject, _origin(job)
    return {"model": origin.pop("source"), **origin, "mean": subject.loaded.mean, "std": subject.loaded.std,
            "data": subject.dataset.name, "data_where": short_path(subject.dataset.where), "norm": subject.norm,
            "eps": subject.eps, "sparsity": request.sparsity, "structure": request.structure, "attacks": request.attacks,
            "n": request.n, "seed": request.seed, "hidden_layers": _public(job.plan.hidden),
            "weights": _public(job.plan.weights), "steps": job.plan.steps, "eval_block": BLOCK,
            "recipe": asdict(job.plan.recipe), "environment": dict(environment)}


def _origin(job: Job) -> dict[str, Any]:
    loaded, source = job.subject.loaded, job.request.source
    reading = {key: value for key, value in (("entry", source.entry), ("keep", source.keep)) if value is not None}
    return {"source": source.path, "sha256": loaded.sha256, "arch": loaded.arch, "arch_options": loaded.arch_options,
            "num_classes": loaded.num_classes, "teacher": job.teacher.source, "teacher_sha256": job.teacher.sha256,
            "reading": reading}


def _layers(job: Job, student: nn.Module) -> list[dict[str, Any]]:
    parameters = dict(student.named_parameters())
    weights = [parameters[name].detach() for name in job.plan.weights]
    return [{"name": name, "shape": list(w.shape), "nonzero": int(w.count_nonzero()), "total": w.numel()}
            for name, w in zip(_public(job.plan.weights), weights, strict=True)]


def _not_counted(names: Sequence[str]) -> str:
    """The sentence on parameters that are neither pruned nor counted though they are as large as weights."""
    return f"{', '.join(names[:3])}{', ...' * (len(names) > 3)} of layers that pwoa does not prune do not count for sparsity."


def _notes(job: Job) -> list[str]:
    notes = list(job.subject.loaded.notes)
    if job.dead:
        notes.append(f"{job.dead:,} weights never reach the logits; they are not pruned and do not count.")
    if job.uncounted:
        notes.append(_not_counted(_public(job.uncounted)))
    modules = dict(job.subject.model.named_modules())
    own = [name for name in job.plan.weights if not isinstance(modules[name.rpartition(".")[0]], layers.PRUNABLE)]
    if own:
        notes.append(f"MACs are those of convolutions and linear layers; {', '.join(_public(own[:3]))} are of other layers.")
    if job.request.structure == "filter":
        notes.append("The layer that gives the logits keeps all its rows and does not count.")
    if job.teacher is not job.subject.loaded and not _matches_layers(job.plan.recipe):
        notes.append(LOGITS_ALONE)
    recipe, plan = job.plan.recipe, job.plan
    if recipe.method == "admm" and plan.sparsify_steps <= recipe.admm_every * plan.steps_per_epoch:
        notes.append(f"ADMM made no z/u update: its phase ended within {recipe.admm_every} epochs. This is not the published schedule.")
    if recipe.mix_ratio:
        threat = f"{job.subject.norm}, eps {show.radius(job.subject.eps)}"
        notes.append(f"Partial access: adversarial examples (PGD-{training.ATTACK_STEPS} on the student, {threat}) "
                     f"took the place of {100 * recipe.mix_ratio:g}% of the training batches.")
    else:
        notes.append("No adversarial example was generated while pruning.")
    return notes
