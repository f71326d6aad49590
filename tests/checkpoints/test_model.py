"""Checkpoints as ready models: wrappings, normalisation, networks of the user's own, pruned files."""
import argparse
import json
import subprocess
import sys

import pytest
import torch
import torchvision
from helpers.checkpoints import load, prefixed, refused
from helpers.family_checks import SIZES, trained

import pwoa_cli
from pwoa_cli.checkpoints import model
from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import load_model, said
from pwoa_cli.errors import InputError
from pwoa_cli.files import sparse
from pwoa_cli.machine import memory
from pwoa_cli.networks.build import build
from pwoa_cli.networks.families import FAMILIES
from pwoa_cli.workflows.images import image_shape

THIRD, FIFTH = torch.full((1, 3, 1, 1), 1 / 3), torch.full((1, 3, 1, 1), 0.2)


# --- room ---------------------------------------------------------------

def test_a_network_far_larger_than_the_file_is_not_built(save, lenet, monkeypatch):
    """2.6 MB that --arch takes for a network of gigabytes."""
    built = []

    def noted(arch, options):
        net = build(arch, options)
        built.append({p.device.type for p in net.parameters()})
        return net

    monkeypatch.setattr(model, "build", noted)
    message = refused(save(lenet.state_dict()), arch="torchvision:vgg16")
    assert "as torchvision:vgg16: " in message and "tensors missing" in message and built == [{"meta"}]
    assert load(save(lenet.state_dict()), arch="lenet5").num_classes == 10


def test_a_network_for_which_there_is_no_room_is_not_built(save, lenet, monkeypatch):
    size = sum(t.nbytes for t in lenet.state_dict().values())
    path = save({k: t.half() for k, t in lenet.state_dict().items()})
    monkeypatch.setattr(memory, "_said", 0.8 * size)
    assert "lenet5 would take" in refused(path)
    monkeypatch.setattr(memory, "_said", 0.4 * size)
    assert "model.pt: its tensors would take" in refused(path)
    monkeypatch.setattr(memory, "_said", size)
    assert load(path).arch == "lenet5"


@pytest.mark.parametrize("text", ["[" * 9999, "9" * 5000, "NaN", '{"a": 1e999}', ""])
def test_metadata_that_no_parser_reads_is_one_sentence(save, lenet, text):
    path = save(lenet.state_dict())
    sparse.save(lenet.state_dict(), path.with_suffix(".safetensors"),
                metadata=to_metadata(load(path)) | {"arch_options": text})
    assert "metadata field 'arch_options' " in refused(path.with_suffix(".safetensors"))


# --- wrappings ---------------------------------------------------------------

@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "1.", "net.", "module.model.",
                                    "model.module.", "_orig_mod.module.1.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_are_removed(save, lenet, prefix):
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(load(save(prefixed(lenet, prefix))).model(x), lenet(x))


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "net", "state_dict_ema",
                                  "model_ema", "ema", "last", "best"])
def test_envelopes_are_opened(save, lenet, name):
    x = torch.rand(2, 1, 28, 28)
    envelope = {name: prefixed(lenet, "module."), "epoch": 3, "optimizer": {"state": {}}}
    assert torch.equal(load(save(envelope)).model(x), lenet(x))


def test_envelope_in_an_envelope(save, lenet):
    assert load(save({"net": {"state_dict": prefixed(lenet, "module.")}, "acc": 98.6})).arch == "lenet5"


def test_last_and_best_are_not_chosen_between(save, lenet):
    message = refused(save({"last": lenet.state_dict(), "best": lenet.state_dict()}))
    assert "'last'" in message and "'best'" in message


def test_legacy_format_half_precision_and_parameters(save, lenet):
    x = torch.rand(2, 1, 28, 28)
    legacy = load(save(lenet.state_dict(), _use_new_zipfile_serialization=False))
    assert torch.equal(legacy.model(x), lenet(x))
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


def test_copy_of_averaged_weights_is_left_aside_and_that_is_said(save, lenet, resnet):
    loaded = load(save({"state_dict_ema": resnet.state_dict(), "state_dict": lenet.state_dict(),
                        "ema": {"decay": 0.9}}))
    assert loaded.arch == "lenet5"
    assert loaded.notes[0] == ("weights: 'state_dict' of the file; "
                               "it also holds 'state_dict_ema', which is not used")
    assert "weights:" not in "".join(load(save({"state_dict": lenet.state_dict()})).notes)


@pytest.mark.parametrize("arch", [None, "timm:test_vit"])
def test_an_unknown_prefix_beside_a_token_is_found_with_and_without_arch(save, arch):
    net = build("timm:test_vit", {"num_classes": 4}).eval()  # its cls_token lies beside the layers
    loaded = load(save(prefixed(net, "backbone.")), arch=arch)
    x = torch.rand(1, 3, 160, 160)
    torch.testing.assert_close(loaded.model(x), net(x))


def test_weights_that_are_no_floating_point_numbers(save, lenet):
    def of_type(dtype):
        return save({k: t.to(dtype) for k, t in lenet.state_dict().items()})

    assert "conv1.weight is int8, expected floating point" in refused(of_type(torch.int8))
    assert "conv1.weight is complex64" in refused(of_type(torch.complex64))


def test_whole_module_is_not_unpickled(save, lenet):
    assert "pwoa_cli.networks.families.small.LeNet" in refused(save(lenet))


def test_threat_from_the_file_s_settings(save, lenet):
    args = argparse.Namespace(eps=0.3, norm="L_inf", lr=0.1)
    assert load(save({"state_dict": lenet.state_dict(), "args": args})).threat == ("linf", 0.3)
    assert load(save({"state_dict": lenet.state_dict()})).threat is None


@pytest.mark.parametrize("url", [
    "https://example.org/model.pt", "http://example.org/m", "s3://bucket/model.pt"])
def test_a_url_is_refused_with_a_hint(url):
    with pytest.raises(InputError) as caught:
        load_model(url)
    message = f"{url} is a URL, and pwoa downloads no checkpoints."
    assert caught.value.message == message and url in caught.value.hint


# --- normalisation ---------------------------------------------------------------

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


def test_normalisation_of_whole_numbers(save, resnet):
    message = refused(save({"mean": 255 * THIRD, "std": 255 * FIFTH} | resnet.state_dict()))
    assert "of inputs in 0..255, expected in [0,1]" in message


# --- filling ---------------------------------------------------------------

def test_wrong_arch_names_tensor_got_expected_missing_and_too_many(save, lenet):
    message = refused(save(lenet.state_dict()), arch="resnet18")
    assert "conv1.weight has shape (3, 1, 3, 3), expected (64, 1, 7, 7)" in message
    assert "101 tensors missing (bn1.weight, bn1.bias, bn1.running_mean, ...)" in message
    assert "7 tensors too many (conv1.bias" in message and "122 tensors expected" in message


def test_classes_that_are_not_the_file_s(save, lenet):
    assert "linear2.weight has shape (10, 5), --num-classes 7 expects (7, 5)" in refused(
        save(lenet.state_dict()), num_classes=7)
    assert "fc.weight has shape (10, 512), expected (7, 512)" in refused(
        save(torchvision.models.resnet18(num_classes=10).state_dict()), arch="resnet18", num_classes=7)
    assert load(save(lenet.state_dict()), num_classes=10).num_classes == 10


def test_options_read_as_people_write_them():
    options = {"activation": "silu", "padded": False, "size": 28}
    assert said(options) == "activation=silu, padded=false, size=28"


# --- networks of the user's own ---------------------------------------------------------------

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
    equal = torch.equal(loaded.model(x), net(x))
    assert equal, "also where a prefix or the normalisation is the network's own"
    assert loaded.num_classes == 3 and loaded.mean is None
    frozen = {n for n, p in loaded.model.net.named_parameters() if not p.requires_grad}
    assert frozen == ({"mean", "std"} if name == "Constants" else set())
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(("name", "said"), [
    ("own.py:number", "returns a int"), ("own.py:broken", "ValueError: no weights here"),
    ("own.py:quits", "SystemExit"), ("a" * 300 + ".py:fn", "there is no file"),
    ("own.py:chian", "no function 'chian'"), ("own.py", "names a file and no function in it"),
    ("none.py:fn", "there is no file"), ("bad.py:fn", "ZeroDivisionError")])
def test_networks_of_the_user_s_own_that_fail(save, own, lenet, tmp_path, name, said):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    assert said in refused(save(lenet.state_dict()), arch=f"{tmp_path}/{name}")


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
    sparse.save(loaded.model.net.state_dict(), tmp_path / "p.safetensors", metadata=to_metadata(loaded))
    assert load(tmp_path / "p.safetensors", arch=f"{tmp_path}/caps.py:Caps").num_classes == 4


# --- pruned files ---------------------------------------------------------------

@pytest.fixture
def pruned(save, resnet, tmp_path):
    """Writes a pruned file, with metadata changed as asked."""
    def write(**changes):
        loaded = load(save({"mean": THIRD, "std": FIFTH} | resnet.state_dict()))
        metadata = {k: v for k, v in (to_metadata(loaded) | changes).items() if v is not None}
        sparse.save(loaded.model.net.state_dict(), tmp_path / "pruned.safetensors", metadata=metadata)
        return tmp_path / "pruned.safetensors", loaded
    return write


def test_pruned_file_is_the_model_again(pruned):
    path, loaded = pruned(norm="linf", eps="0.03")
    again, x = load(path), torch.rand(2, 3, 32, 32)
    assert torch.equal(again.model(x), loaded.model(x))
    assert torch.equal(pwoa_cli.load(path)(x), loaded.model(x))
    for field in ("arch", "arch_options", "num_classes", "input_shape", "default_size", "mean", "std"):
        assert getattr(again, field) == getattr(loaded, field)
    assert again.threat == ("linf", 0.03)
    assert set(pwoa_cli.load_state_dict(path)) == set(loaded.model.net.state_dict())


@pytest.mark.parametrize(("field", "value"), [
    ("arch_options", "null"), ("arch_options", "[1]"), ("arch_options", "{"),
    ("arch_options", '{"blocks": 3}'), ("arch_options", '{"blocks": [1000000, 1, 1]}'),
    ("arch_options", '{"num_classes": 1000000000}'), ("arch_options", '{"what": 3}'),
    ("arch_options", '{"blocks": [1, 1, 1], "style": "none"}'), ("input_shape", "3"), ("input_shape", "[3]"),
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


def test_importing_the_package_does_not_import_torch():
    code = "import sys, pwoa_cli; assert pwoa_cli.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("name", SIZES)
def test_a_network_of_ours_is_all_the_file_s_and_draws_nothing(name, save):
    net = trained(FAMILIES[name].make(**SIZES[name]))
    before = torch.get_rng_state()
    model = load_model(save({"state_dict": net.state_dict()})).model
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert all(torch.equal(t, net.state_dict()[key]) for key, t in model.net.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    x = torch.rand(2, *image_shape(load_model(save(net.state_dict())), hint=""))
    assert torch.equal(model(x), net(x))
