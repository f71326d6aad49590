"""The way to a sparsity that was searched for (`search` of report.json), for people."""
from collections.abc import Mapping
from typing import Any

from pwoa_cli.reports.numbers import EXACT, percent_of_weights, points, with_interval

HEAD = ("stage", "zeros", "epochs", "points lost", "")


def rows(search: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells of HEAD, a stage a row."""
    return [(str(count), f"{percent_of_weights(stage['sparsity'])}%", f"{stage['epochs']:.2g}",
             with_interval(stage), "accepted" if stage["accepted"] else stage["why"] or "refused")
            for count, stage in enumerate(search["stages"], 1)]


def caption(search: Mapping[str, Any]) -> str:
    """How to read the rows."""
    return (f"Points of {search['attack']} lost against the teacher [paired 95% interval] on "
            f"{search['held_out']:,} training images held out; accepted where the interval ends at "
            f"{search['max_loss']:g} or below. Each stage begins as the last accepted one.")


def sentence(report: Mapping[str, Any]) -> str:
    """What was found, what bounds it, and what the test images say of it."""
    search, name = report["search"], report["search"]["attack"]
    beyond = [stage["sparsity"] for stage in search["stages"] if not stage["accepted"]]
    reached = report["sparsity"]["target"]
    bound = min((s for s in [*beyond, *search["unreachable"]] if s > reached), default=None)
    kind = "refused" if bound in beyond else "not reachable"
    end = f" ({percent_of_weights(bound)}% was {kind})" if bound else ""
    said = "more than the limit" if exceeded(report) else "within the limit"
    return (f"{percent_of_weights(reached)}% is the most that was found to lose at most "
            f"{points(search['max_loss'])} of {name} on the images held out{end}; on the test images it "
            f"loses {with_interval(report['drop'].get(name))}, {said}")


def exceeded(report: Mapping[str, Any]) -> bool:
    """Whether the figure of the test images is beyond the limit of a search, or is not there."""
    if "search" not in report:
        return False
    drop = report["drop"].get(report["search"]["attack"])
    return drop is None or round(drop["points"] - report["search"]["max_loss"], EXACT) > 0
