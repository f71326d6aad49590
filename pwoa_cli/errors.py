"""Errors that a user can act on: one sentence (what, where, got, expected) and the next command to try."""


GATE = 1  # exit code: a figure is beyond the limit of a gate
UNASKED = 3  # exit code: written, but not what was asked for: unfinished, or no better than guessing


class PwoaError(Exception):
    """A run that broke, which the command line shows as `error: MESSAGE` and `hint: HINT`, without a
    traceback: exit code 4."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(PwoaError):
    """Wrong use or wrong input: exit code 2."""

    exit_code = 2
