"""Memory and threads: what there is, what may be taken for what a file asks for, how it is kept."""
import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from pwoa_cli.errors import InputError

# malloc.h of glibc: option numbers of mallopt
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed blocks instead of giving them back to the kernel, which would fault them
    in again: activations of several MB are freed and asked for in every step.

    Measured: docs/benchmarks.md. Without Linux and glibc nothing happens.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            for option, size in ((MMAP_THRESHOLD, 1 << 30), (TRIM_THRESHOLD, (1 << 31) - 1),
                                 (TOP_PAD, 1 << 28)):
                mallopt(option, size)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many of torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_bytes(device: torch.device) -> float:
    """Memory that this process may still take on a device; infinity where nothing tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return float("inf")
    return min(free, _left_in_cgroup())


def peak_bytes() -> int | None:
    """The most memory that this program has held so far; None where nothing tells.

    On Linux not as `resource` says: what that calls the maximum outlives fork and exec, so that a program
    begins with the peak of the one that started it. VmHWM begins anew with a program.
    """
    try:
        if sys.platform.startswith("linux"):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        import resource  # Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except (ImportError, OSError, StopIteration):
        return None


def _left_in_cgroup() -> float:
    """What a container's limit (cgroup v2) leaves, files that the kernel may forget not counted; infinity
    without a limit."""
    home = Path("/sys/fs/cgroup")
    try:
        limit, used = (float((home / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (home / "memory.stat").read_text().splitlines())
        return limit - used + float(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # "max" is no number: no limit
        return float("inf")


# --- the bound on what is read and built ---------------------------------------------------------------

SHARE = 0.8  # of what is free, where nothing else was said
_said: float | None = None  # of this process, as torch's number of threads is


def limit(size_bytes: float | None) -> None:
    """Let files and networks take at most so many bytes each from now on; None: SHARE of what is free."""
    global _said
    _said = size_bytes


def check_room(size_bytes: float, what: str) -> None:
    """Before memory is taken for what a file asks for. Raises: InputError if it is more than may be taken."""
    most = SHARE * free_bytes(torch.device("cpu")) if _said is None else _said
    if size_bytes > most:
        by = "80% of what is free" if _said is None else "--max-memory"
        raise InputError(f"{what} would take {size_bytes / 1e9:.3g} GB of memory, expected at most "
                         f"{most / 1e9:.3g} GB ({by}).",
                         hint=f"If the file is right: --max-memory {math.ceil(size_bytes / 1e8) / 10:g}GB")
