"""The training step: exact zeros, phases, and that every published term enters the loss."""
import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers.plans import finish, make_plan, no_slopes, on_move, plan_for, zeros
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pwoa_cli.attacks import gradient
from pwoa_cli.errors import PwoaError
from pwoa_cli.losses import hsic
from pwoa_cli.machine import seeds
from pwoa_cli.networks import layers
from pwoa_cli.pruning.groups import STRUCTURES
from pwoa_cli.training import inputs, loop, masks
from pwoa_cli.training.state import masked

# --- phases -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["ramp", "admm"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_run_ends_with_exactly_k_positive_zeros(method, sparsity):
    plan, student = make_plan(method=method, sparsity=sparsity, allocation="uniform", schedule="cosine")
    state = finish(plan, loop.begin(plan, student))
    count, total = zeros(state, plan.weights)
    assert count == round(sparsity * total) and state.step == plan.steps
    for name, p in state.student.named_parameters():
        assert not (p.detach()[p.detach() == 0].signbit()).any(), name


def test_the_ramp_grows_and_then_holds():
    plan, student = make_plan()
    state, counts = loop.begin(plan, student), []
    while state.step < plan.steps:
        state, _ = loop.step(plan, state)
        counts.append(zeros(state, plan.weights)[0])
    assert counts == sorted(counts) and counts[0] < counts[plan.sparsify_steps - 1]
    assert len(set(counts[plan.sparsify_steps:])) == 1


def test_the_learning_rate_restarts_with_the_second_phase_of_a_ramp():
    plan, student = make_plan(finetune_lr=0.5, lr=0.1, schedule="cosine", finetune_schedule="cosine",
                              optimizer="sgd")
    state, rates, fresh = loop.begin(plan, student), [], []
    with register_optimizer_step_pre_hook(
            lambda optimizer, *_: fresh.append(not optimizer.state_dict()["state"])):
        while state.step < plan.steps:
            state, _ = loop.step(plan, state)
            rates.append(state.optimizer.param_groups[0]["lr"])
    # momentum begins again with each phase, masks do not
    assert fresh == [s in (0, plan.sparsify_steps) for s in range(plan.steps)]
    halves = [[base / 2 * (1 + math.cos(math.pi * s / 8)) for s in range(8)] for base in (0.1, 0.5)]
    assert (plan.sparsify_steps, plan.steps) == (8, 16) and rates == pytest.approx(sum(halves, []))
    count, total = zeros(state, plan.weights)
    assert count == round(0.8 * total)


# --- the loss -----------------------------------------------------------------------------------------------

def test_terms_enter_with_their_weights():
    plan, student = make_plan(alpha=2.0, temperature=3.0, hidden_weight=0.5, lambda_x=0.1, lambda_y=0.2,
                              noise="none")
    _, losses = loop.step(plan, loop.begin(plan, student))
    want = 2 * 9 * losses["kl"] + 0.5 * losses["hidden"] + 0.1 * losses["hsic_x"] - 0.2 * losses["hsic_y"]
    assert losses["loss"].item() == pytest.approx(want.item(), rel=1e-6)
    batch = inputs.batch(plan, 0)
    _, fresh = make_plan()
    found = masks.moved(plan, loop.begin(plan, fresh), masks.sparsity_at(plan, 0), no_slopes)
    masks.apply_masks(fresh, found)
    with layers.capture(fresh.train(), ["relu"]) as hidden:
        torch.manual_seed(seeds.number(0, "dropout", 0))
        fresh(batch.x)
    want, _ = hsic.bottleneck(batch.x, batch.labels, hidden, num_classes=3, sigma=5.0)
    assert losses["hsic_x"].item() == pytest.approx(want.sum().item(), rel=1e-4)


def test_hsic_in_every_fourth_step_pulls_four_times_there_and_not_at_all_elsewhere():
    """From the same state: a step of plain descent on kl + 4 hsic in step 4, on kl alone in steps 1 to 3."""
    def change(step, **fields):
        plan, student = make_plan(optimizer="sgd", momentum=0.0, schedule="constant", sparsity=0.0, **fields)
        before = nn.utils.parameters_to_vector(student.parameters()).detach().clone()
        state, losses = loop.step(plan, replace(loop.begin(plan, student), step=step))
        return nn.utils.parameters_to_vector(state.student.parameters()).detach() - before, losses

    for step, factor in ((0, 4), (1, 0), (3, 0), (4, 4), (8, 4)):
        found, losses = change(step, lambda_x=0.1, lambda_y=0.2, hsic_every=4)
        want, whole = change(step, lambda_x=0.1 * factor, lambda_y=0.2 * factor)
        assert torch.equal(found, want) and losses["loss"] == whole["loss"]
        assert ("hsic_x" in losses) == ("hsic_y" in losses) == (factor > 0)


def test_blocks_that_are_skipped_at_random_have_no_gradient_in_that_step():
    """A criterion or regrowth that wants gradients gets zeros for them, and the run ends."""
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.block = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.fc = nn.Linear(6 * 64, 3)

        def forward(self, x):
            x = self.conv(x).relu()
            if not (self.training and torch.rand(()) < 0.5):
                x = x + self.block(x)
            return self.fc(x.flatten(1))

    torch.manual_seed(0)
    net = Skipping().eval()
    plan, _ = make_plan(regrow=0.5, lambda_x=0.0, lambda_y=0.0, hidden_weight=0.0)
    plan = plan_for(net, teacher=net, recipe=plan.recipe, split=plan.split, sparsity=0.8,
                    weights=("conv.weight", "block.weight", "fc.weight"), companions={},
                    structure="unstructured", hidden=(), num_classes=3)
    state = finish(plan, loop.begin(plan, copy.deepcopy(net)))
    gone, entries = zeros(state, plan.weights)
    assert gone == round(0.8 * entries)


def test_sparsity_counts_a_weight_of_two_groups_once():
    """By which the limit of an explosion is chosen: of a channel's row and another's column."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    plan, _ = make_plan(lambda_x=0.0, lambda_y=0.0)
    coupled = {"0.weight": {"0.weight": {0: range(4)}, "1.weight": {1: range(4)}},
               "1.weight": {"1.weight": {0: range(4)}, "3.weight": {1: [i // 16 for i in range(64)]}}}
    parameters = {name: net.get_parameter(name) for name in ("0.weight", "1.weight", "3.weight")}
    groups = STRUCTURES["channel"].groups(parameters, {}, {}, coupled)
    plan = replace(plan, groups=groups)
    state = masked(loop.begin(plan, net), {name: torch.ones_like(p, dtype=torch.bool)
                                           for name, p in parameters.items()})
    assert loop._sparsity(plan, state) == 0.0


def test_hsic_is_no_explosion(monkeypatch):
    """Of images without number it lies between 0 and that number: however it is weighed, no rate is to
    blame."""
    plan, student = make_plan(lambda_y=1e3, hsic_every=4, lr=1e-6)
    said = []
    loop.run(plan, loop.begin(plan, student), report=lambda state, losses: None, every=3,
             restarted=said.append)
    assert not said


@pytest.mark.parametrize("way", ["cutmix", "mixup"])
def test_mixed_batches_have_a_label_term_of_their_own(way):
    """It is that of the soft labels: with those of the images before they were mixed it would be another."""
    plan, student = make_plan(**{way: 1.0}, lambda_y=0.1, sparsity=0.0)
    batch = inputs.batch(plan, 0)
    with layers.capture(student.train(), ["relu"]) as hidden:
        student(batch.x)
    _, mixed = hsic.bottleneck(batch.x, batch.soft, hidden, num_classes=3, sigma=5.0)
    _, before = hsic.bottleneck(batch.x, batch.labels, hidden, num_classes=3, sigma=5.0)
    _, losses = loop.step(plan, loop.begin(plan, make_plan()[1]))
    assert losses["hsic_y"].item() == pytest.approx(mixed.sum().item(), rel=1e-4)
    assert before.sum().item() != pytest.approx(mixed.sum().item(), rel=1e-3)


def test_gradients_are_those_of_the_step_s_loss(monkeypatch):
    plan, student = make_plan(regrow=0.5, noise="none", temperature=1.0)
    slopes, twins = {}, []

    def look(state, _found, gradients):  # the masks of the first step are set, nothing is learned yet
        slopes.update(gradients())
        twins.append(copy.deepcopy(state.student).train())

    on_move(monkeypatch, look)
    loop.step(plan, loop.begin(plan, student))
    twin, = twins
    x = inputs.batch(plan, 0).x
    torch.manual_seed(seeds.number(plan.seed, "dropout", 0))
    with torch.no_grad():
        answers = plan.teacher(x).softmax(1)
    loss = -(answers * twin(x).log_softmax(1)).sum(1).mean()  # cross-entropy differs from KL by a constant
    loss.backward()
    for name in plan.weights:
        assert torch.allclose(slopes[name], twin.get_parameter(name).grad, atol=1e-6), name


def test_attacked_batches_mislead_the_student_and_are_what_it_learns_from():
    def terms(recipe, *, batch, student, **more):
        seen.append(batch.x)
        return {"kl": student(batch.x).sum()}

    plan, student = make_plan(mix_ratio=1.0, noise="none")
    plan = replace(plan, eps=0.3, terms=terms)
    batch, seen = inputs.batch(plan, 0), []
    loop.step(plan, loop.begin(plan, student))
    with torch.no_grad():
        clean, adv = (nn.functional.cross_entropy(plan.teacher(x), batch.labels) for x in (batch.x, seen[0]))
    assert len(seen) == 1 and not torch.equal(seen[0], batch.x) and adv != clean


def test_mix_ratio_zero_never_calls_an_attack(monkeypatch):
    def attacked(*_args, **_options):
        raise AssertionError("an adversarial example was made")

    monkeypatch.setattr(gradient, "pgd", attacked)
    plan, student = make_plan(cutmix=0.5, ema=0.9, regrow=0.3, allocation="sensitivity", bn_reestimate=1)
    finish(plan, loop.begin(plan, student))


# --- one step -----------------------------------------------------------------------------------------------

def test_frozen_batch_norm_keeps_its_statistics():
    plan, student = make_plan(batch_norm="freeze")
    before = student.bn.running_mean.clone()
    state = finish(plan, loop.begin(plan, student))
    assert torch.equal(state.student.bn.running_mean, before)


def test_a_clipped_gradient_keeps_its_direction():
    """Against one step of plain gradient descent: the change is the same one, scaled down to rate x norm."""
    def change(clip):
        plan, student = make_plan(optimizer="sgd", momentum=0.0, schedule="constant", sparsity=0.0, clip=clip)
        before = nn.utils.parameters_to_vector(student.parameters()).detach().clone()
        state, _ = loop.step(plan, loop.begin(plan, student))
        return nn.utils.parameters_to_vector(state.student.parameters()).detach() - before

    free = change(0.0)
    norm = free.norm().item() / 1e-2
    torch.testing.assert_close(change(norm / 4), free / 4, rtol=1e-4, atol=1e-7)
    assert torch.equal(change(norm * 2), free)


# --- reports ------------------------------------------------------------------------------------------------

def test_reported_losses_are_means_over_the_steps_that_have_them():
    """HSIC is in every third step: it is missing in the others, not zero, and not forgotten either."""
    plan, student = make_plan(cutmix=0.5, lambda_x=0.1, lambda_y=0.1, hsic_every=3, lr=1e-4)
    state, seen = loop.begin(plan, copy.deepcopy(student)), []
    while state.step < plan.steps:
        state, losses = loop.step(plan, state)
        seen.append(losses)
    assert [step for step, losses in enumerate(seen) if "hsic_y" in losses] == [0, 3, 6, 9, 12, 15]
    reports = []
    loop.run(plan, loop.begin(plan, student), every=5,
             report=lambda state, means: reports.append((state.step, means)))
    first = 0
    for last, means in reports:
        window = seen[first:last]
        for name in {name for losses in window for name in losses}:
            values = [losses[name].item() for losses in window if name in losses]
            assert means[name] == pytest.approx(sum(values) / len(values), rel=1e-5), (last, name)
        first = last
    assert first == plan.steps


def test_the_term_that_is_not_finite_is_named_even_if_the_last_step_lacks_it(monkeypatch):
    plan, student = make_plan()
    losses = iter([{"loss": torch.tensor(torch.nan), "hsic_y": torch.tensor(torch.nan)},
                   {"loss": torch.tensor(torch.nan)}])
    monkeypatch.setattr(loop, "step", lambda plan, state: (replace(state, step=state.step + 1), next(losses)))
    with pytest.raises(PwoaError, match="by step 2 of 16: loss, hsic_y"):
        loop.run(plan, loop.begin(plan, student), report=lambda *_: None, every=2)


def test_a_loss_that_is_not_finite_stops_the_run():
    plan, student = make_plan()
    with torch.no_grad():
        student.fc.bias[0] = float("nan")
    with pytest.raises(PwoaError, match=r"not finite by step \d+ of 16: kl, loss"):
        finish(plan, loop.begin(plan, student))
