"""The small networks of MNIST: published sizes, formulas by hand, and that every public one is read back."""
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers.family_checks import changed, count, guesses, meta

from pwoa_cli.networks import layers
from pwoa_cli.networks.families.small import CONVEX, LENET, SMALL_CNN, ConvexNet, LeNet, SmallCNN, lenet_side
from pwoa_cli.networks.layers import live_parameters

# --- LeNets ---------------------------------------------------------------

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


def loaded(net, again):
    """A network with the weights of another."""
    again.load_state_dict(net.state_dict())
    return again


FC = {"heads": ["fc1", "fc2"]}
PUBLIC = {  # repository: options, parameters by hand or as published
    "advertorch": ({}, 648_226),
    "madry": (FC | {"kernel": 5, "hidden": 1024}, 3_274_634),  # PwoA LeNet3, HYDRA, MNIST challenge ports
    # ADMM pruning; 431K in Han et al. 2015
    "caffe": (FC | {"widths": [20, 50], "kernel": 5, "padded": False, "hidden": 500}, 431_080),
    "trades-net": (FC | {"widths": [10, 20], "kernel": 5, "padded": False, "hidden": 50}, 21_840),
    "pytorch-examples": (FC | {"padded": False, "pools": 1, "hidden": 128}, 1_199_882),
    "lenet-5": ({"widths": [6, 16], "hidden": [120, 84], "kernel": 5, "padded": "first",
                 "heads": ["fc1", "fc2", "fc3"]}, 61_706),
    "kuangliu": ({"widths": [6, 16], "hidden": [120, 84], "kernel": 5, "padded": False,
                  "heads": ["fc1", "fc2", "fc3"], "in_channels": 3, "size": 32}, 62_006),
    "PwoA-LeNet4": ({"widths": [96, 256], "hidden": [1920, 1344], "kernel": 5, "padded": False,
                     "heads": ["fc1", "fc2", "fc3"], "in_channels": 3, "size": 32},
                    7_296 + 614_656 + 6401 * 1920 + 1921 * 1344 + 13_450)}


@pytest.mark.parametrize("name", sorted(PUBLIC))
@pytest.mark.parametrize("sort", [False, True])
def test_public_lenets_have_their_number_of_parameters_and_are_read_back(name, sort):
    options, parameters = PUBLIC[name]
    net = meta(LeNet, **options)
    state = net.state_dict()
    guess = LENET.identify({k: state[k] for k in sorted(state)} if sort else state)
    assert count(net) == parameters and {k: guess.options[k] for k in options} == options
    size = options.get("size", 28)
    assert guess.input_shape == (options.get("in_channels", 1), size, size)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(("padded", "pools"), [(True, 2), (False, 2), (False, 1), (True, 1)])
@pytest.mark.parametrize("hidden", [6, [6, 5]])
@pytest.mark.parametrize(("num_classes", "in_channels", "size"), [(10, 1, 28), (1, 3, 32), (7, 1, 28)])
def test_lenets_are_read_back_and_give_equal_logits(
        kernel, padded, pools, hidden, num_classes, in_channels, size):
    options = {"num_classes": num_classes, "in_channels": in_channels, "size": size, "widths": [2, 3],
               "hidden": hidden, "kernel": kernel, "padded": padded, "pools": pools, "convs": ["c1", "c2"],
               "heads": ["f1", "l2.fc", "f3"][:2 if hidden == 6 else 3]}
    net, x = LeNet(**options).eval(), torch.rand(2, in_channels, size, size)
    guess = LENET.identify(net.state_dict())
    assert guess.options == options | {"geometry": []}
    x32 = torch.rand(2, in_channels, 32, 32)
    for change, again in guesses(LENET, net):
        images = x if change.get("size", size) == size else x32[..., :change["size"], :change["size"]]
        assert again(images).shape == (2, num_classes)
        assert change or torch.equal(again(x), net(x))
    assert live_parameters(net, x) == {n for n, _ in net.named_parameters()}


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("pools", [1, 2])
@pytest.mark.parametrize(("padded", "pads"), [(True, (2, 2)), (False, (0, 0)), ("first", (2, 0))])
def test_lenet_by_hand_with_three_linear_layers(size, padded, pads, pools):
    net = LeNet(size=size, widths=(2, 3), hidden=(6, 5), kernel=5, padded=padded, pools=pools,
                heads=("fc1", "fc2", "fc3"))
    w, x = net.state_dict(), torch.rand(2, 1, size, size)
    h = F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=pads[0]).relu()
    h = F.max_pool2d(h, 2) if pools == 2 else h
    h = F.max_pool2d(F.conv2d(h, w["conv2.weight"], w["conv2.bias"], padding=pads[1]).relu(), 2)
    assert h.shape[-1] == lenet_side(size, kernel=5, padded=padded, pools=pools)
    h = F.linear(h.flatten(1), w["fc1.weight"], w["fc1.bias"]).relu()
    h = F.linear(h, w["fc2.weight"], w["fc2.bias"]).relu()
    torch.testing.assert_close(net(x), F.linear(h, w["fc3.weight"], w["fc3.bias"]))


def test_what_the_width_of_a_linear_layer_leaves_open_is_said():
    guess = LENET.identify(meta(LeNet, **PUBLIC["lenet-5"][0]).state_dict())
    assert guess.evidence == (
        "the keys conv1, conv2, fc1, fc2, fc3: 1-6-16 5x5, 400-120-84-10; by the 400: "
        "28x28 images, only the first convolution padded, 2 pools, "
        "or 32x32 images, convolutions without padding, 2 pools")
    assert {"size": 32, "geometry": [1, 1, 0, 0, 2, 2]} in guess.others, "for data of that size"
    one = LENET.identify(meta(LeNet, kernel=1).state_dict())
    first = {"padded": False, "geometry": []}
    assert one.options["padded"] is True and one.others[0] | first == one.others[0]


@pytest.mark.parametrize(("steps", "size"), [
    ([2, 2, 1, 1, 1, 1], 28), ([2, 2, 1, 1, 1, 1], 32), ([1, 1, 0, 0, 2, 1], 28), ([2, 1, 1, 1, 1, 2], 32)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_geometries_of_other_networks_with_these_keys_are_offered(steps, size, kernel):
    net = LeNet(geometry=steps, size=size, kernel=kernel, widths=(3, 4), hidden=5)
    w, x = net.state_dict(), torch.rand(2, 1, size, size)
    h = x
    for i in (1, 2):
        h = F.conv2d(h, w[f"conv{i}.weight"], w[f"conv{i}.bias"], stride=steps[i - 1],
                     padding=steps[i + 1]).relu()
        h = F.max_pool2d(h, steps[i + 3])
    h = F.linear(h.flatten(1), w["linear1.weight"], w["linear1.bias"]).relu()
    torch.testing.assert_close(net(x), F.linear(h, w["linear2.weight"], w["linear2.bias"]))
    guess = LENET.identify(net.state_dict())
    read = [guess.options | change for change in ({}, *guess.others)]
    assert any(torch.equal(net(x), loaded(net, LeNet(**options))(x)) for options in read
               if options["size"] == size)


@pytest.mark.parametrize("change", [
    {"conv1.weight": ()}, {"conv1.weight": (32,)}, {"conv1.weight": (32, 0, 3, 3)},
    {"conv1.weight": (32, 1, 4, 4)}, {"conv1.bias": None}, {"conv1.weight": (32, 1, 3, 5)},
    {"conv2.weight": (64, 31, 3, 3)}, {"conv2.weight": (0, 32, 3, 3)}, {"conv2.weight": (2**40, 32, 3, 3)},
    {"conv3.weight": (64, 64, 3, 3)}, {"linear1.weight": (200,)}, {"linear1.weight": (200, 2**50)},
    {"linear1.weight": (200, 3)}, {"linear1.weight": (199, 3136)}, {"linear1.weight": (200, 3137)},
    {"linear1.weight": (0, 3136)}, {"linear2.weight": None}, {"linear2.bias": ()}, {"extra": ()},
    {"bn1.weight": (32,)}])
def test_keys_that_only_look_like_a_lenet_are_none(change):
    assert LENET.identify(changed(meta(LeNet).state_dict(), change)) is None


@pytest.mark.parametrize(("old", "new"), [
    ("conv1", "forward"), ("conv1", "training"), ("conv1", "relu1"), ("linear1", "pool2"),
    ("linear1", "flatten"), ("conv2", "order"), ("linear1", "0"), ("conv1", "features.0")])
def test_names_that_a_module_has_already_or_of_a_chain_are_none(old, new):
    assert LENET.identify({k.replace(old, new): t for k, t in meta(LeNet).state_dict().items()}) is None


# --- SmallCNN ---------------------------------------------------------------

def test_small_cnn_is_that_of_trades():
    net, x = SmallCNN(widths=(2, 3, 4, 5), hidden=(6, 7)).eval(), torch.rand(2, 1, 28, 28)
    w, h = net.state_dict(), x
    for i in range(1, 5):
        h = F.conv2d(h, w[f"feature_extractor.conv{i}.weight"], w[f"feature_extractor.conv{i}.bias"]).relu()
        h = h if i % 2 else F.max_pool2d(h, 2)
    h = h.flatten(1)
    for i in range(1, 4):
        h = F.linear(h if i == 1 else h.relu(), w[f"classifier.fc{i}.weight"], w[f"classifier.fc{i}.bias"])
    torch.testing.assert_close(net(x), h)
    assert count(meta(SmallCNN)) == 312_202, "320 + 9248 + 18496 + 36928 + 205000 + 40200 + 2010"


@pytest.mark.parametrize("options", [
    {}, {"num_classes": 3, "widths": [2, 3, 4, 5], "hidden": [6, 7]},
    {"in_channels": 3, "size": 32, "num_classes": 1}])
def test_small_cnns_are_read_back(options):
    net = meta(SmallCNN, **options)
    guess = SMALL_CNN.identify(net.state_dict())
    assert {k: guess.options[k] for k in options} == options
    size = options.get("size", 28)
    assert guess.input_shape == (options.get("in_channels", 1), size, size)
    assert list(meta(SMALL_CNN.make, **guess.options).state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("change", [
    {"feature_extractor.conv1.weight": ()}, {"feature_extractor.conv3.weight": None},
    {"feature_extractor.conv4.weight": (64, 63, 3, 3)}, {"classifier.fc1.weight": (200, 1000)},
    {"classifier.fc1.weight": (200, 2**50)}, {"classifier.fc1.weight": (200, 1)},
    {"classifier.fc3.weight": (0, 200)}, {"classifier.fc3.bias": None}, {"classifier.fc4.weight": (2, 2)},
    {"extra": ()}])
def test_keys_that_only_look_like_a_small_cnn_are_none(change):
    assert SMALL_CNN.identify(changed(meta(SmallCNN).state_dict(), change)) is None


# --- convex_adversarial ---------------------------------------------------------------

# by hand, (reads + 1) * makes summed: 17*16 + 257*32 + 1569*100 + 1010, 49*16 + 257*32 + 2049*100 + 1010;
# 10*32 + 513*32 + 289*64 + 1025*64 + 3137*512 + 513*512 + 5130,
# 28*32 + 513*32 + 289*64 + 1025*64 + 4097*512 + 513*512 + 5130
@pytest.mark.parametrize(("name", "options", "parameters"), [
    ("convex-small", {}, 166_406), ("convex-small", {"in_channels": 3, "size": 32}, 214_918),
    ("convex-large", {}, 1_974_762), ("convex-large", {"in_channels": 3, "size": 32}, 2_466_858)])
def test_convex_networks_have_their_number_of_parameters_and_are_read_back(name, options, parameters):
    net = meta(CONVEX.make, **CONVEX.members[name] | options)
    guess = CONVEX.identify(net.state_dict())
    wanted = CONVEX.members[name] | options
    assert count(net) == parameters and {k: guess.options[k] for k in wanted} == wanted
    size = options.get("size", 28)
    assert guess.input_shape == (options.get("in_channels", 1), size, size)


@pytest.mark.parametrize("num_classes", [1, 10])
@pytest.mark.parametrize(("widths", "kernels", "hidden"), [
    ([2, 3], [4, 4], [5]), ([2, 3, 4, 5], [3, 4, 3, 4], [6, 7]), ([2], [4], [])])
def test_convex_network_by_hand(num_classes, widths, kernels, hidden):
    options = {"num_classes": num_classes, "in_channels": 2, "size": 32, "widths": widths, "kernels": kernels,
               "hidden": hidden}
    net, x = ConvexNet(**options), torch.rand(2, 2, 32, 32)
    tensors = list(net.state_dict().values())
    weights, h = list(zip(tensors[::2], tensors[1::2], strict=True)), x
    for weight, bias in weights[:len(widths)]:
        h = F.conv2d(h, weight, bias, stride=weight.shape[-1] - 2, padding=1).relu()
    h = h.flatten(1)
    for weight, bias in weights[len(widths):-1]:
        h = F.linear(h, weight, bias).relu()
    torch.testing.assert_close(net(x), F.linear(h, *weights[-1]))
    assert CONVEX.identify(net.state_dict()).options == options
    found = layers.hidden_layers(net, x)
    assert len(found) == len(widths) + len(hidden) and all(int(b) > int(a) for a, b in pairwise(found))


@pytest.mark.parametrize("change", [
    {"0.weight": ()}, {"0.weight": (16,)}, {"0.weight": (16, 0, 4, 4)}, {"0.weight": (16, 1, 5, 5)},
    {"2.weight": None}, {"1.weight": (16,)}, {"2.weight": (32, 16, 3, 3)}, {"3.weight": (100, 1568)},
    {"4.weight": (100, 1568)}, {"5.weight": (100, 1568 * 4)}, {"5.weight": ()}, {"5.weight": (100, 1)},
    {"05.weight": (100, 1568)}, {"9999.weight": (3, 3)}, {"7.weight": (0, 100)}, {"7.bias": None},
    {"extra": ()}, {"2.weight": (2**40, 16, 4, 4)}, {"5.weight": (100, 2**50)}])
def test_other_chains_are_none(change):
    assert CONVEX.identify(changed(meta(ConvexNet).state_dict(), change)) is None
    assert LENET.identify(meta(ConvexNet).state_dict()) is None and CONVEX.identify({}) is None


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="kernels are 4-5, expected 3 or 4"):
        ConvexNet(kernels=(4, 5))
    with pytest.raises(KeyError):
        LeNet(padded="last")
