"""The way to a sparsity that was searched for: in the contract of report.json, as a table, as a sentence."""
import copy
import io
import json

import pytest
from helpers.report_samples import report
from rich.console import Console

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.words import in_points
from pwoa_cli.files.plain import dumps
from pwoa_cli.reports import schema, search, tables, terminal


def stage(sparsity, points, *, accepted, why=""):
    return {"sparsity": sparsity, "steps": 100, "epochs": 1.234, "points": points,
            "ci95": [points - 1, points + 1], "accepted": accepted, "why": why}


WAY = {"max_loss": 2.0, "attack": "aa", "held_out": 1000, "unreachable": [0.99],
       "stages": [stage(0.5, -0.2, accepted=True), stage(0.92, 4.0, accepted=False),
                  stage(0.9, 0.9, accepted=True),
                  stage(0.91, 0.5, accepted=False, why="gradients lie.")]}


def made(points=1.0, **changes):
    return report(search=WAY | changes, drop={"aa": in_points(points / 100, (-0.01, 0.03))})


def test_it_is_part_of_the_contract():
    assert schema.validate(json.loads(dumps(made()))) == made() and "search" not in report()
    for name in ("held_out", "stages"):
        broken = made()
        broken["search"] = {key: value for key, value in WAY.items() if key != name}
        with pytest.raises(InputError, match=f"search.{name} is missing"):
            schema.validate(broken)
    wrong = copy.deepcopy(made())
    wrong["search"]["stages"][0]["accepted"] = 1
    with pytest.raises(InputError, match=r"search.stages\[0\].accepted is 1, expected bool"):
        schema.validate(wrong)


def test_the_sentence_names_the_bound_above_what_was_reached_and_what_the_test_images_say():
    assert search.sentence(made()) == (
        "90% is the most that was found to lose at most 2 points of aa on the images held out (91% was "
        "refused); on the test images it loses 1.0 [-1.0, 3.0], within the limit")
    unreachable = search.sentence(made(stages=WAY["stages"][::2]))
    assert "(99% was not reachable)" in unreachable
    assert "held out; on" in search.sentence(made(stages=WAY["stages"][::2], unreachable=[]))


def test_beyond_the_limit_on_the_test_images():
    assert search.exceeded(made(2.01)) and not search.exceeded(made(2.0)) and not search.exceeded(report())
    assert search.sentence(made(2.01)).endswith("more than the limit")
    assert search.exceeded(report(search=WAY, drop={}))  # an attack without figure


def test_the_table_holds_at_60_columns_and_says_why():
    stream = io.StringIO()
    Console(file=stream, width=60, force_terminal=False).print(terminal.one(made()))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 60 and "The way there" in text and "gradients" in text
    shown = tables.markdown(made())
    assert "| 1 | 50% | 1.2 | -0.2 [-1.2, 0.8] | accepted |" in shown
    assert "| 2 | 92% | 1.2 | 4.0 [3.0, 5.0] | refused |" in shown
    assert "| 4 | 91% | 1.2 | 0.5 [-0.5, 1.5] | gradients lie. |" in shown
