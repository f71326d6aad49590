"""metrics.jsonl: one JSON object a line, appended and flushed; a line cut short by a killed process is left
out."""
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pwoa_cli.errors import reading
from pwoa_cli.files.plain import dumps, json_of
from pwoa_cli.progress import Say


class MetricsLog:
    """metrics.jsonl of a run, appended to: `with MetricsLog(path) as log: log.append({"step": 1, "loss":
    0.5})`.

    A line that cannot be written (a full disk) costs the log and not the run. Args: lost: told of it, once.
    size: bytes of the file that stay, None for all of them.
    """

    def __init__(self, path: Path, *, lost: Say = lambda text: None, size: int | None = None):
        self.path, self._lost, self._told = path, lost, False
        # unbuffered: what could not be written must not be tried once more when it is closed
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by `close`, and by the log's block)
        if size is not None and size < self._file.tell():
            self._file.truncate(size)
            self._file.seek(0, os.SEEK_END)
        # a killed run may have left half a line: start behind it
        self._first = b"\n" if self._file.tell() and not _ends_with_newline(self._file) else b""

    def append(self, record: Mapping[str, Any]) -> None:
        """Hand one JSON line to the operating system, so that a killed process loses nothing."""
        line = self._first + dumps(record).encode() + b"\n"
        try:
            whole = self._file.write(line) == len(line)
            self._first = b"" if whole else b"\n"
            self._say("" if whole else "there was space for half a line")
        except OSError as error:
            self._say(str(error.strerror or error))

    def _say(self, why: str) -> None:
        if why and not self._told:
            self._lost(f"warning: {self.path} cannot be written ({why}): the run goes on, and its log lacks "
                       "these lines.")
            self._told = True

    def sync(self) -> int:
        """Hand it to the disk, so that a power cut loses nothing. Returns: the size of the file, in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file; `append` is over."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; lines cut short by a killed process are left out.

    Raises: InputError if the file cannot be read.
    """
    with reading(path, "a log of metrics", hint="Name the metrics.jsonl of a run."):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            records.append(json_of(line))
    return [record for record in records if isinstance(record, dict)]
