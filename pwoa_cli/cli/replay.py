"""--config FILE: the options of an earlier run, from the [command] table of its config.toml; what is typed
wins.

The table holds what was typed then, by the names of the command's parameters: model = "a.pt", sparsity =
"0.9", settings = ["lr=1e-3"].
"""
import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from pwoa_cli.errors import InputError
from pwoa_cli.files.plain import read_toml

NOT_KEPT = ("config", "out", "json", "quiet", "verbose", "dry_run", "junit")  # of this call, not of the run
TABLE = "command"


def _read(path: Path) -> dict[str, Any]:
    """The [command] table. Raises: InputError for a file that has none."""
    content = read_toml(path, name=f"--config {path}",
                        hint="Name a run's: --config pwoa-runs/RUN/config.toml")
    table = content.get(TABLE)
    if not isinstance(table, dict):
        raise InputError(f"--config {path} has no table [{TABLE}] of what was typed.",
                         hint="pwoa before 0.2.0 did not write one; type the command again, or write it:\n\n"
                              f'    [{TABLE}]\n    model = "model.pt"\n    sparsity = "0.9"')
    return table | ({"sha256": content["sha256"]} if isinstance(content.get("sha256"), str) else {})


def _fill(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the command."""
    if path is None:
        return None
    table = _read(path)
    table.pop("sha256", None)
    known = [str(p.name) for p in context.command.params if p.name not in NOT_KEPT]
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key[:60], known, n=1)
            raise InputError(f"--config {path}: {key!r:.60} is no option of pwoa {context.info_name}.",
                             hint=f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}.")
        if not isinstance(value, str | int | float | list):
            raise InputError(f"--config {path}: {key} is a {type(value).__name__}, expected text or a "
                             "number.", hint="As in a run's own config.toml.")
    context.default_map = table
    return path


Config = Annotated[Path | None, typer.Option(
    "--config", rich_help_panel="Run", metavar="FILE", is_eager=True, callback=_fill,
    help="Options of an earlier run, from its config.toml; what is typed wins.")]


def said(context: typer.Context) -> dict[str, Any]:
    """What was typed, or taken from --config, by parameter: text, numbers, lists."""
    given = {name: value for name, value in context.params.items() if name not in NOT_KEPT and (
        source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()
            if value is not None}


def only(context: typer.Context, *sides: tuple[str, ...]) -> list[Any]:
    """The values of two groups of parameters, of which the first ones exclude each other: where one of those
    was typed, what --config says of the other group is taken away, from what `said` gives too."""
    def typed(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    for side, other in (sides, sides[::-1]):
        if typed(side[0]):
            context.params |= {name: None for name in other if not typed(name)}
    return [context.params[name] for side in sides for name in side]


def expected(context: typer.Context, config: Path | None) -> str | None:
    """The SHA-256 that the model of --config had; None where another was typed."""
    source = context.get_parameter_source("model")
    if config is None or source is not None and source.name == "COMMANDLINE":
        return None
    return _read(config).get("sha256")

