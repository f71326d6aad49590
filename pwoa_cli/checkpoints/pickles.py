"""Torch files and pickles, read safely: rehearsed first (pickle_rehearsal.py), then read by torch.load with
weights_only.

Sizes are compared before memory is taken: what zip entries unpack to, storages with their records, and the
dense size of all tensors, expanded ones too, with the size of the file.
"""
import argparse
import contextlib
import io
import pathlib
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pwoa_cli.checkpoints.foreign_files import AGAIN, zip_kind
from pwoa_cli.checkpoints.normalisation import NAMES, values_of
from pwoa_cli.checkpoints.pickle_rehearsal import MULTIARRAY, Refused, Rehearsal, rehearse
from pwoa_cli.errors import InputError
from pwoa_cli.files.zips import members
from pwoa_cli.machine.memory import check_room
from pwoa_cli.machine.silence import TURN

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that opens what torch.save wrote before 1.6
ZIP = (b"PK\3\4", b"PK\5\6")
SMALLEST_BOUND, EXPANSION = 2**28, 8  # a file of b bytes may take 256 MiB + 8 b of memory
HINT = "A checkpoint is what torch.save(model.state_dict(), 'model.pt') writes, or a .safetensors file."
# what weights_only does not know though it is data: settings that older code saved along, NumPy's numbers and
# arrays of numbers, under the names of NumPy 1 and 2. No dtypes of objects or records: a pickle may set their
# flags, and bytes pass for addresses. The rehearsal refuses them, and here their class is not among those
# whose state may be set.
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
_NUMBERS = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
DATA: list[Any] = [  # of what safe_globals takes: a class or function, or one with its name
    argparse.Namespace, bytes, np.dtype, np.ndarray, *_NUMBERS, pathlib.PosixPath, pathlib.PurePosixPath,
    *((_SCALAR, f"{house}.scalar") for house in MULTIARRAY),
    *((_ARRAY, f"{house}._reconstruct") for house in MULTIARRAY)]


def read(path: Path, *, trust_pickle: bool = False) -> tuple[Any, tuple[str, ...]]:
    """(what torch.save or pickle wrote, notes), of tensors and plain data; with `trust_pickle` of anything,
    its code run.

    Raises: InputError, one sentence: not a checkpoint, truncated, sizes that cannot be, or more than data
    (naming it).
    """
    with open(path, "rb") as file:
        head = file.read(len(LEGACY))
    zipped, legacy = head.startswith(ZIP), head == LEGACY
    try:
        found = _rehearse_zip(path) if zipped else _rehearse_streams(path, legacy=legacy)
    except InputError:
        raise
    except Exception as error:  # a broken pickle can raise anything; the cause is kept
        if not zipped and not legacy:
            raise InputError(f"{path} is not a checkpoint: neither a torch file nor safetensors.",
                             hint=HINT) from error
        raise InputError(f"{path} is broken or truncated: {_why(error)}.", hint=AGAIN) from error
    wanted = sorted(found.wanted)
    if wanted and not trust_pickle:
        raise InputError(f"{path} holds more than tensors: it would run {_listed(wanted)} to be read; "
                         "nothing was run.",
                         hint="If you trust it: --trust-pickle. Or save tensors alone: "
                              "torch.save(model.state_dict(), 'new.pt')")
    if wanted:
        note = f"warning: read with its own code, as --trust-pickle says: {_listed(wanted)}"
        content, unseen = _read_trusted(path, torch_made=zipped or legacy)
        return content, (note, *unseen)
    if not zipped and not legacy:
        raise InputError(f"{path} is a pickle that torch.save did not write.", hint=HINT)
    return _read_plain(path), ()


def torch_made(head: bytes) -> bool:
    """Whether a file that begins so may be torch.save's, of either format."""
    return head.startswith((*ZIP, LEGACY))


def _why(error: Exception) -> str:
    """What is wrong, in a clause; an unpickler's own error (IndexError: pop from empty list) tells a user
    nothing."""
    said = re.split(r"\. |\n", str(error))[0].rstrip(".")[:120]
    told = isinstance(error, Refused | RuntimeError | zipfile.BadZipFile)
    return said if told and said.isprintable() else "its pickle cannot be read"


def _listed(names: list[str]) -> str:
    shown = [name if len(name) <= 60 else name[:28] + "..." + name[-28:] for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_plain(path: Path) -> Any:
    try:
        # warnings: of protocols and sparse tensors; an open file, as torch.load takes a path for what its
        # suffix says
        with (TURN, open(path, "rb") as file, torch.serialization.safe_globals(DATA),
              warnings.catch_warnings(action="ignore")):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        operand = re.search(r"Unsupported operand \d+", str(error))
        if operand:
            raise InputError(f"{path} is pickled by a protocol that torch does not read safely.",
                             hint="Save it again as torch does by default: torch.save(torch.load('old.pt', "
                                  "weights_only=False), 'new.pt')") from error
        raise InputError(f"{path} is broken or truncated: {_why(error)}.", hint=AGAIN) from error


def _read_trusted(path: Path, *, torch_made: bool) -> tuple[Any, list[str]]:
    """(whatever the pickle makes, its code run, whole modules in it as their state dicts; the normalisations
    that they keep as plain attributes, which no state dict has)."""
    try:
        # warnings: of classes whose source has changed; stdout is for results
        with (TURN, open(path, "rb") as file, warnings.catch_warnings(action="ignore"),
              contextlib.redirect_stdout(sys.stderr)):
            content = torch.load(file, map_location="cpu",
                                 weights_only=False) if torch_made else pickle.load(file)
            unseen: list[str] = []
            return _without_modules(content, unseen), unseen
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file's own code may raise anything
        missing = isinstance(error, ImportError | AttributeError)
        what = ("needs code that cannot be imported here" if missing
                else f"raises {type(error).__name__} when it is read")
        if missing and "__main__" in str(error):
            raise InputError(f"{path} holds a whole network, of a class of the script that saved it "
                             f"(__main__): {str(error).partition(' on <')[0][:80]}.",
                             hint="Save its tensors there, torch.save(model.state_dict(), 'new.pt'), and "
                                  "name the class: --arch script.py:fn") from error
        raise InputError(f"{path} {what}: {str(error)[:120]}.",
                         hint="Run where its classes can be imported: PYTHONPATH=FOLDER pwoa ... Or save "
                              "its tensors there: torch.save(model.state_dict(), 'new.pt')") from error


def _without_modules(content: Any, unseen: list[str], depth: int = 5) -> Any:
    if isinstance(content, torch.nn.Module):
        unseen += _attributes(content)
        return content.state_dict()
    if isinstance(content, Mapping) and depth:
        return {key: _without_modules(value, unseen, depth - 1) for key, value in content.items()}
    return content


def _attributes(net: torch.nn.Module) -> Iterator[str]:
    """Of each module with a mean and a deviation beside its tensors (torchvision's Normalize), a sentence."""
    for name, module in net.named_modules():
        own = vars(module)
        for names in NAMES:
            mean, std = (values_of(own.get(key), alone=False) for key in names)
            if mean and std and len(mean) == len(std):
                words = f"{name}.".lstrip(".") + " and ".join(names)
                yield (f"warning: {words} of {type(module).__name__} are attributes, not tensors of the "
                       f"state dict, and are not taken: --mean {','.join(f'{v:.6g}' for v in mean)} "
                       f"--std {','.join(f'{v:.6g}' for v in std)} takes them")


def _rehearse_zip(path: Path) -> Rehearsal:
    """Of a zip that shows all readers the same members: what kind it is, what they claim, its pickle, and the
    storages against their records."""
    inside, size, found = members(path), path.stat().st_size, Rehearsal()
    names = [member.name for member in inside]
    kind = zip_kind(names)
    if kind:
        raise InputError(f"{path} is {kind[0]}, not a checkpoint.", hint=kind[1])
    claimed = sum(member.size for member in inside)  # torch writes them as they are, but it reads others
    if claimed > _bound(size):
        raise Refused(f"its zip entries claim {claimed} bytes of a file of {size}")
    root = names[0].partition("/")[0] + "/"  # as torch finds it
    records = {member.name.removeprefix(root): member.size for member in inside
               if member.name.startswith(root)}
    with zipfile.ZipFile(path) as archive:
        order = archive.read(f"{root}byteorder") if "byteorder" in records else b"little"
        if order not in (b"little", b"big"):
            raise Refused(f"its byte order is {order[:20]!r}, expected little or big")
        rehearse(io.BytesIO(archive.read(f"{root}data.pkl")), found)
    for key, storage in found.storages.items():
        if (records.get(f"data/{key}") != storage.size_bytes
            and (f"data/{key}" in records or storage.size_bytes)):
            raise Refused(f"storage {key} has {records.get(f'data/{key}', 'no')} bytes, its tensors claim "
                          f"{storage.size_bytes}")
    return _bounded(found, path)


def _rehearse_streams(path: Path, *, legacy: bool) -> Rehearsal:
    """Of the legacy format (number, protocol, system, content, storage keys, then 8 bytes and the data of
    each) or a pickle."""
    found, size = Rehearsal(), path.stat().st_size
    with open(path, "rb") as file:
        for _ in range(3 if legacy else 0):
            rehearse(file, found)
        rehearse(file, found)
        if not legacy:
            return found
        rehearse(file, found)
        left = size - file.tell()
    needed = sum(8 + storage.size_bytes for storage in found.storages.values())
    if needed > left:
        raise Refused(f"its tensors take {needed} bytes, {left} are left")
    return _bounded(found, path)


def _bounded(found: Rehearsal, path: Path) -> Rehearsal:
    most = _bound(path.stat().st_size)
    if found.dense_bytes > most:
        raise Refused(f"its tensors would take {found.dense_bytes} bytes of memory, expected at most {most}")
    check_room(found.dense_bytes, f"{path}: its tensors")
    return found


def _bound(size: int) -> int:
    return SMALLEST_BOUND + EXPANSION * size
