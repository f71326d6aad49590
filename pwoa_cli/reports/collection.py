"""Reports that exist, brought together: one table for those that can be compared, in the shape of
`schema.build_several`. Nothing is measured, and torch is not needed.

Figures are compared where norm, eps, data, n and seed are the same: then they are of the same samples.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwoa_cli.evaluation.words import told
from pwoa_cli.reports import curve, schema
from pwoa_cli.reports.numbers import radius
from pwoa_cli.reports.several import IN_RUN, compared, headings, view


@dataclass(frozen=True)
class Entry:
    """A report of one model, alone or beside its teacher, and the path that was named."""

    path: Path
    report: Mapping[str, Any]


def read(paths: Sequence[str]) -> dict[str, Entry]:
    """The reports of runs and evaluations by short names; the models of an evaluation of several one by one.

    Raises: InputError for a path that holds no report.
    """
    found: dict[str, Entry] = {}
    named = [str(Path(path).parent) if Path(path).name == "report.json" else path for path in paths]
    for path, name in zip(paths, headings(named, taken=("teacher", "compared")), strict=True):
        report = schema.read(Path(path))
        whos = compared(report) if "reference" in report else []
        found |= {f"{name}/{who}": Entry(Path(path), view(report, who)) for who in whos}
        found |= {} if whos else {name: Entry(Path(path), report)}
    return found


# --- what can be compared --------------------------------------------------------------------

def together(entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """A table for each set of reports that can be compared, in the order of their first ones."""
    groups: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        groups.setdefault(repr(sorted(conditions(entry.report).items())), {})[name] = entry
    return [_table(group) for group in groups.values()]


def conditions(report: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for figures to be compared: threat, data and how it was read, samples."""
    threat, data = report["threat"], report["data"]
    eps = None if threat["eps"] is None else _radius(threat["eps"])
    read = {key: data[key] for key in ("shape", "images", "classes", "class_numbers") if key in data}
    choices = {key: value for key, value in data.get("choices", {}).items() if key != "image_size"}
    return {"norm": threat["norm"], "eps": eps, "data": data["name"], "n": data["n"],
            "seed": data.get("seed"), **read, **choices}  # the size of images is in their shape


def _radius(eps: float) -> float:
    """eps to 5 digits: 8/255 in float32 is 8/255, and in the sixth digit it is not."""
    return float(f"{eps:.5g}")


def differences(entries: Mapping[str, Entry]) -> list[str]:
    """Why not all are in one table: who says what, of each condition that differs; [] where none does."""
    told = []
    found = {name: conditions(entry.report) for name, entry in entries.items()}
    for key in dict.fromkeys(key for values in found.values() for key in values):
        groups: dict[str, list[str]] = {}
        for name, values in found.items():
            groups.setdefault(_words(values.get(key, "not said")), []).append(name)
        if len(groups) > 1:
            told.append(f"{key} {', '.join(f'{words} ({_and(names)})' for words, names in groups.items())}")
    return [f"Not compared with one another, as they differ in {'; '.join(told)}."] if told else []


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


# --- one table -------------------------------------------------------------------------------

def _table(entries: Mapping[str, Entry]) -> dict[str, Any]:
    reports = {name: entry.report for name, entry in entries.items()}
    first = next(iter(reports.values()))
    teacher = _shared_teacher(reports)
    reference = next(iter(teacher), None)
    models = teacher | {name: _model(entry) for name, entry in entries.items()}
    findings = _findings(reports, reference)
    left: dict[str, Any] = {name: {} for name in models}
    for name, report in reports.items():
        *others, left[name] = report.get("unfinished", {}).values() or [{}]
        for other in others if reference else ():
            left[str(reference)] = other | left[str(reference)]
    points, left_out = _curve(reports, reference)
    classes = {name: list(report["classes"].values())[-1] for name, report in reports.items()
               if "classes" in report}
    return schema.build_several(
        models=models, reference=reference, norm=first["threat"]["norm"], eps=first["threat"]["eps"],
        seconds={name: sum(report["seconds"].values()) for name, report in reports.items()},
        environment=first["environment"], data=first["data"], findings=findings,
        notes=[*_notes(reports), *left_out, *told(findings), *curve.doubts(points)],
        classes=classes or None,
        attacks=list(dict.fromkeys(name for one in reports.values() for name in one.get("attacks", ()))),
        curve=points or None, unfinished=left)


def _model(entry: Entry) -> dict[str, Any]:
    """What is known of one model: of a run its zeros, bytes and multiplications too."""
    report = entry.report
    model = report["model"] | dict(list(report["models"].values())[-1] if report.get("models") else {})
    found = {"source": model.get("source", ""), "sha256": model.get("sha256", ""),
             "arch": model.get("arch", ""), "scores": report.get("results", report.get("student", {})),
             "drop": report.get("drop", {})}
    if "sparsity" not in report:
        return found
    folder = entry.path if entry.path.is_dir() else entry.path.parent
    return found | {"source": str(folder / IN_RUN), "sha256": model.get("file_sha256", ""),
                    "sparsity": report["sparsity"]["achieved"], "file_bytes": report["size"]["file_bytes"],
                    "macs": report["macs"]["nonzero"], "created": report["created"]}


def _teacher(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a report compares its model with, by its heading; {} where that is nothing."""
    if "teacher" not in report:
        return {}
    heading, model = report.get("headings", ("teacher",))[0], report["model"]
    origin = report.get("models", {}).get(heading) or {
        "source": model.get("teacher", model["source"]), "arch": "",
        "sha256": model.get("teacher_sha256", model.get("sha256", ""))}
    return {heading: {**origin, "scores": report["teacher"], "drop": {}}}


def _shared_teacher(reports: Mapping[str, Mapping]) -> dict[str, dict[str, Any]]:
    """The teacher of all reports that have one, with the attacks of all: the same file, and the same figures
    wherever two have one; else {}."""
    found = [teacher for report in reports.values() for teacher in _teacher(report).items()]
    files = {model["sha256"] for _, model in found}
    if len(files) != 1 or "" in files:
        return {}
    heading, shared = found[0]
    scores: dict[str, Any] = {}
    for _, model in found:
        if any(score["accuracy"] != scores.get(name, score)["accuracy"]
               for name, score in model["scores"].items()):
            return {}  # measured on another device, or read in another way
        scores = dict(model["scores"]) | scores
    return {heading: shared | {"scores": scores}}


def _findings(reports: Mapping[str, Mapping], reference: str | None) -> list[dict[str, Any]]:
    """The findings of all reports, by the names of this table; the same one of several models once."""
    found: dict[tuple[str, bool, str], list[str]] = {}
    for name, report in reports.items():
        teacher = next(iter(_teacher(report)), None)
        for finding in report.get("findings", []):
            for who in (finding["models"] or [teacher, name]) if teacher else [name]:
                of_teacher = who == teacher and teacher is not None
                text = finding["text"] if reference or not of_teacher else f"its teacher: {finding['text']}"
                mine = found.setdefault((finding["check"], finding["unreliable"], text), [])
                heading = reference if of_teacher and reference else name
                mine += [] if heading in mine else [heading]
    return [{"check": check, "unreliable": unreliable, "text": text, "models": models}
            for (check, unreliable, text), models in found.items()]


def _curve(reports: Mapping[str, Mapping], reference: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """(the points that all curves have, by the names of this table; what is left out). [] where there is no
    curve, or where their attacks differ, as a point is of all of them together."""
    curves = {name: {_radius(point["eps"]): point for point in report["curve"]}
              for name, report in reports.items() if report.get("curve")}
    if not curves or len(_attacks_of_curves(reports)) > 1:
        return [], []
    every = sorted({eps for points in curves.values() for eps in points})
    common = [eps for eps in every if all(eps in points for points in curves.values())]
    left = ", ".join(radius(eps) for eps in every if eps not in common)
    said = [f"Left out of the curves, as not all have them: eps {left}."] if left else []
    at = [{name: points[eps] for name, points in curves.items()} for eps in common]
    named = {name: _named(points, name, reference) for name, points in curves.items()}
    theirs = [{repr(point["scores"][who]) for name, point in points.items()
               for who, heading in named[name].items() if heading == reference and who in point["scores"]}
              for points in at]
    if any(len(scores) > 1 for scores in theirs):
        said.append(f"The curves of {reference} differ, and are left out.")
        named = {name: _named(points, name, None) for name, points in curves.items()}
    return [_point(points, named) for points in at], said


def _attacks_of_curves(reports: Mapping[str, Mapping]) -> dict[str, list[str]]:
    """The reports with a curve by the attacks that it is of."""
    found: dict[str, list[str]] = {}
    for name, report in reports.items():
        if report.get("curve"):
            found.setdefault(", ".join(sorted(report.get("attacks", ()))), []).append(name)
    return found


def _named(points: Mapping[float, Mapping], name: str, reference: str | None) -> dict[str, str]:
    """The name in this table of each heading in a curve: of the model, which is the last one, and of what it
    is compared with."""
    *others, own = points[0.0]["scores"]
    return ({others[0]: reference} if others and reference else {}) | {own: name}


def _point(points: Mapping[str, Mapping], named: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """A point of all curves: the scores of each, what they are compared with first."""
    first: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    findings: list[Mapping[str, Any]] = []
    for name, point in points.items():
        for who, heading in named[name].items():
            if who in point["scores"]:
                (scores if heading == name else first)[heading] = point["scores"][who]
        for finding in point.get("findings", []):
            models = [named[name][who] for who in finding["models"] or named[name] if who in named[name]]
            own = finding | {"models": models}
            findings += [own] if models and own not in findings else []
    made: dict[str, Any] = {"eps": next(iter(points.values()))["eps"], "scores": first | scores}
    return made | ({"findings": findings} if findings else {})


def _notes(reports: Mapping[str, Mapping]) -> list[str]:
    """What was taken as the same though it need not be: data in two places, machines."""
    sentences = []
    for what, of in (("The data lies in different places, and is taken as the same: ",
                      lambda report: report["data"].get("where")),
                     ("Measured on different machines or versions: ",
                      lambda report: ", ".join(f"{key} {report['environment'][key]}"
                                               for key in ("device", "torch", "pwoa")))):
        places: dict[Any, list[str]] = {}
        for name, report in reports.items():
            places.setdefault(of(report), []).append(name)
        if len(places) > 1:
            sentences.append(what + "; ".join(f"{_and(names)}: {place}" for place, names in places.items())
                             + ".")
    if len(curves := _attacks_of_curves(reports)) > 1:
        sentences.append("Curves are of all attacks together, and not in one table where those differ: "
                         + "; ".join(f"{_and(names)}: {attacks}" for attacks, names in curves.items()) + ".")
    return sentences
