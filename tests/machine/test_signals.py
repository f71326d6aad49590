"""Signals: at once, or after the work under way, but never much later; who asks twice does not wait."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pwoa_cli.machine import signals

KINDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def listening():
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.listen()
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


def send(kind):
    os.kill(os.getpid(), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_ends_what_has_nothing_to_keep_at_once(kind):
    with pytest.raises(KeyboardInterrupt):
        send(kind)


def test_what_is_left_of_a_signal_is_taken_for_no_answer():
    signals.let_through(ValueError("half an import"))
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signals.let_through(ValueError("half an import"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_waits_until_it_is_asked_for(kind):
    seen = []
    with pytest.raises(KeyboardInterrupt), signals.patient():
        assert not signals.wanted()
        send(kind)
        seen.append("work")
        assert signals.wanted()
        seen.append("kept")
        raise KeyboardInterrupt
    assert seen == ["work", "kept"] and not signals.wanted()


def test_the_same_end_said_twice_breaks_nothing_off():
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    send(signal.SIGHUP)  # while files are put away
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_signal_that_nobody_asked_for_ends_the_block():
    seen = []
    with pytest.raises(KeyboardInterrupt), signals.patient():
        send(signal.SIGTERM)
        seen.append("all of it")
    assert seen


def test_another_ctrl_c_does_not_wait_and_another_kind_is_no_impatience():
    with pytest.raises(KeyboardInterrupt), signals.patient():
        send(signal.SIGHUP)
        send(signal.SIGTERM)  # as systemd sends them together
        assert signals.wanted()
        send(signal.SIGINT)
        pytest.fail("it went on")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ignored", [False, True])
def test_patience_comes_to_an_end(monkeypatch, kind, ignored):
    """Also where Ctrl-C is ignored, as in a job in the background."""
    if ignored and kind == signal.SIGINT:
        ignored = False
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signals.listen()
    monkeypatch.setattr(signals, "PATIENCE", 0.1)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), signals.patient():
        send(kind)
        while time.monotonic() < start + 10:
            time.sleep(0.01)
    assert time.monotonic() < start + 5


def test_what_is_kept_is_not_hurried(monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE", 0.05)
    with pytest.raises(KeyboardInterrupt), signals.patient():
        send(signal.SIGTERM)
        assert signals.wanted()
        time.sleep(0.2)  # writes
        raise KeyboardInterrupt


def test_what_was_ignored_stays_ignored():
    """nohup ignores SIGHUP before it starts a program."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.listen()
    send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_terminal_that_closes_takes_no_words_and_no_work_with_it(tmp_path):
    """On a pseudo-terminal that goes while the process works: what it says then fails nothing."""
    import fcntl
    import pty
    import termios

    code = """if True:
        import sys, time
        from pathlib import Path
        from pwoa_cli.machine import signals
        signals.listen()
        try:
            with signals.patient():
                print("here", file=sys.stderr, flush=True)
                while not signals.wanted():
                    time.sleep(0.01)
                Path(sys.argv[1]).write_text("kept")
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print("where nobody reads", file=sys.stderr, flush=True)
            sys.exit(130)"""
    main, side = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "state")], stdin=side, stdout=side,
                               stderr=side, start_new_session=True, cwd=Path(__file__).parents[2],
                               preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(side)
    assert b"here" in os.read(main, 100)
    os.close(main)  # the terminal is gone: the kernel sends SIGHUP
    assert process.wait(timeout=10) == 130 and (tmp_path / "state").read_text() == "kept"
