"""Files that are there whole or not at all: temporary name, fsync, rename, fsync of the folder."""
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pwoa_cli.errors import InputError

OUT_HINT = "Name a folder that you can write to: --out DIR"


@contextmanager
def atomic(path: Path, *, wanted: str = "", hint: str = OUT_HINT) -> Iterator[Path]:
    """A temporary name beside `path` to write to; becomes `path` if the block ends well, else is removed.

    A link is followed. Args: wanted: what kind of file was expected, for the error.
    Raises: InputError for an OSError inside (disk full, no permission): the old file, if any, is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".pwoa-{secrets.token_hex(6)}.tmp")
    try:
        if target.exists() and not target.is_file():  # a rename would replace /dev/null
            raise FileExistsError("it is not a regular file")
        yield temporary
        with open(temporary, "r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        why = error.strerror or error
        said = f": cannot be written ({why}), expected {wanted}" if wanted else f" cannot be written: {why}"
        raise InputError(f"{path}{said}.", hint=hint) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Put text (UTF-8) at `path` as a whole or not at all. Raises: InputError as `atomic`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else writes in."""
    for left in folder.glob(".pwoa-*.tmp"):
        left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename survive a power cut, where the system lets folders be synced (Windows, some networks do
    not)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
