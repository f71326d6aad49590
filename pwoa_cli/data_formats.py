"""Readers of image classification data on disk: IDX, CIFAR pickles, MATLAB 5, .npz and image folders.

Every reader takes a path and returns a `Raw`: images uint8 0..255 (or float32 0..1) of shape (N, C, H, W), labels int64
(N,). What is missing, broken or of another shape is an InputError that names the file. Nothing is written, nothing that
a file names is imported, and torchvision is used where it does not do either (its readers of IDX and CIFAR do).
"""
import contextlib
import functools
import gzip
import io
import math
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pwoa_cli.errors import InputError

SMALL_BYTES = 2 * 2**30  # up to here the decoded images are kept in memory, beyond it they are decoded batch by batch
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR100_FILES = ("train", "test")
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")

# What numpy, zipfile, zlib, gzip, pickle and Pillow raise on broken bytes (pickle's documentation: "not necessarily
# limited to AttributeError, EOFError, ImportError, and IndexError"; a wrong length may ask for any
# amount of memory). Only parsing stands inside `_reading`.
_BROKEN = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SyntaxError, OverflowError,
           MemoryError, zlib.error, struct.error, pickle.UnpicklingError, zipfile.BadZipFile, tokenize.TokenError)


class Raw(NamedTuple):
    """Train and test images (N, C, H, W), a tensor or `ImageFiles`, with labels (N,) int64 in 0..num_classes - 1."""

    x_train: "Tensor | ImageFiles"
    y_train: Tensor
    x_test: "Tensor | ImageFiles"
    y_test: Tensor
    num_classes: int


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        reason = str(error).strip() or type(error).__name__
        raise InputError(f"{path} cannot be read as {kind}, it is broken or truncated: {reason}.",
                         hint="Fetch the file again.") from error


# Arrays: from whatever shape and type a file has to (N, C, H, W) and (N,)

def _images(array: np.ndarray, what: str) -> Tensor:
    """Tensor (N, C, H, W) of images NHW, NHWC or NCHW, uint8 or float in 0..1 (kept: rounding to uint8 moves pixels)."""
    if array.ndim not in (3, 4) or not array.size:
        raise InputError(f"{what} has shape {array.shape}, expected images (N,H,W), (N,H,W,C) or (N,C,H,W).")
    if array.dtype.kind == "f":
        array = _unit_range(array, what)
    elif array.dtype != np.uint8:
        raise InputError(f"{what} has dtype {array.dtype}, expected uint8 0..255 or floats 0..1.", hint="Save it as uint8.")
    array = array[:, None] if array.ndim == 3 else _channels_first(array, what)
    return torch.from_numpy(np.require(array, requirements=["C", "W", "O"]))


def _unit_range(array: np.ndarray, what: str) -> np.ndarray:
    array = array.astype(np.float32, copy=False)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN fails both comparisons
        raise InputError(f"{what} has float values from {low:g} to {high:g}, expected 0..1 (or uint8 0..255).",
                         hint="Save the images unnormalised: the normalisation belongs to the model (--mean, --std).")
    return array


def _channels_first(array: np.ndarray, what: str) -> np.ndarray:
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    if first == last:
        problem = "could be (N,H,W,C) or (N,C,H,W)" if first else "has neither 1 nor 3 channels"
        raise InputError(f"{what} has shape {array.shape}, which {problem}.", hint="Save it as (N,C,H,W) with C 1 or 3.")
    return array if first else array.transpose(0, 3, 1, 2)


def _labels(array: np.ndarray, what: str) -> Tensor:
    """Tensor (N,) int64 of class numbers (N,) or (N, 1)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{what} has shape {array.shape}, expected class numbers (N,).", hint="From one-hot: y.argmax(1).")
    if array.dtype.kind not in "iu":
        raise InputError(f"{what} has dtype {array.dtype}, expected integer class numbers from 0.")
    if array.size and int(array.min()) < 0:
        raise InputError(f"{what} holds the label {array.min()}, expected class numbers from 0.")
    return torch.from_numpy(np.require(array.astype(np.int64), requirements=["C", "W", "O"]))


def from_arrays(arrays: dict[str, np.ndarray], where: Path) -> Raw:
    """Validated `Raw` of the four ARRAYS; images NHW, NHWC or NCHW, uint8 or float in 0..1.

    Raises: InputError naming `where`, the array, what it is and what was expected.
    """
    x_train, x_test = (_images(arrays[key], f"{where}: {key}") for key in ("x_train", "x_test"))
    y_train, y_test = (_labels(arrays[key], f"{where}: {key}") for key in ("y_train", "y_test"))
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise InputError(f"{where}: x_{split} has {len(x)} images but y_{split} has {len(y)} labels.")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise InputError(f"{where}: training images are {tuple(x_train.shape[1:])}, test images {tuple(x_test.shape[1:])}.")
    if x_train.dtype != x_test.dtype:  # one is uint8 0..255, the other float 0..1: both are right, but ask
        raise InputError(f"{where}: x_train is {x_train.dtype}, x_test {x_test.dtype}, expected the same.")
    return Raw(x_train, y_train, x_test, y_test, int(max(y_train.max(), y_test.max())) + 1)


def read_npz(path: Path) -> Raw:
    """The arrays x_train, y_train, x_test, y_test of an .npz file (no pickled objects).

    Raises: InputError naming the array that is missing or wrong, or the file if it is broken.
    """
    with _reading(path, "an .npz file"), open(path, "rb") as file:  # np.load(path) would leave a broken file open
        if not zipfile.is_zipfile(file):
            raise ValueError("not a zip archive of arrays")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            there = list(archive.files)
            arrays = {key: archive[key] for key in ARRAYS if key in there}
    missing = [key for key in ARRAYS if key not in arrays]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(there) or 'nothing'}.",
                         hint="Expected np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...).")
    return from_arrays(arrays, path)


# IDX: MNIST and Fashion-MNIST. torchvision's MNIST class unpacks .gz beside the archive; here nothing is written.

def read_idx(folder: Path) -> Raw:
    """The four IDX files of MNIST or Fashion-MNIST in `folder`, plain or gzipped."""
    return from_arrays(dict(zip(ARRAYS, (_idx(folder / name) for name in IDX_FILES))), folder)


def _idx(path: Path) -> np.ndarray:
    """uint8 array of one IDX file: 0, 0, 8 (uint8), rank, the dimensions as big-endian uint32, the values."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    with _reading(path, "an IDX file"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, dtype, rank = struct.unpack_from(">HBB", data)
        if zeros or dtype != 8:
            raise ValueError(f"starts with {data[:3].hex()}, expected 000008")
        shape = struct.unpack_from(f">{rank}I", data, 4)
        if len(data) - 4 - 4 * rank != math.prod(shape):
            raise ValueError(f"{len(data) - 4 - 4 * rank} bytes of values, expected {math.prod(shape)}")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


# CIFAR. torchvision's class runs pickle.load, safe only because it first compares MD5 sums with those of the official
# archives: re-packed or shortened batches would be refused, and without that check a batch could run any code. This
# unpickler knows arrays and nothing else, so no sum is needed.

_ARRAY = np.empty(0, np.uint8)
_PICKLE_ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for _module in ("numpy.core", "numpy._core"):  # the name before and since numpy 2
    _PICKLE_ALLOWED[f"{_module}.multiarray", "_reconstruct"] = _ARRAY.__reduce__()[0]
    _PICKLE_ALLOWED[f"{_module}.numeric", "_frombuffer"] = _ARRAY.__reduce_ex__(5)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in protocol 2: _codecs.encode(text, 'latin1')."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_PICKLE_ALLOWED["_codecs", "encode"] = _latin1


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are allowed")
        return _PICKLE_ALLOWED[module, name]


def read_cifar(folder: Path) -> Raw:
    """The python batches of CIFAR-10 (cifar-10-batches-py) or, with fine labels, CIFAR-100 (cifar-100-python)."""
    *train, test = CIFAR100_FILES if (folder / "train").is_file() else CIFAR10_FILES
    batches = [_cifar_batch(folder / name) for name in train]
    x_test, y_test = _cifar_batch(folder / test)
    x_train, y_train = (np.concatenate(parts) for parts in zip(*batches))
    return from_arrays(dict(zip(ARRAYS, (x_train, y_train, x_test, y_test))), folder)


def _cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with _reading(path, "a CIFAR batch"):
        entry = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()  # the archives are Python 2's
        images, labels = entry["data"], entry["labels" if "labels" in entry else "fine_labels"]
        if images.dtype != np.uint8:
            raise ValueError(f"the images are {images.dtype}, expected uint8")
        return images.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


# SVHN. torchvision's class needs scipy for .mat files, a large dependency for two arrays in a documented layout.

_MAT_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15


def read_svhn(folder: Path) -> Raw:
    """train_32x32.mat and test_32x32.mat: X (32, 32, 3, N) uint8 and y (N, 1) in 1..10, where 10 is the digit 0."""
    arrays = {}
    for split, name in zip(("train", "test"), SVHN_FILES):
        with _reading(folder / name, "a MATLAB 5 file"):
            found = _mat_arrays((folder / name).read_bytes())
            arrays[f"x_{split}"] = found["X"].transpose(3, 2, 0, 1)
            arrays[f"y_{split}"] = np.where(found["y"] == 10, 0, found["y"]).astype(np.int64)
    return from_arrays(arrays, folder)


def _mat_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Numeric arrays by name (MAT-File Format, "Level 5 MAT-Files": header, then tagged elements, often zlib'ed)."""
    if data[126:128] != b"IM":
        raise ValueError("not a little-endian MATLAB 5 file (version 7.3 is HDF5: save it with -v7)")
    arrays, view, position = {}, memoryview(data), 128
    while position < len(view):
        kind, body, position = _mat_element(view, position)
        if kind == _MAT_COMPRESSED:
            kind, body, _ = _mat_element(memoryview(zlib.decompress(body)), 0)
        if kind == _MAT_MATRIX:
            _, _, at = _mat_element(body, 0)  # flags
            _, dims, at = _mat_element(body, at)
            _, name, at = _mat_element(body, at)
            dtype, values, _ = _mat_element(body, at)
            if dtype in _MAT_TYPES:
                shape = struct.unpack(f"<{len(dims) // 4}i", dims)
                arrays[bytes(name).decode("ascii")] = np.frombuffer(values, _MAT_TYPES[dtype]).reshape(shape, order="F")
    return arrays


def _mat_element(view: memoryview, position: int) -> tuple[int, memoryview, int]:
    """(type, body, position of the next element) of the element at `position`; up to 4 bytes stand inside the tag."""
    kind, size = struct.unpack_from("<II", view, position)
    if kind >> 16:
        return kind & 0xFFFF, view[position + 4:position + 4 + (kind >> 16)], position + 8
    body = view[position + 8:position + 8 + size]
    if len(body) < size:
        raise EOFError(f"ends after {len(view)} bytes inside an element of {size}")
    return kind, body, position + 8 + size + (-size % 8 if kind != _MAT_COMPRESSED else 0)


# Image folders

@dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded when they are asked for: files[index] is uint8 (B, C, H, W), on the CPU."""

    paths: tuple[str, ...]
    size: tuple[int, int]
    mode: str  # "L" or "RGB"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), as of a tensor."""
        return len(self.paths), 1 if self.mode == "L" else 3, *self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> Tensor:
        chosen = [self.paths[i] for i in index.tolist()]
        images = torch.empty(len(chosen), *self.shape[1:], dtype=torch.uint8)
        decode = functools.partial(_decode, size=self.size, mode=self.mode)
        for row, image in enumerate(_pool().map(decode, chosen)):
            images[row] = image
        return images


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")  # Pillow decodes without the GIL


def _decode(path: str, *, size: tuple[int, int], mode: str) -> Tensor:
    """(C, H, W) uint8: the image scaled until it covers `size`, then cut to it about the centre."""
    from PIL import Image
    from torchvision.transforms import functional

    with _reading(Path(path), "an image"), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"pixels of mode {image.mode}, expected 8 bits a channel")
        image = image.convert(mode)
    if (image.height, image.width) != size:
        scale = max(size[0] / image.height, size[1] / image.width)
        image = functional.resize(image, [max(1, round(image.height * scale)), max(1, round(image.width * scale))])
        image = functional.center_crop(image, list(size))
    return torch.from_numpy(np.array(image)).reshape(*size, -1).permute(2, 0, 1)


def image_folder_splits(folder: Path) -> tuple[Path, Path] | None:
    """FOLDER/train and FOLDER/test (or FOLDER/val), if both hold folders."""
    def holds_folders(path: Path) -> bool:
        return path.is_dir() and any(entry.is_dir() for entry in path.iterdir())

    tests = [folder / name for name in ("test", "val") if holds_folders(folder / name)]
    return (folder / "train", tests[0]) if tests and holds_folders(folder / "train") else None


def read_image_folder(folder: Path, *, size: tuple[int, int] | None = None) -> Raw:
    """FOLDER/train/CLASS/*.png|jpg|... and FOLDER/test or FOLDER/val; classes are numbered in the order of their names.

    Images are 1-channel if the first one of every class is grey, otherwise RGB; scaled and centre-cropped to `size` (H, W),
    or left as they are if it is None. Up to SMALL_BYTES in all are decoded now, otherwise batch by batch.
    Raises: InputError if there are no two splits, their classes differ, a class is empty, the images are of different
    sizes while `size` is None, or one cannot be decoded.
    """
    splits = image_folder_splits(folder)
    if splits is None:
        raise InputError(f"{folder} has no train/CLASS/ beside test/CLASS/ or val/CLASS/.")
    classes, (train, test) = _class_names(splits), [_samples(split) for split in splits]
    paths = [path for path, _ in train + test]
    size, mode = size or _common_size(paths), _common_mode(train + test)
    x_train, x_test = (ImageFiles(tuple(path for path, _ in samples), size, mode) for samples in (train, test))
    y_train, y_test = (torch.tensor([label for _, label in samples]) for samples in (train, test))
    if math.prod(x_train.shape) + math.prod(x_test.shape) <= SMALL_BYTES:
        x_train, x_test = (files[torch.arange(len(files))] for files in (x_train, x_test))
    return Raw(x_train, y_train, x_test, y_test, len(classes))


def _class_names(splits: tuple[Path, Path]) -> list[str]:
    from torchvision.datasets.folder import find_classes

    train, test = (find_classes(split)[0] for split in splits)
    for split, extra in zip(splits, (set(train) - set(test), set(test) - set(train))):
        if extra:
            raise InputError(f"{splits[0]} has {len(train)} classes and {splits[1]} {len(test)}: "
                             f"only {split.name} has {', '.join(sorted(extra)[:5])}.",
                             hint="Both need the same folders, one a class.")
    return train


def _samples(split: Path) -> list[tuple[str, int]]:
    """(path, class number) of every image below a split."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        return make_dataset(split, find_classes(split)[1], extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise InputError(f"{split}: {error}") from error


def _header(path: str) -> tuple[tuple[int, int], str]:
    """((H, W), mode) of an image, without decoding it."""
    from PIL import Image

    with _reading(Path(path), "an image"), Image.open(path) as image:
        return (image.height, image.width), image.mode


def _common_size(paths: list[str]) -> tuple[int, int]:
    sizes = [size for size, _ in _pool().map(_header, paths)]
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        raise InputError(f"The images differ in size: {paths[0]} is {sizes[0]}, {paths[other]} {sizes[other]} (H, W).",
                         hint="They are resized where the model's input size is known; otherwise make them equal.")
    return sizes[0]


def _common_mode(samples: list[tuple[str, int]]) -> str:
    """"L" if the first image of every class is grey: a single grey file among colour ones (as in ImageNet) says nothing."""
    first = {label: path for path, label in reversed(samples)}
    return "L" if all(mode in ("1", "L", "LA") for _, mode in _pool().map(_header, first.values())) else "RGB"
