import argparse
import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import torchvision

import pwoa_cli
from pwoa_cli import architecture, sparse_file
from pwoa_cli.checkpoint import Source, load_model, to_metadata
from pwoa_cli.errors import InputError
from pwoa_cli.families.resnet import CifarResNet
from pwoa_cli.families.small import LeNet, SmallCNN
from pwoa_cli.models import build

THIRD, FIFTH = torch.full((1, 3, 1, 1), 1 / 3), torch.full((1, 3, 1, 1), 0.2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def lenet():
    return LeNet(widths=(3, 4), hidden=5).eval()


@pytest.fixture
def resnet():
    return CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)).eval()


@pytest.fixture
def save(tmp_path):
    """Writes an object as model.pt (or .safetensors) and returns its path."""
    def write(content, name="model.pt", **options):
        path = tmp_path / name
        if name.endswith(".safetensors"):
            safetensors.torch.save_file(content, path, **options)
        else:
            torch.save(content, path, **options)
        return path
    return write


def load(path, **options):
    return load_model(Source(str(path), **options))


def prefixed(net, prefix):
    return {prefix + k: t for k, t in net.state_dict().items()}


def refused(path, **options):
    """What the user is told: one sentence that names the file, and what to do."""
    with pytest.raises(InputError) as caught:
        load(path, **options)
    assert caught.value.hint and caught.value.exit_code == 2
    return caught.value.message


# wrappings

@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "1.", "net.", "module.model.", "model.module.",
                                    "_orig_mod.module.1.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_are_removed(save, lenet, prefix):
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(load(save(prefixed(lenet, prefix))).model(x), lenet(x))


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema", "last",
                                  "best"])
def test_envelopes_are_opened(save, lenet, name):
    x, envelope = torch.rand(2, 1, 28, 28), {name: prefixed(lenet, "module."), "epoch": 3, "optimizer": {"state": {}}}
    assert torch.equal(load(save(envelope)).model(x), lenet(x))


def test_envelope_in_an_envelope(save, lenet):
    assert load(save({"net": {"state_dict": prefixed(lenet, "module.")}, "acc": 98.6})).arch == "lenet5"


def test_last_and_best_are_not_chosen_between(save, lenet):
    message = refused(save({"last": lenet.state_dict(), "best": lenet.state_dict()}))
    assert "'last'" in message and "'best'" in message


def test_legacy_format_half_precision_and_parameters(save, lenet):
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(load(save(lenet.state_dict(), _use_new_zipfile_serialization=False)).model(x), lenet(x))
    assert torch.equal(load(save(dict(lenet.named_parameters()))).model(x), lenet(x))
    half = load(save({k: t.half() for k, t in lenet.state_dict().items()})).model
    assert {p.dtype for p in half.parameters()} == {torch.float32} and not half.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in half.parameters())


def test_counters_of_batch_norm_may_be_missing(save, resnet):
    x = torch.rand(2, 3, 32, 32)
    old = {k: t for k, t in resnet.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert torch.equal(load(save(old)).model(x), resnet(x))


def test_what_madrylab_s_attacker_doubles_is_dropped(save, resnet):
    x = torch.rand(2, 3, 32, 32)
    both = prefixed(resnet, "module.model.") | prefixed(resnet, "module.attacker.model.")
    both |= {f"module.{where}.new_{kind}": v.view(3, 1, 1) for where in ("normalizer", "attacker.normalize")
             for kind, v in (("mean", THIRD), ("std", FIFTH))}
    loaded = load(save({"model": both}))
    torch.testing.assert_close(loaded.model(x), resnet((x - THIRD) / FIFTH))


# normalisation

@pytest.mark.parametrize(("mean", "std", "prefix"), [
    ("mu", "sigma", ""), ("mean", "std", ""), ("normalize.mean", "normalize.std", ""),
    ("normalizer.mean", "normalizer.std", "model."),
    ("0.mean", "0.std", "1."), ("module.0.mean", "module.0.std", "module.1.")])
def test_normalisation_in_the_file_is_applied_inside(save, resnet, mean, std, prefix):
    x = torch.rand(2, 3, 32, 32)
    loaded = load(save({mean: THIRD, std: FIFTH} | prefixed(resnet, prefix)))
    assert loaded.mean == pytest.approx((1 / 3,) * 3) and loaded.std == pytest.approx((0.2,) * 3)
    torch.testing.assert_close(loaded.model(x), resnet((x - THIRD) / FIFTH))
    assert loaded.notes[-1].startswith("normalisation: mean 0.3333")


def test_normalisation_of_the_user_wins_and_none_is_said(save, resnet):
    path = save({"mean": THIRD, "std": FIFTH} | resnet.state_dict())
    assert load(path, mean=(0.5,) * 3, std=(1.0,) * 3).mean == (0.5,) * 3
    plain = load(save(resnet.state_dict()))
    assert plain.mean is None and "none in the file" in plain.notes[-1]


@pytest.mark.parametrize(("options", "said"), [
    ({"mean": (0.5,)}, "--std is missing"), ({"std": (0.5,)}, "--mean is missing"),
    ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "3 channels"),
    ({"mean": (0.5,), "std": (0.0,)}, "std above 0"), ({"mean": (float("nan"),), "std": (0.5,)}, "nan")])
def test_normalisation_that_cannot_be(save, resnet, options, said):
    assert said in refused(save(resnet.state_dict()), **options)


@pytest.mark.parametrize(("inside", "said"), [
    ({"mean": THIRD}, "its normalisation has mean 0.3333, 0.3333, 0.3333 and no std."),
    ({"mean": THIRD, "std": 0 * FIFTH}, "and std 0, 0, 0, expected finite numbers, std above 0.")])
def test_normalisation_of_the_file_that_cannot_be(save, resnet, inside, said):
    message = refused(save(inside | resnet.state_dict()))
    assert said in message and "model.pt: its" in message
    assert load(save(inside | resnet.state_dict()), mean=(0.5,), std=(0.5,)).mean == (0.5,)


def test_copy_of_averaged_weights_is_left_aside_and_that_is_said(save, lenet, resnet):
    loaded = load(save({"state_dict_ema": resnet.state_dict(), "state_dict": lenet.state_dict(), "ema": {"decay": 0.9}}))
    assert loaded.arch == "lenet5"
    assert loaded.notes[0] == "weights: 'state_dict' of the file; it also holds 'state_dict_ema', which is not used"
    assert "weights:" not in "".join(load(save({"state_dict": lenet.state_dict()})).notes)


# architectures

@pytest.mark.parametrize("options", [
    {}, {"widths": [6, 16], "kernel": 5, "hidden": 84}, {"widths": [6, 16], "kernel": 5, "padded": False},
    {"widths": [2, 3], "kernel": 5, "padded": False, "hidden": 50, "heads": ["fc1", "fc2"], "num_classes": 7},
    {"kernel": 3, "padded": False}, {"size": 32, "in_channels": 3}, {"size": 32, "in_channels": 3, "padded": False},
    {"heads": ["l1.fc", "l2.fc"]}, {"size": 16}, {"heads": ["fc", "classifier"], "widths": [2, 2], "hidden": 300}])
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
                                   {"blocks": [1, 2, 1, 1], "widths": [2, 2, 3, 4], "shortcut": "conv", "bottleneck": True}])
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
    assert loaded.arch == "cifar-resnet" and loaded.arch_options["style"] == "stage_ab" and "--arch" in loaded.notes[0]
    assert "tensors missing" in refused(save(net.state_dict()), arch="cifar-resnet32")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])  # safetensors sorts: fc comes before layer4
@pytest.mark.parametrize("arch", ["resnet18", "torchvision:resnet18", "timm:resnet18"])
def test_libraries_models_by_name_with_other_classes(save, name, arch):
    net = torchvision.models.resnet18(num_classes=7).eval()
    loaded = load(save(net.state_dict(), name), arch=arch)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded.model(x), net(x))
    assert loaded.num_classes == 7 and loaded.arch == arch
    assert (loaded.input_shape, loaded.default_size) == (None, (224, 224)), "the keys tell no size: also of CIFAR"


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_libraries_models_by_their_signature(save, prefix):
    net = torchvision.models.squeezenet1_1(num_classes=7).eval()
    loaded = load(save({"state_dict": prefixed(net, prefix)}))
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.model(x), net(x))
    assert (loaded.arch, loaded.num_classes, loaded.default_size) == ("torchvision:squeezenet1_1", 7, (224, 224))


def test_networks_with_the_same_keys_are_listed_and_none_is_chosen(save):
    with pytest.raises(architecture.UnknownArchitecture) as caught:
        load(save(torchvision.models.resnet18(num_classes=7).state_dict()))
    assert "model.pt fits 2 networks with the same keys and shapes: torchvision:resnet18 (no BlurPool2d); " \
        "timm:resnetblur18 (4 BlurPool2d)." in caught.value.message
    assert caught.value.hint == "Say which: --arch torchvision:resnet18"
    assert caught.value.candidates == ("torchvision:resnet18", "timm:resnetblur18")


def test_timm_s_models_take_the_channels_of_the_file(save, tmp_path):
    net = build("timm:resnet18", {"num_classes": 4, "in_chans": 1}).eval()
    loaded, x = load(save(net.state_dict()), arch="timm:resnet18", mean=(0.5,), std=(0.5,)), torch.rand(1, 1, 32, 32)
    assert torch.equal(loaded.model(x), net(2 * x - 1))
    sparse_file.save(loaded.model.net.state_dict(), tmp_path / "p.safetensors", metadata=to_metadata(loaded))
    assert load(tmp_path / "p.safetensors").arch_options == {"num_classes": 4, "in_chans": 1}
    assert "do not fit 1 channels" in refused(tmp_path / "p.safetensors", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "conv1.weight has shape (64, 1, 7, 7), expected (64, 3, 7, 7)" in refused(
        save(net.state_dict()), arch="torchvision:resnet18")


class PreAct(CifarResNet):
    """Keys of a pre-activation ResNet: those of a ResNet without the batch norm behind the stem."""

    def __init__(self):
        super().__init__(blocks=(1, 1, 1), widths=(2, 4, 6))
        del self.bn1


def changed(net, **tensors):
    return net.state_dict() | {k.replace("__", "."): t for k, t in tensors.items()}


@pytest.mark.parametrize("state", [
    changed(PreAct()), changed(CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)), linear__weight=torch.tensor(1.0)),
    changed(CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)), layer1__9999__conv1__weight=torch.ones(2, 2, 3, 3)),
    {k: t for k, t in CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)).state_dict().items() if k != "layer2.0.conv1.weight"},
    changed(SmallCNN(), feature_extractor__conv1__weight=torch.tensor(1.0)),
    changed(SmallCNN(), feature_extractor__conv1__weight=torch.ones(3)),
    changed(LeNet(), conv2__weight=torch.ones(0, 32, 3, 3)),
    {k.replace("linear1", "fc.0").replace("linear2", "fc.2"): t for k, t in LeNet().state_dict().items()}],
    ids=["preact", "scalar head", "many blocks", "no block", "scalar stem", "vector stem", "empty", "heads in one Sequential"])
def test_keys_that_only_look_like_a_family(state):
    assert architecture.identify(state, where="model.pt") is None


def test_keys_of_no_family_are_shown(save):
    message = refused(save({"foo.weight": torch.zeros(3, 2), "foo.bias": torch.zeros(3)}))
    assert "2 tensors" in message and "foo.weight (3, 2)" in message


def test_wrong_arch_names_tensor_got_expected_missing_and_too_many(save, lenet):
    message = refused(save(lenet.state_dict()), arch="resnet18")
    assert "conv1.weight has shape (3, 1, 3, 3), expected (64, 1, 7, 7)" in message
    assert "101 tensors missing (bn1.weight, bn1.bias, bn1.running_mean, ...)" in message
    assert "7 tensors too many (conv1.bias" in message and "122 tensors expected" in message


def test_classes_that_are_not_the_file_s(save, lenet):
    assert "linear2.weight has shape (10, 5), --num-classes 7 expects (7, 5)" in refused(save(lenet.state_dict()), num_classes=7)
    assert "fc.weight has shape (10, 512), expected (7, 512)" in refused(
        save(torchvision.models.resnet18(num_classes=10).state_dict()), arch="resnet18", num_classes=7)
    assert load(save(lenet.state_dict()), num_classes=10).num_classes == 10


# --arch file.py:fn

OWN = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
from beside import WIDTH

@dataclass
class Sizes:
    width: int = WIDTH

class Own(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, num_classes))
    def forward(self, x):
        return self.model(x)

class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.std = (nn.Buffer(torch.tensor([v])) for v in (0.25, 0.5))
        self.fc = nn.Linear(WIDTH, 3)
    def forward(self, x):
        return self.fc(((x - self.mean) / self.std).flatten(1))

class Constants(Normed):
    def __init__(self):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor([0.25])), nn.Parameter(torch.tensor([0.5]))

def chain(): return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 3))
def anything(**options): return Own(options["num_classes"])
def number(): return 3
def broken(): raise ValueError("no weights here")
def quits(): raise SystemExit(1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A network file of the user's, with a module beside it, and its functions."""
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    (tmp_path / "own.py").write_text(OWN)
    yield lambda name, **options: build(f"{tmp_path}/own.py:{name}", options)
    sys.modules.pop("beside", None)


@pytest.mark.parametrize("name", ["Own", "chain", "anything", "Normed", "Constants"])
def test_networks_of_the_user_s_own(save, own, tmp_path, name):
    net = own(name, num_classes=3).eval()
    loaded = load(save(net.state_dict()), arch=f"{tmp_path}/own.py:{name}")
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(loaded.model(x), net(x)), "also where a prefix or the normalisation is the network's own"
    assert loaded.num_classes == 3 and loaded.mean is None
    assert {n for n, p in loaded.model.net.named_parameters() if not p.requires_grad} == ({"mean", "std"} if name == "Constants" else set())
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(("name", "said"), [
    ("own.py:number", "returns a int"), ("own.py:broken", "ValueError: no weights here"), ("own.py:quits", "SystemExit"),
    ("a" * 300 + ".py:fn", "there is no file"), ("own.py:chian", "no function 'chian'"), ("own.py", "names a file and no function in it"),
    ("none.py:fn", "there is no file"), ("bad.py:fn", "ZeroDivisionError")])
def test_networks_of_the_user_s_own_that_fail(save, own, lenet, tmp_path, name, said):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    assert said in refused(save(lenet.state_dict()), arch=f"{tmp_path}/{name}")


# pruned files

@pytest.fixture
def pruned(save, resnet, tmp_path):
    """Writes a pruned file, with metadata changed as asked."""
    def write(**changes):
        loaded = load(save({"mean": THIRD, "std": FIFTH} | resnet.state_dict()))
        metadata = {k: v for k, v in (to_metadata(loaded) | changes).items() if v is not None}
        sparse_file.save(loaded.model.net.state_dict(), tmp_path / "pruned.safetensors", metadata=metadata)
        return tmp_path / "pruned.safetensors", loaded
    return write


def test_pruned_file_is_the_model_again(pruned):
    path, loaded = pruned(norm="linf", eps="0.03")
    again, x = load(path), torch.rand(2, 3, 32, 32)
    assert torch.equal(again.model(x), loaded.model(x)) and torch.equal(pwoa_cli.load(path)(x), loaded.model(x))
    for field in ("arch", "arch_options", "num_classes", "input_shape", "default_size", "mean", "std"):
        assert getattr(again, field) == getattr(loaded, field)
    assert again.threat == ("linf", 0.03)
    assert set(pwoa_cli.load_state_dict(path)) == set(loaded.model.net.state_dict())


@pytest.mark.parametrize(("field", "value"), [
    ("arch_options", "null"), ("arch_options", "[1]"), ("arch_options", "{"), ("arch_options", '{"blocks": 3}'),
    ("arch_options", '{"blocks": [1000000, 1, 1]}'), ("arch_options", '{"num_classes": 1000000000}'),
    ("arch_options", '{"what": 3}'), ("arch_options", '{"blocks": [1, 1, 1], "style": "none"}'),
    ("input_shape", "3"), ("input_shape", "[3]"),
    ("mean", "3"), ("mean", '["a"]'), ("arch", None), ("arch", "none")])
def test_pruned_file_with_changed_words(pruned, field, value):
    assert refused(pruned(**{field: value})[0])


def test_pruned_file_cannot_choose_what_else_is_read_or_run(pruned, tmp_path):
    bait = tmp_path / "bait.py"
    bait.write_text("raise SystemExit('ran')\n")
    options = json.dumps({"num_classes": 10, "checkpoint_path": str(bait)})
    assert "arch_options" in refused(pruned(arch="timm:resnet18", arch_options=options)[0])
    assert "is not run" in refused(pruned(arch=f"{bait}:fn", arch_options='{"num_classes": 10}')[0])


def test_arch_wins_over_a_pruned_file_s_words(pruned):
    assert "as resnet18" in refused(pruned()[0], arch="resnet18")


def test_threat_from_the_file_s_settings(save, lenet):
    args = argparse.Namespace(eps=0.3, norm="L_inf", lr=0.1)
    assert load(save({"state_dict": lenet.state_dict(), "args": args})).threat == ("linf", 0.3)
    assert load(save({"state_dict": lenet.state_dict()})).threat is None


def test_whole_module_is_not_unpickled(save, lenet):
    assert "pwoa_cli.families.small.LeNet" in refused(save(lenet))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, pwoa_cli; assert pwoa_cli.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# options of our families on the command line

@pytest.mark.parametrize(("arch", "said", "hint"), [
    ("cifar-resnet:shortcut", "'shortcut' is not option=value", "cifar-resnet:num_classes=10"),
    ("cifar-resnet:shortcat=pad", "cifar-resnet has no option 'shortcat'; it has num_classes, ", "Did you mean shortcut?"),
    ("cifar-resnet:num_classes=0", "num_classes is 0, expected numbers of at least 1", "Leave it out"),
    ("cifar-resnet:blocks=[0,1]", "blocks is [0,1], expected", "Leave it out"),
    ("cifar-resnet:shortcut=round", "cannot be built with ", "--arch"),
    ("resnet18:a=1", "'resnet18:a=1' is no architecture", "only they take options"), ("", "'' is no architecture", "only they take options")])
def test_options_that_cannot_be(save, resnet, arch, said, hint):
    with pytest.raises(InputError) as caught:
        load(save(resnet.state_dict()), arch=arch)
    assert said in caught.value.message and hint in caught.value.hint and len(caught.value.hint) < 300


def test_options_win_over_the_keys(save):
    net = CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6), shortcut="pad-end").eval()
    x = torch.rand(2, 3, 32, 32)
    loaded = load(save(net.state_dict()), arch="cifar-resnet:shortcut=pad-end,blocks=[1,1,1]")
    assert torch.equal(loaded.model(x), net(x)) and loaded.others == () and loaded.arch_options["blocks"] == [1, 1, 1]
    assert not torch.equal(load(save(net.state_dict()), arch="cifar-resnet").model(x), net(x))


def test_normalisation_of_whole_numbers(save, resnet):
    message = refused(save({"mean": 255 * THIRD, "std": 255 * FIFTH} | resnet.state_dict()))
    assert "of inputs in 0..255, expected in [0,1]" in message


@pytest.mark.parametrize("arch", [None, "timm:test_vit"])
def test_an_unknown_prefix_beside_a_token_is_found_with_and_without_arch(save, arch):
    net = build("timm:test_vit", {"num_classes": 4}).eval()  # its cls_token lies beside the layers
    loaded = load(save(prefixed(net, "backbone.")), arch=arch)
    x = torch.rand(1, 3, 160, 160)
    torch.testing.assert_close(loaded.model(x), net(x))


def test_weights_that_are_no_floating_point_numbers(save, lenet):
    assert "conv1.weight is int8, expected floating point" in refused(save({k: t.to(torch.int8) for k, t in lenet.state_dict().items()}))
    assert "conv1.weight is complex64" in refused(save({k: t.to(torch.complex64) for k, t in lenet.state_dict().items()}))


def test_classes_of_own_networks_are_those_that_they_return(save, tmp_path):
    """The first matrix by name is no classifier here, and the function has a default of its own."""
    (tmp_path / "caps.py").write_text("""
import torch
from torch import nn
class Caps(nn.Module):
    def __init__(self, num_classes=6):
        super().__init__()
        self.W = nn.Parameter(torch.randn(num_classes, 7, 4, 4))
        self.conv = nn.Conv2d(1, 16, 3)
    def forward(self, x):
        return self.conv(x).mean((2, 3)) @ self.W.flatten(1)[:, :16].T
""")
    net = build(f"{tmp_path}/caps.py:Caps", {}).eval()
    path = save(net.state_dict())
    assert load(path, arch=f"{tmp_path}/caps.py:Caps").num_classes == 6
    four = build(f"{tmp_path}/caps.py:Caps", {"num_classes": 4})
    path = save(four.state_dict())
    with pytest.raises(InputError) as caught:
        load(path, arch=f"{tmp_path}/caps.py:Caps")
    assert "--num-classes K" in caught.value.hint
    loaded = load(path, arch=f"{tmp_path}/caps.py:Caps", num_classes=4)
    sparse_file.save(loaded.model.net.state_dict(), tmp_path / "p.safetensors", metadata=to_metadata(loaded))
    assert load(tmp_path / "p.safetensors", arch=f"{tmp_path}/caps.py:Caps").num_classes == 4
