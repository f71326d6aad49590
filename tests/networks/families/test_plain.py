"""Chains: what is read from names and numbers, which geometries are offered, what only looks like a chain."""
import json
import struct

import pytest
import torch
import torch.nn.functional as F
from helpers.family_checks import meta
from torch import nn

from pwoa_cli.checkpoints.model import load_model
from pwoa_cli.errors import InputError
from pwoa_cli.networks.families import FAMILIES, chain, geometry, identify
from pwoa_cli.networks.families.geometry import Slot
from pwoa_cli.networks.families.plain import Plain

RELU, FLAT = nn.ReLU(), nn.Flatten()


def sequence(*layers):
    return nn.Sequential(*layers).state_dict()


def named(**layers):
    return nn.ModuleDict(layers).state_dict()


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_side_after_is_what_convolution_and_pool_leave(kernel, stride, pool):
    for padding in range(kernel // 2 + 1):
        x = F.conv2d(torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, kernel, kernel), stride=stride,
                     padding=padding)
        x = x if pool == 1 else F.max_pool2d(x, pool, 2)
        assert geometry.side_after(28, kernel=kernel, stride=stride, padding=padding,
                                   pool=pool) == x.shape[-1]


@pytest.mark.parametrize(("room", "pools"), [(0, {1}), (1, {1, 2}), (None, {1, 2})])
def test_numbers_that_leave_no_room_leave_no_pool(room, pools):
    found = geometry.fitting([Slot(3, 8, room), Slot(3, 16, room)], 8, (32,), limit=100)
    assert {pool for reading in found for pool in reading.pools} == pools
    best = found[0]
    assert (best.strides, best.paddings, best.pools) == (
        ((2, 2), (1, 1), (1, 1)) if room == 0 else ((1, 1), (1, 1), (2, 2)))


def test_layers_norms_and_rooms_are_read_from_numbers():
    state = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), RELU, nn.MaxPool2d(2), nn.Conv2d(4, 5, 3),
                     nn.BatchNorm2d(5), RELU, FLAT, nn.Linear(5, 3))
    assert chain.read(state) == chain.Chain(("0", "4"), ("8",), ("1", "5"), "first", (1, 0))
    behind = sequence(nn.Linear(784, 20), RELU, nn.BatchNorm1d(20), nn.Linear(20, 3))
    assert chain.read(behind) == chain.Chain((), ("0", "3"), ("2",), "act", ())


@pytest.mark.parametrize("order", [list, sorted])
def test_layers_are_put_in_their_order_whatever_the_files(order):
    layers = {f"conv{i}": nn.Conv2d(3 if i == 1 else 4, 4, 3) for i in range(1, 12)}
    layers |= {"fc1": nn.Linear(4, 6), "fc2": nn.Linear(6, 2)}
    state = named(**layers)
    found = chain.read({k: state[k] for k in order(state)})
    assert found.heads == ("fc1", "fc2") and found.convs == tuple(f"conv{i}" for i in range(1, 12))


@pytest.mark.parametrize("state", [
    sequence(nn.Linear(100, 256), RELU, nn.Linear(256, 784)), sequence(nn.Linear(64, 256), RELU,
                                                                      nn.Linear(256, 784)),
    sequence(nn.Linear(784, 64), RELU, nn.Linear(64, 784)), sequence(nn.Linear(784, 64), RELU,
                                                                    nn.Linear(64, 1)),
    sequence(nn.Linear(30, 64), RELU, nn.Linear(64, 2)), sequence(nn.Linear(768, 2)),
    sequence(nn.Conv2d(3, 8, 3), RELU, nn.Conv2d(8, 3, 3)),
    sequence(nn.Linear(8, 128), RELU, nn.Conv2d(3, 8, 3)),
    sequence(nn.Linear(784, 64), nn.LayerNorm(64), nn.Linear(64, 10)),
    sequence(nn.Conv2d(3, 6, 3), RELU, nn.Conv2d(6, 6, 3, groups=6), RELU, FLAT, nn.Linear(4704, 10)),
    sequence(nn.Conv2d(3, 6, (3, 5)), RELU, FLAT, nn.Linear(6 * 30 * 28, 10)),
    named(encoder=nn.Linear(784, 64), head=nn.Linear(64, 10)),
    named(a=nn.Linear(784, 10), b=nn.Linear(784, 10)),
    named(conv1=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4),
          block=nn.ModuleDict({"a": nn.Conv2d(8, 8, 3), "b": nn.Conv2d(8, 8, 3)})),
    named(conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8 * 17, 4)), {"weight": torch.ones(10, 784)}, {}],
    ids=["generator", "generator of 64", "autoencoder", "critic", "table", "head of features", "denoiser",
         "linear first", "layer norm", "depthwise", "oblong", "encoder", "two networks", "residual block",
         "no square", "no name", "empty"])
def test_what_only_looks_like_a_classifier_in_a_chain_is_none(state):
    assert FAMILIES["plain"].identify(state) is None and identify(state) is None


@pytest.mark.parametrize("norm_at", ["first", "act", "last"])
@pytest.mark.parametrize(("end", "side"), [("flatten", 7), ("mean", 1)])
def test_plain_by_hand(norm_at, end, side):
    net = Plain(convs=["c"], widths=[3], kernels=[3], strides=[2], paddings=[1], pools=[2], end=end,
                side=side, heads=["f", "g"], hidden=[5], norms=["n", ""], norm_at=norm_at,
                biases=[False, True, True],
                pool="mean", activation="tanh", num_classes=4).eval()
    net.n.running_mean.fill_(0.3)
    w, x = net.state_dict(), torch.rand(2, 1, 28, 28)
    steps = {"act": torch.tanh, "pool": lambda h: F.avg_pool2d(h, 2),
             "norm": lambda h: (h - 0.3) / (1 + 1e-5) ** 0.5}
    h = F.conv2d(x, w["c.weight"], stride=2, padding=1)
    for step in {"first": ["norm", "act", "pool"], "act": ["act", "norm", "pool"],
                 "last": ["act", "pool", "norm"]}[norm_at]:
        h = steps[step](h)
    h = h.flatten(1) if end == "flatten" else h.mean((2, 3))
    h = torch.tanh(F.linear(h, w["f.weight"], w["f.bias"]))
    torch.testing.assert_close(net(x), F.linear(h, w["g.weight"], w["g.bias"]))


def test_words_of_a_file_that_would_build_what_it_does_not_hold_are_refused(tmp_path):
    """Sizes that are each in the file, of a network of 17 billion weights."""
    options = {"convs": ["0"], "widths": [4096], "kernels": [64], "strides": [1], "paddings": [0],
               "pools": [1], "in_channels": 1024, "side": 1, "heads": ["1"], "hidden": []}
    words = {"arch": "plain", "arch_options": json.dumps(options), "num_classes": "10", "input_shape": "null",
             "default_size": "null", "mean": "null", "std": "null"}
    header = json.dumps({"__metadata__": words, "0.bias": {"dtype": "F32", "shape": [4096],
                                                           "data_offsets": [0, 16384]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16384))
    with pytest.raises(InputError, match="arch_options"):
        load_model(path)


def test_a_deep_chain_is_read_in_time():
    """13 convolutions under names: a list of all geometries would have no end."""
    layers = {f"conv{i}": nn.Conv2d(3 if i == 1 else 8, 8, 3) for i in range(1, 14)}
    with torch.device("meta"):
        state = named(**layers, fc=nn.Linear(8 * 4, 10))
    guess = identify(state)
    assert guess.arch == "plain" and 1 <= len(guess.others) <= 24
    assert meta(Plain, **guess.options).state_dict().keys() == state.keys()


def test_no_shape_of_a_tensor_ends_in_a_traceback():
    """Each tensor of a chain flat, short, empty, of more dimensions or missing: read, or not known."""
    state = named(conv=nn.Conv2d(1, 4, 3), one=nn.Linear(4 * 13 * 13, 8), two=nn.Linear(8, 4))
    for key, whole in state.items():
        for tensor in (whole.flatten(), whole[:-1], whole[:0], whole[None], whole.reshape(-1, 1), None):
            changed = {k: t for k, t in state.items() if k != key} | ({} if tensor is None else {key: tensor})
            assert (identify(changed) is None or identify(changed).options)
