"""Networks as users write them, and one with faults of which a copy would hide each; images for them."""
import threading

import torch
from torch import nn
from torch.nn import functional as F

# a file for --arch: the LeNet of small_models.py, whose inputs get no gradient
NO_GRADIENT = """
import torch
from helpers import small_models
def blind():
    net = small_models.lenet()
    net.forward = torch.no_grad()(net.forward)
    return net
"""


def images(n, channels, side, dtype=torch.float64):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


class Viewed(nn.Module):
    """As users write them: functions, `view`, a sum of branches."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = (nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1),
                                         nn.Linear(4 * 5 * 5, 5))

    def forward(self, x):
        x = F.relu(self.one(x))
        return self.head(F.max_pool2d(x + self.two(x), 2).view(x.size(0), -1))


class Several(Viewed):
    def forward(self, x):
        logits = super().forward(x)
        return logits[:, :2], logits


def with_statistics(net):
    """Batch norms that do something."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return net


def pooled():
    return with_statistics(nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(8 * 4 * 4, 5)))


class Plant(nn.Module):
    """A linear model of 8x8 images with one fault that a copy must not hide."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.calls, self.linear = fault, 0, nn.Linear(64, 4)
        if fault == "cannot be copied":
            self.lock = threading.Lock()

    def forward(self, x):
        flat = x.reshape(-1, 64)
        if self.fault == "other for a trace" and isinstance(x, torch.Tensor):
            flat = flat * 1.01
        if self.fault == "branch on values" and x.sum() > 0:
            flat = flat * 2
        if self.fault == "hidden gradient":
            with torch.no_grad():
                flat = flat * 2
            flat = flat + x.reshape(-1, 64) / 10
        if self.fault == "noise":
            flat = flat + 1e-7 * torch.rand(flat.shape)
        if self.fault == "batch":
            flat = flat - flat.mean(0)
        if self.fault == "no gradient":
            flat = flat.detach()
        if self.fault == "calls":
            self.calls += 1
            flat = flat * self.calls
        if self.fault == "nan":
            flat = flat / 0
        return self.linear(flat)


# --- Networks whose gradients lie ---------------------------------------------------------------


class Backward(torch.autograd.Function):
    """forward(x), and backward(gradient) for its derivative."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward_of = backward
        return forward(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.backward_of(gradient), None, None


def rounded(levels, scale=1.0):
    """A network on inputs of so many levels, its gradient handed straight through, times scale."""
    return lambda net, x: net(Backward.apply(x, lambda x: (x * levels).round() / levels, lambda g: scale * g))


def _noise(gradient):
    return gradient.abs().mean() * torch.randn(gradient.shape)


def _last_rows(net, x, seen):
    """Gradient through the last rows alone."""
    return net(torch.cat([x[:, :, :-seen].detach(), x[:, :, -seen:]], 2))


# (net, x) -> logits, and the check that must fire
PLANTED = {
    "saturating preprocessing": (lambda net, x: net(x.clamp(0.4, 0.6)), "blind-pixels"),
    "gradient through a part": (lambda net, x: _last_rows(net, x, 2), "blind-pixels"),
    "reversed gradient": (lambda net, x: 2 * net(x).detach() - net(x), "wrong-gradients"),
    "noise": (lambda net, x: net(Backward.apply(x, torch.clone, _noise)), "wrong-gradients"),
    "straight through at a tenth": (rounded(31, 0.1), "wrong-gradients"),
    "straight through at ten times": (rounded(31, 10), "wrong-gradients"),
    "other logits with gradients": (
        lambda net, x: net(x.roll(1, 3)) if torch.is_grad_enabled() else net(x), "other-with-gradients"),
    "rounding without derivative": (lambda net, x: net((x * 31).round() / 31), "zero-gradients"),
}
HONEST = {
    "as it is": lambda net, x: net(x),
    "temperature": lambda net, x: net(x) / 50,
    "straight through": rounded(31),
    "coarse straight through": rounded(15),
    "clamp to the box": lambda net, x: net(x.clamp(0, 1)),
    "unread border": lambda net, x: net(F.pad(x[:, :, 2:-2, 2:-2], (2,) * 4)),
    "every other pixel": lambda net, x: net(F.interpolate(x[:, :, ::2, ::2], scale_factor=2)),
    "bfloat16 inside": lambda net, x: net(x.bfloat16().float()).bfloat16().float(),
    "autocast": lambda net, x: _autocast(net, x),
}


def _autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net(x).float()
