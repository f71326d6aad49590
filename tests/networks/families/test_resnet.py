"""ResNets: published sizes, formulas by hand, and that every naming in circulation is read back."""
import pytest
import torch
import torch.nn.functional as F
from helpers.family_checks import changed, count, guesses, meta
from torch import nn
from torchvision.models import resnet18, resnet50, wide_resnet50_2

from pwoa_cli.networks import layers
from pwoa_cli.networks.build import build
from pwoa_cli.networks.families.preact import PreActResNet
from pwoa_cli.networks.families.resnet import RESNET, STYLES, CifarResNet, ResidualBlock
from pwoa_cli.networks.families.wide import WideResNet
from pwoa_cli.networks.layers import live_parameters

TINY = {"blocks": [1, 2, 1], "widths": [2, 4, 6]}


# parameters as the ResNet paper, akamaster/pytorch_resnet_cifar10 and kuangliu/pytorch-cifar print them
@pytest.mark.parametrize(("name", "parameters"), [
    ("cifar-resnet20", 269_722), ("cifar-resnet32", 464_154), ("cifar-resnet44", 658_586),
    ("cifar-resnet56", 853_018), ("cifar-resnet110", 1_727_962), ("cifar-resnet18", 11_173_962),
    ("cifar-resnet34", 21_282_122), ("cifar-resnet50", 23_520_842)])
def test_resnets_have_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):
        net = build(name, {"num_classes": 10})
    assert count(net) == parameters
    depth = sum(isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n for n, m in net.named_modules())
    assert name == f"cifar-resnet{depth}"


@pytest.mark.parametrize(("shortcut", "first"), [("pad-end", 0), ("pad", 1)])
def test_padded_shortcut_takes_every_second_pixel_and_adds_silent_channels(shortcut, first):
    block = ResidualBlock(2, 4, 2, bottleneck=False, shortcut=shortcut, style=STYLES["linear"]).eval()
    nn.init.zeros_(block.conv2.weight)  # the residual branch is silent: out = relu(shortcut)
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    for c in range(4):
        for i in range(2):
            for j in range(2):
                inside = first <= c < first + 2
                assert out[0, c, i, j] == (x[0, c - first, 2 * i, 2 * j] if inside else 0)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_projected_block_is_the_formula_of_he_et_al(bottleneck):
    block = ResidualBlock(3, 4, 2, bottleneck=bottleneck, shortcut="conv", style=STYLES["fc"]).eval()
    x = torch.randn(2, 3, 6, 6)
    if bottleneck:
        h = block.bn1(block.conv1(x)).relu()
        h = block.bn3(block.conv3(block.bn2(F.conv2d(h, block.conv2.weight, stride=2, padding=1)).relu()))
    else:
        h = block.bn2(block.conv2(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)).relu()))
    torch.testing.assert_close(block(x), (h + block.downsample(x)).relu())


@pytest.mark.parametrize("style", sorted(STYLES))
def test_styles_differ_in_names_only(style):
    options = {"blocks": (1, 1, 1), "widths": (2, 4, 6), "shortcut": "conv"}
    one, other = CifarResNet(**options).eval(), CifarResNet(**options, style=style).eval()
    other.load_state_dict(dict(zip(other.state_dict(), one.state_dict().values(), strict=True)))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(one(x), other(x))


def test_a_2x2_average_and_zeros_behind_is_a_shortcut_of_its_own():
    block = ResidualBlock(2, 4, 2, bottleneck=False, shortcut="pool-end", style=STYLES["fc"]).eval()
    x = torch.rand(1, 2, 4, 4)
    nn.init.zeros_(block.conv2.weight)
    expected = torch.tensor([[x[0, c, 2 * i:2 * i + 2, 2 * j:2 * j + 2].mean()
                              for i in (0, 1) for j in (0, 1)] for c in (0, 1)])
    torch.testing.assert_close(block(x)[0], torch.cat([expected, torch.zeros(2, 4)]).view(4, 2, 2))


FC_100 = {"style": "fc", "shortcut": "conv", "num_classes": 100}


# millions in the READMEs of heisenbug237/pytorch-cifar100 (chenyaofo's naming), weiaicunzai/pytorch-cifar100
# and huyvnphan/PyTorch_CIFAR10
@pytest.mark.parametrize(("name", "options", "millions"), [
    ("cifar-resnet20", FC_100, 0.278), ("cifar-resnet32", FC_100, 0.473), ("cifar-resnet56", FC_100, 0.862),
    ("cifar-resnet18", {"style": "residual_function", "num_classes": 100}, 11.2),
    ("cifar-resnet34", {"style": "residual_function", "num_classes": 100}, 21.3),
    ("cifar-resnet50", {"style": "residual_function", "num_classes": 100}, 23.7),
    ("cifar-resnet18", {"style": "fc", "pool": True}, 11.174),
    ("cifar-resnet34", {"style": "fc", "pool": True}, 21.282),
    ("cifar-resnet50", {"style": "fc", "pool": True}, 23.521)])
def test_other_namings_have_the_published_millions_of_parameters(name, options, millions):
    digits = len(str(millions).split(".")[1])
    with torch.device("meta"):
        assert round(count(build(name, options)) / 1e6, digits) == millions


def test_stem_may_have_a_pool_behind_it():
    net, x = CifarResNet(**TINY, style="fc", shortcut="conv", pool=True).eval(), torch.rand(2, 3, 16, 16)
    h = F.max_pool2d(net.bn1(F.conv2d(x, net.conv1.weight, padding=1)).relu(), 3, 2, 1)
    assert h.shape[2:] == (8, 8)
    torch.testing.assert_close(net(x), net.fc(net.layer3(net.layer2(net.layer1(h))).mean((2, 3))))


def test_residual_function_has_the_keys_of_weiaicunzai():
    net = meta(CifarResNet, **TINY, style="residual_function", shortcut="conv", bottleneck=True)
    keys = set(net.state_dict())
    assert {"conv1.0.weight", "conv1.1.running_var", "conv2_x.0.residual_function.0.weight",
            "conv3_x.1.residual_function.6.weight", "conv4_x.0.residual_function.7.bias",
            "conv4_x.0.shortcut.0.weight", "conv4_x.0.shortcut.1.weight", "fc.bias"} <= keys
    assert not [k for k in keys if k.startswith("conv5_x")]


TWINS = {"fc-shortcut": "fc", "linear-downsample": "linear"}  # the same keys if no shortcut has weights


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("shortcut", ["conv", "pad"])
@pytest.mark.parametrize(("blocks", "num_classes", "in_channels"), [
    ([1, 1, 1], 10, 3), ([3, 4, 6, 3], 1, 1), ([1, 12, 1], 100, 4)])
def test_resnets_are_read_back_in_every_naming(style, bottleneck, shortcut, blocks, num_classes, in_channels):
    options = {"num_classes": num_classes, "in_channels": in_channels, "blocks": blocks,
               "widths": [2, 3, 5, 8][:len(blocks)], "bottleneck": bottleneck, "style": style,
               "shortcut": shortcut}
    if shortcut == "pad" and style == "stage_ab":
        options["shortcut"] = "pad-end"  # what the public repositories with these names do
    if shortcut == "pad" and style in TWINS:
        options["style"] = TWINS[style]
    guess = RESNET.identify(meta(CifarResNet, **options).state_dict())
    assert guess.arch == "cifar-resnet" and guess.options == options | {"pool": False}
    assert guess.input_shape == (in_channels, 32, 32)
    assert f"{STYLES[style]['stem']} (3x3)" in guess.evidence
    depth = sum(blocks) * (3 if bottleneck else 2) + 2
    assert f"depth {depth}, blocks {'-'.join(map(str, blocks))}" in guess.evidence


@pytest.mark.parametrize("hidden", [
    {"style": "linear", "shortcut": "pad"}, {"style": "linear", "shortcut": "pad-end"},
    {"style": "stage_ab", "shortcut": "pad-end"}, {"style": "stage_ab", "shortcut": "pad"},
    {"style": "fc", "shortcut": "pad"}, {"style": "fc", "shortcut": "pad-end"},
    {"style": "fc", "shortcut": "pool-end"}, {"style": "residual_function", "shortcut": "conv"},
    {"style": "fc", "shortcut": "conv", "pool": True, "blocks": [1] * 4, "widths": [2, 4, 6, 8]},
    {"style": "fc", "shortcut": "conv", "blocks": [1] * 4, "widths": [2, 4, 6, 8]}])
def test_one_reading_of_a_resnet_gives_equal_logits(hidden):
    net, x = CifarResNet(**TINY | hidden).eval(), torch.rand(2, 3, 16, 16)
    equal = [again for _, again in guesses(RESNET, net) if torch.equal(again(x), net(x))]
    assert len(equal) == 1


@pytest.mark.parametrize("change", [
    {"conv1.weight": None}, {"conv1.weight": ()}, {"conv1.weight": (2, 3, 7, 7)},
    {"conv1.weight": (2, 0, 3, 3)}, {"conv1.bias": (2,)}, {"bn1.weight": None}, {"bn1.running_mean": (3,)},
    {"linear.weight": ()}, {"linear.weight": (10, 7)}, {"linear.weight": (0, 6)}, {"linear.bias": None},
    {"fc.weight": (10, 6)}, {"layer4.0.conv1.weight": (8, 6, 3, 3)}, {"layer0.0.conv1.weight": (2, 2, 3, 3)},
    {"layer1.9999.conv1.weight": (2, 2, 3, 3)}, {"layer99999999999999.0.conv1.weight": (2,)},
    {"layer2.0.conv1.weight": None}, {"layer2.0.conv1.weight": (2**40, 2, 3, 3)},
    {"layer2.0.conv1.weight": (4,)}, {"layer2.0.shortcut.0.weight": (4, 2, 1, 1)},
    {"layer2.0.downsample.0.weight": (4, 2, 1, 1)}, {"layer1.0.conv3.weight": (8, 2, 1, 1)},
    {"layer1.0.conv1.weight": (3, 2, 3, 3)}, {"layer1.0.bn2.weight": ()}, {"extra": ()},
    {"layer1.0.se.weight": (2, 2)}])
def test_keys_that_only_look_like_a_resnet_are_none(change):
    state = changed(meta(CifarResNet, **TINY).state_dict(), change)
    if "linear.weight" in change and change["linear.weight"] == (0, 6):
        state["linear.bias"] = torch.empty(0)
    assert RESNET.identify(state) is None


def test_torchvision_s_7x7_stem_and_other_families_are_no_cifar_resnet():
    nets = [meta(resnet18, num_classes=10), meta(resnet50), meta(wide_resnet50_2), meta(PreActResNet, **TINY),
            meta(WideResNet, **TINY, stem=2), meta(WideResNet, **TINY, stem=2, style="layer", bias=True)]
    assert not [net for net in nets if RESNET.identify(net.state_dict())] and RESNET.identify({}) is None


def test_torchvision_s_keys_with_a_3x3_stem_are_a_cifar_resnet_pool_or_not():
    net = meta(resnet18, num_classes=7)
    net.conv1 = meta(lambda: nn.Conv2d(3, 64, 3, 1, 1, bias=False))
    guess = RESNET.identify(net.state_dict())
    assert guess.options | RESNET.members["cifar-resnet18"] == guess.options
    assert guess.options["style"] == "fc"
    assert guess.others == ({"pool": True},) and guess.options["num_classes"] == 7


@pytest.mark.parametrize("style", sorted(STYLES))
def test_hidden_layers_of_a_resnet_are_its_blocks_and_every_weight_lives(style):
    net, x = CifarResNet(**TINY, style=style, shortcut="conv"), torch.rand(2, 3, 8, 8)
    first = STYLES[style]["first"]
    stages = [STYLES[style]["stage"].format(i + first) for i in range(3)]
    assert layers.hidden_layers(net, x) == [
        f"{stages[0]}.0", f"{stages[1]}.0", f"{stages[1]}.1", f"{stages[2]}.0"]
    assert live_parameters(net, x) == {n for n, _ in net.named_parameters()}
    assert not [m for m in net.modules() if getattr(m, "inplace", False)]


def test_unknown_words_are_refused():
    said = "shortcut is 'zero', expected 'conv', 'pad', 'pad-end' or 'pool-end'"
    with pytest.raises(ValueError, match=said):
        CifarResNet(shortcut="zero")
