"""A world for tests of whole commands: 8x8 images in 4 classes, and networks that learn them in a second."""
from functools import cache

import numpy as np
import torch
from torch import nn

from pwoa_cli.networks.families.resnet import CifarResNet
from pwoa_cli.networks.families.small import LeNet

CLASSES = 4


def images(n, *, channels=1, classes=CLASSES, seed=0):
    """(n, 8, 8, channels) uint8: a bright quadrant on noise, and its class (n,)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    pixels = generator.integers(0, 90, (n, 8, 8, channels))
    for image, label in zip(pixels, labels, strict=True):
        row, column = 4 * (label // 2 % 2), 4 * (label % 2)
        image[row:row + 4, column:column + 4] += 120
    return pixels.astype(np.uint8), labels


def write_npz(path, *, n=256, **options):
    """A data set file; returns its path as text."""
    x_train, y_train = images(n, **options)
    x_test, y_test = images(n // 4, **options | {"seed": 1})
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return str(path)


def lenet(*, num_classes=CLASSES, **options):
    """A LeNet for 8x8 images: 36 + 288 + 512 + 64 weights; the same whatever ran before."""
    torch.manual_seed(0)
    return LeNet(**{"size": 8, "widths": (4, 8), "hidden": 16, "num_classes": num_classes} | options)


def resnet(*, num_classes=CLASSES):
    """A residual network with batch norms for 8x8 images in colour; the same whatever ran before."""
    torch.manual_seed(0)
    return CifarResNet(blocks=(1, 1, 1), widths=(4, 8, 8), shortcut="conv", num_classes=num_classes)


def learn(model: nn.Module, *, channels=1, classes=CLASSES, seed=0, steps=40, l1=0.0) -> nn.Module:
    """Train for a second or two; l1: weight of sum |w|, so that few weights matter. Returns the model in eval
    mode."""
    x, y = images(256, channels=channels, classes=classes)
    x, y = torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.tensor(y)
    torch.manual_seed(seed)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.kaiming_normal_(p)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(x), y).backward()
        if l1:
            (l1 * sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)).backward()
        optimizer.step()
    return model.eval()


@cache
def sparse_lenet() -> nn.Module:
    """A LeNet that is right with a tenth of its weights: pruned to 90% in two steps it is no worse."""
    return learn(lenet(), steps=250, l1=2e-3)


def save(model: nn.Module, path) -> str:
    """Its state dict as people release it; returns the path as text."""
    torch.save(model.state_dict(), path)
    return str(path)
