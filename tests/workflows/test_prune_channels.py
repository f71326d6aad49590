"""Pruning whole channels: budgets of weights and of channels, what is refused before the first step."""
import re
from pathlib import Path

import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import FAST, refused, request, run_in
from torch import nn

import pwoa_cli
from pwoa_cli.networks import channels, layers
from pwoa_cli.networks.families.resnet import CifarResNet
from pwoa_cli.training.state import plan_steps
from pwoa_cli.workflows.prune_job import prepare


def silent(path, *, colours):
    model = pwoa_cli.load(path)
    sets, odd = channels.found(model, torch.rand(2, colours, 8, 8))
    found = channels.silent(model, sets)
    return sum(int(f.sum()) for f in found.values()), sum(len(f) for f in found.values()), odd


@pytest.mark.parametrize(("model", "colours"), [("lenet.pt", 1), ("resnet.pt", 3)])
def test_a_fraction_of_the_channels_goes(tmp_path, model, colours):
    made, said = run_in(tmp_path / "run", model, structure="channel", channels=0.5, sparsity=0.5)
    gone, count, odd = silent(tmp_path / "run/model.safetensors", colours=colours)
    assert gone == round(0.5 * count) and not odd
    assert "50% of the channels" in said and f"--channels 0.5 took {gone} of them" in " ".join(made["notes"])
    sparsity = made["sparsity"]
    assert sparsity["structure"] == "channel" and sparsity["target"] == sparsity["achieved"]
    assert sparsity["achieved"] > 0.5  # a half of both rows and columns


@pytest.mark.parametrize(("model", "image"), [("lenet.pt", (1, 8, 8)), ("resnet.pt", (3, 8, 8))])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_a_fraction_of_the_multiplications_goes(tmp_path, model, image, share):
    """Counted of the network in which the silent channels are not there any more."""
    made, said = run_in(tmp_path / "run", model, structure="channel", macs=share, sparsity=0.5)
    assert f"{100 * share:g}% of the multiplications" in said
    assert f"--macs {share:g} says how many go" in " ".join(made["notes"])
    x = torch.rand(2, *image)
    pruned = pwoa_cli.load(tmp_path / "run/model.safetensors")
    sets, _ = channels.found(pruned, x)
    slim = layers.macs(channels.without(pruned, sets, channels.silent(pruned, sets)), x)["dense"]
    assert slim == made["macs"]["nonzero"]
    counts = [1 + max(max(side.channels) for side in sides) for sides in sets.values()]
    assert abs(slim / made["macs"]["dense"] - (1 - share)) <= 1 / min(counts) / 2


@pytest.mark.parametrize("budget", [{"channels": 0.5}, {"macs": 0.5}, {}], ids=str)
def test_default_epochs_name_the_zeros_that_they_are_for(budget):
    """Half of the channels is more than half of the weights."""
    asked = request(structure="channel", sparsity=0.5, overrides={"batch_size": "32"}, **budget)
    said = []
    plan = prepare(asked, say=said.append).plan
    (percent,) = re.findall(r"the default of recipe default at ([\d.]+)% sparsity", "\n".join(said))
    of_it = plan_steps(plan.recipe, len(plan.split), float(percent) / 100)
    assert abs(of_it[2] - plan.steps) <= 1 and (percent == "50") == (not budget)


@pytest.mark.parametrize("fields", [
    {"allocation": "uniform"}, {"allocation": "lamp"}, {"allocation": "sensitivity"},
    {"method": "admm", "allocation": "uniform"}, {"mask_updates": "1"}], ids=str)
def test_a_fraction_of_the_weights_goes(tmp_path, fields):
    made, _ = run_in(tmp_path / "run", structure="channel", sparsity=0.6, overrides=FAST | fields)
    largest = 4 * 8 * 4 + 9 * 4 * 9  # more than a channel of any set takes
    assert made["sparsity"]["total"] == 36 + 288 + 512 + 64  # the logits' layer counts: its columns may go
    assert abs(made["sparsity"]["achieved"] - 0.6) * 900 < largest / 4
    assert silent(tmp_path / "run/model.safetensors", colours=1)[0]


def test_what_does_not_fit_is_refused_with_the_layer():
    torch.manual_seed(0)
    net = CifarResNet(blocks=(1, 1, 1), widths=(4, 8, 8), shortcut="pad", num_classes=small.CLASSES)
    small.save(small.learn(net, channels=3), "pad.pt")
    text = refused("pad.pt", structure="channel", data="colour.npz", sparsity=0.5)
    assert "the channels of conv1.weight" in text and "does not fit" in text
    assert prepare(request("pad.pt", structure="filter", data="colour.npz", sparsity=0.5),
                   say=lambda text: None)


@pytest.mark.parametrize(("budget", "kind"), [({"channels": 0.5}, "channel"), ({"macs": 0.5}, "channel"),
                                             ({}, "unstructured")])
def test_a_budget_of_channels_implies_them(budget, kind):
    said = []
    job = prepare(request(**budget), say=said.append)
    assert job.request.structure == kind
    told = [line for line in said if line.startswith("structure: ")]
    assert told == [f"structure: channel (--{name} is of whole channels)" for name in budget]
    assert not any(line.startswith("structure: ") for line in _said(structure=kind, **budget))


def _said(**options):
    said = []
    prepare(request(**options), say=said.append)
    return said


@pytest.mark.parametrize(("options", "sentence"), [
    ({"channels": 0.5, "structure": "unstructured"}, "--channels is for whole channels; --structure is uns"),
    ({"channels": 0.01, "structure": "channel"}, "--channels 0.01 of the 28 channels of lenet.pt is less"),
    ({"channels": 0.97, "structure": "channel"}, "must stay in each of 3 coupled sets: at most 89.3%"),
    ({"macs": 0.5, "structure": "filter"}, "--macs is for whole channels; --structure is filter"),
    ({"macs": 0.001, "structure": "channel"}, "multiplications of lenet.pt is less than one channel"),
    ({"macs": 0.999, "structure": "channel"}, "99.9% of its multiplications cannot go"),
    ({"sparsity": 0.998, "structure": "channel"}, "cannot be reached with whole channels"),
    ({"structure": "channel", "overrides": FAST | {"regrow": "0.1"}}, "regrow cannot bring whole channels"),
    ({"structure": "channel", "overrides": FAST | {"start": "obs"}}, "start = 'obs'")])
def test_budgets_that_cannot_be_had(options, sentence):
    assert sentence in refused(**options)


FROZEN = """
from pwoa_cli.networks.families.small import LeNet
def net():
    made = LeNet(size=8, widths=(4, 8), hidden=16, num_classes=4)
    made.conv2.weight.requires_grad_(False)
    return made
"""


def test_frozen_weights_keep_their_channels(tmp_path):
    Path("frozen.py").write_text(FROZEN)
    made, _ = run_in(tmp_path / "run", arch="frozen.py:net", structure="channel", channels=0.5, sparsity=0.5)
    assert "The network has 16 channels that could go, in 1 coupled set." in " ".join(made["notes"])
    pruned = pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")
    before = pwoa_cli.load_state_dict("lenet.pt")
    assert torch.equal(pruned["conv2.weight"], before["conv2.weight"])
    assert int((pruned["linear1.weight"] != 0).any(1).sum()) == 8


def test_a_network_of_one_layer_has_no_channels():
    Path("one.py").write_text("from torch import nn\ndef net():\n"
                              "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n")
    small.save(small.learn(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), "one.pt")
    assert "no channels that could be removed" in refused("one.pt", arch="one.py:net", structure="channel")
