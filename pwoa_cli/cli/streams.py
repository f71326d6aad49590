"""The streams of the process: whatever is wrong with them, a command comes to its end and its result is not
lost. stdout is the result's alone: what other people's code prints while a command runs goes to stderr."""
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from pwoa_cli.errors import PwoaError


class _Descriptor(io.FileIO):
    """A descriptor to which writing never raises: the first failure is kept."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (count := super().write(data)) is None:  # a pipe that its owner made non-blocking is full
                select.select([], [self], [])
            return count
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


class _Text(io.TextIOWrapper):
    """Text on a descriptor that nobody's `sys.stdout.close()` closes; what it cannot encode is escaped."""

    def __init__(self, descriptor: int, encoding: str):
        self.sink = _Descriptor(descriptor, "wb", closefd=False)
        super().__init__(io.BufferedWriter(self.sink), encoding=encoding, errors="backslashreplace",
                         line_buffering=True)

    def close(self) -> None:
        self.flush()


_own: TextIO | None = None  # stdout, while a command runs: it is the process's, as sys.stdout is


def prepare() -> None:
    """Make the standard streams ones that take everything: to be called first.

    Descriptors 0 to 2 are open then: else the next file that is opened got their number, and what is printed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or _is_on(stream, descriptor):
            setattr(sys, name, _Text(descriptor, getattr(stream, "encoding", None) or "utf-8"))


def result() -> TextIO:
    """Where the result goes."""
    return _own or sys.stdout


@contextmanager
def apart() -> Iterator[None]:
    """Keep stdout for the result while the block runs.

    Raises: PwoaError at the end if the result could not be written.
    """
    global _own
    before = sys.stdout
    before.flush()
    kept = os.dup(1)
    os.dup2(2, 1)  # for what prints below Python too
    _own = _Text(kept, before.encoding or "utf-8") if _is_on(before, 1) else before
    sys.stdout = _Text(1, "utf-8")
    try:
        yield
        if why := fault(_own):
            raise PwoaError(f"stdout cannot be written: {why}; the result is not all there.",
                            hint="Free some space, or send it elsewhere. Written files are whole, and pwoa "
                                 "eval goes on with --resume.")
    finally:
        sys.stdout.flush()
        sys.stdout, _own = before, None
        os.dup2(kept, 1)
        os.close(kept)


def fault(stream: TextIO) -> str:
    """Why not all that was written there arrived, "" if it did. A reader that has gone (`| head -1`) has what
    it wanted."""
    failure = stream.sink.failure if isinstance(stream, _Text) else None
    return str(failure.strerror) if failure and failure.errno != errno.EPIPE else ""


def _is_on(stream: Any, descriptor: int) -> bool:
    with suppress(AttributeError, OSError, ValueError):  # no file at all, or closed
        return bool(stream.fileno() == descriptor)
    return False
