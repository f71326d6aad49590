"""Pre-activation ResNets: sizes, formulas by hand, and that every size is read back from its keys."""
import pytest
import torch
import torch.nn.functional as F
from helpers.family_checks import meta, normed, trained
from torch import nn

from pwoa_cli.networks import layers
from pwoa_cli.networks.families.deepmind import DMPreActResNet, DMWideResNet
from pwoa_cli.networks.families.preact import PREACT, PreActBlock, PreActResNet
from pwoa_cli.networks.families.resnet import RESNET, STYLES, CifarResNet
from pwoa_cli.networks.families.small import LENET, SMALL_CNN, LeNet, SmallCNN
from pwoa_cli.networks.families.wide import WideResNet
from pwoa_cli.networks.layers import live_parameters

TINY = {"blocks": [1, 2, 1], "widths": [4, 6, 8]}


# a ResNet's published parameters (11,173,962, 21,282,122, 23,520,842, see test_resnet) but for where its
# batch norms are: none behind the stem and the shortcuts, and each one in front of its convolution
@pytest.mark.parametrize(("name", "resnet"), [
    ("preact-resnet18", "cifar-resnet18"), ("preact-resnet34", "cifar-resnet34"),
    ("preact-resnet50", "cifar-resnet50")])
def test_members_have_a_resnets_parameters_in_convolutions_and_head(name, resnet):
    net, plain = meta(PREACT.make, **PREACT.members[name]), meta(RESNET.make, **RESNET.members[resnet])
    weights = [sum(p.numel() for n, p in m.named_parameters() if p.ndim > 1) for m in (net, plain)]
    assert weights[0] == weights[1]
    depth = sum(isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n for n, m in net.named_modules())
    assert name == f"preact-resnet{depth}"


def test_preact_resnet18_has_the_published_11_17_million_parameters():
    def block(a, b):
        # bn1, conv1, bn2, conv2, shortcut.0
        return 2 * a + 9 * a * b + 2 * b + 9 * b * b + (a * b if a != b else 0)

    pairs = (64, 64), (64, 128), (128, 256), (256, 512)
    expected = 27 * 64 + sum(block(a, b) + block(b, b) for a, b in pairs) + 5130
    assert sum(p.numel() for p in meta(PreActResNet, bn=False).parameters()) == expected == 11_171_146
    assert sum(p.numel() for p in meta(PreActResNet).parameters()) == expected + 2 * 512


@pytest.mark.parametrize("source", ["input", "activated"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_basic_block_is_the_formula_of_he_et_al(source, activation):
    block = trained(PreActBlock(3, 4, 2, shortcut_from=source, activation=activation))
    x = torch.randn(2, 3, 6, 6)
    w, act = block.state_dict(), {"relu": F.relu, "silu": lambda t: t * torch.sigmoid(t)}[activation]
    a = act(normed(x, w, "bn1"))
    h = F.conv2d(a, w["conv1.weight"], stride=2, padding=1)
    h = F.conv2d(act(normed(h, w, "bn2")), w["conv2.weight"], padding=1)
    shortcut = F.conv2d(x if source == "input" else a, w["shortcut.0.weight"], stride=2)
    torch.testing.assert_close(block(x), h + shortcut)


def test_bottleneck_has_its_stride_in_the_3x3():
    block, x = trained(PreActBlock(3, 4, 2, bottleneck=True)), torch.randn(2, 3, 6, 6)
    w = block.state_dict()
    a = normed(x, w, "bn1").relu()
    h = normed(F.conv2d(a, w["conv1.weight"]), w, "bn2").relu()
    h = normed(F.conv2d(h, w["conv2.weight"], stride=2, padding=1), w, "bn3").relu()
    shortcut = F.conv2d(a, w["shortcut.0.weight"], stride=2)
    torch.testing.assert_close(block(x), F.conv2d(h, w["conv3.weight"]) + shortcut)


def test_block_of_the_same_shape_adds_its_input():
    block, x = trained(PreActBlock(4, 4, 1)), torch.randn(2, 4, 5, 5)
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), x) and not [k for k in block.state_dict() if "shortcut" in k]


@pytest.mark.parametrize("bn", [True, False])
def test_network_pools_behind_a_last_batch_norm_or_at_once(bn):
    net, x = trained(PreActResNet(**TINY, bn=bn)), torch.rand(2, 3, 8, 8)
    w = net.state_dict()
    h = net.layer3(net.layer2(net.layer1(F.conv2d(x, w["conv1.weight"], padding=1))))
    assert h.shape == (2, 8, 2, 2)
    h = normed(h, w, "bn").relu() if bn else h
    pooled = F.avg_pool2d(h, 2).flatten(1)
    torch.testing.assert_close(net(x), F.linear(pooled, w["linear.weight"], w["linear.bias"]))


@pytest.mark.parametrize("blocks", [[1, 1], [2, 2, 2, 2], [3, 4, 6, 3], [1, 12, 1]])
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize(("num_classes", "in_channels"), [(10, 3), (1, 1), (100, 4)])
def test_identify_reads_every_size_back(blocks, bottleneck, bn, num_classes, in_channels):
    options = {"num_classes": num_classes, "in_channels": in_channels, "blocks": blocks,
               "widths": [4, 6, 8, 10][:len(blocks)], "bottleneck": bottleneck, "bn": bn,
               "activation": "relu", "shortcut_from": "activated" if bn or bottleneck else "input"}
    guess = PREACT.identify(meta(PreActResNet, **options).state_dict())
    assert guess.arch == PREACT.name and guess.options == options
    assert guess.input_shape == (in_channels, 32, 32)
    depth = sum(blocks) * (3 if bottleneck else 2) + 2
    assert f"depth {depth}, blocks {'-'.join(map(str, blocks))}" in guess.evidence


@pytest.mark.parametrize("hidden", [{}, {"shortcut_from": "input"}, {"activation": "silu"},
                                    {"shortcut_from": "input", "activation": "silu"}])
def test_one_of_the_guesses_gives_equal_logits(hidden):
    net, x = trained(PreActResNet(**TINY, **hidden)), torch.rand(2, 3, 8, 8)
    guess = PREACT.identify(net.state_dict())
    equal = []
    for change in ({}, *guess.others):
        again = PREACT.make(**guess.options | change).eval()
        again.load_state_dict(net.state_dict())
        equal.append(torch.equal(again(x), net(x)))
    assert equal.count(True) == 1 and ({}, *guess.others)[equal.index(True)] == hidden


def test_without_a_last_batch_norm_the_shortcut_is_that_of_robustbench_first():
    guess = PREACT.identify(PreActResNet(**TINY, bn=False).state_dict())
    assert guess.options["shortcut_from"] == "input" and guess.others[0] == {"shortcut_from": "activated"}


def test_counters_of_batch_norms_may_be_missing():
    state = {k: t for k, t in PreActResNet(**TINY).state_dict().items()
             if not k.endswith("num_batches_tracked")}
    assert PREACT.identify(state) is not None


@pytest.mark.parametrize("change", [
    {"bn1.weight": (4,)}, {"fc.weight": (10, 8)}, {"layer1.0.bn3.weight": (4,)},
    {"layer2.0.shortcut.1.weight": (6,)}, {"layer9.0.conv1.weight": (4, 4, 3, 3)},
    {"layer2.7.conv1.weight": (6, 6, 3, 3)}, {"layer0.0.conv1.weight": (4, 4, 3, 3)},
    {"layer9999.9999.conv1.weight": (4, 4, 3, 3)}, {"layer99999999999999.0.bn1.weight": (4,)},
    {"layer1.0.bn1.weight": (6,)}, {"layer1.0.bn1.running_var": None}, {"linear.bias": None},
    {"linear.weight": (10,)}, {"linear.weight": (0, 8)}, {"linear.weight": (10, 9)}, {"conv1.weight": None},
    {"conv1.weight": (4, 0, 3, 3)}, {"conv1.weight": (4, 3, 5, 5)}, {"conv1.weight": ()},
    {"layer2.0.conv1.weight": (2**40, 4, 3, 3)}, {"layer2.0.conv1.weight": None},
    {"layer2.0.conv1.weight": (6,)}, {"layer2.1.bn2.weight": (7,)}])
def test_keys_that_only_look_like_it_are_none(change):
    state = meta(PreActResNet, **TINY).state_dict()
    state |= {k: torch.empty(s, device="meta") for k, s in change.items() if s is not None}
    assert PREACT.identify({k: t for k, t in state.items() if change.get(k, ()) is not None}) is None


@pytest.mark.parametrize("family", [RESNET, LENET, SMALL_CNN])
def test_it_is_nobody_elses(family):
    for options in (TINY, TINY | {"bn": False}, TINY | {"bottleneck": True}):
        assert family.identify(meta(PreActResNet, **options).state_dict()) is None


def test_other_families_are_not_it():
    others = [meta(CifarResNet, **TINY, style=style, shortcut=shortcut, bottleneck=bottleneck)
              for style in STYLES for shortcut in ("conv", "pad") for bottleneck in (False, True)]
    others += [meta(WideResNet, **TINY, stem=4, style=s, bias=b)
               for s in ("block", "layer", "blocks") for b in (False, True)]
    others += [meta(DMWideResNet, **TINY), meta(DMPreActResNet, **TINY), meta(LeNet), meta(SmallCNN)]
    assert not [net for net in others if PREACT.identify(net.state_dict())]
    assert PREACT.identify({}) is None


def test_hidden_layers_are_the_blocks_and_every_weight_lives():
    net, x = PreActResNet(**TINY), torch.rand(2, 3, 8, 8)
    assert layers.hidden_layers(net, x) == ["layer1.0", "layer2.0", "layer2.1", "layer3.0"]
    assert live_parameters(net, x) == {n for n, _ in net.named_parameters()}
    # a hook's tensor must stay what it was
    assert not [m for m in net.modules() if getattr(m, "inplace", False)]


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="shortcut_from is 'both', expected 'input' or 'activated'"):
        PreActBlock(3, 3, 1, shortcut_from="both")
    with pytest.raises(KeyError):
        PreActBlock(3, 3, 1, activation="tanh")
