"""JSON and TOML of plain values. JSON never holds NaN or infinity: they become null."""
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pwoa_cli.errors import InputError, reading
from pwoa_cli.files.atomic import write_text_atomic


def plain(value: Any) -> Any:
    """What JSON can say of a value: NaN and infinities None, paths text, tuples lists, NumPy and torch
    scalars numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is not None and not isinstance(value, str | bool | int | float):
        return plain(value.item())  # anything else than a scalar is a bug of the caller
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(value: Any, *, indent: int | None = None) -> str:
    """One JSON text of `plain(value)`, ASCII, keys in their order."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Put a value as indented JSON at `path`, atomically."""
    write_text_atomic(path, dumps(value, indent=1) + "\n")


def json_of(text: str | bytes) -> Any:
    """The value of a JSON text. Raises: ValueError for what is none, NaN and infinity too; RecursionError."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(word: str) -> float:
    if not math.isfinite(float(word)):
        raise ValueError(f"{word[:20]} is no number of JSON")
    return float(word)


def read_json(path: Path, *, hint: str = "Make a run: pwoa prune model.pt --sparsity 0.9") -> dict[str, Any]:
    """The JSON object in a file. Raises: InputError if the file is missing, unreadable or not a JSON
    object."""
    with reading(path, "JSON", hint=hint):
        value = json_of(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, expected an object.",
                         hint="Name the report.json of a run.")
    return value


def read_toml(path: Path, *, name: str, hint: str) -> dict[str, Any]:
    """The table in a TOML file, in which file names may be no UTF-8. Args: name: of the file, for people.
    Raises: InputError."""
    with reading(name, "TOML", hint=hint):
        return tomllib.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))


def write_toml(path: Path, table: Mapping[str, Any]) -> None:
    """Put a table (and tables in it) as TOML at `path`, atomically."""
    write_text_atomic(path, toml(table))


def toml(table: Mapping[str, Any]) -> str:
    """A table (and tables in it) as TOML; None is left out, as TOML has no word for it."""
    import tomli_w

    return tomli_w.dumps(_without_none(table))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value if item is not None]
    return float(value) if isinstance(value, float) else plain(value)  # TOML knows nan and inf
