"""Seconds of the standard AutoAttack: pyautoattack's own run against `pwoa eval --attacks aa`, and whether
the flags agree.

    .venv/bin/python examples/benchmarks/autoattack.py CHECKPOINT --samples 100  # results: docs/benchmarks.md

The first n test images, one thread, one seed, norm linf. The components take turns, so that noise of the
machine hits both alike; each goes on with the images that its own side has not broken. Whether an image is
broken is asked of the model.
"""
import argparse
import os
import time

import torch
from pyautoattack import AutoAttack

import pwoa_cli
from pwoa_cli.attacks import autoattack
from pwoa_cli.attacks.base import contain, frozen, wrong
from pwoa_cli.attacks.quick import quick
from pwoa_cli.data import datasets
from pwoa_cli.machine.devices import device_named
from pwoa_cli.machine.memory import keep_freed_memory


class Side:
    """One of the two: an attack (name, x, y) -> adversarial inputs, and what it has broken so far."""

    def __init__(self, attack, model, x, y, eps):
        self.attack, self.model, self.x, self.y, self.eps = attack, model, x, y, eps
        with torch.no_grad():
            self.standing = ~wrong(model(x), y)
        self.seconds, self.broken = {}, {}

    def step(self, name):
        """Run a component on the standing images."""
        rows = self.standing.nonzero().flatten()
        x, y = self.x[rows], self.y[rows]
        start = time.perf_counter()
        adv = self.attack(name, x.clone(), y) if len(rows) else x
        if adv.is_cuda:
            torch.cuda.synchronize(adv.device)
        self.seconds[name] = time.perf_counter() - start
        with torch.no_grad():
            broken = rows[wrong(self.model(contain(adv, x, eps=self.eps, norm="linf")), y)]
        self.broken[name] = len(broken)
        self.standing[broken] = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--samples", "--n", dest="n", type=int, default=100)
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # for the whole process, so both sides have it
    device = device_named(args.device)
    model = pwoa_cli.load(args.checkpoint).to(device)
    x, y = (part.to(device) for part in datasets.load(args.data).test.batch(torch.arange(args.n)))

    def reference(name, x, y):
        run = AutoAttack(model, norm="Linf", eps=args.eps, seed=args.seed, version="standard", device=device)
        run.attacks_to_run = [name]
        return run.run_standard_evaluation(x, y, batch_size=250)[0]

    def ours(name, x, y):
        nonlocal searched
        # once for all components, as `aa` does; its seconds are in the first
        searched = searched or quick(model, x)
        return autoattack.component(name, x, y, model=searched, eps=args.eps, norm="linf", seed=args.seed,
                                     steps=autoattack.STEPS, queries=autoattack.QUERIES)

    searched = None
    with frozen(model):
        # warm-up
        autoattack.apgd_ce(model, x[:4], y[:4], eps=args.eps, norm="linf", generator=torch.Generator(),
                           steps=2)
        left, right = (Side(attack, model, x, y, args.eps) for attack in (reference, ours))
        clean = int(left.standing.sum())
        print("| component | pyautoattack s | pwoa s | factor | broken by pyautoattack | by pwoa |")
        print("|---|---|---|---|---|---|")
        for name in autoattack.STANDARD:
            left.step(name)
            right.step(name)
            show(name, left.seconds[name], right.seconds[name], left.broken[name], right.broken[name])
    show("all", *(sum(side.seconds.values()) for side in (left, right)),
         *(sum(side.broken.values()) for side in (left, right)))
    same = torch.equal(left.standing, right.standing)
    print(f"flags equal: {'yes' if same else 'NO'} ({args.n} images, {clean} right when clean, "
          f"{int(left.standing.sum())} / {int(right.standing.sum())} robust)")
    print(f"torch {torch.__version__}, {device}, 1 thread of {os.cpu_count()}, float32, linf eps "
          f"{args.eps:g}, seed {args.seed}, load {os.getloadavg()[0]:.1f} at the end")


def show(name, theirs, ours, *broken):
    """A row of the table."""
    print(f"| {name} | {theirs:.1f} | {ours:.1f} | {theirs / max(ours, 1e-9):.2f} | {broken[0]} | "
          f"{broken[1]} |", flush=True)


if __name__ == "__main__":
    main()
