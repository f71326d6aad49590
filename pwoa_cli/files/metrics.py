"""metrics.jsonl: one JSON object a line, appended and flushed; a line cut short by a killed process is left
out."""
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pwoa_cli.errors import InputError
from pwoa_cli.files.plain import dumps


class MetricsLog:
    """metrics.jsonl of a run, appended to: `with MetricsLog(path) as log: log.append({"step": 1, "loss":
    0.5})`. Args: size: bytes of the file that stay, None for all of them."""

    def __init__(self, path: Path, *, size: int | None = None):
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by `close`, and by the block of the log itself)
        if size is not None and size < self._file.tell():
            self._file.truncate(size)
            self._file.seek(0, os.SEEK_END)
        if self._file.tell() and not _ends_with_newline(self._file):
            self._file.write(b"\n")  # a killed run left half a line: start behind it

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one JSON line and hand it to the operating system, so that a killed process loses nothing."""
        self._file.write(dumps(record).encode() + b"\n")
        self._file.flush()

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
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.",
                         hint="Name the metrics.jsonl of a run.") from None
    records = []
    for line in lines:
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]
