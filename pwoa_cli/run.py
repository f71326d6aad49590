"""The run folder `pwoa-runs/<model>-<sparsity>-<time>/` and the files in it, each complete or absent.

    model.safetensors  report.json  report.md  config.toml    written at once: temporary name, fsync, rename
    metrics.jsonl                                             one JSON object a line, flushed; a cut last line is ignored

A run is finished when model.safetensors and report.json are there. JSON never holds NaN or infinity: they become null.
"""
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from pwoa_cli.errors import InputError

ROOT = Path("pwoa-runs")
UNFINISHED = ROOT / ".eval"  # what evaluations found so far
FINISHED = ("model.safetensors", "report.json")
STAMP = "%Y%m%d-%H%M%S"
OUT_HINT = "Name a folder that you can write to: --out DIR"


def create(out: Path | None, *, model_name: str, sparsity: float, now: datetime, need_bytes: int = 10_000_000,
           again: bool = False) -> Path:
    """Make the folder of a new run and try that it can be written, before any work is done for it.

    Args: out: None for pwoa-runs/<model>-<sparsity>-<time>, with -2, -3, ... where that exists; a folder given by the
    user must be new or empty. model_name: any text, made fit for a file name. now: the start of the run.
    need_bytes: free space asked of the disk. again: a folder of the user's may hold an earlier
    evaluation and nothing else.
    Raises: InputError if the folder exists with content, cannot be made or written, or the disk is too full.
    """
    try:
        made = out is None or not out.exists()
        path = _new_default(model_name, sparsity, now) if out is None else _named(out, again=again)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"pwoa")
    except OSError as error:
        raise InputError(f"output folder {out or ROOT} cannot be written: {error.strerror}.", hint=OUT_HINT) from None
    free = shutil.disk_usage(path).free
    if free < need_bytes:
        if made:
            _remove_empty(path, *([ROOT] if out is None else []))
        raise InputError(f"the disk of {out or ROOT} has {free / 1e6:.0f} MB free, this run needs {need_bytes / 1e6:.0f} MB.",
                         hint="Free some space, or name a folder on another disk: --out DIR")
    return path


def _named(out: Path, *, again: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise InputError(f"output folder {out} is a file.", hint=OUT_HINT)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not (again and _is_evaluation(out)):
        raise InputError(f"output folder {out} exists and is not empty; nothing in it was touched.",
                         hint="Name a new folder with --out DIR, or leave --out away: each run gets its own under pwoa-runs.")
    return out


def _is_evaluation(folder: Path) -> bool:
    """Whether a folder holds what `pwoa eval --out` writes and nothing else: no run, and nobody's own report.md."""
    names = {path.name for path in folder.iterdir()}
    with suppress(InputError):
        made = read_json(folder / "report.json")
        return names <= {"report.json", "report.md", "samples.npz"} and "threat" in made and "created" not in made
    return False


def _new_default(model_name: str, sparsity: float, now: datetime) -> Path:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", model_name).lstrip(".-")[:60] or "model"
    base = f"{safe}-{sparsity:.10g}-{now.strftime(STAMP)}"
    attempt = 1
    while True:
        path = ROOT / (base if attempt == 1 else f"{base}-{attempt}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not ROOT.is_dir():
                raise
            attempt += 1


@contextmanager
def opened(out: Path | None, **options: Any) -> Iterator[Path]:
    """`create` as a block: folders that it made and in which nothing was written are gone afterwards (a dry run, a set-up
    that failed); a folder that was there before stays. Raises: InputError as `create`."""
    top = ROOT if out is None else out
    made = [p for p in (top, *top.parents) if not os.path.exists(p)]  # Path.exists raises for a name that is too long
    try:
        path = create(out, **options)
        made = [path, *made] if out is None else made
        yield path
    finally:
        _remove_empty(*made)


def _remove_empty(*folders: Path) -> None:
    with suppress(OSError):  # the first that holds something ends it
        for folder in folders:
            folder.rmdir()


def newest(root: Path = ROOT) -> Path:
    """The finished run under `root` that started last, by the time in its report, else in its name.

    Raises: InputError if there is none, saying where it looked.
    """
    try:
        folders = [p for p in root.iterdir() if p.is_dir()] if root.exists() else []
    except OSError as error:
        raise InputError(f"{root} cannot be read as a folder of runs: {error.strerror}.",
                         hint="Name the model: pwoa eval MODEL") from None
    finished = [p for p in folders if all((p / name).is_file() for name in FINISHED)]
    if not finished:
        seen = f"{len(folders)} unfinished there" if folders else "nothing there"
        raise InputError(f"no finished run under {root} ({seen}).", hint="Make one: pwoa prune model.pt --sparsity 0.9")
    return max(finished, key=_started)


def _started(path: Path) -> tuple[float, int, str]:
    """Sort key: seconds since the epoch, number among runs of one second, name."""
    stamp = re.search(r"-(\d{8}-\d{6})(?:-(\d+))?$", path.name)
    again = int(stamp[2] or 1) if stamp else 1
    with suppress(InputError, TypeError, ValueError, OverflowError):  # a report that cannot be read is named when it is used
        return datetime.fromisoformat(read_json(path / "report.json").get("created")).timestamp(), again, path.name
    with suppress(TypeError, ValueError):
        return datetime.strptime(stamp and stamp[1], STAMP).timestamp(), again, path.name
    return (path / "report.json").stat().st_mtime, again, path.name


def check_file(path: Path | None, *, flag: str, ending: str) -> None:
    """That a file can be written where the user wants it, before any work; None is fine.

    Raises: InputError if it has another ending, is a folder, or its folder is missing or cannot be written.
    """
    if path is None:
        return
    if path.suffix != ending or path.is_dir():
        raise InputError(f"{flag} {path} is {'a folder' if path.is_dir() else f'no {ending} file'}.",
                         hint=f"For example: {flag} samples{ending}")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"pwoa")
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written: {error.strerror}.", hint="Name a folder that you can write to.") from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; becomes `path` if the block ends well, else is removed.

    Raises: InputError for an OSError inside (disk full, no permission): the old file, if any, is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.", hint=OUT_HINT) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Put text (UTF-8) at `path` as a whole or not at all. Raises: InputError as `atomic`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """What JSON can say of a value: NaN and infinities None, paths text, tuples lists, NumPy and torch scalars numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is not None and not isinstance(value, str | bool | int | float):
        return plain(value.item())  # anything else than a scalar is a bug of the caller
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(value: Any, *, indent: int | None = None) -> str:
    """One JSON text of `plain(value)`, ASCII, keys in their order."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Put a value as indented JSON at `path`, atomically."""
    write_text_atomic(path, dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises: InputError if the file is missing, unreadable or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.",
                         hint="Make a run: pwoa prune model.pt --sparsity 0.9") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.", hint="Prune again, or name another model: pwoa eval MODEL") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, expected an object.",
                         hint="Name the report.json of a run.")
    return value


def write_toml(path: Path, table: Mapping[str, Any]) -> None:
    """Put a table (and tables in it) as TOML at `path`, atomically; None is left out, as TOML has no word for it."""
    import tomli_w

    write_text_atomic(path, tomli_w.dumps(_without_none(table)))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value if item is not None]
    return float(value) if isinstance(value, float) else plain(value)  # TOML knows nan and inf


class MetricsLog:
    """metrics.jsonl of a run, appended to: `with MetricsLog(path) as log: log.append({"step": 1, "loss": 0.5})`."""

    def __init__(self, path: Path):
        self._file = open(path, "a+b")
        if self._file.tell() and not _ends_with_newline(self._file):
            self._file.write(b"\n")  # a killed run left half a line: start behind it

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one JSON line and hand it to the operating system, so that a killed process loses nothing."""
        self._file.write(dumps(record).encode() + b"\n")
        self._file.flush()

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
        raise InputError(f"{path} cannot be read: {error.strerror}.", hint="Name the metrics.jsonl of a run.") from None
    records = []
    for line in lines:
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]
