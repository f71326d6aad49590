"""pwoa: compress adversarially robust image classifiers without adversarial examples.

`prune`, `evaluate` and `export` are the commands as functions, `load` opens what they write.
"""
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from pwoa_cli.version import __version__ as __version__

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pwoa_cli.workflows.api import evaluate, export, prune

__all__ = ["evaluate", "export", "load", "load_state_dict", "prune", "save_state_dict"]


def __getattr__(name: str) -> Any:
    """`prune`, `evaluate` and `export` import torch when they are asked for (PEP 562)."""
    if name not in ("evaluate", "export", "prune"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pwoa_cli.workflows import api

    return getattr(api, name)


def load(path: str | PathLike[str], *, arch: str | PathLike[str] | None = None) -> "nn.Module":
    """The model in a file (pruned, or any that pwoa reads) or in a run's folder: eval mode, on the CPU,
    inputs (B, C, H, W) in [0,1].

    Args: arch: needed where the model came from file.py:fn, as code is never run because a file names it.
    Raises: pwoa_cli.errors.InputError, one sentence, for anything that cannot be read.
    """
    from pwoa_cli.checkpoints.model import Source, load_model  # torch is imported when it is needed
    from pwoa_cli.files.run_folder import model_of
    from pwoa_cli.workflows.parameters import check

    check("path", path)
    if arch is not None:
        check("arch", arch)
    return load_model(Source(model_of(str(path)), arch=None if arch is None else str(arch))).model


def load_state_dict(path: str | PathLike[str]) -> "dict[str, Tensor]":
    """The dense tensors of a file, or of a run's, by name, as the checkpoint that it came from has them."""
    from pwoa_cli.checkpoints.state_dict import read_state_dict
    from pwoa_cli.files.run_folder import model_of
    from pwoa_cli.workflows.parameters import check

    check("path", path)
    return read_state_dict(model_of(str(path)))[0]


def save_state_dict(state: "Mapping[str, Tensor]", path: str | PathLike[str], *,
                    metadata: Mapping[str, str] | None = None, dtype: "torch.dtype | None" = None) -> int:
    """Write tensors by name to a sparse safetensors file, whole or not at all; returns its size in bytes.

    Args: metadata: strings kept in it. dtype: of floating-point values, converted first (torch.bfloat16,
    ...).
    Raises: pwoa_cli.errors.InputError, one sentence, for what the format does not hold or a path that cannot
    be written.
    """
    from pwoa_cli.files import sparse

    return sparse.save(state, path, metadata=metadata, dtype=dtype)
