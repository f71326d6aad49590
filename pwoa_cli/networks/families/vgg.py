"""VGG for 32x32 images (Simonyan & Zisserman 2015, without their 224x224 head), in the layouts that are in
circulation.

All have features.N: 3x3 convolution, batch norm or none, ReLU, and a 2x2 max pool between two stages: a pool
takes one place in the numbering and has no key, so the gaps tell where the pools are. Not so the last one,
behind all convolutions: that is read from the width of the first linear layer. Heads: one linear layer
`classifier` (kuangliu, MadryLab, network slimming); two or three with ReLU between them, classifier.0/.2/.4
(HYDRA, HARP), .0/.3/.6 (chenyaofo, huyvnphan), .1/.4/.6 (chengyangfu: dropout comes first), .0/.3/.5
(weiaicunzai), .0 and .3 with a batch norm at .1 (rethinking-network-pruning, l1-norm). Dropout has no keys,
does nothing when a model is used, and is not built. torchvision's VGG has the same keys; its classifier.0
reads 7x7 pixels, which no 32x32 image leaves: `_identify` says None.
"""
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pwoa_cli.networks.families.base import Family, Guess, State, dashed, fits

# configurations A, B, D and E: widths of the convolutions between two pools
STAGES: dict[int, list[list[int]]] = {
    11: [[64], [128], [256] * 2, [512] * 2, [512] * 2],
    13: [[64] * 2, [128] * 2, [256] * 2, [512] * 2, [512] * 2],
    16: [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3],
    19: [[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4]}
ENDS = {"none": "no pool", "max": "a 2x2 max pool", "mean": "an average pool",
        "max-mean": "a 2x2 max pool and an average pool"}


class CifarVGG(nn.Module):
    """Convolutions with ReLU, a 2x2 max pool between two stages, `end`, linear layers with ReLU between them.

    Args: stages: widths of the convolutions between two pools. end: behind the last convolution "none", "max"
    (2x2), "mean" (the average over side x side fields) or "max-mean" (both). side: of what the first linear
    layer reads. hidden: widths of the linear layers but the last. features: key name of the convolutions.
    heads: those of the linear layers, ("classifier",) or several as classifier.N, at least two apart.
    head_norm: batch norms behind all but the last. Input (B, in_channels, H, W), 32x32 for the published
    ones. Raises: KeyError for an unknown end,
    ValueError for widths that do not fit the heads.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3,
                 stages: Sequence[Sequence[int]] = tuple(STAGES[16]),
                 batch_norm: bool = True, conv_bias: bool = True, end: str = "max", side: int = 1,
                 hidden: Sequence[int] = (),
                 features: str = "features", heads: Sequence[str] = ("classifier",), head_norm: bool = False):
        super().__init__()
        self.add_module(features, _convolutions(in_channels, stages, batch_norm=batch_norm, bias=conv_bias))
        pools: dict[str, list[nn.Module]] = {
            "none": [], "max": [nn.MaxPool2d(2)], "mean": [nn.AdaptiveAvgPool2d(side)],
            "max-mean": [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(side)]}
        self.end = nn.Sequential(*pools[end], nn.Flatten())
        if len(hidden) != len(heads) - 1:  # one linear layer alone would have no place for num_classes
            raise ValueError(f"{len(heads)} heads have {len(heads) - 1} widths between them, got "
                             f"hidden={list(hidden)}")
        sizes = [stages[-1][-1] * side * side, *hidden, num_classes]
        self.order = (features, "end", heads[0].split(".")[0])
        if heads[0] == self.order[-1]:
            self.add_module(heads[0], nn.Linear(sizes[0], sizes[1]))
        else:
            self.add_module(self.order[-1], _linear_layers(sizes, heads, norm=head_norm))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


def _convolutions(inside: int, stages: Sequence[Sequence[int]], *, batch_norm: bool,
                  bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage in stages:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for width in stage:
            layers += [nn.Conv2d(inside, width, 3, padding=1, bias=bias),
                       *([nn.BatchNorm2d(width)] * batch_norm), nn.ReLU()]
            inside = width
    return nn.Sequential(*layers)


def _linear_layers(sizes: Sequence[int], heads: Sequence[str], *, norm: bool) -> nn.Sequential:
    """Linear layers under the numbers of their keys, each but the last with what stands behind it."""
    layers: dict[int, nn.Module] = {}
    for head, (inside, outside) in zip(heads, pairwise(sizes), strict=True):
        number = int(head.split(".")[1])
        layers[number] = nn.Linear(inside, outside)
        if head != heads[-1]:
            layers |= {number + 1: nn.BatchNorm1d(outside),
                       number + 2: nn.ReLU()} if norm else {number + 1: nn.ReLU()}
    return nn.Sequential(OrderedDict((str(number), layer) for number, layer in layers.items()))


# --- identification ---------------------------------------------------------------

_NUMBERED = re.compile(r"([A-Za-z_]\w*)\.(0|[1-9][0-9]{0,3})\.weight")


def _stages(state: State, features: str, numbers: Sequence[int], step: int) -> list[list[int]] | None:
    """Widths between two pools, by the gaps between the numbers of the convolutions: step, and one more for a
    pool."""
    stages: list[list[int]] = [[]]
    for before, number in pairwise([-step, *numbers]):
        if number - before not in (step, step + 1):
            return None
        if number - before > step:
            stages.append([])
        stages[-1].append(state[f"{features}.{number}.weight"].shape[0])
    return stages


def _heads(state: State) -> list[str]:
    """Key names of the linear layers in their order: one, or some in one Sequential; else []."""
    keys = [k for k, t in state.items() if t.ndim == 2 and t.numel() and k.endswith(".weight")]
    if len(keys) == 1 and keys[0].count(".") == 1:
        return [keys[0].removesuffix(".weight")]
    found = [m for key in keys if (m := _NUMBERED.fullmatch(key))]
    if len(found) != len(keys) or len({m[1] for m in found}) != 1:
        return []
    numbers = sorted(int(m[2]) for m in found)
    apart = all(b - a >= 2 for a, b in pairwise(numbers))  # room for an activation
    return [f"{found[0][1]}.{number}" for number in numbers] if apart else []


def _end(side: int, pools: int, *, classes: int,
         features: str) -> tuple[int, str, tuple[dict[str, Any], ...]] | None:
    """(side of the images, the likeliest end, others), where linear layers read side x side pixels behind
    some max pools.

    Published code ends with a max pool (kuangliu and most others), or with an average of 2x2 (network
    slimming and rethinking-network-pruning, who say `feature`; in its weight-level part `features`, hence the
    others).
    """
    if side < 1:
        return None
    for size in (64, 32) if classes == 200 else (32, 64):  # 200 classes: Tiny ImageNet
        left = size >> pools
        if left and side == left:
            return size, "none", ()
        if left == 2 * side:
            first, second = ("mean", "max") if features == "feature" else ("max", "mean")
            return size, first, ({"end": second},)
        if left > 2 * side and side <= 2:
            return size, "max-mean", ({"end": "mean"},)
    return None


def _identify(state: State) -> Guess | None:
    found = [(m[1], int(m[2])) for k, t in state.items() if t.ndim == 4 and t.numel()
             and (m := _NUMBERED.fullmatch(k))]
    names, numbers, heads = {name for name, _ in found}, sorted(number for _, number in found), _heads(state)
    if len(names) != 1 or len(numbers) < 4 or numbers[0] != 0 or not heads:
        return None
    features, head = found[0][0], heads[0].split(".")[0]
    if any(name in ("end", "order") or hasattr(nn.Module(), name) for name in (features, head)):
        return None
    batch_norm = f"{features}.1.running_mean" in state
    stages = _stages(state, features, numbers, 3 if batch_norm else 2)
    linear = [state[f"{name}.weight"].shape for name in heads]
    if stages is None:
        return None
    side = math.isqrt(linear[0][1] // stages[-1][-1])
    end = _end(side, len(stages) - 1, classes=linear[-1][0], features=features)
    if end is None:
        return None
    channels = state[f"{features}.0.weight"].shape[1]
    options = {"num_classes": linear[-1][0], "in_channels": channels, "stages": stages,
               "batch_norm": batch_norm, "conv_bias": f"{features}.0.bias" in state, "end": end[1],
               "side": side,
               "hidden": [s[0] for s in linear[:-1]], "features": features, "heads": heads,
               "head_norm": heads[0] != head
               and f"{head}.{int(heads[0].split('.')[1]) + 1}.running_mean" in state}
    if not fits(state, CifarVGG, options):
        return None
    return Guess("cifar-vgg", options, (channels, end[0], end[0]),
                 _evidence(options, numbers, end[0]), end[2])


def _evidence(options: dict[str, Any], numbers: Sequence[int], size: int) -> str:
    stages, side = options["stages"], options["side"]
    depth = next((f"VGG-{depth}" for depth, known in STAGES.items() if known == stages),
                 f"{len(numbers)} convolutions")
    norm = "batch norm" if options["batch_norm"] else "no batch norm"
    widths, heads = ", ".join(dashed(stage) for stage in stages), options["heads"]
    return (f"the keys {options['features']}.{numbers[0]} to .{numbers[-1]} (3x3, {norm}), "
            f"{', '.join(heads)}: {depth}, widths {widths} between {len(stages) - 1} pools; {heads[0]} reads "
            f"{stages[-1][-1]} channels of {side}x{side}, so {ENDS[options['end']]} behind them for images "
            f"of {size}x{size}")


VGG = Family(
    "cifar-vgg", CifarVGG, _identify,
    keys="features.N (3x3 convolutions, batch norms) and classifier, or classifier.N, that reads 1x1 or 2x2 "
         "pixels",
    origin="kuangliu/pytorch-cifar, MadryLab robustness, HYDRA, HARP, Robust-Bird, ADMM pruning; "
           "chengyangfu, chenyaofo, weiaicunzai, huyvnphan; network slimming, rethinking-network-pruning "
           "(feature)",
    members={f"cifar-vgg{depth}{'-bn' if norm else ''}": {"stages": stages, "batch_norm": norm}
             for depth, stages in STAGES.items() for norm in (False, True)})
