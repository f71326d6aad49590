"""`pwoa report`: read reports -> gates -> show. Nothing is measured, and torch is not needed."""
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.gates import GateOptions, close
from pwoa_cli.errors import InputError
from pwoa_cli.files import run_folder
from pwoa_cli.files.atomic import write_text_atomic
from pwoa_cli.files.plain import dumps
from pwoa_cli.reports import (
    collection,
    dossier,
    gates,
    json_schema,
    numbers,
    page,
    schema,
    tables,
    terminal,
    verdict,
)
from pwoa_cli.reports.collection import Entry

EXAMPLES = """\b
Examples:
  pwoa report
  pwoa report --min worst=0.0 --max-drop clean=100
  pwoa report pwoa-runs/*
  pwoa report --html report.html
  pwoa report --json"""


@options.with_groups
def report(
    *, runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", show_default=False, help=(
        "Folder of a run or of an evaluation, or its report.json. Default: the newest run. Several are shown "
        "in one table, where they can be compared."))] = None,
    gate: GateOptions, html: Annotated[Path | None, typer.Option(
        "--html", rich_help_panel=options.RUN, metavar="FILE.html", help=(
            "Also write a page with tables, curves and images, which needs no network. A folder: report.html "
            "there."))] = None,
    json: options.Json = False, quiet: options.Quiet = False,
    schema_only: Annotated[bool, typer.Option(
        "--schema", rich_help_panel=options.RUN, help="Print the JSON Schema of report.json.")] = False,
) -> None:
    """Show reports again, and judge them."""
    asked, console = gate.parsed(), Console(json=json, quiet=quiet)
    html = _checked(html)
    if schema_only:
        console.result(dumps(json_schema.json_schema(), indent=1), json_schema.json_schema())
        return
    if runs and len(runs) > 1:
        _show_several(runs, gate, asked, console, html)
        return
    path = Path(runs[0]) if runs else run_folder.newest()
    found = schema.read(path)
    if asked:
        found["gates"] = _judged(found, asked, strict=gate.strict)
    console.result(tables.markdown(found), found, table=lambda: terminal.one(found))
    if html:
        _write(html, partial(page.of_one, dossier.opened(path)), console)
    close(console, gate, found, text=tables.markdown(found), name=path.name, short=verdict.is_short(found))


def _checked(html: Path | None) -> Path | None:
    """The file of --html, tried before anything is read. Raises: InputError if it cannot be written, or a
    package is missing."""
    if html is None:
        return None
    page.check_installed()
    html = html / "report.html" if html.is_dir() else html
    run_folder.check_file(html, flag="--html", ending=".html")
    return html


def _write(html: Path, made: Callable[[], str], console: Console) -> None:
    console.say("drawing")
    write_text_atomic(html, made())
    console.say(f"wrote {html} ({numbers.size(html.stat().st_size)})")


def _judged(found: Mapping[str, Any], asked: Sequence[gates.Gate], *, strict: bool) -> list[dict[str, Any]]:
    """Verdicts on a report that is there. Raises: InputError for a figure that it does not have."""
    scores = [name for column in tables.scores(found).values() for name in column]
    left = [name for parts in found.get("unfinished", {}).values() for name in parts]
    known = {name: name for name in (*scores, *left)}
    known |= {"pgd": "pgd-20"} if "pgd-20" in known and "pgd" not in known else {}
    checked = gates.resolved(asked, {k: v for k, v in known.items() if v not in ("clean", gates.WORST)},
                             compared=bool(tables.drops(found)))
    return gates.judged(found, checked, strict=strict)


def _show_several(paths: Sequence[str], gate: GateOptions, asked: Sequence[gates.Gate],
                  console: Console, html: Path | None) -> None:
    """One table where the reports can be compared, else several and why; each is judged by itself."""
    entries = collection.read(paths)
    shown, why = collection.together(entries), collection.differences(entries)
    verdicts = [{"model": name} | verdict for name, entry in entries.items()
                for verdict in _of_one(name, entry, asked, strict=gate.strict)]
    notes = [*why, *(note for table in shown for note in table["notes"])]
    found = {"schema_version": schema.SCHEMA_VERSION, "tables": shown, "gates": verdicts, "notes": notes}
    text = "\n".join([*(f"{tables.inline(sentence)}\n" for sentence in why), *map(tables.markdown, shown)])
    console.result(text, found, table=lambda: terminal.several(shown, why))
    if html:
        _write(html, partial(page.of_several, shown, why), console)
    close(console, gate, found, text=text, name=" ".join(entries),
          short=any(verdict.is_short(entry.report) for entry in entries.values()))


def _of_one(name: str, entry: Entry, asked: Sequence[gates.Gate], *, strict: bool) -> list[dict[str, Any]]:
    try:
        return _judged(entry.report, asked, strict=strict)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", hint=error.hint) from None
