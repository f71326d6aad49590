"""FOLDER/train/CLASS/*.png and FOLDER/test or FOLDER/val: images that are decoded when they are asked for.

Legend: N images, B batch, C channels, H and W height and width.
"""
import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pwoa_cli.data import formats
from pwoa_cli.data.formats import Raw, reading
from pwoa_cli.errors import InputError


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded when they are asked for: files[index] is uint8 (B, C, H, W), on the
    CPU."""

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
    # Pillow decodes without the GIL
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")


def _decode(path: str, *, size: tuple[int, int], mode: str) -> Tensor:
    """(C, H, W) uint8: the image scaled until it covers `size`, then cut to it about the centre."""
    from PIL import Image
    from torchvision.transforms import functional

    with reading(Path(path), "an image"), Image.open(path) as file:
        if file.mode.startswith(("I", "F")):
            raise ValueError(f"pixels of mode {file.mode}, expected 8 bits a channel")
        image = file.convert(mode)
    if (image.height, image.width) != size:
        scale = max(size[0] / image.height, size[1] / image.width)
        image = functional.resize(image,
                                  [max(1, round(image.height * scale)), max(1, round(image.width * scale))])
        image = functional.center_crop(image, list(size))
    return torch.from_numpy(np.array(image)).reshape(*size, -1).permute(2, 0, 1)


def image_folder_splits(folder: Path) -> tuple[Path, Path] | None:
    """FOLDER/train and FOLDER/test (or FOLDER/val), if both hold folders."""
    def holds_folders(path: Path) -> bool:
        return path.is_dir() and any(entry.is_dir() for entry in path.iterdir())

    tests = [folder / name for name in ("test", "val") if holds_folders(folder / name)]
    return (folder / "train", tests[0]) if tests and holds_folders(folder / "train") else None


def read_image_folder(folder: Path, *, size: tuple[int, int] | None = None) -> Raw:
    """FOLDER/train/CLASS/*.png|jpg|... and FOLDER/test or FOLDER/val; classes are numbered in the order of
    their names.

    Images are 1-channel if the first one of every class is grey, otherwise RGB; scaled and centre-cropped to
    `size` (H, W), or left as they are if it is None. Up to SMALL_BYTES in all are decoded now, otherwise
    batch by batch.
    Raises: InputError if there are no two splits, their classes differ, a class is empty, the images are of
    different sizes while `size` is None, or one cannot be decoded.
    """
    splits = image_folder_splits(folder)
    if splits is None:
        raise InputError(f"{folder} has no train/CLASS/ beside test/CLASS/ or val/CLASS/.")
    classes, (train, test) = _class_names(splits), [_samples(split) for split in splits]
    paths = [path for path, _ in train + test]
    size, mode = size or _common_size(paths), _common_mode(train + test)
    x_train, x_test = (ImageFiles(tuple(path for path, _ in samples), size, mode)
                       for samples in (train, test))
    y_train, y_test = (torch.tensor([label for _, label in samples]) for samples in (train, test))
    if math.prod(x_train.shape) + math.prod(x_test.shape) > formats.SMALL_BYTES:
        return Raw(x_train, y_train, x_test, y_test, len(classes))
    decoded_train, decoded_test = (files[torch.arange(len(files))] for files in (x_train, x_test))
    return Raw(decoded_train, y_train, decoded_test, y_test, len(classes))


def _class_names(splits: tuple[Path, Path]) -> list[str]:
    from torchvision.datasets.folder import find_classes

    train, test = (find_classes(split)[0] for split in splits)
    for split, extra in zip(splits, (set(train) - set(test), set(test) - set(train)), strict=True):
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

    with reading(Path(path), "an image"), Image.open(path) as image:
        return (image.height, image.width), image.mode


def _common_size(paths: list[str]) -> tuple[int, int]:
    sizes = [size for size, _ in _pool().map(_header, paths)]
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        raise InputError(f"The images differ in size: {paths[0]} is {sizes[0]}, {paths[other]} "
                         f"{sizes[other]} (H, W).",
                         hint="They are resized where the model's input size is known; otherwise make them "
                              "equal.")
    return sizes[0]


def _common_mode(samples: list[tuple[str, int]]) -> str:
    """"L" if the first image of every class is grey: a single grey file among colour ones (as in ImageNet)
    says nothing."""
    first = {label: path for path, label in reversed(samples)}
    return "L" if all(mode in ("1", "L", "LA") for _, mode in _pool().map(_header, first.values())) else "RGB"
