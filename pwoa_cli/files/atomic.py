"""Files that are there whole or not at all: temporary name, fsync, rename, fsync of the folder."""
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pwoa_cli.errors import InputError, PwoaError, of_system

OUT_HINT = "Name a folder that you can write to: --out DIR"


@contextmanager
def atomic(path: Path, *, wanted: str = "", hint: str = OUT_HINT, new: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` to write to; becomes `path` if the block ends well, else is removed.

    A link is followed. Args: wanted: what kind of file was expected, for the error. new: a file that is there
    by then is left as it is, and InputError raised.
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
        if new and not _put(temporary, target):
            raise InputError(f"{path} exists; it was not touched.", hint="Name another: --out FILE")
        if not new:
            os.replace(temporary, target)
    except OSError as error:
        why = error.strerror or error
        said = f": cannot be written ({why}), expected {wanted}" if wanted else f" cannot be written: {why}"
        raise of_system(error, f"{path}{said}.", hint=hint) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def _put(temporary: Path, target: Path) -> bool:
    """Give a file its name, unless there is a file of that name, whoever makes it at the same time: a rename
    would replace that. Returns: whether it has the name now."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return os.path.samefile(temporary, target)  # NFS may lose an answer, and ask for the link twice
    except OSError:  # no links on this file system (FAT, some networks): the name is taken first, by nothing
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        try:
            os.replace(temporary, target)
        except BaseException:
            target.unlink()
            raise
    return True


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


def sync_folder(folder: Path) -> None:
    """Make the rename survive a power cut, where the system lets folders be synced (Windows, some networks do
    not)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
