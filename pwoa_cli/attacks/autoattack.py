"""AutoAttack (Croce & Hein 2020) from the components of pyautoattack, the reference code, with its standard
settings.

APGD-CE (100 steps), APGD-T (targeted DLR), FAB-T and Square (5000 queries), one restart each, targets =
min(9, K-1). In l1 (Croce & Hein 2021) both APGDs begin in larger balls, 3 and 2 eps; APGD-CE has 5 restarts,
APGD-T min(5, K-1) targets. The components seed torch themselves: they run under a forked generator, with a
seed drawn from ours. In linf they search on a `quick` copy of the model with the `Square` that leaves out
known answers; who is broken is asked of the model itself.
"""
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pwoa_cli.attacks.base import contain, frozen, wrong
from pwoa_cli.attacks.quick import quick
from pwoa_cli.errors import InputError
from pwoa_cli.machine.generators import own_draws

MAX_TARGETS = 9
L1_TARGETS = 5  # of apgd-t
L1_RESTARTS = 5  # of apgd-ce
STEPS = 100
QUERIES = 5000
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
FAST = ("apgd-ce", "apgd-t")
_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # the reference warns of zero gradients here instead of on stderr


def apgd_ce(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
            steps: int = STEPS) -> Tensor:
    """Auto-PGD on cross-entropy (Croce & Hein 2020): step size halved when progress stalls, random start.

    In l1 the steps change the pixels of largest gradient only, ever fewer of them (Croce & Hein 2021).

    Returns: (B,C,H,W); samples that hold out come back clean. Raises: ModuleNotFoundError without
    pyautoattack.
    """
    return _run("apgd-ce", model, inputs, labels, eps=eps, norm=norm, seed=drawn_seed(generator), steps=steps)


def apgd_t(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
           steps: int = STEPS) -> Tensor:
    """Auto-PGD on the targeted DLR loss, one run per target among the min(9, K-1) most likely classes; in l1
    min(5, K-1).

    Raises: InputError with fewer than 4 classes: the loss divides by the gap to the third and fourth largest
    logit.
    """
    return _run("apgd-t", model, inputs, labels, eps=eps, norm=norm, seed=drawn_seed(generator), steps=steps)


def fab_t(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
          steps: int = STEPS) -> Tensor:
    """Targeted FAB (Croce & Hein 2020b): the smallest perturbation to min(9, K-1) classes, kept where it fits
    in eps."""
    return _run("fab-t", model, inputs, labels, eps=eps, norm=norm, seed=drawn_seed(generator), steps=steps)


def square(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
           queries: int = QUERIES) -> Tensor:
    """Square attack (Andriushchenko et al. 2020): random search with squares, no gradient, margin loss.

    Raises: InputError for l2 and l1 on images less than 5 pixels high or wide (it starts from a 5 x 5 grid of
    tiles).
    """
    return _run("square", model, inputs, labels, eps=eps, norm=norm, seed=drawn_seed(generator),
                queries=queries)


def aa(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
       components: tuple[str, ...] = STANDARD, steps: int = STEPS, queries: int = QUERIES) -> Tensor:
    """Standard AutoAttack: the components in order, each on the samples that still stand; one seed for all,
    as there.

    Returns: (B,C,H,W): the first adversarial input found, in [0,1] and in the ball; the clean input where all
    fail.
    Raises: InputError with fewer than 4 classes (apgd-t).
    """
    check(components, model, inputs, norm=norm)
    search = partial(component, model=searched(model, inputs, norm), eps=eps, norm=norm,
                     seed=drawn_seed(generator), steps=steps, queries=queries)
    return in_turn([partial(search, name) for name in components], model, inputs, labels, eps=eps, norm=norm)


def in_turn(searches: Sequence[Callable[[Tensor, Tensor], Tensor]], model: nn.Module, inputs: Tensor,
            labels: Tensor, *, eps: float, norm: str) -> Tensor:
    """Each search (inputs, labels) -> adversarial inputs on the samples that the model holds against the ones
    before.

    Returns: (B,C,H,W): the first answer that breaks the model, in [0,1] and in the ball; the clean input
    where all fail.
    """
    adv, standing = inputs.clone(), torch.arange(len(inputs), device=inputs.device)
    for search in searches:
        if not len(standing):
            break
        x, y = inputs[standing], labels[standing]
        found = contain(search(x, y), x, eps=eps, norm=norm)
        with torch.no_grad(), frozen(model):
            broken = wrong(model(found), y)
        adv[standing[broken]] = found[broken]
        standing = standing[~broken]
    return adv


def _run(name: str, model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int,
         steps: int = STEPS, queries: int = QUERIES) -> Tensor:
    """One component on all inputs, searching on a quick copy of the model."""
    check((name,), model, inputs, norm=norm)
    return component(name, inputs, labels, model=searched(model, inputs, norm), eps=eps, norm=norm, seed=seed,
                     steps=steps, queries=queries)


def searched(model: nn.Module, inputs: Tensor, norm: str) -> nn.Module:
    """The quick copy for linf, the model itself for l2 and l1.

    There a search answers rounding with another path: of 10 digits on the LeNet5, Square in l2 and APGD-T in
    l1 broke one more on the copy than the reference did on the model. On the model every point is the
    reference's.
    """
    return quick(model, inputs) if norm == "linf" else model


def component(name: str, inputs: Tensor, labels: Tensor, *, model: nn.Module, eps: float, norm: str,
              seed: int, steps: int, queries: int, targets: int = MAX_TARGETS) -> Tensor:
    """The answer of pyautoattack; torch's global generators (CPU, CUDA) are left as they were."""
    with torch.no_grad(), frozen(model), own_draws():
        classes = model(inputs[:1]).shape[1]
        common = {"eps": eps, "norm": _NAMES[norm], "seed": seed, "device": inputs.device, "verbose": False}
        attack = _BUILDERS[name](model, min(targets, classes - 1), steps, queries, common)
        return attack.perturb(inputs.contiguous(), labels).detach()


def check(names: tuple[str, ...], model: nn.Module, inputs: Tensor, *, norm: str) -> None:
    """Refuse components that cannot run on the model or on images of this size."""
    with torch.no_grad(), frozen(model):
        classes = model(inputs[:1]).shape[1]
    if "apgd-t" in names and classes < 4:
        raise InputError(f"apgd-t needs at least 4 classes, the model has {classes}.",
                         hint="Use --attacks apgd-ce,fab-t,square")
    if "square" in names and norm != "linf" and min(inputs.shape[2:]) < 5:
        raise InputError(f"square with norm {norm} needs images of at least 5x5, got "
                         f"{tuple(inputs.shape[2:])}.",
                         hint="Leave square (and aa) out: --attacks apgd-ce,apgd-t,fab-t")
    if "square" in names and norm != "linf" and not tiled(*inputs.shape[2:]):
        raise InputError(f"square with norm {norm} begins with tiles of a fifth of the height, which do not "
                         f"lie within images of {inputs.shape[2]} x {inputs.shape[3]}: the reference breaks.",
                         hint="Without square (and aa): --attacks apgd-ce,apgd-t,fab-t")


def tiled(height: int, width: int) -> bool:
    """Whether the tiles that Square of AutoAttack begins with in l2 and l1 lie within the image: as many as
    fit side by side, but from a margin on that was made for five (not at 12, 14, 18, 19, 24 pixels);
    tiles of one pixel may leave it."""
    side = height // 5
    start = (height - 5 * side) // 2
    return side == 1 or all(start + length // side * side <= length for length in (height, width))


def _build_apgd_ce(model: nn.Module, others: int, steps: int, queries: int, common: dict[str, Any]) -> Any:
    from pyautoattack.autopgd_base import APGDAttack

    l1 = common["norm"] == "L1"
    return APGDAttack(model, n_restarts=L1_RESTARTS if l1 else 1, n_iter=steps, loss="ce", eot_iter=1,
                      rho=0.75, use_largereps=l1, logger=_LOG, **common)


def _build_apgd_t(model: nn.Module, others: int, steps: int, queries: int, common: dict[str, Any]) -> Any:
    from pyautoattack.autopgd_base import APGDAttack_targeted

    l1 = common["norm"] == "L1"
    targets = min(L1_TARGETS, others) if l1 else others
    return APGDAttack_targeted(model, n_restarts=1, n_iter=steps, eot_iter=1, rho=0.75,
                               n_target_classes=targets, use_largereps=l1, logger=_LOG, **common)


def _build_fab_t(model: nn.Module, others: int, steps: int, queries: int, common: dict[str, Any]) -> Any:
    from pyautoattack.fab_pt import FABAttack_PT

    return FABAttack_PT(model, n_restarts=1, n_iter=steps, targeted=True, n_target_classes=others, **common)


def _build_square(model: nn.Module, others: int, steps: int, queries: int, common: dict[str, Any]) -> Any:
    from pwoa_cli.attacks.square import Square

    return Square(model, p_init=0.8, n_queries=queries, n_restarts=1, resc_schedule=False, **common)


_BUILDERS: dict[str, Callable[..., Any]] = {"apgd-ce": _build_apgd_ce, "apgd-t": _build_apgd_t,
                                            "fab-t": _build_fab_t,
                                            "square": _build_square}


def windowed(model: nn.Module, inputs: Tensor) -> bool:
    """Whether Square answers by windows on this model and so many inputs."""
    from pwoa_cli.attacks.square import Windowed

    with torch.no_grad(), frozen(model):
        return Windowed.of(model, inputs) is not None


def drawn_seed(generator: Generator) -> int:
    """The seed of code that seeds torch itself, the next number of ours."""
    return int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
