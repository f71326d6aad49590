"""Several models in one report: their names, each of them by itself, reports that exist brought together.

The shape is that of `schema.build_several`: models: {heading: {source, sha256, arch, scores, drop}}, and
reference: the heading of the model against which drops are, or None. Nothing here needs torch.
"""
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

TIME = re.compile(r"-\d{8}-\d{6}(-\d+)?$")  # at the end of a run's name
IN_RUN = "model.safetensors"  # the same name in every run: the folder's says more


def headings(paths: Sequence[str], *, taken: Collection[str] = ()) -> list[str]:
    """A short name for each path, none of them twice or among `taken`: the file's or folder's own name, a
    run's without its time, with that and as many folders before it as it needs; "(2)" behind a path that is
    there again."""
    depths = dict.fromkeys(map(_parts, paths), 0)
    while True:
        counts = Counter(_name(*item) for item in depths.items()) + Counter(taken)
        longer = {parts: depth + (counts[_name(parts, depth)] > 1 and depth < len(parts))
                  for parts, depth in depths.items()}
        if longer == depths:
            return _numbered([_name(_parts(path), depths[_parts(path)]) for path in paths], taken)
        depths = longer


def _parts(path: str) -> tuple[str, ...]:
    if ":" in path and not os.path.exists(path):
        return (path,)  # timm:NAME, hf-hub:ID
    parts = tuple(part for part in os.path.abspath(path).split(os.sep) if part)
    return parts[:-1] if parts[-1:] == (IN_RUN,) and len(parts) > 1 else parts or (path,)


def _name(parts: Sequence[str], depth: int) -> str:
    """The last parts of a path; at depth 0 the last without the time of a run."""
    return "/".join(parts[-depth:]) if depth else TIME.sub("", parts[-1]) or parts[-1]


def _numbered(names: Sequence[str], taken: Collection[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        again = (f"{name} ({number})" for number in range(2, len(names) + len(taken) + 3))
        there = {*found, *taken}
        found.append(next(one for one in (name, *again) if one not in there))
    return found


def view(report: Mapping[str, Any], heading: str) -> dict[str, Any]:
    """One model of several as the report of an evaluation of it alone, or beside the reference."""
    model, reference = report["models"][heading], report["reference"]
    shown = [heading] if reference in (None, heading) else [reference, heading]
    own = {name: {who: report[name][who] for who in shown if who in report[name]}
           for name in ("models", "unfinished", "classes") if name in report}
    own["models"] = {who: {key: entry[key] for key in ("source", "sha256", "arch")}
                     for who, entry in own["models"].items()}
    curve = [_of(point, shown) for point in report.get("curve", [])]
    findings = _about(report.get("findings", []), shown)
    scores: dict[str, Any] = {"results": model["scores"]}
    if len(shown) == 1:
        findings = [finding | {"models": []} for finding in findings]  # as where one model is measured alone
    if len(shown) > 1:
        scores = {"teacher": report["models"][reference]["scores"], "student": model["scores"],
                  "drop": model["drop"], "headings": shown}
    rest = {key: value for key, value in report.items() if key not in ("reference", "gates")}
    if curve:
        rest["curve"] = curve
    if "gates" in report:
        rest["gates"] = [verdict for verdict in report["gates"] if verdict["model"] == heading]
    return rest | {"model": {"source": model["source"]}} | scores | own | {"findings": findings}


def _about(findings: Sequence[dict[str, Any]], shown: Sequence[str]) -> list[dict[str, Any]]:
    """Those of these models, or of none by name."""
    return [finding for finding in findings if not finding["models"] or {*shown} & {*finding["models"]}]


def _of(point: Mapping[str, Any], shown: Sequence[str]) -> dict[str, Any]:
    """A point of a curve with the scores and findings of these models alone."""
    findings = _about(point.get("findings", []), shown)
    rest = {key: value for key, value in point.items() if key != "findings"}
    return rest | {"scores": {who: point["scores"][who] for who in shown if who in point["scores"]}} | (
        {"findings": findings} if findings else {})


def compared(report: Mapping[str, Any]) -> list[str]:
    """The headings of the models that are judged: all but the reference."""
    return [heading for heading in report["models"] if heading != report["reference"]]
