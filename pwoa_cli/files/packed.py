"""Format 2 of the sparse file: one blob of an index and byte streams (layout: docs/sparse-file.md).

    blob     CRC-32 of the rest (4 bytes) | length of the index (4 bytes) | index, deflated | streams
    index    JSON: {"tensors": [row, ...], "streams": [length, ...]}
    row      [name, dtype, shape] and, where zeros are left out, ["mask", nnz] or ["rice", nnz, k, hi bytes]
    streams  mask, hi, lo, scales, then of each stored dtype its byte planes; of all tensors together

Nothing is believed: the checksum is compared first, then every size, in plain integers, before memory is
taken. What is wrong is a ValueError (what, got, expected), to which `sparse.load` adds the file and the hint.
"""
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pwoa_cli.files import rice, streams

FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
OTHERS = {torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
          torch.int64: "I64", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
          torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64"}
CODES = FLOATS | OTHERS
DTYPES = {code: dtype for dtype, code in CODES.items()}
SCALED = ":I8"  # after a float's code: stored as int8, with a scale for each index of the first dimension
LEVELS = 127  # of each sign
FIRST = ("mask", "hi", "lo", "scale")  # streams before those of the values
HEAD = 8  # bytes of checksum and length
MAX_INDEX = 2**24  # bytes, inflated: 100,000 tensors
MAX_SIZE = 2**63
WORDS: dict[int, np.dtype] = {8: np.dtype("u8"), 4: np.dtype("u4"), 2: np.dtype("u2")}


@dataclass(frozen=True)
class Row:
    """What the index says of one tensor. encoding: "" (all elements), "mask" or "rice"; nnz: elements that
    are stored; k, hi: Rice parameter and bytes of its unary stream."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str = ""
    nnz: int = 0
    k: int = 0
    hi: int = 0

    @property
    def numel(self) -> int:
        """Elements, zeros included."""
        return math.prod(self.shape)

    @property
    def scaled(self) -> bool:
        """Whether the values are int8 with scales."""
        return self.dtype.endswith(SCALED)

    @property
    def loaded(self) -> torch.dtype:
        """The dtype that the tensor has once it is loaded."""
        return DTYPES[self.dtype.removesuffix(SCALED)]

    @property
    def stored(self) -> str:
        """The code of the dtype in which its values are stored."""
        return "I8" if self.scaled else self.dtype

    @property
    def bytes(self) -> int:
        """Of the dense tensor."""
        return self.numel * self.loaded.itemsize

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of its parts of the first streams."""
        return {"mask": -(-self.numel // 8) if self.encoding == "mask" else 0, "hi": self.hi,
                "lo": -(-self.nnz * self.k // 8), "scale": 2 * self.shape[0] if self.scaled else 0}

    def listed(self) -> list[Any]:
        """As it stands in the index."""
        more = {"": [], "mask": ["mask", self.nnz], "rice": ["rice", self.nnz, self.k, self.hi]}
        return [self.name, self.dtype, list(self.shape), *more[self.encoding]]


# ---- writing


def pack(tensors: Mapping[str, Tensor], *, int8: bool = False, compact: bool = True) -> bytes:
    """The blob of contiguous tensors on the CPU. -0.0 becomes +0.0 in floats.

    Args: int8: float tensors of two dimensions and more are stored as int8 with scales. compact: False
        leaves out Rice code and DEFLATE, so that a blob unfolds 64-fold at most.
    Raises: ValueError if the index becomes larger than MAX_INDEX.
    """
    rows, first = [], {name: list[np.ndarray]() for name in FIRST}
    values: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        row, parts, stored = _packed(name, tensor, int8=int8, compact=compact)
        rows.append(row)
        for part, data in parts.items():
            first[part].append(data)
        values.setdefault(row.stored, []).append(stored)
    raw = [b"".join(map(np.ndarray.tobytes, first[name])) for name in FIRST]
    raw += [plane.tobytes() for stored, arrays in values.items()
            for plane in _planes(stored, np.concatenate(arrays))]
    kept = [streams.stored(data, compact=compact) for data in raw]
    index = json.dumps({"tensors": [row.listed() for row in rows], "streams": [length for length, _ in kept]},
                       separators=(",", ":"), ensure_ascii=False).encode()
    if len(index) > MAX_INDEX:
        raise ValueError(f"the index has {len(index):,} bytes, expected at most {MAX_INDEX:,}")
    small = streams.deflated(index)
    rest = b"".join((len(small).to_bytes(4, "little"), small, *(data for _, data in kept)))
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def _packed(name: str, tensor: Tensor, *, int8: bool,
            compact: bool) -> tuple[Row, dict[str, np.ndarray], np.ndarray]:
    """Row, parts of the first streams, and stored values of one tensor."""
    shape, code = tuple(tensor.shape), CODES[tensor.dtype]
    if tensor.dtype not in FLOATS:
        return Row(name, code, shape), {}, tensor.flatten().view(torch.uint8).numpy()
    parts: dict[str, np.ndarray] = {}
    if int8 and tensor.ndim > 1 and tensor.numel():
        code += SCALED
        values, parts["scale"] = quantised(tensor)
    else:
        values = words_of(tensor)
    nonzero = is_nonzero(values)
    positions = np.flatnonzero(nonzero)
    row, places = _encoded(Row(name, code, shape, nnz=len(positions)), nonzero, positions, compact=compact)
    return row, parts | places, values[positions] if row.encoding else values * nonzero


def _encoded(row: Row, nonzero: np.ndarray, positions: np.ndarray, *,
             compact: bool) -> tuple[Row, dict[str, np.ndarray]]:
    """The smallest way to say where the nonzeros are, and its bytes."""
    k, rice_bytes = rice.best_k(positions)
    width, mask_bytes = DTYPES[row.stored].itemsize, -(-row.numel // 8)
    sizes = {"": row.numel * width, "mask": row.nnz * width + mask_bytes + len('"mask",')}
    if compact:
        sizes["rice"] = row.nnz * width + rice_bytes + len('"rice",1,1000,')
    encoding = min(sizes, key=lambda name: sizes[name])
    if encoding == "mask":
        return replace(row, encoding=encoding), {"mask": np.packbits(nonzero, bitorder="little")}
    if encoding == "rice":
        hi, lo = rice.encode(positions, k=k)
        return replace(row, encoding=encoding, k=k, hi=len(hi)), {"hi": hi, "lo": lo}
    return replace(row, nnz=row.numel), {}


def quantised(tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """int8 values (numel,) in -127..127, as bytes, and bfloat16 scales (shape[0],), as bytes: value = scale x
    integer, the nearest; a scale is the largest magnitude at its first index over 127, rounded up. Values are
    finite."""
    flat = tensor.to(torch.float32).flatten(1)
    largest = flat.abs().amax(1)
    scale = (largest / LEVELS).to(torch.bfloat16)
    short = scale.float() * LEVELS < largest
    scale = (scale.view(torch.int16) + short.to(torch.int16)).view(torch.bfloat16)  # the next number above
    whole = (flat / torch.where(scale > 0, scale.float(), 1)[:, None]).round().clamp(-LEVELS, LEVELS)
    return whole.to(torch.int8).flatten().numpy().view(np.uint8), scale.view(torch.uint8).numpy()


def words_of(tensor: Tensor) -> np.ndarray:
    """A float tensor's elements (numel,) as unsigned integers of its width."""
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return tensor.flatten().view(whole).numpy().view(WORDS[tensor.element_size()])


def is_nonzero(values: np.ndarray) -> np.ndarray:
    """Of int8 values as bytes, and of floats seen as unsigned integers: any bit but the sign, so that no
    denormal is flushed and NaN counts."""
    return values != 0 if values.itemsize == 1 else (values << values.dtype.type(1)) != 0


def _planes(stored: str, values: np.ndarray) -> list[np.ndarray]:
    return streams.planes(values) if DTYPES[stored] in FLOATS else [values]


# ---- reading


def unpack(blob: bytes, *, check: Callable[[int], None]) -> dict[str, Tensor]:
    """The dense tensors of a blob that need not be trusted, in the saved order.

    Args: check: raises if they may not take so many bytes together. Raises: ValueError (what, got, expected).
    """
    rows, lengths, data = _opened(blob)
    check(sum(row.bytes for row in rows))
    sizes = _sizes(rows)
    if len(lengths) != len(sizes) or sum(map(abs, lengths)) != len(data):
        raise ValueError(f"{len(lengths)} streams have {sum(map(abs, lengths)):,} bytes, expected "
                         f"{len(sizes)} streams and {len(data):,} bytes")
    arrays = list(streams.cut(data, lengths, sizes))
    first = dict(zip(FIRST, map(_Parts, arrays), strict=False))
    values = _values(rows, arrays[len(FIRST):])
    return {row.name: _unpacked(row, first, values[row.stored]) for row in rows}


class _Parts:
    """A stream of which each tensor takes its part in turn."""

    def __init__(self, data: np.ndarray):
        self._data, self._at = data, 0

    def take(self, length: int) -> np.ndarray:
        """The next `length` elements."""
        part = self._data[self._at:self._at + length]
        self._at += length
        return part


def _opened(blob: bytes) -> tuple[list[Row], list[int], memoryview]:
    """Rows, lengths of the streams, and the bytes of all streams."""
    if len(blob) < HEAD or zlib.crc32(memoryview(blob)[4:]) != int.from_bytes(blob[:4], "little"):
        raise ValueError(f"the checksum of its {len(blob):,} bytes differs, expected the one that it names")
    start = HEAD + int.from_bytes(blob[4:HEAD], "little")
    if start > len(blob):
        raise ValueError(f"the index has {start - HEAD:,} bytes, expected at most {len(blob) - HEAD:,}")
    try:
        index = json.loads(streams.inflated(blob[HEAD:start], most=MAX_INDEX))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the index cannot be read ({error}), expected deflated JSON") from error
    if not isinstance(index, dict) or index.keys() != {"tensors", "streams"} or not all(
            isinstance(part, list) for part in index.values()):
        raise ValueError(f"the index is {str(index)[:40]!r}, expected lists of tensors and streams")
    lengths = index["streams"]
    if not all(type(length) is int and abs(length) < MAX_SIZE for length in lengths):
        raise ValueError(f"the lengths of streams are {str(lengths)[:60]}, expected integers below 2^63")
    rows = [_row(entry) for entry in index["tensors"]]
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"tensor {max(names, key=names.count)!r} is named twice, expected once")
    return rows, lengths, memoryview(blob)[start:]


def _row(entry: object) -> Row:
    """One row of the index, its types and ranges checked."""
    row = entry if isinstance(entry, list) else []
    name, dtype, shape = row[:3] if len(row) >= 3 else (None, None, None)
    if not isinstance(name, str) or not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError(f"a row of the index is {str(entry)[:60]}, expected [name, dtype, shape]")
    base = dtype.removesuffix(SCALED)
    if base not in DTYPES or (base != dtype and DTYPES[base] not in FLOATS):
        raise ValueError(f"tensor {name!r} has dtype {dtype[:40]!r}, expected one of {', '.join(DTYPES)}")
    if not all(is_size(size) for size in shape) or not is_size(math.prod(shape)):
        raise ValueError(f"tensor {name!r} has shape {str(shape)[:60]}, expected sizes with a product below "
                         "2^63")
    encoding, *numbers = row[3:] or [""]
    wanted = {"": 0, "mask": 1, "rice": 3}
    if not isinstance(encoding, str) or len(numbers) != wanted.get(encoding) or not all(
            map(is_size, numbers)) or (encoding and DTYPES[base] not in FLOATS):
        raise ValueError(f"tensor {name!r} is encoded as {str(row[3:])[:60]}, expected nothing, mask and "
                         "nnz, or rice, nnz, k and bytes, for a float")
    found = Row(name, dtype, tuple(shape), encoding, *numbers)
    if found.scaled and len(shape) < 2:
        raise ValueError(f"tensor {name!r} has scales and shape {shape}, expected two dimensions or more")
    if found.nnz > found.numel or found.k > 62:
        raise ValueError(f"tensor {name!r} has nnz {found.nnz} and k {found.k}, expected at most "
                         f"{found.numel} and 62")
    return found if encoding else replace(found, nnz=found.numel)


def is_size(number: object) -> bool:
    """Whether it is an integer from 0 on that fits 64 bits."""
    return type(number) is int and 0 <= number < MAX_SIZE  # a bool is an int too


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """Stored values by the code of their dtype, in the order of their streams."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.stored] = counts.get(row.stored, 0) + row.nnz
    return counts


def _sizes(rows: Sequence[Row]) -> list[int]:
    """Bytes of every stream before it was deflated."""
    sizes = [sum(row.sizes[name] for row in rows) for name in FIRST]
    for stored, count in _counts(rows).items():
        dtype = DTYPES[stored]
        sizes += [count] * dtype.itemsize if dtype in FLOATS else [count * dtype.itemsize]
    return sizes


def _values(rows: Sequence[Row], arrays: Sequence[np.ndarray]) -> dict[str, _Parts]:
    """The stored values of all tensors by the code of their dtype: words of floats, else bytes."""
    values, at = {}, 0
    for stored in _counts(rows):
        dtype = DTYPES[stored]
        count = dtype.itemsize if dtype in FLOATS else 1
        parts = arrays[at:at + count]
        values[stored] = _Parts(streams.words(parts, WORDS[count]) if dtype in FLOATS else parts[0])
        at += count
    return values


def _unpacked(row: Row, first: Mapping[str, _Parts], values: _Parts) -> Tensor:
    """One dense tensor, with memory of its own."""
    try:
        parts = {name: first[name].take(size) for name, size in row.sizes.items()}
        if row.loaded not in FLOATS:
            return _others(row, values)
        stored = values.take(row.nnz)
        stored = spread(row, parts, stored) if row.encoding else stored.copy()
        if row.scaled:
            return _scaled(row, stored.view(np.int8), parts["scale"])
        return of_words(row, stored)
    except ValueError as error:
        raise ValueError(f"tensor {row.name!r}: {error}") from error


def of_words(row: Row, words: np.ndarray) -> Tensor:
    """The inverse of `words_of`, in the dtype and shape of a row."""
    return torch.from_numpy(words.view(f"i{words.itemsize}")).view(row.loaded).reshape(row.shape)


def spread(row: Row, parts: Mapping[str, np.ndarray], stored: np.ndarray) -> np.ndarray:
    """The elements (numel,), zero where none is stored."""
    if not is_nonzero(stored).all():
        zeros = row.nnz - int(is_nonzero(stored).sum())
        raise ValueError(f"{zeros} of the {row.nnz} values are zero, expected none")
    positions = (rice.decode(parts["hi"], parts["lo"], nnz=row.nnz, k=row.k, numel=row.numel)
                 if row.encoding == "rice" else rice.of_mask(parts["mask"], nnz=row.nnz, numel=row.numel))
    dense = np.zeros(row.numel, stored.dtype)
    dense[positions] = stored
    return dense


def _scaled(row: Row, stored: np.ndarray, raw: np.ndarray) -> Tensor:
    """Integers (numel,) times the scale of their first index, from the scales' bytes, in float32."""
    scale = torch.from_numpy(raw.copy()).view(torch.bfloat16).float()
    whole = torch.from_numpy(stored.astype(np.float32).reshape(row.shape[0], -1)) * scale[:, None]
    return whole.reshape(row.shape).to(row.loaded)


def _others(row: Row, values: _Parts) -> Tensor:
    """A tensor of integers, booleans or other numbers, from its bytes."""
    raw = values.take(row.nnz * row.loaded.itemsize)
    if row.loaded == torch.bool and len(raw) and raw.max() > 1:  # undefined behaviour in C++
        raise ValueError(f"a boolean is stored as {int(raw.max())}, expected 0 or 1")
    return torch.from_numpy(raw.copy()).view(row.loaded).reshape(row.shape)
