"""Which weights stand or fall together: a group is a set of slices over one or several tensors.

    unstructured   every weight for itself
    filter         an output filter (conv) or neuron (linear): one row of the (out, rest) matrix
    column         one column of the (out, in * kh * kw) matrix: the same input tap in every filter
    channel        the filters that give a channel and the columns that read it, coupled over all layers that
                   it passes (Fang et al. 2023): it can be removed
    block:RxC      R rows by C columns of the (out, in * kh * kw) matrix
    N:M            a weight, and of each M neighbours along the inputs N stay (Mishra et al. 2021)

Jian et al. 2022, sec. IV-A. Groups are chosen by count, not by threshold, ties by index: `<= threshold` would
remove every tie and one group too many. Legend: G groups of a layer.
"""
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import prod

import torch
from torch import Tensor

from pwoa_cli.pruning.neighbours import stay_of

# {weight: parameters (out,) that still speak when its filter is zero}
Companions = Mapping[str, Sequence[str]]
# {weight (in, out/groups, ...) of a transposed convolution: groups}; all others are (out, in/groups, ...)
Transposed = Mapping[str, int]
# {set of channels: {parameter: {axis: (n,) the channel that each index is, -1 for one of another set}}}
Coupled = Mapping[str, Mapping[str, Mapping[int, Sequence[int]]]]


@dataclass(frozen=True)
class Part:
    """How groups lie in a tensor of `shape`: seen as `view`, a group is what shares its indices along `axes`
    (ascending)."""

    shape: tuple[int, ...]
    view: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def count(self) -> int:
        """G."""
        return prod(self.view[axis] for axis in self.axes)

    def sums(self, values: Tensor) -> Tensor:
        """Sum (G,) over each group of values of `shape`."""
        others = tuple(axis for axis in range(len(self.view)) if axis not in self.axes)
        seen = values.reshape(self.view)
        return (seen.sum(others) if others else seen).flatten()

    def spread(self, flags: Tensor) -> Tensor:
        """A flag for each group (G,) as a tensor of `shape`."""
        sizes = [size if axis in self.axes else 1 for axis, size in enumerate(self.view)]
        return flags.view(sizes).expand(self.view).reshape(self.shape)

    @property
    def extents(self) -> dict[int, tuple[int, int]]:
        """{axis: (its size, how much of it lies in groups)}: here all, seen as one axis."""
        return {0: (prod(self.shape), prod(self.shape))}


@dataclass(frozen=True)
class Slices:
    """How `count` groups lie in a tensor of `shape` as slices along some of its axes. axes: {axis: (n,) the
    group of each index, -1 for none}; an entry of two groups, a row's and a column's, counts in both."""

    shape: tuple[int, ...]
    count: int
    axes: Mapping[int, tuple[int, ...]]

    def sums(self, values: Tensor) -> Tensor:
        """Sum (G,) over each group of values of `shape`."""
        found = values.new_zeros(self.count + 1)  # the last takes what is in no group
        for axis, index in self.axes.items():
            others = tuple(i for i in range(values.ndim) if i != axis)
            found.index_add_(0, self._index(index, values), values.sum(others) if others else values)
        return found[: self.count]

    def spread(self, flags: Tensor, *, outside: bool = True) -> Tensor:
        """A flag for each group (G,) as a tensor of `shape`: that of all its groups together, `outside` in
        none."""
        found = torch.ones(self.shape, dtype=torch.bool, device=flags.device)
        flags = torch.cat([flags, flags.new_tensor([outside])])
        for axis, index in self.axes.items():
            found &= flags[self._index(index, flags)].view([-1 if i == axis else 1
                                                            for i in range(len(self.shape))])
        return found

    def _index(self, index: Sequence[int], like: Tensor) -> Tensor:
        return torch.tensor([self.count if i < 0 else i for i in index], device=like.device)

    @property
    def extents(self) -> dict[int, tuple[int, int]]:
        """{axis: (its size, how much of it lies in groups)}."""
        return {axis: (size, sum(i >= 0 for i in self.axes.get(axis, ())))
                for axis, size in enumerate(self.shape)}


@dataclass(frozen=True)
class Groups:
    """The groups of a layer: the g-th one is the g-th of every part.

    parts: by parameter name. companions: parameters that are no weights and fall silent with a group, and how
    the groups lie in each. block: of so many groups, `stride` apart, each
    block loses as many (n:m sparsity); 0: they go wherever they are weakest. price: of a group where weights
    are not what is counted, but groups or multiplications; 0: its weights.
    """

    parts: Mapping[str, Part | Slices]
    companions: Mapping[str, Slices] = field(default_factory=dict)
    block: int = 0
    stride: int = 1
    price: int = 0

    @property
    def count(self) -> int:
        """G."""
        return next(iter(self.parts.values())).count

    @property
    def size(self) -> int:
        """Weights in a group, of slices on average; or its price."""
        return self.price or self.worth(dict.fromkeys(self.parts, 1))

    def worth(self, each: Mapping[str, int]) -> int:
        """What goes with a group on average, at least 1. Args: each: what an entry counts for, by parameter
        name."""
        entries = (each[name] * (prod(part.shape) - prod(n - inside for n, inside in part.extents.values()))
                   for name, part in self.parts.items())
        return max(1, sum(entries) // self.count)

    @property
    def weights(self) -> int:
        """Weights in all groups together."""
        return self.count * self.size

    def scores(self, values: Mapping[str, Tensor]) -> Tensor:
        """Sum (G,) over the entries of each group. Args: values: by parameter name, shaped like it."""
        return reduce(torch.add, (part.sums(values[name]) for name, part in self.parts.items()))

    def keep(self, scores: Tensor, lost: int) -> Tensor:
        """Flags (G,), False for the `lost` groups of the lowest scores (G,), ties by index; with a block for
        as many in each, its lowest, and for the lowest of those that are next in their blocks where `lost`
        is no multiple of these."""
        if not self.block:
            return ~smallest(scores, lost)
        scores = self.in_blocks(scores.nan_to_num(-math.inf, math.inf, -math.inf))
        ranks = scores.argsort(dim=1, stable=True).argsort(dim=1)
        everywhere, more = divmod(lost, self.count // self.block)
        gone, following = ranks < everywhere, ranks == everywhere
        gone[following] = smallest(scores[following], more)
        return ~gone.flatten()

    def in_blocks(self, values: Tensor) -> Tensor:
        """Values (G,) with the groups of a block along the second of three axes."""
        return values.view(-1, self.block, self.stride)


@dataclass(frozen=True)
class Structure:
    """A kind of groups. groups: (weights by name, `Companions`, `Transposed`, `Coupled`) -> groups by layer.

    of_layers: they are those of convolutions and linear layers alone. keeps_logits: the layer that gives the
    logits is left out, as its rows are classes. silences: companions fall silent with a group, and no
    gradient can tell what it was worth. couples: `Coupled` is needed; others get an empty one. fits: whether
    a weight of this shape (out, in, ...) can be cut into them; others, and those of transposed convolutions,
    are left out. sparsity: the one that they have; None: any.
    """

    groups: Callable[[Mapping[str, Tensor], Companions, Transposed, Coupled], dict[str, Groups]]
    of_layers: bool = True
    keeps_logits: bool = False
    silences: bool = False
    couples: bool = False
    fits: Callable[[tuple[int, ...]], bool] | None = None
    sparsity: float | None = None


def unstructured(weights: Mapping[str, Tensor], _companions: Companions, _transposed: Transposed,
                 _coupled: Coupled) -> dict[str, Groups]:
    """Every weight for itself."""
    return {name: Groups({name: Part(tuple(w.shape), (w.numel(),), (0,))}) for name, w in weights.items()}


def filters(weights: Mapping[str, Tensor], companions: Companions, transposed: Transposed,
            _coupled: Coupled) -> dict[str, Groups]:
    """Rows of (out, rest), with the layer's bias and its norms' scale and shift."""
    found: dict[str, Groups] = {}
    for name, w in weights.items():
        part = _matrix(w, axis=0, groups=transposed.get(name))
        found[name] = Groups({name: part}, dict.fromkeys(companions.get(name, ()), one_each(part.count)))
    return found


def columns(weights: Mapping[str, Tensor], _companions: Companions, transposed: Transposed,
            _coupled: Coupled) -> dict[str, Groups]:
    """Columns of (out, in * kh * kw)."""
    return {name: Groups({name: _matrix(w, axis=1, groups=transposed.get(name))})
            for name, w in weights.items()}


def channels(weights: Mapping[str, Tensor], _companions: Companions, _transposed: Transposed,
             coupled: Coupled) -> dict[str, Groups]:
    """Channels of each set: rows of the weights that give them, columns of those that read them; biases,
    scales and shifts are their companions. Sets without a weight are left out."""
    found: dict[str, Groups] = {}
    for layer, members in coupled.items():
        count = 1 + max(i for axes in members.values() for index in axes.values() for i in index)
        parts = {name: Slices(tuple(weights[name].shape), count, {a: tuple(i) for a, i in axes.items()})
                 for name, axes in members.items() if name in weights}
        beside = {name: Slices((len(axes[0]),), count, {0: tuple(axes[0])})
                  for name, axes in members.items() if name not in weights}
        found |= {layer: Groups(parts, beside)} if parts else {}
    return found


STRUCTURES = {
    "unstructured": Structure(unstructured, of_layers=False),
    "filter": Structure(filters, keeps_logits=True, silences=True),
    "column": Structure(columns),
    "channel": Structure(channels, silences=True, couples=True),
}


def structure_of(kind: str) -> Structure:
    """The structure of that name: of the table, "block:RxC" or "N:M". Raises: ValueError for another."""
    if kind in STRUCTURES:
        return STRUCTURES[kind]
    if found := re.fullmatch(r"block:([1-9]\d{0,3})x([1-9]\d{0,3})", kind, re.ASCII):
        return _blocks(int(found[1]), int(found[2]))
    if neighbours := stay_of(kind):
        return _neighbours(*neighbours)
    raise ValueError(f"structure {kind!r}, expected {', '.join(STRUCTURES)}, block:RxC or N:M with N < M")


def _blocks(rows: int, columns: int) -> Structure:
    """Blocks of the (out, rest) matrix, as `torch.Tensor.to_sparse_bsr` has them of weight.flatten(1)."""
    def groups(weights: Mapping[str, Tensor], *_: object) -> dict[str, Groups]:
        def part(w: Tensor) -> Part:
            return Part(tuple(w.shape), (len(w) // rows, rows, w[0].numel() // columns, columns), (0, 2))

        return {name: Groups({name: part(w)}) for name, w in weights.items()}

    return Structure(groups, fits=lambda shape: not (shape[0] % rows or math.prod(shape[1:]) % columns))


def _neighbours(stay: int, of: int) -> Structure:
    """Single weights (out, in, ...), of which `stay` of every `of` with consecutive inputs stay, at each tap
    by itself: what sparse tensor cores and channels-last kernels add up together (Mishra et al. 2021)."""
    def groups(weights: Mapping[str, Tensor], *_: object) -> dict[str, Groups]:
        return {name: Groups({name: Part(tuple(w.shape), (w.numel(),), (0,))}, block=of,
                             stride=math.prod(w.shape[2:])) for name, w in weights.items()}

    return Structure(groups, fits=lambda shape: shape[1] % of == 0, sparsity=1 - stay / of)


def one_each(count: int) -> Slices:
    """How `count` groups lie in a parameter (G,), an entry in each."""
    return Slices((count,), count, {0: tuple(range(count))})


def _matrix(weight: Tensor, *, axis: int, groups: int | None) -> Part:
    """Rows (axis 0) or columns (1). Args: groups: of a transposed convolution, whose filters are dimension 1
    of each group; its column is an input tap into all filters of the group."""
    if groups is None:
        return Part(tuple(weight.shape), (len(weight), weight[0].numel()), (axis,))
    view = (groups, len(weight) // groups, weight.shape[1], weight[0, 0].numel())
    return Part(tuple(weight.shape), view, (0, 2) if axis == 0 else (0, 1, 3))


def single(groups: Mapping[str, Groups]) -> bool:
    """Whether every weight goes by itself, wherever it is weakest."""
    return all(group.size == 1 for group in groups.values()) and not by_block(groups)


def by_block(groups: Mapping[str, Groups]) -> bool:
    """Whether every block of neighbours loses as many, in all layers alike."""
    return any(group.block for group in groups.values())


def scores_by_layer(groups: Mapping[str, Groups], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{layer: what each of its groups is worth (G,)} from what each weight is worth."""
    return {layer: group.scores(values) for layer, group in groups.items()}


def smallest(scores: Tensor, count: int) -> Tensor:
    """Boolean (G,) with exactly `count` True at the smallest scores (G,), ties by lowest index; NaN, which
    compares with nothing, is the smallest."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if count <= 0:
        return chosen
    scores = scores.nan_to_num(-math.inf, math.inf, -math.inf)
    threshold = scores.kthvalue(min(count, len(scores))).values
    chosen = scores < threshold
    ties = scores == threshold
    return chosen | ties & (ties.cumsum(0) <= count - chosen.sum())  # no count comes to the host


def kept(groups: Mapping[str, Groups], scores: Mapping[str, Tensor],
         lost: Mapping[str, int]) -> dict[str, Tensor]:
    """Flags (G,) by layer, False for the weakest `lost` groups of each. Args: scores: (G,) by layer."""
    return {layer: group.keep(scores[layer], lost[layer]) for layer, group in groups.items()}


def regrown(scores: Tensor, slopes: Tensor, lost: int, *, fraction: float) -> Tensor:
    """Flags (G,) with `lost` False as of `smallest`, but `fraction` (0..1) of the kept groups, the weakest,
    make room for those of the largest slopes among all others (RigL, Evci et al. 2020, sec. 3, step 3-4).
    Ties by index.

    Args: scores: (G,). slopes: (G,) summed squares of the loss's gradient with respect to the weights, zeros
    included.
    """
    grown = min(int(fraction * (len(scores) - lost)), lost)
    strong = ~smallest(scores, lost + grown)
    return ~smallest(slopes.masked_fill(strong, float("inf")), lost)


def masks(groups: Mapping[str, Groups], flags: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks shaped like the weights, True = kept; a weight of several groups needs all of them.

    Args: flags: (G,) by layer.
    """
    found: dict[str, Tensor] = {}
    for layer, keep in flags.items():
        for name, part in groups[layer].parts.items():
            mask = part.spread(keep)
            found[name] = found[name] & mask if name in found else mask
    return found


def companion_masks(groups: Mapping[str, Groups], flags: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the companions, shaped like them: silent only where every group that feeds them is, and
    speaking where none does.

    Args: flags: (G,) by layer.
    """
    speaking: dict[str, Tensor] = {}
    reached: dict[str, Tensor] = {}
    for layer, keep in flags.items():
        for name, part in groups[layer].companions.items():
            mask, inside = (part.spread(flag, outside=False) for flag in (keep, torch.ones_like(keep)))
            speaking[name] = speaking[name] | mask if name in speaking else mask
            reached[name] = reached[name] | inside if name in reached else inside
    return {name: mask | ~reached[name] for name, mask in speaking.items()}


def nonzero(groups: Mapping[str, Groups], lost: Mapping[str, int],
            each: Mapping[str, int] | None = None) -> int:
    """Weights that stay, of all in the tensors of the groups, where each layer loses so many; a weight of two
    groups goes once. Exact where the groups of a layer are alike. Args: each: what an entry counts for, by
    parameter name; None: 1."""
    left: dict[str, dict[int, float]] = {}
    for layer, group in groups.items():
        for name, part in group.parts.items():
            sides = left.setdefault(name, {axis: size for axis, (size, _) in part.extents.items()})
            for axis, (_, inside) in part.extents.items():
                sides[axis] -= inside * lost[layer] / group.count
    return round(sum((each[name] if each else 1) * prod(sides.values()) for name, sides in left.items()))


def overlap(groups: Mapping[str, Groups]) -> bool:
    """Whether a weight may lie in several groups."""
    return any(isinstance(part, Slices) for group in groups.values() for part in group.parts.values())
