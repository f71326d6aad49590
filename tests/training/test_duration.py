"""How long a training takes: against a clock that the test moves, and how it reads."""
import pytest
import torch
from helpers.plans import make_plan

from pwoa_cli.training import duration, loop, objective


@pytest.mark.parametrize(("hsic", "more"), [
    ({}, 0.0), ({"lambda_x": 0.1}, 1.0), ({"lambda_y": 0.1, "hsic_every": 4}, 0.25)])
def test_an_estimate_of_the_time(monkeypatch, hsic, more):
    """Against a clock: 2 s a step, 12 s an attacked one, 1 s more with HSIC, and 5 s to start."""
    plan, student = make_plan(mix_ratio=0.25, **hsic)
    now, steps = [0.0], [*range(100), 0]  # numbers from the end: the first is 0

    def step(plan, state):
        recipe = objective.at_step(plan.recipe, steps.pop())
        now[0] += {0.0: 2.0, 0.25: 2.0, 1.0: 12.0}[recipe.mix_ratio]
        now[0] += recipe.lambda_x > 0 or recipe.lambda_y > 0
        return state, {"loss": torch.zeros(())}

    def begin(plan, student):
        now[0] += 5.0

    monkeypatch.setattr(duration.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop, "step", step)
    monkeypatch.setattr(loop, "begin", begin)
    found = duration.measure(plan, student)
    assert found.seconds_per_step == pytest.approx(0.75 * 2 + 0.25 * 12 + more)
    assert found.seconds == pytest.approx(7 + (more > 0) + 15 * (4.5 + more))
    weights = sum(student.get_parameter(name).numel() for name in plan.weights)
    assert found.work == plan.recipe.batch_size * weights / 1e6


@pytest.mark.parametrize(("seconds", "steps", "text"), [
    (703.05, 9374, "training: about 12 min on this machine (75 ms a step x 9,374 steps; "
     "15 ms per million weights and image)"),
    (20.0, 10, "training: about 20 s on this machine (2 s a step x 10 steps; "
     "400 ms per million weights and image)"),
    (20000.0, 100000, "training: about 5.6 h on this machine (200 ms a step x 100,000 steps; "
     "40 ms per million weights and image)")])
def test_how_an_estimate_reads(seconds, steps, text):
    assert str(duration.Estimate(seconds, seconds / steps, steps, 5.0)) == text


def test_an_estimate_on_a_fast_machine_is_not_nothing():
    """A ResNet-18 on a GPU: 60 ms for 128 images and 11 million weights are 43 us each."""
    text = str(duration.Estimate(234.0, 0.06, 3900, 128 * 11.0))
    assert text.endswith("(60 ms a step x 3,900 steps; 0.043 ms per million weights and image)")
