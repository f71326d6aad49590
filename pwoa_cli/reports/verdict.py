"""A report in one sentence: what holds under attack, against whom, at what size, and what makes it
unreliable."""
from collections.abc import Mapping
from typing import Any

from pwoa_cli.evaluation.words import WORST
from pwoa_cli.reports import search, tables
from pwoa_cli.reports.numbers import percent_of_weights, radius, times, with_interval


def verdict(report: Mapping[str, Any]) -> str:
    """The sentence; of several models the last figure of each. What is not finished gives no figure."""
    doubts = [finding["text"] for finding in report.get("findings", []) if finding["unreliable"]]
    said = _doubted(doubts) if doubts else ""
    *_, scores = tables.scores(report).values()
    if "reference" in report or tables.is_unfinished(report) or not scores:
        return _sentence(said + tables.summary(report).removeprefix("Unreliable: "))
    guesses = "No better than guessing: " if tables.only_guesses(report) else ""
    return _sentence(f"{said}{guesses}{_held(report)}{_against(report)}{_cost(report)}.")


def is_short(report: Mapping[str, Any]) -> bool:
    """Whether something that was asked for is not there: the pruned model only guesses, an attack has no
    figure, a search lost more on the test images than it may, the file is larger."""
    return (tables.only_guesses(report) or tables.falls_short(report) or search.exceeded(report)
            or tables.too_large(report))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _doubted(doubts: list[str]) -> str:
    more = f" (and {len(doubts) - 1} more)" if len(doubts) > 1 else ""
    return f"Unreliable, as {doubts[0].split('. ')[0].rstrip('.')}{more}: "


def _held(report: Mapping[str, Any]) -> str:
    """Who holds against what."""
    *_, scores = tables.scores(report).values()
    name, data = tables.worst(report), report["data"]["name"]
    attacks = ", ".join(attack for attack in scores if attack not in ("clean", WORST))
    zeros = (f"with {percent_of_weights(report['sparsity']['achieved'])}% of its weights zero, "
             if "sparsity" in report else "")
    score, threat = scores[name or "clean"], report["threat"]
    within = "" if threat["eps"] is None else f", {threat['norm']} eps {radius(threat['eps'])}"
    under = ("are classified rightly; nothing was attacked" if name is None else
             f"stay right under {attacks} (the worst of them for each image){within}" if name == WORST else
             f"stay right under {name}{within}")
    return f"{zeros}{with_interval(score).replace(' ', '% ', 1)} of {score['n']} {data} test images {under}"


def _against(report: Mapping[str, Any]) -> str:
    """What that is against the other model."""
    name = tables.worst(report) or "clean"
    who, *_ = tables.scores(report)
    if name not in report.get("drop", {}) or name not in tables.scores(report)[who]:
        return ""
    drop = report["drop"][name]
    low, high = drop["ci95"]
    told = "lost" if low > 0 else "gained" if high < 0 else "no loss beyond chance"
    return f", against {with_interval(tables.scores(report)[who][name]).split()[0]}% of the {who} ({told}: " \
           f"{with_interval(drop)} points)"


def _cost(report: Mapping[str, Any]) -> str:
    return f"; the file is {times(report['size']['dense_bytes'], report['size']['file_bytes'])}" \
        if "size" in report else ""
