"""Seconds to read and write sparse files beside dense ones, and of pwoa_cli.load beside importing torch.

    .venv/bin/python examples/benchmarks/load.py FILE ...        # results: docs/benchmarks.md

For each safetensors file, on one thread, in turns: its tensors as a dense file, mapped into memory alone
(which reads nothing) and copied into memory of their own, as every reader of pwoa's gives them; the file as
it is; the same written again by this pwoa; that writing. Then new processes, the files in turns: seconds of
`import torch` and, after it, of `import pwoa_cli; pwoa_cli.load(FILE)`. CPU seconds stand beside those of the
clock, as they hardly depend on what else the machine does.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch

from pwoa_cli.files import sparse
from pwoa_cli.machine.timing import alternating, spread

DENSE = "dense, copied"
CLOCKS: tuple[Callable[[], float], ...] = (time.perf_counter, time.process_time)
CHILD = """if True:
    import sys, time
    clocks = (time.perf_counter, time.process_time)
    seconds = [[clock() for clock in clocks]]
    import torch
    torch.set_num_threads(1)
    seconds.append([clock() for clock in clocks])
    import pwoa_cli
    pwoa_cli.load(sys.argv[1])
    seconds.append([clock() for clock in clocks])
    print(*[b - a for before, after in zip(seconds, seconds[1:]) for a, b in zip(before, after)])"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=10, help="for each file and clock")
    parser.add_argument("--rounds", type=int, default=7, help="new processes for each file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| file | what | ms | quartiles | CPU ms | quartiles | of dense, copied (CPU) |\n|" + "---|" * 7)
    for path in (path for path in args.files if path.suffix == ".safetensors"):
        for row in within(path, seconds=args.seconds):
            print(f"| {' | '.join(row)} |", flush=True)
    print("\n| file | import torch, s (CPU) | quartiles | pwoa_cli.load, s (CPU) | quartiles |")
    print("|" + "---|" * 5)
    for row in starts(args.files, rounds=args.rounds):
        print(f"| {' | '.join(row)} |", flush=True)


def within(path: Path, *, seconds: float) -> Iterator[list[str]]:
    """A row for each way to read and write the tensors of a sparse file."""
    state, metadata = sparse.load(path), sparse.load_metadata(path)
    with tempfile.TemporaryDirectory() as folder:
        dense, again, written = (str(Path(folder, name)) for name in ("dense", "again", "written"))
        safetensors.torch.save_file(state, dense)
        sparse.save(state, again, metadata=metadata)
        calls: dict[str, Callable[[], object]] = {
            "dense, mapped": lambda: safetensors.torch.load_file(dense),
            DENSE: lambda: {k: t.clone() for k, t in safetensors.torch.load_file(dense).items()},
            "sparse, as it is": lambda: sparse.load(path),
            "sparse, format 2": lambda: sparse.load(again),
            "writing format 2": lambda: sparse.save(state, written, metadata=metadata)}
        wall, cpu = (alternating(calls, seconds=seconds, clock=clock) for clock in CLOCKS)
    one = spread(cpu[DENSE]).median
    for name in calls:
        yield [path.name, name, *_shown(wall[name], 1000), *_shown(cpu[name], 1000),
               f"{spread(cpu[name]).median / one:.2f}"]


def starts(paths: list[Path], *, rounds: int) -> Iterator[list[str]]:
    """A row for each file: seconds of importing torch, and of loading the file after it, in new processes."""
    taken: dict[Path, list[list[float]]] = {path: [] for path in paths}
    for path in paths * (rounds + 1):
        done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True,
                              check=True)
        taken[path].append([float(text) for text in done.stdout.split()])
    for path, found in taken.items():
        found = found[1:]  # the first warms the disk up
        wall_torch, cpu_torch, wall, cpu = map(list, zip(*found, strict=True))
        yield [path.name, *_both(wall_torch, cpu_torch), *_both(wall, cpu)]


def _both(wall: list[float], cpu: list[float]) -> list[str]:
    (middle, quartiles), (cpu_middle, _) = _shown(wall), _shown(cpu)
    return [f"{middle} ({cpu_middle})", quartiles]


def _shown(values: list[float], scale: float = 1) -> tuple[str, str]:
    """Median and quartiles."""
    found = spread([scale * value for value in values])
    digits = 1 if scale > 1 else 3
    return f"{found.median:.{digits}f}", f"{found.low:.{digits}f} .. {found.high:.{digits}f}"


if __name__ == "__main__":
    main()
