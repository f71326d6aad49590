"""The same network, sooner: a frozen copy for attacks on a CPU.

x inputs (B,C,H,W) in [0,1], z logits (B,K). Attacks search on the copy; who is broken is decided on the model
itself.
"""
import copy
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pwoa_cli.attacks.base import frozen
from pwoa_cli.attacks.bounded import Bounded
from pwoa_cli.machine.generators import drawn_since, own_draws
from pwoa_cli.networks.build import Normalized

PROBES = 8  # images on which the copy is compared with the model
TOLERANCE = 1e-4  # of the largest logit: another order of summation in float32 stays below 1e-5
# of its norm: rounding may flip a ReLU near 0; a gradient that was hidden differs by its whole norm
GRADIENT_TOLERANCE = 1e-2
REFUSALS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError,
            NameError,
            copy.Error)  # of the user's own code, run on stand-ins for tensors; TraceError is a ValueError
# images: oneDNN's gradient for so few input channels is 5 to 7 times slower than `_InputGradient`
FEW_CHANNELS = 4


# --- The copy ---------------------------------------------------------------


def quick(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A frozen copy of `model` in eval mode with equal logits and input gradients up to rounding, laid out
    for a CPU.

    Filters are channels-last: torch's max pool reads NCHW a pixel at a time and took half of the forward pass
    of a LeNet5. Max pools come before the ReLU they follow: both are monotone, max(relu(z)) = relu(max(z)),
    and a 2x2 pool leaves a quarter of the work. The first convolution has `_InputGradient`.

    Args: model: any, also a `Normalized` or a `Bounded` one. inputs: (B,C,H,W), the first PROBES are tried on
    both.
    Returns: the copy; the model itself on another device, or where its answers vary from call to call
    (`steady`), where torch.fx cannot trace it, or where the copy answers differently.
    """
    if isinstance(model, Bounded):
        return model.copied("quick", lambda whole: quick(whole, inputs[:model.batch_size])) or model
    inputs = inputs[:PROBES]
    if inputs.device.type != "cpu":
        return model
    with frozen(model), own_draws():
        ready = _copy(model) if steady(model, inputs) else None
        return ready if ready is not None and _agree(ready, model, inputs) else model


def steady(model: nn.Module, inputs: Tensor, *, rounding: float = TOLERANCE) -> bool:
    """Whether the logits of an image are the same in every call and beside any others (up to `rounding` of
    the largest), and no random number is drawn."""
    with torch.no_grad(), own_draws() as before:
        once, again, alone = model(inputs), model(inputs), model(inputs[:1])
        drawn = drawn_since(before)
    return not drawn and torch.equal(once, again) and _close(alone, once[:1], rounding)


def _copy(model: nn.Module) -> nn.Module | None:
    """The copy of a frozen model, not yet compared; None where it cannot be made."""
    try:
        ready = copy.deepcopy(model)
        if isinstance(ready, Normalized):  # its own forward looks at values, which a trace cannot follow
            ready.net = _traced(ready.net)
            return ready
        return _traced(ready)
    except REFUSALS:
        return None


def _traced(net: nn.Module) -> nn.Module:
    """Graph of the network with pools first, channels-last filters and `_FirstConv` where few channels come
    in."""
    ready = _pools_first(fx.symbolic_trace(net))
    for name, module in list(ready.named_modules()):
        if plain(module) and module.in_channels <= FEW_CHANNELS:
            ready.set_submodule(name, _FirstConv(module))
    return ready.to(memory_format=torch.channels_last).eval()  # modules made here are born in training mode


def _pools_first(traced: fx.GraphModule) -> fx.GraphModule:
    """Swap every (ReLU, max pool) pair whose ReLU feeds nothing else; `view` becomes `reshape`, as strides
    change."""
    parts = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"
        if (node.op != "call_module" or not isinstance(parts[node.target], nn.MaxPool2d)
            or parts[node.target].return_indices):
            continue
        relu = node.args[0]
        if relu.op == "call_module" and isinstance(parts[relu.target], nn.ReLU) and len(relu.users) == 1:
            source = relu.args[0]
            node.replace_all_uses_with(relu)
            node.replace_input_with(relu, source)
            relu.replace_input_with(source, node)
            node.append(relu)  # moves the ReLU behind the pool
    traced.recompile()
    return traced


def _agree(ready: nn.Module, model: nn.Module, inputs: Tensor) -> bool:
    """Equal logits for the batch and for one image, and equal gradients on noise (images have ties in their
    max pools)."""
    noise = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0), dtype=inputs.dtype)
    try:
        with torch.no_grad():
            if not all(_close(ready(x), model(x)) for x in (inputs, inputs[:1], noise)):
                return False
        ours, theirs = gradient(ready, noise), gradient(model, noise)
    except REFUSALS:  # a shape that the trace froze, or no gradient at all
        return False
    return bool((ours - theirs).norm() <= GRADIENT_TOLERANCE * theirs.norm())


def _close(one: Tensor, other: Tensor, rounding: float = TOLERANCE) -> bool:
    """Equal up to rounding; never where a value is NaN."""
    return one.shape == other.shape and bool((one - other).abs().max() <= rounding * other.abs().max())


@torch.enable_grad()
def gradient(model: nn.Module, x: Tensor) -> Tensor:
    """Gradient of z_0 - z_last, summed over the batch, for x."""
    x = x.clone().requires_grad_()
    logits = model(x)
    return torch.autograd.grad((logits[:, 0] - logits[:, -1]).sum(), x)[0]


# --- A cheap gradient for images ---------------------------------------------------------------


def plain(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    """A convolution of its own class with stride 1, no dilation, no groups, zero padding in numbers, and no
    hooks."""
    return (isinstance(part, nn.Conv2d) and type(part) in (nn.Conv2d, _FirstConv) and part.stride == (1, 1)
            and part.dilation == (1, 1) and part.groups == 1
            and part.padding_mode == "zeros" and not isinstance(part.padding, str)
            and "weight" in part._parameters and not hooked(part))


def hooked(part: nn.Module) -> bool:
    """Whether forward or backward hooks hang on the module: they must see every call as it is."""
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
                or part._backward_pre_hooks)


class _InputGradient(torch.autograd.Function):
    """conv2d with stride 1 whose gradient for x is one matrix product and one shifted sum for each of the k x
    k taps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        """The convolution itself."""
        ctx.save_for_backward(weight)
        ctx.padding, ctx.shape = padding, x.shape
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """dL/dx[c, i + a - p, j + b - p] += sum_o w[o, c, a, b] dL/dz[o, i, j]."""
        (weight,), (up, left), (batch, channels, height, width) = ctx.saved_tensors, ctx.padding, ctx.shape
        gradient = gradient.to(weight.dtype)  # bfloat16 in a `reduced` copy
        filters, _, tall, wide = weight.shape
        rows, columns = gradient.shape[2:]
        taps = weight.reshape(filters, -1).t() @ gradient.permute(0, 2, 3, 1).reshape(-1, filters).t()
        taps = taps.view(channels, tall, wide, batch, rows, columns)
        total = gradient.new_zeros(channels, batch, height + 2 * up, width + 2 * left)
        for a in range(tall):
            for b in range(wide):
                total[:, :, a:a + rows, b:b + columns] += taps[:, a, b]
        return total[:, :, up:up + height, left:left + width].transpose(0, 1), None, None, None


class _FirstConv(nn.Conv2d):
    """A `plain` convolution with frozen weights, for images."""

    def __init__(self, conv: nn.Conv2d):
        assert not isinstance(conv.padding, str)  # plain
        (tall, wide), (up, left) = conv.kernel_size, conv.padding
        super().__init__(conv.in_channels, conv.out_channels, (tall, wide), padding=(up, left),
                         device="meta", bias=conv.bias is not None)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return _InputGradient.apply(x, self.weight, self.bias, self.padding)
