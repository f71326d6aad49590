"""Accuracy of a model on clean inputs and under attacks: flags that a seed fixes, checked answers, and what
may be wrong.

Samples (n) are cut into fixed blocks of BLOCK; (seed, attack, block) seeds the attack on a block, so the
random numbers behind the flags depend neither on the batch size nor on the device nor on an interruption.
Cheap attacks come first. Only samples that are right when clean are attacked; those of the AutoAttack family,
which take nearly all the time (on a GPU WIDE blocks share passes, each searched as if alone), go on only with
what no cheaper attack broke. A sample counts as broken when a finite adversarial input, in [0,1] and in the
eps-ball, is misclassified in a last float32 pass.
"""
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.attacks import Attack, check_norm, parse, stages
from pwoa_cli.attacks.base import contain, distance, frozen, outside, wrong
from pwoa_cli.attacks.bounded import Bounded, Meter, OutOfTime
from pwoa_cli.attacks.together import together
from pwoa_cli.errors import InputError, is_out_of_memory
from pwoa_cli.evaluation import checks, gradients, result_checks
from pwoa_cli.evaluation.inputs import (
    Images,
    check_inputs,
    check_logits,
    check_range,
    check_threat,
    left_as_they_were,
)
from pwoa_cli.evaluation.results import Evaluation, Finding, Result
from pwoa_cli.evaluation.shares import Progress, Shares
from pwoa_cli.evaluation.tally import Known, Line
from pwoa_cli.evaluation.units import Unfinished, Unit
from pwoa_cli.evaluation.words import WORST
from pwoa_cli.machine.devices import plain_float32
from pwoa_cli.machine.memory import keep_freed_memory
from pwoa_cli.machine.seeds import block_seed
from pwoa_cli.progress import Say

BLOCK = 200  # samples that share a seed; changing it changes the random starts of every published figure
WIDE = 5  # blocks of the AutoAttack family that share passes on a GPU; each keeps its own random numbers


def evaluate(model: nn.Module, inputs: Images, labels: Tensor, **options: Any) -> Evaluation:
    """Clean accuracy, then the accuracy under each attack, cheap ones first, all on the same samples, and the
    worst case. Args, Raises: as `evaluating`."""
    with evaluating(model, inputs, labels, **options) as under:
        attack_all({"": under}, end=None)
        return under.evaluation()


@contextmanager
def evaluating(model: nn.Module, inputs: Images, labels: Tensor, *, attacks: str | Sequence[str | Attack],
               norm: str | None, eps: float | None, seed: int = 0, batch_size: int | None = None,
               progress: Progress = lambda name, share: None, say: Say = lambda text: None,
               keep_inputs: bool = False,
               unfinished: Callable[[str], Unfinished | None] | None = None) -> Iterator["Evaluating"]:
    """An evaluation with its clean figures and checks, whose attacks go on block by block inside.

    The model is in eval mode meanwhile and comes back as it was; its parameters get no gradient.
    Args: inputs: (n,C,H,W) float in [0,1]; labels: (n,) in 0..K-1; norm: "linf", "l2" or "l1"; eps: radius >
        0 in the unit of the inputs; both may be None without attacks; batch_size: most samples in one pass,
        None: what fits into memory; blocks stay BLOCK; progress: called with (name, share of the whole);
        keep_inputs: also the adversarial inputs; unfinished: from the SHA-256 of the samples and of what the
        model predicts on them, where units are kept and looked for, so that a run that was stopped goes on.
    Raises: InputError on wrong inputs, labels, threat or names, on too few classes, on non-finite clean
    logits.
    """
    chosen = sorted(parse(attacks), key=lambda attack: attack.cost)
    check_inputs(inputs, labels, batch_size)
    if chosen:
        norm, eps = check_threat(norm, eps)
        check_norm(chosen, norm)
        keep_freed_memory()
    else:
        norm, eps = "", 0.0  # nothing reads them
    was_training = model.training
    with frozen(model):
        net, changed = left_as_they_were(model, _part(inputs, slice(0, checks.COMPANY), model))
        first = _part(inputs, slice(0, 2), model)
        bounded = Bounded(net, batch_size or gradients.fitting(net, first, most=BLOCK * wide(first)),
                          Meter())
        run = _Run(bounded, inputs, labels.cpu(), chosen, norm, eps, seed, keep_inputs, progress, say)
        clean, sha256 = _clean(run)
        run = replace(run, kept=unfinished(sha256) if unfinished and chosen else None)
        findings, can_run = _before(run, clean.correct, was_training=was_training)
        yield Evaluating(replace(run, chosen=can_run), clean, [*changed, *findings], asked=chosen)


def attack_all(evaluations: Mapping[str, "Evaluating"], *, end: float | None) -> None:
    """The first attack on the first `wide` blocks of each model, then the next one, then the next blocks:
    what time suffices for is of the same samples, and cheap attacks are not kept waiting by dear ones.

    Args: of the same samples under the same attacks. end: of the time, by `time.monotonic`; None: enough.
    """
    first = next(iter(evaluations.values()))
    with suppress(OutOfTime):
        for start, turn in product(range(0, first.blocks, first.wide), range(first.turns)):
            for under in evaluations.values():
                under.attack(range(start, min(start + first.wide, first.blocks)), turn, end=end)


def wide(x: Tensor) -> int:
    """How many blocks go together on the device of x: small passes leave a GPU idle."""
    return WIDE if x.device.type == "cuda" else 1


@dataclass(frozen=True, eq=False)
class _Run:
    """What stays the same during an evaluation."""

    model: Bounded
    inputs: Images
    labels: Tensor
    chosen: Sequence[Attack]
    norm: str
    eps: float
    seed: int
    keep_inputs: bool
    progress: Progress
    say: Say
    kept: Unfinished | None = None

    def batch(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of some samples on the device of the model, in float32."""
        x = _part(self.inputs, rows, self.model.model)
        return x, self.labels[rows].to(x.device, torch.long)


# --- clean ---------------------------------------------------------------

@torch.no_grad()
def _clean(run: _Run) -> tuple[Result, str]:
    """Clean flags, refusing what makes every later figure meaningless; SHA-256 of inputs, labels and
    predictions."""
    start, n = time.perf_counter(), len(run.labels)
    correct, bad, digest = torch.zeros(n, dtype=torch.bool), 0, hashlib.sha256()
    for first in range(0, n, BLOCK):
        x, y = run.batch(slice(first, first + BLOCK))
        check_range(x)
        with plain_float32():
            logits = run.model(x)
        digest.update(b"".join(part.cpu().contiguous().numpy().tobytes()
                               for part in (x, y, logits.argmax(1))))
        check_logits(logits, run.labels, run.chosen)
        correct[first:first + BLOCK] = ~wrong(logits, y).cpu()
        bad += _nonfinite(logits)
        run.progress("clean", 0.0)
    if bad:
        raise InputError(f"The model gives NaN or infinite logits on {bad} of {n} clean inputs.",
                         hint="Check the weights and the normalisation of the checkpoint.")
    nobody, whole = torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    return Result("clean", correct, done=whole, attacked=nobody, broken=nobody,
                  distance=torch.full((n,), torch.nan),
                  seconds=time.perf_counter() - start, forwards=run.model.meter.forwards), digest.hexdigest()


def _before(run: _Run, clean: Tensor, *, was_training: bool) -> tuple[list[Finding], list[Attack]]:
    """What the threat and probes of the model tell before the first attack, and the attacks that can be
    run."""
    if not run.chosen:
        return [], []
    run.progress("checks", 0.0)
    x, y = run.batch(slice(0, BLOCK))
    with torch.no_grad():
        classes = run.model.model(x[:1]).shape[1]
    found = [*checks.of_accuracy(int(clean.sum()), len(clean), classes),
             *checks.of_threat(run.eps, run.norm, pixels=x[0].numel()),
             *checks.of_model(run.model.model, x, y, was_training=was_training,
                              attacks=[attack.name for attack in run.chosen],
                              batch_size=run.model.batch_size),
             *checks.of_mixed(run.model, x, attacks=[attack.name for attack in run.chosen])]
    found, can_run = gradients.without_gradients(found, run.chosen)
    right = clean[:BLOCK].to(x.device)
    return gradients.with_square(found, can_run, run.model, x[right], y[right], eps=run.eps, norm=run.norm,
                                 seed=run.seed, beat=lambda: run.progress("square on a subset", 0.0)), can_run


# --- attacks ---------------------------------------------------------------

class Evaluating:
    """One model under attack, block by block. blocks: how many of BLOCK samples there are; wide: how many go
    together; turns: attacks."""

    def __init__(self, run: _Run, clean: Result, findings: Sequence[Finding], *, asked: Sequence[Attack]):
        self._run, self._clean, self._findings, self._asked = run, clean, findings, asked
        self._found = Known(clean.correct, run.inputs if run.keep_inputs else None)
        self._lines = [Line(attack, len(run.labels)) for attack in run.chosen]
        self.blocks, self.turns = -(-len(run.labels) // BLOCK), len(asked)
        self.wide = wide(run.batch(slice(0, 1))[0])
        self._share = Shares(run.chosen, self.blocks, run.model.meter, run.progress)

    def attack(self, blocks: Sequence[int], turn: int, *, end: float | None = None) -> None:
        """One of the attacks that were asked for, in their order, on blocks; nothing if it cannot be run.
        Raises: OutOfTime at `end`; what was finished stays."""
        self._run.model.meter.deadline = end
        for line in self._lines:
            if line.attack.name == self._asked[turn].name:
                for some in [blocks] if line.attack.cascade else [[block] for block in blocks]:
                    _under(self._run, line, some, self._found, self._clean, self._share)

    def evaluation(self) -> Evaluation:
        """The figures of what is finished, what is not, and what may be wrong with them."""
        made = {line.attack.name: line.result(self._clean.correct, self._run.eps) for line in self._lines
                if line.done.any()}
        whole = {name: r for name, r in made.items() if bool(r.done.all())}
        unfinished = [line.attack.name for line in self._lines if line.attack.name not in whole]
        results, found = {"clean": self._clean} | whole, self._found
        if len(whole) > 1 and not unfinished:
            results[WORST] = _worst(found, self._clean)
        checked = result_checks.of_results({"clean": self._clean} | made)
        return Evaluation(results, findings=[*self._findings, *_of_copies(self._run), *checked],
                          broken_by=found.broken_by, inputs=found.inputs, unfinished=unfinished,
                          partial={name: r for name, r in made.items() if name not in whole},
                          seconds=found.seconds)


def _of_copies(run: _Run) -> list[Finding]:
    """Whether the fast copies that attacks searched on are still the model: else they looked in the wrong
    place."""
    copies = [copy for (name, _), copy in run.model.copies.items()
              if name == "quick" and copy and copy is not run.model]
    x, _ = run.batch(slice(0, checks.PROBE))
    return [finding for copy in copies if (finding := checks.same_function(copy.model, run.model.model, x))]


def _under(run: _Run, line: Line, blocks: Sequence[int], known: Known, clean: Result,
           share: Shares) -> None:
    """One attack on blocks, together; it counts for the attack when all of its components are done."""
    attack, parts = line.attack, stages(line.attack)
    whole = {block: slice(block * BLOCK, (block + 1) * BLOCK) for block in blocks}
    todo = {block: (known.standing if attack.cascade else clean.correct)[rows].clone()
            for block, rows in whole.items()}
    left = {block: block * BLOCK + flags.nonzero().flatten() for block, flags in todo.items()}
    found: dict[int, list[tuple[str, Unit]]] = {block: [] for block in blocks}
    for part in parts:
        left = {block: rows for block, rows in left.items() if len(rows)}
        for block, unit in _units(run, attack, part, left, share).items():
            known.add(unit, f"{attack.name}: {part.name}" if len(parts) > 1 else attack.name)
            found[block].append((part.name, unit))
            left[block] = left[block][~unit.broken]
    for block in blocks:
        line.take(whole[block], todo[block], found[block])
        share.add(attack)


def _units(run: _Run, attack: Attack, part: Attack, rows: Mapping[int, Tensor],
           share: Shares) -> dict[int, Unit]:
    """One attack, or one component of it, on the samples `rows` of each block; from disk if it is there."""
    names = {block: _name(attack, part, block, some) for block, some in rows.items()}
    units = {block: unit for block, some in rows.items()
             if run.kept and (unit := run.kept.get(names[block], some, inputs=run.keep_inputs))}
    new = {block: some for block, some in rows.items() if block not in units}
    if new:
        units |= zip(new, _made(run, attack, part, new, share), strict=True)
    for block in new:
        if run.kept and (why := run.kept.put(names[block], units[block])):
            run.say(f"warning: {names[block]} could not be kept, --resume would make it again: {why}")
    return dict(sorted(units.items()))


def _name(attack: Attack, part: Attack, block: int, rows: Tensor) -> str:
    """Of a unit on disk; cheaper attacks decide on the rows."""
    given = hashlib.sha256(attack.version.encode() + rows.numpy().tobytes()).hexdigest()[:12]
    return f"{attack.name}.{part.name}.{block}.{given}"


def _made(run: _Run, attack: Attack, part: Attack, rows: Mapping[int, Tensor],
          share: Shares) -> Iterator[Unit]:
    """Units of blocks that are searched together; passes and seconds are shared by their samples."""
    meter, start = run.model.meter, time.perf_counter()
    before = meter.forwards, meter.backwards
    given = {block: run.batch(some) for block, some in rows.items()}
    with share.watched(part, list(rows), sum(map(len, rows.values()))):
        answers = _answers(run, attack, part, given)
    judged = [_verified(run, part, adv, x, y) for adv, (x, y) in zip(answers, given.values(), strict=True)]
    spent, seconds = (meter.forwards - before[0], meter.backwards - before[1]), time.perf_counter() - start
    begin, n = 0, sum(map(len, rows.values()))
    for adv, (x, _), some, (counted, broken, size, nonfinite) in zip(answers, given.values(), rows.values(),
                                                                     judged, strict=True):
        end = begin + len(some)
        forwards, backwards = (total * end // n - total * begin // n for total in spent)
        far = 0 if part.minimum_norm else int(outside(adv, x, eps=run.eps, norm=run.norm).sum())
        yield Unit(some, broken.cpu(), size.cpu(), far, nonfinite, forwards, backwards,
                   seconds * len(some) / n, counted[broken].cpu() if run.keep_inputs else None)
        begin = end


def _answers(run: _Run, attack: Attack, part: Attack,
             given: Mapping[int, tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The attack's adversarial inputs for the samples and labels of each block; where memory runs out, again
    with passes of half the size, from the same seeds."""
    def search(block: int, model: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(block_seed(run.seed, attack.draws or attack.name, block))
        return part.run(model, *given[block], eps=run.eps, norm=run.norm, generator=generator).detach()

    n = sum(len(x) for x, _ in given.values())
    while True:
        try:
            # of the AutoAttack family in float32 on a GPU too, where torch would take TensorFloat-32
            with plain_float32() if attack.cascade else nullcontext():
                return together(run.model, [partial(search, block) for block in given])
        except (RuntimeError, MemoryError) as error:
            size = min(run.model.batch_size, n)
            if not is_out_of_memory(error) or size < 2:
                raise
        # outside the handler: the traceback holds on to what filled the memory
        run.model.batch_size = (size + 1) // 2
        run.say(f"warning: out of memory in {part.name}: now {run.model.batch_size} samples in a pass "
                f"instead of {size}")


@torch.no_grad()
def _verified(run: _Run, attack: Attack, adv: Tensor, x: Tensor,
              y: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """What counts of an answer: inputs, broken (b,) bool, distance (b,), number of samples with logits that
    are no numbers.

    A minimum-norm attack's distance is that of its answer wherever that lies, so it holds for every eps, or
    of the answer moved into the ball if that is misclassified too.
    """
    with plain_float32():
        counted = contain(adv, x, eps=run.eps, norm=run.norm)
        logits = run.model(counted)
        broken = wrong(logits, y)
        size = torch.where(broken, distance(counted - x, run.norm), torch.inf)
        if attack.minimum_norm:
            reach = torch.where(adv.isfinite(), adv, x).clamp(0, 1)
            size = torch.where(wrong(run.model(reach), y), distance(reach - x, run.norm).minimum(size), size)
    return counted, broken, torch.where(size.isfinite(), size, torch.nan), _nonfinite(logits)


def _worst(found: Known, clean: Result) -> Result:
    """Not broken by anything that was tried, over all samples: there only when all attacks are finished."""
    return Result(WORST, found.standing, done=clean.done, attacked=clean.correct,
                  broken=clean.correct & ~found.standing,
                  distance=torch.full(clean.correct.shape, torch.nan), seconds=found.seconds,
                  forwards=found.forwards, backwards=found.backwards)


def _nonfinite(logits: Tensor) -> int:
    return int((~logits.isfinite().all(1)).sum())


def _part(inputs: Images, rows: slice | Tensor, model: nn.Module) -> Tensor:
    """Some inputs on the device of the model, in float32."""
    found = inputs[rows.to(inputs.device) if isinstance(rows, Tensor) and isinstance(inputs, Tensor)
                   else rows]
    parameter = next(model.parameters(), found)
    return found.to(parameter.device, torch.float32)

