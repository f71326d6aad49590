"""The same network in fewer digits: a copy that multiplies in bfloat16, for searches whose finds are asked of
the model itself.

x inputs (B,C,H,W) in [0,1], z logits (B,K) float32. bfloat16 has 8 binary digits: pixels near 1 would lie
1/256 apart and logits near 8 would tie within 1/32. So the first layer reads x in float32 and the last one
computes z in float32; what lies between is rounded, and a loss of z moves with the smallest step.
"""
import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pwoa_cli.attacks.base import frozen
from pwoa_cli.attacks.bounded import Bounded
from pwoa_cli.attacks.quick import PROBES, REFUSALS, gradient, quick
from pwoa_cli.attacks.together import Asked
from pwoa_cli.machine.devices import multiplies_bf16
from pwoa_cli.machine.generators import own_draws

DTYPE = torch.bfloat16
ROUNDING = 2**-7  # of the largest logit: that an image's logits may differ by in another batch
# of the largest logit and of the gradient's norm: how far a copy may be off to be searched on; robust
# networks stay below 0.01 and 0.2
LOGITS, GRADIENTS = 0.05, 0.5
_ENDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYOUTS = (torch.channels_last, torch.contiguous_format)  # the first is what GPUs and CPUs multiply fastest


class Reduced(nn.Module):
    """A network whose products are in bfloat16, all but those of its first and last layer; float32 logits."""

    def __init__(self, net: nn.Module, layout: torch.memory_format):
        super().__init__()
        self.net, self.layout = net.to(memory_format=layout), layout

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,K)."""
        with torch.autocast(x.device.type, dtype=DTYPE):
            return self.net(x.contiguous(memory_format=self.layout)).float()


def reduced(model: nn.Module, inputs: Tensor) -> nn.Module | None:
    """A frozen copy of `model` that multiplies in bfloat16, channels-last where the network takes that.

    Args: model: any, also a `Normalized` or a `Bounded` one: then the copy has the same bound and meter.
    inputs: (B,C,H,W), the first PROBES are tried on both.
    Returns: None where the device has no instructions for bfloat16, where the network cannot be copied or
    not run so, and where the copy's logits or gradients are others: then float32 is what there is.
    """
    if isinstance(model, Asked):
        return model.copied("reduced", lambda whole: reduced(whole, inputs))
    if isinstance(model, Bounded):
        return model.copied("reduced", lambda whole: reduced(whole, inputs[:model.batch_size]))
    if not multiplies_bf16(inputs.device) or inputs.dim() != 4:
        return None
    with frozen(model), own_draws():
        return next(filter(None, (_copy(model, inputs[:PROBES], layout) for layout in _LAYOUTS)), None)


def _copy(model: nn.Module, x: Tensor, layout: torch.memory_format) -> nn.Module | None:
    """The copy in this layout; None where the network refuses it or answers otherwise."""
    try:
        # a copy of the copy: `quick` gives the model itself where it cannot trace it
        ready = Reduced(_with_exact_ends(copy.deepcopy(quick(model, x)), x), layout).eval()
        return ready if _alike(ready, model, x) else None
    except REFUSALS:  # `view` on a channels-last map, products that the device has in float32 only
        return None


def _alike(ready: nn.Module, model: nn.Module, x: Tensor) -> bool:
    """Whether the logits of images and the gradients on noise are the model's but for rounding."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    with torch.no_grad():
        ours, theirs = ready(x), model(x)
    near = ours.shape == theirs.shape and (ours - theirs).abs().max() <= LOGITS * theirs.abs().max()
    slopes = gradient(ready, noise), gradient(model, noise)
    return bool(near and (slopes[0] - slopes[1]).norm() <= GRADIENTS * slopes[1].norm())


# --- The ends in float32 ---------------------------------------------------------------


class _Exact(nn.Module):
    """A layer that computes in float32 where others do not; dtype: what it gives."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.layer, self.dtype = layer, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float()).to(self.dtype)


def _with_exact_ends(net: nn.Module, x: Tensor) -> nn.Module:
    """The network with its first layer (float32 in, bfloat16 out) and its last one (float32 out) exact."""
    names = {module: name for name, module in net.named_modules()}
    order: list[nn.Module] = []
    with torch.no_grad(), _noting(net, order):
        net(x[:1])
    for layer, dtype in {order[0]: DTYPE, order[-1]: torch.float32}.items() if order else ():
        if names[layer]:  # "" is the network itself
            net.set_submodule(names[layer], _Exact(layer, dtype))
    return net


@contextmanager
def _noting(net: nn.Module, order: list[nn.Module]) -> Iterator[None]:
    """Inside, layers that multiply are noted in the order of their calls."""
    hooks = [part.register_forward_pre_hook(lambda layer, _: order.append(layer))
             for part in net.modules() if isinstance(part, _ENDS)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
