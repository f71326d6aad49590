"""Architectures of public robust checkpoints that neither timm nor torchvision defines, with their public key names.

One parametric definition a family; depth, width, classes and channels are arguments. `build` makes a bare network by
name, `Normalized` puts the normalisation inside, so that every model takes (B, C, H, W) in [0,1].
"""
import contextlib
import difflib
import importlib.util
import inspect
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.errors import InputError


class Normalized(nn.Module):
    """net((x - mean) / std) for x (B, C, H, W) in [0,1]; net(x) if mean is None. Its state dict is that of `net`, prefixed."""

    def __init__(self, net: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        self.net = net
        for name, values in (("mean", mean), ("std", std)):
            by_channel = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, by_channel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if self.mean is None else (x - self.mean) / self.std)


def _named(name: str, module: nn.Module) -> tuple[str, nn.Module]:
    """A child for a key prefix that may have a dot in it: l1.fc is a Sequential l1 with a child fc."""
    first, _, rest = name.partition(".")
    return first, nn.Sequential(OrderedDict({rest: module})) if rest else module


def lenet_side(size: int, *, kernel: int, padded: bool) -> int:
    """Side of the image that reaches the linear layers of `LeNet`, for inputs of side `size`."""
    cut = 0 if padded else kernel - 1
    return ((size - cut) // 2 - cut) // 2


class LeNet(nn.Module):
    """Two convolutions and two linear layers with ReLU, the small MNIST networks of the field.

    advertorch's LeNet5 is widths (32, 64), hidden 200, kernel 3. Args: in_channels, size: input (B, in_channels, size,
    size) in [0,1]; kernel: odd; padded: keep the size in convolutions; heads: key prefixes of the linear layers.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, size: int = 28, widths: Sequence[int] = (32, 64),
                 hidden: int = 200, kernel: int = 3, padded: bool = True, heads: Sequence[str] = ("linear1", "linear2")):
        super().__init__()
        padding = kernel // 2 if padded else 0
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, padding=padding)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernel, padding=padding)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        features = widths[1] * lenet_side(size, kernel=kernel, padded=padded) ** 2
        first, second = _named(heads[0], nn.Linear(features, hidden)), _named(heads[1], nn.Linear(hidden, num_classes))
        self.add_module(*first)
        self.relu3 = nn.ReLU()
        self.add_module(*second)
        self.heads = (first[0], second[0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(getattr(self, self.heads[0])(x.flatten(1)))
        return getattr(self, self.heads[1])(x)


class SmallCNN(nn.Module):
    """The MNIST network of TRADES (Zhang et al. 2019): four 3x3 convolutions, three linear layers, input (B, C, 28, 28)."""

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.feature_extractor = nn.Sequential(OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, 3), relu1=nn.ReLU(), conv2=nn.Conv2d(32, 32, 3), relu2=nn.ReLU(),
            maxpool1=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 64, 3), relu3=nn.ReLU(), conv4=nn.Conv2d(64, 64, 3), relu4=nn.ReLU(), maxpool2=nn.MaxPool2d(2)))
        self.classifier = nn.Sequential(OrderedDict(
            fc1=nn.Linear(64 * 16, 200), relu1=nn.ReLU(), drop=nn.Dropout(0.5), fc2=nn.Linear(200, 200), relu2=nn.ReLU(),
            fc3=nn.Linear(200, num_classes)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.feature_extractor(x).flatten(1))


# key names of the CIFAR ResNets in circulation; {} is the number of a stage (from 1) or the letter or number of a layer
_PLAIN = {"stem": "conv1", "stem_bn": "bn1", "stage": "layer{}", "conv": "conv{}", "bn": "bn{}", "layers": "123"}
STYLES: dict[str, dict[str, str]] = {
    "linear": _PLAIN | {"shortcut": "shortcut", "head": "linear"},
    "fc": _PLAIN | {"shortcut": "downsample", "head": "fc"},
    "linear-downsample": _PLAIN | {"shortcut": "downsample", "head": "linear"},
    "fc-shortcut": _PLAIN | {"shortcut": "shortcut", "head": "fc"},
    "stage_ab": {"stem": "conv_1_3x3", "stem_bn": "bn_1", "stage": "stage_{}", "conv": "conv_{}", "bn": "bn_{}", "layers": "abc",
                 "shortcut": "downsample", "head": "classifier"},
}


class ResidualBlock(nn.Module):
    """relu(conv-bn-relu-...-conv-bn(x) + shortcut(x)) of He et al. 2016; basic (two 3x3) or bottleneck (1x1, 3x3, 4x 1x1).

    shortcut where the shape changes: "conv" (1x1 convolution and batch norm), "pad" (every second pixel, channels padded
    with zeros on both sides), "pad-end" (all zeros behind).
    """

    def __init__(self, inside: int, width: int, stride: int, *, bottleneck: bool, shortcut: str, style: dict[str, str]):
        super().__init__()
        self.style, self.kind = style, shortcut
        outside = 4 * width if bottleneck else width
        shapes = [(inside, width, 1, 1), (width, width, 3, stride), (width, outside, 1, 1)] if bottleneck else \
            [(inside, width, 3, stride), (width, width, 3, 1)]
        self.layers = style["layers"][: len(shapes)]
        for letter, (a, b, kernel, s) in zip(self.layers, shapes, strict=True):
            self.add_module(style["conv"].format(letter), nn.Conv2d(a, b, kernel, s, kernel // 2, bias=False))
            self.add_module(style["bn"].format(letter), nn.BatchNorm2d(b))
            self.add_module(f"relu{letter}", nn.ReLU())
        self.stride, self.extra = stride, outside - inside
        self.changes = stride != 1 or inside != outside
        if self.changes and shortcut == "conv":
            projection = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.add_module(style["shortcut"], nn.Sequential(projection, nn.BatchNorm2d(outside)))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for letter in self.layers:
            out = getattr(self, self.style["bn"].format(letter))(getattr(self, self.style["conv"].format(letter))(out))
            if letter != self.layers[-1]:
                out = getattr(self, f"relu{letter}")(out)
        return getattr(self, f"relu{self.layers[-1]}")(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.changes:
            return x
        if self.kind == "conv":
            return getattr(self, self.style["shortcut"])(x)
        before = self.extra // 2 if self.kind == "pad" else 0
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


class CifarResNet(nn.Module):
    """ResNet for small images: 3x3 stem without pooling, stages of residual blocks, global average, linear layer.

    ResNet-20/32/44/56/110: blocks (n, n, n), widths (16, 32, 64). ResNet-18/34/50 as used on CIFAR: four stages from 64.
    Input (B, in_channels, H, W), any H and W of at least 8.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, blocks: Sequence[int] = (3, 3, 3),
                 widths: Sequence[int] = (16, 32, 64), bottleneck: bool = False, shortcut: str = "pad", style: str = "linear"):
        super().__init__()
        names = STYLES[style]
        self.names = names
        self.add_module(names["stem"], nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False))
        self.add_module(names["stem_bn"], nn.BatchNorm2d(widths[0]))
        self.relu = nn.ReLU()
        inside = widths[0]
        self.stages = [names["stage"].format(i + 1) for i in range(len(blocks))]
        for i, (stage, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            made = []
            for j in range(count):
                stride = 2 if i and not j else 1
                made.append(ResidualBlock(inside, width, stride, bottleneck=bottleneck, shortcut=shortcut, style=names))
                inside = 4 * width if bottleneck else width
            self.add_module(stage, nn.Sequential(*made))
        self.add_module(names["head"], nn.Linear(inside, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(getattr(self, self.names["stem_bn"])(getattr(self, self.names["stem"])(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return getattr(self, self.names["head"])(x.mean((2, 3)))


# a family by its class, a member of fixed depth as a partial of it: `.keywords` says what the name fixes
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet, "smallcnn": SmallCNN, "cifar-resnet": CifarResNet,
    **{f"cifar-resnet{6 * n + 2}": partial(CifarResNet, blocks=(n, n, n)) for n in (3, 5, 7, 9, 18)},
    **{f"cifar-resnet{depth}": partial(CifarResNet, blocks=blocks, widths=(64, 128, 256, 512), bottleneck=depth == 50,
                                        shortcut="conv")
       for depth, blocks in ((18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3)))},
}


def build(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """A bare network by name, with random weights: ours, timm:NAME, torchvision:NAME, a bare name of either, or file.py:fn.

    Raises: InputError for an unknown name (did you mean), a file or function that is not there or returns no module.
    """
    if ".py:" in arch or arch.endswith(".py"):
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            return _from_file(arch, options)
    if arch in FAMILIES:
        return FAMILIES[arch](**options)
    import torchvision

    house, colon, name = arch.rpartition(":")
    ours = torchvision.models.list_models(torchvision.models) if house in ("", "torchvision") else []
    timm = importlib.import_module("timm") if house in ("", "timm") else None  # seconds to import: only where it may be meant
    if timm and timm.is_model(name):
        return timm.create_model(name, pretrained=False, **options)
    if name in ours:
        extra = {"init_weights": False} if name.startswith(("googlenet", "inception", "densenet0")) else {}
        return torchvision.models.get_model(name, weights=None, **extra, **options)
    known = dict.fromkeys([*FAMILIES, *(timm.list_models() if timm else []), *ours])
    near = difflib.get_close_matches(name, known, n=3)
    raise InputError(f"--arch {arch!r} is no architecture of pwoa, timm or torchvision.",
                     hint=f"Did you mean {', '.join(near)}?" if near else
                     f"Ours: {', '.join(FAMILIES)}; or your own: --arch file.py:fn")


def _from_file(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """The module that function fn of file.py returns; it is given the options that its signature has."""
    file, _, function = arch.rpartition(":") if ".py:" in arch else (arch, "", "")
    if not os.path.isfile(file):  # Path.is_file raises for a name that is too long
        raise InputError(f"--arch {arch}: there is no file {file}.",
                         hint="--arch path/to/file.py:fn, where fn() returns the network.")
    module = _run_file(arch, Path(file))
    make = getattr(module, function, None)
    if not callable(make):
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        near = difflib.get_close_matches(function, names, n=1)
        raise InputError(f"--arch {arch}: {file} has no function {function!r}.",
                         hint=f"Did you mean {near[0]}?" if near else f"It has: {', '.join(names[:8]) or 'none'}.")
    takes = inspect.signature(make).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    try:
        net = make(**{k: v for k, v in options.items() if anything or k in takes})
    except (Exception, SystemExit) as error:  # the user's own code, again
        raise InputError(f"--arch {arch}: {function} raises {type(error).__name__}: {error}",
                         hint="It is called with num_classes, if it takes it, and nothing else.") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"--arch {arch}: {function} returns a {type(net).__name__}, expected a torch.nn.Module.",
                         hint="Return the network, not its weights.")
    return net


def _run_file(arch: str, file: Path) -> ModuleType:
    """Import a Python file as `python FILE` would: what lies beside it can be imported too."""
    spec = importlib.util.spec_from_file_location("pwoa_user_arch", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise InputError(f"--arch {arch}: {file} raises {type(error).__name__}: {error}",
                         hint=f"It must import by itself: python {file}") from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module


def live_parameters(model: nn.Module, x: Tensor) -> set[str]:
    """Names of the parameters whose gradient reaches the logits, on images x (B, C, H, W); grads are left untouched.

    A parameter that forward never uses (the second `sub_block1` of WideResNets from TRADES-like code) is not among them.
    """
    named = dict(model.named_parameters())
    trained = {name: p.requires_grad for name, p in named.items()}
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            for p in named.values():
                p.requires_grad_(True)
            grads = torch.autograd.grad(model(x).sum(), list(named.values()), allow_unused=True)
    finally:
        for module, was in training.items():  # one by one: a frozen batch norm stays frozen
            module.training = was
        for name, p in named.items():
            p.requires_grad_(trained[name])
    return {name for name, g in zip(named, grads, strict=True) if g is not None}
