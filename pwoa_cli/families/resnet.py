"""ResNets for small images (He et al. 2016), in the namings that are in circulation."""
import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.families.base import Family, Guess, State

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


def _identify(state: State) -> Guess | None:
    for style, names in STYLES.items():
        stem, head = state.get(f"{names['stem']}.weight"), state.get(f"{names['head']}.weight")
        if stem is None or head is None or stem.shape[2:] != (3, 3) or head.ndim != 2:
            continue
        if f"{names['stem_bn']}.weight" not in state:  # pre-activation ResNets have the same keys but this
            continue
        stage = re.compile(re.escape(names["stage"]).replace(r"\{\}", r"(\d)") + r"\.(\d{1,4})\.")
        seen = {(int(m[1]), int(m[2])) for m in map(stage.match, state) if m}
        stages = max((i for i, _ in seen), default=0)
        blocks = [1 + max((j for i, j in seen if i == number), default=-1) for number in range(1, stages + 1)]
        if stages not in (3, 4) or 0 in blocks or sum(blocks) != len(seen):
            continue
        conv = names["stage"] + ".0." + names["conv"].format(names["layers"][0]) + ".weight"
        bottleneck = names["stage"].format(1) + ".0." + names["conv"].format(names["layers"][2]) + ".weight" in state
        widths = [state[k].shape[0] for k in map(conv.format, range(1, stages + 1)) if k in state]
        if len(widths) != stages or stem.shape[0] != widths[0]:
            continue
        projected = {word for word in ("shortcut", "downsample") if any(f".{word}.0.weight" in k for k in state)}
        if projected - {names["shortcut"]}:
            continue
        options = {"num_classes": head.shape[0], "in_channels": stem.shape[1], "blocks": blocks, "widths": widths,
                   "bottleneck": bottleneck, "style": style,
                   "shortcut": "conv" if projected else "pad-end" if style == "stage_ab" else "pad"}
        depth = sum(blocks) * (3 if bottleneck else 2) + 2
        evidence = f"the keys {names['stem']} (3x3), {conv.format(1).removesuffix('.weight')}, {names['head']}: depth {depth}, " \
            f"blocks {'-'.join(map(str, blocks))}, widths {'-'.join(map(str, widths))}, {options['shortcut']} shortcuts"
        return Guess("cifar-resnet", options, (stem.shape[1], 32, 32), evidence,
                     others=tuple({"shortcut": kind} for kind in ("pad", "pad-end") if not projected and kind != options["shortcut"]))
    return None


RESNET = Family(
    "cifar-resnet", CifarResNet, _identify, keys="a 3x3 stem with batch norm (conv1, bn1), layerN.M.convK, linear or fc",
    origin="kuangliu/pytorch-cifar, akamaster, HYDRA, MadryLab, vanilla-adversarial-training",
    members={**{f"cifar-resnet{6 * n + 2}": {"blocks": [n, n, n]} for n in (3, 5, 7, 9, 18)},
             **{f"cifar-resnet{depth}": {"blocks": blocks, "widths": [64, 128, 256, 512], "bottleneck": depth == 50, "shortcut": "conv"}
                for depth, blocks in ((18, [2, 2, 2, 2]), (34, [3, 4, 6, 3]), (50, [3, 4, 6, 3]))}})
