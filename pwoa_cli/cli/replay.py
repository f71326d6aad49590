"""--config FILE: the options of an earlier run, from the [command] table of its config.toml; what is typed
wins. --resume: the same of an unfinished run, and its folder.

The table holds what was typed then, by the names of the command's parameters: model = "a.pt", sparsity =
"0.9", settings = ["lr=1e-3"].
"""
import difflib
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pwoa_cli.cli.options import TYPED, is_typed
from pwoa_cli.errors import InputError
from pwoa_cli.files import run_folder
from pwoa_cli.files.plain import read_toml

# of this call, not of the run
NOT_KEPT = ("config", "out", "json", "quiet", "verbose", "dry_run", "junit", "resume", "checkpoint_every")
TABLE = "command"
PATHS = ("model", "teacher", "arch", "data", "recipe", "class_map")


def _read(path: Path) -> dict[str, Any]:
    """What a file says. Raises: InputError for one that has no [command] table."""
    content = read_toml(path, name=f"--config {path}",
                        hint="Name a run's: --config pwoa-runs/RUN/config.toml")
    if not isinstance(content.get(TABLE), dict):
        raise InputError(f"--config {path} has no table [{TABLE}] of what was typed.",
                         hint="pwoa before 0.2.0 did not write one; type the command again, or write it:\n\n"
                              f'    [{TABLE}]\n    model = "model.pt"\n    sparsity = "0.9"')
    return content


def _fill(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the command."""
    if path is not None:
        context.default_map = _options(context, path)
    return path


def _unfinished(context: typer.Context, resume: bool) -> bool:
    """Make the options of an unfinished run, and its folder, the defaults of the command: of the folder of
    --out, else of the newest one, of MODEL if that is typed."""
    if not resume:
        return False
    typed, _, _ = context.command.make_parser(context).parse_args(args=list(context.meta[TYPED]))
    out, model = typed.get("out"), typed.get("model") or ""
    if typed.get("config"):
        again = run_folder.resume_command(Path(out)) if out else f"pwoa {context.info_name} --resume"
        raise InputError("--resume takes the options of the run itself, --config those of another one.",
                         hint=f"Leave one of them away: {again}")
    folder = Path(out) if out else run_folder.newest_unfinished(model)
    if not run_folder.is_unfinished(folder):
        raise InputError(f"--resume: {folder} holds no unfinished run.",
                         hint="See which runs there are: pwoa runs")
    table = _options(context, folder / run_folder.CONFIG)
    if "model" not in table:
        raise InputError(f"{folder} was begun by a program, not by a command: nothing was typed.",
                         hint="The same call of pwoa_cli.prune, with the same out, goes on.")
    context.default_map = table | {"out": str(folder)}
    return True


def _found(text: str, folder: Path) -> str:
    """A path of the run, as it is from here (run_folder.beside): of a file, of file.py:fn, of DIR or DIR/NAME
    of data. mnist or default is no path, whatever lies around."""
    if not any(mark in text for mark in (os.sep, "/", ".")):
        return text
    file, colon, function = text.partition(":") if ".py:" in text else (text, "", "")
    there, (around, last) = run_folder.beside(file, folder), os.path.split(file)
    if there == file and around and not os.path.exists(file):
        there = os.path.join(run_folder.beside(around, folder), last)
    return there + colon + function


def _options(context: typer.Context, path: Path) -> dict[str, Any]:
    """What a file says, checked. Raises: InputError naming what is no option of the command."""
    table = _read(path)[TABLE]
    table |= {key: _found(value, path.parent) for key, value in table.items()
              if key in PATHS and isinstance(value, str)}
    known = [str(p.name) for p in context.command.params if p.name not in NOT_KEPT]
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key[:60], known, n=1)
            raise InputError(f"--config {path}: {key!r:.60} is no option of pwoa {context.info_name}.",
                             hint=f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}.")
        if not isinstance(value, str | int | float | list):
            raise InputError(f"--config {path}: {key} is a {type(value).__name__}, expected text or a "
                             "number.", hint="As in a run's own config.toml.")
    return table


Config = Annotated[Path | None, typer.Option(
    "--config", rich_help_panel="Run", metavar="FILE", is_eager=True, callback=_fill,
    help="Options of an earlier run, from its config.toml; what is typed wins.")]
Unfinished = Annotated[bool, typer.Option(
    "--resume", rich_help_panel="Run", is_eager=True, callback=_unfinished,
    help="Go on, as it was begun, with the unfinished run of --out, else the newest one (of MODEL).")]


def said(context: typer.Context) -> dict[str, Any]:
    """What was typed, or taken from --config, by parameter: text, numbers, lists."""
    given = {name: value for name, value in context.params.items() if name not in NOT_KEPT and (
        source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()
            if value is not None}


def only(context: typer.Context, *sides: tuple[str, ...], structured: Collection[str]) -> list[Any]:
    """The values of groups of parameters, of which the first ones exclude each other: where one of those was
    typed, what --config says of the other groups is taken away, from what `said` gives too; and its
    structure, where one of `structured` was typed, which bring their own. The structure comes last."""
    typed = partial(is_typed, context)
    for side in sides:
        if typed(side[0]):
            others = (name for other in sides if other is not side for name in other)
            context.params |= {name: None for name in others if not typed(name)}
    if any(map(typed, structured)) and not typed("structure"):
        context.params["structure"] = None
    return [*(context.params[name] for side in sides for name in side), context.params["structure"]]


def expected(context: typer.Context, config: Path | None) -> str | None:
    """The SHA-256 that the model of --config had; None where another was typed."""
    if config is None or is_typed(context, "model"):
        return None
    sha256 = _read(config).get("sha256")
    return sha256 if isinstance(sha256, str) else None

