"""What a network multiplies its images and features with: the factors of its products, found by running it.

A factor is an argument of a convolution, a matrix product or an elementwise product that is computed from
parameters alone, beside one that is computed from the images. Mostly it is a parameter itself; a layer that
standardises or binarises its weight, or adds another to it, multiplies something else, and zeros in the
parameter are none there.
"""
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

LAYERS = frozenset((  # called with (input, weight, ...)
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
PRODUCTS = LAYERS | frozenset((
    "bilinear", "convolution", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm",
    "addmv", "addbmm", "baddbmm", "dot", "inner", "outer", "einsum", "tensordot", "kron",
    "chain_matmul", "multi_dot", "mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__",
    "multi_head_attention_forward", "scaled_dot_product_attention"))
ADDED = ("bias", "attn_mask")  # arguments of products that are added
HALF = 0.5  # of the zeros must reach the products; layers that change their weight keep none or all


@dataclass(frozen=True)
class Factor:
    """One factor of a product. own: it is the parameter's own memory. sources: names of the parameters that
    it is computed from. nonzero: entries."""

    own: bool
    sources: frozenset[str]
    nonzero: int


def factors(model: nn.Module, x: Tensor) -> dict[str, list[Factor]]:
    """{parameter: factors of two or more dimensions that are computed from it} on images x (B, C, H, W), in
    eval mode; parameters in none are left out. The model stays as it is.

    The weight of a layer that is applied as it is has itself alone, whatever it is applied to and becomes:
    networks that compute positions from constants put them beside images later.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    images = x.clone().requires_grad_(True)
    with torch.enable_grad(), _Watch(images) as watch:
        twin(images * 1)  # networks may change their images in place, and no leaf lets them
    found: dict[str, list[Factor]] = {}
    names = {id(parameter): name for name, parameter in twin.named_parameters()}
    for name, parameter in twin.named_parameters():
        memory = _pointer(parameter)
        mine = [Factor(pointer == memory, frozenset(names[i] for i in sources if i in names), nonzero)
                for sources, pointer, nonzero in watch.factors
                if id(parameter) in sources or pointer == memory]
        if memory in watch.applied:
            mine = [Factor(True, frozenset({name}), int(parameter.count_nonzero()))]
        found |= {name: mine} if mine else {}
    return found


def astray(model: nn.Module, x: Tensor, masks: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights whose zeros do not reach the products, as what is multiplied is computed from them
    in a way that keeps no zeros. Zeros are tried in those that are not multiplied as they are: at once, but
    one by one where several make one factor.

    Args: x: (B, C, H, W). masks: by weight, False where a zero is tried.
    """
    before = factors(model, x)
    changed = [name for name in masks if not all(f.own for f in before.get(name, ()))]
    alone = [name for name in changed if all(len(f.sources & masks.keys()) == 1 for f in before[name])]
    found: list[str] = []
    for names in [alone, *([name] for name in changed if name not in alone)]:
        if names:
            found += _lost(model, x, {name: masks[name] for name in names}, before)
    return found


def _lost(model: nn.Module, x: Tensor, masks: Mapping[str, Tensor],
          before: Mapping[str, list[Factor]]) -> list[str]:
    twin, gone = copy.deepcopy(model), {}
    with torch.no_grad():
        for name, mask in masks.items():
            weight = twin.get_parameter(name)
            dense = int(weight.count_nonzero())
            weight.masked_fill_(~mask, 0.0)
            gone[name] = 1 - int(weight.count_nonzero()) / max(1, dense)
    after = factors(twin, x)
    return [name for name in masks if gone[name]
            and _nonzero(after[name]) > (1 - HALF * gone[name]) * _nonzero(before[name])]


def _nonzero(found: list[Factor]) -> int:
    return sum(factor.nonzero for factor in found if not factor.own)


class _Watch(TorchFunctionMode):
    """factors: (ids of the leaves that it is computed from, where its memory begins, nonzero entries).
    applied: where the memory begins of weights that layers are called with."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.images = images
        self.known: dict[Node, frozenset[int] | None] = {}
        self.factors: list[tuple[frozenset[int], int, int]] = []
        self.applied: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in LAYERS:
            self.applied.add(_pointer(kwargs["weight"] if "weight" in kwargs else args[1]))
        if name in PRODUCTS:
            named = [value for key, value in kwargs.items() if key not in ADDED]
            self._note([t for t in _tensors([*args, *named]) if t.is_floating_point()])
        return func(*args, **kwargs)

    def _note(self, tensors: list[Tensor]) -> None:
        sources = [self._sources(t) for t in tensors]
        if None not in sources:
            return  # of weights alone, or of constants
        for tensor, found in zip(tensors, sources, strict=True):
            if found is not None and tensor.ndim > 1 and tensor.layout is torch.strided:
                self.factors.append((found, _pointer(tensor), int(tensor.count_nonzero())))

    def _sources(self, tensor: Tensor) -> frozenset[int] | None:
        """Ids of the leaves that a tensor is computed from; None if the images are among them."""
        if tensor.grad_fn is None:
            return None if tensor is self.images else frozenset({id(tensor)})
        todo = [tensor.grad_fn]
        while todo:
            node = todo[-1]
            inside = [inner for inner, _ in node.next_functions if inner is not None]
            if missing := [inner for inner in inside if inner not in self.known]:
                todo += missing
                continue
            todo.pop()
            parts = [self.known[inner] for inner in inside]
            leaf = getattr(node, "variable", None)
            if leaf is self.images or None in parts:
                self.known[node] = None
            else:
                own = frozenset() if leaf is None else frozenset({id(leaf)})
                self.known[node] = own.union(*(part for part in parts if part is not None))
        return self.known[tensor.grad_fn]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
