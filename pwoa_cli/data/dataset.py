"""A data set in memory or on disk: splits, batches in [0, 1] on the device, and what was inferred of it.

Legend: N images, B batch, C channels, H and W height and width.
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pwoa_cli.data import formats
from pwoa_cli.data.pictures import ImageFiles, sides
from pwoa_cli.files.hashes import state_sha256
from pwoa_cli.machine.seeds import generator
from pwoa_cli.progress import Patience, Say

_DECODED_TOGETHER = 128
_FINGERPRINT = 64  # images of a split

Augment = Literal["none", "crop-flip", "hard"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one part of a data set, in the order of the files.

    images: (N, C, H, W) uint8 0..255 or float32 0..1, or files of them. labels: (N,) int64 on the device of
    the batches.
    """

    images: formats.Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def home(self) -> torch.device:
        """Where images are picked from: the device, or the CPU if they are too many or files."""
        return self.images.device if isinstance(self.images, Tensor) else torch.device("cpu")

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 in [0, 1] (B, C, H, W) and labels int64 (B,) at `index` (B,) int64, which may be on
        any device."""
        device = self.labels.device
        x = self.images[index.to(self.home)].to(device)
        return x if x.is_floating_point() else x.float() / 255, self.labels[index.to(device)]

    def part(self, index: Tensor) -> "Split":
        """The images and labels at `index` (B,) int64 as a split of its own; files stay files."""
        if isinstance(self.images, ImageFiles):
            chosen = tuple(self.images.paths[i] for i in index.tolist())
            images: formats.Images = replace(self.images, paths=chosen)
        else:
            images = self.images[index.to(self.home)]
        return Split(images, self.labels[index.to(self.labels.device)])

    def decoded(self, what: str, patience: Patience) -> "Split":
        """With the pictures of its files in memory, on the device. Args: what: they are, for people."""
        images = torch.empty(tuple(self.images.shape), dtype=torch.uint8)
        for start in range(0, len(self), _DECODED_TOGETHER):
            index = torch.arange(start, min(start + _DECODED_TOGETHER, len(self)))
            images[index] = self.images[index]
            patience.say(f"decoding pictures: {start + len(index)} of {len(self)} {what}")
        return replace(self, images=images.to(self.labels.device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set for image classification; `augment` and `threat` (norm, eps) are its field's conventions.

    train: empty where only test images are there. notes: what was inferred of its images and labels, for
    people. own_size: (H, W) that all pictures of a folder have. reordered: class numbers in another order
    that the folders' names allow, by those that were taken. present: class numbers of its test images.
    size_said: `size_words` of pictures that are decoded already. shown: the images of the probe that are
    decoded already. taken: fields of `Choices` that labelled images decided.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    shape: tuple[int, int, int]
    augment: Augment
    threat: tuple[str, float] | None
    where: str
    notes: tuple[str, ...] = ()
    own_size: tuple[int, int] | None = None
    reordered: Tensor | None = None
    present: tuple[int, ...] = ()
    size_said: str = ""
    shown: Split | None = None
    taken: Mapping[str, Any] = field(default_factory=dict)

    @property
    def probe(self) -> Split:
        """The images on which it is settled how a model is read: training images, or test images without
        those."""
        return self.shown or (self.train if len(self.train) else self.test)

    def probed(self, n: int, *, say: Say) -> "Dataset":
        """With n images of the probe, `drawn` from it, decoded once for all readings; as it is where they are
        in memory already, or would need too much of it."""
        split = self.probe
        index = drawn(len(split), n)
        few = isinstance(split.images, ImageFiles) and math.prod((n, *self.shape)) <= formats.SMALL_BYTES // 4
        if not few:
            return self
        return replace(self, shown=split.part(index).decoded("to try it on", Patience(say)))

    @property
    def probe_name(self) -> str:
        """For people: training images."""
        return "training images" if len(self.train) else "test images"

    def sha256(self) -> str:
        """Tells data of one name apart: SHA-256 of all labels and of a few images, spread over each split."""
        parts: dict[str, Tensor] = {}
        for name, split in (("train", self.train), ("test", self.test)):
            index = torch.linspace(0, len(split) - 1, min(_FINGERPRINT, len(split))).long()
            parts |= {f"{name} images": split.images[index], f"{name} labels": split.labels}
        return state_sha256(parts)

    def unframed(self, size: tuple[int, int]) -> "Dataset":
        """The same pictures as they are, all of `size` (H, W). Of folders that are not decoded yet."""
        def again(split: Split) -> Split:
            assert isinstance(split.images, ImageFiles)
            return replace(split, images=replace(split.images, size=size, framing=None))

        return replace(self, shape=(self.shape[0], *size), train=again(self.train), test=again(self.test))

    def is_scaled(self) -> bool:
        """Whether pictures are scaled or cut."""
        own = sides(self.shape[1:])
        return self.size_words() not in (own, f"{own}, as the pictures are")

    def size_words(self) -> str:
        """For people: 64x64, as the pictures are."""
        files = self.test.images
        if not isinstance(files, ImageFiles):
            return self.size_said or sides(self.shape[1:])
        if files.framing is None:
            return f"{sides(files.size)}, as the pictures are"
        own = f"pictures of {sides(self.own_size)}" if self.own_size else "pictures of different sizes"
        return f"{sides(files.size)}: {own} are {files.framing.words()}"

    def of_some_classes(self) -> "Dataset":
        """The test images with the classes that they have numbered from 0; without training images."""
        device = self.test.labels.device
        labels = torch.searchsorted(torch.tensor(self.present, device=device), self.test.labels)
        said = f"accuracy is over the logits of the {len(self.present)} classes of its test images only"
        return replace(self, test=replace(self.test, labels=labels), num_classes=len(self.present),
                       train=Split(self.test.images[torch.arange(0)], labels[:0]), shown=None,
                       notes=(*self.notes, said))

    def in_other_order(self) -> "Dataset":
        """The same images with the class numbers of `reordered`."""
        def again(split: Split) -> Split:
            assert self.reordered is not None
            return replace(split, labels=self.reordered.to(split.labels.device)[split.labels])

        return replace(self, train=again(self.train), test=again(self.test),
                       shown=self.shown and again(self.shown))


def drawn(total: int, n: int) -> Tensor:
    """Indices of n of so many images, all of them if there are fewer, (n,) long: always the same ones, in an
    order of chance, so that the first part is a fair sample too. At even distances they would be of few
    classes where classes take turns."""
    return torch.randperm(total, generator=generator(0, "images"))[:n]
