"""Plain state dicts that stock torch loads: under the names of the network, or in the very envelope that a
checkpoint came in."""
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def save(net: nn.Module, path: Path, *, dtype: torch.dtype | None = None, prefix: str = "",
         like: Source | None = None) -> int:
    """Write a network's state dict, dense, to a new file, whole or not at all; returns its bytes.

    Args: path: .pt and .pth are torch.save's, .safetensors safetensors'. dtype: of all float tensors.
    prefix: before every name, such as "module.". like: a checkpoint of the same network: what lies around its
    weights (envelopes, wrappers' names, normalisation, counters, settings) stays, and so do their dtypes
    where they hold the weights' values, unless `dtype` says otherwise; a second name or copy of a weight is
    the new one too. A .safetensors file has the tensors of that state dict alone.
    Raises: InputError if `like` does not hold these tensors, or the file is there.
    """
    content: Any = {prefix + name: _converted(tensor, dtype) for name, tensor in net.state_dict().items()}
    made = list(content.values())
    if like is not None:
        content, made = _substituted(net, like, dtype)
    with atomic(path, new=True) as temporary:
        if path.suffix == ".safetensors":
            tensors = {key: _converted(tensor, None) for key, tensor in _innermost(content, made).items()}
            temporary.write_bytes(safetensors.torch.save(tensors))
        else:
            buffer = io.BytesIO()  # to a file torch tells a full disk in its own way, by name writes the name
            torch.save(content, buffer)
            temporary.write_bytes(buffer.getbuffer())
    return path.stat().st_size


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Contiguous, with memory of its own; a float tensor as `dtype`."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(wanted, memory_format=torch.contiguous_format, copy=True)


def _substituted(net: nn.Module, like: Source, dtype: torch.dtype | None) -> tuple[Any, list[Tensor]]:
    """The content of a checkpoint with other values for the weights of its network, and those; all else
    stays."""
    content, found = content_and_names(like.path, entry=like.entry, trust_pickle=like.trust_pickle)
    state, theirs = net.state_dict(), aligned(found, net)
    for name in sorted({*theirs, *state}):
        if name.endswith(COUNTER) and name not in theirs:
            continue
        shapes = [tuple(part[name].shape) if name in part else "not there" for part in (theirs, state)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{like.path} is no checkpoint of the same network: {name} is {shapes[0]} in "
                             f"it, {shapes[1]} in the model.", hint="Leave it out: --like none")
    rounded = dtype is None and any(
        not torch.equal(state[name], state[name].to(tensor.dtype).to(state[name].dtype))
        for name, tensor in theirs.items() if tensor.is_floating_point())
    new = {name: _converted(state[name], dtype or (
        tensor.dtype if tensor.is_floating_point() and not rounded else None))
        for name, tensor in theirs.items()}
    content = _replaced(content, {_memory(tensor): new[name] for name, tensor in theirs.items()},
                        {name: (tensor, new[name]) for name, tensor in theirs.items()})
    return content, list(new.values())


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """What tensors share that are the same values under several names."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return (id(tensor),)
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.dtype)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.layout == other.layout and torch.equal(one, other)


def _replaced(content: Any, new: Mapping[tuple[Any, ...], Tensor],
              copies: Mapping[str, tuple[Tensor, Tensor]], key: str = "") -> Any:
    """A copy of nested containers in which some tensors are others. Args: new: by the memory of the old ones.
    copies: (old, new) by name: what has this name at the end of its key, and the old values, is a copy."""
    if isinstance(content, Tensor):
        parts = key.split(".")
        names = (".".join(parts[i:]) for i in range(len(parts)))
        same = (copies[name][1] for name in names if name in copies and _equal(copies[name][0], content))
        return new[_memory(content)] if _memory(content) in new else next(same, content)
    if isinstance(content, Mapping):
        return {name: _replaced(value, new, copies, str(name)) for name, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(_replaced(value, new, copies) for value in content)
    return content


def _innermost(content: Any, made: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tensors of the mapping that holds most of those that were made, wherever in the content it lies; of
    equals the first."""
    ids = set(map(id, made))
    return max(({str(key): value for key, value in part.items() if isinstance(value, Tensor)}
                for part in _mappings(content)),
               key=lambda tensors: sum(id(value) in ids for value in tensors.values()), default={})


def _mappings(content: Any) -> Iterator[Mapping[Any, Any]]:
    """The content itself and all inside it, outermost first."""
    if isinstance(content, Mapping):
        yield content
    inside: Iterable[Any] = (content.values() if isinstance(content, Mapping) else
                             content if isinstance(content, list | tuple) else ())
    for part in inside:
        yield from _mappings(part)
