"""Can a checkpoint's batch norm tell which normalisation it was trained with? Small CIFAR-10 networks, known
answers.

    python examples/benchmarks/normalisations.py [--steps 300]

For each of four normalisations a network is trained on natural images, on random crops of them padded with
black, and on FGSM images (eps 8/255) of such crops, then read under six; a row is: clean accuracy in percent,
misfit of the first batch norm and of all (pwoa_cli/checkpoints/batch_norms.py) of each on the same 500
training images.
"""
import argparse

import torch
import torch.nn.functional as F

from pwoa_cli.checkpoints.batch_norms import Statistics, crops, first_misfit
from pwoa_cli.checkpoints.normalisation import NORMALISATIONS
from pwoa_cli.checkpoints.reading import PROBE
from pwoa_cli.data import datasets
from pwoa_cli.data.dataset import drawn
from pwoa_cli.networks.build import Normalized
from pwoa_cli.networks.families.resnet import CifarResNet

TRUTHS, READINGS = ("none", "cifar10", "cifar10-old", "imagenet"), ("none", "cifar10", "cifar10-old",
                                                                    "imagenet", "half", "cifar100")


def train(split: datasets.Split, truth: str, *, crop: bool, eps: float, steps: int) -> CifarResNet:
    """A ResNet-8 of widths 8, 16, 32 on inputs normalised as `truth`; eps > 0: with FGSM from a random start
    (Wong et al. 2020). crop: on random crops."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = CifarResNet(blocks=(1, 1, 1), widths=(8, 16, 32), shortcut="conv")
    model = Normalized(net, *NORMALISATIONS[truth]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for _ in range(steps):
        x, y = split.batch(torch.randint(0, len(split), (128,)))
        x = crops(x, draw) if crop else x
        if eps:
            start = ((torch.rand_like(x) * 2 - 1) * eps).requires_grad_()
            gradient, = torch.autograd.grad(F.cross_entropy(model(x + start), y), start)
            x = (x + (start + 1.25 * eps * gradient.sign()).clamp(-eps, eps)).clamp(0, 1).detach()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    dataset = datasets.load("cifar10", device=torch.device("cpu"))
    x, y = dataset.train.batch(drawn(len(dataset.train), PROBE))
    print("| trained with | on | " + " | ".join(READINGS) + " |\n|---|---|" + "---:|" * len(READINGS))
    for truth in TRUTHS:
        for crop, eps, images in ((False, 0.0, "natural"), (True, 0.0, "crops"),
                                  (True, 8 / 255, "FGSM crops")):
            net = train(dataset.train, truth, crop=crop, eps=eps, steps=steps)
            cells = []
            for name in READINGS:
                model = Normalized(net, *NORMALISATIONS[name]).eval()
                with torch.no_grad(), Statistics(model) as statistics:
                    right = (model(x).argmax(1) == y).double().mean().item()
                cells.append(f"{100 * right:.1f}, {first_misfit(model, x.split(100)):.4f}, "
                             f"{statistics.misfit():.4f}")
            print(f"| {truth} | {images} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
