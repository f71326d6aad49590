"""The logits of some classes of a network: figures on ImageNet-R and -A are argmax over those alone."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pwoa_cli.networks.build import Normalized


class SomeClasses(nn.Module):
    """model(x)[:, classes] for x (B, C, H, W) in [0,1]: (B, k) logits.

    all_classes: of the model.
    """

    classes: Tensor

    def __init__(self, model: Normalized, classes: Sequence[int], *, all_classes: int):
        super().__init__()
        self.model, self.all_classes = model, all_classes
        self.register_buffer("classes", torch.tensor(classes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, self.classes]
