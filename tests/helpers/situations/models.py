"""Hints on what network a file is of, its normalisation, and how the two are read."""

import shlex
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from helpers import small_models as small
from helpers.situations import DRY, EVAL, LENET, in_files, left_out, prints
from helpers.situations.files import run_code, weights
from pwoa_cli.checkpoints import hub
from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.files import sparse

INFO = ["info", "m.pt"]
ARCH, MODEL, NORM = "checkpoints/architecture.py:", "checkpoints/model.py:", "checkpoints/normalisation.py:"
BUILD = "networks/build.py:"


@prints(
    ARCH + "_of_library",
    ARCH + "unknown: {}",
    ARCH + "unknown: Name it",
    "checkpoints/filling.py:check_fits: {}",
    "checkpoints/filling.py:check_fits: Name",
)
def networks_that_keys_do_not_name(tool):
    small.write_npz("colour.npz", channels=3)
    net = torchvision.models.resnet18(num_classes=4)
    torch.save(net.state_dict(), "m.pt")
    hint = tool.raised(load_model, Source("m.pt"))
    tool.works(*INFO, *hint.removeprefix("Say which: ").split())
    net.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 4))
    torch.save(net.state_dict(), "m.pt")
    words = ["eval", "m.pt", "--data", "colour.npz", *EVAL[4:]]
    for again in (words, [*words, "--arch", "resnet18"], [*words, "--arch", "timm:resnet18"]):
        hint = tool.refused(*again)
        in_files("\n".join(line[4:] for line in hint.partition("\n\n")[2].splitlines()))
        tool.works(*INFO, "--arch", "net.py:fn")
    torch.save(nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 4)).state_dict(), "m.pt")
    torch.save({f"{k}.x": t for k, t in torch.load("m.pt").items()}, "odd.pt")
    assert "--arch file.py:fn" in tool.refused("eval", "odd.pt", *EVAL[2:])
    tool.works("info", "odd.pt", "--arch", in_files(ODD, name="odd.py"))
    tool.follow([*INFO, "--arch", "lenet5"], "--arch file.py:fn", f"--arch {in_files(TWO, name='two.py')}")
    torch.save(weights(), "m.pt")
    tool.follow([*INFO, "--arch", "resnet18"], "--arch NAME", "--arch lenet5")
    torch.save({"fc.weight": torch.rand(16, 64), "last.weight": torch.rand(4, 16)}, "m.pt")
    tool.follow([*INFO, "--arch", in_files(NAMED)], "--num-classes K", "--num-classes 4")


TWO = "from torch import nn\ndef fn(): return nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 4))\n"
NAMED = """from collections import OrderedDict
from torch import nn
def fn(num_classes=7): return nn.Sequential(OrderedDict(
    flat=nn.Flatten(), fc=nn.Linear(64, 16, bias=False), last=nn.Linear(16, num_classes, bias=False)))
"""
ODD = """from torch import nn
class Odd(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.x = nn.Parameter(nn.init.zeros_(__import__("torch").empty(*shape)))
class Layer(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.weight, self.bias = Odd(b, a), Odd(b)
def fn(): return nn.Sequential(Layer(64, 16), Layer(16, 4))
"""


@prints(ARCH + "_parse: For", ARCH + "_parse: Did", ARCH + "_parse: See", ARCH + "_parse: Leave")
def options_of_a_family(tool):
    torch.save(small.resnet().state_dict(), "m.pt")
    words = [*INFO, "--arch", "cifar-resnet:num_classes"]
    assert tool.refused(*words).endswith("--arch cifar-resnet:num_classes=10")
    tool.works(*words[:-1], "cifar-resnet:num_classes=4")
    near = tool.refused(*words[:-1], "cifar-resnet:shortcat=conv").removeprefix("Did you mean ").rstrip("?")
    tool.works(*words[:-1], f"cifar-resnet:{near}=conv")
    assert "docs/checkpoints.md" in tool.refused(*words[:-1], "cifar-resnet:xyz=1")
    assert (Path(__file__).parents[3] / "docs/checkpoints.md").is_file()
    tool.refused(*words[:-1], "cifar-resnet:num_classes=0")
    tool.works(*words[:-1], "cifar-resnet")


@prints(
    MODEL + "_loaded",
    MODEL + "_architecture",
    MODEL + "_build_for",
    "checkpoints/own_words.py:own_words",
    "checkpoints/state_dict.py:json_field",
)
def files_that_were_pruned_or_say_otherwise(tool):
    tool.follow(["info", "model.pt", "--num-classes", "7"])
    tool.works("info", "model.pt")
    Path("my net.py").write_text(LENET)
    loaded = load_model(Source("model.pt", arch="my net.py:fn"))
    words = to_metadata(loaded)
    sparse.save(loaded.model.net.state_dict(), Path("m.safetensors"), metadata=words)
    tool.follow(["info", "m.safetensors"])
    torch.save(small.resnet().state_dict(), "m.pt")
    tool.follow([*INFO, "--arch", "cifar-resnet:shortcut=round"], "--arch NAME", "--arch cifar-resnet")
    for change in ({"arch_options": "null"}, {"arch_options": "{"}):
        sparse.save(loaded.model.net.state_dict(), Path("m.safetensors"), metadata=words | change)
        assert "prune again" in tool.refused("info", "m.safetensors")
    tool.works(*DRY)


left_out(
    NORM + "of_user: Give",
    ["info", "model.pt", "--normalize", "half", "--mean", "0.5", "--std", "0.5"],
    "--mean",
    "--std",
)
left_out(
    NORM + "of_user: Give",
    ["info", "model.pt", "--normalize", "half", "--mean", "0.5", "--std", "0.5"],
    "--normalize",
)


@prints(
    NORM + "of_user: Did",
    NORM + "decide: Norm",
    NORM + "decide: One",
    NORM + "decide: Div",
    NORM + "of_user: Or the",
    NORM + "parse_numbers",
    "checkpoints/state_dict.py:check_one_normalisation",
)
def normalisations(tool):
    words = ["info", "model.pt"]
    near = tool.refused(*words, "--normalize", "mnits").removeprefix("Did you mean ").rstrip("?")
    tool.works(*words, "--normalize", near)
    assert "--mean A,B,C --std A,B,C" in tool.refused(*words, "--normalize", "xyz")
    tool.works(*words, "--mean", "0.1", "--std", "0.5")
    tool.follow([*words, "--mean", "0.1"])
    for wrong in (("0.1,0.2", "0.1,0.2"), ("0.1", "0"), ("0.1", "nan")):
        tool.follow(
            [*words, "--mean", wrong[0], "--std", wrong[1]],
            "--mean A,B,C --std A,B,C",
            "--mean 0.1 --std 0.5",
        )
    torch.save(weights() | {"mean": torch.tensor(33.3)}, "m.pt")
    tool.follow(INFO, "--mean A,B,C --std A,B,C", "--mean 0.1 --std 0.5")
    torch.save(small.resnet().state_dict(), "m.pt")
    tool.follow([*INFO, "--std", "1,1,1", "--mean", "dark"])
    for mean, std in (("33,123,2", "55,70,3"), ("1.5,2,3", "1,1,0.0001")):
        tool.follow([*INFO, "--mean", mean, "--std", std])
    two = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.25), "norm.mean": torch.full((3,), 0.4),
           "norm.std": torch.full((3,), 0.25)}
    torch.save({f"model.{key}": t for key, t in small.resnet().state_dict().items()} | two, "m.pt")
    tool.follow(INFO)


@prints(
    BUILD + "build: Did",
    BUILD + "build: Ours",
    BUILD + "_from_file: --arch {}",
    BUILD + "_from_file: --arch path",
    BUILD + "_from_file: Did",
    BUILD + "_from_file: It has",
    BUILD + "_from_file: Return",
    BUILD + "_from_file: It is called",
    BUILD + "_run_file: Its",
    BUILD + "_run_file: It must",
)
def architectures_by_name(tool):
    def at(arch):
        return ["info", "model.pt", "--arch", arch]

    assert "lenet5" in tool.refused(*at("lenet")).removeprefix("Did you mean ").rstrip("?").split(", ")
    tool.works(*at("lenet5"))
    hint = tool.refused(*at("xyzxyz"))
    assert "lenet5" in hint
    in_files(LENET, name="my net.py")
    tool.follow(at("xyzxyz"), "--arch file.py:fn", "--arch 'my net.py:fn'")
    tool.follow(at("my net.py"))
    tool.follow(at("absent.py:fn"), "--arch path/to/file.py:fn", "--arch 'my net.py:fn'")
    near = tool.refused(*at("my net.py:fnn")).removeprefix("Did you mean ").rstrip("?")
    tool.works(*at(f"my net.py:{near}"))
    assert tool.refused(*at("my net.py:xyz")) == "It has: fn."
    in_files("def fn(): return 3\n", name="none.py")
    tool.refused(*at("none.py:fn"))
    in_files(LENET.replace("num_classes=4", "num_classes, depth"), name="more.py")
    tool.refused(*at("more.py:fn"))
    Path("net.py:a.txt").write_text(LENET)
    tool.refused(*at("net.py:a.txt:fn"))
    in_files("1 / 0\n", name="my broken.py")
    assert tool.refused(*at("my broken.py:fn")) == "It must import by itself: python 'my broken.py'"


@prints(
    "checkpoints/parametrisations.py:_fold_masks",
    "checkpoints/parametrisations.py:_same_shape",
    "checkpoints/parametrisations.py:_normed",
    "checkpoints/parametrisations.py:_spectral",
    "checkpoints/parametrisations.py:_mask",
)
def parametrised_weights_that_do_not_fit(tool):
    for part, shape in (("_mask", (2,)), ("_orig", (4, 4)), ("_g", (3, 1)), ("_u", (9,)), ("scores", (7,))):
        tensors = weights()
        name = next(iter(tensors)).removesuffix(".weight")
        whole = tensors.pop(f"{name}.weight")
        tensors |= {
            "_mask": {f"{name}.weight_orig": whole, f"{name}.weight_mask": torch.ones(shape)},
            "_orig": {f"{name}.weight_orig": whole},
            "_g": {f"{name}.weight_g": torch.ones(shape), f"{name}.weight_v": whole},
            "_u": {
                f"{name}.weight_orig": whole,
                f"{name}.weight_u": torch.ones(shape),
                f"{name}.weight_v": torch.ones(3),
            },
            "scores": {f"{name}.weight": whole, f"{name}.popup_scores": torch.ones(shape)},
        }[part]
        torch.save(tensors, "my m.pt")
        hint = tool.refused("prune", "my m.pt", *DRY[2:], *["--keep", "0.5"] * (part == "scores"))
        words = hint.partition("pwoa ")[2]
        out = tool.works(*shlex.split(words), *["--keep", "0.5"] * (part == "scores"))
        assert f"{name}.weight" in out


@prints(
    "checkpoints/parametrisations.py:_kept: Its",
    "checkpoints/parametrisations.py:_kept: Say",
    "checkpoints/parametrisations.py:fold",
)
def scores_that_say_what_stays(tool):
    tensors = weights()
    layers = [k.removesuffix(".weight") for k, t in tensors.items() if t.ndim > 1]
    scores = {f"{layer}.popup_scores": torch.rand_like(tensors[f"{layer}.weight"]) for layer in layers}
    rates = {f"{layer}.k_score": torch.tensor(-2.0) for layer in layers}
    torch.save(tensors | scores, "m.pt")
    for keep in ("0.1", "1"):
        tool.follow(INFO, f"--keep {keep}")
    torch.save(tensors | scores | rates, "m.pt")
    tool.follow(INFO)
    from pwoa_cli.checkpoints.parametrisations import fold

    hint = tool.raised(fold, tensors | scores, {}, density=2.0)
    for keep in (0.1, 1.0):
        assert f"--keep {keep:g}" in hint
        fold(tensors | scores, {}, density=keep)


@prints(
    "checkpoints/parametrisations.py:_fold_spectral",
    "checkpoints/parametrisations.py:_computed",
    "checkpoints/filling.py:make_plain",
    "checkpoints/filling.py:_load_without_counters",
)
def formulas_that_are_not_in_the_file(tool):
    net = nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(64, 16)), nn.ReLU(), nn.Linear(16, 4))
    old = {k: t for k, t in net.state_dict().items() if not k.endswith("weight_v")}
    torch.save(old, "m.pt")
    hint = tool.refused(*INFO)
    assert "remove_spectral_norm" in hint and "model.state_dict()" in hint
    nn.utils.remove_spectral_norm(net[1])
    torch.save(net.state_dict(), "m.pt")
    tool.works(*INFO, "--arch", in_files(CHAIN))

    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight + self.shift

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

    layer = nn.utils.parametrize.register_parametrization(net[1], "weight", Twice())
    torch.save(net.state_dict(), "m.pt")
    line = tool.refused(*INFO).partition(": ")[2].partition(";")[0]
    run_code(line, layer=layer)
    torch.save(net.state_dict(), "m.pt")
    tool.works(*INFO, "--arch", in_files(CHAIN))
    in_files(LOCKED + CHAIN + "def shut(): return locked(fn())\n", name="locked.py")
    hint = tool.refused(*INFO, "--arch", "locked.py:shut")
    assert "return the network with plain weights" in hint
    tool.works(*INFO, "--arch", "locked.py:fn")
    in_files(CHAIN + STRICT, name="strict.py")
    torch.save(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)).state_dict(), "m.pt"
    )
    tool.follow([*INFO, "--arch", "strict.py:strict"], "--arch file.py:fn", "--arch net.py:fn")


CHAIN = """from torch import nn
def fn(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
"""
STRICT = """
class Strict(nn.Sequential):
    def load_state_dict(self, state, strict=True):
        raise KeyError("version")
def strict(): return Strict(*fn())
"""
LOCKED = """from torch.nn.utils import parametrize
import torch
class Half(torch.nn.Module):
    def forward(self, w):
        if self.calls:
            raise KeyError("no more")
        return w / 2
def locked(net):
    part = Half()
    part.calls = 0
    parametrize.register_parametrization(net[1], "weight", part)
    part.calls = 1
    return net
"""


@prints(
    "checkpoints/hub.py:_create: Did",
    "checkpoints/hub.py:_create: See",
    "checkpoints/hub.py:_create: Check",
    "checkpoints/hub.py:pretrained",
    MODEL + "_from_hub",
)
def models_by_name(tool):
    tool.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = tool.refused("info", "timm:test_resnets").removeprefix("Did you mean ").rstrip("?").split(", ")
    assert all(timm.is_model(name.removeprefix("timm:")) for name in names) and names
    assert names[0] != "timm:test_resnets"
    line = tool.refused("info", "timm:xyzxyz").removeprefix("See ").rstrip(".")
    assert eval(line, {"timm": timm})  # noqa: S307 (the package's own words)
    tool.refused("info", "hf-hub:no/such")
    tool.refused("info", "timm:test_resnet", "--arch", "resnet18")
    net = timm.create_model("test_resnet", num_classes=4)
    net._model_args = {"act_layer": nn.SiLU}
    tool.patch.setattr(hub, "_create", lambda source: net)
    assert "--arch file.py:fn" in tool.refused("info", "timm:test_resnet")
    torch.save(net.state_dict(), "m.pt")
    tool.works(
        *INFO,
        "--arch",
        in_files("import timm\ndef fn(): return timm.create_model('test_resnet', num_classes=4)\n"),
    )
