"""Tensors with zeros, and sparse files as any safetensors reader sees them."""
import json

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


def stored(path):
    """Arrays, index and metadata of a file, as any safetensors reader sees them."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        arrays = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no dict)
        return arrays, json.loads(metadata["pwoa"]), metadata


def rewrite(path, edit):
    """Change a valid file through edit(arrays, index, metadata), which may change them in place."""
    arrays, index, metadata = stored(path)
    edit(arrays, index, metadata)
    if "pwoa" in metadata:
        metadata["pwoa"] = json.dumps(index)
    safetensors.torch.save_file(arrays, path, metadata=metadata)


def encodings(path):
    return {key: entry["encoding"] for key, entry in stored(path)[1]["tensors"].items()}


def assert_refused(path, *words):
    with pytest.raises(InputError) as caught:
        sparse.load(path)
    message = caught.value.message
    assert (str(path) in message and message.endswith(".") and "expected" in message
            and "\n" not in message), message
    assert caught.value.hint
    assert all(word in message for word in words), message
