"""What every family of architectures is made of: a parametric definition, and how its keys are recognised."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Guess:
    """What the keys and shapes of a state dict say, and what they leave open.

    make(**options) of the family `arch` has these very keys and shapes. input_shape: (C, H, W), None: the keys do not tell.
    evidence: the keys and sizes that it was read from, for people. others: option values that the same keys allow as
    well, likeliest first; each is what to change in `options`, such as {"activation": "silu"}.
    """

    arch: str
    options: dict[str, Any]
    input_shape: tuple[int, int, int] | None
    evidence: str
    others: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Family:
    """One parametric definition. make: keyword arguments that JSON can hold -> bare network, (B, C, H, W) -> logits (B, K).

    identify: state dict -> Guess; None where the keys are another family's. keys: those that identify it, for people.
    origin: whose checkpoints have them. members: public names of sizes, {name: the options that it fixes}.
    """

    name: str
    make: Callable[..., nn.Module]
    identify: Callable[[State], Guess | None]
    keys: str
    origin: str
    members: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def shape(state: State, key: str) -> tuple[int, ...]:
    """The shape of a tensor, () if there is none of that name."""
    return tuple(state[key].shape) if key in state else ()
