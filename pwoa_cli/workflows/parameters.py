"""What the functions of pwoa_cli take: one table for all of them, by the names of their parameters, asked
before anything is done. Python itself would tell after minutes, in the words of some library, or never."""
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from numbers import Real
from os import PathLike
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch

from pwoa_cli.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


class Kind(NamedTuple):
    """takes: whether a value is one; what: "... is WHAT" of one that is none; example: as it is written."""

    takes: Callable[[Any], bool]
    what: str
    example: str


# --- kinds -----------------------------------------------------------------------------------------

def _is(*types: type) -> Callable[[Any], bool]:
    """Of a type; True and False are no numbers."""
    return lambda value: isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _several(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A list, tuple, set or array; text is none, though it is made of texts."""
    return lambda value: (isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
                          and getattr(value, "shape", (1,)) != ()  # an array of no dimension has no items
                          and all(map(one, value)))


def _either(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(kind(value) for kind in kinds)


def _settings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


_path, _int, _number, _text = _is(str, PathLike), _is(int), _is(Real), _is(str)


def _name(example: str) -> Kind:
    return Kind(_text, "not text", example)


def _file(example: str) -> Kind:
    return Kind(_path, "not a path", example)


def _whole(example: str) -> Kind:
    return Kind(_int, "not an int", example)


def _share(example: str) -> Kind:
    return Kind(_either(_number, _text), "not a number", example)


def _channels(example: str) -> Kind:
    return Kind(_several(_number), "no list of numbers, one a channel", example)


MODEL, YES = _file('"model.pt"'), Kind(_is(bool), "neither True nor False", "True")
KINDS = {
    "model": MODEL, "path": MODEL, "teacher": _file('"teacher.pt"'), "compare": _file('"other.pt"'),
    "out": _file('"folder"'), "like": _file('"model.pt"'), "data": _file('"cifar10"'),
    "recipe": _file('"default"'), "arch": _file('"resnet18"'),
    "sparsity": _share("0.9"), "channels": _share("0.5"), "macs": _share("0.5"),
    "nm": _name('"2:4"'), "target_bytes": Kind(_either(_int, _text), "no number of bytes", '"500k"'),
    "max_loss": Kind(_number, "not a number", "1.0"), "held_out": _whole("1000"),
    "structure": _name('"filter"'), "settings": Kind(_settings, "no dictionary of fields", '{"epochs": 2}'),
    "normalize": _name('"cifar10"'), "mean": _channels("[0.491, 0.482, 0.447]"),
    "std": _channels("[0.247, 0.243, 0.262]"), "entry": _name('"best"'), "trust_pickle": YES,
    "num_classes": _whole("10"), "norm": _name('"linf"'),
    "eps": Kind(_either(_number, _text), "neither a number nor text", '"8/255"'),
    "attacks": Kind(_either(_text, _several(_text)), "neither text nor a list of names", '["fgsm", "pgd"]'),
    "curve": Kind(_several(_either(_number, _text)), "no list of radii", '["2/255", "8/255"]'),
    "samples": _whole("50"), "seed": _whole("0"), "batch_size": _whole("50"),
    "device": Kind(_is(str, torch.device), "no name of a device", '"cpu"'), "compile": _name('"on"'),
    "max_seconds": Kind(lambda value: _number(value) and value > 0, "not a number above 0", "600"),
    "format": _name('"dense"'), "dtype": _name('"fp32"'), "prefix": _name('"module."'), "measure": YES,
    "progress": Kind(callable, "no function", "print"), "say": Kind(callable, "no function", "print"),
}
MODELS = Kind(_either(_path, _several(_path)), "neither a path nor a list of them", '["a.pt", "b.pt"]')
OF_ONE = {("evaluate", "model"): MODELS}  # parameters that one function takes in another way


# --- asking ----------------------------------------------------------------------------------------

def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises InputError for an argument of another kind before it does anything. None is
    fine where it is the default."""
    parameters = inspect.signature(function)

    @wraps(function)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in parameters.bind(*args, **kwargs).arguments.items():
            if value is not None or parameters.parameters[name].default is not None:
                check(name, value, OF_ONE.get((function.__name__, name)))
        return function(*args, **kwargs)

    return asked


def check(name: str, value: object, kind: Kind | None = None) -> None:
    """Raises: InputError that names the parameter, what it got and what it takes."""
    kind = kind or KINDS[name]
    if not kind.takes(value):
        got = " ".join(repr(value).split())
        raise InputError(f"{name}={got[:60]}{'...' * (len(got) > 60)} is {kind.what}.",
                         hint=f"For example: {name}={kind.example}")
