"""What stands in the sections of the HTML page of one report: text, tables and plots for the template."""
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pwoa_cli.evaluation.words import of_models
from pwoa_cli.reports import commands, curve, plots, tables
from pwoa_cli.reports.dossier import SAMPLES_FILE, Dossier, tried
from pwoa_cli.reports.numbers import percent_of_weights, radius, ratio, scaled, size, with_interval
from pwoa_cli.reports.several import IN_RUN
from pwoa_cli.reports.verdict import verdict

Table = dict[str, Any]  # head, rows, caption


def one(dossier: Dossier) -> dict[str, Any]:
    """All sections of a report, of which those without content are None or empty; `missing` has the command
    that gets each."""
    report, folder = dossier.report, dossier.folder
    pictures, left = _pictures(dossier)
    return {
        "verdict": verdict(report), "doubts": _doubts(dossier), "measured": _measured(dossier),
        "curves": _curves(dossier), "pictures": pictures, "layers": _layers(report),
        "training": _training(dossier), "size": _size(report), "bench": _bench(dossier.bench),
        "again": _again(dossier), "facts": tables.facts(report), "options": _options(report),
        "notes": list(dict.fromkeys(note for each in dossier.reports.values() for note in each["notes"])),
        "left": [*dossier.left, *left], "files": _files(report), "is_run": "sparsity" in report,
        "missing": {"curve": commands.curve_and_samples(report, folder), "bench": commands.bench(folder)}}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """Cells with what stands in brackets apart, so that it may go on a line of its own."""
    return {"head": list(head), "caption": caption,
            "rows": [[cell.partition(" [") for cell in row] for row in rows]}


def accuracy(report: Mapping[str, Any]) -> Table:
    """Clean, each attack, the worst case: a row each, a column a model."""
    return table(["", *tables.headings(report)], tables.rows(report), tables.caption(report))


def _doubts(dossier: Dossier) -> list[str]:
    """What must not be believed, of the report and of the evaluations beside it."""
    doubts = [("" if folder == dossier.folder else f"{folder.name}: ") + of_models(finding)
              for folder, report in reversed(dossier.reports.items())
              for finding in report.get("findings", []) if finding["unreliable"]]
    return list(dict.fromkeys(doubts))


def _measured(dossier: Dossier) -> list[dict[str, Any]]:
    """The report's table, then those of evaluations kept beside it."""
    first = {"title": "", "verdict": "", "tables": [accuracy(dossier.report), *_classes(dossier.report)]}
    return [first, *({"title": f"Measured again: {name}", "verdict": verdict(report),
                      "tables": [accuracy(report), *_classes(report)]}
                     for name, report in dossier.evaluations.items())]


def _classes(report: Mapping[str, Any]) -> list[Table]:
    return [table(head, rows, title) for title, (head, *rows) in tables.class_tables(report).items()]


# --- curves ---------------------------------------------------------------

def _curves(dossier: Dossier) -> list[dict[str, Any]]:
    """A plot and a table for each report with a curve: of --curve, else of its minimum-norm attacks."""
    return [made for number, (folder, report) in enumerate(dossier.reports.items())
            if (made := over_eps(report, name=f"curve{number}", where="" if folder == dossier.folder
                                 else folder.name))]


def over_eps(report: Mapping[str, Any], *, name: str, where: str = "") -> dict[str, Any] | None:
    """The curve of a report; None where it has none. Args: name: an id. where: the evaluation that it is
    of."""
    found, caption = _points(report)
    if not found:
        return None
    says = "; ".join(f"{who}: " + ", ".join(
        f"{y:.1f}% at {radius(x)}{' (unreliable)' * doubt}" for x, y, *_, doubt in points)
                     for who, points in found.items())
    hollow = any(doubt for points in found.values() for *_, doubt in points)
    svg = plots.over_eps(found, eps=report["threat"]["eps"] or 0.0, name=name, says=says)
    head, rows = curve.table(report)
    if not rows:
        own = [{x: f"{y:.1f}{' unreliable' * doubt}" for x, y, *_, doubt in points}
               for points in found.values()]
        radii = sorted({x for points in own for x in points})
        rows = [(radius(x), *(points.get(x, "-") for points in own)) for x in radii]
    return {"svg": svg, "where": where, "doubts": [
        sentence.removeprefix("unreliable: ") for sentence in curve.doubts(report.get("curve", []))],
            "table": table(head if "curve" in report else ["eps", *found], rows,
                           caption + " Hollow marks are unreliable." * hollow)}


# by heading: eps; accuracy, low and high in %; whether it must not be believed
Points = dict[str, list[tuple[float, float, float, float, bool]]]


def _points(report: Mapping[str, Any]) -> tuple[Points, str]:
    """The points of a report's curves, and how to read them."""
    found: Points = {}
    for point in report.get("curve", []):
        for who, score in point["scores"].items():
            found.setdefault(who, []).append(
                (point["eps"], *_percent(score), curve.doubted(report, point, who)))
    if found:
        return found, curve.CAPTION
    wrong = tables.doubted(report)
    for who, scores in tables.scores(report).items():
        for attack, score in scores.items():
            if "curve" in score:
                found[f"{who}, {attack}"] = [(0.0, *_percent(scores["clean"]), False), *(
                    (x, 100 * y, 100 * y, 100 * y, who in wrong) for x, y in score["curve"])]
    return found, "Accuracy in % by the smallest perturbations that the attack found: an upper bound."


def _percent(score: Mapping[str, Any]) -> tuple[float, float, float]:
    low, high = score["ci95"]
    return 100 * score["accuracy"], 100 * low, 100 * high


# --- what lies beside the report ---------------------------------------------------------------

def _pictures(dossier: Dossier) -> tuple[dict[str, Any] | None, list[str]]:
    """Images that break the second model only, from the first samples that have any; why others were left
    out."""
    from pwoa_cli.reports import pictures

    left: list[str] = []
    for folder, report in dossier.reports.items():
        path = folder / SAMPLES_FILE
        if found := tried(partial(pictures.of, path, report), left) if path.is_file() else None:
            teacher, student = tables.scores(report)
            return {"found": found, "teacher": teacher, "student": student, "norm": report["threat"]["norm"],
                    "eps": radius(report["threat"]["eps"] or 0)}, left
    return None, left


def _layers(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a layer, with the fraction of its weights that is left, for a bar."""
    return [{"name": layer["name"], "shape": " x ".join(map(str, layer["shape"])),
             "nonzero": f"{layer['nonzero']:,}", "total": f"{layer['total']:,}",
             "zeros": percent_of_weights(1 - layer["nonzero"] / max(1, layer["total"])),
             "width": round(100 * (1 - layer["nonzero"] / max(1, layer["total"])), 1)}
            for layer in report.get("sparsity", {}).get("layers", [])]


def _training(dossier: Dossier) -> dict[str, Any] | None:
    """The loss over epochs, and the first and last of each phase as a table; None without a log."""
    rows = [row for row in dossier.metrics if isinstance(row.get("phase"), str) and all(
        isinstance(row.get(key), int | float) and row[key] > 0 for key in ("epoch", "loss"))]
    if not rows:
        return None
    phases: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        phases.setdefault(row["phase"], []).append(row)
    body = [(phase, f"{own[0]['epoch']:.2g} to {own[-1]['epoch']:.2g}", f"{own[0]['loss']:.3g}",
             f"{own[-1]['loss']:.3g}") for phase, own in phases.items()]
    says = "; ".join(f"{phase}, epochs {epochs}: loss {first}, at the end {last}"
                     for phase, epochs, first, last in body)
    return {"svg": plots.over_epochs(rows, name="training", says=says),
            "table": table(["phase", "epochs", "first loss", "last loss"], body)}


def _size(report: Mapping[str, Any]) -> Table | None:
    if "size" not in report:
        return None
    file, macs = report["size"], report["macs"]
    body = [("this file", size(file["file_bytes"]), ratio(file["file_bytes"], file["dense_bytes"])),
            ("the same weights stored densely", size(file["dense_bytes"]), "1"),
            ("entropy limit", size(file["limit_bytes"]), ratio(file["limit_bytes"], file["dense_bytes"])),
            ("multiplications of an image, dense", scaled(macs["dense"]), "1"),
            ("of these with nonzero weights", scaled(macs["nonzero"]), ratio(macs["nonzero"], macs["dense"]))]
    return table(["", "amount", "share"], body)


def _bench(made: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Times by runtime and batch, as `pwoa bench` said them."""
    if made is None:
        return None
    names = list(made["models"])
    body = [(row["runtime"], str(row["batch"]), *(_spread(row["milliseconds"].get(name)) for name in names),
             _spread(row.get("times_as_fast"))) for row in made["rows"]]
    where = made["environment"]
    return {"conclusion": made["conclusion"],
            "table": table(["runtime", "batch", *(f"{name}, ms" for name in names), "times as fast"], body,
                           f"Median [quartiles] on {where['device']}, {where['threads']} threads, torch "
                           f"{where['torch']}.")}


def _spread(values: Mapping[str, Any] | None) -> str:
    return "-" if values is None else f"{values['median']:.3g} [{values['low']:.3g}, {values['high']:.3g}]"


# --- making it again ---------------------------------------------------------------

def _again(dossier: Dossier) -> list[str]:
    """The commands that make the report and its evaluations again."""
    own = dossier.report if "sparsity" in dossier.report else None
    return [commands.again(report, folder, run=own) for folder, report in reversed(dossier.reports.items())]


def _options(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was typed, by option, of a run."""
    return [(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            for name, value in report.get("command", {}).items()]


def _files(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Heading, path and SHA-256 of each model file."""
    model = report["model"]
    found = [(who, one["source"], one["sha256"]) for who, one in report.get("models", {}).items()]
    if "sparsity" in report:
        found = [("pruned from", model["source"], model["sha256"]),
                 ("teacher", model.get("teacher", ""), model.get("teacher_sha256") or ""),
                 ("pruned", IN_RUN, model.get("file_sha256") or "")]
    return [row for row in found if row[1]]


# --- several ---------------------------------------------------------------

def several(report: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """The sections of models in one table. Args: name: makes ids its own."""
    figure = tables.figure(report)
    return {"headline": tables.headline(report), "verdict": verdict(report),
            "table": _comparison(report, figure), "accuracy": accuracy(report),
            "plots": _pareto(report, figure, name), "curve": over_eps(report, name=f"{name}-curve"),
            "doubts": [of_models(f) for f in report.get("findings", []) if f["unreliable"]],
            "notes": report["notes"], "facts": tables.facts(report)}


def _shown(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The models that are compared, without their reference."""
    return {who: model for who, model in report["models"].items() if who != report["reference"]}


def _comparison(report: Mapping[str, Any], figure: str) -> Table:
    doubted = dict(zip(tables.scores(report), tables.headings(report), strict=True))
    shown = [*_shown(report).items(), *((who, report["models"][who]) for who in [report["reference"]] if who)]
    body = []
    for number, (who, model) in enumerate(shown, 1):
        zeros, bytes_ = model.get("sparsity"), model.get("file_bytes")
        body.append((str(number) if who != report["reference"] else "-", doubted[who],
                     f"{percent_of_weights(zeros)}%" if zeros is not None else "-",
                     size(bytes_) if bytes_ is not None else "-", with_interval(model["scores"].get("clean")),
                     with_interval(model["scores"].get(figure)), with_interval(model["drop"].get(figure))))
    return table(["", "model", "zeros", "file", "clean", figure, "drop"], body, tables.caption(report))


def _pareto(report: Mapping[str, Any], figure: str, name: str) -> list[str]:
    """Zeros and bytes against the figure that counts, where every model has both."""
    shown, made, wrong = _shown(report), [], tables.doubted(report)
    reference = report["models"].get(report["reference"], {}).get("scores", {}).get(figure)
    for key, label, scale, low in (("sparsity", "zeros in %", 100, False),
                                   ("file_bytes", "file in kB", 1e-3, True)):
        if len(shown) < 2 or not all(key in model and figure in model["scores"] for model in shown.values()):
            continue
        points = [(scale * model[key], *_percent(model["scores"][figure]), who in wrong)
                  for who, model in shown.items()]
        says = "; ".join(f"{who}: {label} {x:.4g}, {y:.1f}%{' (unreliable)' * doubt}"
                         for who, (x, y, *_, doubt) in zip(shown, points, strict=True))
        made.append(plots.pareto(points, xlabel=label, ylabel=f"{figure}, accuracy in %", best_is_low=low,
                                 reference=100 * reference["accuracy"] if reference else None,
                                 name=f"{name}-{key}", says=says))
    return made
