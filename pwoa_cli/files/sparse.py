"""Sparse state dicts in one valid safetensors file (layout: docs/sparse-file.md).

A dense tensor K keeps its key. A float tensor with many zeros becomes `K.pwoa_values`, its nonzeros in
row-major order, and their positions: `K.pwoa_mask`, one bit an element, or `K.pwoa_gap_hi` and
`K.pwoa_gap_lo`, the Rice code of the gaps between them (rice.py); whichever file is smallest. The metadata
string `pwoa` is a JSON index of all tensors. The reader trusts nothing: every length is compared before
memory is taken, and no name in a file is ever imported.
"""
import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pwoa_cli.errors import InputError
from pwoa_cli.files import rice
from pwoa_cli.files.atomic import atomic
from pwoa_cli.files.sparse_index import (
    FLOATS,
    INDEX,
    MAX_DIMS,
    PARTS,
    SUFFIXES,
    VERSION,
    array_names,
    check_arrays,
    check_bound,
    is_size,
    read_index,
    unfolded_bytes,
)
from pwoa_cli.machine.memory import check_room

OTHERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
          torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)
# What a sparse tensor adds to the JSON header: one entry an array beside its key, and a longer line in the
# index.
ARRAY_HEADER_BYTES, INDEX_HEADER_BYTES = 75, 70
SMALLEST_BOUND, EXPANSION = 2**28, 1024  # a file of b bytes may unfold to 256 MiB + 1024 b
DAMAGED = "The file is incomplete or changed: copy it again, or write it again with pwoa."


def save(state: Mapping[str, Tensor], path: str | os.PathLike, *, metadata: Mapping[str, str] | None = None,
         dtype: torch.dtype | None = None) -> int:
    """Write tensors to a sparse safetensors file, whole or not at all, and return its size in bytes.

    -0.0 becomes +0.0; all other bits, NaN's too, stay. Tensors that share memory are stored each for itself.
    Equal arguments give equal bytes. A link is followed, an older file replaced.
    Args: state: strided tensors of any shape and device. metadata: strings kept beside the index, any key but
        "pwoa". dtype: one of FLOATS, to which float16/32/64 and bfloat16 tensors are converted first.
    Raises: InputError for a key, a dtype or a tensor that the format does not hold, a finite value that
        overflows `dtype`, or a path that cannot be written.
    """
    _check_state(state, dtype)
    _check_metadata(metadata or {})
    tensors = {key: _converted(key, tensor, dtype) for key, tensor in state.items()}
    data = _serialize(tensors, metadata or {}, encodings=tuple(PARTS))
    # a mask expands 64-fold at most: what is written can be read
    if dense_bytes(tensors) > _bound(len(data)):
        data = _serialize(tensors, metadata or {}, encodings=("dense", "mask"))
    wanted = f"a file in an existing, writable folder with {len(data)} bytes free"
    with atomic(Path(path), wanted=wanted, hint="Name another output file.") as temporary:
        temporary.write_bytes(data)
    return len(data)


def load(path: str | os.PathLike, *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Read the dense tensors of a file, on the CPU, with the keys, order, shapes and dtypes that were saved.

    A safetensors file without a pwoa index is read as dense tensors, in the order in which they lie in the
    file.
    Args: max_bytes: bound on the dense size of all sparse tensors together, checked before memory is taken;
        by default 256 MiB + 1024 times the file size, which `save` respects.
    Raises: InputError for a file that cannot be read, is damaged, or has an unknown version or encoding.
    """
    with _opened(path) as file:
        bound = _bound(os.path.getsize(path)) if max_bytes is None else max_bytes
        index = read_index(file, path)
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a file is no dictionary)
        headers = {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
        check_arrays(index, headers)
        check_bound(index, bound, path)
        check_room(os.path.getsize(path) + unfolded_bytes(index), f"{path}: its tensors")
        return {key: _read(file, key, entry, headers) for key, entry in index.items()}


def load_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata strings given to `save`, sorted by key, without reading a tensor. Raises: InputError as
    `load`."""
    with _opened(path) as file:
        return {key: text for key, text in sorted((file.metadata() or {}).items()) if key != INDEX}


def dense_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of all elements, zeros included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def limit_bytes(state: Mapping[str, Tensor]) -> int:
    """Entropy limit of the file, without header: per float tensor nnz values and log2 C(n, nnz) bits of
    positions.

    Shannon 1948: no code is shorter on average when every set of nnz positions is equally likely. Other
    tensors, and those which would be larger than dense, count their bytes.
    """
    return math.ceil(sum(map(_limit, state.values())))


def _limit(tensor: Tensor) -> float:
    n, dense = tensor.numel(), tensor.numel() * tensor.element_size()
    if tensor.dtype not in FLOATS:
        return dense
    nnz = int(torch.count_nonzero(tensor))
    position_bits = (math.lgamma(n + 1) - math.lgamma(nnz + 1) - math.lgamma(n - nnz + 1)) / math.log(2)
    return min(dense, nnz * tensor.element_size() + position_bits / 8)


def _bound(file_bytes: int) -> int:
    return SMALLEST_BOUND + EXPANSION * file_bytes


# ---- writing


def _check_state(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"The values cannot be stored as {dtype}, expected one of "
                         f"{', '.join(map(str, FLOATS))}.",
                         hint="Halve the values with dtype=torch.bfloat16.")
    for key, tensor in state.items():
        if not _is_text(key) or key.endswith(SUFFIXES) or key == "__metadata__":
            raise InputError(f"The tensor key {key!r} cannot be stored, expected text other than "
                             f"__metadata__ that does not end in {', '.join(SUFFIXES)}.",
                             hint="Rename the tensor before it is saved.")
        if not isinstance(tensor, Tensor):
            raise InputError(f"{key!r} is a {type(tensor).__name__}, expected a tensor.",
                             hint="Save a dictionary of tensors, such as model.state_dict().")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in (*FLOATS, *OTHERS):
            raise InputError(f"Tensor {key!r} has dtype {tensor.dtype}, layout {tensor.layout} and device "
                             f"{tensor.device}, expected a strided tensor with data, of a dtype that "
                             "safetensors knows.",
                             hint="Convert it first, for example with .to_dense() or .float().")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for key, text in metadata.items():
        if not _is_text(key) or not _is_text(text) or key == INDEX:
            raise InputError(f"The metadata entry {key!r} has a value of type {type(text).__name__}, "
                             f"expected text under a key other than {INDEX!r}.",
                             hint="Turn the value into text with json.dumps.")


def _is_text(text: object) -> bool:
    """A string that UTF-8 can hold: no lone surrogates."""
    return isinstance(text, str) and text.encode("utf-8", "replace").decode() == text


def _converted(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor on the CPU, without history or lazy conjugation, its floats as `dtype`."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if dtype is None or tensor.dtype not in FLOATS:
        return tensor
    narrow = tensor.to(dtype)
    lost = int((narrow.isinf() & tensor.isfinite()).sum())
    if lost:
        raise InputError(f"Tensor {key!r} has {lost} finite values beyond the range of {dtype}, expected at "
                         f"most {torch.finfo(dtype).max:g}.",
                         hint="Store it as torch.bfloat16, which has float32's range.")
    return narrow


def _serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *,
               encodings: tuple[str, ...]) -> bytes:
    """The bytes of the file."""
    arrays, index = {}, {}
    for key, tensor in tensors.items():
        index[key], parts = _encode(key, tensor, encodings)
        arrays.update(parts)
    text = json.dumps({"version": VERSION, "tensors": index}, separators=(",", ":"), ensure_ascii=False)
    return _sort_metadata(safetensors.torch.save(arrays, metadata={**metadata, INDEX: text}))


def _sort_metadata(data: bytes) -> bytes:
    """The file with its metadata sorted by key: safetensors writes them in an order that changes from call to
    call."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays start at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[end:]))


def _encode(key: str, tensor: Tensor, encodings: tuple[str, ...]) -> tuple[dict, dict[str, Tensor]]:
    """Index entry and stored arrays of one tensor, in the smallest of `encodings`."""
    if tensor.dtype not in FLOATS or tensor.ndim > MAX_DIMS:
        return {"encoding": "dense"}, {key: tensor.clone(memory_format=torch.contiguous_format)}
    words = tensor.contiguous().flatten().view(_word_type(tensor.element_size())).numpy()
    nonzero = _is_nonzero(words)
    positions = np.flatnonzero(nonzero)
    k, rice_bytes = rice.best_k(positions)
    values_bytes = len(positions) * words.itemsize
    sizes = {"dense": words.nbytes, "mask": values_bytes + -(-words.size // 8),
             "rice": values_bytes + rice_bytes}
    encoding = min(encodings, key=lambda name: sizes[name] + _header_bytes(key, name))
    if encoding == "dense":
        return ({"encoding": "dense"},
                {key: torch.from_numpy(words * nonzero).view(tensor.dtype).reshape(tensor.shape)})
    entry = {"encoding": encoding, "shape": list(tensor.shape), "dtype": FLOATS[tensor.dtype],
             "nnz": len(positions)}
    streams: tuple[np.ndarray, ...]
    if encoding == "rice":
        entry["k"] = k
        streams = rice.encode(positions, k=k)
    else:
        streams = (np.packbits(nonzero, bitorder="little"),)
    parts = (torch.from_numpy(words[positions]).view(tensor.dtype), *map(torch.from_numpy, streams))
    return entry, {f"{key}.pwoa_{part}": array for part, array in zip(PARTS[encoding], parts, strict=True)}


def _header_bytes(key: str, encoding: str) -> int:
    """About how much longer the header is than with a dense tensor."""
    parts = PARTS[encoding]
    return (len(parts) - 1) * (ARRAY_HEADER_BYTES + len(key)) + INDEX_HEADER_BYTES if parts else 0


def _word_type(itemsize: int) -> torch.dtype:
    return {8: torch.int64, 4: torch.int32, 2: torch.int16}[itemsize]


def _is_nonzero(words: np.ndarray) -> np.ndarray:
    """Of floats seen as integers: any bit but the sign, so that no denormal is flushed and NaN counts."""
    return (words & np.iinfo(words.dtype).max) != 0


# ---- reading: the helpers raise ValueError (what, got, expected), `_opened` adds the file and the hint


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[safe_open]:
    """The open file; whatever is wrong with it is an InputError."""
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        raise InputError(f"{path}: {what}, expected a safetensors file.", hint="Check the path.")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}), expected a readable "
                         "safetensors file.",
                         hint="Check the file's permissions.") from error
    except SafetensorError as error:
        raise InputError(f"{path} {_looks_like(path)}, expected a complete safetensors file ({error}).",
                         hint=DAMAGED) from error
    except ValueError as error:
        raise InputError(f"{path}: {error}.", hint=DAMAGED) from error


def _looks_like(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    kinds = {b"<": "looks like a web page", b"pk\3\4": "looks like a PyTorch checkpoint or another zip file",
             b"\x80": "looks like a pickle",
             b"version https://git-lfs": "is a Git LFS pointer, not the file that it points to"}
    size = os.path.getsize(path)
    unknown = f"has {size} bytes" if size else "is empty"
    return next((kind for begin, kind in kinds.items() if start.startswith(begin)), unknown)


def _read(file: safe_open, key: str, entry: dict, headers: dict[str, tuple]) -> Tensor:
    """One dense tensor, with memory of its own (safetensors maps the file: a later change would show, or
    crash)."""
    try:
        if entry["encoding"] == "dense":
            return _read_dense(file, key, *headers[key])
        return _decode(file, entry, dict(zip(PARTS[entry["encoding"]], array_names(key, entry), strict=True)),
                       headers)
    except ValueError as error:
        raise ValueError(f"tensor {key!r}: {error}") from error


def _read_dense(file: safe_open, key: str, dtype: str, shape: list[int]) -> Tensor:
    if not all(map(is_size, shape)):
        raise ValueError(f"the shape is {str(shape)[:60]}, expected sizes below 2^63")
    tensor = file.get_tensor(key)
    if dtype == "BOOL" and tensor.view(torch.uint8).gt(1).any():  # undefined behaviour in C++
        raise ValueError(f"a boolean is stored as {int(tensor.view(torch.uint8).max())}, expected 0 or 1")
    return tensor.clone()


def _decode(file: safe_open, entry: dict, names: dict[str, str], headers: dict[str, tuple]) -> Tensor:
    numel, nnz = math.prod(entry["shape"]), entry["nnz"]
    for part, name in names.items():
        got, shape = headers[name]
        dtype = entry["dtype"] if part == "values" else "U8"
        length = {"values": nnz, "mask": -(-numel // 8)}.get(part)  # rice.decode knows those of the gaps
        if got != dtype or len(shape) != 1 or length not in (None, shape[0]):
            raise ValueError(f"{part} is {got} {shape}, expected {dtype} "
                             f"[{'length' if length is None else length}]")
    values = file.get_tensor(names["values"])
    words = values.view(_word_type(values.element_size())).numpy()
    if not _is_nonzero(words).all():
        raise ValueError(f"{nnz - int(_is_nonzero(words).sum())} of the {nnz} values are zero, expected none")
    streams = [file.get_tensor(name).numpy() for part, name in names.items() if part != "values"]
    if entry["encoding"] == "mask":
        positions = _unpack_mask(*streams, nnz=nnz, numel=numel)
    else:
        positions = rice.decode(*streams, nnz=nnz, k=entry["k"], numel=numel)
    dense = np.zeros(numel, words.dtype)
    dense[positions] = words
    return torch.from_numpy(dense).view(values.dtype).reshape(entry["shape"])


def _unpack_mask(packed: np.ndarray, *, nnz: int, numel: int) -> np.ndarray:
    # 4 times faster than indexing with the mask
    positions = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
    beyond = int(np.count_nonzero(positions >= numel))
    if len(positions) != nnz or beyond:
        raise ValueError(f"the mask has {len(positions)} ones, {beyond} of them after its end, expected "
                         f"{nnz} and 0")
    return positions
