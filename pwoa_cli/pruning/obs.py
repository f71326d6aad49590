"""Layerwise reconstruction: which weights a layer can spare on its own inputs, and what the others become
without them.

    minimise |X W^T - X V^T|^2 over V with a fixed number of zeros, layer by layer
    saliency of a weight     w_i^2 / [H^-1]_ii with H = X^T X / n + damping (Hassibi & Stork 1993)
    the others, mask fixed   v_M = H_MM^-1 (H w)_M for each row: least squares, exactly

Frantar & Alistarh 2023, sec. 3.1.

X (n, d) inputs of the layer, one row for each output position; W (out, d) its weight, V the pruned one; M
kept columns of a row. Where a bias or a batch norm takes the outputs' mean up anyway, X is centred first, and
a bias is corrected for it. The zeros come in ROUNDS steps of equal density ratio, as saliencies change when
correlated inputs have gone; early steps of large layers, where rows share no inverse and each costs |M|^3,
are left out.
"""
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.pruning.groups import smallest

Layer = nn.Conv2d | nn.Linear
ROUNDS = 4
CUBES = 5e10  # rows x |M|^3 above which a step but the last is left out: seconds on one CPU core
ENTRIES = 5e7  # of the moments of layers that are measured in one go
DAMPING = 0.01  # of H's mean diagonal, as in SparseGPT: inputs that are always zero would make H singular


def supported(module: nn.Module) -> TypeGuard[Layer]:
    """Whether the layer's outputs are products of input patches with its weight: the forward of nn.Linear, or
    that of nn.Conv2d with zero padding, and not a subclass's own."""
    forward = getattr(module.forward, "__func__", None)
    if isinstance(module, nn.Conv2d) and forward is nn.Conv2d.forward:
        return module.padding_mode == "zeros" and type(module)._conv_forward is nn.Conv2d._conv_forward
    return isinstance(module, nn.Linear) and forward is nn.Linear.forward


def reconstructed(model: nn.Module, zeros: Mapping[str, int], batches: Iterable[Tensor], *,
                  normed: Set[str]) -> dict[str, Tensor]:
    """New weights, and biases that go with them, of the supported layers: {parameter name: tensor}; the model
    stays as it is. Layers that the model does not call (nn.MultiheadAttention reads the weight of its
    out_proj) are left out too.

    Args: model: in eval mode. zeros: wanted by weight name. batches: inputs (B, C, H, W). normed: names of
        weights whose outputs' mean a batch norm in training takes off.
    """
    modules = dict(model.named_modules())
    layers = {name: layer for name in zeros if supported(layer := modules[name.rpartition(".")[0]])}
    found: dict[str, Tensor] = {}
    for names in _portions(layers):
        moments = input_moments(model, {name: layers[name] for name in names}, batches)
        for name in [name for name in names if name in moments]:
            mean, second = moments.pop(name)
            bias = layers[name].bias
            centred = (second - mean[:, :, None] * mean[:, None] if bias is not None or name in normed
                       else second)
            found[name] = prune(layers[name].weight, centred, zeros[name])
            if bias is not None:
                lost = (layers[name].weight.detach() - found[name]).cpu().double()
                lost = lost.reshape(len(mean), -1, mean.shape[1])
                shift = (lost @ mean[:, :, None]).flatten().to(bias.dtype)
                found[name.removesuffix("weight") + "bias"] = bias.detach() + shift.to(bias.device)
    return found


def _portions(layers: Mapping[str, Layer]) -> Iterator[list[str]]:
    """Names of layers whose moments fit into memory together."""
    names: list[str] = []
    entries = 0
    for name, layer in layers.items():
        more = layer.weight[0].numel() ** 2 * getattr(layer, "groups", 1)
        if names and entries + more > ENTRIES:
            yield names
            names, entries = [], 0
        names, entries = [*names, name], entries + more
    if names:
        yield names


def input_moments(model: nn.Module, layers: Mapping[str, Layer],
                  batches: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean (groups, d) and X^T X / n (groups, d, d) of the inputs of each supported layer that `model` calls:
    float64 on the CPU.

    Args: model: in eval mode. batches: (B, C, H, W), at least one.
    """
    nothing = torch.zeros((), dtype=torch.double)
    sums = {name: (nothing, nothing, 0) for name in layers}
    # products are summed around the first batch's mean: far from 0 float32 would round a small variance away
    around: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        patches, (first, second, count) = patches_of(layers[name], x), sums[name]
        patches = patches - around.setdefault(name, patches.mean(1, keepdim=True))
        sums[name] = (first + patches.sum(1).cpu().double(), second + (patches.mT @ patches).cpu().double(),
                      count + patches.shape[1])  # to the CPU first: some devices have no float64

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, args, named: add(name, args[0] if args else named["input"])

    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True)
               for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for x in batches:
                model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _moved(first / count, second / count, around[name][:, 0].cpu().double())
            for name, (first, second, count) in sums.items() if count}


def _moved(mean: Tensor, second: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Moments (groups, d) and (groups, d, d) of x + c from those of x: E xx' + m c' + c m' + c c', c = by."""
    cross = mean[:, :, None] * by[:, None]
    return mean + by, second + cross + cross.mT + by[:, :, None] * by[:, None]


def patches_of(layer: Layer, x: Tensor) -> Tensor:
    """Inputs of every output position, (groups, n, d)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    padding: int | str | tuple[int, ...] = layer.padding
    # "same" pads what the kernel reaches over, one more on the right if that is odd
    if isinstance(padding, str):
        reach = [d * (k - 1) * (padding == "same")
                 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        x, padding = F.pad(x, (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2,
                               reach[0] - reach[0] // 2)), 0
    columns = F.unfold(x, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride)
    return columns.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def prune(weight: Tensor, moments: Tensor, zeros: int) -> Tensor:
    """The weight (out, ...) with exactly `zeros` zeros and the others as reconstruction wants them, on the
    weight's device.

    Args: moments: (groups, d, d) positive semidefinite; zeros: fewer than the weight has entries.
    """
    groups = len(moments)
    rows = weight.detach().cpu().double().reshape(groups, -1, moments.shape[-1])
    damping = DAMPING * moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    moments = moments + damping[:, None, None] * torch.eye(moments.shape[-1], dtype=torch.double)
    keep, pruned = torch.ones_like(rows, dtype=torch.bool), rows
    density = 1 - zeros / weight.numel()
    for turn in range(1, ROUNDS + 1):
        wanted = zeros if turn == ROUNDS else round((1 - density ** (turn / ROUNDS)) * weight.numel())
        left = (weight.numel() - wanted) / rows[..., 0].numel()  # kept in a row, on average
        if turn < ROUNDS and rows[..., 0].numel() * left**3 > CUBES:
            continue
        saliency = torch.stack([saliency_of(v, h, m) for v, h, m in zip(pruned, moments, keep, strict=True)])
        keep = keep & ~smallest(saliency.flatten(), wanted).view_as(keep)
        pruned = torch.stack([reconstruct(w, h, m) for w, h, m in zip(rows, moments, keep, strict=True)])
    return pruned.reshape(weight.shape).to(weight.dtype).to(weight.device)


def saliency_of(rows: Tensor, moments: Tensor, keep: Tensor) -> Tensor:
    """w_i^2 / [H_MM^-1]_ii of the kept weights, below them all (-1) for those that have gone: (out, d)."""
    found = torch.full_like(rows, -1.0)
    shared = _inverse(moments) if keep.all() else None
    for row, kept, out in zip(rows, keep, found, strict=True):
        index = kept.nonzero().flatten()
        if len(index):
            inverse = _inverse(moments[index[:, None], index]) if shared is None else shared
            out[index] = row[index].square() / inverse.diagonal()
    return found


def _inverse(positive: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(positive))


def reconstruct(rows: Tensor, moments: Tensor, keep: Tensor) -> Tensor:
    """argmin over V, zero outside the mask, of (v - w)^T H (v - w) for every row: (out, d) float64.

    Args: rows: (out, d) dense weights w. moments: H (d, d) positive definite. keep: (out, d) bool.
    """
    wanted = rows @ moments  # H is symmetric
    result = torch.zeros_like(rows)
    for out, target, kept in zip(result, wanted, keep, strict=True):
        index = kept.nonzero().flatten()
        if len(index):
            factor = torch.linalg.cholesky(moments[index[:, None], index])
            out[index] = torch.cholesky_solve(target[index, None], factor).flatten()
    return result
