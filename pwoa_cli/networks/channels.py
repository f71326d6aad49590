"""Channels that go together: all layers that give or read them, found by Torch-Pruning's dependency graph
(Fang et al. 2023, sec. 3.2), and tried; networks without some of them."""
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.errors import is_out_of_memory
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import public_name, raised
from pwoa_cli.networks.sizes import axes, depthwise, set_sizes, shaped_tensors, sided

LOW = 0.01  # logits below it are rounded like those of this size
SAME = 1e-4  # of the largest logit: what rounding in float32 makes of a network whose sums are shorter
DRAWS = 4  # of the channels that are tried: of one draw a shifted sum may come out right


@dataclass(frozen=True)
class Side:
    """A layer that channels of a set leave (output) or enter. channels: (n,) the number in the set of each of
    its channels on that side, -1 for those of other sets."""

    module: str
    output: bool
    channels: tuple[int, ...]

    @property
    def inside(self) -> Tensor:
        """Which of the (n,) are of the set."""
        return torch.tensor(self.channels) >= 0


Sets = dict[str, tuple[Side, ...]]  # by the weight that gives the channels first
Gone = Mapping[str, Tensor]  # flags (G,) by set, True where a channel is removed


def found(model: nn.Module, x: Tensor, *, whole: bool = False) -> tuple[Sets, dict[str, str]]:
    """(sets of channels that can be removed, why others cannot), on images x (B, C, H, W); those of the
    logits are none of them.

    What the graph says is tried: without a half of its channels the network must answer as it does when they
    are zero, for the graph takes what it does not know for elementwise.
    Args: whole: one that cannot be removed is enough, the others are not tried.
    Raises: ValueError with a reason if the graph does not take the network.
    """
    sets, odd = _of_graph(model, x)
    if whole and odd or _same(model, sets, x) == "":
        return sets, odd
    why: dict[str, str] = {}
    for name, sides in sets.items():
        why[name] = _same(model, {name: sides}, x)
        if whole and why[name]:
            return {}, {name: why[name]}
    alone = {name: sides for name, sides in sets.items() if not why[name]}
    together = _same(model, alone, x)
    if together:
        raise ValueError(f"sets of channels depend on each other: {together}")
    return alone, odd | {name: reason for name, reason in why.items() if reason}


def coupled(model: nn.Module, sets: Sets) -> dict[str, dict[str, dict[int, tuple[int, ...]]]]:
    """{set: {parameter: {axis: the channel that each index is, -1 for none}}}."""
    names = {id(p): name for name, p in model.named_parameters()}
    result: dict[str, dict[str, dict[int, tuple[int, ...]]]] = {}
    for key, sides in sets.items():
        members = result.setdefault(key, {})
        for side, tensor, axis in _tensors(model, sides):
            if id(tensor) in names:
                members.setdefault(names[id(tensor)], {})[axis] = side.channels
    return result


def silent(model: nn.Module, sets: Sets) -> dict[str, Tensor]:
    """Flags (G,) by set, True where all that gives a channel is zero, or all that reads it; one stays."""
    return {name: _unheard(model, sides) for name, sides in sets.items()}


def without(model: nn.Module, sets: Sets, gone: Gone) -> nn.Module:
    """A copy in which these channels are physically removed."""
    slim = copy.deepcopy(model)
    keep: dict[tuple[str, bool], Tensor] = {}
    for name, sides in sets.items():
        for side in sides:
            flags = keep.setdefault((side.module, side.output),
                                    torch.ones(len(side.channels), dtype=torch.bool))
            flags[side.inside] &= ~gone[name].cpu()[torch.tensor(side.channels)[side.inside]]
    for (module, output), flags in keep.items():
        _cut(slim.get_submodule(module), output, flags)
    return slim


# --- the graph ---------------------------------------------------------------------------

def _of_graph(model: nn.Module, x: Tensor) -> tuple[Sets, dict[str, str]]:
    import torch_pruning  # a second to import, and nothing that loads a model needs it

    graph = torch_pruning.DependencyGraph()
    try:
        twin = copy.deepcopy(model).eval().requires_grad_(True)  # the graph is that of autograd
        heads = [twin.get_submodule(name) for name in layers.logit_layers(twin, x)]
        with torch.enable_grad(), warnings.catch_warnings(action="ignore"):
            graph.build_dependency(twin, x, forward_fn=lambda net, images: net(images), verbose=False)
            groups = list(graph.get_all_groups(ignored_layers=heads))
    except Exception as error:  # it raises many kinds, and so do networks that cannot be copied
        if is_out_of_memory(error):
            raise
        raise ValueError("Torch-Pruning's dependency graph does not take it "
                         f"({raised(error)[:120]})") from error
    names = {module: name for name, module in twin.named_modules()}
    order = list(names.values())
    sets: Sets = {}
    odd: dict[str, str] = {}
    for group in groups:
        first = min((names[item.dep.target.module] for item in group if graph.is_out_channel_pruning_fn(
            item.dep.handler) and isinstance(item.dep.target.module, layers.PRUNABLE)), key=order.index)
        try:
            sets[f"{first}.weight"] = tuple(_sides(group, graph, names))
        except ValueError as error:
            odd[f"{first}.weight"] = str(error)
    return {name: sets[name] for name in sorted(sets, key=lambda n: order.index(n[: -len(".weight")]))}, odd


def _sides(group: Any, graph: Any, names: Mapping[nn.Module, str]) -> Iterator[Side]:
    """The layers of a group of the graph. Raises: ValueError for one that cannot lose single channels."""
    sides: dict[tuple[str, bool], list[int]] = {}
    for item in group:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            raise ValueError(f"a parameter of shape {tuple(module.shape)}, of no layer, is tied to them")
        if module not in names:
            continue  # an operation of the graph
        name, why = names[module], _cannot(module)
        if why:
            raise ValueError(f"{public_name(name)} {why}")
        output = graph.is_out_channel_pruning_fn(item.dep.handler) or not sided(module)
        index = sides.setdefault((name, output), [-1] * _width(module, output))
        for here, channel in zip(item.idxs, item.root_idxs, strict=True):
            if not here < len(index):
                raise ValueError(f"{public_name(name)} has {len(index)} channels where another has more")
            index[here] = channel
    return (Side(name, output, tuple(index)) for (name, output), index in sides.items())


def _cannot(module: nn.Module) -> str:
    """Why single channels cannot be taken out of a layer; "" if they can."""
    if not isinstance(module, (*layers.PRUNABLE, *layers.NORMS, nn.PReLU)):
        what = "normalises over them" if isinstance(module, nn.LayerNorm | nn.GroupNorm) else "mixes them"
        return f"({type(module).__name__}) {what}"
    groups = 1 if depthwise(module) else getattr(module, "groups", 1)
    return f"has its filters in {groups} groups" if groups > 1 else ""


def _width(module: nn.Module, output: bool) -> int:
    return next(tensor.shape[axis] for tensor, axis in shaped_tensors(module, output))


# --- zero and gone -----------------------------------------------------------------------

def _tensors(model: nn.Module, sides: Sequence[Side]) -> Iterator[tuple[Side, Tensor, int]]:
    """(side, tensor, axis) of all weights, biases, scales and shifts along the channels of a set."""
    for side in sides:
        module = model.get_submodule(side.module)
        for name, axis in axes(module, side.output).items():
            tensor = getattr(module, name)
            if isinstance(tensor, nn.Parameter):
                yield side, tensor, axis


def _unheard(model: nn.Module, sides: Sequence[Side]) -> Tensor:
    count = 1 + max(max(side.channels) for side in sides)
    speaks, heard = (torch.zeros(count, dtype=torch.bool) for _ in range(2))
    for side, tensor, axis in _tensors(model, sides):
        if isinstance(model.get_submodule(side.module), nn.PReLU):
            continue  # it keeps zero
        flags = (tensor.detach().movedim(axis, 0).reshape(tensor.shape[axis], -1) != 0).any(1).cpu()
        channels = torch.tensor(side.channels)[side.inside]
        (speaks if side.output else heard)[channels] |= flags[side.inside]
    for side in sides:  # a norm without scale and shift gives what is not its mean
        if not list(model.get_submodule(side.module).parameters(recurse=False)):
            speaks[torch.tensor(side.channels)[side.inside]] = True
    if all(side.output for side in sides):
        heard[:] = True
    gone = ~(speaks & heard)
    gone[:1] &= not gone.all()
    return gone


def _cut(module: nn.Module, output: bool, keep: Tensor) -> None:
    for name, axis in axes(module, output).items():
        tensor = getattr(module, name)
        kept = tensor.detach().index_select(axis, keep.nonzero().flatten().to(tensor.device))
        setattr(module, name, nn.Parameter(kept, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter) else kept)
    set_sizes(module)


def _same(model: nn.Module, sets: Sets, x: Tensor) -> str:
    """Why a network without half of these channels does not answer as one in which they are zero; "" if it
    does."""
    draw = torch.Generator().manual_seed(0)
    return next(filter(None, (_same_without_half(model, sets, x, draw) for _ in range(DRAWS))), "")


def _same_without_half(model: nn.Module, sets: Sets, x: Tensor, draw: torch.Generator) -> str:
    gone = {}
    for name, sides in sets.items():
        count = 1 + max(max(side.channels) for side in sides)
        gone[name] = torch.zeros(count, dtype=torch.bool)
        gone[name][torch.randperm(count, generator=draw)[: count // 2]] = True
    masked = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, sides in sets.items():
            for side, tensor, axis in _tensors(masked, sides):
                index = torch.tensor(side.channels)
                lost = side.inside & gone[name][index.clamp_min(0)]
                tensor.index_fill_(axis, lost.nonzero().flatten().to(tensor.device), 0.0)
        want = masked(x)
        try:
            got = without(masked, sets, gone)(x)
        except Exception as error:  # of the network's own forward
            if is_out_of_memory(error):
                raise
            return f"the network does not run without some of them ({raised(error)[:120]})"
    if want.shape == got.shape and (got - want).abs().max() <= SAME * want.abs().max().clamp_min(LOW):
        return ""
    return "the network answers otherwise without them than where they are zero"
