"""How workflows speak: a line for people, and how far a phase is. Only the command line prints."""
import time
from collections.abc import Callable

Say = Callable[[str], None]  # a line for people
Progress = Callable[[str, int, int, str], None]  # phase, steps done, steps in all, more


def pause(passed: float) -> float:
    """Seconds until the next line about something that has lasted so long: lines come 5, 10, 20 and 40 s
    after it began, then every 30 s."""
    return min(30.0, max(5.0, passed))


class Patience:
    """A line about something that takes long, in the rhythm of `pause`."""

    def __init__(self, say: Say):
        self._say, self._start = say, time.monotonic()
        self._due = self._start + pause(0.0)

    def say(self, text: str) -> None:
        """Say it, if it is time to."""
        now = time.monotonic()
        if now >= self._due:
            self._say(text)
            self._due = now + pause(now - self._start)
