"""examples/benchmarks/sparse_size.py: sizes in closed form, and the command."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.sparse_files import zeroed

from pwoa_cli.files import sparse

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/sparse_size.py"


def test_the_table(tmp_path):
    state = {"w": zeroed((200, 100), 0.9), "bias": torch.ones(200)}
    size = sparse.save(state, tmp_path / "pruned.safetensors")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "pruned.safetensors"], capture_output=True,
                          text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    head, _, row = done.stdout.strip().splitlines()
    found = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    nnz = int((state["w"] != 0).sum())
    assert found["file"] == "pruned" and found["zeros"] == f"{100 * (1 - nnz / 20000):.1f}%"
    assert float(found["bitmask"]) == pytest.approx((4 * nnz + 2500 + 800) / 1000, abs=0.05)
    assert float(found["dense"]) == pytest.approx(80.8, abs=0.3)
    assert float(found["CSR"]) == pytest.approx((8 * nnz + 4 * 201 + 800) / 1000, rel=0.3)
    assert float(found["pwoa"]) == pytest.approx(size / 1000, abs=0.06)
    assert float(found["limit"]) == pytest.approx(sparse.limit_bytes(state) / 1000, abs=0.06)
    assert float(found["int8"]) < float(found["bf16"]) < float(found["pwoa"]) < float(found["zstd"])
