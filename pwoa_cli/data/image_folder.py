"""FOLDER/train/CLASS/*.png and FOLDER/test or FOLDER/val: labelled pictures that are decoded when they are
asked for.

Legend: N images, B batch, C channels, H and W height and width.
"""
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pwoa_cli.data import classes as class_numbers
from pwoa_cli.data import pictures, splits
from pwoa_cli.data.choices import Choices
from pwoa_cli.data.formats import Raw
from pwoa_cli.data.pictures import Framing, ImageFiles
from pwoa_cli.data.splits import Splits
from pwoa_cli.errors import InputError
from pwoa_cli.machine.memory import check_room
from pwoa_cli.progress import Patience


class Folder(NamedTuple):
    """What a folder of pictures holds. own_size: (H, W) of all pictures, None if they differ. reordered:
    class numbers in the order of numbers, by those in the order of text; None where that is no question."""

    raw: Raw
    own_size: tuple[int, int] | None
    reordered: Tensor | None
    notes: tuple[str, ...]


def read_image_folder(folder: Path, *, framing: Framing | None = None, channels: int | None = None,
                      classes: int | None = None, choices: Choices | None = None,
                      patience: Patience | None = None) -> Folder:
    """The pictures of FOLDER/train/CLASS and FOLDER/test/CLASS (val, valid, ...), hidden ones left out.

    Args: framing: of pictures that are not of its size already; None: they are left as they are. channels:
    1, 3 or 4 of the images; None: 1 if the first one of every class is grey, otherwise 3. classes: of the
    model.
    Raises: InputError if there is no test split, the splits' classes differ or are not known, a class is
    empty, the pictures are of different sizes without `framing`, or one cannot be read.
    """
    choices, patience = choices or Choices(), patience or Patience(lambda text: None)
    found = splits.find(folder)
    if found is None:
        raise InputError(f"{folder} has no test/CLASS/ or val/CLASS/.")
    names = _class_names(found, mapped=choices.class_map is not None)
    numbers, notes = class_numbers.numbered(names, str(folder), classes=classes, choices=choices)
    parts = [splits.samples(split, {name: numbers[name] for name in splits.class_folders(split)},
                            patience)
             for split in (found.train, found.test) if split]
    hidden = [*_skipped("hidden pictures", [path for _, unseen, _ in parts for path in unseen]),
              *_skipped("files that are no pictures", [path for *_, others in parts for path in others])]
    samples = [pair for labelled, *_ in parts for pair in labelled]
    size, own = _size([path for path, _ in samples], framing, patience)
    mode, converted = _mode(samples, channels)
    made = [(ImageFiles(tuple(path for path, _ in part), size, mode, None if own == size else framing),
             torch.tensor([label for _, label in part])) for part, *_ in parts]
    test, train = made[-1], made[0] if found.train else _none_of(made[-1])
    count = classes or max(numbers.values()) + 1
    return Folder(Raw(*train, *test, count), own, _reordered(names, choices, classes),
                  (*found.notes, *hidden, *notes, *converted))


def _skipped(what: str, paths: list[str]) -> list[str]:
    more = ", ..." if len(paths) > 1 else ""
    return [f"skipped {len(paths)} {what} ({Path(paths[0]).name}{more})"] if paths else []


def _none_of(split: tuple[ImageFiles, Tensor]) -> tuple[ImageFiles, Tensor]:
    files, labels = split
    return ImageFiles((), files.size, files.mode, files.framing), labels[:0]


def _class_names(found: Splits, *, mapped: bool) -> list[str]:
    """Of all splits; they must have the same ones, but where a map says what each is."""
    test = splits.class_folders(found.test)
    train = splits.class_folders(found.train) if found.train else test
    if mapped:
        return sorted({*train, *test})
    for split, extra in ((found.train, set(train) - set(test)), (found.test, set(test) - set(train))):
        if extra and split:
            raise InputError(f"{found.train} has {len(train)} classes and {found.test} {len(test)}: "
                             f"only {split.name} has {', '.join(sorted(extra)[:5])}.",
                             hint="Both need the same folders, one a class.")
    return train


def _reordered(names: list[str], choices: Choices, classes: int | None) -> Tensor | None:
    open_question = not choices.class_map and not choices.class_order and classes in (None, len(names))
    if not open_question or not class_numbers.ordered_differently(names):
        return None
    by_number = sorted(names, key=int)
    return torch.tensor([by_number.index(name) for name in names])


def _size(paths: list[str], framing: Framing | None,
          patience: Patience) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """((H, W) of the images, of the pictures or None if they differ)."""
    first, other = pictures.other_size(paths, patience)
    if framing is None and other:
        raise InputError(f"The images differ in size: {paths[0]} is {first}, {other[0]} {other[1]} (H, W).",
                         hint="Say the size that the network was trained with: --image-size 224")
    height, width = framing.scaled if framing else first
    check_room(4 * height * width * pictures.WORKERS, f"{paths[0]} and those like it, {height}x{width},")
    return framing.size if framing else first, None if other else first


def _mode(samples: list[tuple[str, int]], channels: int | None) -> tuple[str, tuple[str, ...]]:
    """(Pillow's mode, what is said of it). A single grey file among colour ones (as in ImageNet) says
    nothing."""
    if channels not in (None, *pictures.MODES):
        raise InputError(f"The network takes images of {channels} channels; picture files are read as 1, 3 "
                         "or 4.", hint="Save them as arrays (N,C,H,W) in an .npz file: --data FILE.npz")
    first = {label: path for path, label in reversed(samples)}
    own = pictures.common_channels(list(first.values()))
    words = {1: "grey pictures are", 3: "pictures in colour are"}
    to = {1: "made grey", 3: "repeated to 3 channels", 4: "read with their alpha channel"}
    notes = () if channels in (None, own) else (f"{words[own]} {to[channels or own]}, as the network takes "
                                                f"{channels}",)
    return pictures.MODES[channels or own], notes
