"""Errors that a user can act on: one sentence (what, where, got, expected) and the next command to try."""
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
