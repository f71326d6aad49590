import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pwoa_cli import families
from pwoa_cli.families.resnet import STYLES, CifarResNet, ResidualBlock
from pwoa_cli.families.small import LeNet, lenet_side
from pwoa_cli.models import build


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def count(net):
    return sum(p.numel() for p in net.parameters())


# parameters as the ResNet paper, akamaster/pytorch_resnet_cifar10 and kuangliu/pytorch-cifar print them
@pytest.mark.parametrize(("name", "parameters"), [
    ("cifar-resnet20", 269_722), ("cifar-resnet32", 464_154), ("cifar-resnet44", 658_586), ("cifar-resnet56", 853_018),
    ("cifar-resnet110", 1_727_962), ("cifar-resnet18", 11_173_962), ("cifar-resnet34", 21_282_122),
    ("cifar-resnet50", 23_520_842)])
def test_resnets_have_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):
        net = build(name, {"num_classes": 10})
    assert count(net) == parameters
    depth = sum(isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n for n, m in net.named_modules())
    assert name == f"cifar-resnet{depth}"


@pytest.mark.parametrize("name", sorted(families.MEMBERS))
def test_every_family_gives_logits_for_any_classes_and_channels(name):
    size = 28 if name in ("lenet5", "smallcnn") else 32
    with torch.device("meta"):
        assert build(name, {"num_classes": 7, "in_channels": 2})(torch.empty(2, 2, size, size)).shape == (2, 7)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("size", [28, 32])
def test_lenet_side_is_what_convolution_and_pooling_leave(size, padded, kernel):
    pad = kernel // 2 if padded else 0
    x, w = torch.zeros(1, 1, size, size), torch.zeros(1, 1, kernel, kernel)
    for _ in range(2):
        x = F.max_pool2d(F.conv2d(x, w, padding=pad), 2)
    assert lenet_side(size, kernel=kernel, padded=padded) == x.shape[-1]


def test_lenet_is_conv_relu_pool_twice_and_two_linear_layers():
    net, x = LeNet(widths=(3, 4), hidden=5), torch.rand(2, 1, 28, 28)
    w = net.state_dict()
    h = F.max_pool2d(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1).relu(), 2)
    h = F.max_pool2d(F.conv2d(h, w["conv2.weight"], w["conv2.bias"], padding=1).relu(), 2)
    h = F.linear(h.flatten(1), w["linear1.weight"], w["linear1.bias"]).relu()
    torch.testing.assert_close(net(x), F.linear(h, w["linear2.weight"], w["linear2.bias"]))


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
