"""Words and numbers of figures that need no torch: what reports and the sentences of the checks share."""
from collections.abc import Mapping, Sequence
from typing import Any

WORST = "worst case"  # the name of the figure over all attacks


def in_points(drop: float, ci95: Sequence[float]) -> dict[str, Any]:
    """The entry {points, ci95} in percentage points, of a drop and its interval as fractions in -1..1."""
    return {"points": 100 * drop, "ci95": [100 * bound for bound in ci95]}


def told(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Findings as sentences: whether the figures must not be believed, of which models, what."""
    return ["unreliable: " * finding["unreliable"] + of_models(finding) for finding in findings]


def of_models(finding: Mapping[str, Any]) -> str:
    """A finding's text, behind the models that it is of where they are named."""
    return f"{' and '.join(finding['models'])}{': ' * bool(finding['models'])}{finding['text']}"


def share(count: int, n: int) -> str:
    """A count and what fraction that is: 3 of 200 (1.5%)."""
    return f"{count} of {n} ({percent(count / n)})"


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal, or one digit that counts: 12.5%, 0.02%."""
    return f"{100 * fraction:.1f}%" if fraction == 0 or fraction >= 0.0005 else f"{100 * fraction:.1g}%"


def first_line(error: Exception) -> str:
    """What an error says first, without its advice."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0][:80].rstrip(".")
