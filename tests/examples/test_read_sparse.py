"""examples/read_sparse.py alone, where there is no pwoa and no torch: what pwoa reads, bit for bit."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import sparse_v1
from helpers.sparse_files import equal, small_state, zeroed

from pwoa_cli.files import sparse

READER = Path(__file__).parents[2] / "examples/read_sparse.py"
SAVED = """
import sys
sys.path.insert(0, sys.argv[3])
import read_sparse, numpy
numpy.savez(sys.argv[2], **read_sparse.load(sys.argv[1]))
assert not {"torch", "pwoa_cli"} & sys.modules.keys()
try:
    import pwoa_cli
except ImportError:
    sys.exit(0)
sys.exit("pwoa is there")
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with nothing but numpy, to stand in for site-packages."""
    folder = tmp_path_factory.mktemp("alone")
    found = Path(np.__file__).parent
    for part in (found, found.with_name("numpy.libs")):
        if part.exists():
            (folder / part.name).symlink_to(part)
    return folder


def run(alone, *words):
    return subprocess.run([sys.executable, "-S", *map(str, words)], capture_output=True, text=True,
                          env={"PYTHONPATH": str(alone), "PATH": os.environ["PATH"]}, cwd=alone)


def read(alone, path, tmp_path):
    done = run(alone, "-c", SAVED, path, tmp_path / "out.npz", READER.parent)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as file:
        return {name: file[name] for name in file.files}


def state():
    return small_state() | {"double": zeroed((500,), 0.97, dtype=torch.float64, seed=4),
                            "half": zeroed((40, 30), 0.9, dtype=torch.float16, seed=5),
                            "complex": torch.tensor([1 + 2j]), "zeros": torch.zeros(30, 40)}


def same(arrays, tensors):
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        found = torch.from_numpy(arrays[name])
        if tensor.dtype == torch.bfloat16:  # numpy has none: they come as float32
            assert found.dtype == torch.float32
            found = found.to(torch.bfloat16)
        assert equal(found, tensor), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.int8])
def test_format_2(alone, tmp_path, dtype):
    sparse.save(state(), tmp_path / "m.safetensors", dtype=dtype)
    same(read(alone, tmp_path / "m.safetensors", tmp_path), sparse.load(tmp_path / "m.safetensors"))


def test_format_1_and_plain_files(alone, tmp_path):
    tensors = state()
    sparse_v1.save(tensors, tmp_path / "m.safetensors")
    same(read(alone, tmp_path / "m.safetensors", tmp_path), tensors)
    safetensors.torch.save_file(tensors, tmp_path / "plain.safetensors")
    found = read(alone, tmp_path / "plain.safetensors", tmp_path)
    same({name: found[name] for name in tensors}, tensors)


def test_the_command_and_a_damaged_file(alone, tmp_path):
    sparse.save({"w": zeroed((40, 30), 0.9)}, tmp_path / "m.safetensors")
    done = run(alone, READER, tmp_path / "m.safetensors")
    assert done.returncode == 0 and done.stdout.split()[:4] == ["w", "float32", "(40,", "30)"], done.stderr
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "m.safetensors").write_bytes(data)
    assert "its checksum differs" in run(alone, READER, tmp_path / "m.safetensors").stderr


def test_it_is_short_enough_to_copy():
    assert len(READER.read_text().splitlines()) < 150
