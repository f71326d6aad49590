"""What `pwoa prune` was asked for, what was found and decided for it, and how that is told."""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pwoa_cli.checkpoints.model import Loaded, Source
from pwoa_cli.data.choices import Choices
from pwoa_cli.data.samples import View
from pwoa_cli.machine.devices import multiplies_bf16
from pwoa_cli.networks.build import public_names
from pwoa_cli.reports import numbers
from pwoa_cli.reports.gates import Gate
from pwoa_cli.training import footing, layout
from pwoa_cli.training.kinds import Kinds
from pwoa_cli.training.recipe import Recipe
from pwoa_cli.training.state import Plan
from pwoa_cli.workflows.prune_weights import Counted
from pwoa_cli.workflows.search import Goal
from pwoa_cli.workflows.setup import Subject, pruned_already

NO_HIDDEN = "The network has no hidden layer: it is distilled from its logits alone."
LOGITS_ALONE = ("Distilled from the logits of --teacher alone: its hidden layers are not those of the "
                "model, or not asked for.")


@dataclass(frozen=True)
class Request(Goal):
    """What the user asked `pwoa prune` for; None: inferred or the recipe's. sparsity: where another field
    says how much goes, what comes of that; with max_loss the one that is tried. structure: "": channel where
    whole ones are to go, the one that nm says, else unstructured. eps as typed ("8/255"). command: what was
    typed, by parameter, kept in config.toml; sha256: what the model's must be, None for any. compile: auto,
    on or off."""

    source: Source
    structure: str = ""
    recipe: str = "default"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    teacher: Source | None = None
    data: str | None = None
    choices: Choices = field(default_factory=Choices)
    norm: str | None = None
    eps: str | None = None
    attacks: str = "fgsm,pgd-10,pgd-20,cw"
    n: int = 1000
    seed: int = 0
    device: str = "auto"
    gates: Sequence[Gate] = ()
    strict: bool = False
    command: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    compile: str = "auto"

    @property
    def share(self) -> float:
        """The fraction that is to go, of what `of` says."""
        return self.channels or self.macs or self.sparsity

    @property
    def of(self) -> str:
        """What that fraction is of, as `allocation.quotas` takes it."""
        return "groups" if self.channels else "macs" if self.macs else "weights"

    @property
    def flag(self) -> str:
        """The option that says so."""
        return {"groups": "--channels", "macs": "--macs", "weights": "--sparsity"}[self.of]


@dataclass(frozen=True)
class Job:
    """A request with everything found, checked and decided; nothing is written yet. layout: of memory, for
    training. held_out: training images that nothing is trained on, for the search of --max-loss."""

    request: Request
    subject: Subject
    teacher: Loaded
    plan: Plan
    device: torch.device
    counted: Counted
    layout: torch.memory_format
    seconds: dict[str, float]
    held_out: View | None = None
    compiled: bool = False  # whether its steps are


def sentences(job: Job, kinds: Kinds) -> Iterator[str]:
    """Everything to know of a run before it begins, for people."""
    request, plan, found = job.request, job.plan, job.counted
    recipe, total = plan.recipe, sum(w.numel() for w in found.weights.values())
    if recipe.precision == "bf16" and multiplies_bf16(job.device) is False:
        yield (f"warning: precision = bf16 is likely slower than float32 here: {job.device.type} has no "
               "instructions for it.")
    first = "" if request.max_loss is None else f"first {numbers.percent_of_weights(request.sparsity)}%, "
    yield (f"prune {total:,} weights in {len(found.weights)} layers {_goal(request)} "
           f"({_words(request)}), recipe {recipe.name}: {first}{plan.steps} steps, "
           f"{plan.epochs:g} epoch{'s' * (plan.epochs != 1)}; {len(plan.hidden)} hidden layers: "
           f"{_some(public_names(plan.hidden))}")
    yield (f"settings for {kinds}: {recipe.optimizer} at {recipe.lr:g}, batches of {recipe.batch_size}, "
           f"{recipe.allocation} allocation, noise {recipe.noise}")
    yield epochs_said(request, plan)
    yield from (f"note: {note}" for note in footing.notes(plan))
    if job.layout is not layout.LAYOUTS[0]:
        yield "memory layout: plain, as the networks do not take channels_last, which is faster"
    if not plan.hidden:
        yield NO_HIDDEN
    elif job.teacher is not job.subject.loaded and not matches_layers(recipe):
        yield LOGITS_ALONE
    if found.left_out:
        yield found.sentence()
    for sentence in pruned_already(job.teacher):
        yield f"note: {sentence} --teacher FILE, of the network before, distils from it and compares with it"


def _goal(request: Request) -> str:
    if request.max_loss is None:
        return f"to {numbers.percent_of_weights(request.sparsity)}% zeros"
    return f"as far as the worst case loses at most {numbers.points(request.max_loss)}"


def epochs_said(request: Request, plan: Plan) -> str:
    """epochs: 20 of 468 steps (the default of recipe default at 99% sparsity; --epochs changes it)."""
    recipe, asked = plan.recipe, "epochs" in request.overrides
    effort = "" if recipe.effort == "default" else f" with effort {recipe.effort}"
    sparsity = f"{numbers.percent_of_weights(request.sparsity)}%" if recipe.stretch else "any"
    default = f"the default of recipe {recipe.name} at {sparsity} sparsity{effort}; --epochs changes it"
    why = "as asked" if asked else default
    if request.max_loss is not None:
        why = (f"of a stage: a third of the {recipe.epochs:g} that were asked for" if asked
               else f"of the first stage: a third of {default}")
    per_epoch = plan.steps_per_epoch
    return f"epochs: {plan.epochs:g} of {per_epoch:,} step{'s' * (per_epoch > 1)} ({why})"


def _words(request: Request) -> str:
    if request.macs:
        return f"{100 * request.macs:g}% of the multiplications"
    return f"{100 * request.channels:g}% of the channels" if request.channels else request.structure


def _some(names: Sequence[str], most: int = 9) -> str:
    """All names, or of more than `most` the first four and the last: config.toml has them all."""
    return ", ".join(names if len(names) <= most else [*names[:4], "...", names[-1]])


def matches_layers(recipe: Recipe) -> bool:
    """Whether the loss compares layers of student and teacher, and not their logits alone."""
    return bool(recipe.hidden_weight or recipe.explain_weight)
