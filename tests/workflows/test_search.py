"""Which sparsity comes next, against simulated curves of loss: how near the answer comes, and in how many
stages."""
import json
import random
from dataclasses import asdict, replace

import pytest

from pwoa_cli.errors import InputError
from pwoa_cli.workflows import search
from pwoa_cli.workflows.search import GAP, LEAST, RUNG, STAGES, Search, Stage, goal, next_sparsity


def stage(sparsity, accepted):
    return Stage(sparsity, 10, 0.5, 0.0, (-1.0, 1.0), accepted)


def searched(keeps, *, begun=0.0, reachable=1.0):
    """The search when it is over."""
    found = Search(begun)
    while (sparsity := next_sparsity(found)) is not None:
        assert begun < sparsity < 1
        assert [s.sparsity for s in found.stages].count(sparsity) < 2 and sparsity not in found.unreachable
        if sparsity > reachable:
            found = replace(found, unreachable=(*found.unreachable, sparsity))
        else:
            found = replace(found, stages=(*found.stages, stage(sparsity, keeps(sparsity))))
    return found


@pytest.mark.parametrize("begun", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("kept", [0.999, 0.95, 0.8, 0.51, 0.5, 0.49, 0.3, 0.12, 0.05, 0.02, 0.004, 0.001])
def test_of_a_monotone_curve_the_answer_is_within_the_gap(begun, kept):
    """kept: the least density, of the weights that were there, that keeps the limit."""
    least = kept * (1 - begun)
    found = searched(lambda sparsity: 1 - sparsity >= least, begun=begun)
    if found.accepted is None:
        assert kept > 1 - 2 * LEAST  # less than a tenth of the weights could go
    else:
        density = 1 - found.accepted.sparsity
        assert least <= density <= GAP * (1 - found.refused) * (1 + 1e-9) and 1 - found.refused < least
    assert len(found.stages) <= 21


@pytest.mark.parametrize("seed", range(50))
def test_of_a_noisy_curve_the_answer_was_accepted_and_its_neighbour_refused(seed):
    draw = random.Random(seed)
    middle = draw.uniform(0.01, 0.9)
    found = searched(lambda sparsity: 1 - sparsity > middle * draw.lognormvariate(0, 0.3))
    refused = [s.sparsity for s in found.stages if not s.accepted]
    assert len(found.stages) < STAGES
    if found.accepted is None:
        assert min(refused) <= 2 * LEAST
    else:
        assert found.accepted in found.stages
        assert found.refused == min(s for s in refused if s > found.accepted.sparsity)
        assert 1 - found.accepted.sparsity <= GAP * (1 - found.refused) * (1 + 1e-9)


def test_the_ladder_step_by_step():
    tried = search.up_to(0.0, 0.9)
    assert tried == [0.5, 0.7, 0.82, 0.892, 0.9352, 0.9163, 0.9049, 0.899, 0.9049]
    assert tried[1:5] == pytest.approx([1 - 0.5 * RUNG**k for k in (1, 2, 3, 4)], abs=1e-3)
    assert search.up_to(0.0, 0.0) == [0.5, 0.75 - 0.5, 0.125, 0.062]  # half as many weights each time
    assert search.up_to(0.8, 0.0)[0] == 0.9  # half of those that are not zero


def test_what_was_too_far_at_once_gets_a_second_chance():
    """A curve of which a stage may take a third of the weights at most, whatever it keeps: the ladder takes
    more, and would end at the first stage that it refuses."""
    found = Search()
    while (sparsity := next_sparsity(found)) is not None:
        before = 1 - found.accepted.sparsity if found.accepted else 1.0
        kept = sparsity <= 0.9 and 1 - sparsity >= 0.66 * before
        found = replace(found, stages=(*found.stages, stage(sparsity, kept)))
    assert 0.9 >= found.accepted.sparsity >= 1 - GAP * 0.1 and len(found.stages) < STAGES
    tried = [(round(s.sparsity, 2), s.accepted) for s in found.stages]
    assert tried[:4] == [(0.5, False), (0.25, True), (0.5, True), (0.7, False)]


def test_a_second_chance_needs_a_stage_that_was_accepted_since_and_is_the_last():
    found = Search(0.0, (stage(0.5, True), stage(0.7, False)))
    assert next_sparsity(found) < 0.7
    found = replace(found, stages=(*found.stages, stage(0.613, True)))
    assert next_sparsity(found) == 0.7
    again = replace(found, stages=(*found.stages, stage(0.7, False)))
    assert 0.613 < next_sparsity(again) < 0.7
    again = replace(found, stages=(*found.stages, stage(0.7, True)))
    assert next_sparsity(again) == 0.82 and again.refused is None
    unreachable = Search(0.0, (stage(0.5, True), stage(0.613, True)), (0.7,))
    assert 0.613 < next_sparsity(unreachable) < 0.7


def test_always_from_the_last_accepted_towards_the_least_refused():
    found = Search(0.0, (stage(0.5, True), stage(0.7, False)))
    assert next_sparsity(found) == pytest.approx(1 - (0.5 * 0.3) ** 0.5, abs=1e-3)


@pytest.mark.parametrize("reachable", [0.97, 0.6, 0.2])
def test_what_cannot_be_reached_bounds_it_without_a_stage(reachable):
    found = searched(lambda sparsity: True, reachable=reachable)
    assert found.unreachable and all(s.accepted for s in found.stages)
    assert found.accepted.sparsity <= reachable
    assert 1 - found.accepted.sparsity <= GAP * (1 - found.refused) * (1 + 1e-9)


def test_a_search_ends_whatever_is_kept():
    found = searched(lambda sparsity: True)
    assert len(found.stages) == STAGES and next_sparsity(found) is None
    assert searched(lambda sparsity: True, reachable=0.0).accepted is None


def test_the_state_is_plain_and_goes_on_from_a_file():
    begun = Search(0.1, (stage(0.5, True), stage(0.7, False)), (0.99,))
    saved = json.loads(json.dumps(asdict(begun)))
    stages = tuple(Stage(**one | {"ci95": tuple(one["ci95"])}) for one in saved["stages"])
    again = Search(saved["begun"], stages, tuple(saved["unreachable"]))
    assert again == begun and next_sparsity(again) == next_sparsity(begun)


@pytest.mark.parametrize("given", [
    ("0.5", None, "0.5", None), ("0.5", None, None, "0.5"), (None, 1.0, "0.5", None),
    (None, 1.0, None, "0.5"), (None, None, "0.5", "0.5"), ("0.5", 1.0, "0.5", None),
    ("0.5", 1.0, None, "0.5")])
def test_one_thing_says_how_much_goes(given):
    sparsity, max_loss, channels, macs = given
    with pytest.raises(InputError, match="both say how much goes"):
        goal(sparsity, max_loss, channels=channels, macs=macs)


def test_a_folder_is_called_by_what_was_asked():
    assert str(goal("0.9")) == str(goal(None, channels="0.9")) == "0.9"
    assert str(goal(None, 1.0)) == "loss1" and str(goal(None, macs="0.5")) == "macs0.5"
    assert str(goal(None, nm="2:4")) == "2of4" and str(goal(None, target_bytes=500)) == "500B"
    with pytest.raises(InputError, match="--held-out 5 is for --max-loss"):
        goal(None, None, 5, macs="0.5")
