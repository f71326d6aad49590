"""A report or an evaluation for people: as Markdown, as a terminal table, and each kind of number in one
form."""
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pwoa_cli.evaluation.words import WORST
from pwoa_cli.reports.numbers import (
    duration,
    percent_of_weights,
    radius,
    ratio,
    scaled,
    size,
    visible,
    with_interval,
)

# --- the numbers, each kind in one form ---------------------------------------------------------------


# --- showing a report ---------------------------------------------------------------

def columns(report: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping]]:
    """Heading and scores of each column: accuracy of one model, or teacher, pruned and drop."""
    if "results" in report:
        return {"accuracy": report["results"]}
    teacher, student = report.get("headings", ("teacher", "pruned"))
    return {teacher: report["teacher"], student: report["student"], "drop": report["drop"]}


def headings(report: Mapping[str, Any]) -> list[str]:
    """What stands above `columns`: a figure that must not be believed says so where it stands."""
    doubted = _doubted(report)
    return [f"{heading} (unreliable)" if heading in doubted or heading in ("accuracy", "drop") and doubted
            else heading for heading in columns(report)]


def _doubted(report: Mapping[str, Any]) -> set[str]:
    """The models whose figures must not be believed, by their headings."""
    everyone = [heading for heading in columns(report) if heading != "drop"]
    return {who for finding in report.get("findings", []) if finding["unreliable"]
            for who in finding["models"] or everyone}


def unfinished(report: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping]]:
    """What time did not suffice for, by the headings of `columns`."""
    left = list(report.get("unfinished", {}).values())
    return {heading: attacks for heading, attacks in zip(columns(report), left, strict=False) if attacks}


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for clean and every attack: its name as given, then a cell "93.2 [91.5, 94.6]" for each of
    `columns`, or "unfinished, 200 of 1000"."""
    scores, left = columns(report), unfinished(report)
    names = dict.fromkeys(name for column in [*scores.values(), *left.values()] for name in column)
    return [(name, *(_cell(column.get(name), left.get(heading, {}).get(name))
                     for heading, column in scores.items())) for name in names]


def _cell(score: Mapping[str, Any] | None, left: Mapping[str, Any] | None) -> str:
    return f"unfinished, {left['n']} of {left['of']}" if left else with_interval(score)


def headline(report: Mapping[str, Any]) -> str:
    """What this is about, in a line; a pruned model that only guesses is nothing else."""
    path = report["model"]["source"]
    # the same name in every run: the folder's says more
    in_run = os.path.basename(path) == "model.safetensors"
    source = os.path.basename(os.path.dirname(path) if in_run else path) or os.path.basename(path) or "Model"
    if "sparsity" in report:
        zeros = percent_of_weights(report["sparsity"]["achieved"])
        clean = _short(report["student"].get("clean"))
        guesses = f", near chance: clean {clean}%" * only_guesses(report)
        return f"{source} pruned to {zeros}% sparsity{guesses}"
    return f"{source} under attack"


def only_guesses(report: Mapping[str, Any]) -> bool:
    """Whether the pruned model of a run is no better than guessing."""
    return "sparsity" in report and any(finding["check"] == "near-chance" and "pruned" in finding["models"]
                                        for finding in report.get("findings", []))


def is_unfinished(report: Mapping[str, Any]) -> bool:
    """Whether time did not suffice for something that was asked for."""
    return bool(unfinished(report))


def falls_short(report: Mapping[str, Any]) -> bool:
    """Whether an attack that was asked for has no figure: time did not suffice, or it had no gradient."""
    asked, scores = report.get("attacks", ()), [s for head, s in columns(report).items() if head != "drop"]
    return is_unfinished(report) or any(name not in column for name in asked for column in scores)


def summary(report: Mapping[str, Any]) -> str:
    """Clean and worst accuracy and the file's size, in a sentence. What is not finished gives no figure."""
    pruned = list(columns(report).values())[:2]  # teacher and pruned, or one model
    attacks = [name for name in pruned[-1] if name != "clean"]
    worst = WORST if WORST in attacks else min(attacks, key=lambda name: pruned[-1][name]["accuracy"],
                                               default=None)
    left = dict.fromkeys(name for names in unfinished(report).values() for name in names)
    told = ("clean",) if left else ("clean", worst)
    parts = [f"{name} {' -> '.join(_short(column.get(name)) for column in pruned)}%"
             for name in told if name is not None and name in pruned[-1]]
    if len(attacks) > 1 and worst != WORST and not left:
        parts[1] += " (lowest)"
    if left:
        parts.append(f"unfinished: {', '.join(left)}")
    if "size" in report:
        parts.append(f"file {_times(report['size']['dense_bytes'], report['size']['file_bytes'])}")
    return ("Unreliable: " if _doubted(report) else "") + ", ".join(parts) + "."


def _times(dense: float, file: float) -> str:
    """8.65 times smaller, or 1.20 times larger."""
    return f"{ratio(dense, file)} times smaller" if file <= dense else f"{ratio(file, dense)} times larger"


def _short(score: Mapping[str, Any] | None) -> str:
    return with_interval(score).split()[0]


def caption(report: Mapping[str, Any]) -> str:
    """How to read the table: unit, interval, n, data set, threat."""
    shown = [column for heading, column in columns(report).items() if heading != "drop"]
    counts = Counter(score["n"] for column in shown for score in column.values())
    common = counts.most_common(1)[0][0] if counts else 0
    sizes = {name: dict.fromkeys(str(column[name]["n"]) for column in shown if name in column)
             for name in shown[-1]}
    others = ", ".join(f"{name}: {' and '.join(found)}" for name, found in sizes.items()
                       if list(found) != [str(common)])
    drop = "; drop in points" if "drop" in report else ""
    norm, eps = report["threat"]["norm"], report["threat"]["eps"]
    threat = "" if eps is None else f"; attacks within {norm} eps {radius(eps)}"
    return (f"Accuracy in % [Wilson 95% interval]{drop}. n = {common}{f' ({others})' if others else ''} "
            f"test samples of {report['data']['name']}{threat}.")


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it cost and what it gave, as (label, sentence)."""
    lines = _pruning_facts(report) if "sparsity" in report else []
    if "drop" in report and not is_unfinished(report):
        lines += _drop_facts(report["drop"])
    compared = list(report.get("models", {}).items())[:-1]
    lines += [(heading, model["source"]) for heading, model in compared]
    lines += _spent_facts(columns(report))
    times = report["seconds"]
    if times:
        phases = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in times.items())
        lines.append(("time",
                      phases + (f"; together {duration(sum(times.values()))}" if len(times) > 1 else "")))
    where = report["environment"]
    threads = f"{where['threads']} thread{'s' if where['threads'] != 1 else ''}"
    return [*lines,
            ("machine", f"{where['device']}, {threads}, torch {where['torch']}, seed {where['seed']}")]


def _drop_facts(drops: Mapping[str, Mapping]) -> list[tuple[str, str]]:
    """McNemar's test of the last row, the worst case where there is one: so that "no drop" means
    something."""
    name = list(drops)[-1] if drops else ""
    if "p" not in drops.get(name, {}):
        return []
    lost, won, p, (low, high) = (drops[name][key] for key in ("lost", "won", "p", "ci95"))
    verdict = ("a loss" if low > 0 else "a gain under these attacks" if high < 0 else
               f"no loss was found; one above {high:.1f} points is unlikely (95%)")
    return [("paired",
             f"{name}: {lost} sample{'s' * (lost != 1)} lost, {won} won, McNemar p = {p:.2g}: {verdict}")]


def _spent_facts(scores: Mapping[str, Mapping[str, Mapping]]) -> list[tuple[str, str]]:
    """Samples through the models, forwards and backwards, by attack."""
    spent: dict[str, list[int]] = {}
    for column in scores.values():
        for name, score in column.items():
            if "forwards" in score and name != WORST:
                spent.setdefault(name, [0, 0])
                spent[name] = [spent[name][0] + score["forwards"], spent[name][1] + score["backwards"]]
    shown = ", ".join(f"{name} {scaled(f)} + {scaled(b)}" for name, (f, b) in spent.items())
    return [("passes", f"{shown} (samples forwards + backwards)")] if shown else []


def _pruning_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    sparsity, file, macs = report["sparsity"], report["size"], report["macs"]
    until = ", until pwoa export --format slim" if sparsity["structure"] == "channel" else ""
    return [
        ("sparsity",
         f"{percent_of_weights(sparsity['target'])}% wanted, {percent_of_weights(sparsity['achieved'])}% "
         f"reached ({sparsity['structure']}, recipe {report['recipe']['name']})"),
        ("weights",
         f"{sparsity['nonzero']:,} of {sparsity['total']:,} nonzero, in {len(sparsity['layers'])} layers"),
        ("file",
         f"{size(file['file_bytes'])}: {_times(file['dense_bytes'], file['file_bytes'])} than dense "
         f"({size(file['dense_bytes'])}), {ratio(file['file_bytes'], file['limit_bytes'])} times the entropy "
         f"limit ({size(file['limit_bytes'])})"),
        ("MACs", f"{scaled(macs['dense'])}, of which {scaled(macs['nonzero'])} with nonzero weights; torch "
                 f"multiplies the zeros too, so the time stays{until}"),
    ]


def class_rows(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Heading and rows of accuracy in % by class, of the model that was named (the last one)."""
    scores = list(report["classes"].values())[-1]
    classes = sorted({c for column in scores.values() for c in column}, key=int)
    counts = scores["clean"]
    body = [(c, str(counts[c]["n"]),
             *(_of_class(column.get(c), counts[c]["n"]) for column in scores.values())) for c in classes]
    return ["class", "n", *scores], body


def _of_class(score: Mapping[str, Any] | None, n: int) -> str:
    """Percent; with the number of samples where time did not suffice for all n."""
    return _short(score) + (f" ({score['n']})" if score and score["n"] != n else "")


def markdown(report: Mapping[str, Any]) -> str:
    """A report or an evaluation as one Markdown document."""
    lines = [f"# {inline(headline(report))}", "", inline(summary(report)), ""]
    lines += markdown_table(["", *headings(report)], rows(report)) + ["", inline(caption(report)), ""]
    lines += [f"- {label}: {inline(text)}" for label, text in facts(report)]
    lines += [f"- note: {inline(note)}" for note in report["notes"]]
    if "classes" in report:
        head, body = class_rows(report)
        lines += ["", f"## By class ({list(report['classes'])[-1]})", "", *markdown_table(head, body)]
    if "sparsity" in report:
        layers = [(layer["name"], "x".join(map(str, layer["shape"])), f"{layer['nonzero']:,}",
                   f"{layer['total']:,}",
                   percent_of_weights(1 - layer["nonzero"] / max(1, layer["total"])))
                   for layer in report["sparsity"]["layers"]]
        lines += ["", "## Layers", "",
                  *markdown_table(["layer", "shape", "nonzero", "total", "sparsity %"], layers)]
    return "\n".join(lines) + "\n"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column holds names, the others figures."""
    rule = "|".join(["---"] + ["---:"] * (len(head) - 1))
    lines = ["| " + " | ".join(inline(cell) for cell in row) + " |" for row in [head, *body]]
    return [lines[0], f"|{rule}|", *lines[1:]]


def inline(text: str) -> str:
    """No line break and no cell border out of a name."""
    return " ".join(visible(text).split()).replace("|", "\\|")


def table(report: Mapping[str, Any]) -> Any:
    """A report or an evaluation for a terminal: a rich renderable that holds at 60 columns (layers are in
    report.md)."""
    from rich.console import Group
    from rich.table import Table

    scores = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    scores.add_column("")
    for heading in headings(report):
        scores.add_column(heading.replace(" (", "\n("), justify="right", no_wrap=True)
    for name, *cells in rows(report):
        # interval below, to fit
        stacked = [cell.replace(" ", "\n", 1) if len(cells) > 1 else cell for cell in cells]
        scores.add_row(text_cell(name), *map(text_cell, stacked))
    costs = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    costs.add_column(no_wrap=True)
    costs.add_column(overflow="fold")
    for label, sentence in [*facts(report), *(("note", note) for note in report["notes"])]:
        costs.add_row(label, text_cell(sentence))
    parts = [text_cell(headline(report), "bold"), text_cell(summary(report)), "", scores, "",
             text_cell(caption(report), "dim"), "", costs]
    if "classes" in report:
        head, body = class_rows(report)
        by_class = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in head:
            by_class.add_column(heading, justify="right", overflow="fold")
        for row in body:
            by_class.add_row(*map(text_cell, row))
        parts += ["", text_cell(f"By class ({list(report['classes'])[-1]})", "bold"), by_class]
    return Group(*parts)


def text_cell(content: str, style: str = "") -> Any:
    """Content as it is: rich must not read markup such as [x] in a file name."""
    from rich.text import Text

    return Text(visible(content), style=style, overflow="fold")
