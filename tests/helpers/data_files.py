"""Small data sets in the formats that the tests of data.py read, and a place where no others can be found."""
import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from pwoa_cli.data import datasets, formats


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data set can be found but those that a test makes, and no network can be reached."""
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("PWOA_DATA", raising=False)
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "source" / "pwoa_cli" / "data" / "datasets.py"))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # discard: refuses at once
    monkeypatch.chdir(cwd)
    return tmp_path


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def digits(n, classes=10):
    return (np.arange(n) * 7 % classes).astype(np.uint8)


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, *, ending="", skip=()):
    """MNIST-like files; returns the four arrays in the order of formats.ARRAYS."""
    folder.mkdir(parents=True)
    arrays = pixels(12, 28, 28), digits(12), pixels(10, 28, 28, seed=1), digits(10)
    for name, array in zip(formats.IDX_FILES, arrays, strict=True):
        if name not in skip:
            content = idx_bytes(array)
            (folder / f"{name}{ending}").write_bytes(gzip.compress(content) if ending else content)
    return arrays


def write_npz(path, **changes):
    arrays = {"x_train": pixels(12, 6, 5, 3), "y_train": digits(12), "x_test": pixels(8, 6, 5, 3, seed=1),
              "y_test": digits(8)}
    arrays |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def equal(split, images, labels):
    """Every batch of a split is the images / 255 in float32, and the labels."""
    x, y = split.batch(torch.arange(len(split)))
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    expected = images if images.dtype.kind == "f" else images.astype(np.float32) / np.float32(255)
    return np.array_equal(x.numpy(), expected) and np.array_equal(y.numpy(), labels)


def cifar_batch(path, images, labels, key, protocol=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"batch_label": "b", key: labels.tolist(),
                                   "data": images.reshape(len(images), -1),
                                   "filenames": [b"a.png"]}, protocol=protocol))


def write_folder(folder, *, sizes=((8, 8),), mode="RGB", test="test"):
    """Lossless images of the given sizes in turn, two classes; returns the training images (H, W, C) in
    reading order."""
    images = []
    for split, n in (("train", 3), (test, 2)):
        for label, name in enumerate(["cat", "dog"]):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                image = pixels(*sizes[i % len(sizes)], *(() if mode == "L" else (3,)), seed=10 * label + i)
                Image.fromarray(image).save(folder / split / name / f"{i}.png")
                images += [image] if split == "train" else []
    return images
