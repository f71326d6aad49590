"""Format 1 of the sparse file, which pwoa 0.1.0 wrote: read for ever, written no more (layout:
docs/sparse-file.md).

A dense tensor K keeps its key; a sparse one is `K.pwoa_values` with `K.pwoa_mask`, or with `K.pwoa_gap_hi`
and `K.pwoa_gap_lo`. The metadata string `pwoa` is a JSON index of all tensors. Everything is compared in
plain Python integers before memory is taken. What is wrong is a ValueError (what, got, expected), to which
`sparse.load` adds the file and the hint.
"""
import math
from collections.abc import Callable

import torch
from safetensors import safe_open
from torch import Tensor

from pwoa_cli.files.packed import DTYPES, FLOATS, Row, is_size, of_words, spread, words_of

VERSION = 1
PARTS = {"dense": (), "mask": ("values", "mask"), "rice": ("values", "gap_hi", "gap_lo")}
SUFFIXES = tuple(f".pwoa_{part}" for part in ("values", "mask", "gap_hi", "gap_lo"))
MAX_DIMS = 64  # torch stores more, but computes with 64


def read(file: safe_open, index: dict | None, *, check: Callable[[int], None]) -> dict[str, Tensor]:
    """All tensors of an open file. Args: index: of the metadata, parsed; None for a plain safetensors file,
    whose tensors are dense. check: raises if the sparse tensors may not take so many bytes together. Raises:
    ValueError."""
    entries = _entries(file, index)
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a file is no dictionary)
    headers = {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
    _check_arrays(entries, headers)
    check(sum(math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize for entry in entries.values()
              if "shape" in entry))
    return {key: _read(file, key, entry, headers) for key, entry in entries.items()}


def _entries(file: safe_open, index: dict | None) -> dict[str, dict]:
    """Entry of every tensor, in the saved order; of a plain file in the order of the file."""
    if index is None:
        return {key: {"encoding": "dense"} for key in file.offset_keys()}
    entries = index.get("tensors")
    if not isinstance(entries, dict):
        raise ValueError(f"the index of tensors is {str(entries)[:40]!r}, expected a JSON object")
    for key, entry in entries.items():
        _check_entry(key, entry)
    return entries


def _check_entry(key: str, found: object) -> None:
    """Types and ranges of one index entry, in plain Python integers."""
    entry = found if isinstance(found, dict) else {}
    encoding = entry.get("encoding")
    if not isinstance(encoding, str) or encoding not in PARTS:
        raise ValueError(f"tensor {key!r} has encoding {str(encoding)[:40]!r}, expected one of "
                         f"{', '.join(PARTS)}")
    fields = {"encoding", *(("shape", "dtype", "nnz") if encoding != "dense" else ()),
              *(("k",) if encoding == "rice" else ())}
    if set(entry) != fields:
        raise ValueError(f"tensor {key!r} is described by {sorted(entry)}, expected {sorted(fields)}")
    if encoding == "dense":
        return
    shape, nnz = entry["shape"], entry["nnz"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(is_size(d) and d for d in shape):
        raise ValueError(f"tensor {key!r} has shape {str(shape)[:60]}, expected at most {MAX_DIMS} sizes "
                         "from 1 on")
    if entry["dtype"] not in FLOATS.values():
        raise ValueError(f"tensor {key!r} has dtype {str(entry['dtype'])[:40]!r}, expected one of "
                         f"{', '.join(FLOATS.values())}")
    if not is_size(nnz) or nnz > math.prod(shape):
        raise ValueError(f"tensor {key!r} has nnz {str(nnz)[:40]}, expected at most {math.prod(shape)} for "
                         f"shape {shape}")
    if encoding == "rice" and not is_size(entry["k"]):
        raise ValueError(f"tensor {key!r} has Rice parameter {str(entry['k'])[:40]}, expected an integer "
                         "from 0 on")


def _array_names(key: str, entry: dict) -> list[str]:
    """Names of the stored arrays of a tensor, in the order of its PARTS."""
    return [f"{key}.pwoa_{part}" for part in PARTS[entry["encoding"]]] or [key]


def _check_arrays(index: dict[str, dict], headers: dict[str, tuple]) -> None:
    """Every stored array belongs to exactly one tensor of the index, and every tensor has its arrays."""
    wanted = {name: key for key, entry in index.items() for name in _array_names(key, entry)}
    missing = sorted(wanted.keys() - headers.keys())
    if missing:
        raise ValueError(f"{len(missing)} arrays are missing, the first is {missing[0]!r}, expected those in "
                         "the index")
    unknown = sorted(headers.keys() - wanted.keys())
    # no index, yet sparse
    unknown += [name for name, key in wanted.items() if name == key and key.endswith(SUFFIXES)]
    if unknown:
        raise ValueError(f"{len(unknown)} arrays belong to no tensor of the index, the first is "
                         f"{unknown[0]!r}, expected none (the metadata string pwoa is missing or incomplete)")


def _read(file: safe_open, key: str, entry: dict, headers: dict[str, tuple]) -> Tensor:
    """One dense tensor, with memory of its own (safetensors maps the file: a later change would show, or
    crash)."""
    try:
        if entry["encoding"] == "dense":
            return _read_dense(file, key, *headers[key])
        names = dict(zip(PARTS[entry["encoding"]], _array_names(key, entry), strict=True))
        return _decode(file, key, entry, names, headers)
    except ValueError as error:
        raise ValueError(f"tensor {key!r}: {error}") from error


def _read_dense(file: safe_open, key: str, dtype: str, shape: list[int]) -> Tensor:
    if not all(map(is_size, shape)):
        raise ValueError(f"the shape is {str(shape)[:60]}, expected sizes below 2^63")
    tensor = file.get_tensor(key)
    if dtype == "BOOL" and tensor.view(torch.uint8).gt(1).any():  # undefined behaviour in C++
        raise ValueError(f"a boolean is stored as {int(tensor.view(torch.uint8).max())}, expected 0 or 1")
    return tensor.clone()


def _decode(file: safe_open, key: str, entry: dict, names: dict[str, str],
            headers: dict[str, tuple]) -> Tensor:
    row = Row(key, entry["dtype"], tuple(entry["shape"]), entry["encoding"], entry["nnz"], entry.get("k", 0))
    for part, name in names.items():
        got, shape = headers[name]
        dtype = row.dtype if part == "values" else "U8"
        # rice.decode knows those of the gaps
        length = {"values": row.nnz, "mask": -(-row.numel // 8)}.get(part)
        if got != dtype or len(shape) != 1 or length not in (None, shape[0]):
            raise ValueError(f"{part} is {got} {shape}, expected {dtype} "
                             f"[{'length' if length is None else length}]")
    streams = {part.removeprefix("gap_"): file.get_tensor(name).numpy() for part, name in names.items()
               if part != "values"}
    return of_words(row, spread(row, streams, words_of(file.get_tensor(names["values"]))))
