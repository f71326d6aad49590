"""Normalisation of inputs, (x - mean) / std by channel: the ones in circulation, and what a user or a file
says of it."""
import difflib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pwoa_cli.checkpoints.settings import mappings
from pwoa_cli.errors import InputError

Values = tuple[float, ...]
# what training scripts call a normalisation that they save beside the weights, and a mapping of both
NAMES = (("mean", "std"), ("means", "stds"), ("mu", "sigma"), ("mu", "std"), ("norm_mean", "norm_std"),
         ("normalize_mean", "normalize_std"), ("data_mean", "data_std"), ("dataset_mean", "dataset_std"),
         ("image_mean", "image_std"), ("img_mean", "img_std"), ("pixel_mean", "pixel_std"))
HOLDERS = ("normalize", "normalise", "normalizer", "normalization", "normalisation", "norm", "preprocess")
STATED = frozenset((*HOLDERS, *(name for names in NAMES for name in names)))
NUMBER = int | float | np.integer | np.floating
MANY = 16  # numbers that no normalisation has
LEAST_STD = 0.05  # of inputs in [0,1]; accuracies of several seeds lie closer
# Means and deviations of inputs in [0,1] as released code has them. CIFAR-10 has two deviations: that of all
# pixels, and (older, kuangliu/pytorch-cifar and Madry's robustness) the mean of the deviations of single
# images.
NORMALISATIONS: dict[str, tuple[Values, Values]] = {
    "none": ((), ()),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar10-old": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
}


@dataclass(frozen=True)
class Normalisation:
    """mean, std by channel, of inputs in [0,1]; both empty: inputs are taken as they are. said_by: "user",
    "file", "network", "library" (a library's own description of its weights), "settings" (what stands beside
    the weights, which may be of another step of training), or "nobody": the last two are assumptions."""

    mean: Values
    std: Values
    said_by: str

    @property
    def is_assumed(self) -> bool:
        """Whether images may know better."""
        return self.said_by in ("settings", "nobody")

    def words(self) -> str:
        """For people: the values and where they come from."""
        if self.said_by == "network":
            return "inside the network"
        values = (f"mean {short(self.mean)}, std {short(self.std)}" if self.mean
                  else "none, inputs are taken in [0,1] as they are")
        return {"user": values, "file": f"{values} (in the file)",
                "settings": f"{values} (beside the weights)",
                "library": f"{values} (the library's, for these weights)",
                "nobody": "none in the file, inputs are taken in [0,1] as they are (--normalize, --mean and "
                          "--std change it)"
                if not self.mean else f"{values} (inferred)"}[self.said_by]


def short(values: Sequence[float]) -> str:
    """Values for a sentence: 0.485, 0.456, 0.406."""
    return ", ".join(f"{v:.4g}" for v in values[:MANY]) + f", ... ({len(values):,})" * (len(values) > MANY)


def known_for(channels: int) -> Mapping[str, tuple[Values, Values]]:
    """Those of NORMALISATIONS that fit images of so many channels, by name, none first."""
    return {name: values for name, values in NORMALISATIONS.items() if len(values[0]) in (0, 1, channels)
            and (len(values[0]) != 1 or channels == 1 or name == "half")}


def of_user(normalize: str | None, mean: Values | None,
            std: Values | None) -> tuple[Values | None, Values | None]:
    """(mean, std) of --normalize, --mean and --std; (None, None) where nothing is said. Raises: InputError if
    they disagree."""
    if normalize is None:
        return mean, std
    if mean is not None or std is not None:
        raise InputError("--normalize and --mean or --std say the same thing twice.",
                         hint="Give one of them.")
    if normalize not in NORMALISATIONS:
        near = difflib.get_close_matches(normalize, NORMALISATIONS, n=1, cutoff=0.5)
        raise InputError(f"--normalize {normalize} is none of {', '.join(NORMALISATIONS)}.",
                         hint=f"Did you mean {near[0]}?" if near
                         else "Or the numbers in its place: --mean A,B,C --std A,B,C")
    return NORMALISATIONS[normalize]


def parse_numbers(text: str | None, *, flag: str) -> tuple[float, ...] | None:
    """(0.5, 0.5) from "0.5,0.5". Raises: InputError naming the flag."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text} is not a list of numbers.",
                         hint=f"One a channel, for example: {flag} 0.491,0.482,0.447") from None


def stated(extra: Mapping[str, Any], channels: int | None) -> tuple[Normalisation | None, str]:
    """(a normalisation, a sentence on where it stands) of what a file says beside its weights or in its
    settings; (None, "") where it says none, and with a sentence where that cannot be a normalisation: `mean`
    and `std` may be of anything, such as the accuracy of several seeds.

    Args: channels: of the model's inputs, None: not known. Those of inputs in 0..255 are brought to [0,1].
    """
    refused = ""
    for way, place in reversed(list(mappings(extra))):
        held = way[-1:] in [(name,) for name in HOLDERS]
        for names in NAMES:
            mean, std = (values_of(place.get(name), alone=held) for name in names)
            if mean is None or std is None:
                continue
            where = " and ".join(".".join((*way, name)) for name in names)
            if _are_plausible(mean, std, (channels or len(mean), 1 if held else channels)):
                scale = _scale(mean)
                mean, std = tuple(m / scale for m in mean), tuple(s / scale for s in std)
                return (Normalisation(mean, std, "settings"),
                        f"normalisation: {where} beside the weights{', divided by 255' * (scale > 1)}")
            refused = refused or (f"{where} beside the weights are not taken as a normalisation: "
                                  f"{short(mean)} and {short(std)}, expected {channels or 3} numbers each, "
                                  "of inputs in [0,1]")
    return None, refused


def _are_plausible(mean: Values, std: Values, counts: Sequence[int | None]) -> bool:
    """Whether they can be of inputs in [0,1] or 0..255. Args: counts: how many numbers they may have."""
    scale = _scale(mean)
    return len(mean) == len(std) and len(mean) in counts and all(0 <= m <= scale for m in mean) and all(
        LEAST_STD <= s / scale <= 1 for s in std)


def _scale(mean: Values) -> int:
    """Of what inputs are: [0,1] or 0..255."""
    return 255 if max(mean) > 1 else 1


def values_of(value: Any, *, alone: bool) -> Values | None:
    """A list, a tensor or an array of a few numbers as such; None for anything else. Args: alone: a single
    number is one too."""
    if isinstance(value, Tensor | np.ndarray):
        with suppress(RuntimeError):  # of a tensor without values, or of another layout
            count = value.numel() if isinstance(value, Tensor) else value.size
            value = value.flatten().tolist() if (value.ndim or alone) and count <= MANY else None
    elif alone and isinstance(value, NUMBER):
        value = [value]
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MANY:
        return None
    numbers = [float(v) for v in value
               if isinstance(v, NUMBER) and not isinstance(v, bool) and -255 <= v <= 255]
    return tuple(numbers) if len(numbers) == len(value) else None


def decide(mean: Values | None, std: Values | None, *, inside: Sequence[Values | None], channels: int | None,
           where: str) -> Normalisation:
    """What the user says, else what the file has, else none.

    Args: mean, std: the user's, (): none, None: not said. inside: (mean, std) in the file. channels: of the
    model's inputs.
    Raises: InputError if one is missing, they do not fit the channels, are not finite, or std is not above 0.
    """
    if (mean is None) != (std is None):
        raise InputError(f"--{'mean' if mean is None else 'std'} is missing.",
                         hint="Normalisation needs both, for example: --mean 0.5 --std 0.5")
    said_by = "file" if mean is None else "user"
    mean, std = inside if mean is None or std is None else (tuple(mean), tuple(std))
    if mean is None and std is None:
        return Normalisation((), (), "nobody")
    if mean == std == ():
        return Normalisation((), (), said_by)
    whose = f"{where}: its normalisation" if said_by == "file" else "normalisation"
    hint = "One number a channel: --mean A,B,C --std A,B,C"
    if mean is None or std is None:
        here, lacks = ("std", "mean") if mean is None else ("mean", "std")
        raise InputError(f"{whose} has {here} {short(mean or std or ())} and no {lacks}.", hint=hint)
    if not all(map(math.isfinite, (*mean, *std))) or min(std, default=0) <= 0:
        raise InputError(f"{whose} has mean {short(mean)} and std {short(std)}, expected finite numbers, std "
                         "above 0.",
                         hint=hint)
    if max(mean) > 1:
        smaller = [",".join(f"{v / 255:.4g}" for v in values) for values in (mean, std)]
        raise InputError(f"{whose} has mean {short(mean)} and std {short(std)}: of inputs in 0..255, "
                         "expected in [0,1].",
                         hint=f"Divided by 255: --mean {smaller[0]} --std {smaller[1]}")
    channels = channels or len(mean)
    if any(len(v) not in (1, channels) for v in (mean, std)):
        raise InputError(f"{whose} mean {short(mean)} and std {short(std)} do not fit {channels} channels.",
                         hint=hint)
    return Normalisation(mean, std, said_by)
