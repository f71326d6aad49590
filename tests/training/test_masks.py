"""Masks of a plan: companions, growing back, reconstruction at the start, curves of damage."""
import copy
from dataclasses import replace

import pytest
import torch
from helpers.plans import finish, keep_mask, make_plan, no_slopes, on_move, project, zeros
from torch import nn

from pwoa_cli.losses import distill
from pwoa_cli.networks import layers
from pwoa_cli.pruning.groups import STRUCTURES
from pwoa_cli.training import averaging, inputs, loop, masks

# --- companions ---------------------------------------------------------------------------------------------

def test_silent_filters_take_their_batch_norm_along():
    plan, student = make_plan(structure="filter", sparsity=0.5, lr=0.05)
    state = finish(plan, loop.begin(plan, student))
    student = state.student.eval()
    silent = student.conv.weight.detach().flatten(1).abs().sum(1) == 0
    assert int(silent.sum()) == 3
    assert not student.bn.weight[silent].any() and not student.bn.bias[silent].any()
    assert student.bn.weight[~silent].all()
    with layers.capture(student, ["relu"]) as hidden:
        student(torch.rand(4, 1, 8, 8))
        assert not hidden[0][:, silent].any()


def test_a_shared_batch_norm_is_silent_only_where_both_filters_are():
    plan, student = make_plan(structure="filter", sparsity=0.5)
    student.add_module("twin", nn.Conv2d(1, 6, 3, bias=False))
    both = {n: student.get_parameter(n) for n in ("conv.weight", "twin.weight")}
    plan = replace(plan, groups=STRUCTURES["filter"].groups(both, dict.fromkeys(both, ("bn.weight",)), {},
                                                         {}))
    found = masks.moved(plan, loop.begin(plan, student), 0.5, no_slopes)
    rows = [found[n].flatten(1).any(1) for n in plan.weights]
    assert torch.equal(found["bn.weight"], rows[0] | rows[1])


def test_masks_grow_from_those_of_a_sparse_student(monkeypatch):
    """No weight that it had lost comes back on the way, whatever the first sparsity of a ramp from dense."""
    first, student = make_plan(sparsity=0.6, allocation="lamp")
    student = finish(first, loop.begin(first, student)).student
    gone = {n: student.get_parameter(n).detach() == 0 for n in first.weights}
    moves = []
    on_move(monkeypatch, lambda state, found, _slopes: moves.append({n: found[n] for n in first.weights}))
    plan = replace(first, sparsity=0.8, begun=0.6)
    state = finish(plan, loop.begin(plan, student))
    assert len(moves) == 4 and all(not (m[n] & gone[n]).any() for m in moves for n in m)
    cut = [sum(int((~mask).sum()) for mask in move.values()) for move in moves]
    total = sum(g.numel() for g in gone.values())
    assert cut == [round((0.6 + 0.2 * (1 - (1 - k / 4) ** 3)) * total) for k in (1, 2, 3, 4)]
    assert zeros(state, plan.weights) == (round(0.8 * total), total)


# --- growing back -------------------------------------------------------------------------------------------

def test_pruned_weights_come_back_where_the_loss_asks_for_them(monkeypatch):
    plan, student = make_plan(regrow=0.5, allocation="uniform", mask_updates=8, noise="none")
    state, back, quotas = loop.begin(plan, student), [], []

    def look(state, found, _slopes):
        # the extra pass leaves no trace
        assert all(torch.equal(b, old_buffers[n]) for n, b in state.student.named_buffers())
        if state.masks:
            grown = {n: found[n] & ~state.masks[n] for n in plan.weights}
            back.append(sum(int(m.sum()) for m in grown.values()))
            assert all(not state.student.get_parameter(n)[m].any() for n, m in grown.items())  # from zero on
        quotas.append(sum(int((~found[n]).sum()) for n in plan.weights))

    on_move(monkeypatch, look)
    while state.step < plan.sparsify_steps:
        old_buffers = {n: b.clone() for n, b in state.student.named_buffers()}
        state, _ = loop.step(plan, state)
    assert sum(back) > 0
    ramp = [masks.sparsity_at(plan, s) for s in range(plan.sparsify_steps)]
    assert quotas == [round(sparsity * 702) for sparsity in ramp]  # the ramp is exact


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_that_come_back_bring_no_momentum(optimizer, monkeypatch):
    """Gradients reach masked weights too: what they added up must not push a weight that grows."""
    plan, student = make_plan(regrow=0.5, allocation="uniform", mask_updates=8, optimizer=optimizer)
    state, back = loop.begin(plan, student), []

    def look(state, found, _slopes):
        for number, (name, parameter) in enumerate(state.student.named_parameters()):
            if state.masks and name in plan.weights:
                grown = found[name] & ~state.masks[name]
                back.append(int(grown.sum()))
                for key, kept in state.optimizer.state[parameter].items():
                    if kept.shape == parameter.shape:
                        assert not kept[grown].any() and torch.equal(kept[~grown], old[number][key][~grown])

    on_move(monkeypatch, look)
    while state.step < plan.sparsify_steps:
        old = copy.deepcopy(state.optimizer.state_dict()["state"])
        state, _ = loop.step(plan, state)
    assert sum(back) > 0


# --- reconstruction -----------------------------------------------------------------------------------------

def test_a_start_by_reconstruction_has_all_masks_at_once():
    plan, student = make_plan(start="obs")
    state, counts = loop.begin(plan, student), set()
    while state.step < plan.steps:
        state, _ = loop.step(plan, state)
        counts.add(zeros(state, plan.weights)[0])
    assert counts == {round(0.8 * 702)}


def test_a_start_by_reconstruction_is_nearer_to_the_teacher():
    """Right after the masks; measured once: KL 0.004 after reconstruction, 0.017 after magnitude."""
    found = []
    for fields in ({"start": "obs"}, {"mask_updates": 1}):
        plan, _ = make_plan(**fields)
        varied = [inputs.batch(plan, step).x for step in range(8)]
        averaging.reestimate(plan.teacher, varied)  # statistics of its own inputs, as a trained network has
        state = loop.begin(plan, copy.deepcopy(plan.teacher))
        masks.moved(plan, state, masks.sparsity_at(plan, 0), no_slopes)
        averaging.reestimate(state.student, varied)
        with torch.no_grad():
            made, told = state.student(varied[0]), plan.teacher(varied[0])
            found.append(distill.kl(made, told, temperature=1.0).item())
    assert found[0] < 0.5 * found[1]


# --- curves -------------------------------------------------------------------------------------------------

def test_curves_are_the_divergence_without_a_layer_s_weakest():
    plan, student = make_plan(allocation="sensitivity", temperature=2.0)
    before = {n: t.clone() for n, t in student.state_dict().items()}
    curves = loop.begin(plan, student).curves
    assert all(torch.equal(t, before[n]) for n, t in student.state_dict().items())
    batches = inputs.calibration(plan)
    assert len(batches) == 32 and torch.equal(batches[0], inputs.images(plan, plan.steps)[0])
    for name in plan.weights:
        total = student.get_parameter(name).numel()
        assert [n for n, _ in curves[name]][:4] == [0] + [total - int(total * d) for d in (0.5, 0.25, 0.125)]
        lost, damage = curves[name][2]
        twin = copy.deepcopy(student).eval()
        twin.get_parameter(name).data = project(student.get_parameter(name), lost)
        with torch.no_grad():
            terms = [4 * distill.kl(twin(x), plan.teacher(x), temperature=2.0) for x in batches]
            want = torch.stack(terms).mean()
        assert damage == pytest.approx(want.item(), abs=1e-6)
        assert curves[name][-1][0] == student.get_parameter(name).numel() - 1


def test_filters_are_measured_with_their_companions():
    plan, student = make_plan(allocation="sensitivity", structure="filter", sparsity=0.5)
    (lost, damage), twin = loop.begin(plan, student).curves["conv.weight"][1], copy.deepcopy(student).eval()
    keep = keep_mask(student.conv.weight, lost, "filter")
    alive = keep.flatten(1).any(1)
    for parameter, mask in ((twin.conv.weight, keep), (twin.bn.weight, alive), (twin.bn.bias, alive)):
        parameter.data = parameter.detach() * mask
    with torch.no_grad():
        batches = inputs.calibration(plan)
        terms = [16 * distill.kl(twin(x), plan.teacher(x), temperature=4.0) for x in batches]
        want = torch.stack(terms).mean()
    assert damage == pytest.approx(want.item(), abs=1e-6)
