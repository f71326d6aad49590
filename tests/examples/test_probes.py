"""examples/benchmarks/probes.py: what it prunes, trains and prints."""
import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import faults
from helpers.small_models import learn, lenet
from torch import nn

from pwoa_cli.networks.families import FAMILIES

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/probes.py"
spec = importlib.util.spec_from_file_location("probes", SCRIPT)
probes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probes)


@pytest.mark.parametrize("channels, side", [(1, 28), (3, 32)])
def test_every_family_is_tried_and_answers(channels, side):
    made = dict(probes.networks(channels, side))
    general = {name for name, family in FAMILIES.items() if family.general}  # there as "cnn,", "mlp"
    assert {name.split(" ")[0] for name in made} == {*FAMILIES, "cnn,", "mlp"} - general
    for make in made.values():
        assert make()(torch.rand(2, channels, side, side)).shape == (2, 10)


def test_pruning_keeps_the_largest_weights_and_training_leaves_the_rest_zero():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 4))
    masks = probes.largest(net, 0.9)
    kept = [int(mask.sum()) for mask in masks.values()]
    assert kept == [320, 200]  # 10% of 3200; LEAST of 200
    weight, mask = net[1].weight, masks[net[1].weight]
    assert weight[mask == 1].abs().min() >= weight[mask == 0].abs().max()
    x, y = faults.samples()
    probes.train(net, x, y, steps=3, masks=masks)
    assert not net.training and all(int((w != 0).sum()) <= k for w, k in zip(masks, kept, strict=True))


def test_a_row_says_what_the_probes_say(capsys):
    net, (x, y) = learn(lenet(num_classes=10)), faults.samples()
    assert probes.in_both("honest", net, x, y) == [False, False]
    assert probes.row("turned", probes.Around(net, lambda net, x: 2 * net(x).detach() - net(x)), x, y)
    honest, half, turned = capsys.readouterr().out.splitlines()
    assert honest.startswith("| honest, float32 | ") and honest.endswith("| nothing |")
    assert half.startswith("| honest, bfloat16 | ") and turned.endswith("| wrong-gradients |")
    assert len({line.count("|") for line in (honest, half, turned)} | {len(probes.HEAD) + 1}) == 1
