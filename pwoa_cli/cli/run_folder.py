"""The folder that a command writes to, tried before torch is loaded; if the command fails, what is kept is
said."""
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pwoa_cli.cli.console import Console
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files import run_folder
from pwoa_cli.machine import signals

NOTHING = "nothing was written."


class Interrupted(PwoaError):
    """Ctrl-C, SIGTERM or SIGHUP; the message says what was kept."""

    exit_code = 130


@contextmanager
def opened(console: Console, out: Path | None, *, model: str, sparsity: str = "",
           created: datetime | None = None, goes_on: Callable[[], str] = str,
           again: bool = False, run: bool = False) -> Iterator[Path]:
    """The run folder while the block runs, tried before torch is loaded; if the block fails, what is kept is
    said.

    Args: goes_on: what more there is to say when it is interrupted. again, run: as in
    files.run_folder.create.
    """
    with run_folder.opened(out, model_name=run_folder.name_for(model), sparsity=sparsity,
                           now=created or datetime.now(), again=again, run=run) as folder:
        before = _times(folder)
        try:
            yield folder
        except BaseException as error:  # a user's code may call sys.exit
            kept = _kept(folder, set() if run else before.keys(), broken=error)
            if isinstance(error, KeyboardInterrupt) or signals.ended():
                raise Interrupted(f"interrupted; {kept} {goes_on()}".rstrip()) from None
            if _times(folder) != before:
                console.warn(f"stopped; {kept}")
            raise


def _times(folder: Path) -> dict[str, int]:
    """What is in the folder and when it changed: nothing, where somebody removed it."""
    names = run_folder.contents(folder) if folder.is_dir() else []
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def _kept(folder: Path, before: Collection[str], *, broken: BaseException) -> str:
    """What a run that did not finish leaves besides what was there before, in a sentence or two; and how it
    goes on, unless it broke by itself: a full disk is not the run's fault."""
    names = [name for name in _times(folder) if name not in before]
    if not names:
        return NOTHING
    kept = f"kept in {folder}: {', '.join(names)}."
    if run_folder.CONFIG not in names:
        return kept
    again = isinstance(broken, KeyboardInterrupt | InputError) or (
        run_folder.STATE in names and isinstance(broken.__cause__, OSError))
    way = f"\nGo on: {run_folder.resume_command(folder)}" if again else ""
    if "model.safetensors" in names:
        return f"{kept}\nThe pruned model is whole; measure it: {run_folder.measure_command(folder)}{way}"
    return f"{kept} No pruned model was written.{way}"


@contextmanager
def no_folder(kept: Callable[[], str] = lambda: NOTHING) -> Iterator[None]:
    """Without a folder; kept: what is left when the block is interrupted, in a sentence."""
    try:
        yield None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or signals.ended():
            raise Interrupted(f"interrupted; {kept()}") from None
        raise
