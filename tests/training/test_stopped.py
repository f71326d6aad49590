"""Runs that are stopped at any step and go on from what `keep` was given end as if nothing had happened.

Bit for bit, over the tables of structures, criteria, allocations and schedules: what is added joins by
itself.
"""
import copy
import io
import random
from dataclasses import replace

import pytest
import torch
from helpers.plans import Net, make_plan

from pwoa_cli.pruning.allocation import ALLOCATIONS
from pwoa_cli.pruning.criteria import CRITERIA
from pwoa_cli.pruning.groups import STRUCTURES
from pwoa_cli.training import loop
from pwoa_cli.training.recipe import CHOICES

EVERY = 5
BY_NAME = [
    *({"structure": name, "sparsity": 0.5} for name in (*STRUCTURES, "block:1x3", "1:2")),
    *({"criterion": name} for name in CRITERIA),
    *({"allocation": name, "method": method} for name in ALLOCATIONS for method in CHOICES["method"]),
    *({"schedule": name} for name in CHOICES["schedule"]),
    *({"finetune_schedule": name, "finetune_lr": 1e-2} for name in CHOICES["finetune_schedule"]),
    *({"start": name, "optimizer": kind} for name in CHOICES["start"] for kind in CHOICES["optimizer"])]
TOGETHER = [
    {"ema": 0.99, "bn_reestimate": 1, "regrow": 0.3, "allocation": "sensitivity", "mix_ratio": 0.2},
    {"method": "admm", "admm_every": 1, "ema": 0.5, "optimizer": "sgd", "cutmix": 0.5, "lambda_x": 0.1,
     "lambda_y": 0.1, "clip": 0.5},
    {"lambda_x": 0.1, "lambda_y": 0.1, "hsic_every": 3, "mixup": 0.5, "regrow": 0.3}]
# rates that explode
EXPLODING = [{"optimizer": "sgd", "lr": 30.0, "clip": 0.0},
             {"optimizer": "sgd", "lr": 3.0, "method": "admm", "epochs": 8}]


class Stopped(Exception):
    """A kill, after what was kept is on disk."""


def run(plan, student, told, *, stop=None, earlier=None):
    """(state, what the last `keep` saw). Args: stop: how many calls of `keep` are let pass; told: gets what
    is reported and what is said."""
    kept, calls = io.BytesIO(), []

    def keep(step, position):
        calls.append(step)
        if len(calls) == stop:
            torch.save(position() | {"told": len(told)}, kept)
            raise Stopped

    curves = earlier["state"]["curves"] if earlier else None
    state = loop.begin(plan, student, curves=curves)
    try:
        return loop.run(plan, state, every=EVERY, keep=keep, earlier=earlier, restarted=told.append,
                        report=lambda state, means: told.append((state.step, means))), len(calls)
    except Stopped:
        kept.seek(0)
        return torch.load(kept, weights_only=True), len(calls)


def same(plan, student, *, stops):
    """Stop after so many steps each time, go on in new objects; compare with a run that was left alone."""
    said, told = [], []
    whole, steps = run(plan, copy.deepcopy(student), said)
    earlier = None
    for stop in stops(steps):
        earlier, _ = run(plan, copy.deepcopy(student), told, stop=stop, earlier=earlier)
        lost = earlier.pop("told")
        told = told[:lost]
    again, _ = run(plan, Net(), told, earlier=earlier)
    assert told == said and again.step == whole.step == plan.steps and again.lr_scale == whole.lr_scale
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, again.student.state_dict()[name]), name
    assert again.masks.keys() == whole.masks.keys()
    assert all(torch.equal(mask, again.masks[name]) for name, mask in whole.masks.items())
    return said


def ids(fields):
    return "-".join(f"{value}" for value in fields.values())


@pytest.mark.parametrize("fields", BY_NAME, ids=ids)
def test_a_run_stopped_at_random_steps_ends_as_one_that_was_not(fields):
    plan, student = make_plan(**fields)
    draw = random.Random(repr(fields))

    def stops(steps):
        at = sorted(draw.sample(range(1, steps + 1), 3))
        return [at[0], at[1] - at[0], at[2] - at[1]]

    same(plan, student, stops=stops)


@pytest.mark.parametrize("fields", TOGETHER, ids=["ramp", "admm", "hsic"])
def test_a_run_stopped_after_each_step_ends_as_one_that_was_not(fields):
    plan, student = make_plan(**fields)
    same(plan, student, stops=lambda steps: [1] * steps)


@pytest.mark.parametrize("fields", EXPLODING, ids=["ramp", "admm"])
def test_a_rate_that_was_lowered_stays_lowered(fields):
    """Also where it is lowered once more after a stop: what is done again begins where the run began."""
    plan, student = make_plan(**fields)
    for size in (1, 7, 11):
        said = same(plan, student, stops=lambda steps, size=size: [size] * ((steps - 1) // size))
        assert any("of the recipe's learning rate" in line for line in said if isinstance(line, str))


def test_curves_that_were_measured_are_not_measured_again(monkeypatch):
    plan, student = make_plan(allocation="sensitivity")
    earlier, _ = run(plan, student, [], stop=3)
    monkeypatch.setattr(loop.masks, "damage_curves", lambda *_: pytest.fail("measured again"))
    del earlier["told"]
    state, _ = run(replace(plan), Net(), [], earlier=earlier)
    assert state.step == plan.steps
