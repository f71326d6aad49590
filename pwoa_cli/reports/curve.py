"""The security curve of a report: accuracy over eps, of each model."""
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pwoa_cli.evaluation.words import of_models
from pwoa_cli.reports.numbers import radius, with_interval

TITLE = "Accuracy over eps"
CAPTION = ("Accuracy in % [Wilson 95% interval] over all attacks together at each eps, on the same samples; "
           "each an upper bound of robustness.")


def table(report: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of `--curve`: eps, then a cell for each model; no rows where there is no curve."""
    points = report.get("curve", [])
    names = list(dict.fromkeys(name for point in points for name in point["scores"]))
    rows = [(radius(point["eps"]), *(_cell(report, point, name) for name in names)) for point in points]
    return ("eps", *names), rows


def _cell(report: Mapping[str, Any], point: Mapping[str, Any], name: str) -> str:
    score = point["scores"].get(name)
    return with_interval(score) + " unreliable" * doubted(report, point, name) if score else "unfinished"


def doubted(report: Mapping[str, Any], point: Mapping[str, Any], name: str) -> bool:
    """Whether a model's figure at a point must not be believed; at the threat's eps the report says why."""
    threat = report["threat"]["eps"]
    ours = report.get("findings", []) if threat and math.isclose(point["eps"], threat, rel_tol=1e-5) else []
    return any(finding["unreliable"] and name in (finding["models"] or [name])
               for finding in [*point.get("findings", []), *ours])


def doubts(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes points unreliable, as the notes of a report say it."""
    return [f"unreliable: the curve at eps {radius(point['eps'])}: {of_models(finding)}"
            for point in points for finding in point.get("findings", [])]


def unfinished(report: Mapping[str, Any]) -> list[float]:
    """The radii at which time did not suffice for a model."""
    points = report.get("curve", [])
    return [point["eps"] for point in points if len(point["scores"]) < len(points[0]["scores"])]
