"""The step as one graph: the terms, gradients and trainings of the step as it is, to rounding; no graph
break, no graph after the first steps; and what cannot be compiled goes on as it is.

The graph is torch's own, run by torch's own kernels ("aot_eager"): inductor takes a minute for each.
"""
import copy
from dataclasses import replace

import pytest
import torch
from helpers.family_checks import SIZES, trained
from helpers.plans import EVERYTHING, make_plan, plan_for
from torch import nn
from torch._dynamo.utils import counters

from pwoa_cli.data import datasets
from pwoa_cli.networks.families import FAMILIES
from pwoa_cli.networks.layers import hidden_layers, prunable
from pwoa_cli.training import compilation, loop
from pwoa_cli.training.recipe import Recipe

WITHOUT_MAPS = EVERYTHING | {"explain_weight": 0.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Graphs without kernels of their own, and none of an earlier test."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()


def silent(*_):
    """For what may be said."""


def refused(text):
    """For what must not be said."""
    raise AssertionError(text)


def stepped(plan, student, steps):
    """State and losses after so many steps."""
    state, losses = loop.begin(plan, student), []
    for _ in range(steps):
        state, found = loop.step(plan, state)
        losses.append(found["loss"])
    return state, torch.stack(losses)


def graphs():
    """How many were made; and no graph break anywhere."""
    assert not counters["graph_break"] and not counters["recompiles"]
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("fields", "count"), [
    ({"hidden_weight": 1.0, "hidden_loss": "relative"}, 1),  # the default's terms
    (WITHOUT_MAPS, 1),
    ({"lambda_x": 0.1, "lambda_y": 0.2, "hsic_every": 4, "cutmix": 0.5}, 2),  # masks move, some are mixed
    ({"optimizer": "sgd", "method": "admm"}, 1),
    ({"batch_norm": "freeze", "mix_ratio": 0.3, "noise": "none"}, 1),
    ({"precision": "bf16", "lambda_x": 0.1}, 1)])
def test_fifty_compiled_steps_are_those_of_the_step_as_it_is(fields, count):
    plan, student = make_plan(**{"lr": 1e-3, "epochs": 12.5} | fields)
    assert plan.steps == 50
    twin = copy.deepcopy(student)
    want, losses = stepped(plan, student, 50)
    with compilation.compiled(plan, twin, say=silent, unable=refused) as other:
        found, its = stepped(other, twin, 50)
    assert graphs() == count
    near = {"rtol": 0.05, "atol": 1e-2} if "precision" in fields else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(its, losses, **near)
    for name, tensor in want.student.state_dict().items():
        torch.testing.assert_close(found.student.state_dict()[name], tensor, **near)


def test_the_student_is_as_it_was_before_the_first_step_and_free_of_hooks_after_the_last():
    plan, student = make_plan(lambda_x=0.1)
    before = copy.deepcopy(student.state_dict())
    with compilation.compiled(plan, student, say=silent, unable=refused) as other:
        assert other.terms is not plan.terms
        assert all(torch.equal(t, before[name]) for name, t in student.state_dict().items())
    for model in (student, plan.teacher):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- every family -------------------------------------------------------------------------------------------

SIDES = {"lenet5": 28, "smallcnn": 28, "convex-net": 28, "plain": 28, "cifar-vgg": 32, "plain-resnet": 32}


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_of_the_families_have_no_graph_break(name, monkeypatch):
    monkeypatch.setattr(compilation, "BACKEND", "eager")  # traced alone
    torch.manual_seed(0)
    student = trained(FAMILIES[name].make(**SIZES[name]))
    channels = next(p.shape[1] for p in student.parameters() if p.ndim == 4)
    images = torch.randint(0, 256, (16, channels, *[SIDES.get(name, 8)] * 2), dtype=torch.uint8)
    x = images[:2] / 255
    teacher = copy.deepcopy(student).requires_grad_(False)
    plan = plan_for(student, teacher=teacher, hidden=hidden_layers(student, x),
                    recipe=Recipe(batch_size=8, epochs=1, hidden_weight=1.0, lambda_x=0.1, noise="sign"),
                    split=datasets.Split(images, torch.arange(16) % 10), sparsity=0.5,
                    weights=prunable(student, None), num_classes=len(student(x)[0]))
    with compilation.compiled(plan, student, say=silent, unable=refused) as other:
        stepped(other, student, plan.steps)
    assert graphs() == 1


# --- what cannot be compiled --------------------------------------------------------------------------------

class Loud(nn.Module):
    """A layer that asks a tensor for its value, so that no graph can be made of it."""

    def forward(self, x):
        return x * 2 if x.sum() > 1e6 else x


def test_a_network_that_cannot_be_compiled_goes_on_as_it_is_and_says_so():
    plan, student = make_plan()
    student.relu = nn.Sequential(nn.ReLU(), Loud())
    want, losses = stepped(plan, copy.deepcopy(student), 4)
    said = []
    with compilation.compiled(plan, student, say=silent, unable=said.append) as other:
        assert other is plan
        _, its = stepped(other, student, 4)
    assert torch.equal(its, losses)
    assert len(said) == 1 and said[0].startswith("the training step is not compiled and runs as it is: ")
    assert "\n" not in said[0] and said[0].endswith(".") and not said[0].endswith("..")


def test_class_maps_are_not_compiled():
    plan, student = make_plan(explain_weight=0.3)
    said = []
    with compilation.compiled(plan, student, say=silent, unable=said.append) as other:
        assert other is plan and "explain_weight" in said[0]


def test_a_graph_that_computes_something_else_is_not_used(monkeypatch):
    def wrong(graph, _):
        return lambda *args: [2 * t if torch.is_tensor(t) and t.ndim == 0 and t.is_floating_point() else t
                              for t in graph(*args)]

    monkeypatch.setattr(compilation, "BACKEND", wrong)
    plan, student = make_plan()
    said = []
    with compilation.compiled(plan, student, say=silent, unable=said.append) as other:
        assert other is plan and len(said) == 1


def test_a_student_that_is_its_teacher_has_a_graph_too(monkeypatch):
    """Its gradient is rounding alone, which no two ways share: the LeNet5's graph was refused for that."""
    def rounding(graph, _):
        return lambda *args: graph(*[t * (1 + 1e-6) if t.requires_grad else t for t in args])

    monkeypatch.setattr(compilation, "BACKEND", rounding)
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    plan = plan_for(student, teacher=copy.deepcopy(student).requires_grad_(False), hidden=("1",),
                    recipe=Recipe(batch_size=8, epochs=1, hidden_weight=1.0), sparsity=0.5, num_classes=3,
                    split=datasets.Split(torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8),
                                         torch.arange(16) % 3), weights=("0.weight", "3.weight"))
    before = copy.deepcopy(student.state_dict())
    with compilation.compiled(plan, student, say=silent, unable=refused) as other:
        assert other is not plan
        assert all(torch.equal(t, before[name]) for name, t in student.state_dict().items())


def test_no_graph_is_made_in_the_middle_of_a_training():
    """Minutes without a word: the step goes on as it is, and that is said."""
    plan, student = make_plan()
    said = []
    with compilation.compiled(plan, student, say=silent, unable=said.append) as other:
        state, _ = loop.step(other, loop.begin(other, student))
        few = replace(other, recipe=replace(plan.recipe, temperature=2.0))
        _, losses = loop.step(few, state)
    assert len(said) == 1 and losses["loss"].isfinite()


def test_graphs_of_others_may_be_made_while_a_training_runs():
    plan, student = make_plan()
    theirs = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    with compilation.compiled(plan, student, say=silent, unable=refused) as other:
        stepped(other, student, 2)
        assert [theirs(torch.ones(n)).sum() for n in (1, 2, 3)] == [2, 4, 6]


def test_stages_of_a_search_share_their_graphs():
    """One teacher and student after another, of one architecture; their number has no bound."""
    for _ in range(10):
        plan, student = make_plan(lambda_x=0.1)
        with compilation.compiled(plan, student, say=silent, unable=refused) as other:
            stepped(other, student, 2)


# --- where it pays ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("mode", "device", "steps", "want"), [
    ("off", "cuda", 10**6, False), ("on", "cpu", 2, True), ("auto", "cpu", 10**6, False),
    ("auto", "cuda", 10**6, True), ("auto", "cuda", 100, False), ("auto", "mps", 10**6, False)])
def test_where_a_training_is_compiled(mode, device, steps, want):
    assert compilation.pays(mode, torch.device(device), steps) is want
