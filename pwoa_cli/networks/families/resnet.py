"""ResNets for small images (He et al. 2016), in the namings that are in circulation.

torchvision's ResNet has the keys of the naming "fc", but a 7x7 stem of stride 2: that one is not here
(signatures.py).
"""
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.networks.families.base import Family, Guess, State, add_at, count_blocks, dashed, fits, sizes

# Key names of the ResNets in circulation. {} is the number of a stage, counted from `first`, or what stands
# for a layer: in the names of convolutions a character of `layers`, in those of batch norms one of `norms`.
_PLAIN = {"stem": "conv1", "stem_bn": "bn1", "stage": "layer{}", "first": 1, "conv": "conv{}", "bn": "bn{}",
          "layers": "123",
          "norms": "123"}
STYLES: dict[str, dict[str, Any]] = {
    # kuangliu/pytorch-cifar and who took it over: TRADES, MART, HYDRA, HARP, PwoA, MadryLab, RobustBench,
    # RSLAD; akamaster
    "linear": _PLAIN | {"shortcut": "shortcut", "head": "linear"},
    # torchvision with a 3x3 stem: chenyaofo, bearpaw, rethinking-network-pruning,
    # Sparsity-Win-Robust-Generalization, huyvnphan
    "fc": _PLAIN | {"shortcut": "downsample", "head": "fc"},
    "linear-downsample": _PLAIN | {"shortcut": "downsample", "head": "linear"},
    "fc-shortcut": _PLAIN | {"shortcut": "shortcut", "head": "fc"},
    # D-X-Y/ResNeXt-DenseNet, soft filter pruning, vanilla-adversarial-training
    "stage_ab": {"stem": "conv_1_3x3", "stem_bn": "bn_1", "stage": "stage_{}", "first": 1, "conv": "conv_{}",
                 "bn": "bn_{}",
                 "layers": "abc", "norms": "abc", "shortcut": "downsample", "head": "classifier"},
    # weiaicunzai/pytorch-cifar100
    "residual_function": {"stem": "conv1.0", "stem_bn": "conv1.1", "stage": "conv{}_x", "first": 2,
                          "conv": "residual_function.{}", "bn": "residual_function.{}", "layers": "036",
                          "norms": "147",
                          "shortcut": "shortcut", "head": "fc"},
}
# Shortcuts without weights that a naming is known to have, likeliest first: He et al.'s option A, in three
# ways. pool-end: rethinking-network-pruning (l1-norm) averages 2x2 where the others take every second pixel.
_PADDED = {"stage_ab": ("pad-end", "pad"), "fc": ("pad", "pad-end", "pool-end")}


class ResidualBlock(nn.Module):
    """relu(conv-bn-relu-...-conv-bn(x) + shortcut(x)) of He et al. 2016; basic (two 3x3) or bottleneck (1x1,
    3x3, 4x 1x1).

    shortcut where the shape changes: "conv" (1x1 convolution and batch norm), "pad" (every second pixel,
    channels padded with zeros on both sides), "pad-end" (all zeros behind), "pool-end" (the same, after a 2x2
    average).
    """

    def __init__(self, inside: int, width: int, stride: int, *, bottleneck: bool, shortcut: str,
                 style: dict[str, Any]):
        super().__init__()
        if shortcut not in ("conv", "pad", "pad-end", "pool-end"):
            raise ValueError(f"shortcut is {shortcut!r}, expected 'conv', 'pad', 'pad-end' or 'pool-end'")
        self.style, self.kind = style, shortcut
        outside = 4 * width if bottleneck else width
        shapes = [(inside, width, 1, 1), (width, width, 3, stride),
                  (width, outside, 1, 1)] if bottleneck else \
            [(inside, width, 3, stride), (width, width, 3, 1)]
        self.layers = [(style["conv"].format(c), style["bn"].format(n), f"relu{c}")
                       for c, n in zip(style["layers"], style["norms"], strict=True)][: len(shapes)]
        for (conv, norm, relu), (a, b, kernel, s) in zip(self.layers, shapes, strict=True):
            add_at(self, conv, nn.Conv2d(a, b, kernel, s, kernel // 2, bias=False))
            add_at(self, norm, nn.BatchNorm2d(b))
            self.add_module(relu, nn.ReLU())
        self.stride, self.extra = stride, outside - inside
        self.changes = stride != 1 or inside != outside
        if self.changes and shortcut == "conv":
            projection = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.add_module(style["shortcut"], nn.Sequential(projection, nn.BatchNorm2d(outside)))

    def forward(self, x: Tensor) -> Tensor:
        out, last = x, self.layers[-1]
        for conv, norm, relu in self.layers:
            out = self.get_submodule(norm)(self.get_submodule(conv)(out))
            if relu != last[2]:
                out = getattr(self, relu)(out)
        return getattr(self, last[2])(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.changes:
            return x
        if self.kind == "conv":
            return getattr(self, self.style["shortcut"])(x)
        before = self.extra // 2 if self.kind == "pad" else 0
        x = (F.avg_pool2d(x, self.stride) if self.kind == "pool-end"
             else x[:, :, :: self.stride, :: self.stride])
        return F.pad(x, (0, 0, 0, 0, before, self.extra - before))


class CifarResNet(nn.Module):
    """ResNet for small images: 3x3 stem, stages of residual blocks, global average, linear layer.

    ResNet-20/32/44/56/110: blocks (n, n, n), widths (16, 32, 64). ResNet-18/34/50 as used on CIFAR: four
    stages from 64.
    Args: pool: a 3x3 max pool of stride 2 behind the stem (huyvnphan/PyTorch_CIFAR10).
    Input (B, in_channels, H, W), any H and W of at least 8. Raises: KeyError for an unknown style, ValueError
    for a shortcut.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, blocks: Sequence[int] = (3, 3, 3),
                 widths: Sequence[int] = (16, 32, 64), bottleneck: bool = False, shortcut: str = "pad",
                 style: str = "linear",
                 pool: bool = False):
        super().__init__()
        names = STYLES[style]
        self.names = names
        add_at(self, names["stem"], nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False))
        add_at(self, names["stem_bn"], nn.BatchNorm2d(widths[0]))
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        inside = widths[0]
        self.stages = [names["stage"].format(i + names["first"]) for i in range(len(blocks))]
        for i, (stage, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            made = []
            for j in range(count):
                stride = 2 if i and not j else 1
                made.append(ResidualBlock(inside, width, stride, bottleneck=bottleneck, shortcut=shortcut,
                                          style=names))
                inside = 4 * width if bottleneck else width
            self.add_module(stage, nn.Sequential(*made))
        self.add_module(names["head"], nn.Linear(inside, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule(self.names["stem_bn"])(self.get_submodule(self.names["stem"])(x))
        x = self.maxpool(self.relu(x))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return getattr(self, self.names["head"])(x.mean((2, 3)))


def _identify(state: State) -> Guess | None:
    return next(filter(None, (_identify_style(state, style) for style in STYLES)), None)


def _identify_style(state: State, style: str) -> Guess | None:
    names = STYLES[style]
    stem, head = sizes(state, f"{names['stem']}.weight", 4), sizes(state, f"{names['head']}.weight", 2)
    blocks = count_blocks(state, names["stage"] + ".{}", first=names["first"])
    one, _, three = (names["conv"].format(letter) for letter in names["layers"])
    convs = [f"{names['stage'].format(i + names['first'])}.0.{one}" for i in range(len(blocks))]
    shapes = [sizes(state, f"{conv}.weight", 4) for conv in convs]
    if not stem or not head or len(blocks) not in (3, 4) or not all(shapes):
        return None
    projected = any(f".{names['shortcut']}.0.weight" in key for key in state)
    padded = _PADDED.get(style, ("pad", "pad-end"))
    widths = [s[0] for s in shapes]
    options = {"num_classes": head[0], "in_channels": stem[1], "blocks": blocks, "widths": widths,
               "bottleneck": f"{convs[0].removesuffix(one)}{three}.weight" in state, "style": style,
               "shortcut": "conv" if projected else padded[0], "pool": False}
    if not fits(state, CifarResNet, options):
        return None
    depth = sum(blocks) * (3 if options["bottleneck"] else 2) + 2
    evidence = (f"the keys {names['stem']} (3x3), {names['stem_bn']}, {convs[0]}, {names['head']}: "
                f"depth {depth}, blocks {dashed(blocks)}, widths {dashed(widths)}, "
                f"{options['shortcut']} shortcuts")
    others = ([{"pool": True}] * (style == "fc" and len(blocks) == 4) if projected
              else [{"shortcut": kind} for kind in padded[1:]])
    return Guess("cifar-resnet", options, (stem[1], 32, 32), evidence, tuple(others))


RESNET = Family(
    "cifar-resnet", CifarResNet, _identify,
    keys="a 3x3 stem with batch norm (conv1, bn1), layerN.M.convK, shortcut.0 or downsample.0 or none, "
         "linear or fc; also conv_1_3x3, stage_N.M.conv_a, classifier; conv1.0, "
         "convN_x.M.residual_function.K, fc",
    origin="kuangliu/pytorch-cifar, TRADES, HYDRA, HARP, PwoA, MadryLab, RobustBench ResNet, akamaster; "
           "chenyaofo, bearpaw, Sparsity-Win-Robust-Generalization, huyvnphan, rethinking-network-pruning; "
           "weiaicunzai; vanilla-adversarial-training",
    any_size=True, members={**{f"cifar-resnet{6 * n + 2}": {"blocks": [n, n, n]} for n in (3, 5, 7, 9, 18)},
             **{f"cifar-resnet{depth}": {"blocks": blocks, "widths": [64, 128, 256, 512],
                                         "bottleneck": depth == 50,
                                         "shortcut": "conv"}
                for depth, blocks in ((18, [2, 2, 2, 2]), (34, [3, 4, 6, 3]), (50, [3, 4, 6, 3]))}})
