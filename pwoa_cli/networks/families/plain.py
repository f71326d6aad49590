"""Plain networks: convolutions, linear layers and activations in one chain, under any names; multilayer
perceptrons are those without convolutions.

Strides, paddings and pools are not in the keys: `geometry` lists those that leave as many pixels as the first
linear layer reads, likeliest first, and accuracy on labelled images decides between them.
"""
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pwoa_cli.networks.families import chain, geometry
from pwoa_cli.networks.families.base import Family, Guess, State, add_at, dashed, fits, others_of
from pwoa_cli.networks.families.chain import Chain
from pwoa_cli.networks.families.geometry import Geometry, Slot

LIMIT = 24  # readings of one file
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "gelu": nn.GELU,
                                           "sigmoid": nn.Sigmoid}
POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}
# sides of images by channels, likeliest first: those of a known data set, then what else people use
SIDES = {1: (28, 32), 3: (32, 64)}
MORE = (64, 96, 224, 16, 8, 128, 48, 28, 32)


class Plain(nn.Module):
    """convs, each with an activation and perhaps a pool behind it, then heads with activations between them.

    Args: size: of the images, (B, in_channels, size, size). convs, heads: key names. widths, kernels,
    strides, paddings, pools (side of the pool behind it, of stride 2; 1: none): by convolution. end:
    "flatten", or "mean" over the fields that leave side x side pixels. side: of what the first linear layer
    reads. hidden: widths of the linear layers but the last. norms: key names of batch norms behind the layers
    but the last, "" for none; () for none at all. norm_at: "first" (before the activation), "act" (behind
    it), "last" (behind the pool). biases: by layer; () for all. pool: "max" or "mean".
    Raises: KeyError for an unknown word, ValueError for lists of different lengths.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, size: int = 28,
                 convs: Sequence[str] = ("0", "2"), widths: Sequence[int] = (16, 32),
                 kernels: Sequence[int] = (4, 4), strides: Sequence[int] = (2, 1),
                 paddings: Sequence[int] = (0, 0), pools: Sequence[int] = (1, 1), end: str = "flatten",
                 side: int = 10, heads: Sequence[str] = ("5", "7"), hidden: Sequence[int] = (100,),
                 norms: Sequence[str] = (), norm_at: str = "first", biases: Sequence[bool] = (),
                 activation: str = "relu", pool: str = "max"):
        super().__init__()
        self.order: list[str] = []
        self.between = nn.ModuleList()  # what has no weights, so that the keys are those of the layers alone
        layers = [*convs, *heads]
        behind = dict(zip(layers, norms or [""] * (len(layers) - 1), strict=False))
        biased = dict(zip(layers, biases or [True] * len(layers), strict=True))
        shapes = zip(convs, pairwise((in_channels, *widths)), kernels, strides, paddings, pools, strict=True)
        for name, (inside, width), kernel, stride, padding, window in shapes:
            self._add(name, nn.Conv2d(inside, width, kernel, stride, padding, bias=biased[name]))
            pooled = [] if window == 1 else [POOLS[pool](window, 2)]
            self._activate(ACTIVATIONS[activation](), behind[name], nn.BatchNorm2d, width, norm_at, pooled)
        ends: dict[str, list[nn.Module]] = {"flatten": [], "mean": [nn.AdaptiveAvgPool2d(side)]}
        for module in (*ends[end], nn.Flatten()):
            self._between(module)
        sizes = pairwise([(widths[-1] if convs else in_channels) * side * side, *hidden, num_classes])
        for name, (inside, width) in zip(heads, sizes, strict=True):
            self._add(name, nn.Linear(inside, width, bias=biased[name]))
            if name != heads[-1]:
                self._activate(ACTIVATIONS[activation](), behind[name], nn.BatchNorm1d, width, norm_at, [])

    def _add(self, name: str, module: nn.Module) -> None:
        add_at(self, name, module)
        self.order.append(name)

    def _between(self, module: nn.Module) -> None:
        self.order.append(f"between.{len(self.between)}")
        self.between.append(module)

    def _activate(self, activation: nn.Module, norm: str, kind: type[nn.Module], width: int, norm_at: str,
                  pooled: Sequence[nn.Module]) -> None:
        """Activation and pool behind a layer, and its batch norm where it stands."""
        places: dict[str, list[nn.Module | None]] = {
            "first": [None, activation, *pooled], "act": [activation, None, *pooled],
            "last": [activation, *pooled, None]}
        for module in places[norm_at]:
            if module is not None:
                self._between(module)
            elif norm:
                self._add(norm, kind(width))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


# --- identification ---------------------------------------------------------------

def readings(state: State, found: Chain) -> list[Geometry]:
    """Readings of a chain's geometry for the sizes of images that people use, likeliest first; [] if none
    leaves the pixels that its first linear layer reads, or if it is no image classifier's."""
    first, last = (state[f"{found.heads[i]}.weight"].shape for i in (0, -1))
    if last[0] < 2 or last[0] >= first[1]:  # one output is a critic's; as many as inputs, an autoencoder's
        return []
    shapes = [state[f"{name}.weight"].shape for name in found.convs]
    if not shapes:
        return _of_perceptron(first[1], last)
    width, channels = shapes[-1][0], shapes[0][1]
    pixels = math.isqrt(first[1] // width) if width else 0
    if (pixels == 0 or pixels ** 2 * width != first[1] or channels not in SIDES
            or any(s[2] != s[3] or not 1 <= s[2] <= 11 for s in shapes)):
        return []
    slots = [Slot(s[2], s[0], room) for s, room in zip(shapes, found.rooms, strict=True)]
    usual = SIDES[channels] if last[0] != 200 else SIDES[channels][::-1]  # 200 classes: Tiny ImageNet
    return (geometry.fitting(slots, pixels, usual, limit=LIMIT)
            or geometry.fitting(slots, pixels, [side for side in MORE if side not in usual], limit=LIMIT))


def _of_perceptron(inputs: int, last: Sequence[int]) -> list[Geometry]:
    """A perceptron reads an image of one or three channels; one layer alone only of the commonest sizes."""
    if last[0] > last[1]:  # from few numbers to many: a generator
        return []
    alone = last[1] == inputs
    sides = [(channels, side) for channels, usual in SIDES.items()
             for side in (usual[:1] if alone else dict.fromkeys((*usual, *MORE)))]
    return [Geometry(side, (), (), (), "flatten", 0.0) for channels, side in sides
            if channels * side * side == inputs]


def changes(reading: Geometry) -> dict[str, Any]:
    """A reading as options of `Plain`."""
    return {"size": reading.size, "strides": list(reading.strides), "paddings": list(reading.paddings),
            "pools": list(reading.pools), "end": reading.end}


def _identify(state: State) -> Guess | None:
    found = chain.read(state)
    fitting = readings(state, found) if found else []
    if not found or not fitting:
        return None
    shapes = {name: tuple(state[f"{name}.weight"].shape) for name in (*found.convs, *found.heads)}
    first, best = shapes[found.heads[0]][1], fitting[0]
    channels = shapes[found.convs[0]][1] if found.convs else first // best.size ** 2
    side = math.isqrt(first // (shapes[found.convs[-1]][0] if found.convs else channels))
    options = {"num_classes": shapes[found.heads[-1]][0], "in_channels": channels,
               "convs": list(found.convs), "widths": [shapes[name][0] for name in found.convs],
               "kernels": [shapes[name][2] for name in found.convs], "side": side,
               "heads": list(found.heads), "hidden": [shapes[name][0] for name in found.heads[:-1]],
               "norms": list(found.norms) if any(found.norms) else [], "norm_at": found.norm_at or "first",
               "biases": [f"{name}.bias" in state for name in shapes], "activation": "relu", "pool": "max",
               **changes(best)}
    if not fits(state, Plain, options):
        return None
    others = _others(options, fitting, norm_known=found.norm_at is not None)
    return Guess("plain", options, (channels, best.size, best.size), _evidence(options, first, fitting),
                 others)


def _others(options: dict[str, Any], fitting: Sequence[Geometry], *,
            norm_known: bool) -> tuple[dict[str, Any], ...]:
    """What the keys allow as well, likeliest first: other geometries, and for the first ones pools of another
    kind, other places of batch norms, other activations."""
    base = {**changes(fitting[0]), **{key: options[key] for key in ("pool", "norm_at", "activation")}}
    ways = [(reading.cost, base | changes(reading)) for reading in fitting]
    ways += [(cost + 2.5, way | {"pool": "mean"}) for cost, way in ways[:6] if _pooled(way)]
    if options["norms"] and not norm_known:
        ways += [(cost + 2, way | {"norm_at": at}) for cost, way in ways[:4] for at in ("act", "last")
                 if at == "act" or _pooled(way)]
    if len(options["biases"]) > 1:  # a layer alone has no activation
        ways += [(cost + 3, way | {"activation": name}) for cost, way in ways[:2] for name in ACTIVATIONS
                 if name != base["activation"]]
    ordered = [way for _, way in sorted(ways, key=lambda pair: pair[0]) if way != base][:LIMIT]
    return others_of([base, *ordered])


def _pooled(way: dict[str, Any]) -> bool:
    return max(way["pools"], default=1) > 1


def _evidence(options: dict[str, Any], reads: int, fitting: Sequence[Geometry]) -> str:
    names, size, channels = [*options["convs"], *options["heads"]], options["size"], options["in_channels"]
    linear = dashed([reads, *options["hidden"], options["num_classes"]])
    shown = ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])
    if not options["convs"]:
        return (f"the keys {shown}: linear layers {linear}; by the {reads}: {size}x{size} images of "
                f"{channels} channel{'s' * (channels > 1)}")
    known = len(fitting) - 1
    more = "no others" if not known else f"{known} other{'s' * (known > 1)}"
    widths, kernels, strides, paddings, pools = (
        dashed(options[key]) for key in ("widths", "kernels", "strides", "paddings", "pools"))
    return (f"the keys {shown}: {channels}-{widths}, kernels {kernels}, {linear}; by the {reads}: "
            f"{size}x{size} images, strides {strides}, paddings {paddings}, pools {pools} (1: none), "
            f"or {more}")


PLAIN = Family("plain", Plain, _identify, general=True,
               keys="a chain of convolutions and linear layers of any names or numbers (0, 2, 5, 7; conv1, "
                    "fc1, linear1), batch norms between them or none; linear layers alone that read 28x28, "
                    "32x32x3",
               origin="networks of verification benchmarks, tutorials and one's own; multilayer perceptrons")
