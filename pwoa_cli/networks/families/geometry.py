"""Which strides, paddings and pools a chain of convolutions may have, by the pixels that its first linear
layer reads.

None of them is in the keys. What is: kernels, widths, the room that numbers leave between two layers for
something without weights, and the number of pixels that are left at the end. A reading costs more the less
people write it so; all those that leave the right number are found, cheapest first.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

CHECKED = 400  # partial readings kept for each side, over all layers

FAR = 5.5  # more than the likeliest of its size: several oddities at once are nobody's network


@dataclass(frozen=True)
class Slot:
    """A convolution as its keys show it. room: places behind it, beyond its activation, that hold something
    without weights; None: names do not tell."""

    kernel: int
    width: int
    room: int | None = None


@dataclass(frozen=True)
class Geometry:
    """A reading. By convolution: strides, paddings, pools (kernel of the max pool behind it, 1: none).

    end: "flatten", or "mean" over the fields that a linear layer's pixels leave. cost: how unusual it is,
    from 0.
    """

    size: int
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    pools: tuple[int, ...]
    end: str
    cost: float


@dataclass(frozen=True)
class _Part:
    """The first layers of a reading, as (stride, padding, pool), with what they cost."""

    steps: tuple[tuple[int, int, int], ...] = ()
    cost: float = 0.0


def side_after(side: int, *, kernel: int, stride: int, padding: int, pool: int) -> int:
    """Side of what a convolution and the pool behind it make of an image of so many pixels; 0 or less: too
    small."""
    side = (side + 2 * padding - kernel) // stride + 1
    return side if pool == 1 else (side - pool) // 2 + 1


def fitting(slots: Sequence[Slot], pixels: int, sizes: Iterable[int], *, limit: int) -> list[Geometry]:
    """The likeliest readings of a chain for images of one of `sizes` (likeliest first), of which `pixels` x
    `pixels` reach the linear layer."""
    found: list[Geometry] = []
    for order, size in enumerate(sizes):
        of_size = _of_size(slots, pixels, size, cost=2.0 * order)
        least = min((g.cost for g in of_size), default=0.0)
        found += [g for g in of_size if g.cost <= least + FAR]
    return sorted(found, key=lambda g: g.cost)[:limit]


def _of_size(slots: Sequence[Slot], pixels: int, size: int, *, cost: float) -> list[Geometry]:
    at = {size: [_Part(cost=cost)]}
    for slot in slots:
        reached: dict[int, list[_Part]] = {}
        for side, parts in at.items():
            for step, price in _steps(slot):
                left = side_after(side, kernel=slot.kernel, stride=step[0], padding=step[1], pool=step[2])
                if left >= pixels:
                    reached.setdefault(left, []).extend(
                        _Part((*part.steps, step), part.cost + price + _change(part, step, slots))
                        for part in parts)
        at = {side: sorted(parts, key=lambda part: part.cost)[: CHECKED // len(slots)]
              for side, parts in reached.items()}
    return [_geometry(size, part.steps, end, part.cost + _irregular(part, slots) + price)
            for side, parts in at.items() for end, price in [_end(side, pixels, slots[-1])] if end
            for part in parts]


def _geometry(size: int, steps: Sequence[tuple[int, int, int]], end: str, cost: float) -> Geometry:
    strides, paddings, pools = zip(*steps, strict=True)
    return Geometry(size, strides, paddings, pools, end, cost)


def _end(side: int, pixels: int, last: Slot) -> tuple[str, float]:
    """("flatten" or "mean" of what is left, cost), "" where neither gives the pixels."""
    if side == pixels:
        return "flatten", 0.5 * (pixels == 1)
    # an average of several fields takes a place of its own, and people do so to get one pixel
    return ("mean", 0.0 if pixels == 1 else 6.0) if last.room != 0 else ("", 0.0)


def _steps(slot: Slot) -> list[tuple[tuple[int, int, int], float]]:
    """Every (stride, padding, pool) of one convolution with its cost."""
    return [((stride, padding, pool), a + b + c + 3 * (stride > 1 and pool > 1))
            for stride, a in _strides(slot.kernel).items()
            for padding, b in _paddings(slot.kernel).items()
            for pool, c in _pools(slot.room).items()]


def _strides(kernel: int) -> dict[int, float]:
    if kernel >= 8:
        return {4: 0, 2: 0.5, 1: 1}
    if kernel % 2 == 0:  # even kernels are there to halve
        return {2: 0, 1: 1}
    return {1: 0, 2: 3 if kernel == 1 else 1}


def _paddings(kernel: int) -> dict[int, float]:
    half = (kernel - 1) // 2
    return {kernel // 2: 1, **{padding: 1.25 for padding in (2, 1) if padding < half}, 0: 0.25, half: 0}


def _pools(room: int | None) -> dict[int, float]:
    if room is None:
        return {1: 0, 2: 0, 3: 3}
    return {1: 1.5, 2: 0, 3: 2} if room else {1: 0}  # dropout takes a place as well


def _change(part: _Part, step: tuple[int, int, int], slots: Sequence[Slot]) -> float:
    """What it costs that a layer is padded in another way than the one before: not at all, by half a kernel
    or by what else; a 1x1 kernel goes with all."""
    kernels = [slot.kernel for slot in slots[len(part.steps) - 1:len(part.steps) + 1]]
    if not part.steps or 1 in kernels:
        return 0.0
    paddings = (part.steps[-1][1], step[1])
    if kernels[0] == kernels[1]:
        return 2.0 * (paddings[0] != paddings[1])
    half = [padding == (kernel - 1) // 2 for kernel, padding in zip(kernels, paddings, strict=True)]
    return 2.0 * (paddings[0] != paddings[1] and half[0] != half[1])


def _irregular(part: _Part, slots: Sequence[Slot]) -> float:
    """What it costs that pools and strides are mixed, or that the image shrinks at no regular distance and
    not before it gets more channels."""
    pools = [pool for _, _, pool in part.steps]
    odd = [stride for (stride, _, _), slot in zip(part.steps, slots, strict=True) if slot.kernel % 2]
    mixed = len({pool for pool in pools if pool > 1}) > 1 or max(pools) > 1 < max(odd, default=1)
    shrinks = [stride * pool > 1 for stride, _, pool in part.steps]
    grows = [b.width > a.width for a, b in pairwise(slots)]
    # n, then 2n, then 3n: every layer, every second, every third
    regular = (any(shrinks == [(i + 1) % n == 0 for i in range(len(shrinks))] for n in (1, 2, 3))
               or shrinks[:-1] == grows or not any(shrinks))
    return 2.0 * mixed + 1.5 * (not regular)
