"""pwoa: compress adversarially robust image classifiers without adversarial examples. `load` opens what it writes."""
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

__version__ = "0.1.0"


def load(path: str | PathLike, *, arch: str | None = None) -> "nn.Module":
    """The model in a file (pruned, or any checkpoint that pwoa reads): eval mode, on the CPU, inputs (B, C, H, W) in [0,1].

    Args: arch: needed where the model came from file.py:fn, as code is never run because a file names it.
    Raises: pwoa_cli.errors.InputError, one sentence, for anything that cannot be read.
    """
    from pwoa_cli.checkpoint import Source, load_model  # torch is imported when it is needed, not with the package

    return load_model(Source(str(path), arch=arch)).model


def load_state_dict(path: str | PathLike) -> "dict[str, Tensor]":
    """The dense tensors of a file by name, as the checkpoint that it came from has them."""
    from pwoa_cli.checkpoint_file import read_state_dict

    return read_state_dict(path)[0]
