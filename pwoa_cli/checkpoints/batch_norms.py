"""What the batch norms of a network remember of the images that it was trained on, against images of now.

The misfit of a batch norm is the mean over its channels of KL(batch || stored), both Gaussian: what the
images give it, and its running mean and variance.
"""
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pwoa_cli.machine.seeds import generator

PAD = 8  # a crop moves by up to an eighth of the side: 4 pixels of 32, as nearly all training code does
LEAST = 1e-12  # a dead channel has no variance


class Statistics:
    """Inside the block, sums over what every batch norm of a model gets; then how badly that fits what it has
    stored.

    Networks trained with a known normalisation on natural or FGSM images have about 0.0005 under the right
    one and many times that under others (examples/benchmarks/normalisations.py), where accuracy tells three
    of six not apart.
    """

    def __init__(self, model: nn.Module):
        self.norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
        self.sums: dict[_BatchNorm, Tensor] = {}

    def __enter__(self) -> "Statistics":
        self.handles = [norm.register_forward_pre_hook(self._add) for norm in self.norms]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _add(self, norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        z = args[0].double().movedim(1, 0).flatten(1)
        new = torch.stack([torch.full_like(z[:, 0], z.shape[1]), z.sum(1), (z * z).sum(1)])
        self.sums[norm] = self.sums[norm] + new if norm in self.sums else new

    def misfit(self) -> float | None:
        """The mean over the batch norms that ran; None if none did."""
        values = []
        for norm, (count, total, squares) in self.sums.items():
            assert norm.running_mean is not None and norm.running_var is not None  # as for all of self.norms
            mean = total / count
            variance = (squares / count - mean ** 2).clamp_min(LEAST)
            stored = norm.running_var.double().clamp_min(LEAST)
            kl = (stored / variance).log() + (variance + (mean - norm.running_mean) ** 2) / stored - 1
            values.append(0.5 * kl.mean().item())
        return sum(values) / len(values) if values else None


class _Reached(Exception):
    """The first batch norm has what it gets."""


class _First(Statistics):
    """`Statistics` of the batch norm that runs first; what comes after it is not computed."""

    def _add(self, norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        super()._add(norm, args)
        raise _Reached


@torch.no_grad()
def first_misfit(model: nn.Module, images: Iterable[Tensor]) -> float | None:
    """The misfit of the first batch norm, to images as they are or to random crops of images padded with
    black, whichever fits better; None without batch norms.

    Only convolutions and the normalisation of inputs stand before it, so neither activation functions nor
    adversarial training blur what it remembers: a robust ResNet-18 has 0.0001 on crops under its own
    normalisation and 0.018 under ImageNet's, where the mean over all layers and images as they are says 0.024
    and 0.039. Args: images: (B, C, H, W) in [0,1].
    """
    plain, cropped, draw = _First(model), _First(model), generator(0, "crops")
    if not plain.norms:  # else a whole pass would be made to find none
        return None
    for x in images:
        for statistics, seen in ((plain, x), (cropped, crops(x, draw))):
            try:
                with statistics:
                    model(seen)
            except _Reached:
                continue
            return None
    found = [misfit for misfit in (plain.misfit(), cropped.misfit()) if misfit is not None]
    return min(found, default=None)


def crops(x: Tensor, draw: torch.Generator) -> Tensor:
    """Each image of x (B, C, H, W) moved by up to H / PAD and W / PAD pixels, black where it leaves."""
    height, width = (side // PAD for side in x.shape[2:])
    padded = F.pad(x, (width, width, height, height))
    moved = [(int(torch.randint(2 * height + 1, (), generator=draw)),
              int(torch.randint(2 * width + 1, (), generator=draw))) for _ in x]
    return torch.stack([image[:, i:i + x.shape[2], j:j + x.shape[3]]
                        for image, (i, j) in zip(padded, moved, strict=True)])
