"""The main path of `pwoa prune`: set up and check -> sparsify -> masked finetune -> save and verify ->
measure -> report."""
import copy
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pwoa_cli.attacks import parse
from pwoa_cli.checkpoints.architecture import is_file
from pwoa_cli.checkpoints.model import Source, load_model, to_metadata
from pwoa_cli.data.samples import samples
from pwoa_cli.errors import PwoaError
from pwoa_cli.evaluation.comparison import compare, findings, measure, notes
from pwoa_cli.evaluation.results import to_json
from pwoa_cli.files import sparse
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.files.metrics import MetricsLog
from pwoa_cli.files.plain import write_toml
from pwoa_cli.machine.environment import environment
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import WRAPPED
from pwoa_cli.progress import Progress, Say
from pwoa_cli.pruning.groups import single
from pwoa_cli.reports import numbers, schema
from pwoa_cli.reports.gates import judged
from pwoa_cli.reports.write import write
from pwoa_cli.training import duration, loop
from pwoa_cli.training.state import Plan, State
from pwoa_cli.version import __version__
from pwoa_cli.workflows.prune_job import Job, timed
from pwoa_cli.workflows.prune_report import config, job_notes, layer_rows, origin, wanted
from pwoa_cli.workflows.setup import data_fields, data_notes

# --- the run ---------------------------------------------------------------

def execute(job: Job, folder: Path, *, say: Say, progress: Progress, created: datetime) -> dict[str, Any]:
    """Prune, save, verify, measure; every file of the run folder but metrics.jsonl is written whole or not at
    all.

    Returns: the report, as in report.json.
    """
    request, subject, seconds = job.request, job.subject, job.seconds
    machine = environment(device=str(job.device), seed=request.seed)
    write_toml(folder / "config.toml", config(job, machine))
    student, lowered = _logged_fit(job, folder, say=say, progress=progress)
    with timed(seconds, "save"):
        size = _save(job, student, folder / "model.safetensors")
    say(f"saved and verified {folder / 'model.safetensors'} ({numbers.size(size['file_bytes'])})")
    x = samples(subject.dataset, request.n, seed=request.seed)
    with timed(seconds, "evaluate"):
        scores = measure({"teacher": job.teacher.model, "pruned": student}, x, norm=subject.norm,
                         eps=subject.eps,
                         attack_names=request.attacks, seed=request.seed, progress=progress, say=say)
    rows = layer_rows(job, student)
    result = schema.build(
        created=created, norm=subject.norm, eps=subject.eps, target=wanted(job, rows),
        structure=request.structure, size=size,
        model=origin(job) | {"file_sha256": file_sha256(folder / "model.safetensors")},
        command=request.command, layers=rows, macs=layers.macs(student, x[:1]),
        teacher=to_json(scores["teacher"]),
        student=to_json(scores["pruned"]), drop=compare(scores["teacher"], scores["pruned"]), seconds=seconds,
        environment=machine, recipe=asdict(job.plan.recipe),
        notes=[*job_notes(job), *data_notes(subject), *lowered, *notes(scores)],
        findings=findings(scores), attacks=[attack.name for attack in parse(request.attacks)],
        data=data_fields(subject, n=request.n, seed=request.seed)
        | {"argument": request.data or subject.dataset.name})
    if request.gates:
        result["gates"] = judged(result, request.gates, strict=request.strict)
    write(folder, result)
    return result


def fit(job: Job, *, note: Callable[[State, dict[str, float]], None],
        restarted: Say = lambda text: None) -> nn.Module:
    """Run both phases; returns the pruned model in eval mode and plain memory layout. The subject stays as it
    was; `restarted` gets a sentence where a rate is lowered."""
    plan, student = _copies(job)
    with torch.random.fork_rng():  # training seeds the global generator for dropout
        state = loop.run(plan, loop.begin(plan, student), report=note, restarted=restarted)
    return state.student.to(memory_format=torch.contiguous_format).eval()


def time_to_fit(job: Job) -> duration.Estimate:
    """How long `fit` will take, from a few of its steps on copies."""
    with torch.random.fork_rng():
        return duration.measure(*_copies(job))


def _copies(job: Job) -> tuple[Plan, nn.Module]:
    """The plan with a teacher of its own, and the student, both in the layout that training runs in."""
    student = copy.deepcopy(job.subject.model).to(memory_format=job.layout)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.0)  # -0.0, as products with masks leave it, becomes +0.0
    teacher = copy.deepcopy(job.teacher.model).to(memory_format=job.layout).eval().requires_grad_(False)
    return replace(job.plan, teacher=teacher), student


def _logged_fit(job: Job, folder: Path, *, say: Say, progress: Progress) -> tuple[nn.Module, list[str]]:
    """`fit` with its losses in metrics.jsonl and its phases timed; with the model, what it said of rates that
    were too high."""
    plan, seconds, start = job.plan, job.seconds, time.perf_counter()
    seconds |= {"sparsify": 0.0, "finetune": 0.0}
    epochs = -(-plan.steps // plan.steps_per_epoch)
    progress("prune", 0, plan.steps, f"epoch 1/{epochs}")
    notes: list[tuple[int, float]] = []  # (step, time)
    lowered: list[str] = []

    def restarted(text: str) -> None:
        lowered.append(text[0].upper() + text[1:])
        say(f"warning: {text}")

    with MetricsLog(folder / "metrics.jsonl") as log:

        def note(state: State, losses: dict[str, float]) -> None:
            phase = "sparsify" if state.step <= plan.sparsify_steps else "finetune"
            now = time.perf_counter() - start
            if notes and state.step <= notes[-1][0]:
                notes.clear()  # once more from the start, at a lower rate
            notes.append((state.step, now))
            if len(notes) == 2:  # what is measured once before the first step is in the first note's time
                per_step = (now - notes[0][1]) / (state.step - notes[0][0])
                rest = per_step * (plan.steps - state.step)
                say(str(duration.Estimate(now + rest, per_step, plan.steps,
                                          duration.work(plan, job.subject.model))))
            seconds[phase] = now - (seconds["sparsify"] if phase == "finetune" else 0.0)
            log.append({"step": state.step, "epoch": state.step / plan.steps_per_epoch, "phase": phase,
                        "seconds": now, **losses})
            epoch = -(-state.step // plan.steps_per_epoch)
            progress("prune", state.step, plan.steps,
                     f"epoch {epoch}/{epochs} | {phase} | loss {losses['loss']:.3g}")

        return fit(job, note=note, restarted=restarted), lowered


def _save(job: Job, student: nn.Module, path: Path) -> dict[str, int]:
    """Write the sparse file and prove it: loaded again, its logits equal the pruned model's bit for bit.
    Returns the sizes."""
    _check_zeros(job, student)
    subject = job.subject
    state = {name: t.detach().cpu() for name, t in student.get_submodule(WRAPPED).state_dict().items()}
    metadata = to_metadata(subject.loaded) | {
        "data": subject.dataset.name, "norm": subject.norm, "eps": repr(subject.eps),
        "recipe": job.plan.recipe.name,
        "source": Path(subject.loaded.source).name, "source_sha256": subject.loaded.sha256,
        "pwoa_version": __version__, "seed": str(job.request.seed)}
    file_bytes = sparse.save(state, path, metadata=metadata)
    # the user named that file in this very command
    arch = subject.loaded.arch if is_file(subject.loaded.arch) else None
    again = load_model(Source(str(path), arch=arch)).model.to(job.device)
    x = samples(subject.dataset, min(100, len(subject.dataset.test)), seed=job.request.seed)[:]
    with torch.no_grad():
        equal = torch.equal(again(x), student(x))
    if not equal:
        raise PwoaError(f"{path} does not give the pruned model's logits when it is loaded again.",
                        hint="Please report this, with the checkpoint: the file is kept.")
    return {"dense_bytes": sparse.dense_bytes(state), "file_bytes": file_bytes,
            "limit_bytes": sparse.limit_bytes(state)}


def _check_zeros(job: Job, student: nn.Module) -> None:
    """Exactly the wanted zeros, none of them -0.0: a property that the file's readers may rely on."""
    parameters = dict(student.named_parameters())
    weights = torch.cat([parameters[n].detach().flatten() for n in job.plan.weights])
    zeros, wanted = weights[weights == 0], round(job.request.sparsity * len(weights))
    if zeros.signbit().any() or single(job.plan.groups) and len(zeros) < wanted:
        raise PwoaError(f"The pruned model has {len(zeros):,} zero weights, {int(zeros.signbit().sum()):,} "
                        f"of them -0.0, expected {wanted:,} of +0.0; nothing was saved.",
                        hint="Please report this, with the command and the checkpoint.")

