"""All benchmarks that need no more than a model and its data, one after another, as one page for this
machine.

    .venv/bin/python examples/benchmarks/page.py --out here.md          # of the bundled model
    .venv/bin/python examples/benchmarks/page.py r18.pt --data cifar10 --eps 8/255 --device cuda --out here.md

docs/benchmarks.md is made of such pages and of what was learned from them. The page says the machine and its
versions; under each heading stand the command, what it printed, and its seconds. It is written after every
benchmark, so that a run that is stopped keeps what it has. Exit code 1 if a benchmark failed: its last line
stands there.
"""
import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pwoa_cli.attacks.threat import parse_eps
from pwoa_cli.files.atomic import atomic
from pwoa_cli.machine.devices import device_named
from pwoa_cli.machine.environment import environment

HERE = Path(__file__).parent
EXAMPLES = Path(os.path.relpath(HERE.parent))  # a page names no folder of the machine
ABOUT = ("device", "device_name", "platform", "python", "torch", "torchvision", "timm", "pwoa")


def sections(args: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """(heading, words of the command) of each benchmark. On a GPU those of the network; else all."""
    model, data = [args.model], ["--data", args.data]
    threat = ["--norm", "linf", "--eps", args.eps]
    n, on = ["--samples", str(args.samples)], ["--device", args.device]
    yield "AutoAttack against pyautoattack", [
        "autoattack.py", *model, *data, "--eps", str(parse_eps(args.eps)), *n, *on]
    yield "`aa-mixed` against `aa`", ["mixed.py", *model, *data, "--eps", args.eps, *n, *on]
    yield "What a step asks of the device", ["train_step.py", *model, *data, *threat, *on]
    yield "Latency: what removing buys, and what zeros do not", [
        "latency.py", *model, "--seconds", str(args.seconds), *on]
    if device_named(args.device).type != "cpu":
        return
    yield "PGD in cycles", ["cycles.py", *model, *data, "--eps", args.eps, *n]
    yield "One training step with nHSIC", ["hsic_step.py"]
    yield "The bottleneck for less", ["hsic_candidates.py", *model, *data, *threat, "--sparsity", "0.9"]
    yield "Agreement with the references", [
        "agreement.py", *model, *data, "--norm", "linf", "--eps", str(parse_eps(args.eps)), *n]


def ran(words: list[str], *, threads: int) -> tuple[str, float, bool]:
    """(what a benchmark printed, seconds, whether it came to its end); of one that failed the last line of
    its errors."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, str(HERE / words[0]), *words[1:]], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    said = done.stdout
    if done.returncode:
        said += f"\n**Failed** ({done.returncode}): {last}\n"
    return spaced(said), time.perf_counter() - began, done.returncode == 0


def spaced(text: str) -> str:
    """Text with an empty line around tables, as what follows one at once is a row of it."""
    lines = text.strip("\n").splitlines()
    edge = [bool(before and line) and before.startswith("|") != line.startswith("|")
            for before, line in zip(["", *lines], lines, strict=False)]
    return "\n".join("\n" * between + line for between, line in zip(edge, lines, strict=True))


def head(args: argparse.Namespace) -> str:
    """The first lines of the page: machine, versions, threads."""
    here = environment(device=str(device_named(args.device)), seed=0)
    said = ", ".join(f"{name} {here[name]}" for name in ABOUT if here.get(name))
    return (f"# Benchmarks of this machine\n\n{os.cpu_count()} cores, {args.threads} used, load "
            f"{os.getloadavg()[0]:.1f} at the beginning; {said}.\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(EXAMPLES / "mnist_lenet_linf0.3.pt"))
    parser.add_argument("--data", default=str(EXAMPLES / "data"))
    parser.add_argument("--eps", default="0.3")
    parser.add_argument("--samples", "--n", dest="samples", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5, help="of latency.py, for each runtime and batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="headings that hold this text")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    page, whole = head(args), True
    for heading, words in sections(args):
        if args.only not in heading:
            continue
        print(f"{heading} ...", file=sys.stderr)
        said, seconds, well = ran(words, threads=args.threads)
        whole &= well
        page += (f"\n## {heading}\n\n    .venv/bin/python examples/benchmarks/{shlex.join(words)}\n\n"
                 f"{said}\n\n{seconds:.0f} s.\n")
        with atomic(args.out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
