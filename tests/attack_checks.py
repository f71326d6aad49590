"""What the tests of attacks share: a seeded generator, a linear model whose worst case is known, images for it."""
import torch
from torch import nn


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(classes=2, seed=0, scale=1.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, 16, generator=generator(seed)) * scale)
        model[1].bias.copy_(-0.5 * model[1].weight.sum(1))  # the grey image lies on the boundary
    return model.requires_grad_(False)


def samples(n, seed=0, low=0.3, high=0.7):
    return low + (high - low) * torch.rand(n, 1, 4, 4, generator=generator(seed))
