"""The layers of a chain in their order, by the names and shapes of its tensors: convolutions, then linear
layers, each of which reads what the one before makes, and the batch norm of each.

What only looks like a chain (residual blocks, encoders with decoders, two networks) is None.
"""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from pwoa_cli.networks.families.base import State

_NUMBERED = re.compile(r"(?:(.*)\.)?(0|[1-9][0-9]{0,3})")
# what branches, or makes images, has names that say so
_NO_CHAIN = re.compile(r"(^|[._])(res([0-9._]|idual|block|$)|short_?cut|skip|downsample|identity|up[0-9._]|"
                       r"upsample|de_?conv|decod|encod|gener|discr|actor|critic|policy|trans_?conv|embed|attn)",
                       re.I)
_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Chain:
    """Key names of its layers in their order. norms: by layer but the last, "" for none.

    norm_at: "first" (before the activation), "act" (behind it), "last" (behind activation and pool), None
    where the names do not tell. rooms: by convolution, places behind it beyond its activation, as in
    `geometry.Slot`.
    """

    convs: tuple[str, ...]
    heads: tuple[str, ...]
    norms: tuple[str, ...]
    norm_at: str | None
    rooms: tuple[int | None, ...]


def read(state: State) -> Chain | None:
    """The chain that a state dict holds; None if it is none, or no image classifier's."""
    names = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    if any(key.rpartition(".")[2] not in _TENSORS for key in state) or not _buildable(names):
        return None
    norms = [name for name in names if f"{name}.running_mean" in state]
    ndims = {name: state[f"{name}.weight"].ndim if f"{name}.weight" in state else 0 for name in names}
    convs, heads = ([name for name in names if ndims[name] == ndim] for ndim in (4, 2))
    if len(convs) + len(heads) + len(norms) != len(names) or not heads or _blocks(state, convs):
        return None
    if convs and heads and names != sorted(names) and names.index(heads[0]) < names.index(convs[-1]):
        return None  # a generator begins with a linear layer; a sorted file has lost its order
    convs, heads = chained(state, convs), chained(state, heads)
    if not heads:
        return None
    behind = _norms(state, names, [*convs, *heads], norms)
    places = None if behind is None else _places([*convs, *heads], len(convs), behind)
    if behind is None or places is None or (not convs and 4 in ndims.values()):
        return None
    return Chain(tuple(convs), tuple(heads), tuple(behind), *places)


def chained(state: State, names: Sequence[str]) -> list[str]:
    """Names of layers in the order in which one reads what the other makes; [] if there is none. Keys may be
    sorted."""
    order = sorted(names, key=natural)
    shapes = {name: state[f"{name}.weight"].shape for name in names}
    # safetensors sorts: conv1, conv10, conv2 may chain as well
    ways = (list(names), order, order[::-1]) if list(names) != sorted(names) else (order, order[::-1])
    for way in ways:
        if all(shapes[b][1] == shapes[a][0] for a, b in pairwise(way)):
            return way
    return []


def natural(name: str) -> list[tuple[bool, int, str]]:
    """What a name is sorted by so that conv10 comes behind conv2."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
            for part in re.split("([0-9]+)", name)]


def _buildable(names: Sequence[str]) -> bool:
    """Whether layers of these names can be put together: none is inside another, none has the name of a
    method."""
    parents = {name[:dot.start()] for name in names for dot in re.finditer(r"\.", name)}
    parts = {part for name in names for part in name.split(".")}
    return (bool(names) and not parents & set(names) and "between" not in parts and "" not in parts
            and not any(hasattr(nn.Sequential(), part) for part in parts)
            and not any(_NO_CHAIN.search(name) for name in names))


def _blocks(state: State, convs: Sequence[str]) -> bool:
    """Whether several convolutions lie under names in one module that makes as many channels as it reads: a
    residual block has the same keys."""
    inside: dict[str, list[str]] = {}
    for name in convs:
        parent, _, last = name.rpartition(".")
        if parent and not last.isdecimal():
            inside.setdefault(parent, []).append(name)
    return any(len(names) > 1
               and state[f"{names[0]}.weight"].shape[1] == state[f"{names[-1]}.weight"].shape[0]
               for names in inside.values())


def _norms(state: State, names: Sequence[str], layers: Sequence[str],
           norms: Sequence[str]) -> list[str] | None:
    """The batch norm of each layer but the last, "" for none: the one that follows it in the file, else the
    n-th of the n-th; None if neither fits."""
    width = {name: len(state[f"{name}.running_mean"]) for name in norms}
    made = {name: state[f"{name}.weight"].shape[0] for name in layers}
    for order in (list(names), sorted(names, key=natural)):
        found = {a: b for a, b in pairwise(order) if a in made and b in width and width[b] == made[a]}
        if len(found) == len(norms) and layers[-1:] != [*found][-1:]:
            return [found.get(name, "") for name in layers[:-1]]
    ordered = sorted(norms, key=natural)
    if len(norms) < len(layers) and all(width[b] == made[a] for a, b in zip(layers, ordered, strict=False)):
        return [*ordered, *[""] * (len(layers) - 1 - len(norms))]
    return None


def _number(name: str) -> tuple[str, int] | None:
    """("features", 3) of features.3; None if a name has no number of a Sequential."""
    match = _NUMBERED.fullmatch(name)
    return (match[1] or "", int(match[2])) if match else None


def _gap(a: str, b: str) -> int | None:
    """How many places numbers leave between two layers; None where they are of no Sequential, or of two."""
    first, second = _number(a), _number(b)
    return second[1] - first[1] - 1 if first and second and first[0] == second[0] else None


def _places(layers: Sequence[str], convs: int,
            norms: Sequence[str]) -> tuple[str | None, tuple[int | None, ...]] | None:
    """(norm_at, rooms) by the gaps of numbers; None where they leave no room for an activation."""
    gaps = [_gap(a, b) for a, b in pairwise(layers)]
    free = [None if gap is None else gap - bool(norm) for gap, norm in zip(gaps, norms, strict=True)]
    if not any(free):  # a ModuleList numbers what has weights alone
        free = [None] * len(free)
    rooms = [None if gap is None else gap - 1 - (i == convs - 1) for i, gap in enumerate(free)]
    if any(room is not None and room < 0 for room in rooms):
        return None
    at = _norm_at(dict(zip(layers, norms, strict=False)), layers[:convs])
    return None if at == "" else (at, tuple(rooms[:convs]))


def _norm_at(norms: Mapping[str, str], convs: Sequence[str]) -> str | None:
    """Where batch norms stand by their numbers; "" if they do not stand in one way."""
    gaps = {(layer in convs, _gap(layer, norm)) for layer, norm in norms.items() if norm}
    known = {(conv, gap) for conv, gap in gaps if gap is not None}
    behind = {gap for conv, gap in known if conv} or {gap for _, gap in known}
    if not known:
        return None
    gap = max(behind)
    one_way = len(behind) == 1 and all(bool(other) == bool(gap) for _, other in known)
    return {0: "first", 1: "act", 2: "last"}.get(gap, "") if one_way else ""
