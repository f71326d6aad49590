"""Class numbers: of folders of pictures by order, by a class map or by ImageNet's synsets; of labels in a
file."""
import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from pwoa_cli.data.choices import Choices
from pwoa_cli.errors import InputError, reading

_HOW = ("Say which class each folder is: --class-map FILE, with a line FOLDER NUMBER for each, or JSON "
        '{"FOLDER": NUMBER}.')


def numbered(names: Sequence[str], where: str, *, classes: int | None,
             choices: Choices) -> tuple[dict[str, int], tuple[str, ...]]:
    """(class number of each folder, what was inferred, for people).

    Args: names: of the folders, in the order of text. classes: of the model, None: as many as folders.
    Raises: InputError if the numbers cannot be known.
    """
    if choices.class_map:
        _check_order_open(choices.class_order, where, by=f"--class-map {choices.class_map}")
        return _mapped(names, where, read_map(Path(choices.class_map)), classes, choices.class_map)
    if classes not in (None, len(names)):
        found = _by_synset(names, where, classes)
        _check_order_open(choices.class_order, where, by="ImageNet's synsets")
        return found
    order = choices.class_order or "text"
    if order == "number" and not all_numbers(names):
        raise InputError(f"--class-order number: {where} has folders that are no numbers, such as "
                         f"{next(name for name in names if not name.isdecimal())}.",
                         hint="--class-order text")
    ordered = sorted(names, key=int) if order == "number" else list(names)
    notes = []
    if all_numbers(names) and ordered_differently(names):
        notes = [f"folders that are numbers are classes in the order of {order}: {_few(ordered)}"]
    return {name: number for number, name in enumerate(ordered)}, tuple(notes)


def _check_order_open(order: str | None, where: str, *, by: str) -> None:
    """Raises: InputError if an order is asked for of folders whose numbers are known."""
    if order:
        raise InputError(f"--class-order {order} has nothing to order: the folders of {where} are numbered "
                         f"by {by}.", hint="Leave --class-order out.")


def all_numbers(names: Sequence[str]) -> bool:
    """Whether every name is a whole number."""
    return all(name.isascii() and name.isdecimal() for name in names)


def ordered_differently(names: Sequence[str]) -> bool:
    """Whether names that are numbers stand in another order as numbers: 10 before 2 as text."""
    return all_numbers(names) and sorted(names) != sorted(names, key=int)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + ", ..." * (len(names) > 4)


def _by_synset(names: Sequence[str], where: str,
               classes: int | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """By WordNet's numbers, if the folders are some of ImageNet's 1000 classes."""
    if classes == 1000 and len(names) < classes and all(re.fullmatch(r"n\d{8}", name) for name in names):
        from timm.data import ImageNetInfo

        known = {name: number for number, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
        if set(names) <= known.keys():
            return ({name: known[name] for name in names},
                    (f"{len(names)} of ImageNet's 1000 classes, numbered by the synsets that the folders are "
                     "named after",))
    raise InputError(f"{where} has {len(names)} class folders, the model has {classes} classes.", hint=_HOW)


def read_map(path: Path) -> dict[str, int]:
    """Class numbers by folder name: a JSON object, or lines of two columns (comma, semicolon, tab, spaces).

    Raises: InputError naming the file and the line.
    """
    with reading(f"--class-map {path}", "class numbers", hint=_HOW):
        text = path.read_text(encoding="utf-8-sig")
        rows = _json_rows(text) if text.lstrip().startswith("{") else _text_rows(text, path)
    found: dict[str, int] = {}
    for place, name, number in rows:
        if not number.isascii() or not number.isdecimal() or len(number) > 9:
            raise InputError(f"--class-map {path}, {place}: {number[:40]!r} is no class number.", hint=_HOW)
        if found.setdefault(name, int(number)) != int(number):
            raise InputError(f"--class-map {path}, {place}: {name[:40]} is both {found[name]} and {number}.",
                             hint=_HOW)
    if not found:
        raise InputError(f"--class-map {path} names no folder.", hint=_HOW)
    return found


def _json_rows(text: str) -> list[tuple[str, str, str]]:
    return [(repr(name[:40]), name, str(number)) for name, number in json.loads(text).items()]


def _text_rows(text: str, path: Path) -> list[tuple[str, str, str]]:
    """(line, name, number); a first line whose second column is no number is a heading."""
    rows = []
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip() or content.lstrip().startswith("#"):
            continue
        mark = next((mark for mark in ",;\t" if mark in content), None)
        cells = next(csv.reader([content], delimiter=mark)) if mark else content.rsplit(maxsplit=1)
        if len(cells) != 2:
            raise InputError(f"--class-map {path}, line {line}: {len(cells)} columns, expected 2: FOLDER and "
                             "NUMBER.", hint=_HOW)
        rows.append((f"line {line}", cells[0].strip(), cells[1].strip()))
    return rows[1:] if len(rows) > 1 and not rows[0][2].isdecimal() else rows


def _mapped(names: Sequence[str], where: str, numbers: Mapping[str, int], classes: int | None,
            file: str) -> tuple[dict[str, int], tuple[str, ...]]:
    missing = [name for name in names if name not in numbers]
    if missing:
        raise InputError(f"--class-map {file} does not name {len(missing)} of the {len(names)} folders of "
                         f"{where}: {_few(missing)}.", hint=_HOW)
    high = [name for name in names if classes is not None and numbers[name] >= classes]
    if high:
        raise InputError(f"--class-map {file}: {high[0]} is class {numbers[high[0]]}, but the model has "
                         f"{classes} classes: 0 to {(classes or 0) - 1}.")
    return {name: numbers[name] for name in names}, (f"classes of the folders from {file}",)


def from_zero(labels: Tensor, where: str, *, first: int) -> Tensor:
    """Labels (N,) that count from `first`, from 0. Raises: InputError if one is less."""
    if first and len(labels) and int(labels.min()) < first:
        raise InputError(f"--labels-from {first}, but {where} holds the label {int(labels.min())}.",
                         hint="Leave it out.")
    return labels - first


def check_range(least: int, most: int, where: str, *, classes: int | None) -> None:
    """Labels that count from 1 for a model of as many classes are named. Raises: InputError."""
    if classes is not None and least == 1 and most == classes:
        raise InputError(f"{where}: labels run from 1 to {most}, the model's {classes} classes are 0 to "
                         f"{classes - 1}.", hint="If label 1 is the model's first class: --labels-from 1")


def present(labels: Sequence[Tensor], *, classes: int) -> tuple[int, ...]:
    """Class numbers that some label has."""
    found = sorted({int(label) for part in labels for label in part.unique()})
    return tuple(label for label in found if label < classes)
