"""Rates that are too high: a run is done again at a lower one and ends as a network that knows something."""
import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import small_models as small
from helpers.plans import finish, make_plan, plan_for, zeros
from torch import nn

from pwoa_cli.data.datasets import Split
from pwoa_cli.errors import PwoaError
from pwoa_cli.losses import distill
from pwoa_cli.networks import layers
from pwoa_cli.training import inputs, loop, objective
from pwoa_cli.training.recipe import Recipe

WEIGHTS = ("conv1.weight", "conv2.weight", "linear1.weight", "linear2.weight")


def plain_plan(*, sparsity=0.9, images=256, **fields):
    """A plan for a trained plain CNN on 8x8 images, 160 steps, its student and the test images."""
    model = small.learn(small.lenet())
    x, y = small.images(images)
    split = Split(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y))
    recipe = replace(Recipe(batch_size=32, epochs=20, noise="gaussian", gaussian_scale=0.05,
                            hidden_weight=1.0, mask_updates=24), **fields)
    plan = plan_for(model, teacher=model, recipe=recipe, split=split, sparsity=sparsity, weights=WEIGHTS,
                    hidden=("relu1", "relu2", "relu3"), num_classes=small.CLASSES)
    return plan, copy.deepcopy(model)


def right(model):
    x, y = small.images(64, seed=1)
    with torch.no_grad():
        answers = model.eval()(torch.tensor(x).permute(0, 3, 1, 2).float() / 255).argmax(1)
    return (answers == torch.tensor(y)).double().mean().item()


@pytest.mark.parametrize("lr", [0.05, 2.0, 8.0])
def test_plain_gradients_at_a_high_rate_do_not_destroy_a_plain_network(lr):
    """SGD at 0.05 is what the default was for CIFAR-10; the others explode in the first steps."""
    plan, student = plain_plan(optimizer="sgd", lr=lr)
    said, seen = [], []
    state = loop.run(plan, loop.begin(plan, student), every=10, restarted=said.append,
                     report=lambda state, means: seen.append(means))
    assert all(math.isfinite(value) for means in seen for value in means.values())
    assert right(state.student) > 0.9
    assert state.lr_scale == 0.25 ** len(said) and (lr < 1 or said)
    assert all(f"at {0.25**n:g} of the recipe's learning rate" in line for n, line in enumerate(said, 1))
    assert zeros(state, WEIGHTS)[0] == round(0.9 * 900)
    assert seen[-1].get("lr_scale", 1.0) == state.lr_scale


@pytest.mark.parametrize("allocation", ["global", "lamp"])
def test_no_layer_of_a_plain_network_starves_at_97_percent(allocation):
    plan, student = plain_plan(sparsity=0.97, allocation=allocation)
    with torch.no_grad():  # the same network, its first layer a hundred times smaller
        for model in (plan.teacher, student):
            for layer, factor in ((model.conv1, 0.01), (model.conv2, 100.0)):
                layer.weight.mul_(factor)
            model.conv1.bias.mul_(0.01)
    state = finish(plan, loop.begin(plan, student))
    assert zeros(state, WEIGHTS)[0] == round(0.97 * 900)
    for name in WEIGHTS:
        weight = state.student.get_parameter(name)
        assert int(weight.count_nonzero()) >= min(len(weight), int(0.03 * weight.numel())), name


def test_a_run_that_is_done_again_is_a_run_at_the_lower_rate():
    """Bit for bit: nothing of the run that exploded is left."""
    plan, student = plain_plan(optimizer="sgd", lr=16.0, momentum=0.0)
    again = loop.run(plan, loop.begin(plan, copy.deepcopy(student)), report=lambda *_: None, every=5)
    assert 0 < again.lr_scale < 1
    slower = replace(plan, recipe=replace(plan.recipe, lr=16.0 * again.lr_scale))
    once = loop.run(slower, loop.begin(slower, student), report=lambda *_: None, every=5)
    assert once.lr_scale == 1
    for name, tensor in once.student.state_dict().items():
        assert torch.equal(tensor, again.student.state_dict()[name]), name


def test_a_loss_that_no_rate_makes_finite_is_an_error(monkeypatch):
    """After the rates from 1 to 1/256, with the last step named."""
    plan, student = make_plan()
    step, rates = loop.step, []

    def broken(plan, state):
        rates.append(state.lr_scale)
        state, losses = step(plan, state)
        return state, losses if state.step < 3 else losses | {"loss": torch.tensor(torch.inf)}

    monkeypatch.setattr(loop, "step", broken)
    with pytest.raises(PwoaError, match=r"not finite by step 4 of 16: loss\."):
        loop.run(plan, loop.begin(plan, student), report=lambda *_: None, every=4)
    assert rates == [rate for n in range(5) for rate in [0.25**n] * 4]


def test_a_loss_that_masks_alone_make_large_is_no_reason(monkeypatch):
    """The first step's is before any learning; only what grows from there is the rate's doing."""
    plan, student = make_plan(lr=1e-6)
    step = loop.step

    def large(plan, state):
        state, losses = step(plan, state)
        return state, losses | {"loss": losses["loss"] + 100}

    monkeypatch.setattr(loop, "step", large)
    said = []
    loop.run(plan, loop.begin(plan, student), report=lambda *_: None, every=4, restarted=said.append)
    assert not said


def test_weights_that_the_last_step_spoils_are_noticed(monkeypatch):
    plan, student = make_plan(lr=1e-6)
    step = loop.step

    def spoiling(plan, state):
        state, losses = step(plan, state)
        if state.step == plan.steps:
            with torch.no_grad():
                state.student.fc.bias[0] = torch.nan
        return state, losses

    monkeypatch.setattr(loop, "step", spoiling)
    with pytest.raises(PwoaError, match="not finite by step 16 of 16: weights"):
        loop.run(plan, loop.begin(plan, student), report=lambda *_: None)


def test_the_loss_of_one_answer_for_all_images_is_the_least_that_a_constant_has():
    """Against the loss of constants in plain formulas, and of others near them."""
    plan, _ = plain_plan(temperature=3.0, alpha=2.0, hidden_weight=0.5)
    batch = inputs.batch(plan, 0)
    found = objective.of_constant(plan.recipe, teacher=plan.teacher, hidden=plan.hidden, batch=batch)
    with layers.capture(plan.teacher, plan.hidden) as hidden, torch.no_grad():
        told = plan.teacher(batch.x)

    def loss(logits, shift):
        constants = [z.mean(0, keepdim=True).expand_as(z) + shift for z in hidden]
        return (2 * 9 * distill.kl(logits.expand_as(told), told, temperature=3.0)
                + 0.5 * distill.hidden_error(constants, hidden)).item()

    best = (told / 3).softmax(1).mean(0).log() * 3
    assert found == pytest.approx(loss(best, 0.0), rel=1e-5)
    for draw in range(5):
        other = best + 0.1 * torch.randn(len(best), generator=torch.Generator().manual_seed(draw))
        assert loss(other, 0.0) > found and loss(best, 0.05) > found
    assert objective.of_constant(replace(plan.recipe, hidden_weight=0.0, alpha=0.0, logit_weight=1.0),
                                 teacher=nn.Sequential(plan.teacher), hidden=(), batch=batch) > 0
