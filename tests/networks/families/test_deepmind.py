"""DeepMind's networks: sizes, formulas by hand, and that every size is read back from its keys."""
import pytest
import torch
import torch.nn.functional as F
from helpers.family_checks import meta, normed, trained
from torch import nn

from pwoa_cli.networks import layers
from pwoa_cli.networks.families.deepmind import DM_PREACT, DM_WIDE, DMBlock, SameConv2d
from pwoa_cli.networks.families.preact import PREACT, PreActResNet
from pwoa_cli.networks.families.resnet import RESNET
from pwoa_cli.networks.families.small import LENET, SMALL_CNN
from pwoa_cli.networks.families.wide import WIDE
from pwoa_cli.networks.layers import live_parameters

TINY = {"blocks": [1, 2, 1], "stem": 3, "widths": [4, 6, 8]}
BOTH = pytest.mark.parametrize("family", [DM_WIDE, DM_PREACT], ids=lambda family: family.name)


@pytest.mark.parametrize("name", sorted(DM_WIDE.members))
def test_wide_members_have_the_parameters_of_a_wide_resnet(name):
    net = meta(DM_WIDE.make, **DM_WIDE.members[name])
    wide = meta(WIDE.make, **DM_WIDE.members[name])  # whose figures are published, see test_wide
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in wide.parameters())
    assert name.split("-")[2] == str(sum(isinstance(m, nn.Conv2d) for m in net.modules()))


def test_preact_members_have_3x3_shortcuts_on_top_of_a_preact_resnet():
    for depth in (18, 34):
        plain = meta(PreActResNet, **PREACT.members[f"preact-resnet{depth}"])
        net = meta(DM_PREACT.make, **DM_PREACT.members[f"dm-preact-resnet{depth}"])
        more = sum(8 * a * b for a, b in ((64, 128), (128, 256), (256, 512)))
        assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in plain.parameters()) + more


@pytest.mark.parametrize(("kernel", "stride", "pad"), [
    (3, 1, (1, 1, 1, 1)), (3, 2, (0, 1, 0, 1)), (1, 2, (0, 0, 0, 0)), (1, 1, (0, 0, 0, 0))])
def test_same_padding_is_below_and_to_the_right(kernel, stride, pad):
    conv, x = SameConv2d(2, 3, kernel, stride), torch.randn(1, 2, 6, 6)
    assert conv.pad == pad
    out, padded = conv(x), F.pad(x, pad)
    assert out.shape == (1, 3, 6 // stride, 6 // stride)
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            window = padded[0, :, i * stride:i * stride + kernel, j * stride:j * stride + kernel]
            torch.testing.assert_close(out[0, :, i, j], (conv.weight * window).sum((1, 2, 3)))


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("kind", ["wide", "preact"])
def test_blocks_are_deepminds_formulas(kind, activation):
    block, x = trained(DMBlock(3, 4, 2, kind=kind, activation=activation)), torch.randn(2, 3, 6, 6)
    w, act = block.state_dict(), {"relu": F.relu, "silu": lambda t: t * torch.sigmoid(t)}[activation]
    first, second = ("conv_0", "conv_1") if kind == "wide" else ("conv_2d_1", "conv_2d_2")
    a = act(normed(x, w, "batchnorm_0"))
    h = F.conv2d(F.pad(a, (0, 1, 0, 1)), w[f"{first}.weight"], stride=2)
    h = F.conv2d(act(normed(h, w, "batchnorm_1")), w[f"{second}.weight"], padding=1)
    shortcut = F.conv2d(a, w["shortcut.weight"], stride=2) if kind == "wide" else \
        F.conv2d(F.pad(x, (0, 1, 0, 1)), w["shortcut.weight"], stride=2)
    torch.testing.assert_close(block(x), h + shortcut)


@BOTH
def test_stride_2_is_not_what_symmetric_padding_gives(family):
    net, x = trained(family.make(**TINY)), torch.rand(2, 3, 8, 8)
    before = net(x)
    for m in net.modules():
        if isinstance(m, SameConv2d) and m.stride == (2, 2) and m.kernel_size == (3, 3):
            m.pad = (1, 1, 1, 1)
    assert (net(x) - before).abs().max() > 1e-3


@BOTH
def test_network_is_stem_stages_norm_activation_average_logits(family):
    net, x = trained(family.make(**TINY)), torch.rand(2, 3, 32, 32)
    w = net.state_dict()
    names = ("init_conv", "layer.{}.block") if family is DM_WIDE else ("conv_2d", "layer_{}")
    h = F.conv2d(x, w[f"{names[0]}.weight"], padding=1)
    for i in range(3):
        h = net.get_submodule(names[1].format(i))(h)
    h = F.avg_pool2d(F.silu(normed(h, w, "batchnorm")), 8)
    assert h.shape == (2, 8, 1, 1)
    torch.testing.assert_close(net(x), F.linear(h.flatten(1), w["logits.weight"], w["logits.bias"]))


@BOTH
@pytest.mark.parametrize(("blocks", "stem", "widths"), [
    ([1, 1, 1], 4, [4, 6, 8]), ([2, 2, 2, 2], 8, [8, 6, 4, 10]),
    ([17, 1, 2], 3, [10, 20, 40]), ([3, 4, 6, 3], 4, [4, 8, 16, 32])])
@pytest.mark.parametrize(("num_classes", "in_channels"), [(10, 3), (1, 1), (100, 4)])
def test_identify_reads_every_size_back(family, blocks, stem, widths, num_classes, in_channels):
    options = {"num_classes": num_classes, "in_channels": in_channels, "blocks": blocks, "stem": stem,
               "widths": widths, "activation": "silu"}
    guess = family.identify(meta(family.make, **options).state_dict())
    assert guess.arch == family.name and guess.options == options
    assert guess.input_shape == (in_channels, 32, 32)
    assert guess.others == ({"activation": "relu"},)
    depth = 2 * sum(blocks) + (4 if family is DM_WIDE else 2)
    assert f"depth {depth}, blocks {'-'.join(map(str, blocks))}" in guess.evidence


@BOTH
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_one_of_the_guesses_gives_equal_logits(family, activation):
    net, x = trained(family.make(**TINY, activation=activation)), torch.rand(2, 3, 8, 8)
    guess = family.identify(net.state_dict())
    for change in ({}, *guess.others):
        options = guess.options | change
        again = family.make(**options).eval()
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(x), net(x)) == (options["activation"] == activation)


@BOTH
@pytest.mark.parametrize("change", [
    {"mean": (3, 1, 1)}, {"logits.weight": (10,)}, {"logits.weight": (0, 8)}, {"logits.bias": None},
    {"batchnorm.weight": (9,)}, {"STAGE.0.meansparse_0.threshold": ()},
    {"STAGE.0.se.fc1.weight": (2, 4, 1, 1)}, {"STAGE.9.batchnorm_0.weight": (4,)},
    {"STAGE.0.CONV.weight": None}, {"STAGE.0.CONV.weight": (2**40, 3, 3, 3)},
    {"STAGE.0.CONV.weight": (4, 3, 3)}, {"STEM.weight": None}, {"STEM.weight": ()},
    {"STEM.weight": (3, 0, 3, 3)}, {"STAGE.0.batchnorm_1.running_var": None}])
def test_keys_that_only_look_like_it_are_none(family, change):
    words = {"STAGE": "layer.0.block", "CONV": "conv_0", "STEM": "init_conv"} if family is DM_WIDE else \
        {"STAGE": "layer_0", "CONV": "conv_2d_1", "STEM": "conv_2d"}
    change = {".".join(words.get(part, part) for part in k.split(".")): s for k, s in change.items()}
    state = meta(family.make, **TINY).state_dict()
    state |= {k: torch.empty(s, device="meta") for k, s in change.items() if s is not None}
    assert family.identify({k: t for k, t in state.items() if change.get(k, ()) is not None}) is None


def test_no_family_takes_anothers_network():
    residual = (DM_WIDE, DM_PREACT, PREACT, WIDE, RESNET)
    states = {family.name: meta(family.make, blocks=[1, 2, 1], widths=[4, 6, 8]).state_dict()
              for family in residual}
    for family in residual:
        assert [name for name, state in states.items() if family.identify(state)] == [family.name]
    for family in (LENET, SMALL_CNN):
        assert not [name for name, state in states.items() if family.identify(state)]
    assert DM_WIDE.identify({}) is DM_PREACT.identify({}) is None


@BOTH
def test_hidden_layers_are_the_blocks_and_every_weight_lives(family):
    net, x = family.make(**TINY), torch.rand(2, 3, 8, 8)
    found = layers.hidden_layers(net, x)
    assert len(found) == 4 and all(isinstance(net.get_submodule(name), DMBlock) for name in found)
    live = live_parameters(net, x)
    assert live == {n for n, _ in net.named_parameters()}
    assert set(layers.prunable(net, live)) == {n for n, p in net.named_parameters() if p.ndim > 1}


@BOTH
def test_unknown_activations_are_refused(family):
    with pytest.raises(KeyError):
        family.make(**TINY, activation="tanh")
