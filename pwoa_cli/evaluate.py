"""Accuracy of a model on clean inputs and under attacks, with intervals, flags that a seed fixes, and checked answers.

Samples (n) are cut into fixed blocks of BLOCK; (seed, attack, block) seeds the attack on a block, so the random numbers
behind the flags depend neither on the batch size nor on the device. Only samples that are right when clean are attacked;
one counts as broken when a finite adversarial input, in [0,1] and in the eps-ball, is misclassified in a last float32 pass.
"""
import difflib
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from .attacks import Attack, check_norm, parse
from .attacks.base import NORMS, contain, frozen, wrong
from .attacks.quick import Bounded
from .cpu import keep_freed_memory
from .errors import InputError

BLOCK = 200  # samples that share a seed; changing it changes the random starts of every published figure
Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Result:
    """One line of the evaluation. correct: (n,) bool on the CPU; nonfinite: samples with NaN or infinite logits."""

    name: str
    accuracy: float
    n: int
    ci95: tuple[float, float]
    seconds: float
    correct: Tensor
    nonfinite: int = 0


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor, *, attacks: str | Sequence[str | Attack], norm: str | None,
             eps: float | None, seed: int = 0, batch_size: int = BLOCK,
             progress: Progress | None = None) -> dict[str, Result]:
    """Clean accuracy, then the accuracy under each attack on its own, all on the same samples.

    The model is in eval mode meanwhile and comes back as it was; its parameters get no gradient.
    Args: inputs: (n,C,H,W) float in [0,1]; labels: (n,) in 0..K-1; norm: "linf" or "l2"; eps: radius > 0 in the unit of
        the inputs; both may be None without attacks; batch_size: most samples in one pass (memory); blocks stay BLOCK;
        progress: called with (name, samples done, n).
    Returns: {"clean": Result, resolved attack name: Result, ...}.
    Raises: InputError on wrong inputs, labels, threat or names, on too few classes, on non-finite clean logits.
    """
    chosen = parse(attacks)
    _check_inputs(inputs, labels, batch_size)
    if chosen:
        norm, eps = _check_threat(norm, eps)
        check_norm(chosen, norm)
        keep_freed_memory()
    report = progress or (lambda name, done, total: None)
    with frozen(model):
        bounded = Bounded(model, batch_size)
        results = {"clean": _clean(bounded, inputs, labels, chosen, report)}
        for attack in chosen:
            results[attack.name] = _under(bounded, attack, inputs, labels, results["clean"].correct, eps=eps, norm=norm,
                                          seed=seed, report=report)
    return results


def to_json(results: dict[str, Result]) -> dict[str, dict]:
    """{NAME: {"accuracy": 0..1, "n": int, "ci95": [low, high]}}, the form in report.json."""
    return {name: {"accuracy": r.accuracy, "n": r.n, "ci95": list(r.ci95)} for name, r in results.items()}


def parse_norm(text: str) -> str:
    """"linf" or "l2" from Linf, inf, linf, L2, 2 in any case. Raises: InputError on another norm."""
    key = str(text).strip().lower().replace("_", "")
    norm = {"inf": "linf", "l∞": "linf", "2": "l2"}.get(key, key)
    if norm in NORMS:
        return norm
    near = difflib.get_close_matches(key, NORMS, n=1)
    raise InputError(f"Unknown norm {text!r}." + (f" Did you mean {near[0]}?" if near else ""),
                     hint=f"Known: {', '.join(NORMS)}")


def parse_eps(text: str | float, *, norm: str = "linf") -> float:
    """Radius of the ball from "8/255", "0.3" or a number; unit of inputs in [0,1].

    Raises: InputError if it is no number, not finite, 0 or negative, or above 1 for linf (pixels are in [0,1]).
    """
    shown = str(text).strip()
    try:
        top, slash, bottom = shown.partition("/")
        value = float(Fraction(top.strip()) / Fraction(bottom.strip())) if slash else float(shown)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"eps {shown!r} is not a number.", hint="Write it as 8/255 or 0.03") from None
    if not math.isfinite(value) or value <= 0:
        wanted = "there is nothing to attack at 0" if value == 0 else "it must be finite and above 0"
        raise InputError(f"eps is {shown}: {wanted}.", hint="Write it as 8/255 or 0.03")
    if norm == "linf" and value > 1:
        near = f" Did you mean {shown}/255?" if value <= 255 and not slash else ""
        raise InputError(f"eps is {shown}, but inputs are in [0,1] and the norm is linf.{near}",
                         hint="Write it as 8/255 or 0.03")
    return value


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson (1927) 95% score interval of correct/n: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Exactly 0 below for correct = 0 and 1 above for correct = n. Raises: InputError unless 0 <= correct <= n, n > 0.
    """
    if not 0 <= correct <= n or n == 0:
        raise InputError(f"An accuracy of {correct} out of {n} has no interval: expected 0 <= correct <= n and n > 0.")
    p, z2 = correct / n, Z95 * Z95
    centre = p + z2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)


def paired_drop(teacher: Tensor, student: Tensor) -> tuple[float, tuple[float, float]]:
    """Drop in accuracy p_T - p_S on the same samples, with Newcombe's (1998, method 10) 95% interval for paired data.

    With Wilson intervals (l, u) of each: D - sqrt(a^2 - 2 phi a b + b^2) with a = p_T - l_T, b = u_S - p_S, and the mirror
    image above; phi is the correlation of the flags, shrunk towards 0 by n/2 in its numerator when it is positive.
    Args: teacher, student: (n,) bool, correct or not. Raises: InputError if the shapes differ or n is 0.
    """
    if teacher.shape != student.shape or teacher.dim() != 1 or not len(teacher):
        raise InputError(f"Flags of shapes {tuple(teacher.shape)} and {tuple(student.shape)} are not of the same samples.")
    t, s, n = teacher.bool().cpu(), student.bool().cpu(), len(teacher)
    right_t, right_s = int(t.sum()), int(s.sum())
    p_t, p_s, drop = right_t / n, right_s / n, (right_t - right_s) / n
    (l_t, u_t), (l_s, u_s) = wilson(right_t, n), wilson(right_s, n)
    phi = _shrunk_phi(right_t, right_s, int((t & s).sum()), n)
    low = drop - _side(p_t - l_t, u_s - p_s, phi)
    high = drop + _side(u_t - p_t, p_s - l_s, phi)
    return drop, (max(-1.0, low), min(1.0, high))


def _side(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))  # rounding when a = b and phi is near 1


def _shrunk_phi(right_t: int, right_s: int, both: int, n: int) -> float:
    """Correlation of the flags as Newcombe corrects it; 0 if one model is right, or wrong, on every sample."""
    scale = right_t * (n - right_t) * right_s * (n - right_s)
    covariance = both * n - right_t * right_s  # equals ad - bc of the 2x2 table
    if scale == 0:
        return 0.0
    return (max(covariance - n / 2, 0) if covariance > 0 else covariance) / math.sqrt(scale)


@torch.no_grad()
def _clean(model: nn.Module, inputs: Tensor, labels: Tensor, chosen: Sequence[Attack], report: Progress) -> Result:
    """Clean flags; refuses what makes every later figure meaningless."""
    start, n = time.perf_counter(), len(inputs)
    correct, broken = torch.zeros(n, dtype=torch.bool), 0
    for first in range(0, n, BLOCK):
        x, y = _rows(model, inputs, labels, slice(first, first + BLOCK))
        logits = model(x)
        _check_logits(logits, labels, chosen)
        correct[first:first + BLOCK] = ~wrong(logits, y).cpu()
        broken += _nonfinite(logits)
        report("clean", min(first + BLOCK, n), n)
    if broken:
        raise InputError(f"The model gives NaN or infinite logits on {broken} of {n} clean inputs.",
                         hint="Check the weights and the normalisation of the checkpoint.")
    return _result("clean", correct, time.perf_counter() - start)


def _under(model: nn.Module, attack: Attack, inputs: Tensor, labels: Tensor, clean: Tensor, *, eps: float, norm: str,
           seed: int, report: Progress) -> Result:
    """Flags under one attack, block by block: right when clean and not broken."""
    start, n = time.perf_counter(), len(inputs)
    correct, nonfinite = clean.clone(), 0
    for first in range(0, n, BLOCK):
        rows = first + clean[first:first + BLOCK].nonzero().flatten()
        if len(rows):
            x, y = _rows(model, inputs, labels, rows.to(inputs.device))
            generator = torch.Generator().manual_seed(block_seed(seed, attack.name, first // BLOCK))
            adv = attack.run(model, x, y, eps=eps, norm=norm, generator=generator)
            with torch.no_grad():
                logits = model(contain(adv.detach(), x, eps=eps, norm=norm))
            correct[rows] = ~wrong(logits, y).cpu()
            nonfinite += _nonfinite(logits)
        report(attack.name, min(first + BLOCK, n), n)
    return _result(attack.name, correct, time.perf_counter() - start, nonfinite)


def block_seed(seed: int, name: str, block: int) -> int:
    """63 bits of SHA-256 of (seed, attack name, block index): the same on every machine and in every Python."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}|{block}".encode()).digest()[:8], "big") >> 1


def _rows(model: nn.Module, inputs: Tensor, labels: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
    """A block on the device of the model, in float32."""
    parameter = next(model.parameters(), inputs)
    return inputs[rows].to(parameter.device, torch.float32), labels[rows].to(parameter.device, torch.long)


def _result(name: str, correct: Tensor, seconds: float, nonfinite: int = 0) -> Result:
    right, n = int(correct.sum()), len(correct)
    return Result(name, right / n, n, wilson(right, n), seconds, correct, nonfinite)


def _nonfinite(logits: Tensor) -> int:
    return int((~logits.isfinite().all(1)).sum())


def _check_inputs(inputs: Tensor, labels: Tensor, batch_size: int) -> None:
    if inputs.dim() != 4 or not inputs.is_floating_point() or not len(inputs):
        raise InputError(f"Inputs are {inputs.dtype} of shape {tuple(inputs.shape)}, expected float (n,C,H,W) with n > 0.")
    if labels.shape != inputs.shape[:1] or labels.is_floating_point():
        raise InputError(f"Labels are {labels.dtype} of shape {tuple(labels.shape)}, expected integers ({len(inputs)},).")
    low, high = float(inputs.min()), float(inputs.max())
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise InputError(f"Inputs span [{low:g}, {high:g}], expected [0, 1].",
                         hint="Divide bytes by 255; normalisation belongs inside the model (--mean, --std).")
    if batch_size < 1:
        raise InputError(f"The batch size is {batch_size}, expected at least 1.")


def _check_threat(norm: str | None, eps: float | None) -> tuple[str, float]:
    if norm is None or eps is None:
        raise InputError("Attacks need a threat model: norm and eps are not given.",
                         hint="For example --norm linf --eps 8/255")
    known = parse_norm(norm)
    return known, parse_eps(eps, norm=known)


def _check_logits(logits: Tensor, labels: Tensor, chosen: Sequence[Attack]) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(f"The model answers with shape {tuple(logits.shape)}, expected (batch, classes) with 2 classes or more.")
    classes, low, high = logits.shape[1], int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"Labels span {low}..{high}, but the model has {classes} classes (0..{classes - 1}).",
                         hint="Check that --data fits the model.")
    needy = [a for a in chosen if a.min_classes > classes]
    if needy:
        raise InputError(f"{needy[0].name} needs at least {needy[0].min_classes} classes, the model has {classes}.",
                         hint="Use --attacks apgd-ce,fab-t,square instead.")
