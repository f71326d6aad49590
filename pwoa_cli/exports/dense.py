"""Plain state dicts that stock torch loads: under the names of the network, or in the very envelope that a
checkpoint came in."""
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pwoa_cli.checkpoints.filling import COUNTER, aligned
from pwoa_cli.checkpoints.model import Source
from pwoa_cli.checkpoints.state_dict import content_and_names
from pwoa_cli.errors import InputError
from pwoa_cli.files.atomic import atomic

ENDINGS = (".pt", ".pth", ".safetensors")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def save(net: nn.Module, path: Path, *, dtype: torch.dtype | None = None, prefix: str = "",
         like: Source | None = None) -> int:
    """Write a network's state dict, dense, whole or not at all; returns its bytes.

    Args: path: .pt and .pth are torch.save's, .safetensors safetensors'. dtype: of all float tensors.
    prefix: before every name, such as "module.". like: a checkpoint of the same network: what lies around its
    weights (envelopes, wrappers' names, normalisation, counters, settings) stays, and so do their dtypes
    unless `dtype` says otherwise; a .safetensors file has its tensors alone.
    Raises: InputError if `like` does not hold these tensors.
    """
    content: Any = {prefix + name: _converted(tensor, dtype) for name, tensor in net.state_dict().items()}
    if like is not None:
        content = _substituted(net, like, dtype)
    with atomic(path) as temporary:
        if path.suffix == ".safetensors":
            tensors = _innermost(content, len(net.state_dict()) // 2)
            tensors = {name: _converted(tensor, None) for name, tensor in tensors.items()}
            temporary.write_bytes(safetensors.torch.save(tensors))
        else:
            made = io.BytesIO()  # to a file torch tells a full disk in its own way, by name writes the name
            torch.save(content, made)
            temporary.write_bytes(made.getbuffer())
    return path.stat().st_size


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Contiguous, with memory of its own; a float tensor as `dtype`."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(wanted, memory_format=torch.contiguous_format, copy=True)


def _substituted(net: nn.Module, like: Source, dtype: torch.dtype | None) -> Any:
    """The content of a checkpoint with other values for the weights of its network; all else stays."""
    content, found = content_and_names(like.path, entry=like.entry, trust_pickle=like.trust_pickle)
    state, theirs = net.state_dict(), aligned(found, net)
    for name in sorted({*theirs, *state}):
        if name.endswith(COUNTER) and name not in theirs:
            continue
        shapes = [tuple(part[name].shape) if name in part else "not there" for part in (theirs, state)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{like.path} is no checkpoint of the same network: {name} is {shapes[0]} in "
                             f"it, {shapes[1]} in the model.", hint="Leave it out: --like none")
    return _replaced(content, {id(tensor): _converted(state[name], dtype or (
        tensor.dtype if tensor.is_floating_point() else None)) for name, tensor in theirs.items()})


def _replaced(content: Any, new: Mapping[int, Tensor]) -> Any:
    """A copy of nested containers in which some tensors are others."""
    if isinstance(content, Tensor):
        return new.get(id(content), content)
    if isinstance(content, Mapping):
        return {key: _replaced(value, new) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(_replaced(value, new) for value in content)
    return content


def _innermost(content: Any, least: int) -> dict[str, Tensor]:
    """The first mapping that holds so many tensors, wherever in the content it lies."""
    inside: Iterable[Any] = content if isinstance(content, list | tuple) else ()
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if len(tensors) >= least:
            return tensors
        inside = content.values()
    return next((found for part in inside if (found := _innermost(part, least))), {})
