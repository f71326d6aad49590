"""The training step: masks, phases, resuming, and that every published term enters the loss."""
import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from pwoa_cli import data, hsic, layers, training
from pwoa_cli.config import Recipe
from pwoa_cli.errors import PwoaError


class Net(nn.Module):
    """conv-bn-relu, dropout, linear: every kind of state that a step can touch."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(6 * 36, 3)

    def forward(self, x):
        return self.fc(self.drop(self.relu(self.bn(self.conv(x)))).flatten(1))


def make_plan(*, structure="unstructured", sparsity=0.8, **fields):
    torch.manual_seed(0)
    recipe = replace(Recipe(batch_size=16, epochs=4, noise="sign", lr=1e-2, mask_updates=4), **fields)
    model = Net().eval()
    split = data.Split(images=torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), labels=torch.arange(64) % 3)
    per_epoch, sparsify_steps, steps = training.plan_steps(recipe, len(split), sparsity)
    weights = ("conv.weight",) if structure == "filter" else ("conv.weight", "fc.weight")
    plan = training.Plan(recipe=recipe, teacher=model, hidden=("relu",), weights=weights,
                         companions={"conv.weight": ("bn.weight", "bn.bias")}, sparsity=sparsity, structure=structure,
                         num_classes=3, eps=0.1, norm="linf", split=split, augment="none", seed=0,
                         steps_per_epoch=per_epoch, sparsify_steps=sparsify_steps, steps=steps)
    return plan, copy.deepcopy(model)


def finish(plan, state):
    return training.run(plan, state, report=lambda state, losses: None)


def zeros(state, names):
    parameters = dict(state.student.named_parameters())
    return sum(int((parameters[n] == 0).sum()) for n in names), sum(parameters[n].numel() for n in names)


@pytest.mark.parametrize("method", ["ramp", "admm"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_run_ends_with_exactly_k_positive_zeros(method, sparsity):
    plan, student = make_plan(method=method, sparsity=sparsity, allocation="uniform", schedule="cosine")
    state = finish(plan, training.begin(plan, student))
    count, total = zeros(state, plan.weights)
    assert count == round(sparsity * total) and state.step == plan.steps
    for name, p in state.student.named_parameters():
        assert not (p.detach()[p.detach() == 0].signbit()).any(), name


def test_the_ramp_grows_and_then_holds():
    plan, student = make_plan()
    state, counts = training.begin(plan, student), []
    while state.step < plan.steps:
        state, _ = training.step(plan, state)
        counts.append(zeros(state, plan.weights)[0])
    assert counts == sorted(counts) and counts[0] < counts[plan.sparsify_steps - 1]
    assert len(set(counts[plan.sparsify_steps:])) == 1


def test_silent_filters_take_their_batch_norm_along():
    plan, student = make_plan(structure="filter", sparsity=0.5, lr=0.05)
    state = finish(plan, training.begin(plan, student))
    student = state.student.eval()
    silent = student.conv.weight.detach().flatten(1).abs().sum(1) == 0
    assert int(silent.sum()) == 3
    assert not student.bn.weight[silent].any() and not student.bn.bias[silent].any() and student.bn.weight[~silent].all()
    with layers.capture(student, ["relu"]) as hidden:
        student(torch.rand(4, 1, 8, 8))
        assert not hidden[0][:, silent].any()


def test_a_shared_batch_norm_is_silent_only_where_both_filters_are():
    plan, student = make_plan(structure="filter", sparsity=0.5)
    student.add_module("twin", nn.Conv2d(1, 6, 3, bias=False))
    plan = replace(plan, weights=("conv.weight", "twin.weight"), companions={n: ("bn.weight",) for n in ("conv.weight", "twin.weight")})
    masks = training._masked(plan, training.begin(plan, student), 0.5)
    rows = [masks[n].flatten(1).any(1) for n in plan.weights]
    assert torch.equal(masks["bn.weight"], rows[0] | rows[1])


@pytest.mark.parametrize("fields", [
    {"method": "ramp", "optimizer": "adam"}, {"method": "admm", "optimizer": "sgd", "finetune_lr": 1e-3, "schedule": "admm"}])
def test_a_stopped_state_goes_on_bit_for_bit(tmp_path, fields):
    """Student, optimiser, masks, ADMM and step are the whole state: saved, loaded into new objects, continued."""
    plan, student = make_plan(**fields)
    whole = training.begin(plan, copy.deepcopy(student))
    for _ in range(plan.steps):
        whole, _ = training.step(plan, whole)
    state = training.begin(plan, student)
    for stop in (3, plan.sparsify_steps + 2, plan.steps):
        while state.step < stop:
            state, _ = training.step(plan, state)
        torch.save(training.to_dict(state), tmp_path / "state.pt")
        state = training.from_dict(plan, Net(), torch.load(tmp_path / "state.pt", weights_only=True))
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, state.student.state_dict()[name]), name


def test_terms_enter_with_their_weights():
    plan, student = make_plan(alpha=2.0, temperature=3.0, hidden_weight=0.5, lambda_x=0.1, lambda_y=0.2, noise="none")
    _, losses = training.step(plan, training.begin(plan, student))
    want = 2 * 9 * losses["kl"] + 0.5 * losses["hidden"] + 0.1 * losses["hsic_x"] - 0.2 * losses["hsic_y"]
    assert losses["loss"].item() == pytest.approx(want.item(), rel=1e-6)
    batch = training._inputs(plan, 0)
    _, fresh = make_plan()
    training.apply_masks(fresh, training._masked(plan, training.begin(plan, fresh), training.sparsity_at(plan, 0)))
    with layers.capture(fresh.train(), ["relu"]) as hidden:
        torch.manual_seed(training._seed(0, "dropout", 0))
        fresh(batch.x)
    want, _ = hsic.bottleneck(batch.x, batch.labels, hidden, num_classes=3, sigma=5.0)
    assert losses["hsic_x"].item() == pytest.approx(want.sum().item(), rel=1e-4)


def test_mixed_batches_leave_the_label_term_out():
    plan, student = make_plan(cutmix=1.0, lambda_x=0.1, lambda_y=0.1)
    assert "hsic_y" not in training.step(plan, training.begin(plan, student))[1]


def test_sign_noise_lies_on_the_ball_of_the_threat_model_whatever_its_norm():
    """An l2 radius is that of the whole image: as a step of each pixel it would drown the image."""
    plan, _ = make_plan()
    grey = data.Split(images=torch.full_like(plan.split.images, 128), labels=plan.split.labels)
    for norm, eps, order in (("linf", 0.1, float("inf")), ("l2", 0.5, 2)):
        batch = training._inputs(replace(plan, norm=norm, eps=eps, split=grey), 0)
        size = torch.linalg.vector_norm((batch.x - batch.clean).flatten(1), ord=order, dim=1)
        torch.testing.assert_close(size, torch.full((16,), eps), rtol=1e-4, atol=1e-6)


def test_frozen_batch_norm_keeps_its_statistics():
    plan, student = make_plan(batch_norm="freeze")
    before = student.bn.running_mean.clone()
    state = finish(plan, training.begin(plan, student))
    assert torch.equal(state.student.bn.running_mean, before)


def test_a_clipped_gradient_keeps_its_direction():
    """Against one step of plain gradient descent: the change is the same one, scaled down to rate x norm."""
    def change(clip):
        plan, student = make_plan(optimizer="sgd", momentum=0.0, schedule="constant", sparsity=0.0, clip=clip)
        before = nn.utils.parameters_to_vector(student.parameters()).detach().clone()
        state, _ = training.step(plan, training.begin(plan, student))
        return nn.utils.parameters_to_vector(state.student.parameters()).detach() - before

    free = change(0.0)
    norm = free.norm().item() / 1e-2
    torch.testing.assert_close(change(norm / 4), free / 4, rtol=1e-4, atol=1e-7)
    assert torch.equal(change(norm * 2), free)


def test_reported_losses_are_means_over_the_steps_that_have_them():
    """A mixed batch has no label term: it is missing in those steps, not zero, and not forgotten either."""
    plan, student = make_plan(cutmix=0.5, lambda_x=0.1, lambda_y=0.1)
    state, seen = training.begin(plan, copy.deepcopy(student)), []
    while state.step < plan.steps:
        state, losses = training.step(plan, state)
        seen.append(losses)
    assert 0 < sum("hsic_y" in losses for losses in seen) < len(seen)
    reports = []
    training.run(plan, training.begin(plan, student), report=lambda state, means: reports.append((state.step, means)), every=5)
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
    losses = iter([{"loss": torch.tensor(torch.nan), "hsic_y": torch.tensor(torch.nan)}, {"loss": torch.tensor(torch.nan)}])
    monkeypatch.setattr(training, "step", lambda plan, state: (replace(state, step=state.step + 1), next(losses)))
    with pytest.raises(PwoaError, match="by step 2 of 16: loss, hsic_y"):
        training.run(plan, training.begin(plan, student), report=lambda *_: None, every=2)


def test_a_loss_that_is_not_finite_stops_the_run():
    plan, student = make_plan()
    with torch.no_grad():
        student.fc.bias[0] = float("nan")
    with pytest.raises(PwoaError, match=r"not finite by step \d+ of 16: kl, loss"):
        finish(plan, training.begin(plan, student))


def test_steps_of_short_runs():
    assert training.plan_steps(Recipe(epochs=4, sparsify=0.5, batch_size=128), 60000, 0.9) == (468, 936, 1872)
    assert training.plan_steps(Recipe(epochs=0.001, batch_size=128), 60000, 0.9) == (468, 1, 2)
    assert training.plan_steps(Recipe(epochs=1, batch_size=128), 50, 0.9) == (1, 1, 2)


def test_a_stretched_recipe_takes_the_time_that_a_sparsity_needs():
    recipe = Recipe(epochs=4, stretch=1, batch_size=128)
    assert [training.plan_steps(recipe, 12800, s)[2] for s in (0.1, 0.5, 0.75, 0.9, 0.99, 0.999)] == [200, 200, 241, 400, 800, 1200]
