"""The run folder `pwoa-runs/<model>-<sparsity>-<time>/` and the files in it, each complete or absent.

    model.safetensors  report.json  report.md  config.toml    written at once: temporary name, fsync, rename
    metrics.jsonl      one JSON object a line, flushed; a cut last line is ignored
    state.pt  parts/   what an unfinished run goes on from; gone when it is finished
    .pwoa.lock         whose it is while somebody writes (locks.py)

A run is finished when model.safetensors and report.json are there. JSON never holds NaN or infinity: they
become null.
"""
import math
import os
import re
import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pwoa_cli.errors import InputError
from pwoa_cli.files import locks
from pwoa_cli.files.atomic import OUT_HINT, sweep
from pwoa_cli.files.plain import read_json

ROOT = Path("pwoa-runs")
UNFINISHED = ROOT / ".eval"  # what evaluations found so far
FINISHED = ("model.safetensors", "report.json")
CONFIG, METRICS, STATE, PARTS, LOCK = "config.toml", "metrics.jsonl", "state.pt", "parts", ".pwoa.lock"
OF_READING = ("max_memory", "data", "image_size", "class_map", "class_order", "labels_from")
LEAST_FREE = 10_000_000  # bytes for reports, logs and a small model
STAMP = "%Y%m%d-%H%M%S"


def create(out: Path | None, *, model_name: str, sparsity: float | str, now: datetime,
           again: bool = False, run: bool = False) -> Path:
    """Make the folder of a new run and try that it can be written, before any work is done for it.

    Args: out: None for pwoa-runs/<model>-<sparsity>-<time>, with -2, -3, ... where that exists; a folder
    given by the user must be new or empty. model_name: any text, made fit for a file name. sparsity: or
    words that stand for it, fit for a file name. now: the start of the run. again: a folder of the user's
    may hold an earlier evaluation and nothing else. run: it may hold an unfinished run.
    Raises: InputError if the folder exists with content, cannot be made or written, or the disk is too full.
    """
    try:
        made = out is None or not out.exists()
        path = _new_default(model_name, sparsity, now) if out is None else _named(out, again=again, run=run)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"pwoa")
    except OSError as error:
        raise InputError(f"output folder {out or ROOT} cannot be written: {error.strerror}.",
                         hint=OUT_HINT) from None
    try:
        check_free(path, LEAST_FREE)
    except InputError:
        if made:
            _remove_empty(path, *([ROOT] if out is None else []))
        raise
    return path


def check_free(folder: Path, need_bytes: int) -> None:
    """Raises: InputError if the disk of a folder has less free space than a run needs at the least."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise InputError(f"the disk of {folder} has {math.floor(free / 1e6)} MB free, this run needs at "
                         f"least {math.ceil(need_bytes / 1e6)} MB.",
                         hint="Free some space, or name a folder on another disk: --out DIR")


def _named(out: Path, *, again: bool, run: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise InputError(f"output folder {out} is a file.", hint=OUT_HINT)
    if out.is_symlink() and not out.exists():  # mkdir says that it exists
        raise InputError(f"output folder {out} is a link to {os.readlink(out)}, which is not there.",
                         hint=OUT_HINT)
    out.mkdir(parents=True, exist_ok=True)
    if contents(out) and not (again and _is_evaluation(out) or run and is_unfinished(out)):
        raise InputError(f"output folder {out} exists and is not empty; nothing in it was touched.",
                         hint="Name a new folder with --out DIR, or leave --out away: each run gets its own "
                              "under pwoa-runs.")
    return out


def _is_evaluation(folder: Path) -> bool:
    """Whether a folder holds what `pwoa eval --out` writes and nothing else: no run, and nobody's own
    report.md."""
    names = set(contents(folder))
    if not names <= {"report.json", "report.md", "report.html", "samples.npz"}:
        return False
    if "report.json" not in names:  # an evaluation that was killed while it wrote has left its lock
        return (folder / LOCK).exists()
    with suppress(InputError):
        made = read_json(folder / "report.json")
        return "threat" in made and "created" not in made
    return False


def contents(folder: Path) -> list[str]:
    """Names in a folder, sorted, without locks and what a killed process left half written."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".pwoa"))


def lacking(folder: Path) -> list[str]:
    """Names of files that a finished run has and a folder has not."""
    return [name for name in FINISHED if not (folder / name).is_file()]


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds a run of `pwoa prune` that was stopped."""
    done = not lacking(folder) and not (folder / STATE).exists()
    return not done and {"command", "recipe"} <= config(folder).keys()


def check_finished(folder: Path) -> None:
    """Raises: InputError that names what a folder has not, and how the run in it is finished."""
    if missing := lacking(folder):
        raise InputError(f"{folder} is no finished run: a folder without {' and '.join(missing)}.",
                         hint=f"Finish it: {resume_command(folder)}" if is_unfinished(folder) else
                         "Name a finished run's folder, or the checkpoint itself.")


def config(folder: Path) -> dict[str, Any]:
    """The config.toml of a run; {} if there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):  # no TOML, no text
        return tomllib.loads((folder / CONFIG).read_text(encoding="utf-8", errors="surrogateescape"))
    return {}


def _new_default(model_name: str, sparsity: float | str, now: datetime) -> Path:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", model_name).lstrip(".-")[:60] or "model"
    goal = sparsity if isinstance(sparsity, str) else f"{sparsity:.10g}"
    base = f"{safe}-{goal}-{now.strftime(STAMP)}"
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
    """`create` as a block that nobody else may write in: folders that it made and in which nothing was
    written are gone afterwards (a dry run, a set-up that failed); a folder that was there before stays.

    Raises: InputError as `create`, and if another process writes there.
    """
    top = ROOT if out is None else out
    # Path.exists raises for a name that is too long
    made = [p for p in (top, *top.parents) if not os.path.exists(p)]
    try:
        path = create(out, **options)
        made = [path, *made] if out is None else made
        with locks.held(path / LOCK, what=f"output folder {path}",
                        hint="Wait for it, or name another folder: --out DIR"):
            if out is not None:
                create(out, **options)  # what was in it may have been finished meanwhile
            sweep(path)
            yield path
    finally:
        _remove_empty(*made)


def _remove_empty(*folders: Path) -> None:
    with suppress(OSError):  # the first that holds something ends it
        for folder in folders:
            folder.rmdir()


def model_of(path: str) -> str:
    """The model of a run, where a path is a run's folder; else the path itself."""
    inside = os.path.join(path, FINISHED[0])
    return inside if os.path.isdir(path) and os.path.isfile(inside) else path


def name_for(model: str) -> str:
    """What the runs of a model are called: its file's name without the ending, a run's folder whole, as names
    of runs have dots."""
    return Path(model).name if os.path.isdir(model) else Path(model).stem


def beside(path: str, folder: Path) -> str:
    """A path that the report of a run holds, as it is from here: where the run was moved together with what
    lies around it, that of the nearest folder above it."""
    if os.path.isabs(path) or os.path.exists(path):
        return path
    around = (os.path.join(parent, path) for parent in folder.resolve().parents)
    return next((os.path.relpath(there) for there in around if os.path.exists(there)), path)


def newest() -> Path:
    """The finished run under ROOT that started last, by the time in its report, else in its name.

    Raises: InputError if there is none, saying where it looked.
    """
    try:
        folders = [p for p in ROOT.iterdir() if p.is_dir()] if ROOT.exists() else []
    except OSError as error:
        raise InputError(f"{ROOT} cannot be read as a folder of runs: {error.strerror}.",
                         hint="Name the model: pwoa eval MODEL") from None
    finished = [p for p in folders if not lacking(p)]
    if not finished:
        seen = f"{len(folders)} unfinished there" if folders else "nothing there"
        raise InputError(f"no finished run under {ROOT} ({seen}).",
                         hint="Finish one: pwoa prune --resume" if any(map(is_unfinished, folders)) else
                         "Make one: pwoa prune model.pt --sparsity 0.9")
    return max(finished, key=_started)


def resume_command(folder: Path) -> str:
    """What is typed to go on with the run in a folder."""
    return f"pwoa prune --resume --out {shlex.quote(str(folder))}"


def measure_command(folder: Path) -> str:
    """What is typed to measure the model in a run's folder by itself. Its file says what it is and whose data
    it saw, but for what was typed of own code and of where and how images are read."""
    typed = config(folder).get("command")
    typed = typed if isinstance(typed, dict) else {}  # none of a program's; a file may be anybody's
    own = ("arch",) if ".py" in str(typed.get("arch", "")) else ()
    options = [name for name in (*OF_READING, *own) if name in typed]
    words = (word for name in options for word in (f"--{name.replace('_', '-')}", str(typed[name])))
    return f"pwoa eval {shlex.join([str(folder / FINISHED[0]), *words])}"


def newest_unfinished(model: str) -> Path:
    """The unfinished run under ROOT that started last, of any model or of this one, and that nobody is at.

    Raises: InputError if there is none.
    """
    of = f" of {model}" if model else ""
    there = [path for path in (ROOT.iterdir() if ROOT.is_dir() else ()) if is_unfinished(path)
             and (not model or _same_file(config(path).get("model"), model_of(model)))]
    idle = [path for path in there if not locks.owner(path / LOCK)]
    if not idle:
        raise InputError(f"no unfinished run{of} under {ROOT}"
                         f"{f' ({len(there)} still at work)' if there else ''}.",
                         hint="Name its folder: pwoa prune --resume --out DIR; see which there are: "
                              "pwoa runs")
    return max(idle, key=_started)


def _same_file(one: Any, other: str) -> bool:
    return isinstance(one, str) and os.path.realpath(one) == os.path.realpath(other)


def _started(path: Path) -> tuple[float, int, str]:
    """Sort key: seconds since the epoch, number among runs of one second, name."""
    stamp = re.search(r"-(\d{8}-\d{6})(?:-(\d+))?$", path.name)
    again = int(stamp[2] or 1) if stamp else 1
    # a report that cannot be read is named when it is used
    with suppress(InputError, ValueError, OverflowError):
        created = read_json(path / "report.json").get("created")
        if isinstance(created, str):
            return datetime.fromisoformat(created).timestamp(), again, path.name
    if stamp:
        with suppress(ValueError):
            return datetime.strptime(stamp[1], STAMP).timestamp(), again, path.name
    made = next((path / name for name in ("report.json", CONFIG) if (path / name).exists()), path)
    return made.stat().st_mtime, again, path.name


def check_file(path: Path | None, *, flag: str, ending: str) -> None:
    """That a file can be written where the user wants it, before any work; None is fine.

    A link is followed, as `atomic` does. Raises: InputError if it has another ending, is a folder, or its
    folder is missing or cannot be written.
    """
    if path is None:
        return
    if path.suffix != ending or path.is_dir():
        raise InputError(f"{flag} {path} is {'a folder' if path.is_dir() else f'no {ending} file'}.",
                         hint=f"For example: {flag} samples{ending}")
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))) as probe:
            probe.write(b"pwoa")
    except OSError as error:
        link = f", a link to {os.readlink(path)}," if path.is_symlink() else ""
        raise InputError(f"{flag} {path}{link} cannot be written: {error.strerror}.",
                         hint="Name a folder that you can write to.") from None


