"""VGGs for 32x32 images: published sizes, the formula by hand, and that every public layout is read back."""
import json
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers.family_checks import meta, trained
from torchvision.models import vgg11, vgg16_bn

from pwoa_cli.networks import layers
from pwoa_cli.networks.families.small import LENET
from pwoa_cli.networks.families.vgg import VGG, CifarVGG
from pwoa_cli.networks.layers import live_parameters

TINY = {"stages": [[2, 3], [4], [4, 5], [6], [8]]}
HEADS = {  # the layouts that are in circulation
    "kuangliu": {"heads": ["classifier"], "hidden": []},
    "HARP": {"heads": ["classifier.0", "classifier.2", "classifier.4"], "hidden": [7, 8], "conv_bias": False,
             "end": "none", "side": 2},
    "chengyangfu": {"heads": ["classifier.1", "classifier.4", "classifier.6"], "hidden": [7, 7]},
    "chenyaofo": {"heads": ["classifier.0", "classifier.3", "classifier.6"], "hidden": [7, 7]},
    "weiaicunzai": {"heads": ["classifier.0", "classifier.3", "classifier.5"], "hidden": [8, 8]},
    "slimming": {"heads": ["classifier"], "hidden": [], "features": "feature", "conv_bias": False,
                 "end": "mean"},
    "l1-norm": {"heads": ["classifier.0", "classifier.3"], "hidden": [7], "features": "feature",
                "conv_bias": False, "end": "mean", "head_norm": True}}


# --- published figures ---------------------------------------------------------------

TEN = HEADS["chenyaofo"] | {"hidden": [4096, 4096]}
HUNDRED = HEADS["weiaicunzai"] | {"hidden": [4096, 4096], "num_classes": 100}


# VGGs of kuangliu/pytorch-cifar, in many a README
@pytest.mark.parametrize(("name", "options", "parameters"), [
    ("cifar-vgg11-bn", {}, 9_231_114), ("cifar-vgg13-bn", {}, 9_416_010), ("cifar-vgg16-bn", {}, 14_728_266),
    ("cifar-vgg19-bn", {}, 20_040_522)])
def test_members_have_the_published_number_of_parameters(name, options, parameters):
    assert sum(p.numel() for p in meta(VGG.make, **VGG.members[name] | options).parameters()) == parameters


@pytest.mark.parametrize(("name", "options", "millions", "digit"), [  # README of huyvnphan/PyTorch_CIFAR10
    ("cifar-vgg11-bn", TEN, 28.150, 0.0005), ("cifar-vgg13-bn", TEN, 28.334, 0.0006),
    ("cifar-vgg16-bn", TEN, 33.647, 0.0005), ("cifar-vgg19-bn", TEN, 38.959, 0.0005),
    # README of weiaicunzai/pytorch-cifar100
    ("cifar-vgg11-bn", HUNDRED, 28.5, 0.05), ("cifar-vgg13-bn", HUNDRED, 28.7, 0.05),
    ("cifar-vgg16-bn", HUNDRED, 34.0, 0.05),
    ("cifar-vgg16", {}, 14.72, 0.005), ("cifar-vgg19", {}, 20.03, 0.005),  # DA2Lite, without batch norm
    ("cifar-vgg19-bn", HEADS["slimming"], 20.04, 0.0051)])  # README of network-slimming
def test_members_with_other_heads_have_the_published_millions(name, options, millions, digit):
    count = sum(p.numel() for p in meta(VGG.make, **VGG.members[name] | options).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=digit)


@pytest.mark.parametrize("name", sorted(VGG.members))
def test_a_member_s_number_counts_convolutions_and_the_paper_s_linear_layers(name):
    convolutions = sum(len(stage) for stage in VGG.members[name]["stages"])
    assert name.removeprefix("cifar-vgg").removesuffix("-bn") == str(convolutions + 3)
    guess = VGG.identify(meta(VGG.make, **VGG.members[name]).state_dict())
    assert f"VGG-{convolutions + 3}" in guess.evidence
    assert all(guess.options[k] == v for k, v in VGG.members[name].items())


# --- the formula ---------------------------------------------------------------

def by_hand(w, x, *, stages, features, batch_norm, end, heads, head_norm):
    """The forward pass with functions alone; positions counted as the modules of the published Sequential."""
    position = 0
    for i, stage in enumerate(stages):
        position += bool(i)
        x = F.max_pool2d(x, 2) if i else x
        for _ in stage:
            x = F.conv2d(x, w[f"{features}.{position}.weight"], w.get(f"{features}.{position}.bias"),
                         padding=1)
            position += 1
            if batch_norm:
                mean, var, scale, shift = (w[f"{features}.{position}.{k}"].view(1, -1, 1, 1)
                                           for k in ("running_mean", "running_var", "weight", "bias"))
                x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
                position += 1
            x, position = x.relu(), position + 1
    x = {"none": lambda t: t, "max": lambda t: F.max_pool2d(t, 2),
         "mean": lambda t: F.avg_pool2d(t, 2)}[end](x).flatten(1)
    for head in heads:
        x = F.linear(x, w[f"{head}.weight"], w[f"{head}.bias"])
        if head_norm and head != heads[-1]:
            mean, var, scale, shift = (w[f"classifier.1.{k}"]
                                       for k in ("running_mean", "running_var", "weight", "bias"))
            x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
        x = x.relu() if head != heads[-1] else x
    return x


@pytest.mark.parametrize("layout", sorted(HEADS))
@pytest.mark.parametrize("batch_norm", [True, False])
def test_forward_is_the_published_formula_and_one_of_the_guesses(layout, batch_norm):
    options = {"features": "features", "end": "max", "head_norm": False} | HEADS[layout]
    options |= {"batch_norm": batch_norm, **TINY}
    net, x = trained(CifarVGG(**options)), torch.rand(2, 3, 32, 32)
    used = ("stages", "features", "batch_norm", "end", "heads", "head_norm")
    expected = by_hand(net.state_dict(), x, **{k: options[k] for k in used})
    torch.testing.assert_close(net(x), expected)
    guess = VGG.identify(net.state_dict())
    equal = []
    for change in ({}, *guess.others):
        again = VGG.make(**json.loads(json.dumps(guess.options | change))).eval()
        again.load_state_dict(net.state_dict())
        equal.append(torch.equal(again(x), net(x)))
    assert equal == [True, *[False] * len(guess.others)], "the first guess is what the repository does"


@pytest.mark.parametrize(("end", "expected"), [
    ("mean", lambda x: x.mean((2, 3), keepdim=True)),
    ("max-mean", lambda x: F.max_pool2d(x, 2).mean((2, 3), keepdim=True))])
def test_a_mean_at_the_end_is_over_all_that_is_left(end, expected):
    net, x = trained(CifarVGG(**TINY, end=end)), torch.rand(2, 3, 64, 64)
    assert net.features(x).shape[2:] == (4, 4)
    torch.testing.assert_close(net(x), net.classifier(expected(net.features(x)).flatten(1)))


# --- identification ---------------------------------------------------------------

@pytest.mark.parametrize("layout", sorted(HEADS))
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("stages", "num_classes", "in_channels"), [
    (TINY["stages"], 10, 3), ([[2] * 2, [3] * 2, [4] * 4, [4] * 4, [4] * 4], 100, 4),
    ([[1], [2], [3, 3], [2, 2], [2, 2]], 1, 1)])
def test_identify_reads_every_size_back(layout, batch_norm, stages, num_classes, in_channels):
    options = {"num_classes": num_classes, "in_channels": in_channels, "stages": stages,
               "batch_norm": batch_norm, "conv_bias": True, "end": "max", "side": 1, "features": "features",
               "head_norm": False} | HEADS[layout]
    guess = VGG.identify(meta(CifarVGG, **options).state_dict())
    assert guess.arch == VGG.name and guess.options == options and guess.input_shape == (in_channels, 32, 32)
    net, x = CifarVGG(**guess.options).eval(), torch.rand(1, in_channels, 32, 32)
    assert net(x).shape == (1, num_classes)


@pytest.mark.parametrize(("options", "end", "size", "others"), [
    ({"end": "max"}, "max", 32, ({"end": "mean"},)), ({"end": "mean"}, "max", 32, ({"end": "mean"},)),
    ({"end": "mean", "features": "feature"}, "mean", 32, ({"end": "max"},)),
    ({"end": "none", "side": 2}, "none", 32, ()),
    # Tiny ImageNet, the published head
    ({"end": "max", "side": 2, "num_classes": 200}, "max", 64, ({"end": "mean"},)),
    ({"end": "none", "side": 4}, "none", 64, ()),
    # HYDRA's vgg4
    ({"stages": [[2, 2], [3, 3]], "end": "max-mean", "side": 2}, "max-mean", 32, ({"end": "mean"},))])
def test_what_is_behind_the_last_convolution_is_read_from_the_linear_layer(options, end, size, others):
    guess = VGG.identify(meta(CifarVGG, **TINY | options).state_dict())
    assert (guess.options["end"], guess.input_shape, guess.others) == (end, (3, size, size), others)
    assert f"for images of {size}x{size}" in guess.evidence


def test_evidence_names_keys_sizes_and_pools():
    evidence = VGG.identify(meta(CifarVGG, **VGG.members["cifar-vgg16-bn"]).state_dict()).evidence
    assert evidence == (
        "the keys features.0 to .40 (3x3, batch norm), classifier: VGG-16, widths 64-64, 128-128, "
        "256-256-256, 512-512-512, 512-512-512 between 4 pools; classifier reads 512 channels of 1x1, "
        "so a 2x2 max pool behind them for images of 32x32")


def test_counters_of_batch_norms_may_be_missing_and_keys_may_be_sorted():
    for layout in HEADS.values():
        state = meta(CifarVGG, **TINY | layout).state_dict()
        sorted_state = {k: state[k] for k in sorted(state) if not k.endswith("num_batches_tracked")}
        assert VGG.identify(sorted_state) == VGG.identify(state) is not None


@pytest.mark.parametrize("change", [
    {"features.0.weight": None}, {"features.0.weight": ()}, {"features.0.weight": (2, 0, 3, 3)},
    {"features.0.weight": (2, 3, 5, 5)}, {"features.0.weight": (2, 3)}, {"features.3.weight": None},
    {"features.3.weight": (3, 2, 1, 1)}, {"features.3.weight": (3, 7, 3, 3)},
    {"features.3.weight": (2**40, 2, 3, 3)}, {"features.9999.weight": (3, 3, 3, 3)},
    {"features.99999999.weight": (3, 3, 3, 3)}, {"features.03.weight": (3, 2, 3, 3)},
    {"features.99.weight": (8, 8, 3, 3)}, {"features.1.running_mean": None}, {"features.1.weight": (3,)},
    {"layers.0.weight": (2, 3, 3, 3)}, {"classifier.weight": None}, {"classifier.weight": ()},
    {"classifier.weight": (0, 8)}, {"classifier.weight": (10,)}, {"classifier.weight": (10, 0)},
    {"classifier.weight": (10, 7)}, {"classifier.weight": (10, 8 * 49)}, {"classifier.weight": (10, 2**56)},
    {"classifier.bias": None}, {"classifier.0.weight": (10, 8)}, {"fc.weight": (10, 8)}, {"extra": (3,)},
    {"extra": ()}])
def test_keys_that_only_look_like_it_are_none(change):
    state = meta(CifarVGG, **TINY).state_dict()
    state |= {k: torch.empty(s, device="meta") for k, s in change.items() if s is not None}
    assert VGG.identify({k: t for k, t in state.items() if change.get(k, ()) is not None}) is None


@pytest.mark.parametrize("change", [
    {"classifier.2.weight": (8, 8)}, {"classifier.4.weight": (10, 9)}, {"classifier.1.weight": (7, 7)},
    {"classifier.02.weight": (8, 7)}, {"classifier.99999.weight": (10, 10)}, {"classifier.0.weight": (7, 0)},
    {"other.0.weight": (7, 7)}, {"classifier.2.bias": None}])
def test_heads_that_do_not_fit_together_are_none(change):
    state = meta(CifarVGG, **TINY | HEADS["HARP"]).state_dict()
    state |= {k: torch.empty(s, device="meta") for k, s in change.items() if s is not None}
    assert VGG.identify({k: t for k, t in state.items() if change.get(k, ()) is not None}) is None


@pytest.mark.parametrize(("old", "new"), [
    ("features.", "forward."), ("features.", "end."), ("classifier.", "training.")])
def test_names_that_a_module_has_already_are_none(old, new):
    state = {k.replace(old, new): t for k, t in meta(CifarVGG, **TINY).state_dict().items()}
    assert VGG.identify(state) is None


def test_torchvision_s_is_not_it():
    for net in (meta(vgg11), meta(vgg11, num_classes=10), meta(vgg16_bn, num_classes=10)):
        assert VGG.identify(net.state_dict()) is None
    assert VGG.identify({}) is None and LENET.identify(meta(CifarVGG, **TINY).state_dict()) is None


def test_hidden_layers_are_the_activations_and_every_weight_lives():
    net, x = CifarVGG(**TINY | HEADS["chengyangfu"]), torch.rand(2, 3, 32, 32)
    hidden = layers.hidden_layers(net, x)
    assert hidden[0] == "features.2" and hidden[-2:] == ["classifier.2", "classifier.5"]
    assert len(hidden) == 7 + 2
    assert live_parameters(net, x) == {n for n, _ in net.named_parameters()}
    numbers = [int(name.split(".")[1]) for name in hidden[:7]]
    steps = [b - a for a, b in pairwise(numbers)]
    assert steps == [3, 4, 4, 3, 4, 4], "one more wherever a pool lies between"
    with pytest.raises(KeyError):
        CifarVGG(**TINY, end="median")


@pytest.mark.parametrize(("heads", "hidden"), [
    (["classifier"], [7]), (["classifier.0", "classifier.2"], []), (["classifier.0"], [7])])
def test_widths_that_do_not_fit_the_heads_are_refused(heads, hidden):
    with pytest.raises(ValueError, match="widths between them"):
        CifarVGG(heads=heads, hidden=hidden)
