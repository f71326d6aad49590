"""Without what libraries print, warn and log of their own steps.

stdout, warnings and logging are the whole process's: of two threads that change and restore them at once the
later one would bring back what the other had set, and nothing would be printed or logged any more. So one
thread at a time does it, and others wait.
"""
import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

TURN = threading.RLock()  # held by whoever changes what is the process's, until it is as it was


@contextlib.contextmanager
def unlogged(level: int) -> Iterator[None]:
    """Without logs up to a level."""
    with TURN:
        before = logging.root.manager.disable
        logging.disable(max(level, before))
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without prints, warnings and logs; what fails is an exception too."""
    with (unlogged(logging.CRITICAL), warnings.catch_warnings(action="ignore"),
          contextlib.redirect_stdout(io.StringIO())):
        yield
