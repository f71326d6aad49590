"""Read a sparse model of pwoa with numpy alone: copy this file into your project (MIT).

    from read_sparse import load
    arrays = load("model.safetensors")          # {name: numpy array}, dense, in the saved order

    python read_sparse.py model.safetensors     # names, shapes, share of zeros

bfloat16 has no numpy type: such tensors come as float32 with the same values. Layout: docs/sparse-file.md of
pwoa. What is checked here keeps a damaged file from being misread; pwoa's own reader is stricter: use it for
files of strangers.
"""
import json
import math
import sys
import zlib

import numpy as np

WORDS = {"F64": "u8", "F32": "u4", "F16": "u2", "BF16": "u2"}  # floats, as unsigned words of their width
TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BOOL": "?", "U8": "u1", "I8": "i1", "I16": "i2", "I32": "i4",
         "I64": "i8", "U16": "u2", "U32": "u4", "U64": "u8", "C64": "c8", "F8_E4M3": "u1", "F8_E5M2": "u1"}


def load(path):
    """Dense arrays by name of a file that pwoa wrote (format 1 or 2), or of a plain safetensors file."""
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    index = json.loads(header.pop("__metadata__", {}).get("pwoa", '{"version": 0}'))
    raw = np.frombuffer(data, np.uint8)[start:]
    stored = {name: (entry, raw[slice(*entry["data_offsets"])]) for name, entry in header.items()}
    if index["version"] == 2:
        return _of_format_2(stored["pwoa"][1].tobytes())
    if index["version"] == 1:
        return {name: _of_format_1(stored, name, entry) for name, entry in index["tensors"].items()}
    if index["version"] == 0:
        return {name: _dense(*stored[name]) for name in stored}
    raise ValueError(f"{path}: format {index['version']} is not known here")


def _of_format_2(blob):
    if zlib.crc32(blob[4:]) != int.from_bytes(blob[:4], "little"):
        raise ValueError("the file is damaged: its checksum differs")
    at = 8 + int.from_bytes(blob[4:8], "little")
    index = json.loads(zlib.decompress(blob[8:at], -15))
    streams = []
    for length in index["streams"]:  # negative: deflated
        part = blob[at:at + abs(length)]
        streams.append(np.frombuffer(zlib.decompress(part, -15) if length < 0 else part, np.uint8))
        at += abs(length)
    take = dict(zip(("mask", "hi", "lo", "scale"), map(_Taker, streams[:4]), strict=True))
    values, planes = {}, iter(streams[4:])
    for _, dtype, *_ in index["tensors"]:
        stored = dtype.partition(":")[2] or dtype
        if stored not in values:
            words = WORDS.get(stored)
            values[stored] = _Taker(_words([next(planes) for _ in range(int(words[1]))], words) if words
                                    else next(planes))
    return {row[0]: _tensor(row, take, values) for row in index["tensors"]}


class _Taker:
    """A stream of which each tensor takes its part in turn."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def __call__(self, count):
        self.at += count
        return self.data[self.at - count:self.at]


def _words(planes, dtype):
    """Byte planes, the least significant first, to words whose sign was rotated to the lowest bit."""
    rotated = np.ascontiguousarray(np.stack(planes, axis=1)).view(f"<{dtype}").ravel()
    width = 8 * rotated.itemsize
    return (rotated >> rotated.dtype.type(1)) | (rotated << rotated.dtype.type(width - 1))


def _tensor(row, take, values):
    name, dtype, shape, *code = row
    base, _, int8 = dtype.partition(":")
    numel = math.prod(shape)
    positions = slice(None)
    if code and code[0] == "mask":
        positions = _ones(take["mask"](-(-numel // 8)))
    elif code:
        _, nnz, k, length = code
        positions = _rice(take["hi"](length), take["lo"](-(-nnz * k // 8)), nnz, k)
    stored = int8 or base
    count = code[1] if code else numel
    if stored in WORDS:
        found = values[stored](count)
    else:
        found = values[stored](count * np.dtype(TYPES[stored]).itemsize).view(TYPES[stored])
    dense = np.zeros(numel, found.dtype)
    dense[positions] = found
    if int8:
        scale = (take["scale"](2 * shape[0]).view("<u2").astype("<u4") << 16).view("<f4")
        dense = (dense.reshape(shape[0], -1).astype("<f4") * scale[:, None]).ravel()
        return (dense if base == "BF16" else dense.astype(TYPES[base])).reshape(shape)
    return _floats(dense, base).reshape(shape)


def _floats(words, dtype):
    if dtype == "BF16":
        return (words.astype("<u4") << np.uint32(16)).view("<f4")
    return words.view(TYPES[dtype])


def _ones(packed):
    return np.flatnonzero(np.unpackbits(packed, bitorder="little"))


def _rice(hi, lo, nnz, k):
    """Positions from the gaps between them: quotients in unary, then remainders of k bits."""
    quotients = np.diff(_ones(hi), prepend=-1) - 1
    bits = np.unpackbits(lo, bitorder="little")[:nnz * k].reshape(nnz, k)
    return np.cumsum((quotients << k) + bits @ (1 << np.arange(k)) + 1) - 1


def _of_format_1(stored, name, entry):
    if entry["encoding"] == "dense":
        return _dense(*stored[name])
    if entry["encoding"] == "mask":
        positions = _ones(stored[f"{name}.pwoa_mask"][1])
    else:
        positions = _rice(stored[f"{name}.pwoa_gap_hi"][1], stored[f"{name}.pwoa_gap_lo"][1], entry["nnz"],
                          entry["k"])
    values = stored[f"{name}.pwoa_values"][1].view(WORDS[entry["dtype"]])
    dense = np.zeros(math.prod(entry["shape"]), values.dtype)
    dense[positions] = values
    return _floats(dense, entry["dtype"]).reshape(entry["shape"])


def _dense(entry, raw):
    code = entry["dtype"]
    found = _floats(raw.view(WORDS[code]), code) if code in WORDS else raw.view(TYPES[code])
    return found.reshape(entry["shape"]).copy()


if __name__ == "__main__":
    for key, array in load(sys.argv[1]).items():
        print(f"{key:40} {array.dtype!s:8} {array.shape!s:20} {float((array == 0).mean()):7.2%} zeros")
