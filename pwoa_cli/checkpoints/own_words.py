"""What a file that pwoa wrote says of its network, checked, as others can write such a file too."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pwoa_cli.checkpoints import hub, slim
from pwoa_cli.checkpoints.architecture import is_own
from pwoa_cli.checkpoints.state_dict import json_field
from pwoa_cli.data.pictures import read_framing
from pwoa_cli.errors import InputError
from pwoa_cli.networks.build import build

SPARE = 2**20  # elements that a network may have more than twice those of the file


def own_words(extra: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The inverse of `metadata.to_metadata`, checked, as others can write such a file too.

    Of a library's model only numbers are taken as options: the others may name files to read.
    Raises: InputError naming the field.
    """
    keys = ("input_shape", "default_size", "mean", "std")
    slimmed = slim.is_slim(extra, where)  # a network of ours takes no memory then until its sizes are known
    fields = {key: json_field(extra, key) for key in ("arch_options", "framing", *keys)}
    framing = read_framing(fields["framing"])
    arch, options = extra.get("arch"), fields["arch_options"]
    numbers = {key: fields[key] is None or isinstance(fields[key], list)
               and all(type(v) in (int, float) for v in fields[key])
               for key in keys}
    fits = numbers | {
        "arch": isinstance(arch, str),
        "arch_options": isinstance(options, dict) and isinstance(arch, str) and _sizes_fit(
            options, state, times=slim.MOST if slimmed and is_own(arch) else 1) and (
            slimmed or _elements_fit(arch, options, state) if is_own(arch)
            else all(type(v) in hub.PLAIN for v in options.values())),
        "framing": fields["framing"] is None or framing is not None,
        "input_shape": numbers["input_shape"] and len(fields["input_shape"] or "chw") == 3,
        "default_size": numbers["default_size"] and len(fields["default_size"] or "hw") == 2}
    for key in [k for k, good in fits.items() if not good]:
        raise InputError(f"{where}: metadata field {key!r} is {str(extra.get(key))[:60]!r}, which pwoa does "
                         "not write.",
                         hint="The file was changed after pwoa wrote it; prune again.")
    return {"arch": arch, "arch_options": options, "framing": framing,
            **{key: fields[key] and tuple(fields[key]) for key in keys}}


def _sizes_fit(options: Mapping[str, Any], state: Mapping[str, Tensor], *, times: int = 1) -> bool:
    """Whether a file of these tensors can be of a network of these sizes, `times` as large at most; a network
    of any size would take forever to build."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in options.items()}
    numbers = {key: [n for n in values if isinstance(n, int)] for key, values in lists.items()}
    largest = max((side for t in state.values() for side in t.shape), default=0)
    sizes = [n for values in numbers.values() for n in values]
    return sum(numbers.get("blocks", [])) <= len(state) and all(
        0 <= n <= times * max(largest, 64) for n in sizes)


def _elements_fit(arch: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether a network of ours has about as many elements as the file: sizes that are each in it can still
    give a product that no memory holds. One that cannot be built is for who builds it to tell."""
    try:
        with torch.device("meta"):
            own = build(arch, options).state_dict()
    except Exception:
        return True
    return sum(t.numel() for t in own.values()) <= 2 * sum(t.numel() for t in state.values()) + SPARE
