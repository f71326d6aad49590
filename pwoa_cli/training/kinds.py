"""What a network and its images are, as far as the settings of a recipe depend on it: the names of its tables
[network.KIND], [kept.KIND] and [images.KIND].

    batch-norm    batch norms, at least one for three layers of weights: the scale of a layer means nothing
    layer-norm    as many norms of other kinds: attention, ConvNeXt
    plain         neither: a layer's scale is its own, and a rate that is too high is never divided out
    many          batch norms, and 300,000 weights or more that stay: a ResNet-18 at 95%, not at 99%
    few           other networks, and those whose sparsity is searched
    flat          a quarter of all values or more is exactly 0 or 1: digits, drawings, clothes on black
    photographs   other images
"""
from typing import NamedTuple

import torch
from torch import nn

from pwoa_cli.data.datasets import Split
from pwoa_cli.networks import layers

NETWORKS = ("batch-norm", "layer-norm", "plain")
KEPT = ("many", "few")
IMAGES = ("flat", "photographs")
_MANY = 300_000  # between the 112,000 and 559,000 where docs/experiments.md has figures
_LOOKED_AT = 256  # images


class Kinds(NamedTuple):
    """network: of NETWORKS. images: of IMAGES. kept: of KEPT."""

    network: str
    images: str
    kept: str = "few"

    def __str__(self) -> str:
        """a network with batch norm and many weights that stay on photographs"""
        norms = "no norms" if self.network == "plain" else self.network.replace("-", " ")
        many = " and many weights that stay" if self.kept == "many" else ""
        return f"a network with {norms}{many} on {'flat images' if self.images == 'flat' else self.images}"


def kinds_of(model: nn.Module, split: Split, *, kept: int) -> Kinds:
    """What a network and its training images are. Args: kept: weights that stay; 0 while that is searched."""
    network = network_kind(model)
    many = network == "batch-norm" and kept >= _MANY
    return Kinds(network, images_kind(split), "many" if many else "few")


def network_kind(model: nn.Module) -> str:
    """By its modules: the norms that it has more of, if at least a third of its layers of weights."""
    modules = list(model.modules())
    weighted = sum(bool(layers.weights_of(m)) for m in modules)
    batch = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    # somebody's own class is told by its name; `Normalize` takes mean and deviation off the images
    other = sum("norm" in (word := type(m).__name__.lower()) and not word.startswith("normal")
                and not any(m.children()) for m in modules) - batch
    if 3 * max(batch, other) < max(1, weighted):
        return "plain"
    return "batch-norm" if batch >= other else "layer-norm"


def images_kind(split: Split) -> str:
    """By the values (B, C, H, W) of images spread over a split."""
    count = min(_LOOKED_AT, len(split))
    x, _ = split.batch(torch.linspace(0, len(split) - 1, count).long())
    return "flat" if ((x == 0) | (x == 1)).double().mean().item() >= 0.25 else "photographs"
