"""What a checkpoint's own settings say of the threat that its network was trained against."""
import argparse
import math
import re
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
PRIVACY = ("noise_multiplier", "target_delta", "secure_rng", "dp_delta")
# mappings whose eps or norm is of something else, and those of attacks that nothing was trained on
OTHERS = re.compile(r"(^|_)(optim\w*|adam\w*|sgd|bn|\w*norm|\w*normali[sz]ation|\w*clip\w*|grad\w*"
                    r"|\w*smooth\w*|dp|privacy|ema|sched\w*)($|_)")
LATER = re.compile(r"(^|_)(test|eval|evaluation|val|valid|validation)($|_)")
LEAST = 1e-5  # 1e-8 is Adam's eps
SAME = 0.02  # 0.031 is 8/255
# in units of [0,1] a ball of that radius holds nearly everything: it is in 255ths
TOO_LARGE = {"linf": 1.0, "l2": 16.0, "l1": 2000.0}


def threat_of(extra: Mapping[str, Any]) -> tuple[str, float] | None:
    """(norm, eps in units of [0,1]) if the file's own settings name both, also inside args; None otherwise.

    Both stand in one mapping, or there is one norm and one eps in all that is not of an optimiser, a norm
    layer, ... Mappings that disagree name none, but for attacks of tests beside that of training. An eps
    without a norm is none: it may be label smoothing, privacy or a batch norm's. One that would reach every
    image is taken in units of 1/255.
    """
    places = [({_plain(name): value for name, value in place.items()
                if not isinstance(value, Mapping | argparse.Namespace)}, [_plain(name) for name in way])
              for way, place in mappings(extra)]
    if any(name in place for place, _ in places for name in PRIVACY):
        return None
    of_threat = [(place, way) for place, way in places if not any(map(OTHERS.search, way))]
    trained = [place for place, way in of_threat if not any(map(LATER.search, way))]
    for some in (trained, [place for place, _ in of_threat]):
        said = [(_norm_in(place), _eps_in(place)) for place in some]
        both = [(norm, eps) for norm, eps in said if norm and eps] or [
            (norm, eps) for norm, _ in said for _, eps in said if norm and eps]
        found = [(norm, eps / 255 if eps >= TOO_LARGE[norm] else eps) for norm, eps in both]
        if found:
            norm, eps = found[0]
            same = all(other == norm and math.isclose(eps, e, rel_tol=SAME) for other, e in found)
            return (norm, eps) if same else None
    return None


def _plain(name: object) -> str:
    return str(name).lower().replace("-", "_")


def _norm_in(place: Mapping[str, Any]) -> str | None:
    return next((norm for norm in (_norm(name, place.get(name)) for name in NORM) if norm), None)


def _eps_in(place: Mapping[str, Any]) -> float | None:
    numbers = (_number(place.get(name)) for name in EPS)
    return next((n for n in numbers if n is not None and LEAST < n < math.inf), None)


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
