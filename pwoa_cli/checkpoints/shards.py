"""A model in several files with an index, as libraries save large ones: model.safetensors.index.json beside
model-00001-of-00002.safetensors and so on, or the same with .bin.

The index's weight_map says which file holds which tensor (Hugging Face, "sharded checkpoints").
"""
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pwoa_cli.errors import InputError
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.files.plain import json_of

INDEX = ".index.json"
PART = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})(?P<end>\.\w+)")
MOST = 1000  # parts


def index_of(path: Path) -> Path | None:
    """The index that a path means: itself, that of the parts beside it, the only one in a folder; None if it
    is a file by itself.

    Raises: InputError for a part without its index.
    """
    if path.is_dir():
        found = sorted(path.glob(f"*{INDEX}"))
        return found[0] if len(found) == 1 else None
    if path.name.endswith(INDEX):
        return path
    part = PART.fullmatch(path.name)
    if not part:
        return None
    index = path.with_name(f"{part['name']}{part['end']}{INDEX}")
    if not index.is_file():
        raise InputError(f"{path} is one of {int(part['count'])} parts of a model, and their index "
                         f"{index.name} is not beside it.",
                         hint=f"Put {index.name} and all parts into one folder.")
    return index


def files_of(index: Path) -> dict[Path, list[str]]:
    """Each part and the tensors that it should hold. Raises: InputError for an index that is none, or a part
    that is missing."""
    try:
        places = json_of(index.read_text(encoding="utf-8"))["weight_map"]
        parts = {name: index.with_name(name) for name in places.values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is no index of a model's parts: it has no weight_map of file names.",
                         hint="Name the checkpoint itself.") from error
    if not isinstance(places, Mapping) or len(parts) > MOST or any(
            Path(name).name != name or name.endswith(INDEX) for name in parts):
        raise InputError(f"{index}: its weight_map names files that are not beside it.",
                         hint="Download the model again.")
    for name, path in parts.items():
        if not path.is_file():
            raise InputError(f"{index} names {name}, and there is no such file beside it.",
                             hint=f"Put all {len(parts)} parts into one folder.")
    return {path: [key for key, name in places.items() if name == path.name] for path in parts.values()}


def checkpoint_sha256(path: str | Path) -> str:
    """SHA-256 of a checkpoint: of its file, or of the list of its parts' hashes; 64 hexadecimal digits."""
    index = index_of(Path(path))
    if index is None:
        return file_sha256(path)
    lines = [f"{file_sha256(part)} {part.name}\n" for part in sorted(files_of(index))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
