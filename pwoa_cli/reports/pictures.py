"""Images that break one model and not the other, from the samples of an evaluation, as PNG data URIs.

Where the first model holds, the file has its clean image; where the second breaks, the adversarial one.
"""
import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pwoa_cli.errors import InputError, reading
from pwoa_cli.files.arrays import read_arrays
from pwoa_cli.reports import tables

MOST = 6  # images
LARGEST = 96  # pixels of a side: noise does not shrink, and a report stays under 1 MB
HINT = "Make it again: pwoa eval RUN --attacks pgd,cw --out DIR --save-samples DIR/samples.npz"


@dataclass(frozen=True)
class Picture:
    """An image that breaks the second model only. clean, adversarial, perturbation: data URIs; factor: how
    many times as large the perturbation is shown, around grey."""

    index: int
    label: int
    broken_by: str
    size: float
    factor: float
    clean: str
    adversarial: str
    perturbation: str


@dataclass(frozen=True)
class Pictures:
    """shown: the first MOST in the order of the samples, which the seed drew. count: of all n."""

    shown: list[Picture]
    count: int
    n: int


def of(path: Path, report: Mapping[str, Any]) -> Pictures | None:
    """Those of a samples.npz; None where it has no adversarial inputs, or the report no second model.

    Raises: InputError where it is damaged, or of another evaluation than the report.
    """
    names = list(tables.scores(report))
    if len(names) != 2 or "drop" not in report:
        return None
    with reading(path, "samples of an evaluation", hint=HINT):
        arrays, there = read_arrays(path, {"index", "label", *(f"{who}/{what}" for who in names for what in (
            "inputs", "broken_by", "correct/clean"))})
        if not all(f"{who}/inputs" in there for who in names):
            return None
        of_this = _same(arrays, report)
        found = _found(arrays, *names) if of_this else None
    if found is None:
        raise InputError(f"{path} is of another evaluation: its clean accuracy is not that of the report.",
                         hint=HINT)
    return found


def _same(arrays: Mapping[str, np.ndarray], report: Mapping[str, Any]) -> bool:
    """Whether clean flags are as many as the report says, of each model."""
    flags = {who: arrays[f"{who}/correct/clean"] for who in tables.scores(report)}
    return all(len(flags[who]) == scores["clean"]["n"]
               and flags[who].sum() == round(scores["clean"]["accuracy"] * scores["clean"]["n"])
               for who, scores in tables.scores(report).items())


def _found(arrays: Mapping[str, np.ndarray], teacher: str, student: str) -> Pictures:
    by = arrays[f"{student}/broken_by"]
    rows = np.flatnonzero((arrays[f"{teacher}/broken_by"] == "") & (by != "") & (by != "clean"))
    clean, adversarial = (arrays[f"{who}/inputs"] for who in (teacher, student))
    if clean.shape != adversarial.shape or clean.ndim != 4 or clean.shape[1] not in (1, 3):
        raise ValueError(f"inputs are of shape {clean.shape}, expected (n, 1 or 3, H, W)")
    index, label = arrays["index"], arrays["label"]
    shown = [_picture(clean[row].astype(float), adversarial[row].astype(float), index=int(index[row]),
                      label=int(label[row]), broken_by=str(by[row])) for row in rows[:MOST]]
    return Pictures(shown, len(rows), len(by))


def _picture(clean: np.ndarray, adversarial: np.ndarray, **known: Any) -> Picture:
    """Args: clean, adversarial: (C, H, W) in [0,1]."""
    change = adversarial - clean
    size = float(np.abs(change).max())
    factor = 0.5 / max(size, 1e-6)  # the largest change is black or white
    return Picture(size=size, factor=factor, clean=_uri(clean), adversarial=_uri(adversarial),
                   perturbation=_uri(0.5 + factor * change), **known)


def _uri(image: np.ndarray) -> str:
    """A PNG of (C, H, W) in [0,1], no side above LARGEST pixels."""
    pixels = np.rint(255 * image.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((LARGEST, LARGEST))
    with io.BytesIO() as file:
        picture.save(file, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
