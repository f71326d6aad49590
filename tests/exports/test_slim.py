"""Slim files: written, read without pickle, equal to the masked network in logits, refused where they lie."""
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.odd_networks import with_statistics
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.exports import onnx, slim
from pwoa_cli.networks import channels, layers
from pwoa_cli.networks.build import build
from pwoa_cli.workflows import export

FAMILIES = {
    "cifar-resnet": {"blocks": [1, 1], "widths": [4, 8], "shortcut": "conv"},
    "preact-resnet": {"blocks": [1, 1], "widths": [4, 8]},
    "wide-resnet": {"blocks": [1, 1, 1], "stem": 4, "widths": [4, 8, 8]},
    "cifar-vgg": {"stages": [[4], [8, 8], [8], [8], [8]], "num_classes": 5},
    "lenet5": {"size": 8, "widths": [4, 8], "hidden": 16, "num_classes": 4, "in_channels": 3},
    "plain": {"size": 8, "side": 6, "kernels": [2, 2], "strides": [1, 1], "paddings": [0, 0], "pools": [1, 1],
              "widths": [4, 8], "hidden": [16], "in_channels": 3},
    "timm:test_resnet": {"num_classes": 5}, "torchvision:mobilenet_v2": {"num_classes": 5, "width_mult": 0.1}}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def masked(arch, options, *, seed=1, share=0.5):
    """(a loaded network with a share of its channels zero, the sets, which are zero)."""
    torch.manual_seed(seed)
    net = build(arch, options)
    for part in with_statistics(net).modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.3, 0.3)
    torch.save(net.state_dict(), "dense.pt")
    loaded = load_model(Source("dense.pt", arch=arch, options=options, mean=(0.5,) * 3, std=(0.2,) * 3))
    sets, odd = channels.found(loaded.model, images(options))
    assert not odd
    gone, draw = {}, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, members in channels.coupled(loaded.model, sets).items():
            count = 1 + max(i for axes in members.values() for index in axes.values() for i in index)
            gone[key] = torch.zeros(count, dtype=torch.bool)
            gone[key][torch.randperm(count, generator=draw)[: int(share * count)]] = True
            for name, axes in members.items():
                for axis, index in axes.items():
                    lost = torch.tensor([c >= 0 and bool(gone[key][c]) for c in index]).nonzero().flatten()
                    loaded.model.get_parameter(name).index_fill_(axis, lost, 0.0)
    shape = (3, 8, 8) if "size" in options else None
    return replace(loaded, input_shape=shape), sets, gone


def images(options):
    side = options.get("size", 32)
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))


def write(loaded, path="slim.safetensors"):
    """A slim file of a loaded network, and what went."""
    made = slim.reduced(loaded.model, images(loaded.arch_options), "m")
    slim.save(made.model, Path(path), metadata=to_metadata(loaded))
    return made


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_slim_file_gives_the_masked_network_s_logits(arch):
    x = images(FAMILIES[arch])
    loaded, _, gone = masked(arch, FAMILIES[arch])
    made = write(loaded)
    assert made.channels == (sum(int(g.sum()) for g in gone.values()), sum(map(len, gone.values())))
    again = load_model("slim.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again.model(x), loaded.model(x), atol=1e-5, rtol=0)
    count = sum(p.numel() for p in again.model.parameters())
    assert count == made.parameters[1] < made.parameters[0]
    assert layers.macs(again.model, x)["dense"] == made.macs[1] < made.macs[0]
    write(loaded, "twice.safetensors")
    assert Path("twice.safetensors").read_bytes() == Path("slim.safetensors").read_bytes()


def lenet():
    return masked("lenet5", FAMILIES["lenet5"])


def test_the_layers_say_their_own_sizes():
    """As torch.export, ONNX and people read them."""
    loaded, _, _ = lenet()
    write(loaded)
    net = load_model("slim.safetensors").model.net
    assert (net.conv1.in_channels, net.conv1.out_channels) == (3, 2)
    assert (net.conv2.in_channels, net.conv2.out_channels) == (2, 4)
    assert [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)] == [
        (4 * 4, 8), (8, 4)]


def test_the_file_is_plain_safetensors_and_says_what_it_needs():
    loaded, _, _ = lenet()
    write(loaded)
    with safe_open("slim.safetensors", "pt") as file:
        said = file.metadata()
    data = Path("slim.safetensors").read_bytes()
    names = list(json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"])
    assert sorted(said) == names and json.loads(said["slim"])["version"] == 1
    assert "build(arch" in json.loads(said["slim"])["needs"] and said["arch"] == "lenet5"
    assert load_file("slim.safetensors")["conv1.weight"].shape == (2, 3, 3, 3)


def test_sigmoid_at_zero_speaks_through_silent_filters():
    """Rows are zero, their readers hear 0.5: removal would change the logits, and is refused."""
    Path("net.py").write_text(SIGMOID)
    torch.manual_seed(0)
    net = build("net.py:fn", {})
    with torch.no_grad():
        net[0].weight[:3], net[0].bias[:3] = 0.0, 0.0
    torch.save(net.state_dict(), "m.pt")
    loaded = load_model(Source("m.pt", arch="net.py:fn"))
    with pytest.raises(InputError, match="without its 3 silent channels the logits differ"):
        slim.reduced(loaded.model, torch.rand(2, 3, 8, 8), "m")
    with torch.no_grad():
        net[3].weight.view(4, 6, 64)[:, :3] = 0.0  # and nobody hears it
    torch.save(net.state_dict(), "m.pt")
    loaded = load_model(Source("m.pt", arch="net.py:fn"))
    slim.save(slim.reduced(loaded.model, torch.rand(2, 3, 8, 8), "m").model, Path("s.safetensors"),
              metadata=to_metadata(loaded))
    again = load_model(Source("s.safetensors", arch="net.py:fn"))  # a network of the user's
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again.model(x), loaded.model(x), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="code is not run"):
        load_model("s.safetensors")


SIGMOID = """from torch import nn
def fn():
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 64, 4))
"""


def test_single_zeros_are_refused_with_what_would_be_saved():
    loaded, _, _ = masked("lenet5", FAMILIES["lenet5"], share=0)
    x = images(loaded.arch_options)
    with pytest.raises(InputError, match="none of its 28 channels that could be removed is silent"):
        slim.reduced(loaded.model, x, "m")
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.masked_fill_(torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.8, 0.0)
        loaded.model.net.conv2.weight[3], loaded.model.net.conv2.bias[3] = 0.0, 0.0
    with pytest.raises(InputError, match=r"one by one.*: \d+ of 28 channels are silent, and without"):
        slim.reduced(loaded.model, x, "m")


def test_padded_shortcuts_keep_their_channels_and_blocks_lose_theirs():
    """Of a network whose shortcuts are padded the channels inside blocks go."""
    options = {"blocks": [1, 1], "widths": [4, 8], "shortcut": "pad"}
    torch.manual_seed(0)
    torch.save(build("cifar-resnet", options).state_dict(), "p.pt")
    loaded = load_model(Source("p.pt", arch="cifar-resnet", options=options))
    with torch.no_grad():
        for block in (m for m in loaded.model.modules() if hasattr(m, "conv2")):
            for part in (block.conv1, *(m for n, m in block.named_children() if n == "bn1")):
                for p in part.parameters():
                    p[:2] = 0.0
    made = slim.reduced(loaded.model, images(options), "m")
    assert made.channels[0] == 4 and list(made.stay) == ["conv1.weight"]


# --- files that were changed --------------------------------------------------------------

def changed(change, tensors=lambda t: t):
    """A slim LeNet with other metadata or tensors."""
    loaded, _, _ = lenet()
    write(loaded)
    with safe_open("slim.safetensors", "pt") as file:
        said = file.metadata()
    save_file(tensors(load_file("slim.safetensors")), "changed.safetensors", {**said, **change})
    return "changed.safetensors"


OPTIONS = FAMILIES["lenet5"]


@pytest.mark.parametrize(("change", "sentence"), [
    ({"slim": "2"}, "expected version 1"), ({"slim": json.dumps({"version": 2})}, "expected version 1"),
    ({"slim": "{"}, "cannot be read as JSON"),
    ({"arch_options": json.dumps(OPTIONS | {"widths": [10**9, 10**9]})}, "arch_options"),
    ({"arch_options": json.dumps(OPTIONS | {"widths": [2, 2]})}, "has shape"),
    ({"arch_options": json.dumps(OPTIONS | {"hidden": 4000, "widths": [4096, 4096]})}, ""),
    ({"input_shape": json.dumps([3, 10**6, 10**6])}, "do not fit together"),
    ({"input_shape": json.dumps([1, 8, 8])}, "do not fit together")])
def test_a_changed_file_is_one_sentence(change, sentence):
    path = changed(change)
    if not sentence:  # larger than it was: no memory is taken for what the file does not hold
        assert load_model(path).model.net.conv1.weight.shape == (2, 3, 3, 3)
        return
    with pytest.raises(InputError, match=re.escape(sentence)) as caught:
        load_model(path)
    assert "\n" not in caught.value.message


def test_tensors_of_any_other_size_are_one_sentence():
    """Each tensor in turn missing, of fewer rows, of more, of another number of dimensions."""
    changes = {"missing": None, "fewer": lambda t: t[:-1].clone(), "none": lambda t: t[:0].clone(),
               "more": lambda t: torch.cat([t, t, t]), "flat": lambda t: t.flatten().clone(),
               "deep": lambda t: t[None].clone()}
    loaded, _, _ = lenet()
    write(loaded)
    with safe_open("slim.safetensors", "pt") as file:
        said = file.metadata()
    whole = load_file("slim.safetensors")
    for key in whole:
        for name, change in changes.items():
            tensors = {k: t for k, t in whole.items() if k != key}
            tensors |= {} if change is None else {key: change(whole[key])}
            if name == "flat" and whole[key].ndim == 1:
                continue
            save_file(tensors, "changed.safetensors", said)
            with pytest.raises(PwoaError) as caught:
                load_model("changed.safetensors")
            assert caught.value.message.count("\n") == 0 and caught.value.hint, (key, name)


def test_slim_networks_go_on(tmp_path):
    """Sparse files and ONNX of a slim network; a dense state dict would load nowhere."""
    loaded, _, _ = lenet()
    write(loaded)
    x = images(loaded.arch_options)
    again = load_model("slim.safetensors")
    for kind in ("sparse", "onnx"):
        job = export.prepare(export.Request(Source("slim.safetensors"), kind), say=lambda text: None)
        found = export.execute(job, progress=lambda *_: None, say=lambda text: None).result
        assert found["largest_difference"] <= 1e-5
    sparse = load_model("slim-sparse.safetensors")
    assert torch.equal(sparse.model(x), again.model(x))
    assert torch.allclose(onnx.Opened(Path("slim-onnx.onnx"), again.model)(x), again.model(x), atol=1e-5)
    with pytest.raises(InputError, match="is a slim file"):
        export.prepare(export.Request(Source("slim.safetensors"), "dense"), say=lambda text: None)
