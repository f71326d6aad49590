"""The pre-activation networks of DeepMind's adversarial_robustness (Gowal et al. 2020), as RobustBench names
and runs them.

They came from TensorFlow: a 3x3 convolution of stride 2 pads with one row below and one column to the right
only (SAME), where PyTorch's padding=1 pads on all sides; the same weights give other numbers. The published
models use SiLU (all 48 entries of RobustBench 1.1.1: 40 DM-WideResNets, 8 DM-PreActResNets), though ReLU is
the code's default; the keys do not tell. mean and std are buffers of the published class: in older files as
`mean` and `std`, in newer ones not at all.

Not covered, though their keys are alike: MeanSparse (meansparse_K has buffers that change what forward does),
RaWRN (robustarch: grouped convolutions, se), Dai2021 (PSSiLU: activation.alpha, .beta), SODEF and mixed
models that hold one of these inside, and the MNIST models that pad 28x28 images to 32x32 before they are
normalised.
"""
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.networks.families.base import (
    ACTIVATIONS,
    Family,
    Guess,
    State,
    add_at,
    count_blocks,
    dashed,
    fits,
    sizes,
)


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads kernel - stride pixels, the odd one below and to the right:
    TensorFlow's SAME."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int):
        super().__init__(inside, outside, kernel, stride, bias=False)
        total = max(kernel - stride, 0)
        self.pad = (total // 2, total - total // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pad))


class DMBlock(nn.Module):
    """conv(act(bn_1(conv(act(bn_0(x)))))) + shortcut, where the shape changes a convolution of x or of
    act(bn_0(x)).

    "wide": convolutions conv_0 and conv_1, a 1x1 shortcut of act(bn_0(x)). "preact": conv_2d_1 and conv_2d_2,
    a 3x3 shortcut of x. Input (B, inside, H, W), output (B, width, H/stride, W/stride).
    """

    def __init__(self, inside: int, width: int, stride: int, *, kind: str, activation: str):
        super().__init__()
        self.kind = kind
        self.convs = ("conv_0", "conv_1") if kind == "wide" else ("conv_2d_1", "conv_2d_2")
        self.batchnorm_0 = nn.BatchNorm2d(inside)
        self.relu_0 = ACTIVATIONS[activation]()
        self.add_module(self.convs[0], SameConv2d(inside, width, 3, stride))
        self.batchnorm_1 = nn.BatchNorm2d(width)
        self.relu_1 = ACTIVATIONS[activation]()
        self.add_module(self.convs[1], SameConv2d(width, width, 3, 1))
        self.changes = stride != 1 or inside != width
        if self.changes:
            self.shortcut = SameConv2d(inside, width, 1 if kind == "wide" else 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu_0(self.batchnorm_0(x))
        out = getattr(self, self.convs[0])(activated)
        out = getattr(self, self.convs[1])(self.relu_1(self.batchnorm_1(out)))
        if not self.changes:
            return out + x
        return out + self.shortcut(activated if self.kind == "wide" else x)


class _DMNet(nn.Module):
    """Stem, stages, batch norm, activation, global average (the published 8x8 or 4x4 at 32x32), linear layer
    `logits`."""

    def __init__(self, kind: str, names: tuple[str, str], *, num_classes: int, in_channels: int,
                 blocks: Sequence[int], stem: int,
                 widths: Sequence[int], activation: str):
        super().__init__()
        self.stem, stage_name = names
        self.add_module(self.stem, nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False))
        self.stages = [stage_name.format(i) for i in range(len(blocks))]
        inside = stem
        for stage, count, width in zip(self.stages, blocks, widths, strict=True):
            made = []
            for j in range(count):
                stride = 2 if stage != self.stages[0] and j == 0 else 1
                made.append(DMBlock(inside, width, stride, kind=kind, activation=activation))
                inside = width
            add_at(self, stage, nn.Sequential(*made))
        self.batchnorm = nn.BatchNorm2d(inside)
        self.relu = ACTIVATIONS[activation]()
        self.logits = nn.Linear(inside, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, self.stem)(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.logits(self.relu(self.batchnorm(x)).mean((2, 3)))


# key names of the stem and of a stage, from 0
_WIDE, _PREACT = ("init_conv", "layer.{}.block"), ("conv_2d", "layer_{}")


class DMWideResNet(_DMNet):
    """DM-WRN-d-k: blocks (n, n, n) with n = (d - 4) / 6, stem 16, widths (16k, 32k, 64k).

    Input (B, in_channels, H, W), H and W multiples of 4. Raises: KeyError for an unknown activation.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, blocks: Sequence[int] = (4, 4, 4),
                 stem: int = 16,
                 widths: Sequence[int] = (160, 320, 640), activation: str = "silu"):
        super().__init__("wide", _WIDE, num_classes=num_classes, in_channels=in_channels, blocks=blocks,
                         stem=stem, widths=widths, activation=activation)


class DMPreActResNet(_DMNet):
    """DM-PreActResNet-18 (2, 2, 2, 2) or 34 (3, 4, 6, 3).

    Input (B, in_channels, H, W), H and W multiples of 8. Raises: KeyError for an unknown activation.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, blocks: Sequence[int] = (2, 2, 2, 2),
                 stem: int = 64,
                 widths: Sequence[int] = (64, 128, 256, 512), activation: str = "silu"):
        super().__init__("preact", _PREACT, num_classes=num_classes, in_channels=in_channels, blocks=blocks,
                         stem=stem, widths=widths, activation=activation)


def _options(state: State, names: tuple[str, str], conv: str) -> dict[str, Any] | None:
    """Sizes by the names of stem and stage and of the first convolution in a block; None where one is
    missing."""
    stem, head = sizes(state, f"{names[0]}.weight", 4), sizes(state, "logits.weight", 2)
    blocks = count_blocks(state, names[1] + ".{}", first=0)
    shapes = [sizes(state, f"{names[1].format(i)}.0.{conv}.weight", 4) for i in range(len(blocks))]
    if not stem or not head or not 2 <= len(blocks) <= 6 or not all(shapes):
        return None
    return {"num_classes": head[0], "in_channels": stem[1], "blocks": blocks, "stem": stem[0],
            "widths": [s[0] for s in shapes],
            "activation": "silu"}


def _identify_wide(state: State) -> Guess | None:
    options = _options(state, _WIDE, "conv_0")
    if options is None or not fits(state, DMWideResNet, options):
        return None
    blocks, widths = options["blocks"], options["widths"]
    evidence = ("the keys init_conv (3x3), layer.0.block.0.conv_0, logits (DeepMind): wide, depth "
                f"{2 * sum(blocks) + 4}, blocks {dashed(blocks)}, width {widths[0] / 16:g} "
                f"({dashed(widths)})")
    return Guess("dm-wide-resnet", options, (options["in_channels"], 32, 32), evidence,
                 ({"activation": "relu"},))


def _identify_preact(state: State) -> Guess | None:
    options = _options(state, _PREACT, "conv_2d_1")
    if options is None or not fits(state, DMPreActResNet, options):
        return None
    blocks, widths = options["blocks"], options["widths"]
    evidence = ("the keys conv_2d (3x3), layer_0.0.conv_2d_1, logits (DeepMind): pre-activation, depth "
                f"{2 * sum(blocks) + 2}, blocks {dashed(blocks)}, widths {dashed(widths)}")
    return Guess("dm-preact-resnet", options, (options["in_channels"], 32, 32), evidence,
                 ({"activation": "relu"},))


_SIZES = ((28, 10), (34, 10), (34, 20), (70, 16), (94, 16), (106, 16))
DM_WIDE = Family(
    "dm-wide-resnet", DMWideResNet, _identify_wide,
    keys="init_conv, layer.N.block.M.batchnorm_K and conv_K, batchnorm, logits",
    origin="DeepMind adversarial_robustness, RobustBench DMWideResNet (Gowal, Rebuffi, Rade, Pang 2022, "
           "Wang 2023)",
    any_size=True,
    members={f"dm-wrn-{depth}-{k}": {"blocks": [(depth - 4) // 6] * 3, "widths": [16 * k, 32 * k, 64 * k]}
             for depth, k in _SIZES})
DM_PREACT = Family(
    "dm-preact-resnet", DMPreActResNet, _identify_preact,
    keys="conv_2d, layer_N.M.batchnorm_K and conv_2d_K, batchnorm, logits",
    origin="DeepMind adversarial_robustness, RobustBench DMPreActResNet (Gowal, Rebuffi, Rade)",
    any_size=True, members={f"dm-preact-resnet{depth}": {"blocks": blocks, "widths": [64, 128, 256, 512]}
             for depth, blocks in ((18, [2, 2, 2, 2]), (34, [3, 4, 6, 3]))})
