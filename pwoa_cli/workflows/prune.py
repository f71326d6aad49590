"""The main path of `pwoa prune`: set up and check -> sparsify -> masked finetune -> save and verify ->
measure -> report."""
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pwoa_cli.attacks import parse
from pwoa_cli.checkpoints.architecture import is_file
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.data.samples import samples
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.evaluation.comparison import compare, findings, measure, notes
from pwoa_cli.evaluation.results import to_json
from pwoa_cli.files import run_folder, sparse
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.files.keeper import SECONDS, Keeper
from pwoa_cli.files.metrics import MetricsLog
from pwoa_cli.files.plain import write_toml
from pwoa_cli.files.run_folder import METRICS
from pwoa_cli.machine import signals
from pwoa_cli.machine.environment import environment
from pwoa_cli.machine.generators import own_draws
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import WRAPPED
from pwoa_cli.progress import Progress, Say
from pwoa_cli.pruning.groups import by_block, single
from pwoa_cli.reports import numbers, schema
from pwoa_cli.reports.gates import judged
from pwoa_cli.reports.write import write
from pwoa_cli.training import compilation, duration, loop
from pwoa_cli.training.state import Plan, State
from pwoa_cli.workflows import prune_search
from pwoa_cli.workflows.prune_job import timed
from pwoa_cli.workflows.prune_report import config, job_notes, layer_rows, origin, trained, wanted
from pwoa_cli.workflows.prune_request import Job
from pwoa_cli.workflows.prune_resume import clear, keeper_of, parts
from pwoa_cli.workflows.prune_size import file_metadata
from pwoa_cli.workflows.setup import data_fields, data_notes

# --- the run ---------------------------------------------------------------

def execute(job: Job, folder: Path, *, say: Say, progress: Progress, created: datetime,
            checkpoint_every: float = SECONDS) -> dict[str, Any]:
    """Prune, save, verify, measure; every file of the run folder but metrics.jsonl is written whole or not at
    all. A run of the same configuration that was stopped in this folder goes on.

    Args: checkpoint_every: seconds between two states that are kept, at the least.
    Returns: the report, as `keep` writes it. Raises: InputError if the folder holds another unfinished run.
    """
    check_room(job, folder)
    machine = environment(device=str(job.device), seed=job.request.seed)
    table = config(job, machine)
    keeper = keeper_of(job, folder, table, every=checkpoint_every, say=say)
    earlier = keeper.kept() or {"created": created.isoformat()}
    created = datetime.fromisoformat(earlier["created"])
    job, student, lowered, way = _student(job, folder, keeper, earlier, say=say, progress=progress)
    request, subject, seconds = job.request, job.subject, job.seconds
    norm, eps = subject.threat
    say("saving, and loading again what was saved")
    if not folder.is_dir():
        say(f"warning: {folder} was removed during the run; it is made again, without the log.")
        folder.mkdir(parents=True)
        write_toml(folder / "config.toml", table)
    with timed(seconds, "save"):
        size = _save(job, student, folder / "model.safetensors")
    say(f"saved and verified {folder / 'model.safetensors'} ({numbers.size(size['file_bytes'])})")
    x = samples(subject.dataset, request.n, seed=request.seed)
    models = {"teacher": job.teacher.model, "pruned": student}
    with timed(seconds, "evaluate"), parts(job, folder, models, say=say) as unfinished:
        scores = measure(models, x, norm=norm, eps=eps, attack_names=request.attacks,
                         seed=request.seed, progress=progress, say=say, unfinished=unfinished)
    rows = layer_rows(job, student)
    result = schema.build(
        created=created, norm=norm, eps=eps, target=wanted(job, rows),
        structure=request.structure, size=size,
        model=origin(job) | {"file_sha256": file_sha256(folder / "model.safetensors")},
        command=request.command, layers=rows, macs=layers.macs(student, x[:1]),
        teacher=to_json(scores["teacher"]),
        student=to_json(scores["pruned"]), drop=compare(scores["teacher"], scores["pruned"]), seconds=seconds,
        environment=machine, recipe=asdict(job.plan.recipe)
        | {"trained": trained(job, folder / METRICS)},
        notes=[*job_notes(job), *data_notes(subject, n=request.n, seed=request.seed), *lowered,
               *notes(scores)],
        findings=findings(scores), attacks=[attack.name for attack in parse(request.attacks)],
        data=data_fields(subject, n=request.n, seed=request.seed)
        | {"argument": request.data or subject.dataset.name}, search=way)
    if request.gates:
        result["gates"] = judged(result, request.gates, strict=request.strict)
    return result


def check_room(job: Job, folder: Path) -> None:
    """Raises: InputError if the folder's disk cannot take the weights that will stay, which is better known
    before hours of training than after them. How many a search will leave nobody knows, what goes on has its
    room, and a folder that somebody removed is made again."""
    begun = any((folder / name).exists() for name in (run_folder.STATE, *run_folder.FINISHED))
    if job.held_out is None and folder.is_dir() and not begun:
        dense = sparse.dense_bytes(job.subject.model.state_dict())
        run_folder.check_free(folder, round((1 - job.plan.sparsity) * dense))


def keep(folder: Path, result: Mapping[str, Any]) -> None:
    """report.json and report.md, with which a run is finished; what it would have gone on from is removed.
    Raises: as `reports.write.write`."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, result)
    clear(folder)


def _student(job: Job, folder: Path, keeper: Keeper, earlier: Mapping[str, Any], *, say: Say,
             progress: Progress) -> tuple[Job, nn.Module, list[str], dict[str, Any] | None]:
    """The pruned model with its job and notes of its training: of the sparsity asked for, or that a search
    ends at, with the way there. A run goes on from its last step that was kept, a search from that of its
    stage."""
    if job.held_out is None:
        with signals.patient():
            return job, *_logged_fit(job, folder, earlier, keeper=keeper, say=say, progress=progress), None
    log, stopped = folder / METRICS, earlier.get("stage")
    MetricsLog(log, size=earlier.get("metrics", 0)).close()
    before = {"created": earlier["created"], "search": earlier.get("search")}

    def train(stage: Job, told: Mapping[str, Any], named: Progress) -> tuple[nn.Module, list[str]]:
        nonlocal stopped
        begun, stopped = stopped or {"metrics": None}, None  # it is the first that is trained, if one was
        with signals.patient():
            return _logged_fit(stage, folder, begun, told=told, keeper=_Within(keeper, before), say=say,
                               progress=named)

    def over(way: Mapping[str, Any]) -> None:
        before["search"] = dict(way)
        keeper.keep({**before, "metrics": log.stat().st_size if log.exists() else 0})

    try:
        found = prune_search.find(job, train=train, earlier=earlier.get("search"), over=over, say=say,
                                  progress=progress)
    except InputError:  # it is over, and found nothing
        keeper.clear()
        raise
    return found.job, found.student, found.notes, found.table


def fit(job: Job, *, note: Callable[[State, dict[str, float]], None], restarted: Say = lambda text: None,
        keep: loop.Keep = lambda step, position: None,
        earlier: Mapping[str, Any] | None = None, say: Say = lambda text: None,
        unable: Say = lambda text: None) -> nn.Module:
    """Run both phases; returns the pruned model in eval mode and plain memory layout. The subject stays as it
    was; `restarted` gets a sentence where a rate is lowered, `unable` one where the step cannot be compiled.

    Args: keep, earlier: as of `loop.run`.
    """
    # training seeds the global generator for dropout
    with own_draws(), _ready(job, say=say, unable=unable) as (plan, student):
        state = loop.begin(plan, student, curves=earlier["state"]["curves"] if earlier else None)
        state = loop.run(plan, state, report=note, restarted=restarted, keep=keep, earlier=earlier)
    return state.student.to(memory_format=torch.contiguous_format).eval()


def time_to_fit(job: Job, *, say: Say = lambda text: None) -> duration.Estimate:
    """How long `fit` will take, from a few of its steps on copies."""
    with own_draws(), _ready(job, say=say, unable=say) as (plan, student):
        say("timing a few steps of the training")
        return duration.measure(plan, student)


def estimate(job: Job, *, say: Say = lambda text: None) -> dict[str, Any]:
    """How long a run will take: `text` for people, and its numbers. Of a search it is a range."""
    one = time_to_fit(job, say=say)
    found: dict[str, Any] = {"text": str(one)}
    if job.held_out is None:
        found |= {"steps": one.steps, "seconds": one.seconds}
    else:
        found["search"] = prune_search.times(job, one)
        found["text"] = prune_search.words(found["search"])
    return found | {"seconds_per_step": one.seconds_per_step,
                    "seconds_per_million_weights_and_image": one.seconds_per_step / one.work}


@contextmanager
def _ready(job: Job, *, say: Say, unable: Say) -> Iterator[tuple[Plan, nn.Module]]:
    """Inside the block, copies to train with, compiled where the job is."""
    plan, student = _copies(job)
    if not job.compiled:
        yield plan, student
        return
    with compilation.compiled(plan, student, say=say, unable=unable) as other:
        yield other, student


def _copies(job: Job) -> tuple[Plan, nn.Module]:
    """The plan with a teacher of its own, and the student, both in the layout that training runs in."""
    student = copy.deepcopy(job.subject.model).to(memory_format=job.layout)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.0)  # -0.0, as products with masks leave it, becomes +0.0
    teacher = copy.deepcopy(job.teacher.model).to(memory_format=job.layout).eval().requires_grad_(False)
    return replace(job.plan, teacher=teacher), student


class _Within:
    """A keeper of a stage's state, beside what is kept `before` it: of the stages that are over."""

    def __init__(self, keeper: Keeper, before: Mapping[str, Any]):
        self._keeper, self._before = keeper, before

    @property
    def due(self) -> bool:
        """As of the keeper."""
        return self._keeper.due

    def keep(self, state: Mapping[str, Any]) -> bool:
        """As of the keeper."""
        return self._keeper.keep({**self._before, "metrics": state["metrics"], "stage": dict(state)})


def _logged_fit(job: Job, folder: Path, earlier: Mapping[str, Any], *, keeper: Keeper | _Within, say: Say,
                progress: Progress, told: Mapping[str, Any] | None = None) -> tuple[nn.Module, list[str]]:
    """`fit` with its losses in metrics.jsonl, its phases timed and its state kept; with the model, what it
    said of rates that were too high.

    Args: earlier: the state that it goes on from, with when it began. told: what each line of metrics.jsonl
    says first.
    """
    position = earlier.get("position")
    done = position["state"]["step"] if position else 0
    if position:
        say(f"goes on from step {done:,} of {job.plan.steps:,} in {folder}")
    with MetricsLog(folder / METRICS, lost=say, size=earlier.get("metrics", 0)) as log:
        record = _Record(job, log, keeper, earlier, told or {}, say=say, progress=progress)
        progress("prune", done, job.plan.steps, f"epoch {record.epoch(done + 1)}")
        student = fit(job, note=record.note, restarted=record.restarted, keep=record.keep, earlier=position,
                      say=say, unable=record.unable)
        return student, record.lowered


class _Record:
    """What a training leaves while it runs: lines of metrics.jsonl, the seconds of its phases, its state."""

    def __init__(self, job: Job, log: MetricsLog, keeper: Keeper | _Within, earlier: Mapping[str, Any],
                 told: Mapping[str, Any], *, say: Say, progress: Progress):
        self._job, self._plan, self._log, self._keeper = job, job.plan, log, keeper
        self._created, self._start = earlier.get("created"), time.perf_counter() - earlier.get("seconds", 0.0)
        self._told, self._say, self._progress = told, say, progress
        job.seconds.update(earlier.get("phases", {"sparsify": 0.0, "finetune": 0.0}))
        self.lowered: list[str] = list(earlier.get("lowered", []))
        self._notes: list[tuple[int, float]] = []  # (step, time)

    def epoch(self, step: int) -> str:
        """Of a step, counted from 1, and how many there are."""
        per_epoch, steps = self._plan.steps_per_epoch, self._plan.steps
        return f"{-(-min(step, steps) // per_epoch)}/{-(-steps // per_epoch)}"

    def restarted(self, text: str) -> None:
        """Once more from the start, at a lower rate."""
        self.lowered.append(text[0].upper() + text[1:])
        self._say(f"warning: {text}")

    def unable(self, text: str) -> None:
        """The step is not compiled, which was to be; said once more by a run that goes on."""
        self._say(f"warning: {text}")
        if (sentence := text[0].upper() + text[1:]) not in self.lowered:
            self.lowered.append(sentence)

    def keep(self, step: int, position: Callable[[], dict[str, Any]]) -> None:
        """After each step: keep the state where it is time to. Raises: KeyboardInterrupt if the process is to
        end."""
        ends, seconds = signals.wanted(), self._job.seconds
        if ends or self._keeper.due or step == self._plan.steps:
            self._keeper.keep({
                "position": position(), "lowered": self.lowered, "metrics": self._log.sync(),
                "seconds": time.perf_counter() - self._start, "created": self._created,
                "phases": {phase: seconds[phase] for phase in ("sparsify", "finetune")}})
        if ends:
            raise KeyboardInterrupt

    def note(self, state: State, losses: dict[str, float]) -> None:
        """Losses of the last steps."""
        phase = "sparsify" if state.step <= self._plan.sparsify_steps else "finetune"
        now, seconds = time.perf_counter() - self._start, self._job.seconds
        self._say_estimate(state.step, now)
        seconds[phase] = now - (seconds["sparsify"] if phase == "finetune" else 0.0)
        self._log.append({**self._told, "step": state.step, "epoch": state.step / self._plan.steps_per_epoch,
                          "phase": phase, "seconds": now, **losses})
        self._progress("prune", state.step, self._plan.steps,
                       f"epoch {self.epoch(state.step)} | {phase} | loss {losses['loss']:.3g}")

    def _say_estimate(self, step: int, now: float) -> None:
        """How long it will take, when there are two notes to tell from: what is measured once before the
        first step is in the time of the first."""
        if self._notes and step <= self._notes[-1][0]:
            self._notes.clear()  # once more from the start, at a lower rate
        self._notes.append((step, now))
        if len(self._notes) == 2:
            first, then = self._notes[0]
            per_step, steps = (now - then) / (step - first), self._plan.steps
            work = duration.work(self._plan, self._job.subject.model)
            self._say(str(duration.Estimate(now + per_step * (steps - step), per_step, steps, work)))


def _save(job: Job, student: nn.Module, path: Path) -> dict[str, int]:
    """Write the sparse file and prove it: loaded again, its logits equal the pruned model's bit for bit.
    Returns the sizes."""
    _check_zeros(job, student)
    subject = job.subject
    state = {name: t.detach().cpu() for name, t in student.get_submodule(WRAPPED).state_dict().items()}
    metadata = file_metadata(subject, recipe=job.plan.recipe.name, seed=job.request.seed)
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
    asked = {} if job.request.target_bytes is None else {"target_bytes": job.request.target_bytes}
    return {"dense_bytes": sparse.dense_bytes(state), "file_bytes": file_bytes,
            "limit_bytes": sparse.limit_bytes(state)} | asked


def _check_zeros(job: Job, student: nn.Module) -> None:
    """Exactly the wanted zeros, none of them -0.0: a property that the file's readers may rely on."""
    parameters = dict(student.named_parameters())
    weights = torch.cat([parameters[n].detach().flatten() for n in job.plan.weights])
    zeros, wanted = weights[weights == 0], round(job.request.sparsity * len(weights))
    exact = single(job.plan.groups) or by_block(job.plan.groups)
    if uneven := _uneven(job, parameters):
        wrong = f"More than {job.request.structure} weights stay in a block of {', '.join(uneven[:3])}"
    elif zeros.signbit().any() or exact and len(zeros) < wanted:
        wrong = (f"The pruned model has {len(zeros):,} zero weights, {int(zeros.signbit().sum()):,} of them "
                 f"-0.0, expected {wanted:,} of +0.0")
    else:
        return
    raise PwoaError(f"{wrong}; nothing was saved.",
                    hint="Please report this, with the command and the checkpoint.")


def _uneven(job: Job, parameters: Mapping[str, torch.Tensor]) -> list[str]:
    """The weights of which a block of neighbours has more nonzeros than its structure lets stay."""
    most = {name: round((1 - job.request.sparsity) * group.block)
            for name, group in job.plan.groups.items() if group.block}
    return [name for name, stay in most.items()
            if (job.plan.groups[name].in_blocks(parameters[name].detach()) != 0).sum(1).max() > stay]
