"""The picture of the README: points lost against sparsity, from the tables of docs/results.md.

    python examples/benchmarks/losses.py docs/results.md docs/losses.png
"""
import argparse
import re
from pathlib import Path
from typing import NamedTuple

# column: in the legend
UNDER = {"PGD-40": "PGD-40", "PGD-20": "PGD-20", "worst of PGD-20, CW": "PGD-20 and CW"}


class Curve(NamedTuple):
    """network: its heading; attack: of `lost`; lost, clean: {sparsity in %: points against the teacher}."""

    network: str
    attack: str
    lost: dict[int, float]
    clean: dict[int, float]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def drop(row: list[str], columns: list[str], name: str) -> float | None:
    """Points of a column, bold where it is a mean of seeds, else in the column "drop" behind it; None if it
    was not measured."""
    if name not in columns or len(row) <= (at := columns.index(name)):
        return None
    behind = row[at + 1] if columns[at + 1] == "drop" else ""
    match = re.match(r"\*\*(-?[\d.]+)\*\*", row[at]) or re.fullmatch(r"(-?[\d.]+)", behind)
    return float(match[1]) if match else None


def curve(heading: str, section: str) -> Curve:
    """Of the rows of one sparsity the first that has a figure counts."""
    columns, _, *rows = [cells(line) for line in section.splitlines() if line.startswith("|")]
    attack = next(name for name in UNDER if name in columns)
    lost: dict[int, float] = {}
    clean: dict[int, float] = {}
    for row in rows:
        sparsity = re.match(r"(\d+)%", row[0])
        for found, name in ((lost, attack), (clean, "clean")):
            if sparsity and (points := drop(row, columns, name)) is not None:
                found.setdefault(int(sparsity[1]), points)
    return Curve(heading, UNDER[attack], lost, clean)


def curves(page: str) -> list[Curve]:
    """Of every section of docs/results.md that has a table."""
    sections = [part.partition("\n") for part in page.split("\n## ")[1:]]
    return [curve(heading, text) for heading, _, text in sections if "\n|" in text]


def draw(found: list[Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ticks = sorted({sparsity for one in found for sparsity in one.lost})
    figure, axes = pyplot.subplots(figsize=(7, 3.6), dpi=110, layout="constrained")
    for number, one in enumerate(found):
        for points, line, what in ((one.lost, "o-", one.attack), (one.clean, "o:", "clean")):
            axes.plot([ticks.index(sparsity) for sparsity in points], list(points.values()), line,
                      color=f"C{number}", label=f"{one.network}: {what}", markersize=4)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(ticks)), [f"{sparsity}%" for sparsity in ticks])
    axes.set(xlabel="weights that are zero", ylabel="points lost against the teacher")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    asked = parser.parse_args()
    draw(curves(asked.page.read_text(encoding="utf-8")), asked.picture)


if __name__ == "__main__":
    main()
