"""Residual networks without batch norm, as verification benchmarks have them: a stem, stages of blocks of two
convolutions with biases, linear layers.

Strides are in the keys only where a block has no shortcut of its own; the others are those that leave as many
pixels as the first linear layer reads. Convolutions are padded by half their kernel.
"""
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from torch import Tensor, nn

from pwoa_cli.networks.families.base import Family, Guess, State, add_at, dashed, fits, others_of, sizes
from pwoa_cli.networks.families.chain import chained
from pwoa_cli.networks.families.plain import LIMIT, SIDES


class PlainBlock(nn.Module):
    """relu(conv(relu(conv(x))) + shortcut(x)), both convolutions padded by half their kernel, the first of
    `stride`; the shortcut is x, or a 1x1 convolution of that stride where it has a name."""

    def __init__(self, inside: int, width: int, kernel: int, stride: int, *, layers: Sequence[str],
                 shortcut: str, biases: tuple[bool, bool]):
        super().__init__()
        self.layers, self.shortcut_at = tuple(layers), shortcut
        add_at(self, layers[0], nn.Conv2d(inside, width, kernel, stride, kernel // 2, bias=biases[0]))
        add_at(self, layers[1], nn.Conv2d(width, width, kernel, 1, kernel // 2, bias=biases[0]))
        self.relu_between, self.relu = nn.ReLU(), nn.ReLU()
        if shortcut:
            add_at(self, shortcut, nn.Conv2d(inside, width, 1, stride, bias=biases[1]))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu_between(self.get_submodule(self.layers[0])(x))
        straight = self.get_submodule(self.shortcut_at)(x) if self.shortcut_at else x
        return self.relu(self.get_submodule(self.layers[1])(out) + straight)


class PlainResNet(nn.Module):
    """Stem with ReLU, stages of `PlainBlock`s, linear layers with ReLU between them.

    Args: size: of the images, (B, in_channels, size, size). stem, stages, layers (two of a block), shortcut,
    heads: key names. kernels: of the stem and of the blocks. blocks, widths: by stage. strides: of the stem
    and of the first block of each stage. projected: by stage, whether its first block has a convolution as
    its shortcut. biases: of convolutions, of shortcuts. side: of what the first linear layer reads, end: how
    it is left, "flatten" or "mean". hidden: widths of the linear layers but the last.
    Raises: KeyError for an unknown end, ValueError for lists of different lengths.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, size: int = 32, stem: str = "conv1",
                 stages: Sequence[str] = ("layer1",), layers: Sequence[str] = ("conv1", "conv2"),
                 shortcut: str = "shortcut.0", kernels: Sequence[int] = (3, 3), blocks: Sequence[int] = (2,),
                 widths: Sequence[int] = (8, 16), strides: Sequence[int] = (2, 2),
                 projected: Sequence[bool] = (True,), biases: Sequence[bool] = (True, True), side: int = 8,
                 end: str = "flatten", heads: Sequence[str] = ("linear1", "linear2"),
                 hidden: Sequence[int] = (100,)):
        super().__init__()
        self.order = [stem, "relu", *stages, "end"]
        first, inner = kernels
        self.add_module(stem, nn.Conv2d(in_channels, widths[0], first, strides[0], first // 2,
                                        bias=biases[0]))
        self.relu = nn.ReLU()
        for stage, count, (inside, width), stride, own in zip(stages, blocks, pairwise(widths), strides[1:],
                                                              projected, strict=True):
            made = [(inside, stride, shortcut if own else ""), *[(width, 1, "")] * (count - 1)]
            self.add_module(stage, nn.Sequential(*(
                PlainBlock(source, width, inner, step, layers=layers, shortcut=name,
                           biases=(biases[0], biases[1])) for source, step, name in made)))
        ends: dict[str, list[nn.Module]] = {"flatten": [], "mean": [nn.AdaptiveAvgPool2d(side)]}
        self.end = nn.Sequential(*ends[end], nn.Flatten())
        between = pairwise([widths[-1] * side * side, *hidden, num_classes])
        for i, (name, (inside, outside)) in enumerate(zip(heads, between, strict=True)):
            if i:
                self.order.append(f"relu{i}")
                self.add_module(f"relu{i}", nn.ReLU())
            self.order.append(name)
            add_at(self, name, nn.Linear(inside, outside))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


# --- identification ---------------------------------------------------------------

_BLOCK = re.compile(r"([A-Za-z_]\w*)\.(0|[1-9][0-9]?)\.(\w+(?:\.[0-9])?)\.weight")
_SHORTCUT = re.compile(r"(short|down|skip|proj)\w*(\.[0-9])?", re.I)


@dataclass(frozen=True)
class _Names:
    """Key names of a residual network's parts; blocks: by stage."""

    stem: str
    stages: tuple[str, ...]
    blocks: tuple[int, ...]
    layers: tuple[str, ...]
    shortcut: str
    heads: tuple[str, ...]


def _names(state: State) -> _Names | None:
    convs = [k for k, t in state.items() if t.ndim == 4 and t.numel() and k.endswith(".weight")]
    heads = chained(state, [k.removesuffix(".weight") for k, t in state.items() if t.ndim == 2 and t.numel()
                            and k.endswith(".weight")])
    found = [m for key in convs if (m := _BLOCK.fullmatch(key))]
    stems = [k.removesuffix(".weight") for k in convs if not _BLOCK.fullmatch(k)]
    inner = sorted({m[3] for m in found if not _SHORTCUT.fullmatch(m[3])})
    shortcuts = {m[3] for m in found if _SHORTCUT.fullmatch(m[3])}
    if len(stems) != 1 or "." in stems[0] or len(inner) != 2 or len(shortcuts) > 1 or not heads:
        return None
    stages = sorted({m[1] for m in found}, key=lambda name: (len(name), name))
    parts = [stems[0], *stages, *inner, *shortcuts, *(part for head in heads for part in head.split("."))]
    if any(hasattr(nn.Sequential(), part) or re.fullmatch(r"relu\w*|end|order|layers|shortcut_at", part)
           for part in parts) or len(stages) > 4:
        return None
    blocks = [1 + max(int(m[2]) for m in found if m[1] == stage) for stage in stages]
    return _Names(stems[0], tuple(stages), tuple(blocks), tuple(inner), next(iter(shortcuts), ""),
                  tuple(heads))


def _strides(projected: Sequence[bool], widths: Sequence[int], kernel: int, pixels: int,
             usual: Sequence[int]) -> list[dict[str, Any]]:
    """Readings (size, strides, end) that leave so many pixels, likeliest first: with a stem of stride 1 each
    later stage halves the image, and the first one does not; with a stem of stride 2 all do."""
    may = [(1, 2) if own and a != b else (2,) if own else (1,)
           for own, (a, b) in zip(projected, pairwise(widths), strict=True)]
    ways = []
    for order, size in enumerate(usual):
        for stem, *steps in product((1, 2), *may):
            side = size
            for stride in (stem, *steps):
                side = -(-side // stride)  # padded by half an odd kernel
            end = "flatten" if side == pixels else "mean" if side > pixels else ""
            expected = [2 if i or stem == 2 else 1 for i in range(len(steps))]
            unlike = sum(a != b for a, b in zip(steps, expected, strict=True))
            cost = 2.0 * order + unlike + (stem == 2) * (kernel < 5) + 3 * (end == "mean" and pixels > 1)
            if end:
                ways.append((cost, {"size": size, "strides": [stem, *steps], "end": end}))
    return [way for _, way in sorted(ways, key=lambda pair: pair[0])][:LIMIT]


def _identify(state: State) -> Guess | None:
    names = _names(state)
    if names is None:
        return None
    stem = sizes(state, f"{names.stem}.weight", 4)
    firsts = [sizes(state, f"{stage}.0.{names.layers[0]}.weight", 4) for stage in names.stages]
    linear = [sizes(state, f"{name}.weight", 2) for name in names.heads]
    if (not all((stem, *firsts, *linear)) or stem[1] not in SIDES or linear[-1][0] < 2
            or not stem[2] % 2 or not firsts[0][2] % 2):
        return None
    widths = [stem[0], *(s[0] for s in firsts)]
    projected = [f"{stage}.0.{names.shortcut}.weight" in state for stage in names.stages]
    pixels = math.isqrt(linear[0][1] // widths[-1])
    ways = _strides(projected, widths, stem[2], pixels, SIDES[stem[1]]) if pixels else []
    if not ways:
        return None
    options = {"num_classes": linear[-1][0], "in_channels": stem[1], "stem": names.stem,
               "stages": list(names.stages), "layers": list(names.layers), "shortcut": names.shortcut,
               "kernels": [stem[2], firsts[0][2]], "blocks": list(names.blocks), "widths": widths,
               "projected": projected, "side": pixels, "heads": list(names.heads),
               "biases": [f"{names.stem}.bias" in state,
                          any(f"{stage}.0.{names.shortcut}.bias" in state for stage in names.stages)],
               "hidden": [s[0] for s in linear[:-1]], **ways[0]}
    if not fits(state, PlainResNet, options):
        return None
    return Guess("plain-resnet", options, (stem[1], options["size"], options["size"]),
                 _evidence(options, linear[0][1]), others_of(ways))


def _evidence(options: dict[str, Any], reads: int) -> str:
    size, stages = options["size"], options["stages"]
    linear = dashed([reads, *options["hidden"], options["num_classes"]])
    return (f"the keys {options['stem']}, {', '.join(stages)} (blocks {dashed(options['blocks'])} without "
            f"batch norm), {', '.join(options['heads'])}: widths {dashed(options['widths'])}, {linear}; by "
            f"the {reads}: {size}x{size} images, strides {dashed(options['strides'])}")


PLAIN_RESNET = Family(
    "plain-resnet", PlainResNet, _identify, general=True,
    keys="conv1, layerN.M.conv1 and conv2, shortcut.0 or none, linear1, linear2: residual blocks of two "
         "convolutions without batch norm",
    origin="residual networks of verification benchmarks (resnet_2b, resnet_4b of VNN-COMP)")
