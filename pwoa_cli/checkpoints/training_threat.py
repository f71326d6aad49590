"""What a checkpoint's own settings say of the threat that its network was trained against."""
import argparse
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pwoa_cli.checkpoints.settings import mappings

# likeliest first; those that other software means otherwise count only beside a norm
EPS = ("eps", "epsilon", "attack_eps", "adv_eps", "train_eps", "eps_train", "eps_max", "perturb_eps",
       "attack_epsilon", "train_epsilon", "adv_epsilon", "perturbation")
NORM = ("norm", "constraint", "attack_norm", "threat_model", "threat", "adv_norm", "train_norm", "p_norm",
        "perturbation_type", "distance", "norm_type")
NORMS = {"linf": "linf", "inf": "linf", "infinity": "linf", "l2": "l2", "2": "l2", "2.0": "l2", "l1": "l1",
         "1": "l1", "1.0": "l1"}
# under these a bare 1 is more often a flag or a kind of layer (0: none, 1: normalise) than l1, which code
# that trains in it spells out; under the others it is a norm
UNCLEAR = {("norm", "1"), ("norm", "1.0"), ("norm_type", "1"), ("norm_type", "1.0")}
PRIVACY = ("noise_multiplier", "target_delta", "max_grad_norm", "secure_rng", "dp_delta")
LEAST = 1e-5  # 1e-8 is Adam's eps
# in units of [0,1] a ball of that radius holds nearly everything: it is in 255ths
TOO_LARGE = {"linf": 1.0, "l2": 16.0, "l1": 2000.0}


def threat_of(extra: Mapping[str, Any]) -> tuple[str, float] | None:
    """(norm, eps in units of [0,1]) if the file's own settings name both, also inside args; None otherwise.

    An eps without a norm is none: it may be label smoothing, privacy or a batch norm's. One that would reach
    every image is taken in units of 1/255.
    """
    settings = {str(name).lower().replace("-", "_"): value for _, place in mappings(extra)
                for name, value in place.items() if not isinstance(value, Mapping | argparse.Namespace)}
    if any(name in settings for name in PRIVACY):
        return None
    norm = next((norm for norm in (_norm(name, settings.get(name)) for name in NORM) if norm), None)
    eps = next((n for n in (_number(settings.get(name)) for name in EPS) if n is not None), None)
    if norm is None or eps is None or not LEAST < eps < math.inf:
        return None
    return norm, eps / 255 if eps >= TOO_LARGE[norm] else eps


def _norm(name: str, value: Any) -> str | None:
    """"linf", "l2" or "l1" for "Linf", "l_inf", "inf", math.inf, 2, "L2", ...; None for anything else, such
    as a batch norm's kind or what is UNCLEAR."""
    if isinstance(value, bool | np.bool_) or isinstance(value, int) and value not in range(10):
        return None  # Python makes no text of an integer of thousands of digits
    text = str(value).lower().replace("_", "").replace("-", "").replace(" ", "").removesuffix("norm")
    return None if (name, text) in UNCLEAR else NORMS.get(text)


def _number(value: Any) -> float | None:
    """0.3, "0.3" or "8/255" as a number; None for anything else, such as True or several numbers."""
    if isinstance(value, bool | np.bool_):
        return None
    above, _, below = value.partition("/") if isinstance(value, str) else (value, "", "")
    try:
        return float(above) / float(below or 1)
    except (TypeError, ValueError, RuntimeError, ArithmeticError):
        return None
