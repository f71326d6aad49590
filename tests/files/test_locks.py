"""One writer at a time, told from what a dead one left behind."""
import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pwoa_cli.errors import InputError
from pwoa_cli.files import locks

LOCK = Path("o/.pwoa.lock")
HOLD = """if True:
    import sys, time
    from pathlib import Path
    from pwoa_cli.files import locks
    with locks.held(Path(sys.argv[1]), what="o", hint="Wait."):
        print("held", flush=True)
        time.sleep(60)"""


def hold():
    return locks.held(LOCK, what="o", hint="Wait for it.")


@pytest.fixture
def other():
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(LOCK.absolute())], stdout=subprocess.PIPE,
                               text=True, cwd=Path(__file__).parents[2])
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def without_flock(monkeypatch):
    """A file system that has no locks."""
    def refuses(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if locks.fcntl is not None:
        monkeypatch.setattr(locks.fcntl, "flock", refuses)


def write(**owner):
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(json.dumps(owner))


def test_a_lock_says_whose_it_is_and_goes_with_its_block():
    with hold():
        found = json.loads(LOCK.read_text())
        assert found["pid"] == os.getpid() and found["host"] == socket.gethostname() and found["started"]
        assert locks.owner(LOCK).startswith(f"process {os.getpid()} on {socket.gethostname()} since 20")
    assert not LOCK.exists() and LOCK.parent.is_dir() and not locks.owner(LOCK)


def test_of_two_the_second_is_refused_also_in_one_process():
    with hold():
        with pytest.raises(InputError, match=f"o is being written by process {os.getpid()} on ") as caught:
            hold().__enter__()
        assert caught.value.hint == "Wait for it." and LOCK.exists()
    with hold():
        pass


def test_a_live_process_is_told_from_one_that_was_killed(other):
    with pytest.raises(InputError, match=rf"by process {other.pid} on .* since "), hold():
        pass
    assert f"process {other.pid} " in locks.owner(LOCK)
    other.kill()
    other.wait()
    assert LOCK.exists() and not locks.owner(LOCK)  # what it left behind holds nothing
    with hold():
        assert json.loads(LOCK.read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_owner_decides(other):
    write(pid=other.pid, host=socket.gethostname(), started="2026-01-02T03:04:05")
    with pytest.raises(InputError, match=f"by process {other.pid} on "), hold():
        pass
    assert "since 2026-01-02 03:04:05" in locks.owner(LOCK)
    other.kill()
    other.wait()
    assert not locks.owner(LOCK)
    with hold(), pytest.raises(InputError), hold():
        pass
    assert not LOCK.exists()


@pytest.mark.usefixtures("without_flock")
def test_without_flock_another_host_cannot_be_asked():
    write(pid=1, host="elsewhere", started="2026-01-02T03:04:05")
    with pytest.raises(InputError, match="by process 1 on elsewhere since 2026-01-02 03:04:05") as caught:
        hold().__enter__()
    assert caught.value.hint == f"Wait for it. If that process is gone, remove {LOCK}"
    assert LOCK.exists()


@pytest.mark.parametrize("left", ["", "{", "[]", '{"pid": "x"}', '{"host": 3}'])
def test_a_file_of_nobody_locks_nothing(left):
    LOCK.parent.mkdir()
    LOCK.write_text(left)
    assert not locks.owner(LOCK)
    with hold():
        pass
    assert not LOCK.exists()


def test_who_looks_does_not_keep_others_out():
    import threading

    write(pid=1)
    ends = threading.Event()

    def looks():
        while not ends.is_set():
            locks.owner(LOCK)

    thread = threading.Thread(target=looks)
    thread.start()
    try:
        for _ in range(30):
            with hold():
                pass
    finally:
        ends.set()
        thread.join()


def test_a_place_that_cannot_be_written_is_the_callers_to_say():
    with pytest.raises(OSError), locks.held(Path("/proc/none/lock"), what="o", hint=""):
        pass
