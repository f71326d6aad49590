"""The same bytes from the same command: what torch needs to be told for it (--deterministic).

Without it a run gives the same bits with one number of threads on one kind of machine: sums are cut into as
many parts as there are threads, so two numbers of threads differ in the last bits, and training carries them
on.
"""
import os

import torch

THREADS = 1  # the one number that every machine has


def fix() -> None:
    """Let this process compute on THREADS threads with deterministic algorithms alone.

    An operation that has none on the device raises RuntimeError when it is met. To be called before anything
    runs on a GPU: cuBLAS reads its setting when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def is_refusal(error: BaseException) -> bool:
    """Whether torch refused an operation because it has no deterministic algorithm."""
    return isinstance(error, RuntimeError) and "deterministic" in str(error)
