"""PGD that leaves cycles against all of its steps: flags, returned images and passes.

    .venv/bin/python examples/benchmarks/cycles.py CHECKPOINT --eps 0.3 --steps 1000 --samples 100

The first n test images that the model gets right, linf, one seed, one thread. The other side takes every step
with all samples that are not yet misclassified, and is written out here. --mean and --std (r,g,b): for files
that do not say how their inputs were normalised.
"""
import argparse
import time
from fractions import Fraction

import torch
from torch import Tensor, nn

import pwoa_cli
from pwoa_cli.attacks import base, gradient
from pwoa_cli.attacks.bounded import Bounded
from pwoa_cli.data import datasets


def every_step(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, seed: int) -> Tensor:
    """The first misclassified iterate of each sample, or the last one."""
    adv = gradient.uniform_start(x, eps=eps, norm="linf", generator=torch.Generator().manual_seed(seed))
    answers, rows = adv.clone(), torch.arange(len(x))
    for step in range(steps + 1):
        grad, _, logits = gradient.ascent(model, adv, y, loss="ce")
        answers[rows] = adv
        left = ~base.wrong(logits, y)
        rows, adv, x, y, grad = (part[left] for part in (rows, adv, x, y, grad))
        if step == steps or not len(rows):
            break
        adv = base.project(adv + eps / gradient.STEP_FRACTION * grad.sign(), x, eps=eps, norm="linf")
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--eps", type=lambda text: float(Fraction(text)), default=0.3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("--mean", "--std"):
        parser.add_argument(name, type=lambda text: [float(part) for part in text.split(",")])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = pwoa_cli.load(args.checkpoint).requires_grad_(False)
    for name in ("mean", "std"):
        if values := getattr(args, name):
            setattr(model, name, torch.tensor(values).view(1, -1, 1, 1))
    x, y = datasets.load(args.data).test.batch(torch.arange(args.samples))
    right = ~base.wrong(model(x), y)
    x, y = x[right], y[right]
    answers = []
    for name, attack in (("pgd", gradient.pgd), ("every step", every_step)):
        bounded, start = Bounded(model, len(x)), time.process_time()
        draw = ({"seed": args.seed} if attack is every_step else
                {"norm": "linf", "generator": torch.Generator().manual_seed(args.seed)})
        answers.append(attack(bounded, x, y, eps=args.eps, steps=args.steps, **draw))
        print(f"{name}: {bounded.meter.forwards} passes, {time.process_time() - start:.1f} CPU seconds",
              flush=True)
    flags = [base.wrong(model(adv), y) for adv in answers]
    same = (answers[0] == answers[1]).flatten(1).all(1)
    print(f"{len(x)} images, broken {int(flags[0].sum())}, flags differ {int((flags[0] != flags[1]).sum())}, "
          f"images equal bit for bit {int(same.sum())}")


if __name__ == "__main__":
    main()
