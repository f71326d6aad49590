"""Flags and seconds of `aa-mixed` against `aa`: the same images, the same random numbers.

    .venv/bin/python examples/benchmarks/mixed.py CHECKPOINT --samples 200   # results: docs/benchmarks.md

The first n test images that the model gets right, in blocks of 200, one thread; the components take turns,
and each side goes on with what it has not broken itself. A find is claimed by the search; it is false where
the model in float32 is right on it. Seconds are the process's own on a CPU, of the wall on a GPU. After the
last component each candidate for the closing pass is tried on all that the cheap search left; `pwoa` runs the
first.
"""
import argparse
import os
import time
from fractions import Fraction

import torch

from pwoa_cli.attacks import autoattack, mixed
from pwoa_cli.attacks.base import contain, frozen, wrong
from pwoa_cli.attacks.reduced import reduced
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.checkpoints.normalisation import of_user
from pwoa_cli.data import datasets
from pwoa_cli.evaluation.evaluate import BLOCK
from pwoa_cli.machine.devices import plain_float32
from pwoa_cli.machine.memory import keep_freed_memory
from pwoa_cli.machine.seeds import block_seed

# name: steps, targets
CLOSINGS = {"apgd-t, 25 steps": (25, 9), "apgd-t, 100 steps, 3 targets": (100, 3),
            "apgd-t, 10 steps": (10, 9)}


class Side:
    """One of the two, or a closing pass: an attack (name, x, y, options) -> adversarial inputs, and what it
    has broken so far (n,) bool."""

    def __init__(self, attack, model, x, y, eps, broken=None):
        self.attack, self.model, self.x, self.y, self.eps = attack, model, x, y, eps
        self.broken = torch.zeros(len(x), dtype=torch.bool) if broken is None else broken.clone()
        self.seconds, self.false = 0.0, 0

    def step(self, name, seed):
        """Run a component on what stands. Returns: seconds, broken, false finds."""
        start, before, false = clock(self.x), int(self.broken.sum()), 0
        for block, first in enumerate(range(0, len(self.x), BLOCK)):
            rows = first + (~self.broken[first:first + BLOCK]).nonzero().flatten()
            if not len(rows):
                continue
            x, y = self.x[rows], self.y[rows]
            drawn = torch.Generator().manual_seed(block_seed(seed, "aa", block))
            options = {"eps": self.eps, "norm": "linf", "seed": autoattack.drawn_seed(drawn),
                       "steps": autoattack.STEPS, "queries": autoattack.QUERIES}
            adv = self.attack(name, x, y, options)
            with torch.no_grad(), plain_float32():
                won = wrong(self.model(contain(adv, x, eps=self.eps, norm="linf")), y).cpu()
            false += int(((adv != x).flatten(1).any(1).cpu() & ~won).sum())
            self.broken[rows[won]] = True
        seconds = clock(self.x) - start
        self.seconds, self.false = self.seconds + seconds, self.false + false
        return seconds, int(self.broken.sum()) - before, false


def clock(x):
    """Seconds of this process; on a GPU of the wall, with nothing under way."""
    if x.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def sides(model, x, y, eps):
    """aa, aa-mixed and {name: closing pass on what its search left}; the copies are made beforehand."""
    copied = reduced(model, x[:BLOCK])
    exact = autoattack.searched(model, x[:BLOCK], "linf")
    if copied is None:
        raise SystemExit("There is no copy in bf16 here: aa-mixed is aa.")

    def plain(name, x, y, options):
        return autoattack.component(name, x, y, model=exact, **options)

    def cheap(name, x, y, options):
        return mixed.answer(name, x, y, model=model, copied=copied, **options)

    def closing(steps, targets):
        def run(name, x, y, options):
            with plain_float32():
                return autoattack.component("apgd-t", x, y, model=exact, targets=targets,
                                            **options | {"steps": steps})
        return run

    return (Side(plain, model, x, y, eps), Side(cheap, model, x, y, eps),
            {name: closing(*settings) for name, settings in CLOSINGS.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--normalize")
    parser.add_argument("--samples", "--n", dest="n", type=int, default=100)
    parser.add_argument("--eps", type=lambda text: float(Fraction(text)), default=0.3)
    parser.add_argument("--components", default=",".join(autoattack.STANDARD))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    mean, std = of_user(args.normalize, None, None)
    model = load_model(Source(args.checkpoint, mean=mean, std=std)).model.eval().to(args.device)
    x, y = (part.to(args.device) for part in datasets.load(args.data).test.batch(torch.arange(args.n)))
    with frozen(model), torch.no_grad():
        right = ~wrong(model(x), y)
        x, y = x[right], y[right]
        index = right.cpu().nonzero().flatten()
        compare(args, model, x, y, index)


def compare(args, model, x, y, index):
    """The tables. Args: index: (n,) of the images in the test set."""
    plain, cheap, closings = sides(model, x, y, args.eps)
    print("| component | aa s | aa-mixed s | factor | broken by aa | by aa-mixed | false finds |")
    print("|---|---|---|---|---|---|---|")
    for name in args.components.split(","):
        ours, theirs = cheap.step(name, args.seed), plain.step(name, args.seed)
        print(f"| {name} | {theirs[0]:.1f} | {ours[0]:.1f} | {theirs[0] / max(ours[0], 1e-9):.2f} | "
              f"{theirs[1]} | {ours[1]} | {ours[2]} |", flush=True)
    print(f"| all | {plain.seconds:.1f} | {cheap.seconds:.1f} | {plain.seconds / cheap.seconds:.2f} | "
          f"{int(plain.broken.sum())} | {int(cheap.broken.sum())} | {cheap.false} |")
    print(f"before closing: broken by aa alone {listed(index, plain.broken & ~cheap.broken)}; by aa-mixed "
          f"alone {listed(index, cheap.broken & ~plain.broken)}")
    for name, closing in closings.items():
        last = Side(closing, model, x, y, args.eps, cheap.broken)
        seconds, found, _ = last.step("closing", args.seed)
        print(f"closing, {name}: {seconds:.1f} s, {seconds / (seconds + cheap.seconds):.0%} of the whole "
              f"({plain.seconds / (seconds + cheap.seconds):.2f} times as fast as aa), breaks {found}; flags "
              f"differ on {int((last.broken != plain.broken).sum())} of {len(x)}; false survivors: "
              f"{listed(index, plain.broken & ~last.broken)}; broken by aa-mixed alone: "
              f"{listed(index, last.broken & ~plain.broken)}", flush=True)
    print(f"{args.n} images of {args.data}, {len(x)} right when clean, linf eps {args.eps:g}, seed "
          f"{args.seed}; torch {torch.__version__}, {x.device}, 1 thread of {os.cpu_count()}, load "
          f"{os.getloadavg()[0]:.1f} at the end")


def listed(index, flags):
    """Indices in the test set."""
    return ", ".join(map(str, index[flags].tolist())) or "none"


if __name__ == "__main__":
    main()
