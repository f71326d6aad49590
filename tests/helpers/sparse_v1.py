"""Writes format 1 of the sparse file as pwoa 0.1.0 did, so that its reader is tried for ever."""
import json

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open

from pwoa_cli.files import rice
from pwoa_cli.files.packed import FLOATS, is_nonzero, words_of
from pwoa_cli.files.sparse_v1 import PARTS

ARRAY_HEADER_BYTES, INDEX_HEADER_BYTES = 75, 70


def save(tensors, path, *, metadata=None, encodings=tuple(PARTS)):
    """Write contiguous tensors."""
    arrays, index = {}, {}
    for key, tensor in tensors.items():
        index[key], parts = encoded(key, tensor, encodings)
        arrays.update(parts)
    text = json.dumps({"version": 1, "tensors": index}, separators=(",", ":"), ensure_ascii=False)
    safetensors.torch.save_file(arrays, path, metadata={**(metadata or {}), "pwoa": text})


def encoded(key, tensor, encodings):
    """Index entry and stored arrays of one tensor, in the smallest of some encodings."""
    if tensor.dtype not in FLOATS:
        return {"encoding": "dense"}, {key: tensor.clone()}
    words = words_of(tensor)
    nonzero = is_nonzero(words)
    positions = np.flatnonzero(nonzero)
    k, rice_bytes = rice.best_k(positions)
    values_bytes = len(positions) * words.itemsize
    sizes = {"dense": words.nbytes, "mask": values_bytes + -(-words.size // 8),
             "rice": values_bytes + rice_bytes}
    encoding = min(encodings, key=lambda name: sizes[name] + header_bytes(key, name))
    if encoding == "dense":
        return {"encoding": "dense"}, {key: tensor.clone()}
    entry = {"encoding": encoding, "shape": list(tensor.shape), "dtype": FLOATS[tensor.dtype],
             "nnz": len(positions)}
    streams = (np.packbits(nonzero, bitorder="little"),)
    if encoding == "rice":
        entry["k"] = k
        streams = rice.encode(positions, k=k)
    parts = (tensor.flatten()[torch.from_numpy(positions)], *map(torch.from_numpy, streams))
    return entry, {f"{key}.pwoa_{part}": array for part, array in zip(PARTS[encoding], parts, strict=True)}


def header_bytes(key, encoding):
    """About how much longer the header is than with a dense tensor."""
    parts = PARTS[encoding]
    return (len(parts) - 1) * (ARRAY_HEADER_BYTES + len(key)) + INDEX_HEADER_BYTES if parts else 0


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
