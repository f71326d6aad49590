"""The saved student: averages of weights by their definition, batch-norm statistics by the batches."""
import pytest
import torch
from helpers import small_models as small
from helpers.plans import finish, make_plan

from pwoa_cli.training import averaging, inputs, loop


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_is_the_weighted_mean_of_its_members(decay):
    models = [small.resnet() for _ in range(6)]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(number))
    state = {}
    for count, model in enumerate(models, 1):
        state = averaging.moved(state, model, decay=decay, count=count)
    factors = torch.tensor([decay ** (len(models) - 1 - i) for i in range(len(models))], dtype=torch.double)
    for name, tensor in state.items():
        members = torch.stack([m.state_dict()[name] for m in models])
        mean = torch.tensordot(factors / factors.sum(), members.double(), 1)
        want = mean if tensor.is_floating_point() else members[-1]
        assert torch.allclose(tensor.double(), want.double(), atol=1e-6), name


def test_the_average_begins_when_the_masks_are_fixed():
    plan, student = make_plan(ema=0.9)
    state, kept = loop.begin(plan, student), []
    while state.step < plan.steps:
        state, _ = loop.step(plan, state)
        assert (state.average is None) == (state.step <= plan.sparsify_steps)
        if state.average is not None:
            kept.append(state.student.fc.weight.detach().clone())
    factors = torch.tensor([0.9 ** (len(kept) - 1 - i) for i in range(len(kept))])
    loop.finish(plan, state)
    want = torch.tensordot(factors / factors.sum(), torch.stack(kept), 1)
    assert torch.allclose(state.student.fc.weight, want, atol=1e-6)


@pytest.mark.parametrize("kind", ["varied", "clean"])
def test_reestimated_statistics_are_those_of_the_batches(kind):
    plan, student = make_plan(bn_reestimate=3, bn_inputs=kind)
    state = finish(plan, loop.begin(plan, student))
    steps = range(plan.steps, plan.steps + 3)
    batches = [inputs.batch(plan, s).x if kind == "varied" else inputs.images(plan, s)[0] for s in steps]
    with torch.no_grad():
        out = [state.student.conv(x) for x in batches]
    mean, var = (torch.stack([of(z, (0, 2, 3)) for z in out]).mean(0) for of in (torch.mean, torch.var))
    assert torch.allclose(state.student.bn.running_mean, mean, atol=1e-6)
    assert torch.allclose(state.student.bn.running_var, var, rtol=1e-4)
    assert not state.student.training and state.student.bn.momentum == 0.1
    assert torch.equal(batches[0], inputs.images(plan, plan.steps)[0]) == (kind == "clean")


def test_statistics_are_taken_of_the_average_and_not_averaged():
    plan, student = make_plan(ema=0.9, bn_reestimate=2, lr=0.1)
    state = finish(plan, loop.begin(plan, student))
    with torch.no_grad():
        out = [state.student.conv(inputs.batch(plan, s).x) for s in range(plan.steps, plan.steps + 2)]
    assert torch.equal(state.student.conv.weight, state.average["conv.weight"])
    mean = torch.stack([z.mean((0, 2, 3)) for z in out]).mean(0)
    assert torch.allclose(state.student.bn.running_mean, mean, atol=1e-6)
    assert not torch.allclose(state.student.bn.running_mean, state.average["bn.running_mean"], atol=1e-3)
