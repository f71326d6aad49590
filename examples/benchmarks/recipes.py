"""Recipes side by side on one model: a row (recipe, sparsity, seed, clean, attacks, KL, seconds) for each,
appended to a file.

    .venv/bin/python examples/benchmarks/recipes.py MODEL --data mnist --eps 0.3 --sparsity 0.9 0.97 --seeds 0
    1 \\
        --results rows.jsonl --plot rows.png \\
        "default" "uniform: allocation=uniform" "no noise: noise=none" "paper, 6 epochs: recipe=paper
        epochs=6"

Each positional text, and each line of --file, is `LABEL` or `LABEL: field=value field=value`; `recipe`,
`structure` and all fields of docs/recipes.md can be set, and the label `teacher` alone measures the model as
it is. By default it tunes: 5,000 training images, stratified and always the same ones, are held out and
reported; --test trains on all of them and reports on the test set. Rows that the file has are skipped, so the
same command goes on after a stop: a row has the model file's hash, the data, norm and eps that were found and
a hash of all fields of the recipe, and counts only where all of them are the same. Without any recipe it only
shows what the file has.
"""
import argparse
import hashlib
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pwoa_cli import attacks
from pwoa_cli.checkpoints.model import Source
from pwoa_cli.data import datasets
from pwoa_cli.data.samples import samples, stratified
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.intervals import wilson
from pwoa_cli.losses import distill
from pwoa_cli.networks import layers
from pwoa_cli.training.kinds import Kinds, kinds_of
from pwoa_cli.training.recipe import read_recipe
from pwoa_cli.training.state import State
from pwoa_cli.workflows import prune
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_request import Request
from pwoa_cli.workflows.setup import open_subject

Row = dict[str, Any]
MARGIN = 6  # points between a number and its point
DIGITS = 12  # of a SHA-256
# What a row stands for; with the seed it is what a row must agree in to be taken for another's
IDENTITY = ("label", "sparsity", "recipe", "structure", "fields", "recipe_sha256", "model", "sha256", "data",
            "norm", "eps", "n",
            "on", "held_out")


def held_out(found: datasets.Dataset, count: int) -> datasets.Dataset:
    """The data set with `count` of its training images, each class by its share and the same ones for every
    seed, as the test set.

    Raises: InputError unless some are left for training.
    """
    train = found.train
    if not 0 < count < len(train):
        raise InputError(f"--held-out {count}: {found.name} has {len(train)} training images, some of which "
                         "must be left.",
                         hint=f"--held-out {max(1, len(train) // 10)}")
    chosen = torch.zeros(len(train), dtype=torch.bool)
    chosen[stratified(train.labels, count, seed=0)] = True
    rest, out = (datasets.Split(train.images[part], train.labels[part])
                 for part in (p.nonzero().flatten() for p in (~chosen, chosen)))
    return replace(found, train=rest, test=out)


# --- rows ---------------------------------------------------------------

def parse(spec: str) -> Row:
    """{"label", "recipe", "structure", "fields"} of `LABEL: field=value field=value`. Raises: InputError for
    another form."""
    label, _, text = spec.partition(":")
    parts = [f.partition("=") for f in text.split()]
    if not label.strip() or not all(name and equals and value for name, equals, value in parts):
        raise InputError(f"{spec!r} is not LABEL or LABEL: FIELD=VALUE FIELD=VALUE.",
                         hint='For example: "short: epochs=1 lr=1e-3"')
    fields = {name: value for name, _, value in parts}
    return {"label": label.strip(), "recipe": fields.pop("recipe", "default"),
            "structure": fields.pop("structure", "unstructured"), "fields": fields}


def planned(args: argparse.Namespace) -> list[Row]:
    """Everything that the command asks for, without results: recipes outside, then sparsities, then seeds.

    Raises: InputError for a recipe, field or model that there is not.
    """
    lines = [line.strip() for line in args.file.read_text().splitlines()] if args.file else []
    specs = [parse(spec)
             for spec in (*args.recipes, *(line for line in lines if line and not line.startswith("#")))]
    common, kinds = _found(args) if specs else ({}, {})
    return [common | spec | {"sparsity": sparsity, "seed": seed,
                             "recipe_sha256": (_hash(spec, common["data"], kinds[sparsity]) if sparsity
                                               else "")}
            for spec in specs for sparsity in ([0.0] if spec["label"] == "teacher" else args.sparsity)
            for seed in args.seeds]


def _found(args: argparse.Namespace) -> tuple[Row, dict[float, Kinds]]:
    """What all rows of this command share, as the workflow finds it, and what chooses the recipe's tables at
    each sparsity."""
    found = open_subject(Source(args.model), data=args.data, norm=args.norm, eps=args.eps,
                                 device=torch.device("cpu"), say=lambda text: None)
    on = {"on": "test", "held_out": 0} if args.test else {"on": "held-out train", "held_out": args.held_out}
    weights = sum(w.numel() for w in layers.prunable(found.model, None).values())
    return {"model": Path(args.model).name, "sha256": found.loaded.sha256[:DIGITS],
            "data": found.dataset.name, "norm": found.norm, "eps": found.eps,
            "n": args.n} | on, {sparsity: kinds_of(found.model, found.dataset.train,
                                                   kept=round((1 - sparsity) * weights))
                                for sparsity in args.sparsity}


def _hash(spec: Row, data: str, kinds: Kinds) -> str:
    """Of all fields of the recipe: a changed default is another recipe."""
    recipe = read_recipe(spec["recipe"], data=data, kinds=kinds, overrides=spec["fields"])
    return hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:DIGITS]


def filled(args: argparse.Namespace, row: Row) -> Row:
    """The row with its results: prune by its recipe, or leave the teacher as it is, and measure."""
    request = Request(
        Source(args.model), sparsity=row["sparsity"] or 0.5, recipe=row["recipe"], overrides=row["fields"],
        structure=row["structure"], data=args.data, norm=args.norm, eps=args.eps, n=args.n, seed=row["seed"],
        device=args.device,
        attacks=args.attacks)
    change = None if args.test else lambda found: held_out(found, args.held_out)
    job = prepare(request, say=lambda text: None, change_data=change)
    start = time.perf_counter()
    shares: list[float] = []

    def note(_state: State, losses: dict[str, float]) -> None:
        if "hsic_share" in losses:
            shares.append(losses["hsic_share"])

    student = prune.fit(job, note=note) if row["sparsity"] else job.subject.model
    seconds = time.perf_counter() - start
    x = samples(job.subject.dataset, args.n, seed=row["seed"])
    results = evaluate(student, x, x.labels, attacks=args.attacks, norm=job.subject.norm, eps=job.subject.eps,
                       seed=row["seed"])
    percent = {name: round(100 * r.accuracy, 2) for name, r in results.items()}
    return row | percent | {"kl": round(divergence(student, job.teacher.model, x[:]), 4),
                            "seconds": round(seconds, 1)} | (
        {"hsic_share": round(statistics.median(shares), 5)} if shares else {})


def divergence(student: torch.nn.Module, teacher: torch.nn.Module, x: torch.Tensor, *,
               batch: int = 500) -> float:
    """KL of the student's answers from the teacher's on natural images (N, C, H, W), in nats an image: it
    moves less by chance than counts of right answers do."""
    with torch.no_grad():
        sums = [distill.kl(student(part), teacher(part), temperature=1) * len(part)
                for part in x.split(batch)]
    return float(torch.stack(sums).sum() / len(x))


def read(path: Path) -> list[Row]:
    """Rows of the file; a line that is not whole (the machine went down while it was written) does not
    count."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def append(path: Path, row: Row) -> None:
    """One write of a whole line, so that rows of several processes never mix; after a torn line on a new
    one."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, ("\n" * torn + json.dumps(row) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def has(rows: Sequence[Row], wanted: Row, names: Sequence[str]) -> bool:
    """Whether rows of the same recipe, model, sparsity, seed and samples have all these attacks together."""
    alike = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    return bool(alike) and all(any(name in row for row in alike) for name in names)


# --- pictures ---------------------------------------------------------------

def by_recipe(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """One row for each seed under (label, sparsity), in the order of the file: the newest, with the attacks
    of older ones.

    Rows that differ in anything else of IDENTITY stay apart, with what differs behind the label.
    """
    groups: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        seeds = groups[json.dumps([row.get(key) for key in IDENTITY])]
        seeds[row["seed"]] = seeds.get(row["seed"], {}) | row
    firsts = [next(iter(seeds.values())) for seeds in groups.values()]
    return {(_told_apart(first, firsts), first["sparsity"]): list(seeds.values())
            for first, seeds in zip(firsts, groups.values(), strict=True)}


def _told_apart(row: Row, rows: Sequence[Row]) -> str:
    """The row's label, with what not all rows of that label agree in."""
    alike = [other for other in rows if other["label"] == row["label"]]
    differs = [key for key in IDENTITY if key != "sparsity"
               and any(other.get(key) != row.get(key) for other in alike)]
    return row["label"] + (f" ({', '.join(f'{key} {row.get(key)}' for key in differs)})" if differs else "")


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other reaches in both coordinates, by the first one."""
    return sorted(p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points))


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Markdown: for each recipe and sparsity the mean over seeds in percent, its Wilson interval over all
    samples, and the lowest and highest seed where there are several, and the mean KL of those rows that have
    it."""
    lines = ["| recipe | sparsity | seeds | " + " | ".join(names) + " | kl | seconds |",
             "|---" * (len(names) + 5) + "|"]
    for (label, sparsity), group in by_recipe(rows).items():
        cells = [_cell(group, name) for name in names]
        divergences = [row["kl"] for row in group if "kl" in row]
        cells.append(f"{sum(divergences) / len(divergences):.3f}" if divergences else "-")
        seconds = sum(row["seconds"] for row in group) / len(group)
        cells.append(f"{seconds:.0f}")
        lines.append(f"| {label} | {100 * sparsity:g}% | {len(group)} | {' | '.join(cells)} |")
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
    """Clean against robust accuracy: a numbered point for each recipe (mean over seeds, bars from lowest to
    highest), a colour for each sparsity, a line through the recipes that no other beats in both. The teacher,
    far away, is left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {key: group for key, group in by_recipe(rows).items() if key[1]
              and all(attack in row for row in group)}
    # a line of the legend takes 0.2 inches
    figure, axes = pyplot.subplots(figsize=(12, max(6, 0.2 * len(groups))), layout="constrained")
    count = 0
    for number, sparsity in enumerate(sorted({s for _, s in groups})):
        points, colour = [], f"C{number}"
        for label, group in ((label, group) for (label, s), group in groups.items() if s == sparsity):
            values = [[row[name] for row in group] for name in ("clean", attack)]
            x, y = (sum(v) / len(v) for v in values)
            bars = [[[mean - min(v)], [max(v) - mean]] for mean, v in zip((x, y), values, strict=True)]
            axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="o", color=colour, capsize=2)
            count += 1
            axes.annotate(count, (x, y), xytext=(MARGIN, MARGIN), textcoords="offset points", fontsize=8,
                          color=colour)
            axes.plot([], [], " ", label=f"{count}  {label}")
            points.append((x, y))
        axes.plot(*zip(*front(points), strict=True), color=colour, alpha=0.5,
                  label=f"{100 * sparsity:g}% zeros")
    axes.set(xlabel="clean accuracy (%)", ylabel=f"accuracy under {attack} (%)")
    figure.legend(loc="outside right upper", fontsize=8, handlelength=1)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not in the file yet, then show."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recipes", nargs="*", metavar="LABEL: FIELDS")
    parser.add_argument("--file", type=Path, help="more recipes, one a line; # begins a comment line")
    parser.add_argument("--data")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", "--n", dest="n", type=int, default=1000)
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
    try:
        names, rows = [attack.name for attack in attacks.parse(args.attacks)], planned(args)
    except InputError as error:
        parser.error(f"{error.message} {error.hint or ''}")
    for row in rows:
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
