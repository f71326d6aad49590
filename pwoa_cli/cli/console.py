"""What the command line shows: stdout is the result, stderr is for people.

Text of users and files is printed as it is: no markup is read into it, and control characters are made
visible, so that a file name cannot colour or clear a terminal.
"""
import logging
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pwoa_cli.cli import streams
from pwoa_cli.cli.heartbeat import Heartbeat
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files.plain import dumps
from pwoa_cli.progress import pause
from pwoa_cli.reports.escapes import terminal, visible
from pwoa_cli.reports.numbers import duration

_BEGUN = time.monotonic()
_BAR = 6  # columns of a bar
_NARROW = 60  # columns that a row with a bar takes at most: a terminal made narrower, to there, breaks none


LOG = logging.getLogger("pwoa_cli")  # of --verbose: what modules say of their reasons, and when


class Console:
    """The two streams of one command. Args: json: stdout gets one JSON object and nothing else. quiet: no
    say, no progress. verbose: what modules log too, each line with the seconds since the program began; None:
    as it was.

    Raises: InputError for both quiet and verbose.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool | None = None):
        if quiet and verbose:
            raise InputError("--quiet and --verbose exclude each other.", hint="Leave one of them out.")
        self.json = json
        self.quiet = quiet
        if verbose is not None:
            LOG.setLevel(logging.DEBUG if verbose else logging.WARNING)
            LOG.handlers = [_ToStderr()] if verbose else [logging.NullHandler()]

    def say(self, text: str) -> None:
        """A line for people on stderr; quiet leaves it out, unless it is a `warning: TEXT` of a workflow."""
        if not self.quiet:
            HEARTBEAT.said(text)
        if not self.quiet or text.startswith("warning: "):
            _to_stderr(_stamped(text))

    def warn(self, text: str) -> None:
        """`warning: TEXT` on stderr, also when quiet."""
        _to_stderr(f"warning: {text}")

    def raw(self, line: str) -> None:
        """A line on stderr that a program reads: never broken, also when quiet."""
        _write(sys.stderr, visible(line))

    def error(self, error: PwoaError) -> None:
        """`error: MESSAGE` and `hint: HINT` on stderr, also when quiet."""
        _to_stderr(f"error: {error.message}")
        if error.hint:
            _to_stderr(f"hint: {error.hint}")
        for line in _causes(error) if verbose() else ():
            _to_stderr(line)

    def result(self, text: str, json_object: Mapping[str, Any], *,
               table: Callable[[], Any] | None = None) -> bool:
        """The result on stdout, in one of three forms of the same content.

        Args: text: Markdown, for a pipe or a file. json_object: for --json; NaN and infinity become null.
        table: makes a rich renderable for a terminal (default: the text there too).
        Returns: whether it could be written; if not, the command ends with that error.
        """
        HEARTBEAT.rest()
        stream = streams.result()
        if self.json:
            _write(stream, dumps(json_object))
        elif table is not None and stream.isatty():
            from rich.console import Console as RichConsole

            # without a height rich takes 80 columns on a dumb terminal
            RichConsole(file=stream, width=_width(stream), height=25).print(table())
        else:
            _write(stream, terminal(text.rstrip("\n")))
        return not streams.fault(stream)

    @contextmanager
    def progress(self) -> Iterator["Progress"]:
        """Progress on stderr while the block runs: a bar on a terminal, lines elsewhere, nothing when quiet.

        `with console.progress() as progress: work(on_progress=progress.update)`. At the end, also by an
        exception, the last state is shown.
        """
        if self.quiet:
            yield Progress(lambda phase, done, total, line, must: None)
        elif _live(sys.stderr):
            HEARTBEAT.rest()
            with _bar() as show:
                yield Progress(show)
        else:
            progress = Progress(lines())
            try:
                yield progress
            finally:
                progress.close()


Show = Callable[[str, int, int, str, bool], None]  # phase, done, total, line, whether it must be seen


class Progress:
    """The phases of a run as lines such as `prune 30% | epoch 6/20 | loss 1.23 | eta 12m`, handed to
    `show`."""

    def __init__(self, show: Show, *, clock: Callable[[], float] = time.monotonic):
        self._show, self._clock = show, clock
        self._phase, self._start, self._first = "", 0.0, 0
        self._last: tuple[str, int, int, str] | None = None  # not yet shown for certain

    def update(self, phase: str, done: int, total: int, text: str = "") -> None:
        """Say that `done` of `total` steps of a phase are over; the eta is that of the phase.

        Args: done: 0..total, counted from where the phase stands at its first update. text: more, e.g. "epoch
        6/20".
        """
        now = self._clock()
        begins = phase != self._phase
        if begins:
            self.close()
            self._phase, self._start, self._first = phase, now, done
        line = " | ".join(part for part in (f"{phase} {_share(done, total)}%", text,
                                            self._when(now, done, total)) if part)
        must = begins or done >= total
        self._show(phase, done, total, line, must)
        self._last = None if must else (phase, done, total, line)

    def close(self) -> None:
        """Show the last state of the phase, if an update came after the one that was shown."""
        if self._last:
            self._show(*self._last, True)
        self._last = None

    def _when(self, now: float, done: int, total: int) -> str:
        passed, steps = now - self._start, done - self._first
        if done >= total:
            return f"took {duration(passed)}" if steps else ""
        return f"eta {duration(passed / steps * (total - done))}" if steps > 0 else ""


def _share(done: int, total: int) -> int:
    return 100 if done >= total else int(100 * done / total)  # 100% only when it is over


def lines(*, clock: Callable[[], float] = time.monotonic) -> Show:
    """Lines on stderr in the rhythm of `progress.pause`, by phase, and those that must be seen; the same line
    never twice in a row."""
    begun, due, shown, current = 0.0, 0.0, "", ""

    def show(phase: str, done: int, total: int, line: str, must: bool) -> None:
        nonlocal begun, due, shown, current
        now = clock()
        if phase != current:
            current, begun = phase, now
        if line != shown and (must or now >= due):
            HEARTBEAT.said(line)
            _to_stderr(_stamped(line))
            due, shown = now + pause(now - begun), line

    return show


@contextmanager
def _bar() -> Iterator[Show]:
    """A rich bar for each phase on stderr, with its line beside it: one row a phase, never folded, as what a
    terminal has broken into two rows cannot be erased for certain."""
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    console = RichConsole(file=sys.stderr)
    text = TextColumn("{task.description}", markup=False,
                      table_column=Column(no_wrap=True, overflow="ellipsis"))
    with RichProgress(BarColumn(bar_width=_BAR), text, console=console, refresh_per_second=4,
                      # stdout stays the result's, even when only stderr is a terminal
                      redirect_stdout=False) as bar:
        tasks: dict[str, Any] = {}

        def show(phase: str, done: int, total: int, line: str, must: bool) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task("")
            room = min(console.width, _NARROW) - _BAR - 1 - len("^C")
            bar.update(tasks[phase], description=_cropped(visible(line), room), completed=done,
                       total=max(1, total))

        yield show


def _cropped(line: str, columns: int) -> str:
    """What there is no room for goes out of the middle: phase and eta stay."""
    parts = line.split(" | ")
    while len(parts) > 3 and len(" | ".join(parts)) > columns:
        del parts[len(parts) // 2]
    middle, over = len(parts) // 2, len(" | ".join(parts)) - columns
    if over > 0:
        parts[middle] = f"{parts[middle][:-over - 1]}…"
    return " | ".join(parts)


def _live(stream: Any) -> bool:
    """Whether a bar can be redrawn in place there and somebody sees it."""
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown") and not in_ci


def _to_stderr(text: str) -> None:
    """One write, so that lines of threads do not mix; broken between words on a terminal, never where it is
    read by a program."""
    text = terminal(text)
    if sys.stderr.isatty():
        text = "\n".join(_wrapped(line, _width(sys.stderr)) for line in text.split("\n"))
    _write(sys.stderr, text)


HEARTBEAT = Heartbeat(_to_stderr)  # one, as there is one stderr; the program starts it


def verbose() -> bool:
    """Whether the command that runs was told --verbose."""
    return LOG.isEnabledFor(logging.DEBUG)


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _to_stderr(_stamped(record.getMessage()))


def _stamped(text: str) -> str:
    """With the seconds since the program began, where they are wanted."""
    return f"[{time.monotonic() - _BEGUN:.1f} s] {text}" if verbose() else text


def _causes(error: BaseException) -> Iterator[str]:
    """What was raised where, the last one first, also what an `except` had hidden."""
    one: BaseException | None = error
    while one is not None:
        at = traceback.extract_tb(one.__traceback__)
        where = f" at {at[-1].filename}:{at[-1].lineno} in {at[-1].name}" if at else ""
        yield f"  {'raised' if one is error else 'because of'} {type(one).__name__}{where}: {one}"
        one = one.__cause__ or one.__context__


def _write(stream: Any, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


def _wrapped(line: str, width: int) -> str:
    """Broken between words, paths stay whole; what is indented stays indented."""
    indent = line[:len(line) - len(line.lstrip())]
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)


def _width(stream: Any) -> int:
    """Columns of the terminal behind a stream, $COLUMNS first."""
    try:
        return max(20, int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns))
    except (OSError, ValueError):
        return 80
