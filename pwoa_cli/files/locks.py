"""One writer at a time: a file with its owner, locked while a block runs.

    .pwoa.lock    {"pid": 4711, "host": "lab3", "started": "2026-01-02T03:04:05"}

The operating system holds the lock (flock; over NFS too) and lets go of it however the process ends, so a
file that a killed process left behind locks nothing. Where a file system has no flock, the owner in the file
decides: a process of this host that is gone holds nothing; one of another host cannot be asked and is taken
as alive.
"""
import errno
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pwoa_cli.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # mypy knows it as a module

# what systems say of a lock that they do not have
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
TRIES, PAUSE = 20, 0.02  # `owner` of another process takes the lock for a moment
HELD, FREE, UNTOLD = "held", "free", "untold"


@contextmanager
def held(path: Path, *, what: str, hint: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; it and folders made for it are there meanwhile.

    Args: what: that is written, for the error. Raises: InputError if another process holds it; OSError if the
    file cannot be made.
    """
    handle = _acquired(path)
    if handle is None:
        found = _read(path)
        asked = found.get("host") == socket.gethostname() and os.name != "nt"
        raise InputError(f"{what} is being written by {_told(found)}.",
                         hint=hint if asked else f"{hint} If that process is gone, remove "
                                                f"{shlex.quote(str(path))}")
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before it is let go: who waits for it sees that it is another file
        os.close(handle)
        if os.name == "nt":  # where an open file cannot be removed
            path.unlink(missing_ok=True)


def owner(path: Path) -> str:
    """Who holds a lock file, "process 4711 on lab3 since ..."; "" for nobody."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return ""
    try:
        state = _try(handle)
        found = _read(path)
        return _told(found) if state == HELD or state == UNTOLD and _alive(found) else ""
    finally:
        os.close(handle)


def _acquired(path: Path) -> int | None:
    """An open file that is locked and has this process as owner; None if another process has it."""
    for attempt in range(TRIES):
        time.sleep(PAUSE * bool(attempt))
        path.parent.mkdir(parents=True, exist_ok=True)  # another run may have tidied it away
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        if _mine(handle, path):
            return handle
        os.close(handle)
    return None


def _mine(handle: int, path: Path) -> bool:
    """Lock the file and write the owner into it; False if another process has it."""
    state = _try(handle)
    if state == HELD or state == UNTOLD and _alive(_read(path)):
        return False
    mark = {"pid": os.getpid(), "host": socket.gethostname(), "mark": os.urandom(4).hex(),
            "started": datetime.now().isoformat(timespec="seconds")}
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps(mark).encode())
    if state == UNTOLD:
        time.sleep(PAUSE)  # of two that write at the same time the last one has it
    with suppress(OSError):  # gone: its former owner has removed it after it was opened here
        return os.path.samestat(os.fstat(handle), os.stat(path)) and _read(path) == mark
    return False


def _try(handle: int) -> str:
    """Lock an open file. Returns: FREE if it is ours now, HELD, or UNTOLD where the system has no locks."""
    if fcntl is None:
        return UNTOLD
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return UNTOLD if error.errno in UNKNOWN else HELD
    return FREE


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _alive(found: dict[str, Any]) -> bool:
    """Whether an owner may be at work, by its words alone."""
    pid = found.get("pid")
    if not isinstance(pid, int) or found.get("host") != socket.gethostname() or os.name == "nt":
        return bool(found)  # on Windows os.kill ends the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    return True


def _told(found: dict[str, Any]) -> str:
    started = str(found.get("started", "")).replace("T", " ")
    return (f"process {found['pid']} on {found.get('host')} since {started}" if "pid" in found
            else "another process")
