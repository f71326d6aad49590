"""Seconds of one pruning step with nHSIC: pwoa's against a straight re-expression of the published formula.

    .venv/bin/python examples/benchmarks/hsic_step.py            # results: docs/benchmarks.md

LeNet (the bundled one, same shape as advertorch's), batch 128, hidden layers relu1, relu2, relu3,
self-distillation at T = 30, Adam. The variants take turns in every round, so that noise of the machine hits
all of them alike.
"""
import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import pwoa_cli
from pwoa_cli.data import datasets
from pwoa_cli.losses import distill, hsic
from pwoa_cli.machine.memory import keep_freed_memory
from pwoa_cli.networks.layers import capture

EXAMPLES = Path(__file__).parents[1]
LAMBDA_X, LAMBDA_Y, SIGMA = 2e-4, 5e-5, 5.0


def published(x, y_one_hot, z):
    """nHSIC(x, z) and nHSIC(y, z) as printed: K H (K H + eps m I)^-1 with explicit inverses, nothing
    reused."""
    m = len(x)

    def gaussian(a):
        a = a.flatten(1)
        square = (a * a).sum(1)
        distance = square[:, None] + square[None] - 2 * a @ a.T
        return torch.exp(-distance / (2 * SIGMA**2 * a.shape[1]))

    def normal(kernel):
        centred = kernel @ (torch.eye(m) - torch.ones(m, m) / m)
        return centred @ torch.inverse(centred + 1e-5 * m * torch.eye(m))

    return (normal(gaussian(x)) * normal(gaussian(z)).T).sum(), (normal(y_one_hot @ y_one_hot.T)
                                                                 * normal(gaussian(z)).T).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--default-malloc", action="store_true",
                        help="do not keep freed memory as pwoa prune does")
    args = parser.parse_args()
    if not args.default_malloc:
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x, y = datasets.load("mnist").train.batch(torch.arange(128))
    y_one_hot = F.one_hot(y, 10).float()
    names = ["net.relu1", "net.relu2", "net.relu3"]

    def terms(kind, hidden):
        if kind == "published":
            pairs = [published(x, y_one_hot, z) for z in hidden]
            return sum(p[0] for p in pairs), sum(p[1] for p in pairs)
        return tuple(t.sum() for t in hsic.bottleneck(x, y, hidden, num_classes=10, sigma=SIGMA))

    variants = {}
    for label, kind, layout in (("without HSIC", None, torch.contiguous_format),
                                ("published formula", "published", torch.contiguous_format),
                                ("pwoa", "pwoa", torch.contiguous_format),
                                ("without HSIC, channels_last", None, torch.channels_last),
                                ("pwoa, channels_last (what pwoa prune runs)", "pwoa", torch.channels_last)):
        teacher, student = (pwoa_cli.load(EXAMPLES / "mnist_lenet_linf0.3.pt").to(memory_format=layout)
                            for _ in range(2))
        variants[label] = (kind, teacher, student, torch.optim.Adam(student.parameters(), 5e-4))

    def step(label):
        kind, teacher, student, optimizer = variants[label]
        start = time.perf_counter()
        with torch.no_grad():
            target = teacher(x)
        with capture(student, names if kind else []) as hidden:
            logits = student(x)
        loss = 10 * 30**2 * distill.kl(logits, target, temperature=30, reduction="mean")
        values = terms(kind, hidden) if kind else (torch.zeros(()), torch.zeros(()))
        optimizer.zero_grad()
        (loss + LAMBDA_X * values[0] - LAMBDA_Y * values[1]).backward()
        optimizer.step()
        return time.perf_counter() - start, [v.item() for v in values]

    seconds = {label: [] for label in variants}
    for round_number in range(args.rounds + 3):
        for label in variants:
            took, values = step(label)
            if round_number == 0 and variants[label][0]:
                print(f"first step | {label} | nHSIC(x) {values[0]:.4f} | nHSIC(y) {values[1]:.4f}")
            if round_number >= 3:  # three rounds of warm-up
                seconds[label].append(took)
    for label, took in seconds.items():
        q1, median, q3 = statistics.quantiles(took, n=4)
        quartiles = f"{q1 * 1e3:6.1f} .. {q3 * 1e3:6.1f} ms"
        print(f"{label:45s} | median {median * 1e3:6.1f} ms | quartiles {quartiles}")
    print(f"torch {torch.__version__}, {args.threads} thread(s), float32, batch 128, {args.rounds} rounds")


if __name__ == "__main__":
    main()
