"""What a run of `pwoa prune` that was stopped goes on from: its configuration, its state, the finished parts
of its evaluation."""
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import units
from pwoa_cli.evaluation.evaluate import BLOCK
from pwoa_cli.evaluation.units import Unfinished
from pwoa_cli.files import run_folder
from pwoa_cli.files.keeper import Keeper
from pwoa_cli.files.plain import toml, write_toml
from pwoa_cli.progress import Say
from pwoa_cli.workflows.prune_request import Job
from pwoa_cli.workflows.setup import own_code

# paths that have a SHA-256 beside them, and what was typed for what is in the table
NOT_COMPARED = ("model", "teacher", "data_where", "command", "environment")
# of the environment: what the last bits of a result depend on
MOVES_BITS = ("torch", "pwoa", "device", "device_name", "threads", "platform")


def keeper_of(job: Job, folder: Path, table: Mapping[str, Any], *, every: float, say: Say) -> Keeper:
    """Write the configuration of a run, or compare it with the one that is there; returns what keeps the
    run's state.

    Args: table: as in config.toml. Raises: InputError naming the first difference.
    """
    there, here = run_folder.config(folder), tomllib.loads(toml(table))
    if not there:
        write_toml(folder / run_folder.CONFIG, table)
    elif differing := next(_differences(_compared(there), _compared(here)), None):
        name, was, now = differing
        if name == "data_sha256":
            raise InputError(f"{here['data_where']}: other images or labels than the run was begun with.",
                             hint=f"Say where those are: {run_folder.resume_command(folder)} --data PATH")
        raise InputError(f"{folder} holds an unfinished run with another configuration: {name} is {was} "
                         f"there and {now} here.",
                         hint=f"Go on with it as it was: {run_folder.resume_command(folder)}")
    else:
        _say_environment(there.get("environment", {}), here["environment"], say=say)
    own = own_code(job.subject.loaded, job.teacher)
    return Keeper(folder, of=_compared(here) | {"own": own}, every=every, warn=say)


def _compared(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in NOT_COMPARED}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], *,
                 under: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, value there, value here) of each entry that differs, tables in tables as "recipe.lr"."""
    for key in {**old, **new}:
        was, now = old.get(key, "not set"), new.get(key, "not set")
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, under=f"{under}{key}.")
        elif was != now:
            yield f"{under}{key}", was, now


def _say_environment(there: Mapping[str, Any], here: Mapping[str, Any], *, say: Say) -> None:
    other = [f"{name} {there.get(name)} (now {here.get(name)})" for name in MOVES_BITS
             if there.get(name) != here.get(name)]
    if other:
        say(f"warning: the run was begun with {', '.join(other)}: its last bits may not be those of one that "
            "was not stopped.")


@contextmanager
def parts(job: Job, folder: Path, models: Mapping[str, nn.Module], *,
          say: Say) -> Iterator[Callable[[str, str], Unfinished | None]]:
    """While the block runs, where the finished parts of the run's own evaluation are kept: from the name of a
    model and the SHA-256 of the samples; None, with a warning, where nothing can be written."""
    made: list[Unfinished] = []

    def of(who: str, sha256: str) -> Unfinished | None:
        made.append(Unfinished(folder / run_folder.PARTS / _key(job, models[who], who, sha256), reuse=True))
        if why := made[-1].fault():
            say(f"warning: what is finished of the evaluation cannot be kept: {why}")
        return None if why else made[-1]

    try:
        yield of
    finally:
        for kept in made:
            kept.tidy()


def _key(job: Job, model: nn.Module, who: str, sha256: str) -> str:
    return units.key(model, who, sha256, job.subject.norm, job.subject.eps, job.request.seed, BLOCK,
                     str(job.device), own_code(job.subject.loaded, job.teacher), units.code())


def clear(folder: Path) -> None:
    """The run is finished: remove what it would have gone on from, the state last, as it says that there is
    more."""
    shutil.rmtree(folder / run_folder.PARTS, ignore_errors=True)
    (folder / run_folder.STATE).unlink(missing_ok=True)
