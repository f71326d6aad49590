"""Files and folders, there whole or not at all: temporary name, fsync, rename, fsync of where it is."""
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pwoa_cli.errors import PwoaError, of_system

OUT_HINT = "Name a folder that you can write to: --out DIR"


@contextmanager
def atomic(path: Path, *, wanted: str = "", hint: str = OUT_HINT) -> Iterator[Path]:
    """A temporary name beside `path` to write to; becomes `path` if the block ends well, else is removed.

    A link is followed. Args: wanted: what kind of file was expected, for the error.
    Raises: as `errors.of_system` for an OSError inside (PwoaError for a full disk, InputError for a path that
    cannot be written): the old file, if any, is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".pwoa-{os.urandom(6).hex()}.tmp")
    try:
        if target.exists() and not target.is_file():  # a rename would replace /dev/null
            raise FileExistsError(errno.EISDIR, "it is not a regular file")
        yield temporary
        with open(temporary, "r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        why = error.strerror or error
        said = f": cannot be written ({why}), expected {wanted}" if wanted else f" cannot be written: {why}"
        raise of_system(error, f"{path}{said}.", hint=hint) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


@contextmanager
def whole_folder(path: Path, *, hint: str) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; becomes `path`, in place of a folder that is there, if the
    block ends well, else is removed.

    A link is followed. Raises: as `atomic`: the old folder, if any, is as it was.
    """
    target = Path(os.path.realpath(path))
    made, old = (target.with_name(f".pwoa-{os.urandom(6).hex()}.{kind}") for kind in ("new", "old"))
    try:
        made.mkdir(parents=True)
        yield made
        for file in filter(Path.is_file, made.rglob("*")):
            with open(file, "r+b") as written:
                os.fsync(written.fileno())
        if target.exists():
            target.rename(old)
        made.rename(target)
    except OSError as error:
        raise of_system(error, f"{path} cannot be written: {error.strerror or error}.", hint=hint) from error
    finally:
        if old.exists() and not target.exists():  # stopped between the two
            old.rename(target)
        for left in (made, old):
            shutil.rmtree(left, ignore_errors=True)
    _sync_folder(target.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Put text (UTF-8; bytes of file names that are no UTF-8 as they are) at `path` as a whole or not at all.
    Raises: as `atomic`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def each(*writes: Callable[[], None]) -> None:
    """Do all of them, whichever fails: what one cannot write does not cost the others. Raises: the first
    PwoaError."""
    failed: list[PwoaError] = []
    for write in writes:
        try:
            write()
        except PwoaError as error:
            failed.append(error)
    if failed:
        raise failed[0]


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
