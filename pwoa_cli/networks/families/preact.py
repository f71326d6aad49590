"""Pre-activation ResNets for small images (He et al. 2016, "Identity Mappings").

A block is x -> conv_n(act(bn_n(... conv_1(act(bn_1(x)))))) + shortcut: batch norm and activation come before
a convolution, so block and stage end without one, and bn_k has as many channels as conv_k reads.
"""
from collections.abc import Sequence

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


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck (1x1, 3x3, 1x1 to 4 width), each behind its own batch norm and
    activation.

    The shortcut is x, or where the shape changes a 1x1 convolution of x ("input") or of act(bn1(x))
    ("activated").
    Args: stride_at: which convolution has the stride, from 1; None: the first 3x3. bias: of all convolutions.
    shortcut: key name of the 1x1 convolution. Input (B, inside, H, W), output (B, width or 4 width, H/stride,
    W/stride).
    """

    bn1: nn.Module
    relu1: nn.Module

    def __init__(self, inside: int, width: int, stride: int, *, bottleneck: bool = False,
                 stride_at: int | None = None,
                 bias: bool = False, shortcut_from: str = "activated", shortcut: str = "shortcut.0",
                 activation: str = "relu"):
        super().__init__()
        outside = 4 * width if bottleneck else width
        shapes = [(inside, width, 1), (width, width, 3), (width, outside, 1)] if bottleneck else \
            [(inside, width, 3), (width, width, 3)]
        self.layers = range(1, len(shapes) + 1)
        stride_at = stride_at or 1 + bottleneck
        for i, (a, b, kernel) in zip(self.layers, shapes, strict=True):
            self.add_module(f"bn{i}", nn.BatchNorm2d(a))
            self.add_module(f"relu{i}", ACTIVATIONS[activation]())
            self.add_module(f"conv{i}",
                            nn.Conv2d(a, b, kernel, stride if i == stride_at else 1, kernel // 2, bias=bias))
        self.projection = shortcut if stride != 1 or inside != outside else ""
        if self.projection:
            add_at(self, shortcut, nn.Conv2d(inside, outside, 1, stride, bias=bias))
        if shortcut_from not in ("input", "activated"):
            raise ValueError(f"shortcut_from is {shortcut_from!r}, expected 'input' or 'activated'")
        self.shortcut_from = shortcut_from

    def forward(self, x: Tensor) -> Tensor:
        out = activated = self.relu1(self.bn1(x))
        for i in self.layers:
            if i > 1:
                out = getattr(self, f"relu{i}")(getattr(self, f"bn{i}")(out))
            out = getattr(self, f"conv{i}")(out)
        if not self.projection:
            return out + x
        return (out
                + self.get_submodule(self.projection)(activated if self.shortcut_from == "activated" else x))


# --- PreActResNet ---------------------------------------------------------------

class PreActResNet(nn.Module):
    """PreActResNet-18/34/50: 3x3 stem without batch norm, stages of `PreActBlock`, global average, linear
    layer.

    Two things differ between the repositories. bn: a batch norm and an activation before pooling (locuslab's
    robust_overfitting and fast_adversarial, AWP, RobustBench's bn_before_fc) or none
    (kuangliu/pytorch-cifar); it is in the keys, and no source that was read has an activation there without
    it. shortcut_from: not in the keys; see `_identify`. Input (B, in_channels, H, W), any H and W of at least
    8. Raises: KeyError for an unknown activation.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, blocks: Sequence[int] = (2, 2, 2, 2),
                 widths: Sequence[int] = (64, 128, 256, 512), bottleneck: bool = False, bn: bool = True,
                 shortcut_from: str = "activated", activation: str = "relu"):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        inside = widths[0]
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        for stage, count, width in zip(self.stages, blocks, widths, strict=True):
            made = []
            for j in range(count):
                stride = 2 if stage != "layer1" and j == 0 else 1
                made.append(PreActBlock(inside, width, stride, bottleneck=bottleneck,
                                        shortcut_from=shortcut_from, activation=activation))
                inside = 4 * width if bottleneck else width
            self.add_module(stage, nn.Sequential(*made))
        self.last = bn
        if bn:
            self.bn = nn.BatchNorm2d(inside)
            self.relu = ACTIVATIONS[activation]()
        self.linear = nn.Linear(inside, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        if self.last:
            x = self.relu(self.bn(x))
        return self.linear(x.mean((2, 3)))


def _identify(state: State) -> Guess | None:
    """Where the shortcut is taken from is the default by what was released, not by what was written.

    With a last batch norm "activated" (all 5 entries of RobustBench 1.1.1; robust_overfitting, AWP, ASCL)
    before "input" (fast_adversarial, ATAS). Without one "input" (both of RobustBench: Wong2020Fast,
    Andriushchenko2020Understanding) before "activated" (kuangliu, BackdoorBench). Bottlenecks are "activated"
    everywhere.
    """
    stem, head = sizes(state, "conv1.weight", 4), sizes(state, "linear.weight", 2)
    blocks = count_blocks(state, "layer{}.{}")
    first = [sizes(state, f"layer{i + 1}.0.conv1.weight", 4) for i in range(len(blocks))]
    if not stem or not head or not 2 <= len(blocks) <= 6 or not all(first):
        return None
    bottleneck, bn = "layer1.0.conv3.weight" in state, "bn.weight" in state
    source, other = ("activated", "input") if bn or bottleneck else ("input", "activated")
    widths = [s[0] for s in first]
    options = {"num_classes": head[0], "in_channels": stem[1], "blocks": blocks, "widths": widths,
               "bottleneck": bottleneck, "bn": bn, "shortcut_from": source, "activation": "relu"}
    if not fits(state, PreActResNet, options):
        return None
    depth = sum(blocks) * (3 if bottleneck else 2) + 2
    evidence = ("the keys conv1 (3x3) without batch norm behind it, layer1.0.bn1 with the channels that "
                f"conv1 reads, linear, {'bn' if bn else 'no bn'} before it: pre-activation, depth {depth}, "
                f"blocks {dashed(blocks)}, widths {dashed(widths)}")
    others = ({"shortcut_from": other}, {"activation": "silu"},
              {"shortcut_from": other, "activation": "silu"})
    return Guess("preact-resnet", options, (stem[1], 32, 32), evidence, others)


_WIDTHS = [64, 128, 256, 512]
PREACT = Family(
    "preact-resnet", PreActResNet, _identify,
    keys="conv1 without bn1, layerN.M.bnK and convK, shortcut.0, bn or none, linear",
    origin="kuangliu/pytorch-cifar, locuslab/robust_overfitting and fast_adversarial, AWP, RobustBench "
           "PreActResNet",
    any_size=True,
    members={f"preact-resnet{depth}": {"blocks": blocks, "widths": _WIDTHS, "bottleneck": depth >= 50}
             for depth, blocks in ((18, [2, 2, 2, 2]), (34, [3, 4, 6, 3]), (50, [3, 4, 6, 3]))})
