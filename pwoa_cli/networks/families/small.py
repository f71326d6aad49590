"""Small networks for MNIST and its like: LeNets, the SmallCNN of TRADES, the strided networks of
convex_adversarial.

All of the code that was read has ReLU and max pools; neither is in the keys.
"""
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pwoa_cli.networks.families.base import Family, Guess, State, add_at, dashed, fits, others_of, sizes
from pwoa_cli.networks.families.chain import chained
from pwoa_cli.networks.families.geometry import Slot, fitting, side_after

MORE = (8, 16, 64, 96, 128, 224)  # sides of images that are not of MNIST or CIFAR
LIMIT = 24  # geometries of a LeNet beyond those of the known ones

# --- LeNet ---------------------------------------------------------------


def lenet_side(size: int, *, kernel: int, padded: bool | str, pools: int = 2) -> int:
    """Side of the image that reaches the linear layers of `LeNet`, for inputs of side `size`; 0 or less: too
    small."""
    steps = _lenet_steps(kernel, padded, pools)
    for stride, padding, pool in (steps[::2], steps[1::2]):
        size = side_after(size, kernel=kernel, stride=stride, padding=padding, pool=pool)
    return size


def _lenet_steps(kernel: int, padded: bool | str, pools: int) -> list[int]:
    """Strides, paddings and pools of both convolutions. Raises: KeyError for an unknown padding."""
    first, second = {True: (1, 1), False: (0, 0), "first": (1, 0)}[padded]
    return [1, 1, first * (kernel // 2), second * (kernel // 2), 2 if pools == 2 else 1, 2]


class LeNet(nn.Module):
    """Two convolutions and two or three linear layers with ReLU, the small MNIST networks of the field.

    advertorch's LeNet5 is widths (32, 64), hidden 200, kernel 3; the paper of PwoA, HYDRA and Madry et al.
    have hidden 1024, kernel 5; LeCun's LeNet-5 is widths (6, 16), hidden (120, 84), kernel 5, padded "first".
    Args: in_channels, size: input (B, in_channels, size, size) in [0,1]; hidden: widths of the linear layers
    but the last, a number for one; kernel: odd; padded: keep the size in convolutions, or in the "first"
    alone; pools: 2x2 max pools behind each convolution (2), or behind the second alone (1); geometry:
    strides, paddings and pools (side of the pool, of stride 2; 1: none) of the two convolutions, six numbers
    that win over padded and pools; (): none; convs, heads: key prefixes of the convolutions and linear
    layers. Raises: ValueError for a geometry of another length.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, size: int = 28,
                 widths: Sequence[int] = (32, 64),
                 hidden: int | Sequence[int] = 200, kernel: int = 3, padded: bool | str = True,
                 pools: int = 2, geometry: Sequence[int] = (),
                 convs: Sequence[str] = ("conv1", "conv2"), heads: Sequence[str] = ("linear1", "linear2")):
        super().__init__()
        self.order: list[str] = []
        steps = list(geometry) or _lenet_steps(kernel, padded, pools)
        if len(steps) != 6:
            raise ValueError(f"geometry is {dashed(steps)}, expected two strides, two paddings, two pools")
        side = size
        for i, (name,
                (inside, width)) in enumerate(zip(convs, pairwise((in_channels, *widths)), strict=True)):
            stride, padding, pool = steps[i::2]
            self._add(name, nn.Conv2d(inside, width, kernel, stride, padding))
            self._add(f"relu{i + 1}", nn.ReLU())
            if pool > 1:
                self._add(f"pool{i + 1}", nn.MaxPool2d(pool, 2))
            side = side_after(side, kernel=kernel, stride=stride, padding=padding, pool=pool)
        self._add("flatten", nn.Flatten())
        features = widths[1] * side ** 2
        between = [features, *([hidden] if isinstance(hidden, int) else hidden), num_classes]
        for i, (name, (inside, outside)) in enumerate(zip(heads, pairwise(between), strict=True)):
            self._add(name, nn.Linear(inside, outside))
            if name != heads[-1]:
                self._add(f"relu{i + 3}", nn.ReLU())

    def _add(self, name: str, module: nn.Module) -> None:
        add_at(self, name, module)
        self.order.append(name)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


# names that LeNet has itself, and those of a Sequential
_OWN = re.compile(r"relu[0-9]|pool[0-9]|flatten|order|[0-9]+")


def _lenet_fields(channels: int, kernel: int, side: int) -> list[tuple[int, bool | str, int]]:
    """(size of the images, padded, pools) that leave `side` pixels: sizes of MNIST and CIFAR, likeliest
    first, else up to 512."""
    known = [(size, padded, pools) for pools in (2, 1) for padded in (True, False, "first")
             for size in (28, 32)
             if padded != "first" or (kernel, pools) == (5, 2)]  # LeNet-5, and nothing else is known to do so
    known.sort(key=lambda field: field[0] != (28 if channels == 1 else 32))
    fitting = [(s, p, n) for s, p, n in known if lenet_side(s, kernel=kernel, padded=p, pools=n) == side]
    return fitting or [(4 * side, True, 2)] * (4 * side <= 512)


def _geometries(options: dict[str, Any], pixels: int,
                fields: Sequence[tuple[int, bool | str, int]]) -> list[dict[str, Any]]:
    """The options themselves, and what else leaves as many pixels, likeliest first: the paddings and pools of
    LeNets of the same size, then strides and what a chain of any origin may have, for other sizes as well."""
    size = options["size"]
    base = {"size": size, "padded": options["padded"], "pools": options["pools"], "geometry": []}
    own = [base | {"padded": padded, "pools": pools} for side, padded, pools in fields[1:] if side == size]
    seen = [(side, _lenet_steps(options["kernel"], padded, pools)) for side, padded, pools in fields
            if side == size]
    slots = [Slot(options["kernel"], width) for width in options["widths"]]
    sides = [s for s in (28, 32) if s != size]
    sides = [size, *sides] if size in (28, 32, *MORE) else [*sides, size]
    more = fitting(slots, pixels, sides, limit=10 * LIMIT)
    found = [(g.size, [*g.strides, *g.paddings, *g.pools]) for g in more if g.end == "flatten"][:LIMIT]
    return [base, *own, *(base | {"size": side, "geometry": steps} for side, steps in found
                          if (side, steps) not in seen)]


def _lenet_layers(state: State) -> tuple[list[str], list[str]] | None:
    """Key names of two convolutions and of two or three linear layers, if there is nothing else, each a
    child."""
    weights = {k.removesuffix(".weight"): t for k, t in state.items() if k.endswith(".weight") and t.numel()}
    convs, heads = ([name for name, t in weights.items() if t.ndim == ndim] for ndim in (4, 2))
    names = [*convs, *heads]
    wanted = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    if len(convs) != 2 or len(heads) not in (2, 3) or wanted != set(state):
        return None
    firsts = {name.split(".")[0] for name in names}
    if len(firsts) != len(names) or any("." in name for name in convs):  # fc.0, fc.2: what is fc.1?
        return None
    if any(_OWN.fullmatch(name) or hasattr(nn.Module(), name) for name in firsts):
        return None
    convs, heads = chained(state, convs), chained(state, heads)
    return (convs, heads) if convs and heads else None


def _identify_lenet(state: State) -> Guess | None:
    layers = _lenet_layers(state)
    if layers is None:
        return None
    convs, heads = layers
    conv1, conv2, *linear = (tuple(state[f"{name}.weight"].shape) for name in (*convs, *heads))
    kernel, side = conv1[2], math.isqrt(linear[0][1] // conv2[0])
    fields = _lenet_fields(conv1[1], kernel, side) if kernel % 2 and side else []
    if not fields:
        return None
    size, padded, pools = fields[0]
    hidden = [s[0] for s in linear[:-1]]
    options = {"num_classes": linear[-1][0], "in_channels": conv1[1], "size": size,
               "widths": [conv1[0], conv2[0]],
               "hidden": hidden[0] if len(hidden) == 1 else hidden, "kernel": kernel, "padded": padded,
               "pools": pools, "geometry": [],
               "convs": convs, "heads": heads}
    if not fits(state, LeNet, options):
        return None
    ways = _geometries(options, side, fields)
    if size not in (28, 32, *MORE) and len(ways) > 1:  # four times what is left: no known data has that size
        ways = [*ways[1:], ways[0]]
    options.update(ways[0])
    size = ways[0]["size"]
    return Guess("lenet5", options, (conv1[1], size, size), _lenet_evidence(options, linear, fields),
                 others_of(ways))


def _dashed_linear(shapes: Sequence[tuple[int, ...]]) -> str:
    """3136-200-10 for matrices (200, 3136) and (10, 200)."""
    return dashed([shapes[0][1], *(rows for rows, _ in shapes)])


def _lenet_evidence(options: dict[str, Any], linear: Sequence[tuple[int, ...]],
                    fields: Sequence[tuple[int, bool | str, int]]) -> str:
    padding = {True: "padded convolutions", False: "convolutions without padding",
               "first": "only the first convolution padded"}
    ways = [f"{size}x{size} images, {padding[padded]}, {pools} pool{'s' * (pools > 1)}"
            for size, padded, pools in fields]
    return f"the keys {', '.join([*options['convs'], *options['heads']])}: " \
        f"{options['in_channels']}-{dashed(options['widths'])} {options['kernel']}x{options['kernel']}, " \
        f"{_dashed_linear(linear)}; by the {linear[0][1]}: {', or '.join(ways)}"


# --- SmallCNN ---------------------------------------------------------------

class SmallCNN(nn.Module):
    """The MNIST network of TRADES (Zhang et al. 2019): four 3x3 convolutions without padding, three linear
    layers.

    Input (B, in_channels, size, size). Dropout is not built: it has no weights and does nothing when a model
    is used.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, size: int = 28,
                 widths: Sequence[int] = (32, 32, 64, 64),
                 hidden: Sequence[int] = (200, 200)):
        super().__init__()
        layers: dict[str, nn.Module] = {}
        for i, (inside, width) in enumerate(pairwise((in_channels, *widths))):
            layers |= {f"conv{i + 1}": nn.Conv2d(inside, width, 3), f"relu{i + 1}": nn.ReLU()}
            if i % 2:
                layers[f"maxpool{i // 2 + 1}"] = nn.MaxPool2d(2)
        self.feature_extractor = nn.Sequential(OrderedDict(layers))
        side = ((size - 4) // 2 - 4) // 2
        self.classifier = nn.Sequential(OrderedDict(
            fc1=nn.Linear(widths[-1] * side * side, hidden[0]), relu1=nn.ReLU(),
            fc2=nn.Linear(hidden[0], hidden[1]), relu2=nn.ReLU(), fc3=nn.Linear(hidden[1], num_classes)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.feature_extractor(x).flatten(1))


def _identify_small_cnn(state: State) -> Guess | None:
    convs = [sizes(state, f"feature_extractor.conv{i}.weight", 4) for i in (1, 2, 3, 4)]
    linear = [sizes(state, f"classifier.fc{i}.weight", 2) for i in (1, 2, 3)]
    if not all(convs) or not all(linear):
        return None
    size = {4: 28, 5: 32}.get(math.isqrt(linear[0][1] // convs[-1][0]), 28)
    widths = [s[0] for s in convs]
    options = {"num_classes": linear[-1][0], "in_channels": convs[0][1], "size": size, "widths": widths,
               "hidden": [s[0] for s in linear[:-1]]}
    if not fits(state, SmallCNN, options):
        return None
    evidence = "the keys feature_extractor.conv1 to conv4, classifier.fc1 to fc3 (TRADES): " \
        f"{convs[0][1]}-{dashed(widths)} 3x3, {_dashed_linear(linear)}, for {size}x{size} images"
    return Guess("smallcnn", options, (convs[0][1], size, size), evidence)


# --- convex_adversarial ---------------------------------------------------------------

class ConvexNet(nn.Sequential):
    """Kolter & Wong's networks without pools: 4x4 convolutions of stride 2 halve the image, 3x3 ones keep it;
    padding 1.

    Each convolution, and each linear layer but the last, has a ReLU behind it; the keys are the numbers in
    this very chain. Input (B, in_channels, size, size), size a multiple of 2^(number of 4x4 kernels). Raises:
    ValueError for another kernel.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, size: int = 28,
                 widths: Sequence[int] = (16, 32),
                 kernels: Sequence[int] = (4, 4), hidden: Sequence[int] = (100,)):
        if set(kernels) - {3, 4}:
            raise ValueError(f"kernels are {dashed(kernels)}, expected 3 or 4")
        layers: list[nn.Module] = []
        for (inside, width), kernel in zip(pairwise((in_channels, *widths)), kernels, strict=True):
            layers += [nn.Conv2d(inside, width, kernel, kernel - 2, 1), nn.ReLU()]
        between = [widths[-1] * (size >> list(kernels).count(4)) ** 2, *hidden, num_classes]
        layers.append(nn.Flatten())
        for inside, outside in pairwise(between):
            layers += [nn.Linear(inside, outside), nn.ReLU()]
        super().__init__(*layers[:-1])


_NUMBER = re.compile(r"(0|[1-9][0-9]{0,2})\.weight")


def _identify_convex(state: State) -> Guess | None:
    numbered = sorted(((int(k.removesuffix(".weight")), t) for k, t in state.items() if t.numel()
                       and _NUMBER.fullmatch(k)),
                      key=lambda pair: pair[0])
    convs, linear = ([tuple(t.shape) for _, t in numbered if t.ndim == ndim] for ndim in (4, 2))
    kernels = [s[2] for s in convs]
    if not linear or not kernels or set(kernels) - {3, 4} or 4 not in kernels:
        return None
    size = math.isqrt(linear[0][1] // convs[-1][0]) << kernels.count(4)
    widths = [s[0] for s in convs]
    options = {"num_classes": linear[-1][0], "in_channels": convs[0][1], "size": size, "widths": widths,
               "kernels": kernels, "hidden": [s[0] for s in linear[:-1]]}
    if size not in (28, 32) or not fits(state, ConvexNet, options):
        return None
    evidence = f"the keys {', '.join(str(number) for number, _ in numbered)} (convex_adversarial): " \
        f"{convs[0][1]}-{dashed(widths)}, kernels {dashed(kernels)} (4: stride 2), " \
        f"{_dashed_linear(linear)}, for {size}x{size} images"
    return Guess("convex-net", options, (convs[0][1], size, size), evidence)


LENET = Family("lenet5", LeNet, _identify_lenet,
               keys="two convolutions (conv1, conv2, with bias) and two or three linear layers of any names",
               origin="advertorch LeNet5; LeNets of PwoA, HYDRA, ADMM pruning and ports of the MNIST "
                      "challenge; TRADES Net; pytorch/examples; kuangliu LeNet")
SMALL_CNN = Family("smallcnn", SmallCNN, _identify_small_cnn,
                   keys="feature_extractor.conv1..4, classifier.fc1..3", origin="TRADES, MART")
CONVEX = Family("convex-net", ConvexNet, _identify_convex,
                keys="0, 2 (4x4, stride 2), 5, 7; or 0, 2, 4, 6 (3x3 and 4x4), 9, 11, 13: numbers of one "
                     "Sequential",
                origin="convex_adversarial, fast_adversarial mnist_net",
                members={"convex-small": {"widths": [16, 32], "kernels": [4, 4], "hidden": [100]},
                         "convex-large": {"widths": [32, 32, 64, 64], "kernels": [3, 4, 3, 4],
                                          "hidden": [512, 512]}})
