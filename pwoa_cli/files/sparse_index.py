"""The index of a sparse file: which tensors it says it holds, and the checks that it can be so (layout:
docs/sparse-file.md).

Everything is compared in plain Python integers before memory is taken. What is wrong is a ValueError (what,
got, expected), to which `sparse.load` adds the file and the hint; an InputError where the hint is another.
"""
import json
import math
import os

import torch
from safetensors import safe_open

from pwoa_cli.errors import InputError

VERSION = 1
INDEX = "pwoa"
PARTS = {"dense": (), "mask": ("values", "mask"), "rice": ("values", "gap_hi", "gap_lo")}
SUFFIXES = tuple(f".pwoa_{part}" for part in ("values", "mask", "gap_hi", "gap_lo"))
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
MAX_DIMS = 64  # torch stores more, but computes with 64


def read_index(file: safe_open, path: str | os.PathLike) -> dict[str, dict]:
    """Entry of every tensor, in the saved order; for a plain safetensors file all dense, in the order of the
    file."""
    text = (file.metadata() or {}).get(INDEX)
    if text is None:
        return {key: {"encoding": "dense"} for key in file.offset_keys()}
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata string {INDEX!r} is {text[:40]!r}, expected a JSON object") from error
    version = index.get("version") if isinstance(index, dict) else None
    if type(version) is not int or version != VERSION:
        raise InputError(f"{path}: the format version is {str(version)[:40]}, expected {VERSION}.",
                         hint="A newer pwoa may read it: upgrade, or write the file again with this one.")
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
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(is_size(d, least=1) for d in shape):
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


def is_size(number: object, *, least: int = 0) -> bool:
    """Whether a number is an integer from `least` on that fits 64 bits."""
    return type(number) is int and least <= number < 2**63  # a bool is an int too


def array_names(key: str, entry: dict) -> list[str]:
    """Names of the stored arrays of a tensor, in the order of its PARTS."""
    return [f"{key}.pwoa_{part}" for part in PARTS[entry["encoding"]]] or [key]


def check_arrays(index: dict[str, dict], headers: dict[str, tuple]) -> None:
    """Every stored array belongs to exactly one tensor of the index, and every tensor has its arrays."""
    wanted = {name: key for key, entry in index.items() for name in array_names(key, entry)}
    missing = sorted(wanted.keys() - headers.keys())
    if missing:
        raise ValueError(f"{len(missing)} arrays are missing, the first is {missing[0]!r}, expected those in "
                         "the index")
    unknown = sorted(headers.keys() - wanted.keys())
    # no index, yet sparse
    unknown += [name for name, key in wanted.items() if name == key and key.endswith(SUFFIXES)]
    if unknown:
        raise ValueError(f"{len(unknown)} arrays belong to no tensor of the index, the first is "
                         f"{unknown[0]!r}, expected none (the metadata string {INDEX!r} is missing or "
                         "incomplete)")


def unfolded_bytes(index: dict[str, dict]) -> int:
    """The dense sizes of all sparse tensors together."""
    sizes = {code: dtype.itemsize for dtype, code in FLOATS.items()}
    return sum(math.prod(entry["shape"]) * sizes[entry["dtype"]] for entry in index.values()
               if "shape" in entry)


def check_bound(index: dict[str, dict], bound: int, path: str | os.PathLike) -> None:
    """The dense sizes of all sparse tensors together may be `bound` bytes."""
    total = unfolded_bytes(index)
    if total > bound:
        raise InputError(f"{path}: its sparse tensors would take {total} bytes of memory, expected at most "
                         f"{bound}.",
                         hint=f"If you trust the file, raise the bound: pwoa_cli.files.sparse.load(path, "
                              f"max_bytes={total}).")
