"""Recipes side by side on one model: a row (recipe, sparsity, seed, clean, attacks, seconds) for each, appended to a file.

    .venv/bin/python examples/benchmarks/recipes.py MODEL --data mnist --eps 0.3 --sparsity 0.9 0.97 --seeds 0 1 \\
        --results rows.jsonl --plot rows.png \\
        "default" "uniform: allocation=uniform" "no noise: noise=none" "paper, 6 epochs: recipe=paper epochs=6"

Each positional text, and each line of --file, is `LABEL` or `LABEL: field=value field=value`; `recipe`, `structure` and all
fields of docs/recipes.md can be set, and the label `teacher` alone measures the model as it is. By default it tunes: the last
5,000 training images are held out and reported; --test trains on all of them and reports on the test set. Rows that the file
has are skipped, so the same command goes on after a stop, and without any recipe it only shows what the file has.
"""
import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pwoa_cli import attacks, checkpoint, prune, subject
from pwoa_cli import data as datasets
from pwoa_cli.evaluate import evaluate
from pwoa_cli.intervals import wilson

Row = dict[str, Any]
MARGIN = 6  # points between a label and its point


def held_out(found: datasets.Dataset, count: int) -> datasets.Dataset:
    """The data set with its last `count` training images as the test set."""
    train = found.train
    parts = [datasets.Split(train.images[part], train.labels[part]) for part in (slice(None, -count), slice(-count, None))]
    return replace(found, train=parts[0], test=parts[1])


# --- rows -------------------------------------------------------------------------------------------------------------

def parse(spec: str) -> Row:
    """{"label", "recipe", "structure", "fields"} of `LABEL: field=value field=value`."""
    label, _, text = spec.partition(":")
    fields = dict(f.split("=", 1) for f in text.split())
    return {"label": label.strip(), "recipe": fields.pop("recipe", "default"),
            "structure": fields.pop("structure", "unstructured"), "fields": fields}


def planned(args: argparse.Namespace) -> list[Row]:
    """Everything that the command asks for, without results: recipes outside, then sparsities, then seeds."""
    lines = [line.strip() for line in args.file.read_text().splitlines()] if args.file else []
    specs = [*args.recipes, *(line for line in lines if line and not line.startswith("#"))]
    common = {"model": Path(args.model).name, "n": args.n, "on": "test" if args.test else "held-out train"}
    return [common | parse(spec) | {"sparsity": sparsity, "seed": seed}
            for spec in specs for sparsity in ([0.0] if spec == "teacher" else args.sparsity) for seed in args.seeds]


def filled(args: argparse.Namespace, row: Row) -> Row:
    """The row with its results: prune by its recipe, or leave the teacher as it is, and measure."""
    request = prune.Request(
        checkpoint.Source(args.model), row["sparsity"] or 0.5, recipe=row["recipe"], overrides=row["fields"],
        structure=row["structure"], data=args.data, norm=args.norm, eps=args.eps, n=args.n, seed=row["seed"], device=args.device, attacks=args.attacks)
    change = None if args.test else lambda found: held_out(found, args.held_out)
    job = prune.prepare(request, say=lambda text: None, change_data=change)
    start = time.perf_counter()
    student = prune.fit(job, note=lambda state, losses: None) if row["sparsity"] else job.subject.model
    seconds = time.perf_counter() - start
    x = subject.samples(job.subject.dataset, args.n, seed=row["seed"])
    results = evaluate(student, x, x.labels, attacks=args.attacks, norm=job.subject.norm, eps=job.subject.eps, seed=row["seed"])
    percent = {name: round(100 * r.accuracy, 2) for name, r in results.items()}
    return row | {"norm": job.subject.norm, "eps": job.subject.eps} | percent | {"seconds": round(seconds, 1)}


def read(path: Path) -> list[Row]:
    """Rows of the file; a line that is not whole (the machine went down while it was written) does not count."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def append(path: Path, row: Row) -> None:
    """One write of a whole line, so that rows of several processes never mix; after a torn line on a new one."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, ("\n" * torn + json.dumps(row) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def has(rows: Sequence[Row], wanted: Row, names: Sequence[str]) -> bool:
    """Whether a row of the same recipe, sparsity, seed and samples has all these attacks."""
    return any(all(row.get(key) == value for key, value in wanted.items()) and all(name in row for name in names) for row in rows)


# --- pictures ---------------------------------------------------------------------------------------------------------

def by_recipe(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """Rows of all seeds under (label, sparsity), in the order of the file."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["label"], row["sparsity"]].append(row)
    return dict(groups)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other reaches in both coordinates, by the first one."""
    return sorted(p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points))


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Markdown: for each recipe and sparsity the mean over seeds in percent, its Wilson interval over all samples, and the
    lowest and highest seed where there are several."""
    lines = ["| recipe | sparsity | seeds | " + " | ".join(names) + " | seconds |", "|---" * (len(names) + 4) + "|"]
    for (label, sparsity), group in by_recipe(rows).items():
        cells = [_cell(group, name) for name in names]
        seconds = sum(row["seconds"] for row in group) / len(group)
        lines.append(f"| {label} | {100 * sparsity:g}% | {len(group)} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _cell(group: Sequence[Row], name: str) -> str:
    found = [(row[name], row["n"]) for row in group if name in row]
    if not found:
        return "-"
    n = sum(size for _, size in found)
    right = sum(round(percent * size / 100) for percent, size in found)
    low, high = wilson(right, n)
    spread = f" ({min(found)[0]:.1f} to {max(found)[0]:.1f})" if len(found) > 1 else ""
    return f"{100 * right / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]{spread}"


def plot(rows: Sequence[Row], attack: str, path: Path) -> None:
    """Clean against robust accuracy: a point for each recipe (mean over seeds, bars from lowest to highest), a colour for each
    sparsity, a line through the recipes that no other beats in both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    groups = {key: group for key, group in by_recipe(rows).items() if all(attack in row for row in group)}
    for number, sparsity in enumerate(sorted({s for _, s in groups})):
        points, colour = [], f"C{number}"
        for label, group in ((label, group) for (label, s), group in groups.items() if s == sparsity):
            values = [[row[name] for row in group] for name in ("clean", attack)]
            x, y = (sum(v) / len(v) for v in values)
            bars = [[[mean - min(v)], [max(v) - mean]] for mean, v in zip((x, y), values, strict=True)]
            axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="o", color=colour, capsize=2)
            axes.annotate(label, (x, y), xytext=(MARGIN, MARGIN), textcoords="offset points", fontsize=8, color=colour)
            points.append((x, y))
        axes.plot(*zip(*front(points), strict=True), color=colour, alpha=0.5, label=f"{100 * sparsity:g}% zeros")
    axes.set(xlabel="clean accuracy (%)", ylabel=f"accuracy under {attack} (%)")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not in the file yet, then show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recipes", nargs="*", metavar="LABEL: FIELDS")
    parser.add_argument("--file", type=Path, help="more recipes, one a line; # begins a comment line")
    parser.add_argument("--data")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--attacks", default="pgd-20", help="the last one is drawn")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--held-out", type=int, default=5000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print Markdown with Wilson intervals")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    args = parser.parse_intermixed_args(argv)
    torch.set_num_threads(args.threads)
    names = [attack.name for attack in attacks.parse(args.attacks)]
    for row in planned(args):
        if not has(read(args.results), row, names):
            made = filled(args, row)
            append(args.results, made)
            print(json.dumps(made), flush=True)
    on = "test" if args.test else "held-out train"
    shown = [row for row in read(args.results) if row["model"] == Path(args.model).name and row["on"] == on]
    if args.table:
        print(table(shown, ["clean", *names]))
    if args.plot:
        plot(shown, names[-1], args.plot)


if __name__ == "__main__":
    main()
