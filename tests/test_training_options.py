"""Options of the schedule: averages, batch-norm statistics, growing back, reconstruction, sensitivity, partial access."""
import copy
import itertools
import math

import pytest
import small_models as small
import torch
from test_training import Net, finish, make_plan, zeros
from torch import nn

from pwoa_cli import allocation, average, distill, estimate, obs, schedule, sensitivity, structure, training
from pwoa_cli.attacks.base import distance

OPTIONS = [
    {"ema": 0.9}, {"bn_reestimate": 2}, {"bn_reestimate": 2, "bn_inputs": "clean"}, {"regrow": 0.5, "allocation": "uniform"},
    {"start": "obs"}, {"allocation": "sensitivity"}, {"mix_ratio": 0.5, "cutmix": 0.5},
    {"method": "admm", "allocation": "sensitivity", "ema": 0.5, "optimizer": "sgd", "mix_ratio": 1.0},
    {"ema": 0.99, "bn_reestimate": 1, "regrow": 0.3, "allocation": "sensitivity", "mix_ratio": 0.2}]


@pytest.mark.parametrize("fields", OPTIONS)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, fields):
    """Bit for bit, with new objects, after the first step, within both phases and at the end; and the zeros are exact."""
    plan, student = make_plan(**fields)
    whole = finish(plan, training.begin(plan, copy.deepcopy(student)))
    state = training.begin(plan, student)
    for stop in (1, 3, plan.sparsify_steps + 2, plan.steps):
        while state.step < stop:
            state, _ = training.step(plan, state)
        torch.save(training.to_dict(state), tmp_path / "state.pt")
        state = training.from_dict(plan, Net(), torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):  # finishing twice changes nothing
        training.finish(plan, state)
        for name, tensor in whole.student.state_dict().items():
            assert torch.equal(tensor, state.student.state_dict()[name]), name
    count, total = zeros(state, plan.weights)
    assert count == round(0.8 * total)
    for name, p in state.student.named_parameters():
        assert not p.detach()[p.detach() == 0].signbit().any(), name


def test_the_learning_rate_restarts_with_the_second_phase_of_a_ramp():
    plan, student = make_plan(finetune_lr=0.5, lr=0.1, schedule="cosine", finetune_schedule="cosine", optimizer="sgd")
    state, rates = training.begin(plan, student), []
    while state.step < plan.steps:
        if state.step == plan.sparsify_steps:
            assert not training._enter(plan, state).optimizer.state_dict()["state"]  # momentum begins again, masks do not
        state, _ = training.step(plan, state)
        rates.append(state.optimizer.param_groups[0]["lr"])
    halves = [[base / 2 * (1 + math.cos(math.pi * s / 8)) for s in range(8)] for base in (0.1, 0.5)]
    assert (plan.sparsify_steps, plan.steps) == (8, 16) and rates == pytest.approx(sum(halves, []))
    count, total = zeros(state, plan.weights)
    assert count == round(0.8 * total)


# --- ema --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_is_the_weighted_mean_of_its_members(decay):
    models = [small.resnet() for _ in range(6)]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(number))
    state = {}
    for count, model in enumerate(models, 1):
        state = average.moved(state, model, decay=decay, count=count)
    factors = torch.tensor([decay ** (len(models) - 1 - i) for i in range(len(models))], dtype=torch.double)
    for name, tensor in state.items():
        members = torch.stack([m.state_dict()[name] for m in models])
        want = members[-1] if not tensor.is_floating_point() else torch.tensordot(factors / factors.sum(), members.double(), 1)
        assert torch.allclose(tensor.double(), want.double(), atol=1e-6), name


def test_the_average_begins_when_the_masks_are_fixed():
    plan, student = make_plan(ema=0.9)
    state, kept = training.begin(plan, student), []
    while state.step < plan.steps:
        state, _ = training.step(plan, state)
        assert (state.average is None) == (state.step <= plan.sparsify_steps)
        if state.average is not None:
            kept.append(state.student.fc.weight.detach().clone())
    factors = torch.tensor([0.9 ** (len(kept) - 1 - i) for i in range(len(kept))])
    training.finish(plan, state)
    assert torch.allclose(state.student.fc.weight, torch.tensordot(factors / factors.sum(), torch.stack(kept), 1), atol=1e-6)


# --- batch-norm statistics --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("inputs", ["varied", "clean"])
def test_reestimated_statistics_are_those_of_the_batches(inputs):
    plan, student = make_plan(bn_reestimate=3, bn_inputs=inputs)
    state = finish(plan, training.begin(plan, student))
    steps = range(plan.steps, plan.steps + 3)
    batches = [training._inputs(plan, s).x if inputs == "varied" else training._images(plan, s)[0] for s in steps]
    with torch.no_grad():
        out = [state.student.conv(x) for x in batches]
    assert torch.allclose(state.student.bn.running_mean, torch.stack([z.mean((0, 2, 3)) for z in out]).mean(0), atol=1e-6)
    assert torch.allclose(state.student.bn.running_var, torch.stack([z.var((0, 2, 3)) for z in out]).mean(0), rtol=1e-4)
    assert not state.student.training and state.student.bn.momentum == 0.1
    assert torch.equal(batches[0], training._images(plan, plan.steps)[0]) == (inputs == "clean")


def test_statistics_are_taken_of_the_average_and_not_averaged():
    plan, student = make_plan(ema=0.9, bn_reestimate=2, lr=0.1)
    state = finish(plan, training.begin(plan, student))
    with torch.no_grad():
        out = [state.student.conv(training._inputs(plan, s).x) for s in range(plan.steps, plan.steps + 2)]
    assert torch.equal(state.student.conv.weight, state.average["conv.weight"])
    assert torch.allclose(state.student.bn.running_mean, torch.stack([z.mean((0, 2, 3)) for z in out]).mean(0), atol=1e-6)
    assert not torch.allclose(state.student.bn.running_mean, state.average["bn.running_mean"], atol=1e-3)


# --- growing back -----------------------------------------------------------------------------------------------------

def test_the_fraction_that_grows_back_falls_along_a_cosine():
    assert [schedule.regrow_fraction(0.4, step=s, steps=8) for s in (0, 4, 8, 9)] == pytest.approx([0.4, 0.2, 0.0, 0.0])


@pytest.mark.parametrize("kind", structure.STRUCTURES)
@pytest.mark.parametrize(("lost", "fraction"), [(0, 0.5), (3, 0.0), (3, 0.5), (5, 0.99)])
def test_regrown_masks_equal_the_slow_way(kind, lost, fraction):
    g = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(6, 2, 3, generator=g), torch.randn(6, 2, 3, generator=g)
    strong, slope = (structure.strength(t, kind).tolist() for t in (weight, gradient))
    order = sorted(range(len(strong)), key=lambda i: -strong[i])
    keep = len(strong) - lost
    grown = min(int(fraction * keep), lost)
    survivors = order[:keep - grown]
    survivors += sorted(set(order) - set(survivors), key=lambda i: -slope[i])[:grown]
    mask = structure.regrown_mask(weight, gradient, lost, kind, fraction=fraction)
    alive = structure.strength(mask.double(), kind) > 0
    assert sorted(alive.nonzero().flatten().tolist()) == sorted(survivors)
    if fraction == 0:
        assert torch.equal(mask, structure.keep_mask(weight, lost, kind))


def test_pruned_weights_come_back_where_the_loss_asks_for_them():
    plan, student = make_plan(regrow=0.5, allocation="uniform", mask_updates=8, noise="none")
    state, back, quotas = training.begin(plan, student), 0, []
    while state.step < plan.sparsify_steps:
        before = state.masks
        old_buffers = {n: b.clone() for n, b in state.student.named_buffers()}
        entered = training._enter(plan, state)
        assert all(torch.equal(b, old_buffers[n]) for n, b in state.student.named_buffers())  # the extra pass leaves no trace
        if before:
            grown = {n: entered.masks[n] & ~before[n] for n in plan.weights}
            back += sum(int(m.sum()) for m in grown.values())
            assert all(not state.student.get_parameter(n)[m].any() for n, m in grown.items())  # from zero on
        quotas.append(sum(int((~entered.masks[n]).sum()) for n in plan.weights))
        state, _ = training.step(plan, state)
    assert back > 0
    assert quotas == [round(training.sparsity_at(plan, s) * 702) for s in range(plan.sparsify_steps)]  # the ramp is exact


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_that_come_back_bring_no_momentum(optimizer):
    """Gradients reach masked weights too: what they added up must not push a weight that grows."""
    plan, student = make_plan(regrow=0.5, allocation="uniform", mask_updates=8, optimizer=optimizer)
    state, back = training.begin(plan, student), 0
    while state.step < plan.sparsify_steps:
        before, old = state.masks, copy.deepcopy(state.optimizer.state_dict()["state"])
        entered = training._enter(plan, state)
        for number, (name, parameter) in enumerate(state.student.named_parameters()):
            if before and name in plan.weights:
                grown = entered.masks[name] & ~before[name]
                back += int(grown.sum())
                for key, kept in state.optimizer.state[parameter].items():
                    if kept.shape == parameter.shape:
                        assert not kept[grown].any() and torch.equal(kept[~grown], old[number][key][~grown])
        state, _ = training.step(plan, state)
    assert back > 0


def test_gradients_are_those_of_the_step_s_loss():
    plan, student = make_plan(regrow=0.5, noise="none", temperature=1.0)
    state = training._enter(plan, training.begin(plan, student))
    slopes = training._gradients(plan, state)
    x = training._inputs(plan, 0).x
    torch.manual_seed(training._seed(plan.seed, "dropout", 0))
    twin = copy.deepcopy(state.student).train()
    with torch.no_grad():
        answers = plan.teacher(x).softmax(1)
    loss = -(answers * twin(x).log_softmax(1)).sum(1).mean()  # cross-entropy differs from KL by a constant
    loss.backward()
    for name in plan.weights:
        assert torch.allclose(slopes[name], twin.get_parameter(name).grad, atol=1e-6), name


# --- reconstruction ---------------------------------------------------------------------------------------------------

def test_reconstruction_is_least_squares():
    """Against numpy-style lstsq on the inputs themselves, mask fixed: the outputs' error is the least possible."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(50, 7, generator=g).double() @ torch.randn(7, 7, generator=g).double(), torch.randn(4, 7, generator=g).double()
    keep = torch.rand(4, 7, generator=g) > 0.5
    made = obs.reconstruct(w, x.T @ x / len(x), keep)
    for row, mask, dense in zip(made, keep, w, strict=True):
        want = torch.linalg.lstsq(x[:, mask], (x @ dense)[:, None]).solution.flatten()
        assert torch.allclose(row[mask], want, atol=1e-9) and not row[~mask].any()


def test_saliency_is_what_one_weight_less_costs():
    """Hassibi & Stork 1993, eq. 5: w_i^2 / [H^-1]_ii = the error after the best answer to losing weight i."""
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(40, 6, generator=g).double(), torch.randn(2, 6, generator=g).double()
    h, keep = x.T @ x / len(x), torch.ones(2, 6, dtype=torch.bool)
    keep[1, 4] = False
    lost = w.clone()
    lost[1, 4] = 0
    lost = obs.reconstruct(lost, h, keep)
    saliency = obs._saliency(lost, h, keep)
    assert saliency[1, 4] == -1
    for i in range(6):
        less = torch.ones(6, dtype=torch.bool)
        less[i] = False
        error = (x @ (obs.reconstruct(lost[:1], h, less[None])[0] - lost[0])).square().mean()
        assert saliency[0, i].item() == pytest.approx(error.item(), rel=1e-9)


@pytest.mark.parametrize("layer", [
    nn.Linear(6, 5), nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.Conv2d(4, 6, (3, 2), groups=2, bias=False, dilation=2),
    nn.Conv2d(4, 6, (5, 3), padding="same"), nn.Conv2d(4, 4, 3, groups=4, padding="valid")])
def test_a_pruned_layer_keeps_its_outputs_better_than_magnitude(layer):
    torch.manual_seed(0)
    layer.reset_parameters()
    shape = (256, 6) if isinstance(layer, nn.Linear) else (16, 4, 12, 12)
    x = torch.randn(shape).cumsum(-1) + torch.randn(shape).mean(1, keepdim=True) + 2  # correlated, and not around 0
    zero_count = layer.weight.numel() // 2
    made = obs.reconstructed(nn.Sequential(layer), {"0.weight": zero_count}, [x[:10], x[10:]], normed=set())
    assert made.keys() == {"0.weight", "0.bias"} if layer.bias is not None else {"0.weight"}
    assert made["0.weight"].shape == layer.weight.shape and int((made["0.weight"] == 0).sum()) == zero_count

    def change(weight, bias):
        changed = copy.deepcopy(layer)
        changed.weight.data = weight
        if bias is not None:
            changed.bias.data = bias
        return changed(x) - layer(x)

    def error(weight, bias=layer.bias):
        return change(weight, bias).square().mean().item()

    with torch.no_grad():
        patches = obs._patches(layer, x)
        rows = layer.weight.reshape(len(patches), -1, patches.shape[-1])
        out = patches @ rows.mT  # (groups, n, out): the layer's own outputs, so the patches are what it multiplies
        want = layer(x) - (0 if layer.bias is None else layer.bias.view(-1, *[1] * (x.ndim - 2)))
        shaped = want[None] if isinstance(layer, nn.Linear) else want.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 4, 2).flatten(1, 3)
        assert torch.allclose(out, shaped, atol=1e-4)
        assert error(made["0.weight"], made.get("0.bias")) < 0.7 * error(structure.project(layer.weight, zero_count, "unstructured"))
        if layer.bias is not None and isinstance(layer, nn.Linear):
            assert change(made["0.weight"], made["0.bias"]).mean(0).abs().max() < 1e-4  # the mean stays


class Own(nn.Linear):
    """A linear layer by its class and by its shape, but not by what it does."""

    def forward(self, x):
        return super().forward(x).square()


class Attention(nn.Module):
    """nn.MultiheadAttention reads out_proj's weight without calling it."""

    def __init__(self):
        super().__init__()
        self.first, self.attention, self.own = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True), Own(8, 8)

    def forward(self, x):
        x = self.first(input=x)
        return self.own(self.attention(x, x, x)[0])


def test_layers_that_do_not_multiply_their_inputs_are_left_to_magnitude():
    torch.manual_seed(0)
    model = Attention().train()
    names = ("first.weight", "attention.out_proj.weight", "own.weight")
    made = obs.reconstructed(model, dict.fromkeys(names, 30), [torch.rand(16, 4, 8)], normed=set())
    assert made.keys() == {"first.weight", "first.bias"} and int((made["first.weight"] == 0).sum()) == 30
    assert not obs.supported(model.own) and obs.supported(model.first) and obs.supported(nn.Conv2d(1, 1, 3))
    patched = nn.Conv2d(1, 1, 3)
    patched.forward = lambda x: x
    assert not obs.supported(patched) and not obs.supported(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    assert obs.reconstructed(model, {"own.weight": 3}, [torch.rand(16, 4, 8)], normed=set()) == {}


def test_inputs_are_centred_where_a_batch_norm_takes_the_mean_off():
    """Far from 0 all inputs look alike: only around their mean is it seen which of them matter."""
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 8, bias=False), torch.randn(512, 12) * torch.linspace(0.1, 2, 12) + 5

    def spread(normed):
        made = obs.reconstructed(nn.Sequential(layer), {"0.weight": 48}, [x], normed=normed)["0.weight"]
        lost = x @ (layer.weight.detach() - made).T
        return (lost - lost.mean(0)).square().mean().item(), lost.square().mean().item()

    centred, plain = spread({"0.weight"}), spread(set())
    assert centred[0] < 0.9 * plain[0] and plain[1] < 0.9 * centred[1]


def test_large_layers_go_in_portions_and_skip_early_steps(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 16, 5))
    zero_counts, x = {"0.weight": 100, "1.weight": 200, "3.weight": 600}, [torch.rand(32, 3, 8, 8)]
    whole = obs.reconstructed(model, zero_counts, x, normed={"0.weight"})
    assert list(obs._portions({"a": model[0], "b": model[1], "c": model[3]})) == [["a", "b", "c"]]
    monkeypatch.setattr(obs, "ENTRIES", 27**2 + 2 * 36**2)
    assert list(obs._portions({"a": model[0], "b": model[1], "c": model[3]})) == [["a", "b"], ["c"]]
    parts = obs.reconstructed(model, zero_counts, x, normed={"0.weight"})
    assert whole.keys() == parts.keys() == {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    monkeypatch.setattr(obs, "CUBES", 0)
    at_once = obs.reconstructed(model, zero_counts, x, normed=set())
    assert {n: int((w == 0).sum()) for n, w in at_once.items() if n in zero_counts} == zero_counts
    assert not torch.equal(whole["3.weight"], at_once["3.weight"])


def test_a_start_by_reconstruction_has_all_masks_at_once():
    plan, student = make_plan(start="obs")
    state, counts = training.begin(plan, student), set()
    while state.step < plan.steps:
        state, _ = training.step(plan, state)
        counts.add(zeros(state, plan.weights)[0])
    assert counts == {round(0.8 * 702)}


def test_a_start_by_reconstruction_is_nearer_to_the_teacher():
    """Right after the masks; measured once: KL 0.004 after reconstruction, 0.017 after magnitude."""
    found = []
    for fields in ({"start": "obs"}, {"mask_updates": 1}):
        plan, _ = make_plan(**fields)
        varied = [training._inputs(plan, step).x for step in range(8)]
        average.reestimate(plan.teacher, varied)  # statistics of its own inputs, as a trained network has
        state = training._enter(plan, training.begin(plan, copy.deepcopy(plan.teacher)))
        average.reestimate(state.student, varied)
        with torch.no_grad():
            found.append(distill.kl(state.student(varied[0]), plan.teacher(varied[0]), temperature=1.0).item())
    assert found[0] < 0.5 * found[1]


# --- sensitivity ------------------------------------------------------------------------------------------------------

def test_curves_are_the_divergence_without_a_layer_s_weakest():
    plan, student = make_plan(allocation="sensitivity", temperature=2.0)
    before = {n: t.clone() for n, t in student.state_dict().items()}
    curves = training.begin(plan, student).curves
    assert all(torch.equal(t, before[n]) for n, t in student.state_dict().items())
    batches = training._calibration(plan)
    assert len(batches) == 32 and torch.equal(batches[0], training._images(plan, plan.steps)[0])
    for name in plan.weights:
        total = student.get_parameter(name).numel()
        assert [n for n, _ in curves[name]][:4] == [0] + [total - int(total * d) for d in (0.5, 0.25, 0.125)]
        lost, damage = curves[name][2]
        twin = copy.deepcopy(student).eval()
        twin.get_parameter(name).data = structure.project(student.get_parameter(name), lost, "unstructured")
        with torch.no_grad():
            want = torch.stack([4 * distill.kl(twin(x), plan.teacher(x), temperature=2.0) for x in batches]).mean()
        assert damage == pytest.approx(want.item(), abs=1e-6)
        assert curves[name][-1][0] == student.get_parameter(name).numel() - 1


def test_filters_are_measured_with_their_companions():
    plan, student = make_plan(allocation="sensitivity", structure="filter", sparsity=0.5)
    (lost, damage), twin = training.begin(plan, student).curves["conv.weight"][1], copy.deepcopy(student).eval()
    keep = structure.keep_mask(student.conv.weight, lost, "filter")
    alive = keep.flatten(1).any(1)
    for parameter, mask in ((twin.conv.weight, keep), (twin.bn.weight, alive), (twin.bn.bias, alive)):
        parameter.data = parameter.detach() * mask
    with torch.no_grad():
        batches = training._calibration(plan)
        want = torch.stack([16 * distill.kl(twin(x), plan.teacher(x), temperature=4.0) for x in batches]).mean()
    assert damage == pytest.approx(want.item(), abs=1e-6)


def test_marginal_damage_is_the_slope_of_the_convex_hull():
    curve = [(0, 0.0), (2, 4.0), (4, 4.4), (6, 9.0)]  # the first step is dear, but four are not
    assert allocation.marginal(curve).tolist() == pytest.approx([1.1] * 4 + [2.3] * 2)
    assert allocation.marginal([(0, 0.0), (3, -1.0), (5, 1.0)]).tolist() == pytest.approx([-1 / 3] * 3 + [1.0] * 2)
    assert len(allocation.marginal([(0, 0.0)])) == 0


def test_sensitive_layers_keep_more_and_the_sum_is_least():
    """Against all ways to share the budget, on the curves' hulls."""
    weights = {"a": torch.randn(2, 4), "b": torch.randn(3, 4), "c": torch.randn(1, 6)}
    curves = {"a": [(0, 0.0), (4, 1.0), (7, 9.0)], "b": [(0, 0.0), (6, 0.5), (11, 2.0)], "c": [(0, 0.0), (3, 3.0), (5, 3.5)]}
    slopes = {n: allocation.marginal(c).tolist() for n, c in curves.items()}
    for budget in (1, 9, 13, 20, 23):
        quota = allocation.quotas(weights, budget / 26, method="sensitivity", curves=curves)
        cost = sum(sum(slopes[n][:k]) for n, k in quota.items())
        ways = [w for w in itertools.product(range(8), range(12), range(6)) if sum(w) == budget]
        least = min(sum(sum(slopes[n][:k]) for n, k in zip("abc", way, strict=True)) for way in ways)
        assert sum(quota.values()) == budget and cost == pytest.approx(least)
    assert allocation.quotas({n: w[None] for n, w in weights.items()}, 0.5, method="sensitivity", structure="column",
                             curves=curves)["b"] >= 6
    with pytest.raises(ValueError, match="sensitivity"):
        allocation.quotas(weights, 0.5, method="sensitivity")


def test_curves_need_no_labels_and_no_gradient():
    plan, student = make_plan()
    for p in student.parameters():
        p.requires_grad_(False)
    with torch.enable_grad():
        found = sensitivity.curves(student, plan.teacher, [torch.rand(4, 1, 8, 8)], weights={"fc.weight": student.fc.weight},
                                   structure="column", temperature=1.0, silence=lambda name, keep: [(student.fc.weight, keep)])
    assert found["fc.weight"][-1][0] == 6 * 36 - 1


# --- partial access ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_fraction_of_the_batches_is_attacked(norm):
    plan, student = make_plan(mix_ratio=0.4, noise="none")
    plan = training.replace(plan, norm=norm, eps=0.2)
    attacked = 0
    for now in range(40):
        batch = training._inputs(plan, now)
        made = training._attacked(plan, student.train(), batch, now)
        assert student.training and all(p.requires_grad for p in student.parameters())
        assert distance(made.x - batch.x, norm).max() <= 0.2 + 1e-6 and 0 <= made.x.min() and made.x.max() <= 1
        attacked += not torch.equal(made.x, batch.x)
    assert 8 <= attacked <= 24  # 16 expected, three deviations


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacked_images_lie_around_the_image_and_not_around_its_noisy_copy(norm):
    """Noise of several eps: a ball around the noisy image would leave the threat model."""
    plan, student = make_plan(mix_ratio=1.0, noise="sign", noise_scale=3.0, cutmix=0.5)
    plan = training.replace(plan, norm=norm, eps=0.1)
    for now in range(4):
        batch = training._inputs(plan, now)
        made = training._attacked(plan, student, batch, now)
        away = distance(made.x - batch.clean, norm)
        assert 0 < away.max() <= 0.1 + 1e-6 and 0 <= made.x.min() and made.x.max() <= 1
        assert made.clean is batch.clean and made.labels is batch.labels and made.labels_hold == batch.labels_hold
        assert distance(batch.x - batch.clean, norm).max() > 0.11


@pytest.mark.parametrize("mixed", [False, True])
def test_what_the_attack_is_told(monkeypatch, mixed):
    """Labels where they hold, else the teacher's answers; ten steps of eps/4 that nobody leaves."""
    plan, student = make_plan(mix_ratio=1.0, cutmix=float(mixed), gaussian_scale=0.5, noise="gaussian")
    batch, told = training._inputs(plan, 3), []
    assert batch.labels_hold != mixed
    batch = batch._replace(labels=batch.labels[torch.randperm(16, generator=torch.Generator().manual_seed(0))])
    with torch.no_grad():
        answers = plan.teacher(batch.clean).argmax(1)
        assert not torch.equal(answers, batch.labels) and not torch.equal(answers, plan.teacher(batch.x).argmax(1))
    monkeypatch.setattr(training.gradient, "pgd", lambda model, x, y, **how: told.append((model, x, y, how)) or x + 0)
    training._attacked(plan, student, batch, 3)
    (model, x, y, how), = told
    assert model is student and torch.equal(x, batch.clean) and torch.equal(y, answers if mixed else batch.labels)
    assert isinstance(how.pop("generator"), torch.Generator)
    assert how == {"eps": plan.eps, "norm": "linf", "steps": 10, "step_size": plan.eps / 4, "every_step": True}


def test_attacked_batches_mislead_the_student_and_are_what_it_learns_from(monkeypatch):
    plan, student = make_plan(mix_ratio=1.0, noise="none")
    plan = training.replace(plan, eps=0.3)
    batch, seen = training._inputs(plan, 0), []
    monkeypatch.setattr(training.objective, "terms", lambda recipe, *, batch, student, **more: (
        seen.append(batch.x) or {"kl": student(batch.x).sum()}))
    training.step(plan, training.begin(plan, student))
    with torch.no_grad():
        clean, adv = (nn.functional.cross_entropy(plan.teacher(x), batch.labels) for x in (batch.x, seen[0]))
    assert len(seen) == 1 and not torch.equal(seen[0], batch.x) and adv != clean


def test_mix_ratio_zero_never_calls_an_attack(monkeypatch):
    def attacked(*_args, **_options):
        raise AssertionError("an adversarial example was made")

    monkeypatch.setattr(training.gradient, "pgd", attacked)
    plan, student = make_plan(cutmix=0.5, ema=0.9, regrow=0.3, allocation="sensitivity", bn_reestimate=1)
    finish(plan, training.begin(plan, student))


# --- time -------------------------------------------------------------------------------------------------------------

def test_an_estimate_of_the_time(monkeypatch):
    """Against a clock that a step moves by 2 s, an attacked one by 12 s, and the start by 5 s."""
    plan, student = make_plan(mix_ratio=0.25)
    now = [0.0]

    def step(plan, state):
        now[0] += {0.0: 2.0, 0.25: 2.0, 1.0: 12.0}[plan.recipe.mix_ratio]
        return state, {"loss": torch.zeros(())}

    def begin(plan, student):
        now[0] += 5.0

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(training, "step", step)
    monkeypatch.setattr(training, "begin", begin)
    found = estimate.measure(plan, student)
    assert found.seconds_per_step == pytest.approx(0.75 * 2 + 0.25 * 12) and found.seconds == pytest.approx(7 + 15 * 4.5)
    assert found.work == plan.recipe.batch_size * sum(student.get_parameter(name).numel() for name in plan.weights) / 1e6


@pytest.mark.parametrize(("seconds", "steps", "text"), [
    (703.05, 9374, "training: about 12 min on this machine (75 ms a step x 9,374 steps; "
     "15 ms per million weights and image)"),
    (20.0, 10, "training: about 20 s on this machine (2 s a step x 10 steps; "
     "400 ms per million weights and image)"),
    (20000.0, 100000, "training: about 5.6 h on this machine (200 ms a step x 100,000 steps; "
     "40 ms per million weights and image)")])
def test_how_an_estimate_reads(seconds, steps, text):
    assert str(estimate.Estimate(seconds, seconds / steps, steps, 5.0)) == text


def test_an_estimate_on_a_fast_machine_is_not_nothing():
    """A ResNet-18 on a GPU: 60 ms for 128 images and 11 million weights are 43 us each."""
    text = str(estimate.Estimate(234.0, 0.06, 3900, 128 * 11.0))
    assert text.endswith("(60 ms a step x 3,900 steps; 0.043 ms per million weights and image)")
