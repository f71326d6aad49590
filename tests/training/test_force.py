"""The share of HSIC in the loss's gradient: against the gradients of both by hand; a training is not changed
by the look at it."""
import copy

import pytest
import torch
from helpers.plans import make_plan
from torch import nn

from pwoa_cli.training import force, loop, objective

HSIC = {"lambda_x": 0.02, "lambda_y": 0.3, "noise": "none", "sparsity": 0.5}


def shares(plan, student):
    """{step: share} of a whole training, and its last state."""
    state, found = loop.begin(plan, copy.deepcopy(student)), {}
    while state.step < plan.steps:
        state, losses = loop.step(plan, state)
        if "hsic_share" in losses:
            found[state.step - 1] = losses["hsic_share"].item()
    return found, state


def by_hand(plan, state):
    """|gradient of the HSIC terms| / |gradient of the loss| by the recipe's weights, over what the masks
    keep."""
    student = copy.deepcopy(state.student).train()
    torch.manual_seed(loop.number(plan.seed, "dropout", state.step))
    terms = objective.terms(plan.recipe, student=student, teacher=plan.teacher, hidden=plan.hidden,
                            batch=loop.inputs.batch(plan, state.step), num_classes=plan.num_classes)
    weight = objective.weights(plan.recipe)
    assert terms.keys() == {"kl", "hsic_x", "hsic_y"}

    def norm(names):
        student.zero_grad()
        sum(weight[name] * terms[name] for name in names).backward(retain_graph=True)
        return sum(float((p.grad * state.masks.get(name, torch.ones(()))).square().sum())
                   for name, p in student.named_parameters() if p.grad is not None) ** 0.5

    return norm(("hsic_x", "hsic_y")) / norm(terms)


@pytest.mark.parametrize("every", [1, 4])
def test_the_share_is_that_of_the_gradients_by_hand(every, monkeypatch):
    """The weights that count are the recipe's, however few steps they are gathered in."""
    monkeypatch.setattr(force, "STEPS", 4)
    plan, student = make_plan(hsic_every=every, **HSIC)
    state, looked = loop.begin(plan, student), 0
    for _ in range(plan.steps):
        entered = copy.deepcopy(loop._enter(plan, state))  # once more it moves the same masks
        state, losses = loop.step(plan, state)
        if "hsic_share" in losses:
            looked += 1
            assert losses["hsic_share"].item() == pytest.approx(by_hand(plan, entered), rel=1e-3)
    assert looked == 4


def test_looking_changes_no_bit_of_the_training(monkeypatch):
    plan, student = make_plan(hsic_every=3, cutmix=0.5, clip=0.5, **HSIC)
    monkeypatch.setattr(force, "STEPS", 2)
    found, looked = shares(plan, student)
    monkeypatch.setattr(force, "share", lambda plan, state, weighted: {})
    none, left = shares(plan, student)
    assert len(found) > 3 and not none and all(0 < share < 2 for share in found.values())
    for name, tensor in looked.student.state_dict().items():
        assert torch.equal(tensor, left.student.state_dict()[name]), name


def test_a_few_steps_are_looked_at_evenly_and_all_have_hsic_terms():
    for steps, every, count in ((16, 1, 1), (399, 1, 1), (4000, 5, 20), (100000, 8, 20), (30, 50, 1)):
        looks = sorted(force._looks(steps, every))
        assert len(looks) == count and all(look % every == 0 and look < steps for look in looks)
        gaps = [then - now for now, then in zip(looks, looks[1:], strict=False)]
        assert not gaps or max(gaps) - min(gaps) <= 2 * every


def test_without_hsic_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr(force, "STEPS", 1)
    assert shares(*make_plan())[0] == {}


def test_a_gradient_that_is_not_there_has_no_share(monkeypatch):
    """Labels of one class: nHSIC(y, z) is 0, and so is its pull; a loss that is not finite has no share."""
    monkeypatch.setattr(force, "STEPS", 16)
    plan, student = make_plan(lambda_y=0.1)
    plan.split.labels.zero_()
    assert all(share == pytest.approx(0, abs=1e-6) for share in shares(plan, student)[0].values())
    state = loop.begin(plan, student)
    weight = nn.utils.parameters_to_vector(student.parameters()).sum()
    broken = {"kl": weight * torch.inf, "hsic_y": weight}
    assert force.share(plan, loop.replace(state, step=8), broken) == {}
