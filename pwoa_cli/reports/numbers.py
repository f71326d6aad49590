"""Numbers for people, each kind in one form."""
import math
from collections.abc import Mapping, Sequence
from typing import Any

EXACT = 9  # decimals of a difference; what is beyond them is rounding: 100 * 0.007 is above 0.7


def percent_of_weights(sparsity: float) -> str:
    """A sparsity in percent, two decimals or as many as keep it below 100: 0.9 -> 90, 0.9975 -> 99.75,
    0.999996 -> 99.9996."""
    digits = next((d for d in range(2, 9) if f"{100 * sparsity:.{d}f}" != f"{100:.{d}f}"), 2)
    return f"{100 * sparsity:.{digits}f}".rstrip("0").rstrip(".")


def size(count: float) -> str:
    """A number of bytes in decimal units: 132040 -> 132.0 kB."""
    return f"{count:.0f} B" if count < 1000 else scaled(count, ("kB", "MB", "GB", "TB"))


def scaled(count: float, units: Sequence[str] = ("k", "M", "G", "T")) -> str:
    """A large number in thousands, millions and so on: 2293000 -> 2.3 M (below 1000: as it is)."""
    if count < 1000:
        return f"{count:.0f}"
    power = next((p for p in range(1, len(units)) if count < 999.95 * 1000**p), len(units))
    return f"{count / 1000**power:.1f} {units[power - 1]}"


def ratio(a: float, b: float) -> str:
    """a / b with three digits that count: 10.8, 1.01, 120; "-" for b = 0."""
    if not b:
        return "-"
    value = a / b
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(dense: float, file: float) -> str:
    """8.65 times smaller, or 1.20 times larger."""
    return f"{ratio(dense, file)} times smaller" if file <= dense else f"{ratio(file, dense)} times larger"


def duration(seconds: float) -> str:
    """A time for people: 3.2s, 43s, 1m 44s, 12m, 2h 05m; "?" when it is not known."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 60}m" if whole < 3600 else f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def radius(eps: float) -> str:
    """An eps as people write it: 0.3, 8/255, 0.031."""
    short = f"{eps:.10g}"
    if len(short) > 5 and abs(eps * 255 - round(eps * 255)) < 1e-4 and round(eps * 255):
        return f"{round(eps * 255)}/255"
    return short if len(short) <= 6 else f"{eps:.4g}"


def with_interval(entry: Mapping[str, Any] | None) -> str:
    """A score in percent or a drop in points with its 95% interval: 93.2 [91.5, 94.6]; "-" for None."""
    if entry is None:
        return "-"
    scale, value = (1, entry["points"]) if "points" in entry else (100, entry["accuracy"])
    low, high = entry["ci95"]
    return f"{scale * value:z.1f} [{scale * low:z.1f}, {scale * high:z.1f}]"  # z: no -0.0


def points(count: float) -> str:
    """1 point, 0.5 points."""
    return f"{count:g} point{'s' * (count != 1)}"
