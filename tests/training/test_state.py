"""Steps of a plan, and states that are stopped, saved and continued as if nothing had happened."""
import copy
from dataclasses import replace

import pytest
import torch
from helpers.plans import EVERYTHING, Net, finish, make_plan, zeros

from pwoa_cli.training import loop
from pwoa_cli.training.recipe import Recipe
from pwoa_cli.training.state import from_dict, on, plan_steps, to_dict


def test_steps_of_short_runs():
    assert plan_steps(Recipe(epochs=4, sparsify=0.5, batch_size=128), 60000, 0.9) == (468, 936, 1872)
    assert plan_steps(Recipe(epochs=0.001, batch_size=128), 60000, 0.9) == (468, 1, 2)
    assert plan_steps(Recipe(epochs=1, batch_size=128), 50, 0.9) == (1, 1, 2)


def test_a_stretched_recipe_takes_the_time_that_a_sparsity_needs():
    recipe = Recipe(epochs=4, stretch=1, batch_size=128)
    steps = [plan_steps(recipe, 12800, s)[2] for s in (0.1, 0.5, 0.75, 0.9, 0.99, 0.999)]
    assert steps == [200, 200, 241, 400, 800, 1200]


def test_what_was_saved_goes_to_a_device_wherever_it_lies():
    """What lies on the CPU after a run on a GPU; "meta" stands for another device."""
    saved = {"z": {"a.weight": torch.zeros(2)}, "seen": {"loss": [torch.ones(())]}, "rho": 0.01, "none": None}
    moved = on(torch.device("meta"), saved)
    assert moved["z"]["a.weight"].is_meta and moved["seen"]["loss"][0].is_meta
    assert moved["rho"] == 0.01 and moved["none"] is None and not saved["z"]["a.weight"].is_meta
    assert on(torch.device("cpu"), None) is None


OPTIONS = [
    {"ema": 0.9}, {"bn_reestimate": 2}, {"bn_reestimate": 2, "bn_inputs": "clean"},
    {"regrow": 0.5, "allocation": "uniform"},
    {"start": "obs"}, {"allocation": "sensitivity"}, {"mix_ratio": 0.5, "cutmix": 0.5},
    {"method": "admm", "allocation": "sensitivity", "ema": 0.5, "optimizer": "sgd", "mix_ratio": 1.0},
    {"ema": 0.99, "bn_reestimate": 1, "regrow": 0.3, "allocation": "sensitivity", "mix_ratio": 0.2}]


@pytest.mark.parametrize("fields", [
    {"method": "ramp", "optimizer": "adam"},
    {"method": "admm", "optimizer": "sgd", "finetune_lr": 1e-3, "schedule": "admm"}])
def test_a_stopped_state_goes_on_bit_for_bit(tmp_path, fields):
    """Student, optimiser, masks, ADMM and step are the whole state: saved, loaded anew, continued."""
    plan, student = make_plan(**fields)
    whole = loop.begin(plan, copy.deepcopy(student))
    for _ in range(plan.steps):
        whole, _ = loop.step(plan, whole)
    state = loop.begin(plan, student)
    for stop in (3, plan.sparsify_steps + 2, plan.steps):
        while state.step < stop:
            state, _ = loop.step(plan, state)
        torch.save(to_dict(state), tmp_path / "state.pt")
        state = from_dict(plan, Net(), torch.load(tmp_path / "state.pt", weights_only=True))
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, state.student.state_dict()[name]), name


@pytest.mark.parametrize("fields", OPTIONS)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, fields):
    """Bit for bit, with new objects, after the first step, in both phases and at the end; zeros are exact."""
    plan, student = make_plan(**fields)
    whole = finish(plan, loop.begin(plan, copy.deepcopy(student)))
    state = loop.begin(plan, student)
    for stop in (1, 3, plan.sparsify_steps + 2, plan.steps):
        while state.step < stop:
            state, _ = loop.step(plan, state)
        torch.save(to_dict(state), tmp_path / "state.pt")
        state = from_dict(plan, Net(), torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):  # finishing twice changes nothing
        loop.finish(plan, state)
        for name, tensor in whole.student.state_dict().items():
            assert torch.equal(tensor, state.student.state_dict()[name]), name
    count, total = zeros(state, plan.weights)
    assert count == round(0.8 * total)
    for name, p in state.student.named_parameters():
        assert not p.detach()[p.detach() == 0].signbit().any(), name


def test_a_stopped_run_of_everything_goes_on_bit_for_bit(tmp_path):
    inputs = {"noise": "lowpass+gaussian", "noise_clean": 0.25, "cutmix": 0.3, "mixup": 0.4}
    plan, student = make_plan(**EVERYTHING | inputs | {"lr": 1e-3})
    plan = replace(plan, augment="hard")
    whole, state = loop.begin(plan, copy.deepcopy(student)), loop.begin(plan, student)
    for _ in range(plan.steps):
        whole, _ = loop.step(plan, whole)
    for stop in (3, plan.steps):
        while state.step < stop:
            state, _ = loop.step(plan, state)
        torch.save(to_dict(state), tmp_path / "state.pt")
        state = from_dict(plan, Net(), torch.load(tmp_path / "state.pt", weights_only=True))
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, state.student.state_dict()[name]) and tensor.isfinite().all(), name
