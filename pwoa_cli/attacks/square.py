"""Square (Andriushchenko et al. 2020) without the work whose answer is known: the draws are those of the
reference code.

x inputs (B,C,H,W) in [0,1], y labels (B,), z logits (B,K), eps radius, lead z_y - max_{j != y} z_j (<= 0:
misclassified). A window is a pair of spans (rows, columns), a map the output (B,c,h,w) of some layer, a patch
the part of it in a window.
"""
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pyautoattack.square import SquareAttack
from torch import Tensor, fx, nn

from pwoa_cli.attacks.bounded import Bounded, Meter
from pwoa_cli.attacks.gradient import margin
from pwoa_cli.attacks.quick import PROBES, TOLERANCE, hooked, plain, steady
from pwoa_cli.attacks.reduced import ROUNDING, Reduced
from pwoa_cli.networks.build import Normalized

Span = tuple[int, int]  # first index, and one past the last
Window = tuple[Span, ...]  # of rows and of columns
Place = tuple[slice, ...]  # a window as an index
Changes = list[tuple[Place, Tensor]]  # of each kept map: where, and the patch (R,c,h,w)
MAP_BYTES = 1 << 30  # most that the kept maps may take; whole passes beyond
_POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU, nn.Identity, nn.Dropout,
              nn.Dropout2d)


class Square(SquareAttack):
    """SquareAttack of pyautoattack with fewer and smaller passes.

    A window moves every pixel by +-2 eps and clips: where all of them lie at that side already the candidate
    is the point itself, and costs no query here. On a chain of convolutions the others cost the part that the
    window reaches (`Windowed`). Points and flags are the reference's up to rounding in the logits. The
    reference runs as it is for other norms, on other devices and for models that are not `steady`.
    """

    def attack_single_run(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One restart. Returns: queries (B,) that were paid for, and the best point of every sample
        (B,C,H,W)."""
        if self.norm != "Linf" or x.device.type != "cpu" or not self._steady(x[:PROBES]):
            return super().attack_single_run(x, y)
        with torch.no_grad():
            return self._search(x, y)

    def _steady(self, x: Tensor) -> bool:
        """Whether an answer once given holds, up to what the model rounds."""
        inner = self.predict.model if isinstance(self.predict, Bounded) else self.predict
        return steady(self.predict, x, rounding=ROUNDING if isinstance(inner, Reduced) else TOLERANCE)

    def _search(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (x - self.eps).clamp(0, 1), (x + self.eps).clamp(0, 1)
        best = torch.clamp(x + self.eps * self.random_choice([len(x), x.shape[1], 1, x.shape[3]]), 0, 1)
        lead, queries = -margin(self.predict(best), y), torch.ones(len(x))
        answer = Windowed.of(self.predict, best) or Whole(self.predict)
        answer.keep(best)
        for query in range(self.n_queries):
            if not (lead > 0).any():
                break
            window, step = self._window(query, *x.shape[1:])
            where = _at(window)
            after = torch.minimum(torch.maximum(best[where] + step, low[where]), high[where])
            rows = ((lead > 0) & (after != best[where]).flatten(1).any(1)).nonzero().flatten()
            if not len(rows):
                continue
            logits, found = answer.logits(rows, after[rows], window)
            value = -margin(logits, y[rows])
            better = value < lead[rows]  # as lead > 0, a value of 0 or less is better
            queries[rows] += 1
            won = rows[better]
            best[where][won], lead[won] = after[won], value[better]  # best[where] is a view
            answer.accept(rows, found, better)
        return queries, best

    def _window(self, query: int, channels: int, height: int, width: int) -> tuple[Window, Tensor]:
        """One window for all samples, drawn as the reference draws it, and the step (C,1,1) of +-2 eps."""
        side = min(max(round((self.p_selection(query) * height * width) ** 0.5), 1), height, width)
        top, left = int(self.random_int(0, height - side)), int(self.random_int(0, width - side))
        return ((top, top + side), (left, left + side)), 2.0 * self.eps * self.random_choice([channels, 1, 1])


# --- Logits after a change in a window ---------------------------------------------------------------


class Whole:
    """Logits of points that differ from kept ones in a window, by a pass over whole images: for any
    network."""

    def __init__(self, model: nn.Module):
        self.model, self.points = model, torch.empty(0)

    def keep(self, x: Tensor) -> None:
        """Take x (B,C,H,W) as the kept points."""
        self.points = x.clone()

    def logits(self, rows: Tensor, patch: Tensor, window: Window) -> tuple[Tensor, Changes]:
        """Logits (R,K) of kept points `rows` (R,) with `patch` (R,C,h,w) at `window`, and what `accept`
        needs: the place and patch of each map that is kept."""
        points, where = self.points[rows], _at(window)
        points[where] = patch
        return self.model(points), [(where, patch)]

    def accept(self, rows: Tensor, found: Changes, better: Tensor) -> None:
        """Keep those of the last `logits(rows, ...)` where `better` (R,) bool."""
        _accept([self.points], rows, found, better)


class Windowed:
    """What `Whole` answers, from the part of each map that the window reaches; the rest of the maps is kept.

    For one chain of `plain` convolutions, max pools and pointwise layers, then anything (the head), as
    torch.fx traced it.
    """

    def __init__(self, stages: Sequence["_Stage"], head: nn.Module, normalise: Normalized):
        self.stages, self.head, self.normalise = stages, head, normalise
        self.paddings = [*(stage.padding for stage in stages), 0]  # of maps
        self.meter = Meter()  # a window counts as a pass, though it costs less
        self.maps: list[Tensor] = []  # padded inputs of every stage, then the features, of the kept points

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> "Windowed | None":
        """For the points x (B,C,H,W); None for other networks, and where the maps of so many points take too
        much memory."""
        if isinstance(model, Bounded):
            found = cls.of(model.model, x) if len(x) <= model.batch_size else None
            if found:
                found.meter = model.meter
            return found
        shell = model if isinstance(model, Normalized) else Normalized(model)
        layers = _chain(shell.net)
        n_maps = next((i for i, part in enumerate(layers) if not _on_maps(part)), len(layers))
        starts = [i for i in range(n_maps) if isinstance(layers[i], nn.Conv2d)]
        chunks = [layers[a:b] for a, b in pairwise([*starts, n_maps])]
        if starts[:1] != [0] or any(sum(isinstance(part, nn.MaxPool2d) for part in chunk) > 1
                                    for chunk in chunks):
            return None
        ready = cls([_Stage(chunk) for chunk in chunks], nn.Sequential(*layers[n_maps:]),
                    Normalized(nn.Identity()))
        ready.normalise.mean, ready.normalise.std = shell.mean, shell.std
        ready.keep(x[:1])
        return ready if len(x) * sum(part.nbytes for part in ready.maps) <= MAP_BYTES else None

    def keep(self, x: Tensor) -> None:
        """Take x (B,C,H,W) as the kept points."""
        self.maps, x = [], self.normalise(x)
        for stage in self.stages:
            self.maps.append(F.pad(x, [stage.padding] * 4).contiguous(memory_format=torch.channels_last))
            x = stage(self.maps[-1])
        self.maps.append(x.contiguous())  # the layout that a flattening head wants

    def logits(self, rows: Tensor, patch: Tensor, window: Window) -> tuple[Tensor, Changes]:
        """Logits (R,K) of kept points `rows` (R,) with `patch` (R,C,h,w) at `window`, and what `accept`
        needs."""
        self.meter.forward(len(rows))
        found: Changes = []
        patch = self.normalise(patch)
        for i, (stage, kept) in enumerate(zip(self.stages, self.maps, strict=False)):
            inside = tuple((a + stage.padding, b + stage.padding) for a, b in window)
            sizes = [side - 2 * self.paddings[i + 1] for side in self.maps[i + 1].shape[2:]]
            out = tuple(stage.out(span, size) for span, size in zip(inside, sizes, strict=True))
            read = tuple(stage.read(span) for span in out)
            found.append((_at(inside), patch))
            seen = kept[_at(read)][rows]
            both = [_overlap(span, other) for span, other in zip(inside, read, strict=True)]
            seen[_from(read, both)] = patch[_from(inside, both)]
            patch, window = stage(seen), out
        found.append((_at(window), patch))
        features = self.maps[-1][rows]
        features[_at(window)] = patch
        return self.head(features), found

    def accept(self, rows: Tensor, found: Changes, better: Tensor) -> None:
        """Keep those of the last `logits(rows, ...)` where `better` (R,) bool."""
        _accept(self.maps, rows, found, better)


def _accept(maps: Sequence[Tensor], rows: Tensor, found: Changes, better: Tensor) -> None:
    won = rows[better]
    for kept, (where, patch) in zip(maps, found, strict=True):
        kept[where][won] = patch[better]  # a view, then an assignment by index: the map itself changes


class _Stage:
    """Convolution, at most one max pool, pointwise layers: one window operation with a kernel, a stride and a
    padding."""

    def __init__(self, layers: Sequence[nn.Module]):
        conv, pools = layers[0], [part for part in layers if isinstance(part, nn.MaxPool2d)]
        pool, stride = (pools[0].kernel_size, pools[0].stride) if pools else (1, 1)
        # `_on_maps` lets no others through
        assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
        assert isinstance(pool, int) and isinstance(stride, int)
        self.layers, self.conv, self.stride = layers, conv, stride
        self.kernel, self.padding = conv.kernel_size[0] + pool - 1, conv.padding[0]

    def out(self, changed: Span, size: int) -> Span:
        """Outputs o of `size` that read [stride o, stride o + kernel) of padded inputs where those at
        `changed` differ."""
        first = -((self.kernel - 1 - changed[0]) // self.stride)  # ceil((changed[0] - kernel + 1) / stride)
        first = min(max(first, 0), size - 1)  # a border that no output reads: an output that stays as it is
        return first, max(min((changed[1] - 1) // self.stride + 1, size), first + 1)

    def read(self, out: Span) -> Span:
        """Padded inputs behind the outputs [out)."""
        return out[0] * self.stride, (out[1] - 1) * self.stride + self.kernel

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs of padded inputs."""
        x = F.conv2d(x, self.conv.weight, self.conv.bias)
        for layer in self.layers[1:]:
            x = layer(x)
        return x


def _chain(net: nn.Module) -> list[nn.Module]:
    """The layers of a traced network in which each takes what the one before it gives, and no more; else
    none."""
    nodes = list(net.graph.nodes) if isinstance(net, fx.GraphModule) else []
    if (any(b.args != (a,) or b.kwargs for a, b in pairwise(nodes))
        or any(n.op != "call_module" for n in nodes[1:-1])):
        return []
    return [net.get_submodule(n.target) for n in nodes[1:-1]]


def _on_maps(part: nn.Module) -> bool:
    """Whether `Windowed` can follow a window through this layer."""
    if isinstance(part, nn.Conv2d):
        return (plain(part) and part.kernel_size[0] == part.kernel_size[1]
                and part.padding[0] == part.padding[1])
    if hooked(part):
        return False
    if isinstance(part, nn.MaxPool2d):
        simple = (part.padding, part.dilation, part.ceil_mode, part.return_indices) == (0, 1, False, False)
        return simple and isinstance(part.kernel_size, int) and isinstance(part.stride, int)
    if type(part) is nn.BatchNorm2d:
        return part.running_mean is not None and not part.training
    return type(part) in _POINTWISE


def _at(window: Sequence[Span]) -> Place:
    return (slice(None), slice(None), *(slice(a, b) for a, b in window))


def _overlap(one: Span, other: Span) -> Span:
    first = max(one[0], other[0])
    return first, max(first, min(one[1], other[1]))


def _from(origin: Sequence[Span], window: Sequence[Span]) -> Place:
    """`window` counted from the first index of `origin`."""
    return _at([(a - start, b - start) for (a, b), (start, _) in zip(window, origin, strict=True)])
