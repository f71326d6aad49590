"""WideResNets: published sizes, formulas by hand, and that every naming is read back from its keys."""
import pytest
import torch
import torch.nn.functional as F
from helpers.family_checks import meta, normed, trained
from torch import nn

from pwoa_cli.networks import layers
from pwoa_cli.networks.families.deepmind import DMPreActResNet, DMWideResNet
from pwoa_cli.networks.families.preact import PreActResNet
from pwoa_cli.networks.families.resnet import STYLES as RESNET_STYLES
from pwoa_cli.networks.families.resnet import CifarResNet
from pwoa_cli.networks.families.small import LeNet, SmallCNN
from pwoa_cli.networks.families.wide import STYLES, WIDE, CosineLinear, WideResNet
from pwoa_cli.networks.layers import live_parameters

TINY = {"blocks": [1, 2, 1], "stem": 3, "widths": [4, 6, 8]}
MELIKETOY = {"style": "layer", "bias": True, "stride_at": 2, "shortcut_from": "input"}


# millions in Zagoruyko & Komodakis 2016; the last one is the largest of the NARes benchmark of robust WRNs
@pytest.mark.parametrize(("name", "millions"), [
    ("wrn-16-8", 11.0), ("wrn-22-8", 17.2), ("wrn-28-10", 36.5), ("wrn-40-4", 8.9), ("wrn-40-2", 2.2),
    ("wrn-70-16", 266.8)])
def test_members_have_the_published_number_of_parameters(name, millions):
    parameters = sum(p.numel() for p in meta(WIDE.make, **WIDE.members[name]).parameters())
    assert round(parameters / 1e6, 1) == millions


@pytest.mark.parametrize("name", sorted(WIDE.members))
def test_depth_counts_the_convolutions_and_width_the_times_16(name):
    net = meta(WIDE.make, **WIDE.members[name])
    depth = sum(isinstance(m, nn.Conv2d) for m in net.modules())  # the three shortcuts among them: 6n + 4
    assert name == f"wrn-{depth}-{net.bn1.num_features // 64}"
    assert f"depth {depth}, " in WIDE.identify(net.state_dict()).evidence
    assert f"width {net.bn1.num_features // 64} (" in WIDE.identify(net.state_dict()).evidence


def test_wrn_34_10_of_trades_has_the_parameters_that_pwoa_prints_4_percent_dead():
    net = meta(WideResNet, **WIDE.members["wrn-34-10"], sub_block1=True)
    total = sum(p.numel() for p in net.parameters())
    dead = sum(p.numel() for n, p in net.named_parameters() if n.startswith("sub_block1."))
    assert total == 48_262_586  # dense_params of PwoA's wideresnet.py
    assert dead == 2_102_112 and round(100 * dead / total, 1) == 4.4
    weights = {n: p.numel() for n, p in net.named_parameters() if p.ndim > 1}
    unused = sum(v for n, v in weights.items() if n.startswith("sub_block1."))
    assert round(100 * unused / sum(weights.values()), 1) == 4.4


def test_forward_never_uses_sub_block1():
    net, x = WideResNet(**TINY, sub_block1=True), torch.rand(2, 3, 8, 8)
    dead = {n for n, _ in net.named_parameters()} - live_parameters(net, x)
    assert dead == {n for n, _ in net.named_parameters() if n.startswith("sub_block1.layer.")}
    assert dead and "sub_block1.layer.0.conv1.weight" not in layers.prunable(net, live_parameters(net, x))
    assert layers.hidden_layers(net, x) == [
        "block1.layer.0", "block2.layer.0", "block2.layer.1", "block3.layer.0"]


def test_block_of_trades_strides_first_and_projects_the_activated_input():
    block = trained(WideResNet(**TINY)).block2.layer[0]
    x, w = torch.randn(2, 4, 6, 6), block.state_dict()
    a = normed(x, w, "bn1").relu()
    h = normed(F.conv2d(a, w["conv1.weight"], stride=2, padding=1), w, "bn2").relu()
    shortcut = F.conv2d(a, w["convShortcut.weight"], stride=2)
    torch.testing.assert_close(block(x), F.conv2d(h, w["conv2.weight"], padding=1) + shortcut)


def test_block_of_meliketoy_strides_last_has_biases_and_projects_the_input():
    block = trained(WideResNet(**TINY, **MELIKETOY)).layer2[0]
    x, w = torch.randn(2, 4, 6, 6), block.state_dict()
    h = F.conv2d(normed(x, w, "bn1").relu(), w["conv1.weight"], w["conv1.bias"], padding=1)
    h = F.conv2d(normed(h, w, "bn2").relu(), w["conv2.weight"], w["conv2.bias"], stride=2, padding=1)
    shortcut = F.conv2d(x, w["shortcut.0.weight"], w["shortcut.0.bias"], stride=2)
    torch.testing.assert_close(block(x), h + shortcut)


def test_network_pools_8x8_at_32x32():
    net, x = trained(WideResNet(**TINY)), torch.rand(2, 3, 32, 32)
    w = net.state_dict()
    h = net.block3(net.block2(net.block1(F.conv2d(x, w["conv1.weight"], padding=1))))
    h = F.avg_pool2d(normed(h, w, "bn1").relu(), 8)
    assert h.shape == (2, 8, 1, 1)
    torch.testing.assert_close(net(x), F.linear(h.flatten(1), w["fc.weight"], w["fc.bias"]))


def test_cosine_head_is_the_cosine_of_the_angle():
    head, x = CosineLinear(5, 3, bias=False), torch.randn(2, 5)
    for i, row in enumerate(head(x)):
        for k, got in enumerate(row):
            a, b = x[i], head.weight[k]
            assert got.item() == pytest.approx((a @ b / (a @ a).sqrt() / (b @ b).sqrt()).item(), abs=1e-6)


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize(("blocks", "stem", "widths"), [
    ([1, 1, 1], 4, [4, 6, 8]), ([2, 2, 2], 16, [16, 32, 64]),
    ([5, 5, 5], 5, [11, 22, 44]), ([17, 1, 3], 3, [8, 6, 4])])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("num_classes", "in_channels", "head_bias", "sub"), [
    (10, 3, True, True), (1, 1, True, False), (100, 4, False, True)])
def test_identify_reads_every_size_back(
        style, blocks, stem, widths, bias, num_classes, in_channels, head_bias, sub):
    options = {"num_classes": num_classes, "in_channels": in_channels, "blocks": blocks, "stem": stem,
               "widths": widths, "style": style, "sub_block1": sub, "bias": bias,
               "head": "linear" if head_bias else "cosine", "head_bias": head_bias,
               "stride_at": 2 if bias else 1, "shortcut_from": "input" if style == "layer" else "activated",
               "activation": "relu"}
    guess = WIDE.identify(meta(WideResNet, **options).state_dict())
    assert guess.arch == WIDE.name and guess.options == options and guess.input_shape == (in_channels, 32, 32)
    assert f"depth {2 * sum(blocks) + 4}" in guess.evidence and ("sub_block1" in guess.evidence) == sub


@pytest.mark.parametrize("hidden", [
    {}, {"activation": "silu"}, MELIKETOY, MELIKETOY | {"stride_at": 1},
    MELIKETOY | {"shortcut_from": "activated"}, {"head_bias": False, "head": "cosine"},
    MELIKETOY | {"stride_at": 1, "shortcut_from": "activated"}, {"head_bias": False}])
def test_one_of_the_guesses_gives_equal_logits(hidden):
    net, x = trained(WideResNet(**TINY, **hidden, sub_block1=True)), torch.rand(2, 3, 8, 8)
    guess = WIDE.identify(net.state_dict())
    equal = []
    for change in ({}, *guess.others):
        again = WIDE.make(**guess.options | change).eval()
        again.load_state_dict(net.state_dict())
        equal.append(torch.equal(again(x), net(x)))
    assert equal.count(True) == 1
    published = {}, MELIKETOY, {"head_bias": False, "head": "cosine"}
    assert equal[0] == (hidden in published), "the published ones come first"


@pytest.mark.parametrize("change", [
    {"block4.layer.0.conv1.weight": (8, 8, 3, 3)}, {"block2.layer.5.conv1.weight": (6, 6, 3, 3)},
    {"fc_aux.weight": (10, 8)}, {"block99999999.layer.0.conv1.weight": (4,)},
    {"sub_block1.layer.0.conv1.weight": (4, 3, 3, 3)}, {"bn1.weight": (9,)},
    {"block1.layer.0.meansparse_0.threshold": ()}, {"activation.alpha": (1,)},
    {"block3.layer.0.convShortcut.weight": None}, {"fc.weight": (10,)}, {"fc.weight": (10, 0)},
    {"fc.weight": None}, {"conv1.weight": ()}, {"conv1.bias": (3,)},
    {"block2.layer.0.conv1.weight": (2**40, 4, 3, 3)}, {"block1.layer.0.conv1.weight": None},
    {"bn1.running_mean": None}])
def test_keys_that_only_look_like_it_are_none(change):
    state = meta(WideResNet, **TINY).state_dict()
    state |= {k: torch.empty(s, device="meta") for k, s in change.items() if s is not None}
    assert WIDE.identify({k: t for k, t in state.items() if change.get(k, ()) is not None}) is None


def test_other_families_are_not_it():
    same = {"blocks": [1, 2, 1], "widths": [4, 6, 8]}
    others = [meta(CifarResNet, **same, style=style, shortcut=shortcut, bottleneck=bottleneck)
              for style in RESNET_STYLES for shortcut in ("conv", "pad") for bottleneck in (False, True)]
    others += [meta(PreActResNet, **same, bn=bn, bottleneck=b) for bn in (0, 1) for b in (0, 1)]
    others += [meta(DMWideResNet, **same), meta(DMPreActResNet, **same), meta(LeNet), meta(SmallCNN)]
    assert not [net for net in others if WIDE.identify(net.state_dict())]
    assert WIDE.identify({}) is None


def test_activations_are_modules_that_leave_their_input_alone():
    net, x = WideResNet(**TINY), torch.rand(2, 3, 8, 8)
    acts = [n for n, m in net.named_modules() if isinstance(m, nn.ReLU)]
    assert len(acts) == 9 and not [m for m in net.modules() if getattr(m, "inplace", False)]
    with layers.capture(net, acts) as seen, torch.no_grad():
        net.eval()(x)
    assert len(seen) == 9 and all((h >= 0).all() for h in seen)


def test_unknown_options_are_refused():
    for option in ("style", "activation"):
        with pytest.raises(KeyError):
            WideResNet(**TINY, **{option: "other"})
