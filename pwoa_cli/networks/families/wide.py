"""Wide ResNets for small images (Zagoruyko & Komodakis 2016): depth d = 6n + 4, k times as wide as ResNet's
16-32-64.

Two codes are in circulation, and they differ in more than key names. "block" (xternalz, TRADES, RobustBench):
convolutions without bias, stride in the first one of a block, projections of the activated input. "layer"
(meliketoy): biases, stride in the second one, projections of the input itself. Neither is in the keys beyond
the biases; both are options.
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
from pwoa_cli.networks.families.preact import PreActBlock

# {} is the number of a stage, counted from `first`
STYLES: dict[str, dict[str, Any]] = {
    "block": {"stem": "conv1", "stage": "block{}.layer", "first": 1, "shortcut": "convShortcut",
              "head": "fc"},
    "layer": {"stem": "conv1", "stage": "layer{}", "first": 1, "shortcut": "shortcut.0", "head": "linear"},
    "blocks": {"stem": "stem_conv", "stage": "blocks.{}.layer", "first": 0, "shortcut": "convShortcut",
               "head": "fc"},
}
# TRADES builds it beside block1 and never calls it; its weights are in most of the files
UNUSED = "sub_block1.layer"


class CosineLinear(nn.Linear):
    """w_k x / (|w_k| |x|) for each class k: the head of Pang et al. 2020 (Boosting Adversarial Training),
    without bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class WideResNet(nn.Module):
    """3x3 stem, three stages of `PreActBlock`, batch norm, activation, global average, linear layer.

    WRN-d-k: blocks (n, n, n) with n = (d - 4) / 6, stem 16, widths (16k, 32k, 64k). The published pooling of
    8x8 is the global average for 32x32 images. Args: sub_block1: also have the stage that forward never uses.
    bias: of the convolutions. head: "linear" or "cosine". Dropout is not built: it has no weights and does
    nothing when a model is used. Input (B, in_channels, H, W), any H and W of at least 4. Raises: KeyError
    for an unknown style or activation.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, blocks: Sequence[int] = (4, 4, 4),
                 stem: int = 16,
                 widths: Sequence[int] = (160, 320, 640), style: str = "block", sub_block1: bool = False,
                 bias: bool = False,
                 head: str = "linear", head_bias: bool = True, stride_at: int = 1,
                 shortcut_from: str = "activated",
                 activation: str = "relu"):
        super().__init__()
        names = STYLES[style]
        self.stem, self.head = names["stem"], names["head"]
        how = {"bias": bias, "stride_at": stride_at, "shortcut_from": shortcut_from,
               "shortcut": names["shortcut"],
               "activation": activation}
        add_at(self, self.stem, nn.Conv2d(in_channels, stem, 3, 1, 1, bias=bias))
        self.stages = [names["stage"].format(i + names["first"]) for i in range(len(blocks))]
        for i, (stage, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            inside = widths[i - 1] if i else stem
            add_at(self, stage, _stage(inside, width, count, 2 if i else 1, how))
            if sub_block1 and i == 0:
                add_at(self, UNUSED, _stage(inside, width, count, 1, how))
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.relu = ACTIVATIONS[activation]()
        add_at(self, self.head,
               (CosineLinear if head == "cosine" else nn.Linear)(widths[-1], num_classes, bias=head_bias))

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, self.stem)(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return getattr(self, self.head)(self.relu(self.bn1(x)).mean((2, 3)))


def _stage(inside: int, width: int, count: int, stride: int, how: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(*(PreActBlock(width if j else inside, width, 1 if j else stride, **how)
                           for j in range(count)))


def _identify(state: State) -> Guess | None:
    return next(filter(None, (_identify_style(state, style) for style in STYLES)), None)


def _identify_style(state: State, style: str) -> Guess | None:
    names = STYLES[style]
    stem, head = sizes(state, f"{names['stem']}.weight", 4), sizes(state, f"{names['head']}.weight", 2)
    blocks = count_blocks(state, names["stage"] + ".{}", first=names["first"])
    firsts = [f"{names['stage'].format(i + names['first'])}.0.conv1" for i in range(len(blocks))]
    shapes = [sizes(state, f"{key}.weight", 4) for key in firsts]
    if not stem or not head or len(blocks) != 3 or not all(shapes):
        return None
    bias, head_bias = f"{names['stem']}.bias" in state, f"{names['head']}.bias" in state
    widths = [s[0] for s in shapes]
    options = {"num_classes": head[0], "in_channels": stem[1], "blocks": blocks, "stem": stem[0],
               "widths": widths, "style": style,
               "sub_block1": any(k.startswith(UNUSED) for k in state),
               "bias": bias, "head": "linear" if head_bias else "cosine", "head_bias": head_bias,
               "stride_at": 2 if bias else 1, "shortcut_from": "input" if style == "layer" else "activated",
               "activation": "relu"}
    if not fits(state, WideResNet, options):
        return None
    unused = "; sub_block1, which forward never uses" if options["sub_block1"] else ""
    evidence = (f"the keys {names['stem']} (3x3), {firsts[0]}, bn1 ({head[1]}), {names['head']}{unused}: "
                f"wide, depth {2 * sum(blocks) + 4}, blocks {dashed(blocks)}, width {widths[0] / 16:g} "
                f"({dashed(widths)})")
    return Guess("wide-resnet", options, (stem[1], 32, 32), evidence, _others(options))


def _others(options: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """What else the same keys may be. Only Pang2020Boosting is known to have a head without bias, and that is
    a cosine."""
    heads = [] if options["head_bias"] else [{"head": "linear"}]
    layers = [{"stride_at": 3 - options["stride_at"]}, {"shortcut_from": "activated"},
              {"stride_at": 3 - options["stride_at"],
               "shortcut_from": "activated"}] if options["style"] == "layer" else []
    return (*heads, *layers, {"activation": "silu"})


def _size(depth: int, k: int) -> dict[str, list[int]]:
    return {"blocks": [(depth - 4) // 6] * 3, "widths": [16 * k, 32 * k, 64 * k]}


_SIZES = ((16, 4), (16, 8), (22, 8), (28, 2), (28, 4), (28, 10), (34, 10), (34, 15), (34, 20), (40, 2),
          (40, 4), (70, 16))
WIDE = Family(
    "wide-resnet", WideResNet, _identify,
    keys="conv1, blockN.layer.M.bnK and convK, convShortcut, bn1, fc; or conv1, layerN.M with shortcut.0, "
         "bn1, linear",
    origin="TRADES, MART, AWP, HYDRA, Carmon2019, RobustBench WideResNet; meliketoy/wide-resnet.pytorch, "
           "PwoA; RobustWRN",
    any_size=True, members={f"wrn-{depth}-{k}": _size(depth, k) for depth, k in _SIZES})
