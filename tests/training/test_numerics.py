"""What training could not survive: refused before the first step with its cause, or gone through with finite
figures (docs/numerics.md)."""
import math
from dataclasses import replace

import pytest
import torch
from helpers.plans import EVERYTHING, make_plan, zeros

from pwoa_cli.data.datasets import Split
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.training import footing, loop
from pwoa_cli.training.recipe import LARGEST, Recipe, check

ASKED = [{}, {"start": "obs"}, {"allocation": "sensitivity"}, {"regrow": 0.5, "lr": 1e-3},
         {"method": "admm", "allocation": "uniform"}, EVERYTHING,
         EVERYTHING | {"hidden_loss": "cka", "lr": 1e-3}, EVERYTHING | {"hidden_loss": "attention"}]


def names(fields):
    return "+".join(str(value) for value in fields.values() if isinstance(value, str)) or str(fields)


def ended(plan, student):
    """(state, said) of a run whose losses, weights and statistics are finite, with the zeros wanted."""
    seen, said = [], []
    state = loop.run(plan, loop.begin(plan, student), every=4, restarted=said.append,
                     report=lambda state, losses: seen.append(losses))
    assert seen and all(math.isfinite(value) for losses in seen for value in losses.values())
    assert all(bool(t.isfinite().all()) for t in state.student.state_dict().values())
    count, total = zeros(state, plan.weights)
    assert count >= round(plan.sparsity * total)
    return state, said


def of_one_image(**fields):
    """(plan, student) of a data set of one training image."""
    plan, student = make_plan(**fields)
    plan = with_images(plan, plan.split.images[:1], plan.split.labels[:1])
    return replace(plan, steps_per_epoch=1), student


def with_images(plan, images=None, labels=None):
    split = plan.split
    return replace(plan, split=Split(split.images if images is None else images,
                                     split.labels if labels is None else labels))


def changed(change, **fields):
    """A plan and its student, after a change of both networks."""
    plan, student = make_plan(**fields)
    with torch.no_grad():
        for model in (plan.teacher, student):
            change(model)
    return plan, student


# --- gone through with finite figures ---------------------------------------------------------------------

DEGENERATE = {
    "a layer of zeros": lambda net: net.conv.weight.zero_(),
    "a last layer of zeros": lambda net: (net.fc.weight.zero_(), net.fc.bias.zero_()),
    "all zeros": lambda net: [p.zero_() for p in net.parameters()],
    "a batch norm without variance": lambda net: net.bn.running_var.zero_(),
    "units that are all off": lambda net: (net.bn.weight.zero_(), net.bn.bias.fill_(-1)),
    "weights of 1e-30": lambda net: (net.conv.weight.mul_(1e-30), net.fc.weight.mul_(1e-30)),
}


@pytest.mark.parametrize("fields", ASKED, ids=names)
@pytest.mark.parametrize("change", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_networks_end_with_finite_figures(change, fields):
    plan, student = changed(change, **fields)
    footing.check(plan, student, where="net.pt")
    ended(plan, student)


IMAGES = {"all equal": torch.full((64, 1, 8, 8), 77, dtype=torch.uint8),
          "all black": torch.zeros(64, 1, 8, 8, dtype=torch.uint8)}
LABELS = {"of one class": torch.zeros(64, dtype=torch.long), "without a class": torch.arange(64) % 2}


@pytest.mark.parametrize("fields", ASKED, ids=names)
@pytest.mark.parametrize("found", [*IMAGES, *LABELS])
def test_degenerate_images_end_with_finite_figures_and_are_noted(found, fields):
    plan, student = make_plan(**fields)
    plan = with_images(plan, IMAGES.get(found), LABELS.get(found))
    footing.check(plan, student, where="net.pt")
    note, = footing.notes(plan)
    assert {"of one class": "class 1, 2", "without a class": "class 2"}.get(found, "are equal") in note
    ended(plan, student)


def test_images_of_all_classes_have_no_note():
    assert not footing.notes(make_plan()[0])


@pytest.mark.parametrize("fields", [{}, {"method": "admm", "allocation": "uniform"}, {"start": "obs"},
                                    {"hidden_weight": 1.0, "logit_weight": 1.0}], ids=names)
def test_one_training_image_is_enough(fields):
    plan, student = of_one_image(**fields)
    footing.check(plan, student, where="net.pt")
    ended(plan, student)


def test_a_loss_of_zero_moves_nothing():
    """A student that answers as its teacher, no noise, no weight to lose: every step's loss is 0."""
    plan, student = make_plan(sparsity=0.0, noise="none", batch_norm="freeze", optimizer="sgd")
    for part in (plan.teacher, student):
        part.drop.p = 0.0
    before = {name: t.clone() for name, t in student.state_dict().items()}
    state, said = ended(plan, student)
    assert not said and all(torch.allclose(t, before[name], atol=1e-6)
                            for name, t in state.student.state_dict().items())


@pytest.mark.parametrize("structure", ["unstructured", "filter", "column"])
def test_a_layer_may_keep_one_group(structure):
    plan, student = make_plan(structure=structure, sparsity=0.5)
    least, total = (sum(values) for values in zip(*((g.size, g.weights) for g in plan.groups.values()),
                                                  strict=True))
    plan = replace(plan, sparsity=1 - least / total)
    state, _ = ended(plan, student)
    for group in plan.groups.values():
        name, = group.parts
        assert state.student.get_parameter(name).count_nonzero() <= group.size


def test_a_teacher_that_answers_all_alike_is_not_left_behind():
    """Every image has the same answer, the teacher's: that is no reason to begin again at a lower rate."""
    plan, student = changed(lambda net: net.conv.weight.zero_(), hidden_weight=1.0, explain_weight=0.3)
    assert ended(plan, student)[1] == []


@pytest.mark.parametrize(("dtype", "change"), [
    (torch.float16, lambda w: w.view(-1)[:2].copy_(torch.tensor([65504.0, 6e-8]))),
    (torch.bfloat16, lambda w: w.view(-1)[:2].copy_(torch.tensor([3e9, 1e-38])))],
    ids=["float16", "bfloat16"])
@pytest.mark.parametrize("allocation", ["uniform", "lamp", "global", "erk"])
def test_weights_at_the_ends_of_half_precision_are_pruned_exactly(dtype, change, allocation):
    plan, student = changed(lambda net: (change(net.fc.weight),
                                         net.fc.weight.copy_(net.fc.weight.to(dtype).float())),
                            allocation=allocation, lr=1e-6)
    state, _ = ended(plan, student)
    assert zeros(state, plan.weights)[0] == round(0.8 * 702)


@pytest.mark.parametrize("allocation", ["uniform", "lamp", "global", "erk"])
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e25, 1e30])
def test_masks_are_those_of_the_same_network_at_another_scale(allocation, scale):
    """Squares of such weights are 0 or infinite in float32: what is cut must not depend on that."""
    def cut(factor):
        plan, student = changed(lambda net: (net.conv.weight.mul_(factor), net.fc.weight.mul_(factor)),
                                allocation=allocation)
        return loop.masks.moved(plan, loop.begin(plan, student), 0.8, dict)

    want, found = cut(1.0), cut(scale)
    assert sum(int((~mask).sum()) for mask in found.values()) == round(0.8 * 702)
    assert sum(int((found[name] != want[name]).sum()) for name in want) <= 4  # rounding of the product


# --- refused before the first step -------------------------------------------------------------------------

REFUSED = {
    "logits of 1e30": (lambda net: net.fc.weight.mul_(1e30), "the teacher gives logits of"),
    "logits that overflow": (lambda net: net.fc.weight.mul_(1e38), "the teacher gives logits of"),
    "an infinite weight": (lambda net: net.conv.weight.view(-1)[:1].fill_(math.inf), "gives logits of nan"),
    "hidden layers of 1e25": (lambda net: (net.conv.weight.mul_(1e25), net.fc.weight.mul_(1e-25)),
                              "the teacher gives hidden layers of"),
}


@pytest.mark.parametrize(("change", "cause"), REFUSED.values(), ids=REFUSED)
def test_figures_without_a_finite_loss_are_refused_with_who_gives_them(change, cause):
    plan, student = changed(change, **EVERYTHING)
    before = {name: t.clone() for name, t in student.state_dict().items()}
    with pytest.raises(InputError, match=cause) as caught:
        footing.check(plan, student, where="net.pt")
    assert caught.value.message.startswith("net.pt: ") and caught.value.hint
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_bottleneck_of_one_image_is_refused():
    plan, student = of_one_image(**EVERYTHING)
    with pytest.raises(InputError, match="there is one training image"):
        footing.check(plan, student, where="net.pt")


@pytest.mark.parametrize(("name", "value"), [
    ("sigma", 1e-200), ("sigma", 1e200), ("temperature", 1e-30), ("temperature", 1e300), ("lr", 1e300),
    ("rho", 1e300), ("rho_max", 1e38), ("alpha", 1e30), ("lambda_x", 1e20)])
def test_numbers_of_a_recipe_without_a_finite_loss_are_refused(name, value):
    bounds = r"(of at least 1e-09|.* at most 1e\+09)"
    with pytest.raises(InputError, match=rf"recipe x: {name} = .* expected a number {bounds}"):
        check(replace(Recipe(), **{name: value}), where="recipe x")


# --- on the way ---------------------------------------------------------------------------------------------

def test_a_penalty_at_the_largest_rho_is_finite_or_named():
    """SGD with lr * rho above 2 runs away: the run says that it is the splitting's doing, and what to set."""
    plan, student = make_plan(method="admm", allocation="uniform", optimizer="sgd", rho=LARGEST,
                              rho_growth=LARGEST, rho_max=LARGEST)
    with pytest.raises(PwoaError, match="not finite by step"):
        ended(plan, student)
    plan, student = make_plan(method="admm", allocation="uniform", rho=LARGEST, rho_max=LARGEST)
    ended(plan, student)


def test_a_penalty_that_alone_is_not_finite_is_named_with_what_to_set(monkeypatch):
    plan, student = make_plan(method="admm", allocation="uniform")
    monkeypatch.setattr(loop.admm, "penalty", lambda *_: torch.tensor(math.inf, requires_grad=True))
    with pytest.raises(PwoaError, match=": admm, loss") as caught:
        ended(plan, student)
    assert "rho_max=1" in caught.value.hint


@pytest.mark.parametrize("name", ["fc.bias", "bn.running_var"])
def test_what_is_not_finite_at_the_end_is_never_returned(name, monkeypatch):
    """Statistics too, which the loss in training does not see."""
    plan, student = make_plan(lr=1e-6)
    step = loop.step

    def spoiling(plan, state):
        state, losses = step(plan, state)
        if state.step == plan.steps:
            state.student.state_dict()[name][0] = math.inf
        return state, losses

    monkeypatch.setattr(loop, "step", spoiling)
    with pytest.raises(PwoaError, match=f"not finite by step 16 of 16: weights {name}"):
        loop.run(plan, loop.begin(plan, student), report=lambda *_: None)
