"""What the tests of attacks share: a generator, a linear model whose worst case is known, a trained one."""
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

# few steps and queries for the components of AutoAttack
SHORT = {"apgd-ce": {"steps": 10}, "apgd-t": {"steps": 5}, "aa-fast": {"steps": 5}, "fab-t": {"steps": 4},
         "square": {"queries": 40}}


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


@cache
def trained():
    """A ReLU net that separates ten noisy prototypes: (model, inputs, labels), robust for some of them."""
    torch.set_num_threads(1)
    draw = generator(3)
    prototypes = torch.rand(10, 1, 8, 8, generator=draw)
    labels = torch.arange(400) % 10
    inputs = (prototypes[labels] + 0.25 * torch.randn(400, 1, 8, 8, generator=draw)).clamp(0, 1)
    with torch.random.fork_rng(()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),
                              nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    return model.eval().requires_grad_(False), inputs, labels
