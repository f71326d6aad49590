"""Picture files: how one of any size and mode becomes an image of the size and channels of a network.

Legend: N images, B batch, C channels, H and W height and width.
"""
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pwoa_cli.errors import InputError, reading
from pwoa_cli.machine.memory import check_room
from pwoa_cli.progress import Patience

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
CROPS_FROM = 128  # networks for smaller images saw them whole; for larger ones 224 of 256 is shown
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
MOST_SIDE = 2**16  # of an image
MOST_PIXELS = 2**30 // 12  # of a picture: from there on Pillow warns of a bomb
WORKERS = min(16, os.cpu_count() or 1)
_CHUNK = 256  # headers read at a time


@dataclass(frozen=True)
class Framing:
    """How a picture becomes one of `size` (H, W): scaled until it covers `scaled` (H, W), cut about the
    centre.

    squashed: scaled to `scaled` itself, whatever the picture's proportions. by: who says so, for people.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    interpolation: str = "bilinear"
    squashed: bool = False
    by: str = ""

    def words(self) -> str:
        """For people: scaled to 256x256 (bicubic), centre 224x224 kept (timm)."""
        verb = "squashed to" if self.squashed else "scaled to cover"
        cut = "" if self.scaled == self.size else f", centre {sides(self.size)} kept"
        return f"{verb} {sides(self.scaled)} ({self.interpolation}){cut}{self.by and f' ({self.by})'}"


def read_framing(said: object) -> Framing | None:
    """A framing from its fields, as a file or a library says them; None if they are none."""
    if not isinstance(said, dict) or said.keys() != {f.name for f in fields(Framing)}:
        return None
    pairs = [said["size"], said["scaled"]]
    fine = (all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
            and all(type(side) is int and 0 < side < MOST_SIDE for pair in pairs for side in pair)
            and said["interpolation"] in INTERPOLATIONS and type(said["squashed"]) is bool
            and isinstance(said["by"], str))
    return Framing(**said | {"size": tuple(pairs[0]), "scaled": tuple(pairs[1])}) if fine else None


def sides(size: tuple[int, int]) -> str:
    """For people: 64x64."""
    return f"{size[0]}x{size[1]}"


def standard(size: tuple[int, int], *, by: str) -> Framing:
    """What most figures on ImageNet were measured with: Resize(256), CenterCrop(224), or that proportion of
    another size; small images whole."""
    height, width = size
    crops = min(size) >= CROPS_FROM
    scaled = (round(height * 256 / 224), round(width * 256 / 224)) if crops else size
    return Framing(size, scaled, by=by)


@dataclass(frozen=True)
class ImageFiles:
    """Picture files that are decoded when they are asked for: files[index] is uint8 (B, C, H, W), on the
    CPU. framing: None: they are of `size` as they are."""

    paths: tuple[str, ...]
    size: tuple[int, int]
    mode: str  # "L", "RGB" or "RGBA"
    framing: Framing | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), as of a tensor."""
        channels = next(count for count, mode in MODES.items() if mode == self.mode)
        return len(self.paths), channels, *self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> Tensor:
        chosen = [self.paths[i] for i in index.tolist()]
        images = torch.empty(len(chosen), *self.shape[1:], dtype=torch.uint8)
        decode = functools.partial(_decode, size=self.size, mode=self.mode, framing=self.framing)
        for row, image in enumerate(_pool().map(decode, chosen)):
            images[row] = image
        return images


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # Pillow decodes without the GIL
    return ThreadPoolExecutor(WORKERS, thread_name_prefix="decode")


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A Pillow image; what is no picture of 8 bits a channel is refused, naming the file."""
    from PIL import Image

    again = "Remove the file, or save it again as PNG."
    with reading(path, "an image", hint=again), Image.open(path) as file:
        _check(path, file)
        yield file


def _check(path: str, file: Any) -> None:
    if file.mode.startswith(("I", "F")):
        raise InputError(f"{path} has pixels of {'16 bits' if ';16' in file.mode else '32 bits'} (mode "
                         f"{file.mode}), expected 8 bits a channel.",
                         hint="Convert the pictures to 8 bits, by the range that the network was trained "
                              "with, or save them as floats 0..1 in an .npz file: x / 65535.")
    pixels = file.width * file.height
    if pixels > MOST_PIXELS:
        raise InputError(f"{path} is refused: it has {pixels} pixels, expected at most {MOST_PIXELS}.",
                         hint="Remove the file, or make it smaller.")
    check_room(pixels * 4 * WORKERS, f"{path} and as many such pictures as are decoded together")


def _decode(path: str, *, size: tuple[int, int], mode: str, framing: Framing | None) -> Tensor:
    """(C, H, W) uint8: the picture in a mode, framed."""
    with _opened(path) as file:
        image = file.convert(mode)
    if framing is not None:
        image = _framed(image, framing)
    elif (image.height, image.width) != size:
        raise InputError(f"{path} is {(image.height, image.width)}, expected {size} (H, W).")
    return torch.from_numpy(np.array(image)).reshape(*size, -1).permute(2, 0, 1)


def _framed(image: Any, framing: Framing) -> Any:
    from torchvision.transforms import InterpolationMode, functional

    height, width = framing.scaled
    target = [height, width]
    if not framing.squashed and height == width:  # as torchvision and timm round it
        target = [height]
    elif not framing.squashed:
        scale = max(height / image.height, width / image.width)
        target = [max(1, round(image.height * scale)), max(1, round(image.width * scale))]
    image = functional.resize(image, target, InterpolationMode(framing.interpolation))
    return functional.center_crop(image, list(framing.size))


def _header(path: str) -> tuple[tuple[int, int], str]:
    """((H, W), mode) of a picture, without decoding it."""
    with _opened(path) as image:
        return (image.height, image.width), image.mode


def other_size(paths: Sequence[str],
               patience: Patience) -> tuple[tuple[int, int], tuple[str, tuple[int, int]] | None]:
    """((H, W) of the first picture, the first one of another size with its own, or None)."""
    first = _header(paths[0])[0]
    for start in range(0, len(paths), _CHUNK):
        chunk = paths[start:start + _CHUNK]
        for path, (size, _) in zip(chunk, _pool().map(_header, chunk), strict=True):
            if size != first:
                return first, (path, size)
        patience.say(f"comparing sizes of pictures: {start + len(chunk)} of {len(paths)}")
    return first, None


def common_channels(paths: Sequence[str]) -> int:
    """1 if all of some pictures are grey, else 3."""
    return 1 if all(mode in ("1", "L", "LA") for _, mode in _pool().map(_header, paths)) else 3
