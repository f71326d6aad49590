"""What makes an evaluation wrong: each check looks for one fault and says it in one sentence with figures.

x inputs (B,C,H,W) in [0,1], y labels (B,), z logits (B,K), n samples. `of_model` tries the model on a few images before the
attacks, `of_threat` reads the radius, `of_results` compares the attacks with each other. The faults are those that Athalye
et al. 2018, Carlini et al. 2019 and Croce & Hein 2020 met in published figures. Constants were measured on honest models
(tests/test_checks.py), as a false alarm costs as much trust as a miss.
"""
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks.base import frozen, wrong
from .attacks.gradient import margin
from .cpu import is_out_of_memory

PROBE = 32  # samples whose gradients are looked at, and most in one pass
COMPANY = 8  # samples for repeated passes
PASSES = 4  # on the same samples: a model that draws one of two forms stays hidden in 1 of 8 runs
INWARDS = 1 / 255  # towards grey, before gradients are asked for: clamp(0, 1) inside a model has none at 0 and 1, but elsewhere
BLIND_SHARE = 0.1  # of the probe without gradient; honest networks have none, a dead ReLU or two may take a few samples
ROUNDING = 1e-3  # of the largest logit: float32 in another order of summation stays below 1e-5, deep networks included
COARSE_ROUNDING = 8  # steps of a coarse dtype (bf16 2^-7, fp16 2^-10) that sums in another order may differ by
ONE = 1e-3  # probabilities sum to 1 up to this
COARSE_DTYPES = (torch.bfloat16, torch.float16)
TARGETS = 9  # of the targeted attacks, where there are as many other classes
TARGETED = ("apgd-t", "fab-t", "aa", "aa-fast")
COMMON_255 = (1, 2, 4, 8, 16)  # radii of the literature in 255ths
SAME_EPS = 1e-3  # relative: 0.0314 is 8/255 for every figure that is measured
NEAR_EPS = 0.025  # relative: 0.031 is off by 1.2%, 0.016 by 2.0%; 0.03 by 4.4%: a radius of its own, as papers use it
GREY_EPS = 0.5  # linf: every image of [0,1] reaches uniform grey
LOW = 0.5  # clean accuracy below which one doubts the data or the normalisation
FAR = 3.0  # standard deviations above chance that a clean accuracy must be
STRONG = ("apgd-t", "fab-t")
TOLERATED = 0.002  # of n that Square may break after all STRONG: the limit of AutoAttack's own check
TOLERATED_WEAK = 0.05  # after fewer attacks: an honest MNIST LeNet5 at 0.3 lost 12 of 300 to Square that pgd-20 and cw left
LEVEL = 0.01  # of the tests of counts: one false alarm in 100 evaluations at the very edge of what is tolerated
SUMMARIES = ("clean", "worst case")  # results that are no attack
DEFAULT_STEPS = 20  # of a resolved name without a number: cw
_ITERATIVE = re.compile(r"(pgd|cw)(?:-(\d+))?(?:-r(\d+))?(?:-s.+)?")
_SEARCHES = re.compile(r"apgd-.*|fab-t|fmn.*|cw-l2")


@dataclass(frozen=True)
class Finding:
    """One fault. check: its id; text: a sentence; unreliable: the figures must not be believed."""

    check: str
    text: str
    unreliable: bool


# --- The model -----------------------------------------------------------------------------------------------------------


def of_model(model: nn.Module, inputs: Tensor, labels: Tensor, *, was_training: bool = False,
             attacks: Collection[str] | None = None, batch_size: int = PROBE) -> list[Finding]:
    """Faults that show on a few images: eight small passes, and two backward ones over PROBE samples that are right when clean.

    Args: model: itself, not a wrapper that changes its dtype; it is in eval mode meanwhile, and torch's generators are left
        as they were. inputs: (B,C,H,W) float in [0,1] on its device, B > 0; 2 * PROBE are looked at. labels: (B,) long.
        was_training: it was handed over in training mode. attacks: resolved names; with them, few classes are said only
        where targets are tried, and a scale that masks cross-entropy alone is unreliable only for apgd-ce, a note otherwise.
        batch_size: most samples in one pass, where memory holds fewer than PROBE.
    """
    devices, most = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else (), min(PROBE, batch_size)
    with torch.no_grad(), frozen(model), torch.random.fork_rng(devices):
        x, y, logits = _probe(model, inputs, labels, most)
        some, tolerance = inputs[:max(1, min(COMPANY, most - 1))], _rounding(logits)
        random = _random(model, some, tolerance)
        found = [_training_mode(was_training), _few_classes(logits.shape[1], attacks), _coarse(logits), _probabilities(logits),
                 random, None if random else _batch_dependent(model, some, tolerance)]  # noise would look like company
        found += _gradients(model, x, y, attacks)
    return [finding for finding in found if finding]


def same_function(one: nn.Module, other: nn.Module, inputs: Tensor) -> Finding | None:
    """Whether two networks that should be one function are: a masked one and its compacted form, a model and its fast copy.

    max |z - z'| / max |z'| over inputs (B,C,H,W), and labels that differ; equal up to rounding is None.
    """
    with torch.no_grad(), frozen(one), frozen(other):
        ours, theirs = (torch.cat([model(part) for part in inputs.split(PROBE)]) for model in (one, other))
    if ours.shape != theirs.shape:
        return Finding("other-function", f"two networks that should be one function give logits of shapes {tuple(ours.shape)}"
                                         f" and {tuple(theirs.shape)}.", True)
    gap = _gap(ours, theirs)
    if gap <= max(_rounding(ours), _rounding(theirs)):
        return None
    return Finding("other-function", f"two networks that should be one function differ: {_differ(gap, ours, theirs)}.", True)


def _probe(model: nn.Module, inputs: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Up to `most` samples that are right when clean (the first ones where none is), and all logits that were looked at."""
    x, y = inputs[:2 * PROBE], labels[:2 * PROBE]
    logits = torch.cat([model(part) for part in x.split(most)])
    right = (~wrong(logits, y)).nonzero().flatten()[:most]
    rows = right if len(right) else torch.arange(min(most, len(x)), device=x.device)
    return x[rows], y[rows], logits


def _training_mode(was_training: bool) -> Finding | None:
    if not was_training:
        return None
    return Finding("training-mode", "the model was handed over in training mode; it was evaluated in eval mode.", False)


def _few_classes(classes: int, attacks: Collection[str] | None) -> Finding | None:
    if classes > TARGETS or (attacks is not None and not set(attacks) & set(TARGETED)):
        return None
    return Finding("few-classes", f"the model has {classes} classes, so targeted attacks try {classes - 1} target{'s' * (classes > 2)} for each"
                                  f" sample instead of {TARGETS}.", False)


def _coarse(logits: Tensor) -> Finding | None:
    """Logits of few digits: a tie of the two largest is decided by their order, and attacks stop at it."""
    dtype = _precision(logits)
    if dtype not in COARSE_DTYPES:
        return None
    first, second = logits.float().topk(2).values.unbind(1)
    tied, name = int((first == second).sum()), str(dtype).removeprefix("torch.")
    said = f"the model gives its logits with the precision of {name}"
    if not tied:
        return Finding("coarse-logits", f"{said}; run it in float32 for figures that others can compare.", False)
    return Finding("coarse-logits", f"{said}, and the two largest tie on {_share(tied, len(logits))} clean samples: their"
                                    " order decides who is right.", True)


def _probabilities(logits: Tensor) -> Finding | None:
    """Log-probabilities are fine: the losses are the same up to a constant."""
    if not bool((logits >= 0).all() and ((logits.float().sum(1) - 1).abs() <= max(ONE, _rounding(logits))).all()):
        return None
    return Finding("probabilities", f"the model gives probabilities (none below 0, sum 1 on all {len(logits)} samples) instead"
                                    " of logits; a softmax inside flattens the losses that attacks climb.", True)


def _random(model: nn.Module, x: Tensor, tolerance: float) -> Finding | None:
    """PASSES passes on the same samples. On CUDA sums may run in another order, so tiny differences need a drawn number."""
    once = model(x)
    for _ in range(PASSES - 1):
        state = _generator_state(x)
        again = model(x)
        gap, drawn = _gap(again, once), not torch.equal(state, _generator_state(x))
        if gap > (0 if drawn else tolerance):
            return Finding("random-model", f"two passes on the same {len(x)} samples differ: {_differ(gap, again, once)}; a"
                                           " random model needs attacks on its expectation (EOT), and its flags cannot be"
                                           " reproduced.", True)
    return None


def _batch_dependent(model: nn.Module, x: Tensor, tolerance: float) -> Finding | None:
    """The last sample alone, and behind others (a negative too, so that one sample has company as well)."""
    beside = model(torch.cat([1 - x[:1], x]))[-1:]
    try:
        alone = model(x[-1:])
    except (RuntimeError, ValueError) as error:  # batch norm on one value, a batch size written into the code
        if is_out_of_memory(error):
            raise
        return Finding("batch-dependent", f"the model answers {len(x) + 1} samples at once but fails on one alone"
                                          f" ({_first_line(error)}); attacks need the answer for each sample.", True)
    gap = _gap(alone, beside)
    if gap <= tolerance:
        return None
    return Finding("batch-dependent", f"the logits of a sample alone and beside {len(x)} others differ by"
                                      f" {_percent(gap)} of the largest; its flag depends on the batch it is in.", True)


def _gradients(model: nn.Module, x: Tensor, y: Tensor, attacks: Collection[str] | None) -> Iterator[Finding]:
    """What attacks with gradients cannot see: anything, some samples, or only what plain cross-entropy hides."""
    try:
        cross_entropy, margins = _zero_gradients(model, x, y)
    except RuntimeError as error:  # no graph, a tensor handed to NumPy, a function without backward
        if is_out_of_memory(error):
            raise
        yield Finding("no-gradient", f"the model lets no gradient through to its inputs ({_first_line(error)}), so only attacks"
                                     " without gradients, such as square, tell anything.", True)
        return
    blind, masked, n = int(margins.sum()), int((cross_entropy & ~margins).sum()), len(x)
    if blind > BLIND_SHARE * n:
        yield Finding("zero-gradients", f"the margin loss has no gradient on {_share(blind, n)} probed samples, so white-box"
                                        " attacks are blind there (quantised or rounded inputs, preprocessing without"
                                        " derivative).", True)
    if masked > BLIND_SHARE * n:
        yield Finding("masked-cross-entropy", f"plain cross-entropy has no gradient on {_share(masked, n)} probed samples, as the"
                                              " logits are so large: apgd-ce and other people's PGD are blind there; pgd here"
                                              " climbs a stable form, and cw and apgd-t see through.",
                      attacks is None or "apgd-ce" in attacks)


def _zero_gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) bool each: no entry of the input gradient of plain cross-entropy, of the margin, is finite and not 0.

    Raises: RuntimeError where the model has none to give.
    """
    x = (x + INWARDS * (1 - 2 * x)).requires_grad_()
    with torch.enable_grad():
        logits = model(x).float()
        losses = F.cross_entropy(logits, y, reduction="sum"), margin(logits, y).sum()
    grads = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
    lost = [torch.nan_to_num(grad, nan=0, posinf=0, neginf=0).flatten(1).eq(0).all(1) for grad in grads]
    return lost[0], lost[1]


# --- The threat and the clean accuracy ------------------------------------------------------------------------------------


def of_threat(eps: float, norm: str, *, pixels: int) -> list[Finding]:
    """A radius that is nearly k/255 (linf), or so large that nothing can hold: half the diagonal of the box of `pixels` values."""
    found = []
    near = [k for k in COMMON_255 if SAME_EPS < abs(eps * 255 / k - 1) <= NEAR_EPS]
    if norm == "linf" and near:
        usual = f"{near[0]}/255"
        found.append(Finding("rounded-eps", f"eps is {eps:g}, {_percent(abs(eps * 255 / near[0] - 1))} off {usual} ="
                                            f" {near[0] / 255:.6f}; figures of others are for {usual} (--eps {usual}).", False))
    grey = {"linf": GREY_EPS, "l2": GREY_EPS * pixels**0.5, "l1": GREY_EPS * pixels}[norm]
    if eps >= grey:
        found.append(Finding("large-eps", f"eps is {eps:g} in {norm}: from {grey:.4g} on every image can be made the same uniform"
                                          " grey, so no model can hold above chance.", False))
    return found


def of_accuracy(correct: int, n: int, classes: int) -> list[Finding]:
    """A clean accuracy near chance, or so low that one doubts the data or the normalisation."""
    shown = _percent(correct / n)
    if near_chance(correct, n, classes):
        return [Finding("near-chance", f"clean accuracy {shown} is near chance ({_percent(1 / classes)}).", True)]
    doubt = f"clean accuracy is {shown}: are the data and the normalisation those of its training?"
    return [Finding("low-accuracy", doubt, False)] if correct / n < LOW else []


def near_chance(correct: int, n: int, classes: int) -> bool:
    """Whether `correct` of n is at, below or within FAR standard deviations above 1/K: not a model of these data as read.

    sd = sqrt(p (1 - p) / n), p = 1/K. Never where n is so small (9 for two classes) that a perfect model would be too.
    """
    p = 1 / classes
    limit = p + FAR * math.sqrt(p * (1 - p) / n)
    return limit < 1 and correct / n <= limit


# --- The results ---------------------------------------------------------------------------------------------------------


def of_results(results: Mapping[str, Any]) -> list[Finding]:
    """Faults that show in what the attacks did, those that make figures unreliable first.

    Args: results: by name, each with .name, .n samples that are done, .broken and .attacked (N,) bool: those it broke, was
        run on; .outside answers outside the ball or [0,1]; .nonfinite samples with NaN or infinite logits in the last
        pass; .parts {component: (N,) bool broken by it}, for AutoAttack.
    """
    each = [check(r) for r in results.values() for check in (_nonfinite, _outside)]
    found = [*_fewer_steps_win(results), _square_alone(results), *each]
    return [finding for finding in found if finding]


def _nonfinite(r: Any) -> Finding | None:
    if not r.nonfinite:
        return None
    return Finding("nonfinite-logits", f"{r.name} met NaN or infinite logits on {_share(r.nonfinite, r.n)} samples, which"
                                       " count as broken.", False)


def _outside(r: Any) -> Finding | None:
    if not r.outside:
        return None
    return Finding("outside-ball", f"{r.name} gave {_share(r.outside, r.n)} answers outside the ball or [0,1]; they were"
                                   " projected before they counted.", False)


def _fewer_steps_win(results: Mapping[str, Any]) -> Iterator[Finding]:
    """An attack that beats one with more steps of the same loss; fgsm must beat none. Paired: the exact sign test.

    Of the samples that one of both broke, at least half should be those of the longer one: P(X >= b | b + c, 1/2) < LEVEL.
    """
    known = [(r, *plan) for r in results.values() if (plan := _plan(r.name))]
    for many, loss, steps, restarts in known:
        for few, other, fewer, repeats in known:
            if fewer >= steps or repeats > restarts or (fewer > 1 and loss != other):
                continue
            both = few.attacked & many.attacked
            won, lost = int((both & few.broken & ~many.broken).sum()), int((both & many.broken & ~few.broken).sum())
            if _tail(won, won + lost, 0.5) < LEVEL:
                yield Finding("fewer-steps-win", f"{few.name} broke {_share(won, many.n)} samples that {many.name} with more"
                                                 f" steps did not, against {lost} the other way; gradients may be masked, or"
                                                 " its steps are too short.", True)
                break


def _plan(name: str) -> tuple[str, int, int] | None:
    """Loss, steps and restarts of a resolved name; None for what is neither fgsm nor pgd nor cw."""
    if name == "fgsm":
        return "pgd", 1, 1
    match = _ITERATIVE.fullmatch(name)
    return (match[1], int(match[2] or DEFAULT_STEPS), int(match[3] or 1)) if match else None


def _square_alone(results: Mapping[str, Any]) -> Finding | None:
    """Samples that Square broke without a gradient, and no attack with gradients that was run on them too did.

    A fault where they are more than tolerated beyond chance: P(X >= k | n, tolerated) < LEVEL. After APGD-T and FAB-T:
    3 of 100, 7 of 1000; the 1 of 100 on an honest LeNet5 is none. After others of 20 steps or more: 12 of 100, 67 of 1000.
    """
    each = list(_components(results))
    square = [broken for name, broken, _ in each if name == "square"]
    others = [(name, broken, attacked) for name, broken, attacked in each if name != "square"]
    if not square or not any(_searches(name) for name, _, _ in others):
        return None
    alone = _any(square) & ~_any([broken for _, broken, _ in others])
    n = max(r.n for r in results.values() if "square" in (r.name, *r.parts))
    after_strong = alone.clone()
    for strong in STRONG:
        after_strong &= _any([torch.zeros_like(alone), *(attacked for name, _, attacked in others if name == strong)])
    after_weak = alone & _any([attacked for name, _, attacked in others if _searches(name)])
    for rows, tolerated in ((after_strong, TOLERATED), (after_weak, TOLERATED_WEAK)):
        count = int(rows.sum())
        if _tail(count, n, tolerated) < LEVEL:
            return Finding("square-alone", f"Square broke {_percent(count / n)} ({count} of {n}) that white-box attacks did not;"
                                           " gradients may be masked.", True)
    return None


def _searches(name: str) -> bool:
    """Whether the attack follows gradients long enough to find what an honest model has."""
    plan = _plan(name)
    return plan[1] >= DEFAULT_STEPS if plan else bool(_SEARCHES.fullmatch(name))


def _any(flags: list[Tensor]) -> Tensor:
    """(n,) bool: true in one of them; at least one."""
    return torch.stack(flags).any(0)


def _components(results: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, broken, attacked) of each attack, the parts of AutoAttack one by one."""
    for r in results.values():
        if r.name not in SUMMARIES:
            yield from ((name, broken, r.attacked) for name, broken in (r.parts or {r.name: r.broken}).items())


# --- Numbers -------------------------------------------------------------------------------------------------------------


def _tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for a binomial X of n trials with 0 < p < 1, in logarithms, as binomial coefficients overflow."""
    def log_pmf(i: int) -> float:
        return (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
                + i * math.log(p) + (n - i) * math.log1p(-p))
    return 1.0 if k <= 0 else math.fsum(math.exp(log_pmf(i)) for i in range(k, n + 1))


def _gap(one: Tensor, other: Tensor) -> float:
    """max |z - z'| / max |z'|; a NaN differs from a number, and not from a NaN."""
    one, other = (torch.nan_to_num(z.float()) for z in (one, other))
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def _rounding(logits: Tensor) -> float:
    """How far logits may differ, of the largest, before it is no rounding: for their precision; TF32 on CUDA has fp16's."""
    dtype = _precision(logits)
    dtype = torch.float16 if dtype == torch.float32 and logits.device.type == "cuda" else dtype
    return max(ROUNDING, COARSE_ROUNDING * torch.finfo(dtype).eps)


def _precision(logits: Tensor) -> torch.dtype:
    """The dtype of the logits; the coarse one whose numbers they are, if a model computes in it and returns float32.

    Whole numbers prove nothing.
    """
    for dtype in COARSE_DTYPES:
        if logits.dtype == dtype or (torch.equal(logits.to(dtype).to(logits.dtype), logits)
                                     and bool((logits != logits.round()).any())):
            return dtype
    return logits.dtype


def _generator_state(x: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(x.device) if x.device.type == "cuda" else torch.get_rng_state()


def _differ(gap: float, one: Tensor, other: Tensor) -> str:
    changed = int((one.argmax(1) != other.argmax(1)).sum())
    return f"logits by up to {_percent(gap)} of the largest, and {_share(changed, len(one))} labels change"


def _share(count: int, n: int) -> str:
    return f"{count} of {n} ({_percent(count / n)})"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%" if fraction == 0 or fraction >= 0.0005 else f"{100 * fraction:.1g}%"


def _first_line(error: Exception) -> str:
    """What an error says first, without its advice."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0][:80].rstrip(".")
