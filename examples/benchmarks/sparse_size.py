"""Bytes of pruned models in the ways that people store them, beside the entropy limit.

    .venv/bin/python examples/benchmarks/sparse_size.py RUN/model.safetensors RUN2/model.safetensors

One row a file: dense safetensors; that compressed by zstd (level 19); values and one bit an element; CSR as
torch.save writes it (int32 indices, matrices of output channels; other tensors dense); pwoa's file with
float32 values, bfloat16 values and int8 values with scales; the limit (whole float32 values and the index's
entropy). Metadata is left out everywhere. The pruned models' accuracy is not looked at: `pwoa export --dtype`
measures it.
"""
import argparse
import io
import tempfile
import warnings
from pathlib import Path

import safetensors.torch
import torch
import zstandard
from torch import Tensor

from pwoa_cli.files import sparse

HEAD = ("file", "zeros", "dense", "zstd", "bitmask", "CSR", "pwoa", "of the limit", "bf16", "int8", "limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for path in parser.parse_args().files:
        print(f"| {' | '.join(row(path))} |", flush=True)


def row(path: Path) -> list[str]:
    """One file's figures, in kB of 1000 bytes."""
    state = sparse.load(path)
    limit, ours = sparse.limit_bytes(state), written(state)
    sizes = [dense(state), zstd(state), bitmask(state), csr(state), ours]
    weights = torch.cat([tensor.flatten() for tensor in state.values() if tensor.ndim > 1])
    return [f"{path.parent.name}/{path.name}" if path.stem == "model" else path.stem,
            f"{100 * float((weights == 0).float().mean()):.1f}%",
            *(f"{size / 1000:,.1f}" for size in sizes), f"{ours / limit:.3f}",
            *(f"{written(state, dtype) / 1000:,.1f}" for dtype in (torch.bfloat16, torch.int8)),
            f"{limit / 1000:,.1f}"]


def written(state: dict[str, Tensor], dtype: torch.dtype | None = None) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return sparse.save(state, Path(folder, "m.safetensors"), dtype=dtype)


def dense(state: dict[str, Tensor]) -> int:
    return len(safetensors.torch.save(state))


def zstd(state: dict[str, Tensor]) -> int:
    return len(zstandard.ZstdCompressor(level=19).compress(safetensors.torch.save(state)))


def bitmask(state: dict[str, Tensor]) -> int:
    """Nonzero values and a bit for each element; what would be larger stays dense. Without any header."""
    return sum(min(dense_bytes, int((t != 0).sum()) * t.element_size() + -(-t.numel() // 8))
               for t in state.values() for dense_bytes in (t.numel() * t.element_size(),))


def csr(state: dict[str, Tensor]) -> int:
    """torch.save of the tensors that are smaller so as CSR, the others dense."""
    kept = {}
    for name, t in state.items():
        kept[name] = t
        if t.ndim > 1 and 2 * int((t != 0).sum()) < t.numel():
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # CSR is a beta of torch
                rows = t.flatten(1).to_sparse_csr()
            kept[name] = torch.sparse_csr_tensor(rows.crow_indices().int(), rows.col_indices().int(),
                                                 rows.values(), rows.shape, check_invariants=True)
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    return buffer.tell()


if __name__ == "__main__":
    main()
