"""Architectures of public robust checkpoints that neither timm nor torchvision defines, with their public key
names.

One parametric definition a family; depth, width, classes and channels are arguments, read from keys and
shapes.
"""
from collections.abc import Mapping
from typing import Any

from torch import nn

from pwoa_cli.networks.families.base import Family, Guess, State
from pwoa_cli.networks.families.deepmind import DM_PREACT, DM_WIDE
from pwoa_cli.networks.families.plain import PLAIN
from pwoa_cli.networks.families.preact import PREACT
from pwoa_cli.networks.families.residual import PLAIN_RESNET
from pwoa_cli.networks.families.resnet import RESNET
from pwoa_cli.networks.families.small import CONVEX, LENET, SMALL_CNN
from pwoa_cli.networks.families.vgg import VGG
from pwoa_cli.networks.families.wide import WIDE

FAMILIES: dict[str, Family] = {family.name: family for family in (
    # each takes exactly its own keys and shapes, but the last two: any of their shape
    RESNET, PREACT, WIDE, DM_WIDE, DM_PREACT, VGG, LENET, SMALL_CNN, CONVEX, PLAIN_RESNET, PLAIN)}
# every name of ours: its family, and the options that it fixes
MEMBERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES},
    **{name: (family.name, fixed) for family in FAMILIES.values() for name, fixed in family.members.items()}}


def make(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A bare network by one of our names. Args: options: win over what the name fixes. Raises: TypeError for
    an unknown one."""
    family, fixed = MEMBERS[name]
    return FAMILIES[family].make(**{**fixed, **options})


def identify(state: State) -> Guess | None:
    """The family of a state dict by keys and shapes alone; None if none fits."""
    if any(t.ndim == 0 or t.numel() == 0 for k, t in state.items() if k.endswith(".weight")):
        return None
    return next(filter(None, (family.identify(state) for family in FAMILIES.values())), None)
