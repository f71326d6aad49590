"""Ctrl-C, SIGTERM (kill, time limits) and SIGHUP (a terminal that closed) end a command by KeyboardInterrupt.

Inside `patient` the first of them waits for the work to come to a point where it can be kept: the work asks
`wanted` there. After PATIENCE seconds, or at another Ctrl-C, it waits no more. One that was ignored when the
process began (nohup) stays ignored. Signals belong to the process, so what they asked for is kept here, not
passed; without `listen`, as in other people's programs, nothing of this happens.
"""
import _thread
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from pwoa_cli.errors import is_out_of_memory

PATIENCE = 3.0  # seconds; with the writing of what is kept it is over in 5
TOGETHER = 1.0  # seconds: systemd sends SIGTERM and SIGHUP, a terminal that closes SIGHUP twice
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@dataclass
class _Wish:
    """Whether the process is to end. patient: it may wait; here: it waits; over: it has waited enough; ended:
    when it did, by time.monotonic. terminals: streams that go when the terminal does."""

    terminals: tuple[int, ...] = ()
    patient: bool = False
    here: bool = False
    over: bool = False
    ended: float = -math.inf
    timer: threading.Timer | None = None


_wish = _Wish()


def listen() -> None:
    """From now on signals do what is said above. To be called by the main thread of a command."""
    global _wish
    _wish = _Wish(tuple(stream for stream in (1, 2) if os.isatty(stream)))
    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _arrived)


@contextmanager
def patient() -> Iterator[None]:
    """Inside, the first signal waits for `wanted` to be asked. Raises: KeyboardInterrupt at the end, if one
    came and nobody asked."""
    _wish.patient = True
    try:
        yield
        if _wish.here:
            raise KeyboardInterrupt
    finally:
        _wish.patient = _wish.here = _wish.over = False
        _stop_counting()


def wanted() -> bool:
    """Whether the process is to end: then keep what there is and raise KeyboardInterrupt."""
    if _wish.here:
        _stop_counting()
    return _wish.here


def ended() -> bool:
    """Whether a signal has ended the process, whatever became of its KeyboardInterrupt: it may arrive in
    foreign code that swallows it, or that goes on with a module half imported (torch's exporter of ONNX:
    AttributeError)."""
    return _wish.ended > -math.inf


def let_through(error: BaseException | None = None) -> None:
    """Where an exception of foreign code would be taken for an answer. Raises: KeyboardInterrupt if a signal
    has ended the process, of which that exception may be what is left; `error` if it says that memory ran
    out."""
    if ended():
        raise KeyboardInterrupt
    if error is not None and is_out_of_memory(error):
        raise error


def _arrived(number: int, frame: FrameType | None) -> None:
    if number == getattr(signal, "SIGHUP", None):
        _leave_terminal()
    if number != signal.SIGINT and time.monotonic() < _wish.ended + TOGETHER:
        return  # what is being put away must not be broken off by the same end said twice
    if not _wish.patient or _wish.over or _wish.here and number == signal.SIGINT:
        _wish.patient, _wish.ended = False, time.monotonic()  # nobody who asks twice wants to wait
        raise KeyboardInterrupt
    if not _wish.here:
        _wish.here, _wish.timer = True, threading.Timer(PATIENCE, _lose_patience, [signal.Signals(number)])
        _wish.timer.daemon = True
        _wish.timer.start()


def _lose_patience(number: signal.Signals) -> None:
    _wish.over = True
    _thread.interrupt_main(number)  # SIGINT itself may be ignored


def _stop_counting() -> None:
    if _wish.timer is not None:
        _wish.timer.cancel()
        _wish.timer = None


def _leave_terminal() -> None:
    """Words to a terminal that is gone go nowhere, instead of failing where something is being kept."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in _wish.terminals:
        os.dup2(nowhere, stream)
    os.close(nowhere)
