"""Where faults are planted for the checks of an evaluation, and the one finding that each must give."""
import torch
from torch import nn

from helpers.small_models import images


class Around(nn.Module):
    """A network inside a function (net, x) -> logits: where faults are planted."""

    def __init__(self, net, answer):
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x):
        return self.answer(self.net, x)


def samples(channels=1):
    """64 images (64,C,8,8) that a small model has not learnt from, and their labels."""
    x, y = images(64, channels=channels, seed=1)
    return torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.tensor(y)


def only(found, check, *, unreliable):
    """The text of the one finding."""
    assert [(f.check, f.unreliable) for f in found] == [(check, unreliable)]
    assert "\n" not in found[0].text and found[0].text.endswith(".")
    return found[0].text
