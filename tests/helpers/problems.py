"""Small models with inputs and labels for evaluations, and an attack whose answers are known beforehand."""
import torch
from torch import nn


def linear(classes=2, seed=0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, 16, generator=torch.Generator().manual_seed(seed)))
        model[1].bias.zero_()
    return model


def batch(model, n, wrong=(), seed=0):
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = model(x).detach().argmax(1)
    y[list(wrong)] = (y[list(wrong)] + 1) % model[1].out_features
    return x, y


def right_on(n, classes=4, size=8, seed=0):
    """A network, and inputs on which it is right."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                                torch.nn.Linear(4 * (size - 2)**2, classes)).eval()
    x = torch.rand(n, 1, size, size)
    return model, x, model(x).detach().argmax(1)


class Breaks:
    """An attack that breaks those of `centred` whose first pixel is below `limit`, and notes who came."""

    def __init__(self, limit):
        self.limit, self.seen = limit, []

    def __call__(self, model, inputs, labels, **_):
        self.seen.append(len(inputs))
        model(inputs)
        # a linear model without bias changes its answer
        change = torch.where(inputs[:, :1, :1, :1] < self.limit, 1 - 2 * inputs, 0)
        return inputs + change


def centred(n=10):
    """z = (s, -s) with s the sum over x - 1/2: the mirror image of x has the other label."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 16))
        model[1].bias.copy_(torch.tensor([-8.0, 8.0]))
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    x[:, 0, 0, 0] = torch.arange(n) / n
    return model, x, model(x).detach().argmax(1)
