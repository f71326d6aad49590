"""The threat model as people type it: the norm, and the radius of the ball in units of inputs in [0,1]."""
import difflib
import math
from fractions import Fraction

from pwoa_cli.attacks.base import NORMS
from pwoa_cli.errors import InputError


def parse_norm(text: str) -> str:
    """"linf" or "l2" from Linf, inf, linf, L2, 2 in any case. Raises: InputError on another norm."""
    key = str(text).strip().lower().replace("_", "")
    norm = {"inf": "linf", "l∞": "linf", "2": "l2"}.get(key, key)
    if norm in NORMS:
        return norm
    near = difflib.get_close_matches(key, NORMS, n=1)
    raise InputError(f"Unknown norm {text!r}." + (f" Did you mean {near[0]}?" if near else ""),
                     hint=f"Known: {', '.join(NORMS)}")


def parse_eps(text: str | float, *, norm: str = "linf") -> float:
    """Radius of the ball from "8/255", "0.3" or a number; unit of inputs in [0,1].

    Raises: InputError if it is no number, not finite, 0 or negative, or above 1 for linf (pixels are in
    [0,1]).
    """
    shown = str(text).strip()
    try:
        top, slash, bottom = shown.partition("/")
        value = float(Fraction(top.strip()) / Fraction(bottom.strip())) if slash else float(shown)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"eps {shown!r} is not a number.", hint="Write it as 8/255 or 0.03") from None
    if not math.isfinite(value) or value <= 0:
        wanted = "there is nothing to attack at 0" if value == 0 else "it must be finite and above 0"
        raise InputError(f"eps is {shown}: {wanted}.", hint="Write it as 8/255 or 0.03")
    if norm == "linf" and value > 1:
        near = f" Did you mean {shown}/255?" if value <= 255 and not slash else ""
        raise InputError(f"eps is {shown}, but inputs are in [0,1] and the norm is linf.{near}",
                         hint="Write it as 8/255 or 0.03")
    return value
