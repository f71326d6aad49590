"""The folder that a command writes to, tried before torch is loaded; if the command fails, what is kept is
said."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pwoa_cli.cli.console import Console
from pwoa_cli.errors import PwoaError
from pwoa_cli.files import run_folder


class Interrupted(PwoaError):
    """Ctrl-C or SIGTERM; the message says what was kept."""

    exit_code = 130


@contextmanager
def opened(console: Console, out: Path | None, *, model: str, sparsity: float | str = 0.0,
           created: datetime | None = None, goes_on: Callable[[], str] = str,
           again: bool = False) -> Iterator[Path]:
    """The run folder while the block runs, tried before torch is loaded; if the block fails, what is kept is
    said.

    Args: goes_on: what more there is to say when it is interrupted. again: as in files.run_folder.create.
    """
    with run_folder.opened(out, model_name=run_folder.name_for(model), sparsity=sparsity,
                           now=created or datetime.now(), again=again) as folder:
        before = _names(folder)
        try:
            yield folder
        except BaseException as error:  # a user's code may call sys.exit
            kept = _kept(folder, before)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"interrupted; {kept} {goes_on()}".rstrip()) from None
            if _names(folder) - before:
                console.warn(f"stopped; {kept}")
            raise


def _names(folder: Path) -> set[str]:
    """What is in the folder: nothing, where somebody removed it."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _kept(folder: Path, before: set[str]) -> str:
    """What a run that did not finish leaves besides what was there before, in a sentence or two."""
    names = sorted(_names(folder) - before)
    if not names:
        return "nothing was written."
    kept = f"kept in {folder}: {', '.join(names)}."
    if "model.safetensors" in names:
        return f"{kept}\nThe pruned model is whole; measure it: pwoa eval {folder / 'model.safetensors'}"
    return f"{kept} No pruned model was written." if "config.toml" in names else kept


@contextmanager
def no_folder(goes_on: Callable[[], str] = str) -> Iterator[None]:
    try:
        yield None
    except KeyboardInterrupt:
        more = goes_on()
        raise Interrupted("interrupted; "
                          f"{f'no report was written. {more}' if more else 'nothing was written.'}") from None
