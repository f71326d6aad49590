"""Sizes of layers: which of a layer's tensors have a place for each channel, and layers of the sizes that
their tensors have."""
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from pwoa_cli.networks.layers import NORMS, PRUNABLE

SIZED = (*PRUNABLE, *NORMS, nn.PReLU)


def depthwise(module: nn.Module) -> bool:
    """Whether each filter of a convolution reads one channel, its own."""
    return (isinstance(module, nn.modules.conv._ConvNd)
            and module.groups == module.in_channels == module.out_channels > 1)


def sided(module: nn.Module) -> bool:
    """Whether a layer has other channels on its input side than on its output side."""
    return isinstance(module, PRUNABLE) and not depthwise(module)


def axes(module: nn.Module, output: bool) -> dict[str, int]:
    """{tensor of a layer, by its name there: the axis along which the channels of a side lie}."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and sided(module):
        found = {"weight": 1, "bias": 0} if output else {"weight": 0}
    elif isinstance(module, PRUNABLE):
        found = {"weight": 0, "bias": 0} if output else {"weight": 1}
    else:
        found = {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0}
    return {name: axis for name, axis in found.items() if isinstance(getattr(module, name, None), Tensor)}


def shaped_tensors(module: nn.Module, output: bool) -> Iterator[tuple[Tensor, int]]:
    """The tensors of `axes`."""
    return ((getattr(module, name), axis) for name, axis in axes(module, output).items())


def set_sizes(module: nn.Module) -> None:
    """Make what a layer says of its sizes true of its tensors; kernels stay."""
    sizes = [tensor.shape[axis] for side in (True, False) for tensor, axis in shaped_tensors(module, side)]
    if not sizes:
        return
    if isinstance(module, nn.modules.conv._ConvNd):
        one = depthwise(module)
        module.out_channels, module.in_channels = sizes[0], sizes[0] if one else sizes[-1] * module.groups
        module.groups = sizes[0] if one else module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = sizes[0], sizes[-1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = sizes[0]
    elif isinstance(module, NORMS):
        module.num_features = sizes[0]


def resize(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every layer the sizes that its tensors have in a state dict, where they are its own or smaller
    ones; other shapes stay, for load_state_dict to refuse. Values are left open."""
    for prefix, module in net.named_modules():
        if not isinstance(module, SIZED):
            continue
        for name in dict.fromkeys([*axes(module, True), *axes(module, False)]):
            own, given = getattr(module, name), state.get(f"{prefix}.{name}".lstrip("."))
            if given is not None and _smaller(given, own):
                empty = torch.empty(given.shape, dtype=own.dtype, device=own.device)
                setattr(module, name, nn.Parameter(empty, own.requires_grad)
                        if isinstance(own, nn.Parameter) else empty)
        set_sizes(module)


def uneven(net: nn.Module) -> list[str]:
    """Names of layers whose tensors have different numbers of channels on one side."""
    return [prefix for prefix, module in net.named_modules() if isinstance(module, SIZED)
            and len({tensor.shape[axis] for tensor, axis in shaped_tensors(module, True)}) > 1]


def _smaller(given: Tensor, own: Tensor) -> bool:
    """Whether it has the same kernel and no more channels, but one at least."""
    return (given.ndim == own.ndim and given.shape[2:] == own.shape[2:]
            and all(0 < a <= b for a, b in zip(given.shape, own.shape, strict=True)))
