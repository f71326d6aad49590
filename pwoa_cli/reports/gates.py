"""Limits that a report must keep, for CI: --min pgd=0.45 (a fraction), --max-drop aa=1.0 (points).

A gate fails where the figure itself is beyond its limit; where only its 95% interval is, it passes and says
how many samples would decide (strict: it fails). What is unfinished, unreliable or was not measured fails.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.words import WORST, of_models
from pwoa_cli.reports import several
from pwoa_cli.reports.numbers import EXACT

MOST = 10_000_000  # samples; test sets have at most 50,000
FLAGS = {"min": "--min", "max-drop": "--max-drop"}
# findings that make clean accuracy unreliable too; the others are of gradients and attacks
OF_CLEAN = ("near-chance", "random-model", "batch-dependent", "coarse-logits", "other-function",
            "nonfinite-logits")
OTHER_NAMES = {"worst": WORST, "worst-case": WORST}


@dataclass(frozen=True)
class Gate:
    """kind: "min", accuracy in 0..1 at least, or "max-drop", points lost at most; attack: clean, worst case
    or an attack's name."""

    kind: str
    attack: str
    limit: float

    def __str__(self) -> str:
        return f"{FLAGS[self.kind]} {'worst' if self.attack == WORST else self.attack}={self.limit:.12g}"


@dataclass(frozen=True)
class Verdict:
    """gate: as it was typed; passed; text: one sentence with the figure."""

    gate: str
    passed: bool
    text: str


def parse(kind: str, texts: Sequence[str] | None) -> list[Gate]:
    """Gates from "pgd=0.45" and so on. Raises: InputError, with what was meant where that can be guessed."""
    gates, flag = [], FLAGS[kind]
    example = {"min": "--min worst=0.45", "max-drop": "--max-drop worst=1.0"}[kind]
    for text in texts or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not name or not equals or not math.isfinite(limit):
            raise InputError(f"{flag} {text} is not ATTACK=NUMBER.", hint=f"For example: {example}")
        if kind == "min" and not 0 <= limit <= 1:
            meant = f" Did you mean {limit / 100:g}?" if 1 < limit <= 100 else ""
            raise InputError(f"{flag} {text}: an accuracy is a fraction between 0 and 1.{meant}",
                             hint=f"For example: {flag} {name}={limit / 100:g}" if meant else example)
        if kind == "max-drop" and not -100 <= limit <= 100:
            raise InputError(f"{flag} {text}: a drop is in points, between -100 and 100.", hint=example)
        gates.append(Gate(kind, OTHER_NAMES.get(name, name), limit))
    return gates


def resolved(gates: Sequence[Gate], attacks: Mapping[str, str], *, compared: bool) -> list[Gate]:
    """The gates under the names that the report will have, checked before any work.

    Args: attacks: what may be typed for each attack that is asked for, and its name in the report: {"pgd":
    "pgd-20", "pgd-20": "pgd-20"}. compared: whether there is a teacher to lose against. Raises: InputError
    for an attack that is not asked for, or a drop from nothing.
    """
    names = {"clean": "clean", **attacks}
    if len(set(attacks.values())) > 1:
        names[WORST] = WORST
    elif attacks:
        names[WORST] = next(iter(attacks.values()))
    for gate in gates:
        if gate.attack not in names:
            listed = ", ".join(dict.fromkeys(["worst" if name == WORST else name for name in names]))
            raise InputError(f"{gate}: {gate.attack} is not measured; there are {listed}.",
                             hint="Ask for it: --attacks pgd,cw,aa")
        if gate.kind == "max-drop" and not compared:
            raise InputError(f"{gate}: there is no other model to lose against.",
                             hint="Name one: --compare FILE, or evaluate a run.")
    return [Gate(gate.kind, names[gate.attack], gate.limit) for gate in gates]


def judged(report: Mapping[str, Any], gates: Sequence[Gate], *, strict: bool = False) -> list[dict[str, Any]]:
    """A Verdict on each gate, as a plain dictionary; of several models on each that is not the reference,
    with its heading as `model`."""
    if "reference" in report:
        return [{"model": who} | verdict for who in several.compared(report)
                for verdict in judged(several.view(report, who), gates, strict=strict)]
    return [asdict(_judged(report, gate, strict)) for gate in gates]


def title(verdict: Mapping[str, Any]) -> str:
    """A gate as it was typed, after the model that it judges where there are several."""
    return f"{verdict['model']}: {verdict['gate']}" if "model" in verdict else verdict["gate"]


def _judged(report: Mapping[str, Any], gate: Gate, strict: bool) -> Verdict:
    doubt = _unfinished(report, gate) or _unreliable(report, gate)
    if doubt:
        return Verdict(str(gate), False, doubt)
    entry = _figure(report, gate)
    if entry is None:
        return Verdict(str(gate), False, f"{gate.attack} was not measured.")
    if gate.kind == "min":
        value, (low, _), unit, n = entry["accuracy"], entry["ci95"], "", entry["n"]
        gap, beyond = round(value - gate.limit, EXACT), low < gate.limit
        interval = f"[{low:.3f}, {entry['ci95'][1]:.3f}]"
        shown = f"{gate.attack} is {_apart(value, gate.limit)} {interval} (n = {n})"
        needed = n and gap > 0 and deciding(n, half=value - low, gap=gap)
    else:
        value, (_, high), unit = entry["points"], entry["ci95"], " points"
        n = report["data"]["n"]
        gap, beyond = round(gate.limit - value, EXACT), high > gate.limit
        interval = f"[{entry['ci95'][0]:.2f}, {high:.2f}]"
        shown = f"{gate.attack} loses {_apart(value, gate.limit)} points {interval} (n = {n})"
        needed = gap > 0 and deciding(n, half=high - value, gap=gap)
    limit = f"{'at least' if gate.kind == 'min' else 'at most'} {gate.limit:.12g}{unit}"
    if gap < 0:
        return Verdict(str(gate), False, f"{shown}, wanted {limit}.")
    if not beyond:
        return Verdict(str(gate), True, f"{shown}, wanted {limit}.")
    decide = ("it is the limit itself" if not needed else f"about {needed:,} samples would decide"
              if needed <= MOST else "no number of samples that is to be had would decide")
    return Verdict(str(gate), not strict,
                   f"{shown}, wanted {limit}: the interval reaches beyond it; {decide}.")


def deciding(n: int, *, half: float, gap: float) -> int:
    """Samples whose interval would just end at a limit, from one of n samples: it shrinks with their root.

    Args: half: from the figure to the end of its interval; gap: from it to the limit, > 0; in one unit.
    """
    return math.ceil(n * (half / gap) ** 2)


def _figure(report: Mapping[str, Any], gate: Gate) -> Mapping[str, Any] | None:
    """The score of the model that was pruned or named, or the drop."""
    if gate.kind == "max-drop":
        return report.get("drop", {}).get(gate.attack)
    return report.get("results", report.get("student", {})).get(gate.attack)


def _apart(value: float, limit: float) -> str:
    """A figure in four digits, or in as many as tell it from its limit."""
    return next((text for digits in range(4, 9) if float(text := f"{value:.{digits}g}") != limit),
                f"{value:.4g}")


def _unfinished(report: Mapping[str, Any], gate: Gate) -> str:
    """A sentence where the figure is not finished: for the worst case, where any attack is not."""
    left = {name: part for parts in report.get("unfinished", {}).values() for name, part in parts.items()
            if name == gate.attack or gate.attack == WORST}
    shown = ", ".join(f"{name} {part['n']} of {part['of']} samples" for name, part in left.items())
    return f"{gate.attack} is unfinished: {shown}." if left else ""


def _unreliable(report: Mapping[str, Any], gate: Gate) -> str:
    """A sentence where a check says that the figure must not be believed."""
    mine = list(report.get("headings", ("teacher", "pruned")))[-1]
    for finding in report.get("findings", []):
        ours = gate.kind == "max-drop" or not finding["models"] or mine in finding["models"]
        if finding["unreliable"] and ours and (gate.attack != "clean" or finding["check"] in OF_CLEAN):
            return f"{gate.attack} is unreliable: {of_models(finding)}"
    return ""
