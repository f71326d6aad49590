"""Coupled channels: what is removed is exactly what was zero, as Torch-Pruning itself removes it, in every
family and in networks that concatenate."""
import copy
import subprocess
import sys
import threading

import pytest
import torch
import torch_pruning
from helpers.odd_networks import with_statistics
from torch import nn
from torchvision.models import DenseNet, MobileNetV2

from pwoa_cli.networks import channels, layers
from pwoa_cli.networks.build import Normalized, build
from pwoa_cli.networks.sizes import resize

FAMILIES = {
    "cifar-resnet": {"blocks": (1, 1), "widths": (4, 8), "shortcut": "conv"},
    "preact-resnet": {"blocks": (1, 1), "widths": (4, 8)},
    "wide-resnet": {"blocks": (1, 1, 1), "stem": 4, "widths": (4, 8, 8)},
    "cifar-vgg": {"stages": ((4,), (8, 8), (8,))},
    "lenet5": {"size": 8, "widths": (4, 8), "hidden": 16, "num_classes": 4, "in_channels": 3},
    "plain": {"size": 8, "side": 6, "kernels": (2, 2), "strides": (1, 1), "paddings": (0, 0), "pools": (1, 1),
              "widths": (4, 8), "hidden": (16,), "in_channels": 3}}
LIBRARY = {"densenet": lambda: DenseNet(4, (2, 2), 8, 2, num_classes=5),
           "mobilenet": lambda: MobileNetV2(num_classes=5, width_mult=0.1,
                                            inverted_residual_setting=[[1, 8, 1, 1], [2, 8, 2, 1]])}
X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(name):
    torch.manual_seed(0)
    net = build(name, FAMILIES[name]) if name in FAMILIES else LIBRARY[name]()
    for part in with_statistics(net).modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.3, 0.3)
    return Normalized(net, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval()


def flags(sets, *, seed=0, share=0.5):
    """A share of each set's channels, at random, True."""
    draw, gone = torch.Generator().manual_seed(seed), {}
    for name, sides in sets.items():
        count = 1 + max(max(side.channels) for side in sides)
        gone[name] = torch.zeros(count, dtype=torch.bool)
        gone[name][torch.randperm(count, generator=draw)[: int(share * count)]] = True
    return gone


def zeroed(model, sets, gone, *, columns=True):
    """A copy with the rows of these channels zero, biases, scales and shifts with them."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for key, members in channels.coupled(model, sets).items():
            for name, axes in members.items():
                for axis, index in axes.items():
                    lost = [i for i, channel in enumerate(index) if channel >= 0 and gone[key][channel]]
                    if columns or axis == 0:
                        twin.get_parameter(name).index_fill_(axis, torch.tensor(lost), 0.0)
    return twin


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", [*FAMILIES, *LIBRARY])
def test_removed_channels_are_those_that_were_zero(name):
    model = network(name)
    sets, odd = channels.found(model, X)
    assert sets and not odd
    gone = flags(sets, seed=3)
    for columns in (True, False):
        masked = zeroed(model, sets, gone, columns=columns)
        found = channels.silent(masked, sets)
        assert all(torch.equal(found[key], gone[key]) for key in sets)
        slim = channels.without(masked, sets, found)
        with torch.no_grad():
            torch.testing.assert_close(slim(X), masked(X), atol=1e-5, rtol=0)
            assert not torch.allclose(masked(X), model(X), atol=1e-3)
    assert parameters(slim) < parameters(model)


@pytest.mark.parametrize("name", [*FAMILIES, *LIBRARY])
def test_torch_pruning_removes_the_same(name):
    """Its own pruning of the same indices gives the same network."""
    model = network(name)
    sets, _ = channels.found(model, X)
    gone = flags(sets, seed=4)
    slim, twin = channels.without(model, sets, gone), copy.deepcopy(model)
    names = {module: name for name, module in twin.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(twin, X, verbose=False)
    (head,) = (twin.get_submodule(name) for name in layers.logit_layers(model, X))
    for group in graph.get_all_groups(ignored_layers=[head]):
        root = names[group[0].dep.target.module]
        key = next(key for key, sides in sets.items() if any(
            side.module == root and side.output and side.channels == tuple(range(len(side.channels)))
            for side in sides))
        group.prune(gone[key].nonzero().flatten().tolist())
    assert parameters(slim) == parameters(twin)
    with torch.no_grad():
        torch.testing.assert_close(slim(X), twin(X), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_all_channels_is_a_network_of_half_the_widths(name):
    model = network(name)
    sets, _ = channels.found(model, X)
    halves = {key: [[w // 2 for w in stage] for stage in value] if key == "stages"
              else [w // 2 for w in value] if key in ("widths", "hidden") and not isinstance(value, int)
              else value // 2 if key in ("stem", "hidden") else value
              for key, value in FAMILIES[name].items()}
    slim, want = channels.without(model, sets, flags(sets)), build(name, halves)
    assert {k: t.shape for k, t in slim.net.state_dict().items()} == {
        k: t.shape for k, t in want.state_dict().items()}
    again = build(name, FAMILIES[name])
    resize(again, slim.net.state_dict())
    again.load_state_dict(slim.net.state_dict())
    with torch.no_grad():
        assert torch.equal(Normalized(again.eval(), (0.5,) * 3, (0.2,) * 3)(X), slim(X))


def test_parameters_of_a_slim_lenet_are_the_closed_form():
    model = network("lenet5")
    sets, _ = channels.found(model, X)
    gone = flags(sets)
    for flag, lost in zip(gone.values(), (1, 3, 5), strict=True):
        flag[:] = torch.arange(len(flag)) < lost
    a, b, c = 4 - 1, 8 - 3, 16 - 5
    assert parameters(channels.without(model, sets, gone)) == (
        a * 3 * 9 + a + b * a * 9 + b + c * b * 2 * 2 + c + 4 * c + 4)


def test_what_nobody_hears_may_speak_and_one_channel_stays():
    """A channel whose readers are deaf goes though its filter is not zero; of a dead set one is kept."""
    model = network("lenet5")
    sets, _ = channels.found(model, X)
    first, second, _ = sets
    with torch.no_grad():
        model.get_parameter(second)[:, 2] = 0.0
        assert channels.silent(model, sets)[first].tolist() == [False, False, True, False]
        model.get_parameter(second).zero_()
        assert channels.silent(model, sets)[first].tolist() == [False, True, True, True]


class Odd(nn.Module):
    """A network with one thing that the graph cannot know."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.one, self.two = fault, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=4)
        self.norm = nn.GroupNorm(2, 8) if fault == "groups of a norm" else nn.LayerNorm((8, 8, 8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        h = self.one(x).relu()
        if self.fault == "fixed view":
            h = h.view(-1, 2, 4, 64).flip(1).reshape(-1, 8, 8, 8)
        if self.fault == "padded":
            h = nn.functional.pad(h[:, :4], (0, 0, 0, 0, 2, 2))
        if self.fault == "grouped":
            h = self.grouped(h)
        if "norm" in self.fault:
            h = self.norm(h)
        if self.fault == "halves":
            h = torch.cat([h[:, :4] + h[:, 4:]] * 2, 1)
        out = self.fc(self.two(h).mean((2, 3)))
        return out.detach() if self.fault == "detached" else out


@pytest.mark.parametrize(("fault", "sentence"), [
    ("fixed view", "does not run without"), ("padded", ""),
    ("grouped", "grouped has its filters in 4 groups"),
    ("norm", "norm (LayerNorm) normalises over them"),
    ("groups of a norm", "norm (GroupNorm) normalises over them"), ("halves", "")])
def test_what_does_not_fit_is_told_and_the_rest_found(fault, sentence):
    torch.manual_seed(0)
    model = Normalized(Odd(fault)).eval()
    before = copy.deepcopy(model.state_dict())
    try:
        sets, odd = channels.found(model, X)
    except ValueError as error:
        assert sentence in str(error)
        return
    odd.pop("net.grouped.weight", None)
    assert list(odd) == ["net.one.weight"] and sentence in odd["net.one.weight"], odd
    assert list(sets) == ["net.two.weight"]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_what_cannot_be_copied_or_has_no_gradient():
    model = Normalized(Odd("")).eval()
    model.net.lock = threading.Lock()
    with pytest.raises(ValueError, match="does not take it .TypeError"):
        channels.found(model, X)
    model = Normalized(Odd("detached")).eval()
    assert channels.found(model, X) == ({}, {})


@pytest.mark.parametrize("scale", [1.0, 1e-4])  # small logits hide nothing
def test_padded_shortcuts_keep_their_channels(scale):
    torch.manual_seed(0)
    model = Normalized(build("cifar-resnet", {"blocks": (1, 1), "widths": (4, 8), "shortcut": "pad"})).eval()
    with torch.no_grad():
        for p in model.get_submodule(layers.logit_layers(model, X)[0]).parameters():
            p.mul_(scale)
    sets, odd = channels.found(model, X)
    assert list(odd) == ["net.conv1.weight"] and len(sets) == 2


def test_loading_a_model_needs_no_torch_pruning():
    code = "import sys, pwoa_cli; pwoa_cli.load; import pwoa_cli.networks.channels; " \
           "sys.exit('torch_pruning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
