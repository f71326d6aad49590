"""What is found by running a model: hidden layers, batch norms behind filters, multiply-accumulates."""
import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vgg11_bn

from pwoa_cli.networks import layers
from pwoa_cli.networks.families.small import LeNet
from pwoa_cli.networks.layers import live_parameters

X = torch.rand(2, 3, 32, 32)


def test_a_residual_network_has_its_blocks():
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert layers.hidden_layers(resnet18(num_classes=10), X) == blocks


def test_inner_adds_the_norms_inside_the_blocks():
    inner = layers.hidden_layers(resnet18(num_classes=10), X, "inner")
    assert inner[:7] == ["layer1.0.bn1", "layer1.0", "layer1.1.bn1", "layer1.1", "layer2.0.bn1",
                         "layer2.0.downsample.1", "layer2.0"]
    assert len(inner) == 8 + 8 + 3  # blocks write their sum on bn2's output, which then is the block's

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm_a = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.b, self.norm_b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return x + self.norm_b(self.b(torch.relu(self.norm_a(self.a(x)))))

    plain = nn.Sequential(nn.BatchNorm2d(3), Block(), nn.Flatten(), nn.Linear(3072, 2))
    assert layers.hidden_layers(plain, X, "inner") == ["1.norm_a", "1.norm_b", "1"]


def test_a_plain_network_has_its_activations_before_the_logits():
    assert layers.hidden_layers(LeNet(), torch.rand(2, 1, 28, 28)) == ["relu1", "relu2", "relu3"]
    assert layers.hidden_layers(LeNet(), torch.rand(2, 1, 28, 28), "inner") == ["relu1", "relu2", "relu3"]
    names = layers.hidden_layers(vgg11_bn(num_classes=10), X)
    assert len(names) == 10 and all(n.startswith(("features", "classifier")) for n in names)


def test_a_network_without_modules_for_activations_has_its_weighted_layers():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    assert layers.hidden_layers(Functional(), torch.rand(2, 4)) == ["a", "b"]


def test_patterns_choose_and_unknown_ones_say_what_there_is():
    found = layers.hidden_layers(resnet18(), X, "layer?.1, layer1.0")
    assert found == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    with pytest.raises(ValueError, match="no hidden layer matches 'block9'; modules that run: conv1"):
        layers.hidden_layers(resnet18(), X, "block9")
    wrapped = nn.Module()
    wrapped.net, wrapped.forward = resnet18(), lambda x: wrapped.net(x)
    assert layers.hidden_layers(wrapped, X, "layer4.1") == ["net.layer4.1"]
    with pytest.raises(ValueError, match="modules that run: conv1, bn1"):  # names as the checkpoint has them
        layers.hidden_layers(wrapped, X, "block9")


def test_capture_keeps_order_and_refills():
    model = LeNet()
    with layers.capture(model, ["relu2", "relu1"]) as hidden:
        model(torch.rand(2, 1, 28, 28))
        assert [tuple(z.shape) for z in hidden] == [(2, 32, 28, 28), (2, 64, 14, 14)]
        model(torch.rand(3, 1, 28, 28))
        assert len(hidden) == 2 and len(hidden[0]) == 3
    assert not model._forward_pre_hooks and not model.relu1._forward_hooks


def test_norms_are_those_that_read_the_filter():
    found = layers.norms(resnet18(), X)
    assert found["conv1"] == ("bn1",) and found["layer1.0.conv2"] == ("layer1.0.bn2",)
    assert found["layer2.0.downsample.0"] == ("layer2.0.downsample.1",)
    assert "fc" not in found


class Shared(nn.Module):
    """A convolution that runs twice, a norm behind each, and two layers of one matrix."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(3), nn.InstanceNorm2d(3, affine=True)
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(self.two(self.conv(self.one(self.conv(x)))).mean((2, 3))))


def test_all_that_speaks_behind_shared_weights_is_found():
    assert layers.companions(Shared(), X) == {
        "conv.weight": ("conv.bias", "one.weight", "one.bias", "two.weight", "two.bias"),
        "a.weight": ("a.bias", "b.bias")}


def test_attention_has_rows_and_its_bias():
    net = nn.MultiheadAttention(4, 2)
    assert layers.rows(net) == {"in_proj_weight": "in_proj_bias", "out_proj.weight": "out_proj.bias"}
    assert set(layers.rows(nn.MultiheadAttention(4, 2, kdim=6))) == {"out_proj.weight"}


@pytest.mark.parametrize("fast", [True, False])
def test_macs_of_attention_and_of_what_torch_fuses(fast):
    """By hand: 5 tokens of 8, 7 of 6 as keys; torch's fast path calls none of the layers inside."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)

        def forward(self, x):
            t, other = x[:, 0, :5], x[:, 0, :7, :6]
            return self.cross(self.layer(t), other, value=other)[0].mean(1)

    net = Net().eval().requires_grad_(not fast)
    layer = 5 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 16)
    cross = 5 * 8 * 8 + 2 * 7 * 8 * 6 + 5 * 8 * 8
    assert layers.macs(net, torch.rand(2, 1, 8, 8))["dense"] == layer + cross
    by_weight = layers.macs_by_weight(net, torch.rand(2, 1, 8, 8))
    assert sum(by_weight.values()) == layer + cross
    assert by_weight.keys() <= dict(net.named_parameters()).keys()


@pytest.mark.parametrize(("conv", "shape"), [
    (nn.ConvTranspose1d(4, 6, 3, 2), (1, 4, 5)), (nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2), (1, 4, 5, 3)),
    (nn.ConvTranspose3d(4, 6, 2, 2), (1, 4, 2, 3, 2))])
def test_macs_of_transposed_convolutions_are_those_of_every_input(conv, shape):
    """One product for each weight and each position of the input that it multiplies."""
    x = torch.rand(shape)
    positions = x[0, 0].numel()
    assert layers.macs(conv, x) == {"dense": conv.weight.numel() * positions,
                                    "nonzero": conv.weight.numel() * positions}


def test_macs_of_a_lenet():
    model = LeNet()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1)  # of 600,000 random weights one may be 0
    dense = 28 * 28 * 32 * 9 + 14 * 14 * 64 * 32 * 9 + 3136 * 200 + 2000
    assert layers.macs(model, torch.rand(4, 1, 28, 28)) == {"dense": dense, "nonzero": dense}
    with torch.no_grad():
        model.conv2.weight[:32] = 0
    assert layers.macs(model, torch.rand(1, 1, 28, 28))["nonzero"] == dense - 14 * 14 * 32 * 32 * 9


def test_the_logit_layer_is_the_last_that_runs():
    assert layers.logit_layers(resnet18(), X) == ["fc"]

    class Positions(nn.Module):  # a matrix of the network's own is no layer behind all others
        def __init__(self):
            super().__init__()
            self.where, self.fc = nn.Parameter(torch.rand(8, 8)), nn.Linear(64, 3)

        def forward(self, x):
            return self.fc((x + self.where).flatten(1))

    assert layers.logit_layers(nn.Sequential(Positions()), torch.rand(2, 8, 8)) == ["0.fc"]


@pytest.mark.parametrize(("answer", "heads"), [
    ("(self.fc(h), self.other(h))[0]", ["fc"]), ("self.fc(h) + self.other(h)", ["fc", "other"]),
    ("(self.fc(h), self.other(self.fc(h)))[0]", ["fc"]), ("self.other(self.fc(h).relu())", ["other"]),
    ("self.fc(h).add_(self.other(h)).mul(2).log_softmax(1)", ["fc", "other"])])
def test_the_logit_layers_are_those_that_the_logits_come_from(answer, heads):
    """Whichever runs last, and however many there are; flags and grads stay as they were."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.other = nn.Conv2d(1, 4, 8), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = self.conv(x).flatten(1)  # noqa: F841 (of the answer)
            return eval(answer)

    net = Net().train()
    net.conv.requires_grad_(False)
    assert layers.logit_layers(net, torch.rand(2, 1, 8, 8)) == heads
    assert net.training and [p.requires_grad for p in net.parameters()] == [False] * 2 + [True] * 4
    assert all(p.grad is None for p in net.parameters())


def test_macs_count_every_window_of_an_image():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x):  # (B, 1, 8, 8) -> four windows of 16 pixels, in the first dimension
            return self.head(self.fc(x.reshape(-1, 16)).view(len(x), 4, 8).mean(1))

    assert layers.macs(Windows(), torch.rand(1, 1, 8, 8))["dense"] == 4 * 16 * 8 + 24
    assert layers.hidden_layers(Windows(), torch.rand(2, 1, 8, 8), "head") == ["head"]
    with pytest.raises(ValueError, match="no hidden layer matches 'fc'"):  # its rows are windows, not images
        layers.hidden_layers(Windows(), torch.rand(2, 1, 8, 8), "fc")


class Bumps(nn.Module):
    """Weights in a list and a dictionary, one of them twice; a constant by channel and a token are none."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.rand(3, 4)), nn.Parameter(torch.rand(4, 5))])
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.rand(5, 2))})
        self.one, self.two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.two.weight = self.one.weight
        self.gain, self.token = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.zeros(1, 3))
        self.cell = nn.GRU(2, 2)

    def forward(self, x):
        x = (x + self.token) * self.gain.T @ self.weights[0] @ self.weights[1] @ self.named["a"]
        return self.two(self.one(self.cell(x)[0]))


def test_weights_in_lists_count_tied_ones_once_and_others_are_named():
    net = Bumps()
    live = live_parameters(net, torch.rand(1, 3))
    expected = {"weights.0", "weights.1", "named.a", "one.weight"}
    assert set(layers.prunable(net, live)) == expected == set(layers.prunable(net, None))
    assert set(layers.uncounted(net, live, expected)) == {"cell.weight_ih_l0", "cell.weight_hh_l0"}


def test_attention_counts_its_projections():
    net = nn.MultiheadAttention(4, 2, kdim=6, vdim=6)
    assert set(layers.prunable(net, None)) == {
        "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"}
    assert set(layers.prunable(nn.MultiheadAttention(4, 2), None)) == {"in_proj_weight", "out_proj.weight"}


class Unused(nn.Module):
    """A WideResNet of TRADES-like code in small: forward never uses its second sub_block1."""

    def __init__(self):
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())
        self.sub_block1 = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.block1(x).mean((2, 3)))


def test_live_parameters_leaves_out_what_forward_never_uses():
    net = Unused()
    used = {n for n, _ in net.named_parameters() if not n.startswith("sub_block1")}
    assert live_parameters(net, torch.rand(2, 1, 4, 4)) == used


def test_a_pass_leaves_every_module_in_its_mode():
    net = Unused().train()
    net.block1[1].eval()
    layers.macs(net, torch.rand(1, 1, 4, 4))
    assert net.training and net.sub_block1[1].training and not net.block1[1].training


def test_live_parameters_counts_frozen_ones_and_changes_nothing():
    net = Unused().train()
    net.block1[1].eval()
    net.fc.weight.requires_grad_(False)
    net.fc.bias.grad = torch.ones(3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        assert "fc.weight" in live_parameters(net, torch.rand(2, 1, 4, 4))
    assert net.training and net.sub_block1[1].training and not net.block1[1].training
    assert not net.fc.weight.requires_grad and net.fc.bias.requires_grad
    assert torch.equal(net.fc.bias.grad, torch.ones(3)) and net.fc.weight.grad is None
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_sum_in_place_is_no_longer_what_the_filter_gave():
    """A block gives the convolution's own tensor with the shortcut added: the next block's norm reads
    both, and a shortcut speaks where the filter is silent."""
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
            self.bn2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            out = self.conv2(self.bn2(self.conv1(self.bn1(x))).relu())
            out += x
            return out

    net = nn.Sequential(Block(), Block(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))
    found = layers.norms(net, torch.rand(2, 3, 8, 8))
    assert found == {"0.conv1": ("0.bn2",), "1.conv1": ("1.bn2",)}
    assert layers.companions(net, torch.rand(2, 3, 8, 8))["0.conv2.weight"] == ("0.conv2.bias",)
