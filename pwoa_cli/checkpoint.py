"""A checkpoint as a ready model: read -> name the architecture -> build -> load -> normalise, with the evidence said.

What keys and shapes cannot tell is an argument: --arch, --num-classes, --mean, --std win over what the file says.
"""
import difflib
import importlib.util
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.checkpoint_file import file_sha256, json_field, read_state_dict, take_normalisation, threat_of
from pwoa_cli.errors import InputError
from pwoa_cli.models import FAMILIES, STYLES, Normalized

TORCHVISION_TRIED = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "vgg16", "vgg16_bn", "densenet121", "mobilenet_v2")


@dataclass(frozen=True)
class Loaded:
    """A model with its origin. build(arch, arch_options) and the state dict of model.net give the model again.

    model: takes (B, C, H, W) in [0,1], eval mode, on the CPU. input_shape: (C, H, W), or None where it is not known.
    mean, std: by channel, None: inputs are taken as they are. threat: (norm, eps) if the file names it. notes: what was
    inferred and from what.
    """

    model: nn.Module
    arch: str
    arch_options: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, int, int] | None
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
    state, extra = read_state_dict(path)
    state, file_mean, file_std = take_normalisation(state)
    pruned = "arch_options" in extra
    if pruned:
        file_mean, file_std = (_tuple(json_field(extra, key)) for key in ("mean", "std"))
    arch_name, options, shape, notes = _architecture(state, extra, arch, num_classes, str(path))
    net = _fill(build(arch_name, options), state, f"{path} as {arch_name}")
    if (mean is None) != (std is None):
        raise InputError(f"--{'mean' if std is None else 'std'} is missing.", hint="Normalisation needs both, for example: --mean 0.5 --std 0.5")
    mean, std = (file_mean, file_std) if mean is None else (tuple(mean), tuple(std))
    _check_normalisation(mean, std, shape)
    notes.append(f"normalisation: mean {_short(mean)}, std {_short(std)}" if mean else
                 "normalisation: none in the file, inputs are taken in [0,1] as they are (--mean, --std change it)")
    return Loaded(Normalized(net, mean, std).eval(), arch_name, options, _classes(net, options, state), shape, mean, std, threat_of(extra),
                  tuple(notes), str(path), file_sha256(path))


def _architecture(state: dict[str, Tensor], extra: Mapping[str, Any], arch: str | None, num_classes: int | None,
                  where: str) -> tuple[str, dict[str, Any], tuple[int, int, int] | None, list[str]]:
    """(arch, options, input shape, notes): from --arch, from a pruned file's own words, or from keys and shapes."""
    if "arch_options" in extra:
        name, shape = arch or extra["arch"], _tuple(json_field(extra, "input_shape"))
        if arch is None and ".py:" in name:
            raise InputError(f"{where} was built by {name}, and a file's code is not run because the file names it.", hint=f"If you trust it: --arch {name}")
        return name, json_field(extra, "arch_options"), shape, [f"architecture: {name}, as the pruned file says"]
    guess = identify(state)
    if arch is None:
        if guess is None:
            shown = ", ".join(f"{k} {tuple(t.shape)}" for k, t in list(state.items())[:4])
            raise InputError(f"{where} is of no architecture that pwoa knows by its keys: {len(state)} tensors, first {shown}.",
                             hint="Name it: --arch resnet18 (any timm or torchvision name), or write it: --arch file.py:fn")
        name, options, shape, evidence = guess
        return name, options, shape, [f"architecture: {name} from {evidence}"]
    if guess and guess[0] == arch:  # our own name: its sizes are still in the file
        return guess[0], guess[1], guess[2], [f"architecture: {arch} from --arch, sizes from {guess[3]}"]
    options = {"num_classes": num_classes or _last_rows(state)}
    channels = next((t.shape[1] for t in state.values() if t.ndim == 4), None)
    if arch in FAMILIES and arch != "lenet5" and channels:
        options["in_channels"] = channels
    shape = guess[2] if guess else _timm_shape(arch)
    return arch, options, shape, [f"architecture: {arch} from --arch, {options['num_classes']} classes"]


# --- naming an architecture by its keys -------------------------------------------------------------------------------

def identify(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], tuple[int, int, int] | None, str] | None:
    """(arch, options, input shape, evidence) of a state dict, by keys and shapes alone; None if no family fits."""
    for family in (_lenet, _small_cnn, _cifar_resnet, _torchvision):
        found = family(state)
        if found:
            return found
    return None


def _lenet(state: Mapping[str, Tensor]) -> tuple | None:
    weights = [k.removesuffix(".weight") for k in state if k.endswith(".weight")]
    if len(weights) != 4 or weights[:2] != ["conv1", "conv2"] or [state[f"{w}.weight"].ndim for w in weights] != [4, 4, 2, 2] or len(state) != 8:
        return None
    conv1, conv2, first, second = (state[f"{w}.weight"].shape for w in weights)
    kernel = conv1[2]
    side = round((first[1] / conv2[0]) ** 0.5)
    sizes = {True: 4 * side, False: 4 * side + 3 * (kernel - 1)}  # with and without padding
    padded = sizes[True] in (28, 32) or sizes[False] not in (28, 32)
    options = {"num_classes": second[0], "in_channels": conv1[1], "size": sizes[padded], "widths": [conv1[0], conv2[0]], "hidden": first[0],
               "kernel": kernel, "padded": padded, "heads": weights[2:]}
    return "lenet5", options, (conv1[1], sizes[padded], sizes[padded]), \
        f"the keys {', '.join(weights)}: {conv1[1]}-{conv1[0]}-{conv2[0]} {kernel}x{kernel}, {first[1]}-{first[0]}-{second[0]}"


def _small_cnn(state: Mapping[str, Tensor]) -> tuple | None:
    if not {"feature_extractor.conv1.weight", "feature_extractor.conv4.weight", "classifier.fc3.weight"} <= set(state):
        return None
    channels, classes = state["feature_extractor.conv1.weight"].shape[1], state["classifier.fc3.weight"].shape[0]
    return "smallcnn", {"num_classes": classes, "in_channels": channels}, (channels, 28, 28), "the keys feature_extractor.conv1..4, classifier.fc1..3 (TRADES)"


def _cifar_resnet(state: Mapping[str, Tensor]) -> tuple | None:
    for style, names in STYLES.items():
        stem, head = state.get(f"{names['stem']}.weight"), state.get(f"{names['head']}.weight")
        if stem is None or head is None or stem.shape[2:] != (3, 3) or stem.ndim != 4:
            continue
        stage = re.compile(re.escape(names["stage"]).replace(r"\{\}", r"(\d)") + r"\.(\d+)\.")
        seen = {(int(m[1]), int(m[2])) for m in map(stage.match, state) if m}
        stages = max((i for i, _ in seen), default=0)
        blocks = [1 + max((j for i, j in seen if i == number), default=-1) for number in range(1, stages + 1)]
        if stages not in (3, 4) or 0 in blocks:
            continue
        conv = names["stage"] + ".0." + names["conv"].format(names["layers"][0]) + ".weight"
        bottleneck = names["stage"].format(1) + ".0." + names["conv"].format(names["layers"][2]) + ".weight" in state
        widths = [state[conv.format(i)].shape[0] for i in range(1, stages + 1)]
        if stem.shape[0] != widths[0]:
            continue
        projected = any(f".{names['shortcut']}.0.weight" in k for k in state)
        options = {"num_classes": head.shape[0], "in_channels": stem.shape[1], "blocks": blocks, "widths": widths, "bottleneck": bottleneck,
                   "shortcut": "conv" if projected else "pad-end" if style == "stage_ab" else "pad", "style": style}
        depth = sum(blocks) * (3 if bottleneck else 2) + 2
        evidence = f"the keys {names['stem']} (3x3), {names['stage'].format(1)}.0.{names['conv'].format(names['layers'][0])}, {names['head']}: " \
            f"depth {depth}, blocks {'-'.join(map(str, blocks))}, widths {'-'.join(map(str, widths))}, {options['shortcut']} shortcuts"
        return "cifar-resnet", options, (stem.shape[1], 32, 32), evidence
    return None


def _torchvision(state: Mapping[str, Tensor]) -> tuple | None:
    """One of the usual torchvision models, by exact keys and shapes (built without memory)."""
    classes = _last_rows(state)
    for name in TORCHVISION_TRIED:
        with torch.device("meta"):
            net = build(f"torchvision:{name}", {"num_classes": classes})
        if {k: t.shape for k, t in net.state_dict().items()} == {k: t.shape for k, t in state.items()}:
            return f"torchvision:{name}", {"num_classes": classes}, (3, 224, 224), f"{len(state)} keys and shapes of torchvision's {name}"
    return None


def _last_rows(state: Mapping[str, Tensor]) -> int:
    """Rows of the last matrix, in the order of the file: the classes, in nearly every classifier."""
    matrices = [t for t in state.values() if t.ndim in (2, 4) and t.is_floating_point()]
    return matrices[-1].shape[0] if matrices else 10


def _timm_shape(arch: str) -> tuple[int, int, int] | None:
    if ".py:" in arch or arch in FAMILIES:
        return None
    import timm

    name = arch.removeprefix("timm:")
    if not arch.startswith("torchvision:") and timm.is_model(name):
        config = timm.models.get_pretrained_cfg(name)
        return tuple(config.input_size) if config else None
    return (3, 224, 224)


# --- building ---------------------------------------------------------------------------------------------------------

def build(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """A bare network by name, with random weights: ours, timm:NAME, torchvision:NAME, a bare name of either, or file.py:fn.

    Raises: InputError for an unknown name (did you mean), a file or function that is not there or returns no module.
    """
    if ".py:" in arch:
        return _from_file(arch, options)
    if arch in FAMILIES:
        return FAMILIES[arch](**options)
    import timm
    import torchvision

    house, colon, name = arch.partition(":")
    house, name = (house, name) if colon else ("", arch)
    if house in ("", "timm") and timm.is_model(name):
        return timm.create_model(name, pretrained=False, **options)
    if house in ("", "torchvision") and name in torchvision.models.list_models(torchvision.models):
        extra = {"init_weights": False} if name.startswith(("googlenet", "inception", "densenet0")) else {}
        return torchvision.models.get_model(name, weights=None, **extra, **options)
    known = [*FAMILIES, *timm.list_models(), *torchvision.models.list_models(torchvision.models)]
    near = difflib.get_close_matches(name, known, n=3)
    raise InputError(f"--arch {arch!r} is no architecture of pwoa, timm or torchvision.",
                     hint=f"Did you mean {', '.join(near)}?" if near else f"Ours: {', '.join(FAMILIES)}; or your own: --arch file.py:fn")


def _from_file(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """The module that function fn of file.py returns; it is given the options that its signature has."""
    file, _, function = arch.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"--arch {arch}: there is no file {file}.", hint="--arch path/to/file.py:fn, where fn() returns the network.")
    spec = importlib.util.spec_from_file_location("pwoa_user_arch", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code may raise anything
        raise InputError(f"--arch {arch}: {file} raises {type(error).__name__}: {error}", hint=f"It must import by itself: python {file}") from error
    make = getattr(module, function, None)
    if not callable(make):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = difflib.get_close_matches(function, names, n=1)
        raise InputError(f"--arch {arch}: {file} has no function {function!r}.", hint=f"Did you mean {near[0]}?" if near else f"It has: {', '.join(names[:8]) or 'none'}.")
    takes = inspect.signature(make).parameters
    try:
        net = make(**{k: v for k, v in options.items() if k in takes})
    except Exception as error:
        raise InputError(f"--arch {arch}: {function} raises {type(error).__name__}: {error}", hint="It is called with num_classes, if it takes it, and nothing else.") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"--arch {arch}: {function} returns a {type(net).__name__}, expected a torch.nn.Module.", hint="Return the network, not its weights.")
    return net


def _fill(net: nn.Module, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Load a state dict; a mismatch names the first tensor, what was got and what was expected."""
    own = net.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    differs = next((k for k in own if k in state and own[k].shape != state[k].shape), None)
    hint = "Name the architecture that the weights were trained with: --arch NAME or --arch file.py:fn"
    if differs:
        raise InputError(f"{where}: {differs} has shape {tuple(state[differs].shape)}, expected {tuple(own[differs].shape)}.", hint=hint)
    if missing or unexpected:
        parts = [f"{len(keys)} tensors {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for word, keys in
                 (("missing", missing), ("too many", unexpected)) if keys]
        raise InputError(f"{where}: {' and '.join(parts)} of {len(own)} expected.", hint=hint)
    net.load_state_dict({k: t.to(own[k].dtype) for k, t in state.items()}, strict=False)
    return net


def _classes(net: nn.Module, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> int:
    return int(options.get("num_classes") or _last_rows(state))


def _tuple(value: Any) -> tuple | None:
    return None if value is None else tuple(value)


def _short(values: Sequence[float] | None) -> str:
    return ", ".join(f"{v:.4g}" for v in values or ())


def _check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, shape: tuple[int, int, int] | None) -> None:
    if mean is None and std is None:
        return
    channels = shape[0] if shape else len(mean or std)
    if mean is None or std is None or any(len(v) not in (1, channels) for v in (mean, std)) or any(s <= 0 for s in std):
        raise InputError(f"normalisation mean {mean} and std {std} do not fit {channels} channels (std above 0).", hint="One number a channel: --mean A,B,C --std A,B,C")


# --- the words that a pruned file carries -------------------------------------------------------------------------------

def to_metadata(loaded: Loaded) -> dict[str, str]:
    """What a pruned file must say for `load_model` to build the same model again: strings by name."""
    return {"arch": loaded.arch, "arch_options": json.dumps(loaded.arch_options), "num_classes": str(loaded.num_classes),
            "input_shape": json.dumps(loaded.input_shape), "mean": json.dumps(loaded.mean), "std": json.dumps(loaded.std)}
