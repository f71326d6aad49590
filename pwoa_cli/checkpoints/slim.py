"""Slim files: networks whose layers are smaller than those that their architecture builds, as channels were
removed. Each layer takes the sizes of its tensors; nothing that the file holds is run."""
import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.checkpoints.filling import aligned, check_fits
from pwoa_cli.checkpoints.state_dict import json_field
from pwoa_cli.errors import InputError
from pwoa_cli.machine import signals
from pwoa_cli.networks.build import give_memory, raised
from pwoa_cli.networks.sizes import resize, uneven

MARK = "slim"  # the metadata string
NEEDS = "build(arch, **arch_options), then every layer takes the sizes of its tensors"
WORDS = json.dumps({"version": 1, "needs": NEEDS})
SAID = "slim: its layers have the sizes of their tensors, as channels were removed"
LARGEST = 1024  # pixels of a side
MOST = 64  # times the largest side in the file: what a size of the network that it was made from may be
CHANGED = "The file was changed after pwoa wrote it: write it again with pwoa export --format slim."


def is_slim(extra: Mapping[str, Any], where: str) -> bool:
    """Whether a file says that it is one. Raises: InputError for a version that is not known."""
    if MARK not in extra or "arch_options" not in extra:
        return False
    said = json_field(extra, MARK)
    if not isinstance(said, dict) or said.get("version") != 1:
        raise InputError(f"{where}: metadata field {MARK!r} is {str(extra[MARK])[:60]!r}, expected "
                         "version 1.",
                         hint="A newer pwoa may read it: upgrade, or write the file again with this one.")
    return True


def fit(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give a network the sizes of the tensors in a file, in place, their values left open; one without memory
    gets it. Raises: InputError naming the first tensor that does not fit."""
    state = aligned(state, net)
    resize(net, state)
    check_fits(net, state, where)
    for name in uneven(net):
        raise InputError(f"{where}: the tensors of {name} have different numbers of channels.", hint=CHANGED)
    give_memory(net)


def check_runs(net: nn.Module, images: Sequence[tuple[int, ...]], classes: int | None, where: str) -> None:
    """Layers that follow each other have the same channels, and logits are those of the classes, on an image
    (C, H, W) of these. Raises: InputError with what is wrong on the first."""
    why = []
    for image in images:
        why.append(_why_not(net, image, classes))
        if not why[-1]:
            return
    raise InputError(f"{where}: the sizes of its tensors do not fit together ({why[0]}).", hint=CHANGED)


def _why_not(net: nn.Module, image: tuple[int, ...], classes: int | None) -> str:
    # the meta device takes no memory, but a second to wake up: for what no camera makes
    device = "cpu" if all(side <= LARGEST for side in image) else "meta"
    try:
        with torch.no_grad():
            twin = copy.deepcopy(net).eval() if device == "meta" else net.eval()
            out = twin.to(device)(torch.zeros(1, *image, device=device))
    except Exception as error:  # of any kind, as sizes are those of a file
        signals.let_through()
        return raised(error)[:120]
    wrong = isinstance(out, Tensor) and classes not in (None, out.shape[-1])
    return f"{out.shape[-1]} logits, expected {classes}" if wrong else ""
