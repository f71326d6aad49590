"""What an evaluation has found so far, kept on disk so that it can go on after any end: one file for each
finished unit.

    pwoa-runs/.eval/KEY/ATTACK.PART.BLOCK.SAMPLES.npz        written at once: temporary name, fsync, rename

A unit is one attack, or one component of it, on one block of samples. KEY is a hash of all that the flags
depend on: weights, what the model predicts on the clean samples, the samples, threat, seed, and the code of
this package and of its libraries. A file that is cut short or of other samples is taken as not there.
"""
import glob
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor, nn

from pwoa_cli.errors import InputError, PwoaError, reading
from pwoa_cli.files import locks
from pwoa_cli.files.arrays import read_arrays, write_arrays
from pwoa_cli.files.atomic import sweep
from pwoa_cli.files.hashes import state_sha256
from pwoa_cli.files.run_folder import LOCK, ROOT, UNFINISHED

FORMAT = 1  # of the files; part of KEY
# modules and rooms that decide what a flag is: inputs, weights and the reading of the checkpoint are in KEY
# by themselves
MOVES_FLAGS = ("attacks", "networks", "evaluation/evaluate.py", "evaluation/inputs.py",
               "evaluation/tally.py", "evaluation/units.py", "machine/devices.py", "machine/generators.py",
               "machine/seeds.py")
# whose figures may move with their version
LIBRARIES = ("torch", "numpy", "pyautoattack", "timm", "torchvision")


# dtype and rank of the fields of a unit in its file
_ARRAYS = {"rows": ("int64", 1), "broken": ("bool", 1), "distance": ("float32", 1), "outside": ("int64", 0),
           "nonfinite": ("int64", 0), "forwards": ("int64", 0), "backwards": ("int64", 0),
           "seconds": ("float64", 0)}
_INPUTS = {"inputs": ("float32", 4)}


@dataclass(frozen=True, eq=False)
class Unit:
    """What one attack did to the samples `rows` (m,) int64 of a block.

    broken: (m,) bool. distance: (m,) float32, norm of the perturbation of those that it broke (of the
    smallest, for a minimum-norm attack, in the ball or not), NaN elsewhere. inputs: (b, C, H, W) float32, the
    b broken ones; None unless asked for. outside, nonfinite: answers outside the ball or [0,1]; samples with
    logits that are no numbers.
    """

    rows: Tensor
    broken: Tensor
    distance: Tensor
    outside: int
    nonfinite: int
    forwards: int
    backwards: int
    seconds: float
    inputs: Tensor | None = None


class Unfinished:
    """The units of one evaluation in a folder. reuse: those that are there are taken; else they are replaced.

    there: whether any unit was there at first. taken, made: how many were used and how many written.
    """

    def __init__(self, folder: Path, *, reuse: bool):
        self.folder, self.reuse = folder, reuse
        self.taken, self.made, self.there = 0, 0, any(folder.glob("*.npz"))
        self._paths: set[Path] = set()
        self._lock = ExitStack()

    def fault(self) -> str:
        """Why nothing can be written there, "" if it can: then nobody else writes there until `tidy`.

        Raises: InputError if another process does and its units are what this one wants to go on from.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"pwoa")
            self._lock.enter_context(locks.held(self.folder / LOCK, what=f"{self.folder} of this evaluation",
                                                hint="Wait for it, or leave --resume away."))
            sweep(self.folder)
        except InputError as error:
            if self.reuse:
                raise
            return error.message.rstrip(".")
        except OSError as error:
            return f"{self.folder}: {error.strerror}"
        return ""

    def get(self, name: str, rows: Tensor, *, inputs: bool) -> Unit | None:
        """The unit of this name, if it is whole, was made of the same `rows`, and has its inputs where they
        are asked for."""
        path = self._path(name)
        if not self.reuse:
            return None
        with suppress(InputError), reading(path, "a part of an evaluation", hint="It is made again."):
            unit = _unit(read_arrays(path)[0], inputs=inputs)
            same = torch.equal(unit.rows, rows) and unit.broken.shape == unit.distance.shape == rows.shape
            if same and (unit.inputs is None or len(unit.inputs) == int(unit.broken.sum())):
                self.taken += 1
                return unit
        return None

    def put(self, name: str, unit: Unit) -> str:
        """Write a unit, whole or not at all. Returns: why that failed, "" if it did not: an evaluation can do
        without."""
        arrays = {field: np.asarray(value) for field, value in vars(unit).items() if value is not None}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # another evaluation may have tidied it away
            write_arrays(self._path(name), arrays, compressed=False)
        except (OSError, PwoaError) as error:
            return str(error)
        self.made += 1
        return ""

    def clear(self) -> None:
        """Remove the units that were asked for or written: their evaluation is over. Those of other attacks
        stay."""
        for path in self._paths:
            # of other samples, too: these are older
            for one in self.folder.glob(f"{glob.escape(path.name.rsplit('.', 2)[0])}.*.npz"):
                one.unlink(missing_ok=True)
        self.tidy()

    def tidy(self) -> None:
        """Let others write there, and remove folders in which nothing is kept."""
        self._lock.close()
        with suppress(OSError):  # something is there, or it never was
            for folder in (self.folder, *([UNFINISHED, ROOT] if self.folder.parent == UNFINISHED else [])):
                if folder.exists():
                    folder.rmdir()

    def _path(self, name: str) -> Path:
        path = self.folder / f"{quote(name, safe='')}.npz"  # names of plug-ins may hold anything
        self._paths.add(path)
        return path


def _unit(arrays: Mapping[str, np.ndarray], *, inputs: bool) -> Unit:
    """The unit of a file's arrays. Raises: anything if one is missing or of another type or rank."""
    found = dict[str, Any]()
    for name, (dtype, rank) in (_ARRAYS | (_INPUTS if inputs else {})).items():
        if arrays[name].dtype != dtype or arrays[name].ndim != rank:
            raise ValueError(f"{name} is {arrays[name].dtype} of rank {arrays[name].ndim}, expected {dtype}")
        found[name] = torch.from_numpy(arrays[name]) if rank else arrays[name].item()
    return Unit(**found)


def key(model: nn.Module, *more: object) -> str:
    """24 hex digits of what the flags depend on: names, shapes and bits of the tensors of a model, and `more`
    by its repr."""
    return hashlib.sha256(repr((FORMAT, state_sha256(model.state_dict()), more)).encode()).hexdigest()[:24]


def of_folder(path: Path) -> str:
    """SHA-256 of a module's file and of all modules that were imported from its folder and below, packages
    left out."""
    home = os.path.join(path.resolve().parent, "")
    loaded = {_where(source) for module in list(sys.modules.values())
              if (source := getattr(module, "__file__", None))}
    below = [Path(file) for file in loaded if file.startswith(home)]
    own = {path.resolve(), *(file for file in below if "site-packages" not in file.parts)}
    digest = hashlib.sha256()
    for file in sorted(filter(Path.is_file, own)):
        digest.update(os.fsencode(file.relative_to(home)) + file.read_bytes())
    return digest.hexdigest()


@cache
def _where(source: str) -> str:
    """The path of an imported module's file without links: a thousand modules take 0.3 s, and are asked for
    again and again."""
    return os.path.realpath(source)


@cache
def code() -> str:
    """SHA-256 of the code that a flag depends on (MOVES_FLAGS) and the versions of LIBRARIES: another one may
    find another answer. What only speaks of flags is left out: a new sentence must not throw hours of attacks
    away."""
    digest, package = hashlib.sha256(repr([(name, metadata.version(name))
                                           for name in LIBRARIES]).encode()), Path(__file__).parents[1]
    for path in sorted(path for part in MOVES_FLAGS for path in _modules(package / part)):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _modules(part: Path) -> list[Path]:
    """A module itself, or those of a room."""
    return [part] if part.suffix else list(part.rglob("*.py"))
