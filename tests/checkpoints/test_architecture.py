"""Which network a state dict is: our families and the libraries' models by their keys, --arch and its
options."""
import json

import pytest
import torch
import torchvision
from helpers.checkpoints import load, prefixed, refused

from pwoa_cli.checkpoints import architecture
from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.errors import InputError
from pwoa_cli.files import sparse
from pwoa_cli.networks.build import build
from pwoa_cli.networks.families.resnet import CifarResNet
from pwoa_cli.networks.families.small import LeNet, SmallCNN

# --- families ---------------------------------------------------------------

@pytest.mark.parametrize("options", [
    {}, {"widths": [6, 16], "kernel": 5, "hidden": 84}, {"widths": [6, 16], "kernel": 5, "padded": False},
    {"widths": [2, 3], "kernel": 5, "padded": False, "hidden": 50, "heads": ["fc1", "fc2"], "num_classes": 7},
    {"kernel": 3, "padded": False}, {"size": 32, "in_channels": 3},
    {"size": 32, "in_channels": 3, "padded": False}, {"heads": ["l1.fc", "l2.fc"]}, {"size": 16},
    {"heads": ["fc", "classifier"], "widths": [2, 2], "hidden": 300}])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_lenets_of_any_size(save, options, name):
    net = LeNet(**({"widths": [3, 4], "hidden": 6} | options)).eval()
    loaded = load(save(net.state_dict(), name))
    assert {k: loaded.arch_options[k] for k in options} == options
    x = torch.rand(2, *loaded.input_shape)
    assert torch.equal(loaded.model(x), net(x))
    assert loaded.num_classes == options.get("num_classes", 10)


@pytest.mark.parametrize("style", ["linear", "fc", "linear-downsample", "fc-shortcut", "stage_ab"])
@pytest.mark.parametrize("sizes", [{"blocks": [2, 1, 3], "widths": [2, 4, 8], "shortcut": "pad"},
                                   {"blocks": [2, 2, 1, 1], "widths": [4, 4, 6, 8], "shortcut": "conv"},
                                   {"blocks": [1, 2, 1, 1], "widths": [2, 2, 3, 4], "shortcut": "conv",
                                    "bottleneck": True}])
def test_resnets_of_any_depth_width_and_naming(save, style, sizes):
    if sizes["shortcut"] == "pad" and style == "stage_ab":
        sizes = sizes | {"shortcut": "pad-end"}  # what the one public repository with these names does
    net = CifarResNet(**sizes, style=style, num_classes=7, in_channels=1).eval()
    loaded = load(save(net.state_dict()))
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded.model(x), net(x))
    assert (loaded.arch, loaded.num_classes, loaded.input_shape) == ("cifar-resnet", 7, None)
    assert set(loaded.model.net.state_dict()) == set(net.state_dict()), "the checkpoint's own keys"
    again = build(loaded.arch, json.loads(json.dumps(loaded.arch_options))).eval()
    again.load_state_dict(loaded.model.net.state_dict())
    assert torch.equal(again(x), net(x)), "name and options as JSON give the model again"


def test_small_cnn_of_trades(save):
    net = build("smallcnn", {"num_classes": 4}).eval()
    x = torch.rand(2, 1, 28, 28)
    loaded = load(save(net.state_dict()))
    assert loaded.arch == "smallcnn" and torch.equal(loaded.model(x), net(x))


def test_names_of_ours_are_taken_for_every_naming_of_their_family(save):
    net = CifarResNet(blocks=(3, 3, 3), widths=(2, 4, 6), style="stage_ab", shortcut="pad-end")
    loaded = load(save(net.state_dict()), arch="cifar-resnet20")
    assert loaded.arch == "cifar-resnet" and loaded.arch_options["style"] == "stage_ab"
    assert "--arch" in loaded.notes[0]
    assert "tensors missing" in refused(save(net.state_dict()), arch="cifar-resnet32")


class PreAct(CifarResNet):
    """Keys of a pre-activation ResNet: those of a ResNet without the batch norm behind the stem."""

    def __init__(self):
        super().__init__(blocks=(1, 1, 1), widths=(2, 4, 6))
        del self.bn1


def changed(net, **tensors):
    return net.state_dict() | {k.replace("__", "."): t for k, t in tensors.items()}


@pytest.mark.parametrize("state", [
    changed(PreAct()),
    changed(CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)), linear__weight=torch.tensor(1.0)),
    changed(CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)),
            layer1__9999__conv1__weight=torch.ones(2, 2, 3, 3)),
    {k: t for k, t in CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)).state_dict().items()
     if k != "layer2.0.conv1.weight"},
    changed(SmallCNN(), feature_extractor__conv1__weight=torch.tensor(1.0)),
    changed(SmallCNN(), feature_extractor__conv1__weight=torch.ones(3)),
    changed(LeNet(), conv2__weight=torch.ones(0, 32, 3, 3))],
    ids=["preact", "scalar head", "many blocks", "no block", "scalar stem", "vector stem", "empty"])
def test_keys_that_only_look_like_a_family(state):
    assert architecture.identify(state, where="model.pt") is None


def test_keys_of_no_family_are_shown(save):
    message = refused(save({"foo.weight": torch.zeros(3, 2), "foo.bias": torch.zeros(3)}))
    assert "2 tensors" in message and "foo.weight (3, 2)" in message


# --- libraries' models ---------------------------------------------------------------

@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])  # the latter sorts: fc before layer4
@pytest.mark.parametrize("arch", ["resnet18", "torchvision:resnet18", "timm:resnet18"])
def test_libraries_models_by_name_with_other_classes(save, name, arch):
    net = torchvision.models.resnet18(num_classes=7).eval()
    loaded = load(save(net.state_dict(), name), arch=arch)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded.model(x), net(x))
    assert loaded.num_classes == 7 and loaded.arch == arch
    sizes = loaded.input_shape, loaded.default_size
    assert sizes == (None, (224, 224)), "the keys tell no size: also of CIFAR"


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_libraries_models_by_their_signature(save, prefix):
    net = torchvision.models.squeezenet1_1(num_classes=7).eval()
    loaded = load(save({"state_dict": prefixed(net, prefix)}))
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.model(x), net(x))
    assert (loaded.arch, loaded.num_classes, loaded.default_size) == (
        "torchvision:squeezenet1_1", 7, (224, 224))


def test_networks_with_the_same_keys_are_listed_and_none_is_chosen(save):
    with pytest.raises(architecture.UnknownArchitecture) as caught:
        load(save(torchvision.models.resnet18(num_classes=7).state_dict()))
    assert "model.pt fits 2 networks with the same keys and shapes: torchvision:resnet18 (no BlurPool2d); " \
        "timm:resnetblur18 (4 BlurPool2d)." in caught.value.message
    assert caught.value.hint == "Say which: --arch torchvision:resnet18"
    assert caught.value.candidates == ("torchvision:resnet18", "timm:resnetblur18")


def test_timm_s_models_take_the_channels_of_the_file(save, tmp_path):
    net = build("timm:resnet18", {"num_classes": 4, "in_chans": 1}).eval()
    loaded = load(save(net.state_dict()), arch="timm:resnet18", mean=(0.5,), std=(0.5,))
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(loaded.model(x), net(2 * x - 1))
    sparse.save(loaded.model.net.state_dict(), tmp_path / "p.safetensors", metadata=to_metadata(loaded))
    assert load(tmp_path / "p.safetensors").arch_options == {"num_classes": 4, "in_chans": 1}
    assert "do not fit 1 channels" in refused(tmp_path / "p.safetensors", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "conv1.weight has shape (64, 1, 7, 7), expected (64, 3, 7, 7)" in refused(
        save(net.state_dict()), arch="torchvision:resnet18")


# --- options on the command line ---------------------------------------------------------------

@pytest.mark.parametrize(("arch", "said", "hint"), [
    ("cifar-resnet:shortcut", "'shortcut' is not option=value", "cifar-resnet:num_classes=10"),
    ("cifar-resnet:shortcat=pad", "cifar-resnet has no option 'shortcat'; it has num_classes, ",
     "Did you mean shortcut?"),
    ("cifar-resnet:num_classes=0", "num_classes is 0, expected numbers of at least 1", "Leave it out"),
    ("cifar-resnet:blocks=[0,1]", "blocks is [0,1], expected", "Leave it out"),
    ("cifar-resnet:shortcut=round", "cannot be built with ", "--arch"),
    ("resnet18:a=1", "'resnet18:a=1' is no architecture", "only they take options"),
    ("", "'' is no architecture", "only they take options")])
def test_options_that_cannot_be(save, resnet, arch, said, hint):
    with pytest.raises(InputError) as caught:
        load(save(resnet.state_dict()), arch=arch)
    assert said in caught.value.message and hint in caught.value.hint and len(caught.value.hint) < 300


def test_options_win_over_the_keys(save):
    net = CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6), shortcut="pad-end").eval()
    x = torch.rand(2, 3, 32, 32)
    loaded = load(save(net.state_dict()), arch="cifar-resnet:shortcut=pad-end,blocks=[1,1,1]")
    assert torch.equal(loaded.model(x), net(x))
    assert loaded.others == () and loaded.arch_options["blocks"] == [1, 1, 1]
    assert not torch.equal(load(save(net.state_dict()), arch="cifar-resnet").model(x), net(x))
