"""AutoAttack by a cheaper search (`aa-mixed`): the components of `aa` on a copy of the model that multiplies
in bfloat16 (reduced.py), then a short float32 search among what they left.

Each find is put into the ball and asked of the model itself in float32 before it counts, so none is false. A
sample may stand falsely: a find that is none in float32 ends a run all the same, and rounded gradients lead
elsewhere. `closing` (APGD-T with CLOSING_STEPS steps to each target, in float32) looks for those. How often
flags differ from those of `aa` is measured in docs/benchmarks.md. Random numbers are those of `aa`.
"""
from functools import partial

from torch import Generator, Tensor, nn

from pwoa_cli.attacks import autoattack
from pwoa_cli.attacks.autoattack import QUERIES, STANDARD, STEPS, component, drawn_seed, searched, windowed
from pwoa_cli.attacks.reduced import reduced
from pwoa_cli.machine.devices import plain_float32

CLOSING_STEPS = 25
PARTS = (*STANDARD, "closing")


def aa_mixed(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
             parts: tuple[str, ...] = PARTS, steps: int = STEPS, queries: int = QUERIES) -> Tensor:
    """The parts in order, each on the samples that still stand; one seed for all, as in `aa`.

    Returns: (B,C,H,W): the first adversarial input found, in [0,1] and in the ball; the clean input where all
    fail. Raises: InputError with fewer than 4 classes.
    """
    autoattack.check(parts, model, inputs, norm=norm)
    search = partial(answer, model=model, copied=reduced(model, inputs), eps=eps, norm=norm,
                     seed=drawn_seed(generator), steps=steps, queries=queries)
    with plain_float32():
        return autoattack.in_turn([partial(search, name) for name in parts], model, inputs, labels, eps=eps,
                                  norm=norm)


def part(model: nn.Module, inputs: Tensor, labels: Tensor, *, name: str, eps: float, norm: str,
         generator: Generator, steps: int = STEPS, queries: int = QUERIES) -> Tensor:
    """One of PARTS on all inputs. Returns: (B,C,H,W); who is broken is to be asked of the model."""
    autoattack.check((name,), model, inputs, norm=norm)
    with plain_float32():
        return answer(name, inputs, labels, model=model, copied=reduced(model, inputs), eps=eps, norm=norm,
                      seed=drawn_seed(generator), steps=steps, queries=queries)


def answer(name: str, x: Tensor, y: Tensor, *, model: nn.Module, copied: nn.Module | None, eps: float,
           norm: str, seed: int, steps: int, queries: int) -> Tensor:
    """Of a component on the copy, on the model where there is none; `closing` on the model, where there is
    one."""
    if name == "closing" and copied is None:
        return x.clone()
    exact = searched(model, x, norm)
    run = partial(component, eps=eps, norm=norm, seed=seed, queries=queries)
    if name == "closing":
        return run("apgd-t", x, y, model=exact, steps=min(steps, CLOSING_STEPS))
    # a chain of layers in windows costs Square less in float32 than whole passes in bfloat16
    windows = name == "square" and norm == "linf" and x.device.type == "cpu" and windowed(exact, x)
    return run(name, x, y, model=exact if copied is None or windows else copied, steps=steps)
