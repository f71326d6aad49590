"""A report or an evaluation for people: what its tables and sentences say, and all of it as Markdown."""
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pwoa_cli.evaluation.words import WORST
from pwoa_cli.reports import curve, escapes, search, training
from pwoa_cli.reports.numbers import (
    duration,
    percent_of_weights,
    radius,
    ratio,
    scaled,
    size,
    times,
    with_interval,
)
from pwoa_cli.reports.several import IN_RUN


def scores(report: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping]]:
    """Heading and scores of each model: accuracy of one, or teacher and pruned, or several by their names."""
    if "results" in report:
        return {"accuracy": report["results"]}
    if "reference" in report:
        return {heading: model["scores"] for heading, model in report["models"].items()}
    teacher, student = report.get("headings", ("teacher", "pruned"))
    return {teacher: report["teacher"], student: report["student"]}


def columns(report: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping]]:
    """`scores`, and the drop of two."""
    return scores(report) | ({"drop": report["drop"]} if "drop" in report else {})


def drops(report: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping]]:
    """What is lost, by the headings of the models that lose it."""
    if "reference" in report:
        return {heading: model["drop"] for heading, model in report["models"].items() if model["drop"]}
    return {list(scores(report))[-1]: report["drop"]} if "drop" in report else {}


def headings(report: Mapping[str, Any]) -> list[str]:
    """What stands above `columns`: a figure that must not be believed says so where it stands."""
    wrong = doubted(report)
    if wrong and "reference" not in report:
        wrong |= {"accuracy", "drop"}
    return [f"{heading} (unreliable)" if heading in wrong else heading for heading in columns(report)]


def doubted(report: Mapping[str, Any]) -> set[str]:
    """The models whose figures must not be believed, by their headings."""
    return {who for finding in report.get("findings", []) if finding["unreliable"]
            for who in finding["models"] or scores(report)}


def unfinished(report: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping]]:
    """What time did not suffice for, by the headings of `columns`."""
    left = list(report.get("unfinished", {}).values())
    return {heading: attacks for heading, attacks in zip(scores(report), left, strict=False) if attacks}


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for clean and every attack: its name as given, then a cell "93.2 [91.5, 94.6]" for each of
    `columns`, or "unfinished, 200 of 1000"."""
    shown, left = columns(report), unfinished(report)
    return [(name, *(_cell(column.get(name), left.get(heading, {}).get(name))
                     for heading, column in shown.items())) for name in attack_names(report)]


def attack_names(report: Mapping[str, Any]) -> list[str]:
    """Clean, the attacks in their order, the worst case; what is not finished with them."""
    names = dict.fromkeys(name for column in [*columns(report).values(), *unfinished(report).values()]
                          for name in column if name != WORST)
    return [*names, *([WORST] if any(WORST in column for column in columns(report).values()) else [])]


def figure(report: Mapping[str, Any]) -> str:
    """The name of what models are compared by: the last, which is the worst case where there is one; where
    worst cases are over different attacks, the last attack that all that have one share."""
    names = attack_names(report)
    finished = [own for own in scores(report).values() if WORST in own]
    shared = [name for name in names if name != WORST and all(name in own for own in finished)]
    return names[-1] if len(_worst_over(report)) < 2 else shared[-1]


def worst(report: Mapping[str, Any]) -> str | None:
    """The name of the figure that counts of one model, the last: the worst case, or the attack with the
    lowest; None: no attack."""
    *_, own = scores(report).values()
    attacks = [name for name in own if name != "clean"]
    return WORST if WORST in attacks else min(attacks, key=lambda name: own[name]["accuracy"], default=None)


def _worst_over(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """The models by the attacks that their worst case is over; without what several are compared with, which
    has the attacks of all."""
    found: dict[str, list[str]] = {}
    for heading, own in scores(report).items():
        if WORST in own and heading != report.get("reference"):
            over = ", ".join(n for n in attack_names(report) if n in own and n not in ("clean", WORST))
            found.setdefault(over, []).append(heading)
    return found


def _cell(score: Mapping[str, Any] | None, left: Mapping[str, Any] | None) -> str:
    return f"unfinished, {left['n']} of {left['of']}" if left else with_interval(score)


def headline(report: Mapping[str, Any]) -> str:
    """What this is about, in a line; a pruned model that only guesses is nothing else."""
    if "reference" in report:
        count = len(report["models"]) - (report["reference"] is not None)
        return f"{count} model{'s' * (count != 1)} under attack"
    path = report["model"]["source"]
    in_run = os.path.basename(path) == IN_RUN
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
    asked, found = report.get("attacks", ()), scores(report).values()
    return bool(is_unfinished(report) or curve.unfinished(report)
                or any(name not in column for name in asked for column in found))


def summary(report: Mapping[str, Any]) -> str:
    """Clean and worst accuracy and the file's size, in a sentence. What is not finished gives no figure."""
    if "reference" in report:
        return _summary_of_several(report)
    pruned = list(columns(report).values())[:2]  # teacher and pruned, or one model
    last, lowest = pruned[-1], worst(report)
    left = dict.fromkeys(name for names in unfinished(report).values() for name in names)
    told = ("clean",) if left else ("clean", lowest)
    parts = [f"{name} {' -> '.join(_short(column.get(name)) for column in pruned)}%"
             for name in told if name is not None and name in last]
    if len(last.keys() - {"clean"}) > 1 and lowest != WORST and not left:
        parts[1] += " (lowest)"
    if left:
        parts.append(f"unfinished: {', '.join(left)}")
    if "size" in report:
        parts.append(f"file {times(report['size']['dense_bytes'], report['size']['file_bytes'])}")
    return ("Unreliable: " if doubted(report) else "") + ", ".join(parts) + "."


def _summary_of_several(report: Mapping[str, Any]) -> str:
    """The last figure that is there, the worst case where there is one, of each model."""
    name, wrong = figure(report), doubted(report)
    parts = [f"{heading} {_short(column.get(name))}%{' (unreliable)' * (heading in wrong)}"
             if name in column else f"{heading} unfinished" if heading in unfinished(report) else
             f"{heading} -" for heading, column in scores(report).items()]
    return f"{name}: {', '.join(parts)}."


def _short(score: Mapping[str, Any] | None) -> str:
    return with_interval(score).split()[0]


def caption(report: Mapping[str, Any]) -> str:
    """How to read the table: unit, interval, n, data set, threat."""
    shown = list(scores(report).values())
    counts = Counter(score["n"] for column in shown for score in column.values())
    common = counts.most_common(1)[0][0] if counts else 0
    sizes = {name: dict.fromkeys(str(column[name]["n"]) for column in shown if name in column)
             for name in attack_names(report) if any(name in column for column in shown)}
    others = ", ".join(f"{name}: {' and '.join(found)}" for name, found in sizes.items()
                       if list(found) != [str(common)])
    drop = f"; drop in points{_against(report)}" if drops(report) else ""
    norm, eps = report["threat"]["norm"], report["threat"]["eps"]
    threat = "" if eps is None else f"; attacks within {norm} eps {radius(eps)}"
    return (f"Accuracy in % [Wilson 95% interval]{drop}. n = {common}{f' ({others})' if others else ''} "
            f"test samples of {report['data']['name']}{threat}.{_bound(report)}{_worst_differ(report)}")


def _bound(report: Mapping[str, Any]) -> str:
    """That aa-fast is no AutoAttack, wherever its figure is shown."""
    words = " aa-fast is an upper bound: AutoAttack without FAB-T and Square."
    return words if "aa-fast" in attack_names(report) else ""


def _worst_differ(report: Mapping[str, Any]) -> str:
    """That worst cases are over different attacks: the one over more is lower for that alone."""
    found = [f"over {attacks} ({' and '.join(names)})" for attacks, names in _worst_over(report).items()]
    return f" The worst case is {'; '.join(found)}." if len(found) > 1 else ""


def _against(report: Mapping[str, Any]) -> str:
    """Of several models: what their drops are against."""
    if "reference" not in report:
        return ""
    return f" against {report['reference'] or 'the teacher of each'}"


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it cost and what it gave, as (label, sentence)."""
    lines = _pruning_facts(report) if "sparsity" in report else []
    if not is_unfinished(report):
        several = "reference" in report
        lines += [("paired", f"{who}: {sentence}" if several else sentence)
                  for who, drop in drops(report).items() for sentence in _drop_sentences(drop)]
    lines += _model_facts(report)
    lines += _spent_facts(scores(report))
    times = report["seconds"]
    if times and "reference" in report:
        lines.append(("time", duration(sum(times.values()))))
    elif times:
        phases = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in times.items())
        together = f"; together {duration(sum(times.values()))}" if len(times) > 1 else ""
        lines.append(("time", phases + together))
    where = report["environment"]
    threads = f"{where['threads']} thread{'s' if where['threads'] != 1 else ''}"
    return [*lines,
            ("machine", f"{where['device']}, {threads}, torch {where['torch']}, seed {where['seed']}")]


def _model_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the models came from, but for the one that the headline names; of several also what their runs
    say."""
    models = report.get("models", {})
    if "reference" not in report:
        return [(heading, model["source"]) for heading, model in list(models.items())[:-1]]
    return [("model" if heading != report["reference"] else "reference", f"{heading}: " + ", ".join(
        [model["source"], *([f"{percent_of_weights(model['sparsity'])}% zeros"] if "sparsity" in model
                            else []),
         *([size(model["file_bytes"])] if "file_bytes" in model else [])]))
        for heading, model in models.items()]


def _drop_sentences(drops: Mapping[str, Mapping]) -> list[str]:
    """McNemar's test of the last row, the worst case where there is one: so that "no drop" means
    something."""
    name = list(drops)[-1] if drops else ""
    if "p" not in drops.get(name, {}):
        return []
    lost, won, p, (low, high) = (drops[name][key] for key in ("lost", "won", "p", "ci95"))
    verdict = ("a loss" if low > 0 else "a gain under these attacks" if high < 0 else
               f"no loss beyond chance; one above {high:.1f} points is unlikely (95%)")
    if (p < 0.05) != (low > 0 or high < 0):
        verdict += ", and borderline, as test and interval disagree"
    return [f"{name}: {lost} sample{'s' * (lost != 1)} lost, {won} won, McNemar p = {p:.2g}: {verdict}"]


def _spent_facts(scores: Mapping[str, Mapping[str, Mapping]]) -> list[tuple[str, str]]:
    """Samples through the models, forwards and backwards, by attack."""
    spent: dict[str, list[int]] = {}
    for column in scores.values():
        for name, score in column.items():
            if {"forwards", "backwards"} <= score.keys() and name != WORST:
                spent.setdefault(name, [0, 0])
                spent[name] = [spent[name][0] + score["forwards"], spent[name][1] + score["backwards"]]
    shown = ", ".join(f"{name} {scaled(f)} + {scaled(b)}" for name, (f, b) in spent.items())
    return [("passes", f"{shown} (samples forwards + backwards)")] if shown else []


def _pruning_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    sparsity, file, macs = report["sparsity"], report["size"], report["macs"]
    until = ", until pwoa export --format slim" if sparsity["structure"] == "channel" else ""
    way = [("search", search.sentence(report))] if "search" in report else []
    return [
        *way, *training.facts(report["recipe"]), ("sparsity",
         f"{percent_of_weights(sparsity['target'])}% wanted, {percent_of_weights(sparsity['achieved'])}% "
         f"reached ({sparsity['structure']}, recipe {report['recipe']['name']})"),
        ("weights",
         f"{sparsity['nonzero']:,} of {sparsity['total']:,} nonzero, in {len(sparsity['layers'])} layers"),
        ("file",
         f"{size(file['file_bytes'])}: {times(file['dense_bytes'], file['file_bytes'])} than dense "
         f"({size(file['dense_bytes'])}), {ratio(file['file_bytes'], file['limit_bytes'])} times the entropy "
         f"limit ({size(file['limit_bytes'])}){_asked(report)}"),
        ("MACs", f"{scaled(macs['dense'])}, of which {scaled(macs['nonzero'])} with nonzero weights; torch "
                 f"multiplies the zeros too, so the time stays{until}"),
    ]


def too_large(report: Mapping[str, Any]) -> bool:
    """Whether the file has more bytes than were asked for."""
    file = report.get("size", {})
    return "target_bytes" in file and file["file_bytes"] > file["target_bytes"]


def _asked(report: Mapping[str, Any]) -> str:
    """Whether the file has the bytes that were asked for; "" where nobody asked."""
    if "target_bytes" not in report["size"]:
        return ""
    beyond = "more than" if too_large(report) else "within"
    return f", {beyond} the {size(report['size']['target_bytes'])} that were asked for"


def class_tables(report: Mapping[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """Head and rows of accuracy in % by class, by title: of each of several models, else of the one that was
    named (the last)."""
    found = report.get("classes", {})
    shown = list(found) if "reference" in report else list(found)[-1:]
    return {f"By class ({who})": _class_rows(found[who]) for who in shown}


def _class_rows(scores: Mapping[str, Mapping[str, Mapping]]) -> list[tuple[str, ...]]:
    counts = {c: score["n"] for column in reversed(list(scores.values())) for c, score in column.items()}
    counts |= {c: score["n"] for c, score in scores.get("clean", {}).items()}
    # of foreign reports: names
    classes = sorted(counts, key=lambda c: (int(c) if c.isdecimal() and c.isascii() else math.inf, c))
    return [("class", "n", *scores), *(
        (c, str(counts[c]), *(_of_class(column.get(c), counts[c]) for column in scores.values()))
        for c in classes)]


def _of_class(score: Mapping[str, Any] | None, n: int) -> str:
    """Percent; with the number of samples where time did not suffice for all n."""
    return _short(score) + (f" ({score['n']})" if score and score["n"] != n else "")


def more_tables(report: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]], str]]:
    """Title, head, rows and caption of each table that only some reports have."""
    over_eps, points = curve.table(report)
    return [*([(curve.TITLE, over_eps, points, curve.CAPTION)] if points else []),
            *((title, head, body, "") for title, (head, *body) in class_tables(report).items()),
            *([("The way there", search.HEAD, search.rows(report["search"]),
                search.caption(report["search"]))] if "search" in report else [])]


def markdown(report: Mapping[str, Any]) -> str:
    """A report or an evaluation as one Markdown document."""
    lines = [f"# {inline(headline(report))}", "", inline(summary(report)), ""]
    lines += markdown_table(["", *headings(report)], rows(report)) + [""]
    if "reference" in report and drops(report):
        body = [(name, *(with_interval(drop.get(name)) for drop in drops(report).values()))
                for name in attack_names(report)]
        lines += [*markdown_table(["drop", *drops(report)], body), ""]
    lines += [inline(caption(report)), ""]
    lines += [f"- {inline(label)}: {inline(text)}" for label, text in facts(report)]
    lines += [f"- note: {inline(note)}" for note in report["notes"]]
    for title, head, cells, below in more_tables(report):
        lines += ["", f"## {inline(title)}", "", *markdown_table(head, cells)]
        lines += ["", inline(below)] if below else []
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
    """Text on one line of Markdown, none of it read as more than text."""
    return escapes.markdown(text)
