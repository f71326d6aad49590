"""Networks without their silent channels: dense tensors of smaller layers in a plain safetensors file, which
`checkpoints/slim.py` reads."""
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from pwoa_cli.checkpoints.slim import MARK, WORDS
from pwoa_cli.errors import InputError
from pwoa_cli.files.atomic import atomic
from pwoa_cli.networks import channels, layers
from pwoa_cli.networks.build import WRAPPED, public_name

CLOSE = 1e-5  # largest difference of logits, of those beyond 1 as a share: sums are shorter by zeros alone
SINGLE = 0.3  # of the weights that stay: with more zeros that lie one by one, the file would be no small one
HINT = "Prune whole channels: pwoa prune MODEL --channels 0.5"


@dataclass(frozen=True)
class Slim:
    """A model (B, C, H, W) -> logits without its silent channels. channels: those removed, of how many;
    macs, parameters: before and after. stay: why sets of channels stay, by the weight that gives them."""

    model: nn.Module
    channels: tuple[int, int]
    macs: tuple[int, int]
    parameters: tuple[int, int]
    stay: Mapping[str, str]


def reduced(model: nn.Module, x: Tensor, where: str) -> Slim:
    """The model without its silent channels, proved on images x (N, C, H, W). Raises: InputError with what
    would have been saved, where zeros lie one by one, or where what is silent speaks through all the same."""
    try:
        sets, odd = channels.found(model, x[:2])
        if not sets:
            raise ValueError(next(iter(odd.values()), "its logits depend on none"))
    except ValueError as error:
        raise InputError(f"{where}: no channels can be removed: {error}.", hint="--format sparse") from error
    silent = channels.silent(model, sets)
    smaller = channels.without(model, sets, silent)
    made = Slim(smaller, (sum(int(flags.sum()) for flags in silent.values()), sum(map(len, silent.values()))),
                (layers.macs(model, x)["dense"], layers.macs(smaller, x)["dense"]),
                (_parameters(model), _parameters(smaller)),
                {public_name(name): why for name, why in odd.items()})
    _check_worth(made, where)
    largest, allowed = difference(smaller, model, x)
    if not largest <= allowed:
        raise InputError(f"{where}: without its {made.channels[0]} silent channels the logits differ by up "
                         f"to {largest:.3g}: a constant speaks through them, such as what an activation "
                         "makes of zero.", hint=HINT)
    return made


def difference(one: nn.Module, other: nn.Module, x: Tensor) -> tuple[float, float]:
    """(the largest difference of their logits on images, the largest that rounding explains)."""
    with torch.no_grad():
        logits = other(x)
        return float((one(x) - logits).abs().max()), CLOSE * max(1.0, float(logits.abs().max()))


def save(model: nn.Module, path: Path, *, metadata: Mapping[str, str]) -> int:
    """Write the dense tensors of a slim model's network to a new file, whole or not at all; returns its
    bytes."""
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
               for name, t in model.get_submodule(WRAPPED).state_dict().items()}
    with atomic(path, new=True) as temporary:
        temporary.write_bytes(_in_order(safetensors.torch.save(
            tensors, {**metadata, MARK: WORDS, "format": "pt"})))
    return path.stat().st_size


def _in_order(data: bytes) -> bytes:
    """The same file with sorted metadata: safetensors' own order changes from call to call."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _check_worth(made: Slim, where: str) -> None:
    gone, count = made.channels
    weights = layers.prunable(made.model, None).values()
    single = sum(map(_single, weights)) / max(1, sum(w.numel() for w in weights))
    if single > SINGLE:
        saved = 1 - made.macs[1] / made.macs[0]
        raise InputError(f"{where}: its zeros lie one by one, not in whole channels: {gone} of {count} "
                         f"channels are silent, and without them {100 * saved:.1f}% of the MACs would be "
                         "saved.", hint=HINT)
    if not gone:
        raise InputError(f"{where}: none of its {count} channels that could be removed is silent.", hint=HINT)


def _single(weight: Tensor) -> int:
    """Zeros in filters that are not all zero, of inputs that some filter reads."""
    seen = weight.detach().flatten(2) if weight.ndim > 2 else weight.detach()[..., None]
    nonzero = seen != 0
    alive = nonzero[nonzero.any(2).any(1)][:, nonzero.any(2).any(0)]
    return int((~alive).sum())
