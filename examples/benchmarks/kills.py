"""What `kill -9` at random moments costs `pwoa prune`, `eval` and `export`, and what it costs to be ready.

    OMP_NUM_THREADS=1 .venv/bin/python examples/benchmarks/kills.py --kills 100 --seed 0
    OMP_NUM_THREADS=2 .venv/bin/python examples/benchmarks/kills.py --cost MODEL.pt [--normalize NAME]

Kills: a small LeNet on 8x8 images is pruned (80 steps, a state kept every 0.05 s or so), evaluated, and a
network of 40 MB exported, each once alone. Then each is started, killed after a time drawn from 0 to 1.2
times what it took alone, and given again, until it ends. After each kill every file that is there must be
whole; in the end all files must be those of the run that was left alone (report.json less created, seconds
and environment; .pwoa.lock of a killed process locks nothing and may stay). A row: kills, runs that came to
their end, and what was lost: half files, folders that cannot go on, ends that differ, files left behind.

Cost: steps of the default recipe at 90% of a network of yours, batches of 16, and the writing of its state:
seconds each (median of five), bytes, and the share of the time that one state a minute takes.
"""
import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import small_models as small  # noqa: E402

from pwoa_cli import load_state_dict, save_state_dict  # noqa: E402
from pwoa_cli.cli.main import entry  # noqa: E402
from pwoa_cli.files import run_folder  # noqa: E402
from pwoa_cli.networks.families.small import LeNet  # noqa: E402

DATA = ["--data", "data.npz", "--eps", "0.1", "--n", "400"]
PRUNE = ["prune", "model.pt", "--sparsity", "0.9", *DATA, "--epochs", "1.25", "--batch-size", "32", "--set",
         "ema=0.9", "--attacks", "fgsm,pgd-5", "--checkpoint-every", "0.001"]
EVAL = ["eval", "model.pt", *DATA, "--attacks", "fgsm,pgd-10,cw-10", "--resume"]
EXPORT = ["export", "large.safetensors", "--format", "dense", "--arch", "lenet5"]
NOT_COMPARED = ("created", "seconds", "environment")
LOSSES = ("half files", "cannot go on", "differs", "left behind")


def start(args: Sequence[str]) -> int:
    """`pwoa args` in this folder, its words in words.txt: a process of its own that has its modules loaded.
    Returns: its number."""
    number = os.fork()
    if not number:
        words = os.open("words.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(words, 1)
        os.dup2(words, 2)
        sys.argv = ["pwoa", *args, "--quiet"]
        try:
            entry()
        finally:
            os._exit(70)  # entry leaves the process
    return number


def status(process: int, seconds: float) -> int | None:
    """The exit code of a process; None if it is still there after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        ended, code = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def halves(folder: Path) -> list[str]:
    """Files under a folder that are there and cannot be read."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_state_dict, ".json": lambda path: json.loads(path.read_text()),
        ".toml": lambda path: tomllib.loads(path.read_text()), ".npz": lambda path: dict(np.load(path)),
        ".pt": lambda path: torch.load(path, weights_only=True)}
    bad = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in readers and path.is_file()):
        try:
            readers[path.suffix](path)
        except Exception as error:  # whatever a reader says of it
            bad.append(f"{path}: {error}")
    return bad


def content(folder: Path) -> dict[str, Any]:
    """What a finished folder holds, without times and machine."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != run_folder.LOCK):
        data: Any = path.read_bytes()
        if path.name == "report.json":
            data = {key: value for key, value in json.loads(data).items() if key not in NOT_COMPARED}
        elif path.name == "metrics.jsonl":
            rows = map(json.loads, data.splitlines())
            data = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        elif path.name == "samples.npz":
            data = {name: array.tobytes() for name, array in np.load(path).items()}
        elif path.name == "report.md":
            data = "there"  # says seconds
        found[str(path.relative_to(folder))] = data
    return found


def chain(args: Sequence[str], out: Path, seconds: float, draw: random.Random,
          most: int) -> tuple[int, Counter]:
    """Kill and give again until the command ends, or was killed `most` times; (kills, what was lost)."""
    lost: Counter = Counter()
    file = out / "m.pt" if args is EXPORT else out
    if args is EXPORT:
        out.mkdir()
    for kills in range(most + 1):
        process = start([*args, "--out", str(file)])
        code = status(process, 1.2 * seconds * draw.random() if kills < most else 600.0)
        if code is not None:
            if code:
                lost["cannot go on"] += 1
                print(Path("words.txt").read_text(), file=sys.stderr)
            return kills, lost
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        where = [bad for folder in (out, run_folder.UNFINISHED) for bad in halves(folder)]
        lost["half files"] += len(where)
        print("\n".join(where), end="\n" if where else "", file=sys.stderr)
        if file.is_file() or (out / run_folder.CONFIG).exists() and not run_folder.is_unfinished(out):
            return kills + 1, lost  # all was written when the kill came: given again it is refused
    raise AssertionError("the last one is waited for")


def kills(wanted: int, seed: int) -> bool:
    """A row for each command; whether nothing was lost."""
    draw, sound = random.Random(seed), True
    print("| command | alone, s | kills | runs | " + " | ".join(LOSSES) + " |\n|" + "---|" * 8)
    for args in (PRUNE, EVAL, EXPORT):
        begun, file = time.monotonic(), "alone/m.pt" if args is EXPORT else "alone"
        Path("alone").mkdir()
        assert status(start([*args, "--out", file]), 600.0) == 0, Path("words.txt").read_text()
        seconds, want = time.monotonic() - begun, content(Path("alone"))
        made, runs, lost = 0, 0, Counter()
        while made < wanted // 3:
            out = Path(f"{args[0]}-{runs}")
            more, what = chain(args, out, seconds, draw, wanted // 3 - made)
            made, runs = made + more, runs + 1
            lost += what
            there = content(out)
            hidden = {name for name in there if ".pwoa" in name and args is EXPORT}  # beside the user's file
            lost["left behind"] += len(there.keys() - want.keys() - hidden) + len(list(Path().glob(".pwoa*")))
            lost["differs"] += {name: there.get(name) for name in want} != want
        (Path("alone")).rename(f"{args[0]}-alone")
        row = " | ".join(str(lost[name]) for name in LOSSES)
        print(f"| {args[0]} | {seconds:.1f} | {made} | {runs} | {row} |", flush=True)
        sound &= not lost.total()
    return sound


def cost(model: str, data: str | None, normalize: str | None) -> None:
    """A row for a network: seconds of a step and of a state, and its share of a minute."""
    from pwoa_cli.checkpoints.model import Source
    from pwoa_cli.checkpoints.normalisation import of_user
    from pwoa_cli.files.keeper import Keeper
    from pwoa_cli.training import loop
    from pwoa_cli.workflows.prune import _copies
    from pwoa_cli.workflows.prune_job import prepare
    from pwoa_cli.workflows.prune_request import Request

    mean, std = of_user(normalize, None, None)
    job = prepare(Request(Source(model, mean=mean, std=std), sparsity=0.9, data=data, n=10,
                          overrides={"batch_size": "16"}), say=lambda text: None)
    keeper = Keeper(Path(), of={}, every=0, warn=print)
    steps, states, last = [], [], time.perf_counter()

    class Enough(Exception):
        pass

    def keep(step: int, position: Callable[[], dict[str, Any]]) -> None:
        nonlocal last
        begun = time.perf_counter()
        steps.append(begun - last)
        keeper.keep(position())
        last = time.perf_counter()
        states.append(last - begun)
        if step == 6:  # the first one is not counted: it has what is done once
            raise Enough

    plan, student = _copies(job)
    with suppress(Enough):
        loop.run(plan, loop.begin(plan, student), report=lambda state, losses: None, keep=keep)
    step, state = statistics.median(steps[1:]), statistics.median(states[1:])
    print(f"| {Path(model).name} | {step:.3f} | {state:.3f} ({min(states):.3f} to {max(states):.3f}) | "
          f"{keeper.path.stat().st_size / 1e6:.1f} | {100 * state / (60 + state):.2f}% |")


def main() -> None:
    """Parse, work in a folder of its own, exit 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", metavar="MODEL")
    parser.add_argument("--data")
    parser.add_argument("--normalize")
    asked = parser.parse_args()
    model = str(Path(asked.cost).absolute()) if asked.cost else ""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if model:
            print("| network | step, s | state, s | MB | share at one a minute |\n|---|---|---|---|---|")
            cost(model, asked.data, asked.normalize)
            return
        torch.set_num_threads(1)
        small.save(small.sparse_lenet(), "model.pt")
        small.write_npz("data.npz", n=2048)
        torch.save(LeNet(size=28, widths=(64, 128), hidden=1600).state_dict(), "large.pt")
        save_state_dict(torch.load("large.pt", weights_only=True), "large.safetensors")
        sys.exit(not kills(asked.kills, asked.seed))


if __name__ == "__main__":
    main()
