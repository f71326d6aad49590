"""Folders that are there whole or not at all: filled beside their place, fsync, rename; one writer. And those
of temporary files."""
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pwoa_cli.errors import PwoaError, of_system
from pwoa_cli.files import locks
from pwoa_cli.files.atomic import sync_folder


@contextmanager
def whole_folder(path: Path, *, hint: str) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; becomes `path`, in place of a folder that is there, if the
    block ends well, else is removed.

    A link is followed. What a killed process left is put back, or swept. Raises: as `atomic.atomic`: the old
    folder, if any, is as it was; InputError if another process writes it.
    """
    target = Path(os.path.realpath(path))
    made, old, lock = (target.with_name(f".pwoa-{target.name}.{kind}") for kind in ("new", "old", "lock"))
    try:
        if target.parent.is_file():  # mkdir says that it exists
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(lock, what=f"folder {path}", hint=hint):
            try:
                _tidied(target, made, old)
                made.mkdir()
                yield made
                _replace(target, made, old)
            finally:
                _tidied(target, made, old)
    except OSError as error:
        raise of_system(error, f"{path} cannot be written: {error.strerror or error}.", hint=hint) from error
    sync_folder(target.parent)


def _replace(target: Path, made: Path, old: Path) -> None:
    for file in filter(Path.is_file, made.rglob("*")):
        with open(file, "r+b") as written:
            os.fsync(written.fileno())
    if target.exists():
        target.rename(old)
    made.rename(target)


def _tidied(target: Path, made: Path, old: Path) -> None:
    """The old folder in its place, if it was moved out of it and no new one came; nothing beside it."""
    if old.exists() and not target.exists():
        old.rename(target)
    for left in (made, old):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder among temporary files, gone after the block, in which nothing else may be written.

    Raises: PwoaError, in the place of an OSError inside or a PwoaError that comes of one: nobody named that
    folder, so it is said which it is, and how another is named.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except (OSError, PwoaError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        where = f", {tempfile.tempdir}," if tempfile.tempdir else ""  # None where no folder serves
        raise PwoaError(f"The folder of temporary files{where} cannot be written: {cause.strerror or cause}.",
                        hint="Free some space there, or name another in front of the command: "
                             "TMPDIR=/var/tmp pwoa ...") from error
