"""`pwoa report`: read a report -> gates -> show. Nothing is measured, and torch is not needed."""
from pathlib import Path
from typing import Annotated

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.gates import GateOptions, tell
from pwoa_cli.errors import GATE, UNASKED
from pwoa_cli.files import run_folder
from pwoa_cli.reports import gates, schema, tables

EXAMPLES = """\b
Examples:
  pwoa report
  pwoa report --min worst=0.0 --max-drop clean=100
  pwoa report --json"""


@options.with_groups
def report(
    *, run: Annotated[str, typer.Argument(metavar="RUN", show_default=False, help=(
        "Folder of a run or of an evaluation, or its report.json. Default: the newest run."))] = "",
    gate: GateOptions, json: options.Json = False, quiet: options.Quiet = False,
) -> None:
    """Show a report again, and judge it."""
    asked, console = gate.parsed(), Console(json=json, quiet=quiet)
    path = Path(run) if run else run_folder.newest()
    found = schema.read(path / "report.json" if path.is_dir() else path)
    scores = [name for column in tables.columns(found).values() for name in column]
    left = [name for parts in found.get("unfinished", {}).values() for name in parts]
    known = {name.removesuffix("-20"): name for name in (*scores, *left)} | {n: n for n in (*scores, *left)}
    compared = "drop" in found
    checked = gates.resolved(asked, {k: v for k, v in known.items() if v not in ("clean", gates.WORST)},
                             compared=compared)
    if checked:
        found["gates"] = gates.judged(found, checked, strict=gate.strict)
    console.result(tables.markdown(found), found, table=lambda: tables.table(found))
    if not tell(console, gate, found, name=path.name):
        raise typer.Exit(GATE)
    if tables.only_guesses(found) or tables.falls_short(found):
        raise typer.Exit(UNASKED)
