"""Reports and evaluations for a terminal: rich renderables that hold at 60 columns. rich is imported late, as
what is piped or asked for as JSON does without."""
from collections.abc import Mapping, Sequence
from typing import Any

from pwoa_cli.reports import escapes, tables
from pwoa_cli.reports.numbers import with_interval


def one(report: Mapping[str, Any]) -> Any:
    """One report, but for its layers, which are in report.md."""
    from rich.console import Group

    costs = grid(show_header=False)
    costs.add_column(no_wrap=True)
    costs.add_column(overflow="fold")
    for label, sentence in [*tables.facts(report), *(("note", note) for note in report["notes"])]:
        costs.add_row(text_cell(label), text_cell(sentence))
    figures = _by_attack(report) if "reference" in report else _by_model(report)
    parts = [text_cell(tables.headline(report), "bold"), text_cell(tables.summary(report)), "", figures, "",
             text_cell(tables.caption(report), "dim"), "", costs]
    for title, head, body, below in tables.more_tables(report):
        parts += ["", text_cell(title, "bold"), _plain_table(head, body)]
        parts += [text_cell(below, "dim")] if below else []
    return Group(*parts)


def several(reports: Sequence[Mapping[str, Any]], why: Sequence[str]) -> Any:
    """Several tables one below the other, after the sentences on why they are not one."""
    from rich.console import Group

    return Group(*(text_cell(sentence) for sentence in why),
                 *(part for report in reports for part in (["", one(report)] if why else [one(report)])))


def _by_model(report: Mapping[str, Any]) -> Any:
    """A column a model, intervals below the figures, to fit."""
    shown = grid()
    shown.add_column("")
    for heading in tables.headings(report):
        shown.add_column(text_cell(heading.replace(" (", "\n(")), justify="right", no_wrap=True)
    for name, *cells in tables.rows(report):
        stacked = [cell.replace(" ", "\n", 1) if len(cells) > 1 else cell for cell in cells]
        shown.add_row(text_cell(name), *map(text_cell, stacked))
    return shown


def _by_attack(report: Mapping[str, Any]) -> Any:
    """A row a model below each attack: many models fit into the width of one."""
    shown = grid()
    lost = tables.drops(report)
    shown.add_column("", overflow="fold")
    for heading in ("accuracy", "drop")[:1 + bool(lost)]:
        shown.add_column(heading, justify="right", overflow="fold", min_width=17)
    for name, *cells in tables.rows(report):
        shown.add_row(text_cell(name, "bold"))
        for who, heading, cell in zip(tables.scores(report), tables.headings(report), cells, strict=True):
            drop = with_interval(lost[who].get(name)) if who in lost else ""
            label = who + heading.removeprefix(who).replace(" ", "\n  ", 1)  # doubt on a line of its own
            shown.add_row(text_cell(f"  {label}"), *map(text_cell, [cell, drop][:1 + bool(lost)]))
    return shown


def _plain_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> Any:
    shown = grid()
    for heading in head:
        shown.add_column(text_cell(heading), justify="right", overflow="fold")
    for row in body:
        shown.add_row(*map(text_cell, row))
    return shown


def grid(*, show_header: bool = True) -> Any:
    """A table without lines."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=show_header)


def text_cell(content: str, style: str = "") -> Any:
    """Content as it is: rich must not read markup such as [x] in a file name."""
    from rich.text import Text

    return Text(escapes.visible(content), style=style, overflow="fold")
