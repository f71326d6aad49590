"""Errors that a user can act on: one sentence (what, where, got, expected) and the next command to try."""
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GATE = 1  # exit code: a figure is beyond the limit of a gate
UNASKED = 3  # exit code: written, but not what was asked for: unfinished, or no better than guessing


class PwoaError(Exception):
    """A run that broke, which the command line shows as `error: MESSAGE` and `hint: HINT`, without a
    traceback: exit code 4."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str = ""):
        self.message, self.hint = ("\n".join(map(one_line, text.split("\n"))) for text in (message, hint))
        super().__init__(self.message)


class InputError(PwoaError):
    """Wrong use or wrong input: exit code 2."""

    exit_code = 2


MORE_MEMORY = "Close other programs, or raise the limit of this one: ulimit -v unlimited"
# What helps against an error of the operating system, by its number: first those that are the machine's, ...
_MACHINE = {
    errno.ENOSPC: "Free some space, or name a folder on another disk.",
    errno.EDQUOT: "Your quota of that disk is used up: free some space, or name a folder on another disk.",
    errno.EFBIG: "Files may not become so large here: raise the limit (ulimit -f unlimited), or name a "
                 "folder on another disk.",
    errno.EIO: "The disk or network failed: try again, or name a folder on another disk.",
    errno.ENOMEM: MORE_MEMORY,
    errno.EMFILE: "Raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "Raise the limit of open files: ulimit -n 4096",
}
# ... then those of what was named
_NAMED = {
    errno.ENAMETOOLONG: "Give it a shorter name, or a shorter path.",
    errno.ENOENT: "Check the path: it, or a folder on the way to it, is not there.",
    errno.ENOTDIR: "Check the path: a part of it is a file and no folder.",
    errno.EISDIR: "Name a file; this is a folder.",
    errno.ELOOP: "Check the path: its links go in a circle.",
    errno.EACCES: "Check its permissions and those of its folder.",
    errno.EPERM: "Check its permissions and those of its folder.",
    errno.EROFS: "That disk can only be read: name a folder on another.",
}


def of_system(error: OSError, message: str = "", *, hint: str = "") -> PwoaError:
    """An error of the operating system as a sentence: its number decides what helps and whose fault it is.

    Args: message: "" for "PATH: what it says". hint: what helps where the path was named wrongly.
    Returns: PwoaError where the machine failed (disk full), InputError where the path is at fault.
    """
    message = message or f"{error.filename or 'A file'}: {error.strerror or error}."
    if error.errno in _NAMED:
        return InputError(message, hint=hint or _NAMED[error.errno])
    return PwoaError(message, hint=_MACHINE.get(error.errno or 0, hint or "Check the path and the disk."))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch has no common class for CPU and GPU, and the
    loader of libraries tells no reason (a segment of torch's that cannot be mapped is an ImportError)."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    others = ("static tls", "not permitted", "denied")  # room for variables of threads; a disk without code
    words = ("out of memory", "allocate memory", "bad_alloc", "failed to map segment")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError | OSError)
        and any(word in text for word in words) and not any(word in text for word in others))


@contextmanager
def reading(path: str | Path, kind: str, *, hint: str) -> Iterator[None]:
    """Inside, whatever a parser of other people's bytes raises becomes an InputError: the file, its kind, the
    cause. Only parsing stands inside, as parsers raise anything: pickle's own documentation says so, zlib and
    tokenize have errors of their own, deep nesting is a RecursionError, a wrong length a MemoryError."""
    try:
        yield
    except PwoaError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path} cannot be read: {error.strerror}.", hint=hint) from error
        raise InputError(f"{path} cannot be read as {kind}, it is broken or truncated: {cause(error)}.",
                         hint=hint) from error


def cause(error: Exception) -> str:
    """Why a parser gave up, in a clause without control characters."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    return one_line(" ".join(str(error).split())[:120].rstrip(". ")) or type(error).__name__


def one_line(text: str) -> str:
    """Text without control characters, such as names from a file: they could hide or forge what a terminal
    shows."""
    return "".join(c if c.isprintable() else "?" for c in text)
