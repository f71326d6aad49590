"""Tensors with zeros, and sparse files as any safetensors reader sees them."""
import json
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from pwoa_cli.errors import InputError
from pwoa_cli.files import sparse

FLOATS = tuple(sparse.FLOATS)
WORD = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def bits(tensor):
    return tensor.contiguous().view(WORD[tensor.element_size()]) if tensor.dtype in FLOATS else tensor


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def zeroed(shape, sparsity, *, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(shape, generator=generator) >= sparsity
    return torch.where(keep, torch.randn(shape, generator=generator) + 3, 0).to(dtype)


def small_state():
    return {"conv.weight": zeroed((8, 4, 3, 3), 0.9), "linear.weight": zeroed((60, 50), 0.95, seed=1),
            "half.weight": zeroed((32, 64), 0.5, dtype=torch.bfloat16, seed=2), "bias": torch.ones(5),
            "bn.count": torch.tensor(7), "flag": torch.tensor([True, False])}


def opened(path):
    """Index, streams as they are stored, and metadata of a file of format 2."""
    with safe_open(path, framework="pt") as file:
        blob, metadata = file.get_tensor("pwoa").numpy().tobytes(), file.metadata()
    start = 8 + int.from_bytes(blob[4:8], "little")
    index = json.loads(zlib.decompress(blob[8:start], -15))
    streams, at = [], start
    for length in index["streams"]:
        streams.append(blob[at:at + abs(length)])
        at += abs(length)
    return index, streams, metadata


def framed(index, streams):
    """The blob of an index (an object, or its JSON text) and streams, with its checksum."""
    coder = zlib.compressobj(6, zlib.DEFLATED, -15)
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    small = coder.compress(text) + coder.flush()
    rest = len(small).to_bytes(4, "little") + small + b"".join(streams)
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def written(path, blob, metadata, *, dtype=np.uint8, name="pwoa"):
    """A safetensors file of one array."""
    array = torch.from_numpy(np.frombuffer(blob, dtype).copy())
    safetensors.torch.save_file({name: array}, path, metadata=metadata)


def rewrite(path, edit):
    """Change a valid file through edit(rows by name, index, streams), which may change them in place."""
    index, streams, metadata = opened(path)
    edit({row[0]: row for row in index["tensors"]}, index, streams)
    written(path, framed(index, streams), metadata)


def encodings(path):
    return {row[0]: (row[3] if len(row) > 3 else "") for row in opened(path)[0]["tensors"]}


def assert_refused(path, *words):
    with pytest.raises(InputError) as caught:
        sparse.load(path)
    message = caught.value.message
    assert (str(path) in message and message.endswith(".") and "expected" in message
            and "\n" not in message), message
    assert caught.value.hint
    assert all(word in message for word in words), message
