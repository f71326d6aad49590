"""What a step asks of a device: launches that do not grow with the layers, no stop of the host; and that the
one way over all layers computes what the loops did."""
import copy
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.plans import make_plan
from torch import nn

from pwoa_cli.machine import seeds
from pwoa_cli.pruning import admm
from pwoa_cli.training import augmentation, loop, masks
from pwoa_cli.training.recipe import Recipe
from pwoa_cli.training.state import from_dict, masked, optimizer_for, to_dict

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/train_step.py"
spec = importlib.util.spec_from_file_location("train_step", SCRIPT)
train_step = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train_step)


def deep(layers):
    """A network of so many layers."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(6, 6) for _ in range(layers)])


# --- counts -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fields", [
    {"optimizer": "adam"}, {"optimizer": "sgd"}, {"optimizer": "adam", "noise": "blocks+lowpass"},
    {"optimizer": "adam", "lambda_x": 0.1, "lambda_y": 0.2, "hidden_weight": 1.0},
    {"method": "admm"}])
def test_a_step_has_one_launch_for_all_layers_and_no_stop(fields):
    plan, student = make_plan(**fields)
    state, _ = loop.step(plan, loop.begin(plan, student))
    _, count = train_step.counts(plan, state)
    assert count.launches["optimiser"] <= 2 and count.launches["masks"] <= 2
    host = ("forward and loss",) * (plan.recipe.lambda_x > 0)  # one_hot looks at its labels, on a CPU alone
    assert not [part for part in count.stops if part not in ("batch", "other", *host)]


@pytest.mark.parametrize("layers", [2, 20])
def test_the_penalty_has_as_many_launches_for_two_layers_as_for_twenty(layers):
    weights = {name: p for name, p in deep(layers).named_parameters() if p.ndim == 2}
    splitting = admm.Admm({n: w.detach() / 2 for n, w in weights.items()},
                          {n: torch.ones_like(w) for n, w in weights.items()}, rho=0.3)
    with train_step.Count() as count:
        admm.penalty(splitting, weights)
    assert count.launches.total() <= 8


def test_noise_of_a_gpu_has_its_size_from_the_host():
    """A stand-in for the generator of a GPU, which the host would wait for."""
    seeded = [seeds.number(3, "inputs", step) for step in range(60)]
    gpu = [SimpleNamespace(device=torch.device("cuda"), initial_seed=lambda seed=seed: seed)
           for seed in seeded]
    sides = [augmentation._side(0, 3, one) for one in gpu]
    assert sides == [augmentation._side(0, 3, one) for one in gpu] and set(sides) == {1, 2, 4}


def test_the_table_has_a_line_for_each_part():
    plan, student = make_plan()
    state, count = train_step.counts(plan, loop.begin(plan, student))
    state, taken = train_step.milliseconds(plan, state, 2)
    lines = train_step.table(count, taken).splitlines()
    assert len(lines) == 2 + len(train_step.PARTS) + 3 and " ms a step" in lines[-1]


# --- the optimiser ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "plain"), [
    ("adam", lambda p: torch.optim.Adam(p, lr=1e-2)),
    ("sgd", lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fused_optimiser_steps_as_the_plain_one(name, plain, layout):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 3))
    net, x = net.to(memory_format=layout).double(), torch.rand(50, 8, 3, 8, 8, dtype=torch.double)
    other = copy.deepcopy(net)
    ours, theirs = optimizer_for(Recipe(optimizer=name), net, 1e-2), plain(list(other.parameters()))
    assert ours.defaults["fused"] is True
    for step in range(50):
        for model, optimizer in ((net, ours), (other, theirs)):
            optimizer.zero_grad()
            model(x[step]).square().mean().backward()
            optimizer.step()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("entries", [torch.rand(8, 6)[::2], torch.rand(6)[::3], torch.rand(4, 6)[:, 1:]])
def test_parameters_with_gaps_are_stepped_over_rightly(entries):
    """torch's fused step on a CPU walks through memory, whatever lies there."""
    net = nn.Module()
    net.w = nn.Parameter(entries)
    want = nn.Parameter(entries.clone())
    plain = torch.optim.SGD([want], lr=0.1, momentum=0.9)
    ours = optimizer_for(Recipe(optimizer="sgd"), net, 0.1)
    for w, optimizer in ((net.w, ours), (want, plain)):
        w.square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(net.w.detach(), want.detach())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_state_goes_on_in_another_layout_and_from_another_way_to_step(optimizer):
    """Kept on a machine with another layout, or by a version that did not fuse."""
    plan, student = make_plan(optimizer=optimizer)
    state = loop.begin(plan, copy.deepcopy(student))
    for _ in range(4):
        state, _ = loop.step(plan, state)
    saved = copy.deepcopy(to_dict(state))
    for group in saved["optimizer"]["param_groups"]:
        group["fused"] = None
    for sums in saved["optimizer"]["state"].values():
        for name, value in sums.items():
            if value is not None and value.ndim == 4:  # (6, 1, 3, 3), with the filters innermost
                sums[name] = torch.empty(3, 3, 1, 6).permute(3, 2, 0, 1).copy_(value)
    again = from_dict(plan, copy.deepcopy(student), saved)
    assert all(group["fused"] for group in again.optimizer.param_groups)
    for _ in range(4):
        (state, _), (again, _) = loop.step(plan, state), loop.step(plan, again)
    for name, tensor in state.student.state_dict().items():
        torch.testing.assert_close(again.student.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


# --- masks --------------------------------------------------------------------------------------------------

def test_masks_hold_between_their_moves_with_positive_zeros():
    plan, student = make_plan()
    state = loop.begin(plan, student)
    found = {"conv.weight": torch.rand(6, 1, 3, 3) < 0.5, "bn.bias": torch.rand(6) < 0.5}
    before = {name: p.detach().clone() - 3 for name, p in student.named_parameters()}  # products leave -0.0
    for name, p in student.named_parameters():
        p.data.copy_(before[name])
    masks.hold(student, masked(state, found).factors)
    for name, p in student.named_parameters():
        want = before[name].masked_fill(~found[name], 0.0) if name in found else before[name]
        assert torch.equal(p, want) and not p.detach()[p.detach() == 0].signbit().any()


def test_the_penalty_is_that_of_its_formula_and_so_is_its_gradient():
    torch.manual_seed(0)
    weights = [torch.randn(3, 4, dtype=torch.double, requires_grad=True),
               torch.randn(5, dtype=torch.double, requires_grad=True)]
    z, u = ({"a": torch.randn(3, 4).double(), "b": torch.randn(5).double()} for _ in range(2))
    splitting = admm.Admm(z, u, rho=0.7)

    def penalty(a, b):
        return admm.penalty(splitting, {"a": a, "b": b})

    want = sum(0.35 * (w - z[n] + u[n]).square().sum() for n, w in zip("ab", weights, strict=True))
    torch.testing.assert_close(penalty(*weights), want)
    assert torch.autograd.gradcheck(penalty, weights)
