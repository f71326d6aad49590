"""Networks that are known but for their head: each is named, and the file that is printed makes it
loadable."""
import io
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from rich.console import Console
from torch import nn

from pwoa_cli.checkpoints.architecture import UnknownArchitecture
from pwoa_cli.checkpoints.heads import body_of
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.errors import InputError
from pwoa_cli.networks import families
from pwoa_cli.reports import checkpoint
from pwoa_cli.workflows import info

pytestmark = pytest.mark.usefixtures("folder")
# (network, name of its last layer, features)
NETWORKS = {
    "torchvision:resnet18": (lambda: torchvision.models.resnet18(num_classes=5), "fc", 512),
    "torchvision:mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
                                       "classifier.3", 1024),
    "timm:test_resnet": (lambda: timm.create_model("test_resnet", num_classes=5), "fc", 96),
    "cifar-resnet": (lambda: families.make("cifar-resnet", {"blocks": [1, 1, 1], "num_classes": 5}), "linear",
                     64),
    "preact-resnet": (lambda: families.make("preact-resnet", {"blocks": [1, 1], "widths": [8, 16],
                                                              "num_classes": 5}), "linear", 16)}


def without(net, own):
    parent, _, name = own.rpartition(".")
    inner = net.get_submodule(parent)
    layer = inner[int(name)] if name.isdigit() else getattr(inner, name)
    if name.isdigit():
        inner[int(name)] = nn.Identity()
    else:
        setattr(inner, name, nn.Identity())
    return net, layer


def with_head(net, own, head):
    parent, _, name = own.rpartition(".")
    inner = net.get_submodule(parent)
    if name.isdigit():
        inner[int(name)] = head
    else:
        setattr(inner, name, head)
    return net


WAYS = {
    "no head": lambda net, own, d: without(net, own)[0],
    "dropout": lambda net, own, d: with_head(net, own, nn.Sequential(nn.Dropout(), nn.Linear(d, 5))),
    "two layers": lambda net, own, d: with_head(net, own, nn.Sequential(nn.Linear(d, 7), nn.ReLU(),
                                                                        nn.Linear(7, 5))),
    "backbone, head": lambda net, own, d: nn.Sequential(OrderedDict(
        backbone=without(net, own)[0], head=nn.Sequential(OrderedDict(fc=nn.Linear(d, 5))))),
    "encoder, classifier": lambda net, own, d: nn.Sequential(OrderedDict(
        encoder=without(net, own)[0], classifier=nn.Linear(d, 5, bias=False)))}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_named_and_the_file_that_is_printed_makes_it_loadable(name, way):
    torch.manual_seed(0)
    make, own, width = NETWORKS[name]
    net = WAYS[way](make(), own, width).eval()
    torch.save(net.state_dict(), "m.pt")
    if own.count(".") and way in ("dropout", "two layers"):
        assert body_of(net.state_dict()) is None or "but for its head" in body_of(net.state_dict()).words()
        return  # its own head has several layers already
    with pytest.raises(UnknownArchitecture) as caught:
        load_model(Source("m.pt"))
    family = name if ":" not in name else name.partition(":")[2]
    assert family in caught.value.message and "its head" in caught.value.message
    assert ("mean nothing before a head is trained" in caught.value.hint) == (way == "no head")
    code = caught.value.hint.partition("\n\n")[2]
    Path("net.py").write_text("\n".join(line.removeprefix("    ") for line in code.splitlines()) + "\n")
    loaded = load_model(Source("m.pt", arch="net.py:fn"))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), net(x))


@pytest.mark.parametrize(("arch", "own_keys"), [("resnet18", False), ("timm:resnet18", False),
                                                ("resnet18", True), ("resnet34", True)])
def test_a_name_that_is_right_but_for_the_head_gets_the_file_to_write(arch, own_keys):
    """A whole network under another name is told to name the right one, as ever."""
    net = torchvision.models.resnet18(num_classes=5)
    if not own_keys:
        net = with_head(net, "fc", nn.Sequential(nn.Dropout(), nn.Linear(512, 5)))
    torch.save(net.state_dict(), "m.pt")
    if own_keys and arch == "resnet18":
        assert load_model(Source("m.pt", arch=arch)).num_classes == 5
        return
    with pytest.raises(InputError) as caught:
        load_model(Source("m.pt", arch=arch))
    assert ("it is torchvision:resnet18 but for its head, fc.1 (512 -> 5)" in caught.value.message
            and "tensors missing" in caught.value.message) != own_keys
    assert ("    net.fc = nn.Sequential(" in caught.value.hint) != own_keys, caught.value.hint


def test_info_shows_the_file_in_both_forms():
    net = without(torchvision.models.resnet18(), "fc")[0]
    torch.save(net.state_dict(), "m.pt")
    found = info.describe(Source("m.pt"), say=lambda text: None)
    stream = io.StringIO()
    Console(file=stream, width=60).print(checkpoint.table(found))
    for text in (checkpoint.markdown(found), stream.getvalue()):
        assert "torchvision:resnet18 without its head" in " ".join(text.split())
        lines = [line.rstrip() for line in text.splitlines()]
        assert lines[lines.index("    def fn():") + 1] == "        net = torchvision.models.resnet18()"


@pytest.mark.parametrize("name", ["a b", "import", "x=__import__('os')", "1x", "\u0430"])
def test_names_from_a_file_that_are_no_names_are_not_printed_as_code(name):
    net = without(torchvision.models.resnet18(), "fc")[0]
    state = {f"{name}.{k}": t for k, t in net.state_dict().items()} | {"head.weight": torch.ones(5, 512)}
    body = body_of(state)
    assert body is not None and body.code() is None


def test_what_is_no_known_network_has_no_body():
    assert body_of({"a.weight": torch.ones(3, 3), "fc.weight": torch.ones(2, 3)}) is None
    assert body_of({}) is None
    other = torchvision.models.resnet18().state_dict()
    other["layer1.0.conv1.weight"] = torch.ones(64, 64, 5, 5)
    assert body_of({k: t for k, t in other.items() if not k.startswith("fc")}) is None
