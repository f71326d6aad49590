"""Data sets: where they are found, how they are fetched, and batches of them in [0, 1] on the device.

Small sets live on the device as uint8 and are augmented there, a batch at a time; large image folders are
decoded batch by batch. The formats on disk are read by `formats`.
Legend: N images, B batch, C channels, H and W height and width.
"""
import difflib
import http.client
import logging
import math
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pwoa_cli.data import classes as class_numbers
from pwoa_cli.data import colours, fetching, formats, image_folder, splits
from pwoa_cli.data.choices import Choices
from pwoa_cli.data.dataset import Augment, Dataset, Split
from pwoa_cli.data.pictures import Framing, ImageFiles
from pwoa_cli.errors import InputError
from pwoa_cli.machine.home import home
from pwoa_cli.progress import Patience, Say

_LOG = logging.getLogger(__name__)


class _Layout(NamedTuple):
    """How a known data set lies in a folder: `path` below it, holding `files`, or the file itself if they are
    ()."""

    path: str
    files: tuple[str, ...]
    read: Callable[[Path], formats.Raw]

    @property
    def split(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Files of training images, and of test images."""
        tests = 2 if self.read is formats.read_idx else 1
        return self.files[:-tests], self.files[-tests:]


@dataclass(frozen=True)
class _Known:
    shape: tuple[int, int, int]
    num_classes: int
    threat: tuple[str, float]
    augment: Augment
    torchvision: str
    layouts: tuple[_Layout, ...]


def _npz(name: str) -> _Layout:
    return _Layout(f"{name}.npz", (), formats.read_npz)


# Digits are not augmented: a flipped digit is none, and robust training on SVHN conventionally crops neither.
KNOWN = {
    "mnist": _Known((1, 28, 28), 10, ("linf", 0.3), "none", "MNIST", (
        _Layout("MNIST/raw", formats.IDX_FILES, formats.read_idx), _npz("mnist"))),
    "fashion-mnist": _Known((1, 28, 28), 10, ("linf", 0.1), "none", "FashionMNIST", (
        _Layout("FashionMNIST/raw", formats.IDX_FILES, formats.read_idx), _npz("fashion-mnist"))),
    "cifar10": _Known((3, 32, 32), 10, ("linf", 8 / 255), "crop-flip", "CIFAR10", (
        _Layout("cifar-10-batches-py", formats.CIFAR10_FILES, formats.read_cifar10), _npz("cifar10"))),
    "cifar100": _Known((3, 32, 32), 100, ("linf", 8 / 255), "crop-flip", "CIFAR100", (
        _Layout("cifar-100-python", formats.CIFAR100_FILES, formats.read_cifar100), _npz("cifar100"))),
    "svhn": _Known((3, 32, 32), 10, ("linf", 8 / 255), "none", "SVHN", (
        _Layout(".", formats.SVHN_FILES, formats.read_svhn), _npz("svhn"))),
}
_ALIASES = {name.replace("-", ""): name for name in KNOWN} | {"fmnist": "fashion-mnist"}


def known_name(text: str) -> str | None:
    """Name of the known data set that `text` means (CIFAR-10, fashion_mnist, ...), or None."""
    return _ALIASES.get(_bare(text))


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def candidates(shape: tuple[int, ...] | None, num_classes: int, *,
               channels: int | None = None) -> tuple[str, ...]:
    """Names of the known data sets that fit a model with input `shape` (C, H, W) (None: any) and
    `num_classes` outputs.

    Args: channels: C where only that is known of the shape.
    """
    return tuple(name for name, known in KNOWN.items()
                 if known.num_classes == num_classes and (shape is None or known.shape == tuple(shape))
                 and channels in (None, known.shape[0]))


# Finding

def places() -> tuple[Path, ...]:
    """Folders that are searched for a known name, in order: $PWOA_DATA, the cache, examples/data here and in
    the source."""
    folders = [_expanded(os.environ["PWOA_DATA"])] if os.environ.get("PWOA_DATA") else []
    folders += [_cache(), Path("examples/data").absolute(),
                Path(__file__).resolve().parents[2] / "examples" / "data"]
    return tuple(dict.fromkeys(folders))


def _expanded(text: str) -> Path:
    """A path with ~ replaced, where the home folder is known."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _cache() -> Path:
    return (home() or Path(tempfile.gettempdir())) / ".cache" / "pwoa" / "data"


def locate(name: str) -> Path | None:
    """Folder or file that holds a known data set, in the first of `places()` that has it; None if none has.

    Looks at names only, reads and downloads nothing. Raises: InputError if `name` is not a known one.
    """
    known = known_name(name)
    if known is None:
        raise _unknown(name)
    for place in places():
        if found := _find(known, place):
            return found[0]
    return None


def _ways(name: str, folder: Path, *, said: bool) -> Iterator[tuple[Path, _Layout]]:
    """Where the layouts of `name` may lie in FOLDER/name and FOLDER. The outer folders of a layout may be
    missing where a folder of that name, or who `said` so, tells whose files they are: those of MNIST and
    Fashion-MNIST have the same names."""
    for root in (folder / name, folder):
        for layout in KNOWN[name].layouts:
            parts = Path(layout.path).parts
            inner = len(parts) if layout.files and (said or root != folder) else 0
            yield from ((root.joinpath(*parts[outer:]), layout) for outer in range(inner + 1))


def _find(name: str, folder: Path, *, said: bool = False) -> tuple[Path, _Layout] | None:
    """The first layout of `name` that is complete in FOLDER/name or FOLDER. Args: said: as of `_ways`."""
    for path, layout in _ways(name, folder, said=said):
        if path.is_dir() and not _missing(path, layout) if layout.files else path.is_file():
            return path, layout
    return None


def _find_test(name: str, folder: Path) -> tuple[Path, _Layout] | None:
    """The first layout of `name` in FOLDER/name or FOLDER, a folder that was said, that has all files of test
    images and none of training images: `pwoa eval` needs none."""
    for path, layout in _ways(name, folder, said=True):
        train, test = layout.split
        if test and not set(test) & set(_missing(path, layout)) and not formats.some(path, train):
            return path, layout
    return None


def _missing(path: Path, layout: _Layout) -> list[str]:
    endings = ("", ".gz") if layout.read is formats.read_idx else ("",)
    return [name for name in layout.files
            if not any((path / f"{name}{ending}").is_file() for ending in endings)]


def _why_not(name: str, folder: Path, *, said: bool = False) -> str:
    """Why `folder` does not hold `name`, in a few words. Args: said: as of `_ways`."""
    if not folder.is_dir():
        return "no such folder"
    for path, layout in _ways(name, folder, said=said):
        missing = _missing(path, layout)
        if 0 < len(missing) < len(layout.files):
            return f"{path.relative_to(folder)} lacks {', '.join(missing)}"
    return "not there"


class _Found(NamedTuple):
    name: str
    where: Path
    layout: _Layout | None  # None: the user's own .npz or image folder


def _resolve(text: str, *, download: bool, say: Say) -> _Found:
    """What a name or path means: a known name wins over a folder of that name here (write ./mnist for the
    folder)."""
    if name := known_name(text):
        return _find_or_fetch(name, download=download, say=say, here=Path(text))
    path = _expanded(text)
    name = known_name(path.name)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise InputError(f"{path} is neither an .npz file nor a folder.", hint=_folder_of(path) or _NAMES)
        return _Found(known_name(path.stem) or path.stem, path, None)
    if name and path.parent.is_dir():
        return _require(name, path.parent)
    if path.name != text or path.suffix:
        raise InputError(f"{path}: no such file or folder.", hint=_NAMES)
    raise _unknown(text)


def _folder_of(path: Path) -> str:
    """How to say the folder of a published set, of which a file was named."""
    files = {file for known in KNOWN.values() for layout in known.layouts for file in layout.files}
    if path.name.removesuffix(".gz") in files and any(
            _find(name, path.parent, said=True) or _find_test(name, path.parent) for name in KNOWN):
        return f"Name the folder that it lies in: {_said(path.parent)}"
    return ""


def _said(folder: Path) -> str:
    """The option that names a folder; a known name alone is not one."""
    bare = "./" if len(folder.parts) == 1 and known_name(folder.name) else ""
    return f"--data {bare}{shlex.quote(str(folder))}"


_NAMES = f"A data set is one of {', '.join(KNOWN)}, a folder that holds one, an .npz file or an image folder."


def _unknown(name: str) -> InputError:
    close = [_ALIASES[match] for match in difflib.get_close_matches(_bare(name), _ALIASES, n=1, cutoff=0.5)]
    return InputError(f"Unknown data set {name!r}." + (f" Did you mean {close[0]}?" if close else ""),
                      hint=_NAMES)


def _require(name: str, folder: Path) -> _Found:
    if found := _find(name, folder, said=True) or _find_test(name, folder):
        return _Found(name, *found)
    raise InputError(f"{name} is not in {folder} ({_why_not(name, folder, said=True)}).", hint=_wanted(name))


def _wanted(name: str) -> str:
    files, npz = KNOWN[name].layouts
    return f"Expected {Path(files.path) / files.files[0]} and its companions there, or {npz.path}."


def _in_folder(folder: Path) -> _Found:
    """The one known data set in a folder or around it, or the image folder that it is; where it is neither,
    the one whose test images are there."""
    if found := _one_of(folder, partial(_find, said=True)):
        return found
    if splits.find(folder):
        return _Found(folder.name, folder, None)
    if found := _one_of(folder, _find_test):
        return found
    lacking = [f"{name}: {why}" for name in KNOWN
               if (why := _why_not(name, folder, said=True)) != "not there"]
    raise InputError(f"{folder} holds no known data set, nor train/CLASS/ and test/CLASS/ (or val/CLASS/) "
                     "with pictures.",
                     hint="\n".join([*lacking, _NAMES]))


def _one_of(folder: Path, find: Callable[[str, Path], tuple[Path, _Layout] | None]) -> _Found | None:
    """The known data set that `find` finds in a folder. Raises: InputError if there are several."""
    for word in Path(os.path.abspath(folder)).parts[:-3:-1]:  # MNIST/raw: the folder that it is in may tell
        if (name := known_name(word)) and (found := find(name, folder)):
            return _Found(name, *found)
    there = {name: found for name in KNOWN if (found := find(name, folder))}
    if len(there) > 1:
        alike = len({path for path, _ in there.values()}) == 1
        files, several = f"the files of {' or '.join(there)}", f"{len(there)} data sets: {', '.join(there)}"
        raise InputError(f"{folder} holds {files if alike else several}.",
                         hint=f"Say which one: {_said(folder / next(iter(there)))}")
    return next((_Found(name, *found) for name, found in there.items()), None)


def _find_or_fetch(name: str, *, download: bool, say: Say, here: Path) -> _Found:
    for place in places():
        if found := _find(name, place):
            return _Found(name, *found)
        _LOG.debug("  %s is not in %s: %s", name, place, _why_not(name, place))
    looked = [f"  {place} ({_why_not(name, place)})" for place in places()]
    if download:
        say(f"fetching {name} into {_cache()}")
        try:
            fetching.download(name, kind=KNOWN[name].torchvision, cache=_cache())
            return _require(name, _cache())
        # what torchvision and urllib raise
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            looked.append(f"  the network ({' '.join(str(error).split()) or type(error).__name__})")
    put = (f"Put it into {_cache()}, name its folder with --data DIR, or set PWOA_DATA=DIR. "
           f"{_wanted(name)}")
    raise InputError("\n".join([f"The data set {name} was not found. Looked in:", *looked]),
                     hint=f"If the folder {here} holds it: {_said(here)}\n{put}" if here.is_dir() else put)


# Loading

def load(name_or_path: str, *, device: str | torch.device = "cpu", framing: Framing | None = None,
         channels: int | None = None, classes: int | None = None, choices: Choices | None = None,
         download: bool = True, say: Say = lambda text: None) -> Dataset:
    """Read a data set: a known name, a folder that holds one (or DIR/NAME), an .npz file or an image folder.

    A folder's pictures are decoded when they are asked for: `decoded` keeps them in memory.
    Args: framing: how an image folder's pictures become images of the model's size; arrays keep their size,
    so compare `shape` with the model. channels, classes: of the model, None: the data's own. choices: what
    the user says. download: fetch a known data set that is in none of `places()`.
    Raises: InputError if it is unknown, missing (with every place searched), ambiguous, broken or not what it
    should be.
    """
    choices = choices or Choices()
    name, where, layout = _resolve(str(name_or_path), download=download, say=say)
    if layout is None and where.is_dir():
        choices.check_for_folders(str(where))
        folder = image_folder.read_image_folder(where, framing=framing, channels=channels, classes=classes,
                                                choices=choices, patience=Patience(say))
        made = _dataset(name, where, folder.raw, device, notes=folder.notes)
        return replace(_described(made, choices), own_size=folder.own_size, reordered=folder.reordered)
    choices.check_for_arrays(str(where))
    raw = layout.read(where) if layout else formats.read_npz(where, channels=channels)
    raw, known, own = _own(raw, name, where, layout, classes=classes, choices=choices)
    raw, converted = colours.fitted(raw, channels)
    made = _dataset(name, where, raw, device, notes=(*own, *converted))
    if known:
        made = replace(made, augment=known.augment, threat=known.threat, num_classes=known.num_classes)
    return _described(made, choices)


def _own(raw: formats.Raw, name: str, where: Path, layout: _Layout | None, *, classes: int | None,
         choices: Choices) -> tuple[formats.Raw, _Known | None, tuple[str, ...]]:
    """(arrays with labels from 0, the known data set that they are, what is said); the user's own file has
    as many classes as the model, if its labels are among those."""
    known = KNOWN.get(name)
    shape = tuple(raw.x_test.shape[1:])
    if known and (shape != known.shape or raw.num_classes > known.num_classes):
        if layout:
            raise InputError(f"{where} has images {shape} in {raw.num_classes} classes, "
                             f"expected {known.shape} in {known.num_classes} for {name}.")
        known = None  # the user's own file with a familiar name
    if known and not choices.labels_from:
        return raw, known, () if len(raw.y_train) else ("only test images are there",)
    y_train, y_test = (class_numbers.from_zero(y, str(where), first=choices.labels_from)
                       for y in (raw.y_train, raw.y_test))
    count = raw.num_classes - choices.labels_from
    least = min(int(y.min()) for y in (y_train, y_test) if len(y))
    class_numbers.check_range(least, count - 1, str(where), classes=classes)
    kept = classes if classes is not None and count <= classes else count
    notes = [f"labels count from {choices.labels_from}"] if choices.labels_from else []
    notes += [] if len(y_train) else ["only test images are there"]
    return raw._replace(y_train=y_train, y_test=y_test, num_classes=kept), None, tuple(notes)


def _dataset(name: str, where: Path, raw: formats.Raw, device: str | torch.device, *,
             notes: tuple[str, ...]) -> Dataset:
    channels, height, width = raw.x_test.shape[1:]
    return Dataset(name=name, where=str(where), shape=(channels, height, width), num_classes=raw.num_classes,
                   augment="none", threat=None,
                   present=class_numbers.present([raw.y_test], classes=raw.num_classes),
                   train=_split(raw.x_train, raw.y_train, device),
                   test=_split(raw.x_test, raw.y_test, device), notes=notes)


def _described(dataset: Dataset, choices: Choices) -> Dataset:
    """That test images have some of the classes only is said, and what accuracy means then."""
    if not 0 < len(dataset.present) < dataset.num_classes:
        return dataset
    note = f"its test images are of {len(dataset.present)} of {dataset.num_classes} classes"
    over = "" if choices.logits == "data" else f"; accuracy is over all {dataset.num_classes} logits"
    return replace(dataset, notes=(*dataset.notes, note + over))


def decoded(dataset: Dataset, *, say: Say = lambda text: None) -> Dataset:
    """The data set with its pictures in memory if they need no more than SMALL_BYTES there; else as it is."""
    files = [split.images for split in (dataset.train, dataset.test)]
    if not all(isinstance(images, ImageFiles) for images in files):
        return dataset
    if sum(math.prod(images.shape) for images in files) > formats.SMALL_BYTES:
        return dataset
    patience = Patience(say)
    return replace(dataset, size_said=dataset.size_words(), shown=None,
                   train=dataset.train.decoded("training images", patience),
                   test=dataset.test.decoded("test images", patience))


def _split(images: formats.Images, labels: Tensor, device: str | torch.device) -> Split:
    if isinstance(images, Tensor) and images.nbytes <= formats.SMALL_BYTES:
        images = images.to(device)
    return Split(images, labels.to(device))
