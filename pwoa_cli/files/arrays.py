"""The arrays of an .npz file: numbers and text, whose sizes are compared before memory is taken."""
import io
import math
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from pwoa_cli.files.atomic import atomic
from pwoa_cli.machine import memory

KINDS = "biufcSU"  # of dtypes: no objects, which are pickles, and no records
LAST_LETTER = 0x10FFFF  # of Unicode
ENDING = ".npy"


def read_arrays(path: Path, wanted: Collection[str] | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """(the arrays that are wanted and there, by name; the names of all). Args: wanted: None: all.

    Raises: InputError if there is no room for them; anything for a broken file: the caller knows what it was
    to be.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        names = [info.filename.removesuffix(ENDING) for info in archive.infolist()]
        chosen = {name: info for name, info in zip(names, archive.infolist(), strict=True)
                  if wanted is None or name in wanted}
        memory.check_room(sum(info.file_size for info in chosen.values()), f"{path}: its arrays")
        return {name: _array(archive, info) for name, info in chosen.items()}, names


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool) -> None:
    """Write the file whole or not at all. Raises: InputError if it cannot be written.

    The archive is made in memory: np.savez of NumPy 1.26 leaves it open where the disk is full, and zipfile
    prints a traceback when it is thrown away.
    """
    made = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(made, **arrays)  # type: ignore[arg-type]  # allow_pickle
    with atomic(path) as temporary:
        temporary.write_bytes(made.getbuffer())


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; its header must ask for the bytes that are there, as NumPy takes memory by the header."""
    with archive.open(info) as member:
        major, _ = np.lib.format.read_magic(member)
        header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        if major not in header:
            raise ValueError(f"{info.filename[:60]} is of version {major} of NumPy's format, expected 1 or 2")
        shape, _, dtype = header[major](member)
        size, there = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if dtype.kind not in KINDS or not dtype.itemsize:
        raise ValueError(f"{info.filename[:60]} has dtype {str(dtype)[:40]}, expected numbers or text")
    if size != there or min(shape, default=0) < 0:
        raise ValueError(f"{info.filename[:60]} has {there} bytes, its shape {str(shape)[:60]} takes {size}")
    with archive.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
    if dtype.kind == "U" and array.size:  # Python breaks on what is no letter only when it is shown
        letters = np.ascontiguousarray(array).reshape(-1).view(f"{dtype.str[0]}u4")  # in its byte order
        if letters.max() > LAST_LETTER:
            raise ValueError(f"{info.filename[:60]} holds text with {letters.max()}, which is no letter")
    return array
