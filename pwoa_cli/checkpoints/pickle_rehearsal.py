"""What a pickle would do when it is read, found out without doing it.

`rehearse` runs its instructions with inert stand-ins for everything that it names: nothing is imported,
called or allocated. It lists the globals that are more than data, and compares the claims of size that the
pickle makes of tensors and arrays with those that it makes of their storages; `pickles` compares these with
the file.
"""
import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import torch

PICKLE_BYTES = 2**24  # of the pickle in a file: a state dict's has 100 bytes a tensor

ITEMSIZE = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
            "Byte": 1, "Bool": 1,
            "ComplexDouble": 16, "ComplexFloat": 8, "QInt8": 1, "QUInt8": 1, "QInt32": 4, "QUInt4x2": 1,
            "QUInt2x4": 1,
            "Untyped": 1}
STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # of NumPy 1 and 2


class Refused(ValueError):
    """What a file claims cannot be: (what, got, expected) without its name."""


class _StandIn:
    """For what a global of the pickle would make: it takes every instruction, remembers the arguments, and
    does nothing."""

    name: str
    made: list["_StandIn"]
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Self:
        self = super().__new__(cls)
        self.args, self.state = args, None
        cls.made.append(self)
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any) -> Self:  # what made it is unknown, or torch does not call it
        return self

    def _ignore(self, *_: Any) -> None: ...

    __setitem__ = append = extend = add = _ignore


@dataclass(frozen=True)
class _Storage:
    size_bytes: int
    itemsize: int


@dataclass
class Rehearsal:
    """What a pickle asks for. wanted: globals that are more than data; storages: bytes by key; dense_bytes:
    of all tensors."""

    wanted: set[str] = field(default_factory=set)
    storages: dict[str, _Storage] = field(default_factory=dict)
    dense_bytes: int = 0


# the one in Python: the one in C takes memory for whatever memo index a file names
class _Rehearser(pickle._Unpickler):
    """Runs a pickle with stand-ins. Containers of plain data are real."""

    REAL: ClassVar = {"collections.OrderedDict": OrderedDict, "collections.Counter": Counter,
                      "builtins.set": set}

    def __init__(self, file: Any, found: Rehearsal):
        super().__init__(file, encoding="bytes")
        self.found = found
        self.made: list[_StandIn] = []
        self.classes: dict[str, type[_StandIn]] = {}
        self.views: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full in self.REAL:
            return self.REAL[full]
        if full not in CALLS and not _is_named(full):
            self.found.wanted.add(full)
        if full not in self.classes:
            self.classes[full] = type("StandIn", (_StandIn,), {"name": full, "made": self.made})
        return self.classes[full]

    def get_extension(self, code: int) -> None:
        raise Refused(f"the pickle asks for extension {code}, expected none")

    def persistent_load(self, pid: Any) -> Any:
        kind = _text(pid[0]) if isinstance(pid, tuple) and len(pid) >= 4 else None
        if kind == "module":  # the source of a whole pickled module, long ago
            return pid[1]
        storage = STORAGE.fullmatch(getattr(pid[1], "name", "")) if kind == "storage" else None
        if not storage or storage[1] not in ITEMSIZE or len(pid) < 5 or not _is_size(pid[4]):
            raise Refused(f"the pickle refers to {str(pid)[:60]}, expected a storage and its size")
        itemsize = ITEMSIZE[storage[1]]
        claim = _Storage(pid[4] * itemsize, itemsize)
        first = self.found.storages.setdefault(str(_text(pid[2])), claim)
        if first.size_bytes != claim.size_bytes and 0 not in (first.size_bytes, claim.size_bytes):
            raise Refused(f"storage {_text(pid[2])} has {first.size_bytes} bytes and {claim.size_bytes}, "
                          "expected one size")
        view = pid[5] if len(pid) > 5 else None  # of the legacy format: (key, offset, size)
        if view is None:
            return claim
        whole = isinstance(view, tuple) and len(view) == 3 and all(map(_is_size, view[1:]))
        sizes = view[1:] if whole else (pid[4], 1)
        part = _Storage(sizes[1] * itemsize, itemsize)
        if sum(sizes) > pid[4] or self.views.setdefault(str(_text(view[0])), part) != part:
            raise Refused(f"a view {str(view)[:60]} of storage {_text(pid[2])} of {pid[4]} elements, "
                          "expected one inside it")
        return part


def _text(value: Any) -> Any:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


class _Limited:
    """A file of which a pickle may read PICKLE_BYTES."""

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, PICKLE_BYTES

    def read(self, size: int) -> bytes:
        return self._count(self.file.read(min(size, self.left + 1)))

    def readline(self) -> bytes:
        return self._count(self.file.readline(self.left + 1))

    def _count(self, content: bytes) -> bytes:
        self.left -= len(content)
        if self.left < 0:
            raise Refused(f"its pickle has more than {PICKLE_BYTES} bytes, expected names and sizes of "
                          "tensors")
        return content


# --- what may be called, and with what ---------------------------------------------------------------

def _check_tensor(found: Rehearsal, storage: Any, offset: Any, size: Any, stride: Any, *_: Any,
                  itemsize: int = 0) -> None:
    """offset + sum (size - 1) stride must lie in the storage, sizes and strides >= 0; the dense size is
    counted."""
    if isinstance(storage, _StandIn):  # not of the file's storages: what makes it?
        found.wanted.add(storage.name)
        return
    fits = (isinstance(storage, _Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
            and len(size) == len(stride))
    if not fits or not all(map(_is_size, (offset, *size, *stride))):
        raise Refused(f"a tensor of size {str(size)[:40]}, stride {str(stride)[:40]} has no storage that "
                      "fits")
    itemsize = itemsize or storage.itemsize
    last = offset + sum((n - 1) * step
                        for n, step in zip(size, stride, strict=True)) if all(size) else offset - 1
    if (last + 1) * itemsize > storage.size_bytes:
        raise Refused(f"a tensor of size {str(size)[:40]}, stride {str(stride)[:40]} needs "
                      f"{(last + 1) * itemsize} bytes, its storage has {storage.size_bytes}")
    found.dense_bytes += math.prod(size) * itemsize


def _check_typed(found: Rehearsal, *args: Any) -> None:
    """_rebuild_tensor_v3: as v2, of a storage of bytes, the dtype is an argument of its own."""
    dtype = getattr(torch, getattr(args[6], "name", "").removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise Refused(f"a tensor has dtype {str(args[6])[:40]}, expected one of torch")
    _check_tensor(found, *args[:4], itemsize=dtype.itemsize)


def _check_typed_parent(found: Rehearsal, function: Any, kind: Any, args: Any, *_: Any) -> None:
    """_rebuild_from_type_v2: calls its first argument with its third; both must be ours to check."""
    name = getattr(function, "name", "")
    if name not in CALLS or not isinstance(args, tuple) or getattr(kind, "name", "") not in NAMED:
        found.wanted.add(name or "a function that the pickle made")
        return
    CALLS[name](found, *args)


def _check_dtype(found: Rehearsal, made: Any) -> np.dtype | None:
    """The dtype of numbers that a stand-in for numpy.dtype means; None, and wanted, for objects, records and
    changed flags."""
    ours = isinstance(made, _StandIn) and made.name == "numpy.dtype" and made.args
    code = _text(made.args[0]) if ours else None
    plain = code if isinstance(code, str) and re.fullmatch(r"[biufc?]\d{0,2}", code) else None
    order = made.state[1] if plain and isinstance(made.state, tuple) and len(made.state) > 2 else "|"
    if (plain is None or _text(order) not in ("<", ">", "|", "=")
        or (made.state or ())[2:] not in ((), (None, None, None, -1, -1, 0))):
        found.wanted.add(f"numpy.dtype({str(code)[:20]!r})")
        return None
    with suppress(TypeError):
        dtype = np.dtype(plain).newbyteorder(_text(order))
        if dtype.kind in "biufc":  # "c" alone would be a character
            return dtype
    raise Refused(f"an array has dtype {plain[:20]!r}, expected numbers")


def _length(content: Any) -> int | None:
    """Of bytes, or of the latin1 text that protocol 2 writes for them."""
    if isinstance(content, _StandIn) and content.name in ("_codecs.encode", "builtins.bytes"):
        content = content.args[0] if content.args else b""
    return len(content) if isinstance(content, bytes | str) else None


def _check_scalar(found: Rehearsal, made: Any, content: Any = b"") -> None:
    dtype = _check_dtype(found, made)
    if dtype is not None and _length(content) != dtype.itemsize:
        raise Refused(f"a number of {dtype} has {_length(content)} bytes")


def _check_empty(found: Rehearsal, kind: Any, shape: Any, code: Any) -> None:
    """The empty array that NumPy's pickles begin with; anything else would take memory or objects."""
    if getattr(kind, "name", "") != "numpy.ndarray" or shape != (0,) or _length(code) != 1:
        found.wanted.add("numpy.ndarray of another make than NumPy's own pickles")


def _check_filled(found: Rehearsal, state: Any) -> None:
    """(version, shape, dtype, column order, bytes): numbers only, as many bytes as the shape says."""
    if (not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[1], tuple)
        or not all(map(_is_size, state[1]))):
        raise Refused("a NumPy array has no shape")
    dtype = _check_dtype(found, state[2])
    if dtype is not None and _length(state[4]) != math.prod(state[1]) * dtype.itemsize:
        raise Refused(f"a NumPy array of {dtype} {str(state[1])[:40]} has {_length(state[4])} bytes")


def _check_words(found: Rehearsal, *args: Any) -> None:
    """Text and numbers as arguments: nothing that grows."""
    if not all(isinstance(a, str | bytes | int | float | tuple | list | None) for a in args):
        found.wanted.add("a value made of other than text and numbers")


def _check_latin1(found: Rehearsal, text: Any = None, codec: Any = None, *_: Any) -> None:
    if not isinstance(text, str) or _text(codec) not in ("latin1", "latin-1"):
        found.wanted.add(f"_codecs.encode with {str(codec)[:20]!r}")


def _check_bytes(found: Rehearsal, content: Any = b"", *_: Any) -> None:
    if _length(content) is None:  # bytearray(10**12) takes a terabyte
        found.wanted.add("builtins.bytes of a number")


def _nothing(*_: Any) -> None: ...


CALLS: dict[str, Callable[..., None]] = {
    **{f"torch._utils.{name}": _check_tensor
       for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor")},
    "torch._utils._rebuild_tensor_v3": _check_typed,
    "torch._tensor._rebuild_from_type_v2": _check_typed_parent,
    **{f"torch._utils.{name}": _nothing for name in ("_rebuild_parameter", "_rebuild_parameter_with_state",
                                                     "_rebuild_sparse_tensor",
                                                     "_rebuild_meta_tensor_no_storage")},
    "torch.nn.parameter.Parameter": _nothing, "torch.Size": _check_words, "torch.device": _check_words,
    "torch.serialization._get_layout": _check_words, "builtins.complex": _check_words,
    "builtins.bytearray": _check_bytes,
    "builtins.bytes": _check_bytes,  # without arguments: no bytes, in protocol 2
    "_codecs.encode": _check_latin1, "argparse.Namespace": _check_words,
    "pathlib.PosixPath": _check_words, "pathlib.PurePosixPath": _check_words, "numpy.dtype": _nothing,
    **{f"{house}.scalar": _check_scalar for house in MULTIARRAY},
    **{f"{house}._reconstruct": _check_empty for house in MULTIARRAY}}
# and never called
NAMED = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "numpy.ndarray"}

STATEFUL = {"argparse.Namespace", "numpy.dtype", *(f"{house}._reconstruct" for house in MULTIARRAY)}


def _is_named(full: str) -> bool:
    """Whether a global may be named, as an argument, though never called: storage classes, dtypes,
    quantization schemes."""
    storage = STORAGE.fullmatch(full)
    house, _, name = full.rpartition(".")
    kinds = (torch.dtype, torch.qscheme)
    return full in NAMED or bool(storage and storage[1] in ITEMSIZE) or (
        house == "torch" and isinstance(vars(torch).get(name), kinds))


def rehearse(file: BinaryIO, found: Rehearsal) -> Any:
    """Run one pickle with stand-ins, add what it asks for to `found`, and return what it would make,
    stand-ins in it.

    Raises: Refused for a claim of size that cannot be; anything for a broken pickle.
    """
    unpickler = _Rehearser(_Limited(file), found)
    content = unpickler.load()
    for made in unpickler.made:
        if made.name in CALLS:
            CALLS[made.name](found, *made.args)
        else:
            found.wanted.add(made.name)  # unknown, or a dtype or a storage class, called
        if made.state is not None and made.name in CALLS and made.name not in STATEFUL:
            found.wanted.add(f"{made.name} with a state")
        if made.name.endswith("multiarray._reconstruct"):
            _check_filled(found, made.state)
        if made.name == "numpy.dtype":
            _check_dtype(found, made)
    return content
