"""One contract for what is pruned: groups, criteria and allocations are tables, and an entry from outside is
enough to prune by it."""
import copy
from itertools import product

import pytest
import torch
from helpers.plans import plan_for
from torch import nn

from pwoa_cli.data.datasets import Split
from pwoa_cli.pruning.allocation import ALLOCATIONS, quotas
from pwoa_cli.pruning.criteria import CRITERIA
from pwoa_cli.pruning.groups import (
    STRUCTURES,
    Groups,
    Part,
    Structure,
    companion_masks,
    kept,
    masks,
    one_each,
    scores_by_layer,
)
from pwoa_cli.training import loop
from pwoa_cli.training.recipe import choices, read_recipe

WEIGHTS = {"conv.weight": (8, 2, 3, 3), "fc.weight": (4, 32)}
# a channel of the convolution feeds four inputs of the linear layer
COUPLED = {"conv.weight": {"conv.weight": {0: range(8)}, "fc.weight": {1: [i // 4 for i in range(32)]}}}


def weights(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in WEIGHTS.items()}


def steep(seed=1):
    """Slopes that a loss might have."""
    return {name: w.abs() for name, w in weights(seed).items()}


# --- entries from outside ---------------------------------------------------------------

def least_index(weights, _slopes):
    """A criterion: later weights are worth more."""
    return {name: torch.arange(w.numel(), dtype=w.dtype).view(w.shape) for name, w in weights.items()}


def by_slope(weights, slopes):
    """A criterion that asks for the loss's gradient: |w g| (first-order Taylor, Molchanov et al. 2017)."""
    found = slopes()
    return {name: (w.detach() * found[name]).abs() for name, w in weights.items()}


def all_in_the_largest(groups, scores, target, curves):
    """An allocation: the largest layer pays, the others what is left."""
    lost = {}
    for layer in sorted(groups, key=lambda name: -groups[name].weights):
        lost[layer] = min(groups[layer].count - 1, round(target / groups[layer].size))
        target -= lost[layer] * groups[layer].size
    return lost


def two_of_four(weights, companions, transposed, coupled):
    """A structure with a constraint: of four neighbours along the input as many go everywhere."""
    return {name: Groups({name: Part(tuple(w.shape), (w.numel(),), (0,))}, block=4)
            for name, w in weights.items()}


def tied(weights, companions, transposed, coupled):
    """A structure over two tensors: a filter of the convolution goes with the inputs that it feeds in the
    linear layer."""
    names = iter(weights.items())
    (conv, w), (fc, v) = next(names), next(names)
    out = w.shape[0]
    parts = {conv: Part(tuple(w.shape), (out, w[0].numel()), (0,)),
             fc: Part(tuple(v.shape), (len(v), out, v.shape[1] // out), (1,))}
    return {conv: Groups(parts, dict.fromkeys(companions.get(conv, ()), one_each(out)))}


@pytest.fixture
def outside(monkeypatch):
    """The tables with an entry more, or several, each."""
    for table, entries in ((CRITERIA, {"toy": least_index, "toy-slope": by_slope}),
                           (ALLOCATIONS, {"toy": all_in_the_largest}),
                           (STRUCTURES,
                            {"toy-2:4": Structure(two_of_four), "toy-tied": Structure(tied, silences=True)})):
        for name, entry in entries.items():
            monkeypatch.setitem(table, name, entry)


# --- over the tables --------------------------------------------------------------------

@pytest.mark.usefixtures("outside")
def test_every_structure_criterion_and_allocation_prune_what_the_groups_say():
    """Whole groups go, as many as the quota says, the lowest scores of each layer; checked against plain
    Python."""
    seen = 0
    for kind, measure, method in product(STRUCTURES, CRITERIA, ALLOCATIONS):
        given = weights()
        groups = STRUCTURES[kind].groups(given, {}, {}, COUPLED)
        values = CRITERIA[measure](given, steep)
        scores = scores_by_layer(groups, values)
        curves = {layer: [(0, 0.0), (group.count // 2, 1.0), (group.count - 1, 3.0)]
                  for layer, group in groups.items()}
        lost = quotas(groups, scores, 0.5, method=method, curves=curves)
        assert all(0 <= lost[layer] < group.count for layer, group in groups.items())
        zeros = sum(lost[layer] * group.size for layer, group in groups.items())
        total = sum(w.numel() for w in given.values())
        assert abs(zeros - total / 2) <= max(group.size for group in groups.values())
        flags = kept(groups, scores, lost)
        found = masks(groups, flags)
        for layer, group in groups.items():
            by_hand = [sum(values[name][~part.spread(torch.arange(group.count) != g)].double().sum().item()
                           for name, part in group.parts.items()) for g in range(group.count)]
            assert scores[layer].tolist() == pytest.approx(by_hand, rel=1e-5)
            if not group.block:
                gone = sorted(range(group.count), key=lambda g: (scores[layer][g].item(), g))[: lost[layer]]
                assert (~flags[layer]).nonzero().flatten().tolist() == sorted(gone)
        assert sum(int((~mask).sum()) for mask in found.values()) == sum(
            int((~flags[layer]).sum()) * group.size for layer, group in groups.items())
        seen += 1
    assert seen == len(STRUCTURES) * len(CRITERIA) * len(ALLOCATIONS) >= 5 * 3 * 6


@pytest.mark.usefixtures("outside")
def test_blocks_lose_as_many_each_and_their_lowest():
    given = weights()
    groups = STRUCTURES["toy-2:4"].groups(given, {}, {}, COUPLED)
    scores = scores_by_layer(groups, CRITERIA["magnitude"](given, steep))
    found = masks(groups, kept(groups, scores, quotas(groups, scores, 0.5, method="uniform")))
    for name, w in given.items():
        for mask, values in zip(found[name].view(-1, 4).tolist(), w.view(-1, 4).abs().tolist(), strict=True):
            assert sorted(range(4), key=lambda i: values[i])[2:] == [i
                                                                     for i in sorted(range(4),
                                                                                     key=lambda i: values[i])
                                                                                     if mask[i]]


@pytest.mark.usefixtures("outside")
def test_a_group_over_two_tensors_falls_in_both_at_once():
    given = weights()
    groups = STRUCTURES["toy-tied"].groups(given, {"conv.weight": ("bn.weight",)}, {}, {})
    group = groups["conv.weight"]
    assert (group.count, group.size, group.weights) == (8, 18 + 16, 8 * 34)
    flags = {"conv.weight": torch.tensor([True, False] * 4)}
    found = masks(groups, flags)
    assert [bool(row.any()) for row in found["conv.weight"]] == [True, False] * 4
    assert found["fc.weight"].view(4, 8, 4).any((0, 2)).tolist() == [True, False] * 4
    assert companion_masks(groups, flags)["bn.weight"].tolist() == [True, False] * 4


def test_a_weight_of_two_groups_needs_both():
    part = Part((2, 2), (2, 2), (0,)), Part((2, 2), (2, 2), (1,))
    groups = {"rows": Groups({"w": part[0]}), "columns": Groups({"w": part[1]})}
    found = masks(groups, {"rows": torch.tensor([True, False]), "columns": torch.tensor([True, True])})
    assert found["w"].tolist() == [[True, True], [False, False]]
    found = masks(groups, {"rows": torch.tensor([True, False]), "columns": torch.tensor([False, True])})
    assert found["w"].tolist() == [[False, True], [False, False]]


# --- through training and the command ---------------------------------------------------

class Net(nn.Module):
    """A filter of `conv` feeds 4 x 4 inputs of `fc`."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 8, 3, padding=1,
                                                stride=2), nn.BatchNorm2d(8), nn.Linear(128, 3)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().flatten(1))


def toy_plan(structure="unstructured", **fields):
    torch.manual_seed(0)
    net = Net().eval()
    split = Split(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 3)
    recipe = read_recipe("default", data="other", overrides={
        "epochs": 2, "batch_size": 16, "mask_updates": 3, "hidden_weight": 0, "lambda_x": 0, "lambda_y": 0,
        "cutmix": 0, "precision": "float32", **fields})
    return plan_for(net, teacher=net, recipe=recipe, split=split, sparsity=0.5,
                    weights=("conv.weight", "fc.weight"),
                    companions={"conv.weight": ("conv.bias", "bn.weight", "bn.bias")}, structure=structure,
                    hidden=(),
                    num_classes=3), copy.deepcopy(net)


def test_a_criterion_and_an_allocation_from_outside_prune_a_network(outside):
    plan, student = toy_plan(criterion="toy", allocation="toy")
    loop.run(plan, loop.begin(plan, student), report=lambda *_: None)
    gone = (student.fc.weight == 0).flatten()
    assert int(gone.sum()) == round(0.5 * (8 * 9 + 384))
    assert gone[: int(gone.sum())].all() and student.conv.weight.all()


def test_a_criterion_that_asks_for_slopes_gets_those_of_the_loss(outside, monkeypatch):
    asked = []
    monkeypatch.setitem(CRITERIA, "toy-slope", lambda weights, slopes: asked.append(slopes())
                        or by_slope(weights, slopes))
    plan, student = toy_plan(criterion="toy-slope")
    loop.run(plan, loop.begin(plan, student), report=lambda *_: None)
    assert all(set(slopes) == {"conv.weight", "fc.weight"}
               for slopes in asked) and asked[0]["fc.weight"].abs().sum() > 0
    assert (sum(int((p == 0).sum()) for p in (student.conv.weight, student.fc.weight)) == round(0.5
                                                                                                * (8 * 9
                                                                                                   + 384)))


@pytest.mark.parametrize("method", ["ramp", "admm"])
@pytest.mark.parametrize(("structure", "allocation"), [("toy-2:4", "uniform"), ("toy-tied", "lamp")])
def test_a_structure_from_outside_prunes_a_network(outside, structure, allocation, method):
    plan, student = toy_plan(structure, allocation=allocation, method=method)
    loop.run(plan, loop.begin(plan, student), report=lambda *_: None)
    if structure == "toy-2:4":
        assert all(((w.view(-1, 4) == 0).sum(1) == 2).all() for w in (student.conv.weight, student.fc.weight))
    else:
        alive = student.conv.weight.flatten(1).any(1)
        assert int(alive.sum()) == 4 and torch.equal(student.fc.weight.view(3, 8, 16).any(2).any(0), alive)
        assert torch.equal(student.bn.weight != 0, alive) and torch.equal(student.bn.bias != 0, alive)


def test_the_command_knows_what_was_added(outside, here, pwoa):
    code, out, err = pwoa("prune", "model.pt", "--sparsity", "0.5", "--structure", "toy-2:4", "--set",
                          "criterion=toy-slope",
                          "--set", "allocation=uniform", "--data", "tiny.npz", "--eps", "0.5", "--n", "20",
                          "--epochs", "0.1",
                          "--batch-size", "16", "--attacks", "fgsm", "--out", "run")
    assert code == 0 and "50% wanted, 50% reached (toy-2:4" in out, err
    code, _, err = pwoa("prune", "model.pt", "--sparsity", "0.5", "--set", "criterion=toi", "--data",
                        "tiny.npz")
    assert code == 2 and "criterion = 'toi', expected one of magnitude, toy, toy-slope" in err


def test_choices_are_those_of_the_tables():
    assert choices()["criterion"] == tuple(CRITERIA) and choices()["allocation"] == (*ALLOCATIONS, "auto")
