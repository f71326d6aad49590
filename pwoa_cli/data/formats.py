"""Readers of image classification data on disk: IDX, CIFAR pickles, MATLAB 5 and .npz.

Every reader takes a path and returns a `Raw`: images uint8 0..255 (or float32 0..1) of shape (N, C, H, W),
labels int64 (N,). What is missing, broken or of another shape is an InputError that names the file. Nothing
is written, nothing that a file names is imported, and torchvision is used where it does not do either (its
readers of IDX and CIFAR do).
"""
import gzip
import io
import math
import os
import pickle
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pwoa_cli.errors import InputError, one_line, reading
from pwoa_cli.files.arrays import read_arrays
from pwoa_cli.machine.memory import check_room

# up to here the decoded images are kept in memory, beyond it they are decoded batch by batch
SMALL_BYTES = 2 * 2**30
MOST_PACKED = 1032  # bytes that deflate makes of one at most (zlib's documentation)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k")
                  for kind in ("images-idx3", "labels-idx1"))
CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR100_FILES = ("train", "test")
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")

AGAIN = "Fetch the file again."


class Images(Protocol):
    """Images (N, C, H, W): a tensor, or files that are decoded when they are asked for (image_folder.py)."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class Raw(NamedTuple):
    """Train and test images (N, C, H, W), with labels (N,) int64 in 0..num_classes - 1. Only test images:
    N is 0 in train."""

    x_train: Images
    y_train: Tensor
    x_test: Images
    y_test: Tensor
    num_classes: int


# Arrays: from whatever shape and type a file has to (N, C, H, W) and (N,)

def _images(array: np.ndarray, what: str, channels: int | None = None) -> Tensor:
    """Tensor (N, C, H, W) of images NHW, NHWC or NCHW, uint8 or float in 0..1 (kept: rounding to uint8 moves
    pixels). channels: of the network, where they may be others than 1 or 3."""
    if array.ndim not in (3, 4) or not array.size:
        raise InputError(f"{what} has shape {array.shape}, expected images (N,H,W), (N,H,W,C) or (N,C,H,W).")
    if array.dtype.kind == "f":
        array = _unit_range(array, what)
    elif array.dtype != np.uint8:
        raise InputError(f"{what} has dtype {array.dtype}, expected uint8 0..255 or floats 0..1.",
                         hint="Save it as uint8.")
    array = array[:, None] if array.ndim == 3 else _channels_first(array, what, channels)
    return torch.from_numpy(np.require(array, requirements=["C", "W", "O"]))


def _unit_range(array: np.ndarray, what: str) -> np.ndarray:
    array = array.astype(np.float32, copy=False)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN fails both comparisons
        raise InputError(f"{what} has float values from {low:g} to {high:g}, expected 0..1 (or uint8 "
                         "0..255).",
                         hint="Save the images unnormalised: the normalisation belongs to the model "
                              "(--mean, --std).")
    return array


def _channels_first(array: np.ndarray, what: str, channels: int | None) -> np.ndarray:
    wanted = (channels,) if channels in (array.shape[1], array.shape[3]) else (1, 3)
    first, last = array.shape[1] in wanted, array.shape[3] in wanted
    if first == last:
        wish = "1 nor 3" if channels in (None, 1, 3) else f"1, 3 nor the network's {channels}"
        problem = "could be (N,H,W,C) or (N,C,H,W)" if first else f"has neither {wish} channels"
        raise InputError(f"{what} has shape {array.shape}, which {problem}.",
                         hint="Save it as (N,C,H,W) with the channels of the network.")
    return array if first else array.transpose(0, 3, 1, 2)


def _labels(array: np.ndarray, what: str) -> Tensor:
    """Tensor (N,) int64 of class numbers (N,) or (N, 1)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{what} has shape {array.shape}, expected class numbers (N,){_several(array)}.",
                         hint="From one-hot: y.argmax(1)." if _is_one_hot(array) else
                         "Robust accuracy is that of one class an image: save the class of each image, and "
                         "leave out the images that have none or several.")
    if array.dtype.kind not in "iu":
        raise InputError(f"{what} has dtype {array.dtype}, expected integer class numbers from 0.")
    if array.size and int(array.min()) < 0:
        raise InputError(f"{what} holds the label {array.min()}, expected class numbers from 0.")
    return torch.from_numpy(np.require(array.astype(np.int64), requirements=["C", "W", "O"]))


def _is_one_hot(array: np.ndarray) -> bool:
    return bool(array.ndim == 2 and np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all())


def _several(array: np.ndarray) -> str:
    """What rows of labels are, if not one-hot."""
    if array.ndim != 2 or _is_one_hot(array) or not np.isin(array, (0, 1)).all():
        return ""
    least, most = int(array.sum(1).min()), int(array.sum(1).max())
    return f", and it is not one-hot: rows hold {least} to {most} classes"


def from_arrays(arrays: dict[str, np.ndarray], where: Path, *, channels: int | None = None) -> Raw:
    """Validated `Raw` of the ARRAYS, of which the training ones may be missing; images NHW, NHWC or NCHW,
    uint8 or float in 0..1.

    Args: channels: of the network, where they may be others than 1 or 3.
    Raises: InputError naming `where`, the array, what it is and what was expected.
    """
    x_test, y_test = _labelled("test", arrays, where, channels)
    if "x_train" not in arrays:
        return Raw(x_test[:0], y_test[:0], x_test, y_test, int(y_test.max()) + 1)
    x_train, y_train = _labelled("train", arrays, where, channels)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise InputError(f"{where}: training images are {tuple(x_train.shape[1:])}, test images "
                         f"{tuple(x_test.shape[1:])}.")
    if x_train.dtype != x_test.dtype:  # one is uint8 0..255, the other float 0..1: both are right, but ask
        raise InputError(f"{where}: x_train is {x_train.dtype}, x_test {x_test.dtype}, expected the same.")
    return Raw(x_train, y_train, x_test, y_test, int(max(y_train.max(), y_test.max())) + 1)


def _labelled(split: str, arrays: dict[str, np.ndarray], where: Path,
              channels: int | None) -> tuple[Tensor, Tensor]:
    """Images and labels of one split."""
    x = _images(arrays[f"x_{split}"], f"{where}: x_{split}", channels)
    y = _labels(arrays[f"y_{split}"], f"{where}: y_{split}")
    if len(x) != len(y):
        raise InputError(f"{where}: x_{split} has {len(x)} images but y_{split} has {len(y)} labels.")
    return x, y


def read_npz(path: Path, *, channels: int | None = None) -> Raw:
    """The arrays x_train, y_train, x_test, y_test of an .npz file (no pickled objects); the first two may be
    missing together.

    Args: channels: of the network, where they may be others than 1 or 3.
    Raises: InputError naming the array that is missing or wrong, or the file if it is broken.
    """
    with reading(path, "an .npz file", hint=AGAIN):
        arrays, there = read_arrays(path, ARRAYS)
    only_test = "x_train" not in arrays and "y_train" not in arrays
    missing = [key for key in ARRAYS if key not in arrays and not (only_test and key.endswith("train"))]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; it holds "
                         f"{one_line(', '.join(there)[:200]) or 'nothing'}.",
                         hint="Expected np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...).")
    return from_arrays(arrays, path, channels=channels)


# IDX: MNIST and Fashion-MNIST. torchvision's MNIST class unpacks .gz beside the archive; here nothing is
# written.

def read_idx(folder: Path) -> Raw:
    """The four IDX files of MNIST or Fashion-MNIST in `folder`, plain or gzipped; only the two of test images
    where neither of the others is there."""
    return from_arrays({key: _idx(folder / name) for key, name in zip(ARRAYS, IDX_FILES, strict=True)
                        if key.endswith("test") or some(folder, IDX_FILES[:2])}, folder)


def some(folder: Path, names: Sequence[str]) -> bool:
    """Whether any of these names is there, be it a link that leads nowhere: then it is asked for."""
    return any(os.path.lexists(folder / f"{name}{ending}") for name in names for ending in ("", ".gz"))


def _idx(path: Path) -> np.ndarray:
    """uint8 array of one IDX file: 0, 0, 8 (uint8), rank, the dimensions as big-endian uint32, the values."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with reading(path, "an IDX file", hint=AGAIN), opened(path, "rb") as file:
        start = file.read(4)
        zeros, dtype, rank = struct.unpack(">HBB", start)
        if zeros or dtype != 8:
            raise ValueError(f"starts with {start[:3].hex()}, expected 000008")
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        _check_claim(path, math.prod(shape), packed=path.suffix == ".gz")
        data = file.read(math.prod(shape) + 1)  # one more, to see that it ends there
        if len(data) != math.prod(shape):
            raise ValueError(f"{len(data)} bytes of values or more, expected {math.prod(shape)}")
        return np.frombuffer(data, np.uint8).reshape(shape)


def _check_claim(path: Path, size: int, *, packed: bool) -> None:
    """Before memory is taken: what a file says it holds can be in it, and there is room for it."""
    most = path.stat().st_size * (MOST_PACKED if packed else 1)
    if size > most:
        raise ValueError(f"it claims {size} bytes, a file of its size holds at most {most}")
    check_room(size, f"{path}: what it holds")


# CIFAR. torchvision's class runs pickle.load, safe only because it first compares MD5 sums with those of the
# official archives: re-packed or shortened batches would be refused, and without that check a batch could run
# any code. This unpickler knows arrays and nothing else, so no sum is needed.

class _Made:
    """What a batch's pickle makes of NumPy's: its arguments and its state, and nothing of NumPy itself, whose
    own functions take memory, and addresses, from a pickle."""

    def __init__(self, *args: Any):
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Filled(_Made):
    """numpy's _reconstruct, with the state (version, shape, dtype, column order, bytes)."""

    def array(self) -> np.ndarray:
        _, shape, dtype, columns, content = self.state
        return _array(content, dtype, shape, "F" if columns else "C")


class _Buffer(_Made):
    """numpy's _frombuffer, of (bytes, dtype, shape, order): protocol 5."""

    def array(self) -> np.ndarray:
        return _array(*self.args)


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    code = dtype.args[0] if type(dtype) is _Made else None
    if code not in ("u1", "|u1", "uint8"):
        raise ValueError(f"the images are {str(code)[:20]}, expected uint8")
    content = content.encode("latin1") if isinstance(content, str) else content  # protocol 2 of Python 2
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in protocol 2: _codecs.encode(text, 'latin1')."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_PICKLE_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _Made, ("_codecs", "encode"): _latin1}
for _module in ("numpy.core", "numpy._core"):  # the name before and since numpy 2
    _PICKLE_ALLOWED[f"{_module}.multiarray", "_reconstruct"] = _Filled
    _PICKLE_ALLOWED[f"{_module}.numeric", "_frombuffer"] = _Buffer


# the one in Python: the one in C takes memory for whatever memo index a file names
class _ArrayUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are allowed")
        return _PICKLE_ALLOWED[module, name]


def read_cifar10(folder: Path) -> Raw:
    """The python batches (cifar-10-batches-py); only that of test images where none of the others is
    there."""
    return _cifar(folder, CIFAR10_FILES)


def read_cifar100(folder: Path) -> Raw:
    """The python batches with fine labels (cifar-100-python); only the test images where `train` is not
    there."""
    return _cifar(folder, CIFAR100_FILES)


def _cifar(folder: Path, files: Sequence[str]) -> Raw:
    *train, test = files
    arrays = {}
    if some(folder, train):
        batches = zip(*(_cifar_batch(folder / name) for name in train), strict=True)
        arrays["x_train"], arrays["y_train"] = (np.concatenate(parts) for parts in batches)
    arrays["x_test"], arrays["y_test"] = _cifar_batch(folder / test)
    return from_arrays(arrays, folder)


def _cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with reading(path, "a CIFAR batch", hint=AGAIN):
        check_room(path.stat().st_size, f"{path}: what it holds")
        # the archives are Python 2's
        entry = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        images, labels = entry["data"], entry["labels" if "labels" in entry else "fine_labels"]
        return images.array().reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


# SVHN. torchvision's class needs scipy for .mat files: a large dependency for two arrays in a documented
# layout, and its reader ends the whole process on some damaged files (1.17: a bus error in read_var_array),
# which no `except` can turn into a sentence. So it is the oracle of tests, and no extra.

_MAT_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8",
              13: "<u8"}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15


def read_svhn(folder: Path) -> Raw:
    """train_32x32.mat (which may be missing) and test_32x32.mat: X (32, 32, 3, N) uint8 and y (N, 1) in
    1..10, where 10 is the digit 0."""
    arrays = {}
    for split, name in zip(("train", "test"), SVHN_FILES, strict=True):
        if split == "train" and not some(folder, [name]):
            continue
        with reading(folder / name, "a MATLAB 5 file", hint=AGAIN):
            check_room((folder / name).stat().st_size, f"{folder / name}: what it holds")
            found = _mat_arrays((folder / name).read_bytes(), folder / name)
            arrays[f"x_{split}"] = found["X"].transpose(3, 2, 0, 1)
            arrays[f"y_{split}"] = np.where(found["y"] == 10, 0, found["y"]).astype(np.int64)
    return from_arrays(arrays, folder)


def _mat_arrays(data: bytes, path: Path) -> dict[str, np.ndarray]:
    """Numeric arrays by name (MAT-File Format, "Level 5 MAT-Files": header, then tagged elements, often
    zlib'ed)."""
    if data[126:128] != b"IM":
        raise ValueError("not a little-endian MATLAB 5 file (version 7.3 is HDF5: save it with -v7)")
    arrays, view, position = {}, memoryview(data), 128
    while position < len(view):
        kind, body, position = _mat_element(view, position)
        if kind == _MAT_COMPRESSED:
            unpacker = zlib.decompressobj()
            start = unpacker.decompress(body, 8)
            size = 8 + struct.unpack("<4xI", start)[0]
            _check_claim(path, size, packed=True)
            rest = unpacker.decompress(unpacker.unconsumed_tail, size)
            kind, body, _ = _mat_element(memoryview(start + rest), 0)
        if kind == _MAT_MATRIX:
            _, _, at = _mat_element(body, 0)  # flags
            _, dims, at = _mat_element(body, at)
            _, name, at = _mat_element(body, at)
            dtype, values, _ = _mat_element(body, at)
            if dtype in _MAT_TYPES:
                shape = struct.unpack(f"<{len(dims) // 4}i", dims)
                flat = np.frombuffer(values, _MAT_TYPES[dtype])
                arrays[bytes(name).decode("ascii")] = flat.reshape(shape, order="F")
    return arrays


def _mat_element(view: memoryview, position: int) -> tuple[int, memoryview, int]:
    """(type, body, position of the next element) of the element at `position`; up to 4 bytes stand inside the
    tag."""
    kind, size = struct.unpack_from("<II", view, position)
    if kind >> 16:
        return kind & 0xFFFF, view[position + 4:position + 4 + (kind >> 16)], position + 8
    body = view[position + 8:position + 8 + size]
    if len(body) < size:
        raise EOFError(f"ends after {len(view)} bytes inside an element of {size}")
    return kind, body, position + 8 + size + (-size % 8 if kind != _MAT_COMPRESSED else 0)

