"""Processes of their own: waited for, and on a pseudo-terminal."""
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from helpers.cli_world import PACKAGE
from pwoa_cli.machine import signals
from pwoa_cli.training import loop


def signal_in_step(monkeypatch, step):
    """A signal comes during a step, counted from 1. Returns: the steps that were begun, as they are."""
    real, begun = loop.step, []

    def arrives(plan, state):
        begun.append(state.step)
        if len(begun) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(plan, state)

    monkeypatch.setattr(loop, "step", arrives)
    return begun


def swallows_a_signal(monkeypatch, module, name, *, instead):
    """A signal comes within a function of foreign code, which makes another exception of it (None: goes on
    with None)."""
    monkeypatch.setattr(signals, "_wish", signals._Wish())  # what came is forgotten after the test

    def foreign(*args, **kwargs):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)  # a signal arrives between two instructions
        if instead is not None:
            raise instead

    monkeypatch.setattr(module, name, foreign)


def wait(process, happens, *, seconds=30.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until and not happens():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def on_closing_terminal(args, happens, *, seconds=30.0):
    """`pwoa args` on a pseudo-terminal of its own, which closes when something happens."""
    import fcntl
    import pty
    import select
    import termios

    main, side = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)}
    process = subprocess.Popen([sys.executable, "-m", "pwoa_cli", *args], stdin=side, stdout=side,
                               stderr=side, start_new_session=True, env=environment,
                               preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(side)
    until, shown = time.monotonic() + seconds, b""
    while time.monotonic() < until and not happens():
        if select.select([main], [], [], 0.02)[0]:
            shown += os.read(main, 65536)
    assert process.poll() is None, shown.decode()
    os.close(main)
    return process


def in_terminal(code, args, *, columns):
    """What a program shows on a pseudo-terminal."""
    import fcntl
    import pty
    import struct
    import termios

    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI", "NO_COLOR")}
    environment |= {"TERM": "xterm", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)}
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdin=side, stdout=side, stderr=side,
                               env=environment)
    os.close(side)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:  # the terminal has closed
        pass
    os.close(main)
    assert process.wait(timeout=30) == 0, shown.decode()
    return shown.decode()
