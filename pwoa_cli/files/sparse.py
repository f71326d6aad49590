"""Sparse state dicts in one valid safetensors file, written in format 2 (layout: docs/sparse-file.md).

What is packed is packed.py's business, what 0.1.0 wrote sparse_v1.py's. The reader trusts nothing: every
length is compared before memory is taken, and no name in a file is ever imported.
"""
import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pwoa_cli.errors import InputError
from pwoa_cli.files import packed, sparse_v1
from pwoa_cli.files.atomic import atomic
from pwoa_cli.files.packed import FLOATS, OTHERS
from pwoa_cli.machine.memory import check_room

VERSION = 2
INDEX = BLOB = "pwoa"  # the metadata string that says the version, and the array
SMALLEST_BOUND, EXPANSION = 2**28, 1024  # a file of b bytes may unfold to 256 MiB + 1024 b
DAMAGED = "The file is incomplete or changed: copy it again, or write it again with pwoa."
STORED = (*FLOATS, torch.int8)  # what floats may be stored as


def save(state: Mapping[str, Tensor], path: str | os.PathLike, *, metadata: Mapping[str, str] | None = None,
         dtype: torch.dtype | None = None, new: bool = False) -> int:
    """Write tensors to a sparse safetensors file, whole or not at all, and return its size in bytes.

    -0.0 becomes +0.0; all other bits, NaN's too, stay. Tensors that share memory are stored each for itself.
    Equal arguments give equal bytes (for one version of zlib). A link is followed, an older file replaced.
    Args: state: strided tensors of any shape and device. metadata: strings kept beside the blob, any key but
        "pwoa". dtype: float16/32/64 and bfloat16 tensors are converted to it first; torch.int8: those of two
        dimensions and more become integers times a float32 scale for each index of the first dimension, and
        keep their dtype when they are loaded. new: an older file is left as it is, and InputError raised.
    Raises: InputError for a key, a dtype or a tensor that the format does not hold, a finite value that
        overflows `dtype`, one that is not finite for int8, or a path that cannot be written.
    """
    data = _checked_file(state, metadata or {}, dtype)
    wanted = f"a file in an existing, writable folder with {len(data)} bytes free"
    with atomic(Path(path), wanted=wanted, hint="Name another output file.", new=new) as temporary:
        temporary.write_bytes(data)
    return len(data)


def size_bytes(state: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> int:
    """Size of the file that `save` would write of these. Raises: InputError as `save`, but for the path."""
    return len(_checked_file(state, metadata or {}, None))


def load(path: str | os.PathLike, *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Read the dense tensors of a file, on the CPU, with the keys, order, shapes and dtypes that were saved.

    A safetensors file without the metadata string `pwoa` is read as dense tensors, in the order in which they
    lie in the file.
    Args: max_bytes: bound on the size of the dense tensors together (in format 1: of the sparse ones),
        checked before memory is taken; by default 256 MiB + 1024 times the file size, which `save` respects.
    Raises: InputError for a file that cannot be read, is damaged, or has an unknown version or encoding.
    """
    with _opened(path) as file:
        size = os.path.getsize(path)
        bound = _bound(size) if max_bytes is None else max_bytes

        def check(total: int) -> None:
            if total > bound:
                raise InputError(f"{path}: its tensors would take {total} bytes of memory, expected at most "
                                 f"{bound}.",
                                 hint="If you trust the file, raise the bound: pwoa_cli.files.sparse.load("
                                      f"path, max_bytes={total}).")
            check_room(size + total, f"{path}: its tensors")

        index = _index(file, path)
        if index is None or index["version"] == sparse_v1.VERSION:
            return sparse_v1.read(file, index, check=check)
        return packed.unpack(_blob(file), check=check)


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
    if dtype is not None and dtype not in STORED:
        raise InputError(f"The values cannot be stored as {dtype}, expected one of "
                         f"{', '.join(map(str, STORED))}.",
                         hint="Halve the values with dtype=torch.bfloat16.")
    for key, tensor in state.items():
        if not _is_text(key):
            raise InputError(f"The tensor key {key!r} cannot be stored, expected text.",
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
    """The tensor on the CPU, contiguous, without history or lazy conjugation, its floats as `dtype`."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if dtype is None or tensor.dtype not in FLOATS:
        return tensor
    if dtype == torch.int8:
        _check_finite(key, tensor)
        return tensor
    narrow = tensor.to(dtype)
    lost = int((narrow.isinf() & tensor.isfinite()).sum())
    if lost:
        raise InputError(f"Tensor {key!r} has {lost} finite values beyond the range of {dtype}, expected at "
                         f"most {torch.finfo(dtype).max:g}.",
                         hint="Store it as torch.bfloat16, which has float32's range.")
    return narrow


def _check_finite(key: str, tensor: Tensor) -> None:
    if tensor.ndim > 1 and not tensor.isfinite().all():
        raise InputError(f"Tensor {key!r} has values that are not finite, which int8 cannot hold.",
                         hint="Store it as torch.bfloat16.")


def _checked_file(state: Mapping[str, Tensor], metadata: Mapping[str, str],
                  dtype: torch.dtype | None) -> bytes:
    """The bytes of the file of what `save` takes."""
    _check_state(state, dtype)
    _check_metadata(metadata)
    return _file({key: _converted(key, tensor, dtype) for key, tensor in state.items()}, metadata, dtype)


def _file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None) -> bytes:
    """The bytes of the file: the smallest that its reader's bound allows."""
    for compact in (True, False):
        try:
            blob = packed.pack(tensors, int8=dtype == torch.int8, compact=compact)
        except ValueError as error:
            raise InputError(f"The tensors cannot be stored: {error}.",
                             hint="Save a model with fewer or shorter names.") from None
        data = _framed(blob, metadata)
        # without Rice code and DEFLATE a file expands 64-fold at most: what is written can be read
        if dense_bytes(tensors) <= _bound(len(data)):
            break
    return data


def _framed(blob: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of one array of bytes. Written here, as safetensors writes metadata in an order that
    changes from call to call."""
    strings = dict(sorted({**metadata, INDEX: json.dumps({"version": VERSION})}.items()))
    header = {"__metadata__": strings,
              BLOB: {"dtype": "U8", "shape": [len(blob)], "data_offsets": [0, len(blob)]}}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the array starts at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, blob))


# ---- reading: the helpers raise ValueError (what, got, expected), `_opened` adds the file and the hint


def _index(file: safe_open, path: str | os.PathLike) -> dict | None:
    """The metadata string `pwoa`, parsed, of a version that is known; None for a plain safetensors file."""
    text = (file.metadata() or {}).get(INDEX)
    if text is None:
        return None
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata string {INDEX!r} is {text[:40]!r}, expected a JSON object") from error
    version = index.get("version") if isinstance(index, dict) else None
    if type(version) is not int or version not in (sparse_v1.VERSION, VERSION):
        raise InputError(f"{path}: the format version is {str(version)[:40]}, expected "
                         f"{sparse_v1.VERSION} or {VERSION}.",
                         hint="A newer pwoa may read it: upgrade, or write the file again with this one.")
    return index


def _blob(file: safe_open) -> bytes:
    """The one array of format 2."""
    names = list(file.keys())
    if names != [BLOB]:
        raise ValueError(f"its arrays are {str(names)[:60]}, expected {BLOB!r} alone")
    part = file.get_slice(BLOB)
    if part.get_dtype() != "U8" or len(part.get_shape()) != 1:
        raise ValueError(f"{BLOB} is {part.get_dtype()} {part.get_shape()}, expected U8 of one dimension")
    return file.get_tensor(BLOB).numpy().tobytes()


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
