"""Which parts of a folder are training and test images by class, and what there is no part of: hidden names,
a test split without labels."""
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pwoa_cli.errors import InputError
from pwoa_cli.progress import Patience

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
_NO_DATA = ("__macosx", "thumbs.db", "desktop.ini")  # what macOS and Windows leave in folders and archives
_LOOKED_AT = 200  # files of a folder among which a picture is looked for


class Splits(NamedTuple):
    """Folders with a folder a class. train: None where there is only a test split. notes: what was skipped or
    inferred."""

    train: Path | None
    test: Path
    notes: tuple[str, ...]


def hidden(name: str) -> bool:
    """Whether a file or folder is no data by its name: .ipynb_checkpoints, ._000.png, __MACOSX, ..."""
    return name.startswith(".") or name.casefold() in _NO_DATA


def class_folders(path: Path) -> list[str]:
    """Names of the folders in one, in the order of text; without hidden ones."""
    if not path.is_dir():
        return []
    return sorted(entry.name for entry in path.iterdir() if not hidden(entry.name) and entry.is_dir())


def find(folder: Path) -> Splits | None:
    """The splits of a folder, or the folder itself as a test split if it holds folders of pictures; None if
    neither."""
    named = {name.casefold(): folder / name for name in class_folders(folder)}
    if not named.keys() & {*TRAIN, *TEST}:
        return _itself(folder)
    train = next((named[name] for name in TRAIN if name in named and class_folders(named[name])), None)
    tests = [named[name] for name in TEST if name in named and class_folders(named[name])]
    if not tests:
        return None
    test = _best(train, tests)
    flat = [named[name] for name in TEST if name in named and named[name] not in tests]
    notes = [f"skipped {path.name}/: its folders ({_some(class_folders(path))}) are not the classes"
             for path in tests[:tests.index(test)]]
    notes += [f"skipped {path.name}/: it holds no folder a class, so no labels" for path in flat]
    if train is None:
        notes.append(f"only test images are there ({test.name}/)")
    return Splits(train, test, tuple(notes))


def _best(train: Path | None, tests: list[Path]) -> Path:
    """The first test split with the training classes, or with some of them; without training images the first
    with several classes."""
    if train is None:
        return next((path for path in tests if len(class_folders(path)) > 1), tests[0])
    classes = set(class_folders(train))
    same = [path for path in tests if set(class_folders(path)) == classes]
    some = [path for path in tests if set(class_folders(path)) < classes]
    return [*same, *some, *tests][0]


def _itself(folder: Path) -> Splits | None:
    names = class_folders(folder)
    if len(names) < 2 or not all(_holds_picture(folder / name) for name in names):
        return None
    return Splits(None, folder, (f"{folder.name} holds {len(names)} folders of pictures and no split: all "
                                 "are taken as test images",))


def _holds_picture(path: Path) -> bool:
    """Whether a picture is among the first files of a folder."""
    with os.scandir(path) as entries:
        return any(_is_picture(entry.name) for entry, _ in zip(entries, range(_LOOKED_AT), strict=False))


def _is_picture(name: str) -> bool:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return not hidden(name) and name.lower().endswith(IMG_EXTENSIONS)


def samples(split: Path, numbers: dict[str, int],
            patience: Patience) -> tuple[list[tuple[str, int]], list[str], list[str]]:
    """((path, class number) of every picture below a split, pictures that were skipped as hidden, other files
    that were).

    Args: numbers: of each class folder. Raises: InputError if one holds no picture.
    """
    from torchvision.datasets.folder import make_dataset

    skipped: list[str] = []
    others: list[str] = []
    try:
        made = make_dataset(str(split), numbers, is_valid_file=_seen(split, skipped, others, patience))
        return made, skipped, others
    except FileNotFoundError as error:
        raise InputError(f"{split}: {str(error).partition(' Supported')[0].rstrip('.')}.",
                         hint="Remove the empty folder, or put its pictures back.") from error


def _seen(split: Path, skipped: list[str], others: list[str], patience: Patience) -> Callable[[str], bool]:
    """Whether a file is a picture that counts; hidden pictures are noted in `skipped`, what is neither hidden
    nor a picture in `others`."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    def is_valid(path: str) -> bool:
        patience.say(f"listing the pictures of {split}")
        picture = path.lower().endswith(IMG_EXTENSIONS)
        unseen = any(hidden(part) for part in path[len(str(split)):].split(os.sep))
        if picture and unseen:
            skipped.append(path)
        elif not picture and not unseen:
            others.append(path)
        return picture and not unseen

    return is_valid


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
