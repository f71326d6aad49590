"""Memory of CPU runs: activations of several MB are freed and asked for again in every step."""
import ctypes
import sys

# malloc.h of glibc: option numbers of mallopt
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed blocks instead of giving them back to the kernel, which would fault them in again.

    Measured: docs/benchmarks.md. Returns: whether it could be done (Linux with glibc); elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([mallopt(MMAP_THRESHOLD, 1 << 30), mallopt(TRIM_THRESHOLD, (1 << 31) - 1), mallopt(TOP_PAD, 1 << 28)])
