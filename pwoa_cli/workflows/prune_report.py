"""What is said about a pruning run: its configuration, its layers, its notes."""
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.evaluate import BLOCK
from pwoa_cli.files.metrics import read_metrics
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import public_names
from pwoa_cli.pruning.groups import structure_of
from pwoa_cli.reports import numbers
from pwoa_cli.training.inputs import ATTACK_STEPS
from pwoa_cli.workflows.prune_request import LOGITS_ALONE, NO_HIDDEN, Job, matches_layers
from pwoa_cli.workflows.setup import pruned_already, short_path


def config(job: Job, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Everything resolved, so that the same command can be given again."""
    request, subject, where = job.request, job.subject, origin(job)
    return {"model": where.pop("source"), **where, "mean": subject.loaded.mean, "std": subject.loaded.std,
            "data": subject.dataset.name, "data_where": short_path(subject.dataset.where),
            "data_sha256": subject.dataset.sha256(), "norm": subject.norm,
            "eps": subject.eps, **_goal(job), "structure": request.structure,
            "attacks": request.attacks,
            "n": request.n, "seed": request.seed, "hidden_layers": public_names(job.plan.hidden),
            "weights": public_names(job.plan.weights), "eval_block": BLOCK,
            "command": dict(request.command), "recipe": asdict(job.plan.recipe),
            "environment": dict(environment)} | ({"compiled": True} if job.compiled else {})


def _goal(job: Job) -> dict[str, Any]:
    """The sparsity and its steps; or what they are searched by."""
    if job.held_out is None:
        return {"sparsity": job.request.sparsity, "steps": job.plan.steps}
    return {"max_loss": job.request.max_loss, "held_out": len(job.held_out)}


def hsic_share(job: Job, log: Path) -> float | None:
    """Median share of HSIC in the loss's gradient over the steps that were looked at, from a run's log: of
    the stage that a search accepted, after the last start at a lower rate. None where the log has none."""
    shares: list[float] = []
    last = 0
    for line in _logged(log):
        if line.get("sparsity", job.plan.sparsity) != job.plan.sparsity:
            continue
        if line["step"] <= last:  # once more from the start
            shares.clear()
        last = line["step"]
        if "hsic_share" in line:
            shares.append(line["hsic_share"])
    return statistics.median(shares) if shares else None


def _logged(log: Path) -> list[dict[str, Any]]:
    """Its lines; none of a log that was lost, which costs no run."""
    with suppress(InputError):
        return read_metrics(log)
    return []


def trained(job: Job, log: Path) -> dict[str, Any]:
    """What became of the recipe: epochs and steps, and how strongly HSIC pulled where it did."""
    share = hsic_share(job, log)
    return {"epochs": job.plan.epochs, "steps": job.plan.steps} | (
        {} if share is None else {"hsic_share": share})


def origin(job: Job) -> dict[str, Any]:
    """Where model and teacher came from."""
    loaded, source = job.subject.loaded, job.request.source
    reading = {key: value for key, value in (("entry", source.entry), ("keep", source.keep))
               if value is not None}
    return {"source": source.path, "sha256": loaded.sha256, "arch": loaded.arch,
            "arch_options": loaded.arch_options,
            "num_classes": loaded.num_classes, "teacher": job.teacher.source,
            "teacher_sha256": job.teacher.sha256,
            "reading": reading}


def layer_rows(job: Job, student: nn.Module) -> list[dict[str, Any]]:
    """Name, shape and counts of every pruned tensor."""
    parameters = dict(student.named_parameters())
    weights = [parameters[name].detach() for name in job.plan.weights]
    return [{"name": name, "shape": list(w.shape), "nonzero": int(w.count_nonzero()), "total": w.numel()}
            for name, w in zip(public_names(job.plan.weights), weights, strict=True)]


def wanted(job: Job, rows: Sequence[Mapping[str, Any]]) -> float:
    """The sparsity that was asked for; where channels or multiplications were, what those that went make of
    it (rows: of `layer_rows`)."""
    if job.request.of == "weights":
        return job.request.sparsity
    return 1 - sum(row["nonzero"] for row in rows) / sum(row["total"] for row in rows)


def _channels(job: Job) -> list[str]:
    """How many channels went, where whole ones do."""
    if not structure_of(job.request.structure).couples:
        return []
    share, count = job.request.share, sum(group.count for group in job.plan.groups.values())
    asked = {"groups": f"--channels {share:g} took {round(share * count)} of them. ",
             "macs": f"--macs {share:g} says how many go. "}.get(job.request.of, "")
    return [f"The network has {count} channels that could go, in {len(job.plan.groups)} coupled "
            f"set{'s' * (len(job.plan.groups) != 1)}. {asked}"
            "A weight that gives one and reads another counts once. pwoa export --format slim removes them."]


def job_notes(job: Job) -> list[str]:
    """What a reader of the figures must know, a sentence each."""
    notes = [*job.subject.loaded.notes, *pruned_already(job.teacher)]
    if job.counted.dead:
        notes.append(f"{job.counted.dead:,} weights never reach the logits; they are not pruned and do not "
                     "count.")
    if job.counted.left_out:
        notes.append(job.counted.sentence())
    rows = layers.rows(job.subject.model)
    own = [name for name in job.plan.weights if name not in rows and not name.endswith("_proj_weight")]
    if own:
        notes.append("MACs are those of convolutions, linear layers and attention's projections; "
                     f"{', '.join(public_names(own[:3]))} are of other layers.")
    if structure_of(job.request.structure).keeps_logits:
        notes.append("The layer that gives the logits keeps all its rows and does not count.")
    notes += _channels(job)
    if not job.plan.hidden:
        notes.append(NO_HIDDEN)
    elif job.teacher is not job.subject.loaded and not matches_layers(job.plan.recipe):
        notes.append(LOGITS_ALONE)
    recipe, plan = job.plan.recipe, job.plan
    if recipe.method == "admm" and plan.sparsify_steps <= recipe.admm_every * plan.steps_per_epoch:
        notes.append(f"ADMM made no z/u update: its phase ended within {recipe.admm_every} epochs. This is "
                     "not the published schedule.")
    if recipe.mix_ratio:
        threat = f"{job.subject.norm}, eps {numbers.radius(job.subject.threat[1])}"
        notes.append(f"Partial access: adversarial examples (PGD-{ATTACK_STEPS} on the student, {threat}) "
                     f"took the place of {100 * recipe.mix_ratio:g}% of the training batches.")
    elif job.held_out is None:
        notes.append("No adversarial example was generated while pruning.")
    else:
        notes.append("No adversarial example was trained on: those of the images held out only told which "
                     "student was accepted.")
    return notes
