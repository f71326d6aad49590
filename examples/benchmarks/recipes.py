"""Recipes side by side on one model: a row (label, sparsity, seed, clean, attacks, seconds) for each, appended to a file.

    .venv/bin/python examples/benchmarks/recipes.py MODEL --data mnist --eps 0.3 --sparsity 0.97 --seed 0 --results rows.jsonl \\
        "default" "uniform: allocation=uniform" "no noise: noise=none" "paper, 6 epochs: recipe=paper epochs=6"

Each positional text is `LABEL` or `LABEL: field=value field=value`. By default it tunes: the last 5,000 training images
are held out and reported; --test trains on all of them and reports on the test set. Rows that the file has are skipped.
"""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from pwoa_cli import data as datasets
from pwoa_cli import checkpoint, prune, subject
from pwoa_cli.evaluate import evaluate

HELD_OUT = 5000


def held_out(found: datasets.Dataset) -> datasets.Dataset:
    """The data set with its last HELD_OUT training images as the test set."""
    train = found.train
    parts = [datasets.Split(train.images[part], train.labels[part]) for part in (slice(None, -HELD_OUT), slice(-HELD_OUT, None))]
    return replace(found, train=parts[0], test=parts[1])


def measure(job: prune.Job, model: torch.nn.Module, attacks: str) -> dict[str, float]:
    """Percent right, clean and under each attack, on the job's samples."""
    x = subject.samples(job.subject.dataset, job.request.n, seed=job.request.seed)
    results = evaluate(model, x, x.labels, attacks=attacks, norm=job.subject.norm, eps=job.subject.eps, seed=job.request.seed)
    return {name: round(100 * r.accuracy, 2) for name, r in results.items()}


def row(args: argparse.Namespace, spec: str) -> dict:
    """Prune by one recipe and measure it."""
    label, _, fields = spec.partition(":")
    overrides = dict(f.split("=", 1) for f in fields.split())
    request = prune.Request(checkpoint.Source(args.model), args.sparsity, recipe=overrides.pop("recipe", "default"), overrides=overrides,
                            structure=overrides.pop("structure", "unstructured"), data=args.data, norm="linf", eps=args.eps, n=args.n, seed=args.seed)
    opened = prune.prepare(request, say=lambda text: None, change_data=None if args.test else held_out)
    start = time.perf_counter()
    student = prune.fit(opened, note=lambda state, losses: None)
    seconds = time.perf_counter() - start
    return {"label": label, "recipe": request.recipe, **overrides, "sparsity": args.sparsity, "seed": args.seed, "n": args.n,
            "on": "test" if args.test else "held-out train", **measure(opened, student, args.attacks), "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eps", required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--attacks", default="pgd-20")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    known = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {(r["label"], r["sparsity"], r["seed"], r["on"], r["model"]) for r in known}
    for spec in args.recipes:
        key = (spec.partition(":")[0], args.sparsity, args.seed, "test" if args.test else "held-out train", Path(args.model).name)
        if key not in done:
            found = {"model": key[-1], **row(args, spec)}
            print(json.dumps(found), flush=True)
            with open(args.results, "a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
