"""Memory and threads of CPU runs."""
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# malloc.h of glibc: option numbers of mallopt
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed blocks instead of giving them back to the kernel, which would fault them
    in again: activations of several MB are freed and asked for in every step.

    Measured: docs/benchmarks.md. Returns: whether it could be done (Linux with glibc); elsewhere nothing
    happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([mallopt(MMAP_THRESHOLD, 1 << 30), mallopt(TRIM_THRESHOLD, (1 << 31) - 1),
                mallopt(TOP_PAD, 1 << 28)])


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside the block: for two images several gain nothing, and on a busy machine they wait for
    each other (measured on 2 cores with 3 other jobs: 8.3 s instead of 2.1 s for `pwoa info` of a
    ResNet-18)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch has no common class for CPU and GPU."""
    words = ("out of memory", "allocate memory")
    return (isinstance(error, MemoryError) or isinstance(error, RuntimeError)
            and any(w in str(error) for w in words))
