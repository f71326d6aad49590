"""A sign of life: a line where nothing has been said for long, whatever the work is."""
import threading
import time
from collections.abc import Callable

from pwoa_cli.progress import pause
from pwoa_cli.reports.numbers import duration

SHOWN = 48  # characters of the last line


class Heartbeat:
    """`still working, 10 s after: LAST LINE`, in the rhythm of `progress.pause`. Args: write: a line."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic):
        self._write, self._clock = write, clock
        self._line, self._since, self._due = "", 0.0, float("inf")

    def said(self, line: str) -> None:
        """Something was said, so there is nothing to add for a while."""
        self._line, self._since = line.split("\n")[-1], self._clock()
        self._due = self._since + pause(0.0)

    def rest(self) -> None:
        """Nothing is wanted until something is said: a bar moves instead, or the work is over."""
        self._due = float("inf")

    def beat(self) -> None:
        """Say it, if it is time to."""
        now = self._clock()
        if now >= self._due:
            passed = now - self._since
            self._due = now + pause(passed)
            self._write(f"still working, {duration(passed)} after: {_short(self._line).strip()}")

    def start(self) -> None:
        """Beat until the program ends."""
        threading.Thread(target=self._go_on, daemon=True).start()

    def _go_on(self) -> None:
        while True:
            time.sleep(0.5)
            self.beat()


def _short(line: str) -> str:
    """At most SHOWN characters of it; of progress the last part too, which says how long it will take."""
    if len(line) <= SHOWN:
        return line
    bar, last = (" | ", line.rpartition(" | ")[2]) if line.count(" | ") else ("", "")
    if len(last) > SHOWN // 2:
        bar = last = ""
    return f"{line[:SHOWN - 1 - len(bar + last)].rstrip(' |')}…{bar}{last}"
