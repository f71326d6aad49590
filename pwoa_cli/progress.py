"""How workflows speak: a line for people, and how far a phase is. Only the command line prints."""
import time
from collections.abc import Callable

Say = Callable[[str], None]  # a line for people
Progress = Callable[[str, int, int, str], None]  # phase, steps done, steps in all, more


class Patience:
    """A line about something that takes long: the first after 5 s, the next ones every 30 s."""

    def __init__(self, say: Say, *, first: float = 5.0, every: float = 30.0):
        self._say, self._every, self._due = say, every, time.monotonic() + first

    def say(self, text: str) -> None:
        """Say it, if it is time to."""
        if time.monotonic() >= self._due:
            self._say(text)
            self._due = time.monotonic() + self._every
