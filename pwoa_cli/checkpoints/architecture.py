"""Which network a state dict belongs to: by --arch, by the keys of a family, by a library's signature.

What the keys cannot tell apart is listed and never chosen in silence.
"""
import difflib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pwoa_cli.checkpoints import signatures
from pwoa_cli.checkpoints.heads import HEADS, body_of
from pwoa_cli.errors import InputError
from pwoa_cli.networks import families
from pwoa_cli.networks.build import is_file
from pwoa_cli.networks.families import FAMILIES, MEMBERS, Guess

WRITE = "or write it: --arch file.py:fn, where fn() returns the network (docs/checkpoints.md shows how)"


class UnknownArchitecture(InputError):
    """Keys and shapes of no architecture that is known, or of several: then `candidates` are their names."""

    def __init__(self, message: str, *, hint: str, candidates: tuple[str, ...] = ()):
        super().__init__(message, hint=hint)
        self.candidates = candidates


@dataclass(frozen=True)
class Architecture:
    """build(arch, options) makes the network of a state dict. evidence: what it was read from, for people.

    input_shape: (C, H, W), None where the file does not tell. others: further options that the same keys
    allow, likeliest first. made_for: (H, W) of the images that it was made for, where it takes others too.
    """

    arch: str
    options: dict[str, Any]
    input_shape: tuple[int, int, int] | None
    evidence: str
    others: tuple[dict[str, Any], ...] = ()
    made_for: tuple[int, int] | None = None

    @property
    def default_size(self) -> tuple[int, int] | None:
        """(H, W) for images that come in any size: the file's, else what the library's model is made for,
        else None."""
        if self.input_shape or self.made_for or is_own(self.arch) or is_file(self.arch):
            return self.input_shape[1:] if self.input_shape else self.made_for
        config = _timm_config(self.arch)
        return tuple(config.input_size[1:]) if config else (224, 224)


def is_own(arch: str) -> bool:
    """Whether an architecture is one of our families or their members."""
    return arch in MEMBERS


def identify(state: Mapping[str, Tensor], *, where: str) -> Architecture | None:
    """What a state dict is by keys and shapes alone; None if nothing fits.

    Raises: InputError if several different networks fit, with what tells them apart.
    """
    guess = families.identify(state)
    # torchvision's AlexNet and VGG are chains as well
    answer = signatures.lookup(state) if guess is None or FAMILIES[guess.arch].general else None
    if answer:
        return _of_library(answer, where)
    return _of_family(guess, guess.options, guess.evidence, guess.others) if guess else None


def _of_family(guess: Guess, options: dict[str, Any], evidence: str,
               others: tuple[dict[str, Any], ...] = ()) -> Architecture:
    if FAMILIES[guess.arch].any_size and guess.input_shape:
        return Architecture(guess.arch, options, None, evidence, others, made_for=guess.input_shape[1:])
    shape = guess.input_shape
    if shape and options.get("size") not in (None, shape[1]):  # --arch FAMILY:size=32
        shape = (shape[0], options["size"], options["size"])
    return Architecture(guess.arch, options, shape, evidence, others)


def _of_library(answer: signatures.Answer, where: str) -> Architecture:
    if len(answer.matches) > 1:
        listed = "; ".join(f"{match.names[0]} ({match.tells})" for match in answer.matches)
        raise UnknownArchitecture(f"{where} fits {len(answer.matches)} networks with the same keys and "
                                  f"shapes: {listed}.",
                                  hint=f"Say which: --arch {answer.matches[0].names[0]}",
                                  candidates=tuple(match.names[0] for match in answer.matches))
    match = answer.matches[0]
    name, *same = match.names
    options = match.options | {"num_classes": answer.num_classes}
    if name.startswith("timm:") and answer.in_channels not in (None, 3):
        options["in_chans"] = answer.in_channels
    evidence = ["its keys and shapes", f"the same network: {', '.join(same[:3])}" if same else "",
                answer.note]
    return Architecture(name, options, None, "; ".join(filter(None, evidence)), made_for=match.input_size)


def of_user(arch: str, state: Mapping[str, Tensor], *, num_classes: int | None) -> Architecture:
    """The network that --arch names; sizes and key names of our families are still read from the file.

    Args: arch: a name of ours, with options if need be (FAMILY:option=value,...), of timm or torchvision, or
    file.py:fn.
    """
    name, chosen = _parse(arch)
    family, fixed = MEMBERS.get(name, ("", {}))
    guess = FAMILIES[family].identify(state) if family else None
    if guess and guess.arch == family and all(guess.options[k] == v for k, v in fixed.items()):
        return _of_family(guess, guess.options | chosen, f"--arch {arch}, sizes from {guess.evidence}")
    if is_file(name):  # its own default first
        return Architecture(name, {"num_classes": num_classes} if num_classes else {}, None, f"--arch {arch}")
    options = {"num_classes": num_classes or classes(state)} | chosen
    channels = next((t.shape[1] for t in state.values() if t.ndim == 4), None)
    if is_own(name) and name != "lenet5" and channels:
        options["in_channels"] = channels
    stem = state.get(f"{getattr(_timm_config(name), 'first_conv', None)}.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] != 3:
        options["in_chans"] = stem.shape[1]
    return Architecture(name, options, None, f"--arch {arch}, {options['num_classes']} classes")


def _parse(arch: str) -> tuple[str, dict[str, Any]]:
    """("dm-wide-resnet", {"activation": "silu"}) of dm-wide-resnet:activation=silu; other names as they
    are."""
    name, colon, text = arch.partition(":")
    if not is_own(name) or not colon:
        return arch, {}
    known = list(inspect.signature(FAMILIES[MEMBERS[name][0]].make).parameters)
    options: dict[str, Any] = {}
    for part in re.split(r",(?![^\[]*\])", text):  # not at the commas of a list
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise InputError(f"--arch {arch}: {part!r} is not option=value.",
                             hint=f"For example: --arch {name}:num_classes=10")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(f"--arch {arch}: {name} has no option {key!r}; it has {', '.join(known)}.",
                             hint=f"Did you mean {near[0]}?" if near else "See docs/checkpoints.md.")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value  # relu, pad-end
        least = 0 if key in ("paddings", "geometry") else 1
        if any(type(v) in (int, float) and v < least
               for v in (options[key] if isinstance(options[key], list) else [options[key]])):
            raise InputError(f"--arch {arch}: {key} is {value}, expected numbers of at least "
                             f"{least}.",
                             hint="Leave it out: sizes are read from the file.")
    return name, options


def unknown(state: Mapping[str, Tensor], *, where: str) -> UnknownArchitecture:
    """The error for a state dict that nothing fits: what it holds, and what to do; but for its head, a file
    that makes it loadable."""
    if (body := body_of(state)) and (hint := body.hint()):
        return UnknownArchitecture(f"{where} is {body.words()}.", hint=hint)
    shown = ", ".join(f"{k} {tuple(t.shape)}" for k, t in list(state.items())[:4])
    nearest = ", ".join(f"{name} ({100 * share:.0f}% of the tensors)"
                        for name, share in signatures.near(state))
    return UnknownArchitecture(f"{where} is of no architecture that pwoa knows by its keys: {len(state)} "
                               f"tensors, first {shown}{nearest and f'; nearest: {nearest}'}.",
                               hint=f"Name it: --arch resnet18 (any timm or torchvision name), {WRITE}")


def head(state: Mapping[str, Tensor], rows: int | None = None) -> str | None:
    """The classifier's matrix (of so many rows) by the usual names of a last layer, else the last matrix in
    the file."""
    matrices = [k for k, t in state.items() if t.ndim in (2, 4) and t.is_floating_point()
                and k.endswith("weight")
                and rows in (None, t.shape[0])]
    named = sorted(k for k in matrices if k.split(".")[0].rstrip("0123456789") in HEADS)
    found = named or matrices
    return found[-1] if found else None


def classes(state: Mapping[str, Tensor]) -> int:
    """Rows of the classifier's matrix; 10 where there is none."""
    matrix = head(state)
    return state[matrix].shape[0] if matrix else 10


def _timm_config(arch: str) -> Any:
    """timm's own description of a model (input_size, first_conv), or None."""
    house, _, name = arch.rpartition(":")
    if is_file(arch) or is_own(arch) or house not in ("", "timm"):
        return None
    import timm

    return timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
