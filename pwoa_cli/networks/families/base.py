"""What every family of architectures is made of: a parametric definition, and how its keys are recognised;
helpers for both."""
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class Guess:
    """What the keys and shapes of a state dict say, and what they leave open.

    make(**options) of the family `arch` has these very keys and shapes. input_shape: (C, H, W), None: the
    keys do not tell. evidence: the keys and sizes that it was read from, for people. others: option values
    that the same keys allow as well, likeliest first; each is what to change in `options`, such as
    {"activation": "silu"}; what it changes stands in `options`, so that it can be said and changed back.
    """

    arch: str
    options: dict[str, Any]
    input_shape: tuple[int, int, int] | None
    evidence: str
    others: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        unsaid = {key for other in self.others for key in other} - self.options.keys()
        assert not unsaid, f"others of {self.arch} change what its options do not say: {unsaid}"


@dataclass(frozen=True)
class Family:
    """One parametric definition. make: keyword arguments that JSON can hold -> bare network, (B, C, H, W) ->
    logits (B, K).

    identify: state dict -> Guess; None where the keys are another family's. keys: those that identify it, for
    people. origin: whose checkpoints have them. members: public names of sizes, {name: the options that it
    fixes}. any_size: takes images of any size, so that a guess of theirs is what the public ones were trained
    on. general: takes what is of no published network: asked last, behind the libraries' own.
    """

    name: str
    make: Callable[..., nn.Module]
    identify: Callable[[State], Guess | None]
    keys: str
    origin: str
    members: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    any_size: bool = False
    general: bool = False


def add_at(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where its keys begin with `path`, such as block1.layer; what is missing on the way is a
    Sequential."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in dict(root.named_children()):
            root.add_module(name, nn.Sequential())
        root = root.get_submodule(name)
    root.add_module(last, module)


def sizes(state: State, key: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor of so many dimensions; () if there is none, or if it is empty."""
    got = tuple(state[key].shape) if key in state else ()
    return got if len(got) == ndim and all(got) else ()


def count_blocks(state: State, name: str, *, first: int = 1) -> list[int]:
    """Blocks in each stage, where `name` has two {} for the numbers of stage (from `first`) and block (from
    0).

    [] if the numbers have gaps: then the keys are not those of a chain of stages.
    """
    pattern = re.compile(re.escape(name).replace(r"\{\}", "([0-9]{1,4})") + r"\.")
    seen = {(int(m[1]), int(m[2])) for m in map(pattern.match, state) if m}
    counts = [sum(i == stage for i, _ in seen) for stage in range(first, first + len({i for i, _ in seen}))]
    return counts if seen == {(first + i, j) for i, n in enumerate(counts) for j in range(n)} else []


def fits(state: State, make: Callable[..., nn.Module], options: dict[str, Any]) -> bool:
    """Whether make(**options) has exactly these keys and shapes; built without memory, batch norm's counters
    left out."""
    try:
        with torch.device("meta"):
            own = make(**options).state_dict()
    except RuntimeError:  # sizes that no tensor can have, from a file that contradicts itself
        return False
    # older files lack the counters
    counted = {k: t.shape for k, t in own.items() if not k.endswith("num_batches_tracked")}
    return counted == {k: t.shape for k, t in state.items() if not k.endswith("num_batches_tracked")}


def others_of(ways: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """`Guess.others` of ways to set the same options, the first of which stands in its options: of each of
    the rest what any of them changes."""
    differing = [key for key in ways[0] if any(way[key] != ways[0][key] for way in ways)]
    return tuple({key: way[key] for key in differing} for way in ways[1:])


def dashed(numbers: Sequence[int]) -> str:
    """2-2-2-2 for (2, 2, 2, 2)."""
    return "-".join(map(str, numbers))
