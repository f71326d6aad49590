"""A checkpoint as a ready model: read -> name the architecture -> build -> load -> normalise, with the evidence said.

What keys and shapes cannot tell is an argument: --arch, --num-classes, --mean, --std win over what the file says.
"""
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli import families
from pwoa_cli.checkpoint_file import file_sha256, json_field, read_state_dict, take_normalisation, threat_of
from pwoa_cli.errors import InputError
from pwoa_cli.families import MEMBERS, Guess
from pwoa_cli.models import Normalized, build

HEAD = re.compile(r"(fc|linear|heads?|classifier|last_linear|output|logits)(\d|\.|$)")  # how a last layer's name begins
TORCHVISION_TRIED = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "vgg16", "vgg16_bn", "densenet121", "mobilenet_v2")


@dataclass(frozen=True)
class Loaded:
    """A model with its origin. build(arch, arch_options) and the state dict of model.net give the model again.

    model: takes (B, C, H, W) in [0,1], eval mode, on the CPU. input_shape: (C, H, W), or None where the file does not tell.
    default_size: (H, W) for images that come in any size: input_shape's, else what the library's model is made for.
    mean, std: by channel, None: inputs are taken as they are. threat: (norm, eps) if the file names it. notes: what was
    inferred and from what.
    """

    model: nn.Module
    arch: str
    arch_options: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, int, int] | None
    default_size: tuple[int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    threat: tuple[str, float] | None
    notes: tuple[str, ...]
    source: str
    sha256: str


def load_model(path: str | Path, *, arch: str | None = None, num_classes: int | None = None, mean: Sequence[float] | None = None,
               std: Sequence[float] | None = None) -> Loaded:
    """Read a checkpoint (.pt, .pth, .safetensors, pruned or not) and build its model.

    Args: arch: a name of ours, of timm or of torchvision (timm:NAME, torchvision:NAME), or file.py:fn; None: from the keys.
    mean, std: normalisation by channel; both or neither. Raises: InputError naming the tensor, got and expected.
    """
    raw, extra, found = read_state_dict(path)
    state, *inside = take_normalisation(raw)
    if "arch_options" in extra:
        extra = extra | _words(extra, raw, str(path))
        inside = [extra["mean"], extra["std"]]
    arch_name, options, shape, notes = _architecture(state, extra, arch, num_classes, str(path))
    net = _build_for(arch_name, options, str(path))
    itself = len(state) < len(raw) and set(_aligned(raw, net)) <= set(net.state_dict())  # the network has the normalisation in it
    state, inside = (raw, (None, None)) if itself else (state, inside)
    _fill(net, _aligned(state, net), f"{path} as {arch_name}")
    classes = int(options.get("num_classes") or _classes(state))
    if num_classes not in (None, classes):
        head = _head(state, classes)
        got = tuple(state[head].shape) if head else (classes,)
        raise InputError(f"{path}: {head or 'the last layer'} has shape {got}, --num-classes {num_classes} expects "
                         f"{(num_classes, *got[1:])}.", hint=f"Leave it out, or: --num-classes {classes}")
    channels = shape[0] if shape else None if ".py:" in arch_name else options.get("in_chans", 3)
    mean, std = _normalisation(mean, std, inside, channels, str(path))
    notes.append(f"normalisation: mean {_short(mean)}, std {_short(std)}" if mean else
                 "normalisation: inside the network" if itself else
                 "normalisation: none in the file, inputs are taken in [0,1] as they are (--mean, --std change it)")
    size = tuple(shape[1:]) if shape else _default_size(arch_name)
    return Loaded(Normalized(net, mean, std).eval(), arch_name, options, classes, shape, size, mean, std, threat_of(extra),
                  (*found, *notes), str(path), file_sha256(path))


def _architecture(state: dict[str, Tensor], extra: Mapping[str, Any], arch: str | None, num_classes: int | None,
                  where: str) -> tuple[str, dict[str, Any], tuple[int, int, int] | None, list[str]]:
    """(arch, options, input shape, notes): from --arch, from a pruned file's own words, or from keys and shapes."""
    if "arch_options" in extra and (arch is None or arch == extra["arch"] or ".py:" in arch):
        name = arch or extra["arch"]
        if arch is None and ".py:" in name:
            raise InputError(f"{where} was built by {name}, and a file's code is not run because the file names it.",
                             hint=f"If you trust it: --arch {name}")
        return name, extra["arch_options"], extra["input_shape"], [f"architecture: {name}, as the pruned file says"]
    guess = identify(state)
    if arch is None:
        if guess is None:
            shown = ", ".join(f"{k} {tuple(t.shape)}" for k, t in list(state.items())[:4])
            raise InputError(f"{where} is of no architecture that pwoa knows by its keys: {len(state)} tensors, first {shown}.",
                             hint="Name it: --arch resnet18 (any timm or torchvision name), or write it: --arch file.py:fn")
        return guess.arch, guess.options, guess.input_shape, [f"architecture: {guess.arch} from {guess.evidence}"]
    if guess and _agrees(arch, guess):  # our own name: its sizes and key names are still in the file
        return guess.arch, guess.options, guess.input_shape, [f"architecture: {arch} from --arch, sizes from {guess.evidence}"]
    options = {"num_classes": num_classes or _classes(state)}
    channels = next((t.shape[1] for t in state.values() if t.ndim == 4), None)
    if arch in MEMBERS and arch != "lenet5" and channels:
        options["in_channels"] = channels
    first = getattr(_timm_config(arch), "first_conv", None)
    stem = state.get(f"{first}.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] != 3:
        options["in_chans"] = stem.shape[1]
    return arch, options, guess.input_shape if guess else None, [f"architecture: {arch} from --arch, {options['num_classes']} classes"]


def _agrees(arch: str, guess: Guess) -> bool:
    """Whether one of our names, of a family or of a member of fixed size, is what the keys say."""
    family, fixed = MEMBERS.get(arch, (None, {}))
    return family == guess.arch and all(guess.options[k] == v for k, v in fixed.items())


def _build_for(arch: str, options: Mapping[str, Any], where: str) -> nn.Module:
    try:
        return build(arch, options)
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{where}: {arch} cannot be built with {dict(options)}: {str(error).splitlines()[0]}",
                         hint="Name another architecture: --arch NAME or --arch file.py:fn") from error


# --- naming an architecture by its keys -------------------------------------------------------------------------------

def identify(state: Mapping[str, Tensor]) -> Guess | None:
    """What a state dict is by keys and shapes alone; None if nothing fits."""
    return families.identify(state) or _torchvision(state)


def _torchvision(state: Mapping[str, Tensor]) -> Guess | None:
    """One of the usual torchvision models, by exact keys and shapes (built without memory)."""
    classes, shapes = _classes(state), _shapes(state)
    for name in TORCHVISION_TRIED:
        with torch.device("meta"):
            net = build(f"torchvision:{name}", {"num_classes": classes})
        if _shapes(net.state_dict()) == shapes:
            evidence = f"{len(state)} keys and shapes of torchvision's {name}"
            return Guess(f"torchvision:{name}", {"num_classes": classes}, None, evidence)
    return None


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {k: t.shape for k, t in state.items() if not k.endswith("num_batches_tracked")}  # older files lack the counters


def _head(state: Mapping[str, Tensor], rows: int | None = None) -> str | None:
    """The classifier's matrix (of so many rows) by the usual names of a last layer, else the last matrix in the file."""
    matrices = [k for k, t in state.items() if t.ndim in (2, 4) and t.is_floating_point() and k.endswith("weight")
                and rows in (None, t.shape[0])]
    named = sorted(k for k in matrices if HEAD.match(k))
    return (named or matrices or [None])[-1]


def _classes(state: Mapping[str, Tensor]) -> int:
    head = _head(state)
    return state[head].shape[0] if head else 10


def _timm_config(arch: str) -> Any:
    """timm's own description of a model (input_size, first_conv), or None."""
    house, _, name = arch.rpartition(":")
    if ".py" in arch or arch in MEMBERS or house not in ("", "timm"):
        return None
    import timm

    return timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None


def _default_size(arch: str) -> tuple[int, int] | None:
    if ".py" in arch or arch in MEMBERS:
        return None
    config = _timm_config(arch)
    return tuple(config.input_size[1:]) if config else (224, 224)


# --- filling ----------------------------------------------------------------------------------------------------------

def _aligned(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The state under the network's own keys, if it has a prefix before all of them that was taken for a wrapper's."""
    own = net.state_dict()
    lost = next((k for k in state if k not in own), "")
    prefix = next((k.removesuffix(lost) for k in own if lost and k.endswith("." + lost)), "")
    renamed = {k if k in own else prefix + k: t for k, t in state.items()}
    return renamed if set(renamed) <= set(own) else dict(state)


def _fill(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict; a mismatch names the first tensor, got and expected, and counts what is missing and too many."""
    own = net.state_dict()
    differ = [k for k in own if k in state and own[k].shape != state[k].shape]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    parts = [f"{differ[0]} has shape {tuple(state[differ[0]].shape)}, expected {tuple(own[differ[0]].shape)}"] if differ else []
    parts += [f"{len(differ) - 1} more shapes differ"] if len(differ) > 1 else []
    parts += [f"{len(keys)} tensors {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for word, keys in
              (("missing", missing), ("too many", unexpected)) if keys]
    if parts:
        raise InputError(f"{where}: {'; '.join(parts)}; {len(own)} tensors expected.",
                         hint="Name the architecture that the weights were trained with: --arch NAME or --arch file.py:fn")
    net.load_state_dict({k: t.to(own[k].dtype) for k, t in state.items()}, strict=False)


def _short(values: Sequence[float] | None) -> str:
    return ", ".join(f"{v:.4g}" for v in values or ())


def _normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, inside: Sequence[tuple[float, ...] | None],
                   channels: int | None, where: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """(mean, std) by channel: what the user says, else what the file has. Raises: InputError if they do not fit."""
    if (mean is None) != (std is None):
        raise InputError(f"--{'mean' if mean is None else 'std'} is missing.",
                         hint="Normalisation needs both, for example: --mean 0.5 --std 0.5")
    whose = f"{where}: its normalisation" if mean is None else "normalisation"
    mean, std = inside if mean is None else (tuple(mean), tuple(std))
    if mean is None and std is None:
        return None, None
    hint = "One number a channel: --mean A,B,C --std A,B,C"
    if mean is None or std is None:
        here, lacks = ("std", "mean") if mean is None else ("mean", "std")
        raise InputError(f"{whose} has {here} {_short(mean or std)} and no {lacks}.", hint=hint)
    if not all(map(math.isfinite, (*mean, *std))) or min(std, default=0) <= 0:
        raise InputError(f"{whose} has mean {_short(mean)} and std {_short(std)}, expected finite numbers, std above 0.",
                         hint=hint)
    channels = channels or len(mean)
    if any(len(v) not in (1, channels) for v in (mean, std)):
        raise InputError(f"{whose} mean {_short(mean)} and std {_short(std)} do not fit {channels} channels.", hint=hint)
    return mean, std


# --- the words that a pruned file carries -------------------------------------------------------------------------------

def to_metadata(loaded: Loaded) -> dict[str, str]:
    """What a pruned file must say for `load_model` to build the same model again: strings by name."""
    return {"arch": loaded.arch, "arch_options": json.dumps(loaded.arch_options), "num_classes": str(loaded.num_classes),
            "input_shape": json.dumps(loaded.input_shape), "mean": json.dumps(loaded.mean), "std": json.dumps(loaded.std)}


def _words(extra: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The inverse of `to_metadata`, checked, as others can write such a file too.

    Of a library's model only the numbers of classes and channels are taken: its other options may name files to read.
    Raises: InputError naming the field.
    """
    fields = {key: json_field(extra, key) for key in ("arch_options", "input_shape", "mean", "std")}
    arch, options = extra.get("arch"), fields["arch_options"]
    numbers = {key: fields[key] is None or isinstance(fields[key], list) and all(type(v) in (int, float) for v in fields[key])
               for key in ("input_shape", "mean", "std")}
    fits = numbers | {
        "arch": isinstance(arch, str),
        "arch_options": isinstance(options, dict) and _sizes_fit(options, state) and (
            arch in MEMBERS or set(options) <= {"num_classes", "in_chans"} and all(type(v) is int for v in options.values())),
        "input_shape": numbers["input_shape"] and (fields["input_shape"] is None or len(fields["input_shape"]) == 3)}
    for key in [k for k, good in fits.items() if not good]:
        raise InputError(f"{where}: metadata field {key!r} is {str(extra.get(key))[:60]!r}, which pwoa does not write.",
                         hint="The file was changed after pwoa wrote it; prune again.")
    return {"arch": arch, "arch_options": options, **{key: _tuple(fields[key]) for key in ("input_shape", "mean", "std")}}


def _sizes_fit(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether a file of these tensors can be of a network of these sizes; a network of any size would take forever to build."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in options.items()}
    numbers = {key: [n for n in values if isinstance(n, int)] for key, values in lists.items()}
    largest = max((side for t in state.values() for side in t.shape), default=0)
    sizes = [n for values in numbers.values() for n in values]
    return sum(numbers.get("blocks", [])) <= len(state) and all(0 <= n <= max(largest, 64) for n in sizes)


def _tuple(value: Any) -> tuple | None:
    return None if value is None else tuple(value)
