"""Attacks by name. An attack is a pure function (model, inputs, labels, *, eps, norm, generator) ->
adversarial inputs.

Names: fgsm; pgd-K, pgd-K-rR (restarts), pgd-K-sS (step size, unit of the inputs), both as pgd-K-rR-sS, and
the same for cw (PGD on the margin loss); fmn (100 steps), fmn-K and cw-l2 (smallest perturbation of each
sample); apgd-ce, apgd-t, fab-t, square; aa (those four in order, standard AutoAttack) and aa-fast (apgd-ce,
then apgd-t); aa-mixed (aa by a search in bfloat16, closed in float32); restarts (after A3) and strong
(restarts on what aa leaves, each with its own figure). `pgd` is pgd-20 and `cw` has 20 steps. The step size
is eps/8 for any number of steps unless -s gives it. A name that is none of these is looked for among the
plug-ins of installed packages (plugins.py).

It may import networks and machine.
"""
import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from torch import Tensor

from pwoa_cli.attacks import autoattack, gradient, minimum_norm, mixed, plugins, strong
from pwoa_cli.attacks.base import NORMS
from pwoa_cli.errors import InputError

DEFAULT_STEPS = 20
FMN_STEPS = 100
KNOWN = ("fgsm", "pgd", "pgd-K", "pgd-K-rR", "pgd-K-sS", "cw", "cw-K", "fmn", "fmn-K", "cw-l2", "apgd-ce",
         "apgd-t", "fab-t",
         "square", "aa", "aa-fast", "aa-mixed", "restarts", "strong")
_LOSS = {"pgd": "ce", "cw": "margin"}
_ITERATIVE = re.compile(r"(pgd|cw)(?:-(\d+))?(?:-r(\d+))?(?:-s(\d*\.?\d+(?:e-?\d+)?(?:/\d+)?))?")
_FMN = re.compile(r"fmn-(\d+)")


@dataclass(frozen=True)
class Attack:
    """A resolved name, its function (model, inputs, labels, *, eps, norm, generator) -> adversarial inputs,
    its needs.

    minimum_norm: the answer is the smallest perturbation found, in the ball or not, so its norm holds for
    every eps. cost: passes that a sample takes, backwards ones counted twice, for the order of attacks and
    the time that is left. cascade: goes on only with what cheaper attacks left; the others' figures are their
    own. parts: names of the attacks that it runs one after the other, from one seed; an evaluation runs them
    instead of `run`, which does the same in one call. after: names of attacks that an evaluation runs before
    it, under their own names. draws: name whose random numbers it draws, its own if "". needs_gradients:
    False where it may work without.
    version: of a plug-in.
    """

    name: str
    run: Callable[..., Tensor]
    min_classes: int = 2
    norms: tuple[str, ...] = NORMS
    minimum_norm: bool = False
    cost: int = 1
    cascade: bool = False
    parts: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    draws: str = ""
    needs_gradients: bool = True
    version: str = ""


FIXED = {a.name: a for a in (
    Attack("fgsm", gradient.fgsm, cost=3),
    Attack("fmn", partial(minimum_norm.fmn, steps=FMN_STEPS), minimum_norm=True, cost=3 * FMN_STEPS),
    Attack("cw-l2", minimum_norm.cw_l2, norms=("l2",), minimum_norm=True, cost=5400),
    Attack("apgd-ce", autoattack.apgd_ce, cost=300, cascade=True),
    Attack("apgd-t", autoattack.apgd_t, min_classes=4, cost=2700, cascade=True),
    Attack("fab-t", autoattack.fab_t, cost=4000, cascade=True),
    Attack("square", autoattack.square, cost=5000, cascade=True, needs_gradients=False),
    Attack("aa", autoattack.aa, min_classes=4, cost=12000, cascade=True, parts=autoattack.STANDARD),
    Attack("aa-fast", partial(autoattack.aa, components=autoattack.FAST), min_classes=4, cost=3000,
           cascade=True, parts=autoattack.FAST),
    Attack("aa-mixed", mixed.aa_mixed, min_classes=4, cost=11875, cascade=True, parts=mixed.PARTS,
           draws="aa"),
    Attack("restarts", strong.restarts, cost=2000, cascade=True),
    # of the cost of both, so that it comes after aa
    Attack("strong", strong.restarts, min_classes=4, cost=14000, cascade=True, parts=("restarts",),
           after=("aa",)),
)}
MIXED = {name: replace(FIXED[name], run=partial(mixed.part, name=name)) for name in autoattack.STANDARD} | {
    # squares are fewer than queries; so the whole costs less than aa, which goes on with what it leaves
    "square": replace(FIXED["square"], run=partial(mixed.part, name="square"), cost=4200),
    "closing": Attack("closing", partial(mixed.part, name="closing"), min_classes=4, cost=675, cascade=True)}
UNKNOWN_COST = 1000  # of a plug-in


def stages(attack: Attack) -> tuple[Attack, ...]:
    """The attacks that an attack consists of, in order: itself, unless it has parts."""
    known = MIXED if attack.name == "aa-mixed" else FIXED
    return tuple(known[name] for name in attack.parts) or (attack,)


def parse(names: str | Sequence[str | Attack]) -> tuple[Attack, ...]:
    """Attacks from "pgd,cw,aa" or a list of names: resolved ("pgd" is pgd-20), in order, duplicates removed.

    "clean" is dropped (always measured); an Attack passes through; "strong" brings "aa" along. Raises:
    InputError on an unknown name or no name.
    """
    if isinstance(names, str) and not names.strip():
        raise InputError("No attack is named.", hint=f"Known: {', '.join(KNOWN)}")
    listed = names.split(",") if isinstance(names, str) else names
    if any(isinstance(name, str) and not name.strip() for name in listed):
        raise InputError(f"An attack has no name in {names!r}.",
                         hint="One comma between two names: --attacks pgd,cw,aa")
    wanted = [n if isinstance(n, Attack) else n.strip() for n in listed]
    attacks = [n if isinstance(n, Attack) else _resolve(n) for n in wanted if n != "clean"]
    in_order = [part for attack in attacks for part in (*map(_resolve, attack.after), attack)]
    return tuple({a.name: a for a in in_order}.values())


def check_norm(chosen: Sequence[Attack], norm: str) -> None:
    """Refuse a norm that an attack does not know. Raises: InputError naming the first such attack and what it
    knows."""
    for attack in chosen:
        if norm not in attack.norms:
            fits = [name for name, other in FIXED.items() if norm in other.norms]
            raise InputError(f"{attack.name} attacks in {' or '.join(attack.norms)}, the norm asked for is "
                             f"{norm}.",
                             hint=f"In {norm}: {', '.join(['pgd', 'cw', *fits])}" if fits else "")


def _resolve(name: str) -> Attack:
    key = name.lower()
    if key in FIXED:
        return FIXED[key]
    if match := _ITERATIVE.fullmatch(key):
        return _iterative(key, *match.groups())
    if match := _FMN.fullmatch(key):
        return _fmn(key, int(match[1]))
    foreign = plugins.installed()
    if key in foreign:
        return Attack(key, plugins.load(key, foreign[key]), cost=UNKNOWN_COST, needs_gradients=False,
                      version=plugins.version(foreign[key]))
    near = difflib.get_close_matches(key, [*FIXED, "pgd", "cw", "pgd-20", "pgd-40", "cw-40", *foreign], n=1)
    raise InputError(f"Unknown attack {name!r}." + (f" Did you mean {near[0]}?" if near else ""),
                     hint=f"Known: {', '.join([*KNOWN, *foreign])}")


def plan(name: str) -> tuple[str, int, int] | None:
    """Loss ("pgd", "cw"), steps and restarts of a resolved name; None for what is neither fgsm nor pgd nor
    cw."""
    if name == "fgsm":
        return "pgd", 1, 1
    match = _ITERATIVE.fullmatch(name)
    return (match[1], int(match[2] or DEFAULT_STEPS), int(match[3] or 1)) if match else None


def _fmn(name: str, steps: int) -> Attack:
    """fmn with the steps that its name gives; fmn-100 is fmn."""
    if steps < 1:
        raise InputError(f"Attack {name!r}: steps must be above 0.", hint="For example fmn or fmn-200")
    if steps == FMN_STEPS:
        return FIXED["fmn"]
    return Attack(f"fmn-{steps}", partial(minimum_norm.fmn, steps=steps), minimum_norm=True, cost=3 * steps)


def typed(text: str) -> dict[str, str]:
    """The name in a report of each attack as it was typed, and of each such name: {"pgd": "pgd-20", ...}."""
    found = {part.strip(): one[-1].name for part in text.split(",") if (one := parse(part))}
    return found | {attack.name: attack.name for attack in parse(text)}


def _iterative(name: str, family: str, steps: str | None, restarts: str | None, step: str | None) -> Attack:
    """pgd or cw with what the name says; the canonical name leaves out what is the default."""
    n_steps, n_restarts = int(steps or DEFAULT_STEPS), int(restarts or 1)
    size = _step_size(step) if step else None
    if n_steps < 1 or n_restarts < 1 or (size is not None and not 0 < size < math.inf):
        raise InputError(f"Attack {name!r}: steps, restarts and step size must be above 0.",
                         hint="For example pgd-40, pgd-40-r5 or pgd-40-s0.01")
    options = (f"-r{n_restarts}" if n_restarts > 1 else "") + (f"-s{step}" if step else "")
    plain_cw = family == "cw" and n_steps == DEFAULT_STEPS and not options
    canonical = "cw" if plain_cw else f"{family}-{n_steps}{options}"
    run = partial(gradient.pgd, steps=n_steps, restarts=n_restarts, step_size=size, loss=_LOSS[family])
    return Attack(canonical, run, cost=3 * n_steps * n_restarts)


def _step_size(text: str) -> float:
    """A number or a fraction as written in a name; 0 for a zero denominator, which the caller refuses."""
    try:
        top, _, bottom = text.partition("/")
        return float(Fraction(top) / Fraction(bottom or 1))
    except (ZeroDivisionError, OverflowError):
        return 0.0
