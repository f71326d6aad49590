"""Whether the probes of gradients (pwoa_cli/evaluation/gradients.py) accuse honest networks or planted ones.

    OMP_NUM_THREADS=1 .venv/bin/python examples/benchmarks/probes.py [--checkpoints MODEL.pth ...]

Every family of pwoa, small, with each activation that it offers, a plain CNN of stride 2 and an MLP, are
trained for a few seconds on the bundled digits, and on CIFAR-10 where cifar10.npz is there; dense, then
pruned by magnitude layer by layer to 90 and 99% (200 weights at least stay in each layer) and trained on;
each in float32 and in bfloat16. With --checkpoints also networks from files, released ones or those that
`pwoa prune` wrote (normalisation in the file, one channel: digits, three: CIFAR-10), in both. Then what
tests/helpers/odd_networks.py plants in the first LeNet.
A row: accuracy on 500 test images; the share of exactly zero entries of the margin's input gradient; of the
pixels that are read, those without gradient; the finite difference over what the gradient predicts, and the
same for each step tried; what `pwoa eval` would call unreliable (with Square beside PGD-20 where it asks).
"""
import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pwoa_cli
from pwoa_cli.attacks import parse
from pwoa_cli.attacks.base import frozen
from pwoa_cli.attacks.bounded import Bounded, Meter
from pwoa_cli.data import datasets
from pwoa_cli.evaluation import checks, gradients
from pwoa_cli.networks import families

ROOT = Path(__file__).parents[2]
TRAIN, TEST, BATCH = 12000, 500, 64
EPS = {1: 0.3, 3: 8 / 255}  # by channels
LEAST = 200  # weights that stay in a layer
RAMPS = {0.0: (), 0.9: (0.8, 0.9), 0.99: (0.96, 0.98, 0.99)}  # sparsities on the way, each trained on
HEAD = ("network", "accuracy", "zeros", "blind", "slope", "by step", "accused of")
RESIDUAL = {"preact-resnet": 3, "wide-resnet": 3, "dm-wide-resnet": 3, "dm-preact-resnet": 4}  # stages


class Half(nn.Module):
    """A network in bfloat16, float32 outside."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = copy.deepcopy(net).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.bfloat16()).float()


class Around(nn.Module):
    """A network inside a function (net, x) -> logits."""

    def __init__(self, net, answer):
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.net, x)


def networks(channels: int, side: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Every family with its activations, a plain CNN, an MLP; by name."""
    given = {"in_channels": channels, "num_classes": 10}
    for name, stages in RESIDUAL.items():
        for act in ("relu", "silu"):
            yield f"{name} {act}", partial(families.make, name, given | {
                "activation": act, "blocks": (1,) * stages, "widths": (16, 32, 64, 64)[:stages]})
    yield "cifar-resnet", partial(families.make, "cifar-resnet", given | {"blocks": (1, 1, 1)})
    yield "cifar-vgg", partial(families.make, "cifar-vgg", given | {
        "stages": ((16,), (32,), (64, 64)), "end": "mean"})
    yield "plain-resnet", partial(families.make, "plain-resnet", given | {"size": side, "side": side // 4})
    for name in ("lenet5", "smallcnn", "convex-net"):
        yield name, partial(families.make, name, given | {"size": side})
    for label, act in (("relu", nn.ReLU), ("silu", nn.SiLU)):
        yield f"cnn, stride 2, {label}", partial(cnn, channels, act)
        yield f"mlp {label}", partial(mlp, channels * side**2, act)


def cnn(channels: int, act: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 16, 5, 2, 2), act(), nn.Conv2d(16, 32, 5, 2), act(),
                         nn.Flatten(), nn.LazyLinear(64), act(), nn.Linear(64, 10))


def mlp(pixels: int, act: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 200), act(), nn.Linear(200, 100), act(),
                         nn.Linear(100, 10))


def train(net: nn.Module, x: Tensor, y: Tensor, *, steps: int, masks: dict[nn.Parameter, Tensor]) -> None:
    """Adam; weights outside the masks stay zero. Ends in eval mode."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    net.train()
    for step in range(steps):
        rows = torch.arange(BATCH * step, BATCH * (step + 1)) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        with torch.no_grad():
            for weight, mask in masks.items():
                weight.mul_(mask)
    net.eval()


def largest(net: nn.Module, sparsity: float) -> dict[nn.Parameter, Tensor]:
    """Masks that keep the largest weights of every layer."""
    masks = {}
    for weight in (p for p in net.parameters() if p.ndim > 1):
        kept = max(min(LEAST, weight.numel()), round((1 - sparsity) * weight.numel()))
        masks[weight] = torch.zeros_like(weight)
        masks[weight].view(-1)[weight.detach().abs().flatten().topk(kept).indices] = 1
    return masks


def digits() -> tuple[Tensor, ...]:
    """Training images and labels, test images and labels."""
    found = datasets.load(str(ROOT / "examples/data"))
    return tuple(t for split, n in ((found.train, TRAIN), (found.test, TEST))
                 for t in split.batch(torch.arange(n)))


def photographs(path: Path) -> tuple[Tensor, ...]:
    with np.load(path) as file:
        return tuple(t for part, n in (("train", TRAIN), ("test", TEST))
                     for t in (torch.tensor(file[f"x_{part}"][:n]).permute(0, 3, 1, 2) / 255,
                               torch.tensor(file[f"y_{part}"][:n]).flatten().long()))


def row(name: str, net: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Print what the probes say of a network; whether they accuse it."""
    with frozen(net):
        with torch.no_grad():
            right = torch.cat([net(part) for part in x.split(100)]).argmax(1) == y
        rows = right.nonzero().flatten()
        few = rows[:checks.PROBE]
        found = gradients.probe(net, x[few], y[few])
        findings = [*gradients.of_gradients(net, x[few], y[few], attacks=("pgd-20",))]
        findings = gradients.with_square(findings, parse("pgd-20"), Bounded(net, 100, Meter()), x[rows],
                                         y[rows], eps=EPS[x.shape[1]], norm="linf", seed=0)
        said = [f.check for f in findings if f.check in gradients.FAULTS and f.unreliable]
    figures = (f"{100 * float(right.float().mean()):.1f}", f"{found.zeros:.2f}", f"{found.blind:.3f}",
               f"{found.slope:.2f}", ", ".join(f"{slope:.2f}" for slope in found.slopes),
               ", ".join(said) or "nothing")
    print("| " + " | ".join((name, *figures)) + " |", flush=True)
    return bool(said)


def in_both(name: str, net: nn.Module, x: Tensor, y: Tensor) -> list[bool]:
    return [row(f"{name}, {precision}", tried, x, y)
            for precision, tried in (("float32", net), ("bfloat16", Half(net)))]


def honest(data: str, images: Sequence[Tensor], *, seed: int) -> tuple[list[bool], nn.Module]:
    """Whether each network is accused, and the dense LeNet."""
    x, y, *test = images
    accused, kept = [], nn.Module()
    for name, make in networks(*x.shape[1:3]):
        torch.manual_seed(seed)
        net = make()
        with torch.no_grad():
            net(x[:2])  # lazy layers
        train(net, x, y, steps=100, masks={})
        kept = copy.deepcopy(net) if name == "lenet5" else kept
        for sparsity, ramp in RAMPS.items():
            for step in ramp:
                train(net, x, y, steps=40, masks=largest(net, step))
            accused += in_both(f"{data}, {name}, {100 * sparsity:.0f}%", net, *test)
    return accused, kept


def planted(net: nn.Module, images: Sequence[Tensor]) -> list[bool]:
    """Whether each lie in a network is caught."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.odd_networks import PLANTED

    return [row(f"planted: {name}", Around(net, answer).eval(), *images[2:])
            for name, (answer, _) in PLANTED.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", type=Path, default=Path.home() / ".cache/pwoa/data/cifar10.npz")
    parser.add_argument("--checkpoints", nargs="*", default=[], metavar="MODEL.pth")
    parser.add_argument("--data", nargs="*", default=["digits", "CIFAR-10"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start, sets = time.perf_counter(), {}
    if "digits" in args.data:
        sets["digits"] = digits()
    if "CIFAR-10" in args.data and args.cifar10.is_file():
        sets["CIFAR-10"] = photographs(args.cifar10)
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    accused, caught = [], []
    for path in args.checkpoints:
        net = pwoa_cli.load(path)
        channels = next(p for p in net.parameters() if p.ndim == 4).shape[1]
        for images in sets.values():
            if images[0].shape[1] == channels:
                accused += in_both(Path(path).name, net, *images[2:])
    for data, images in sets.items():
        found, net = honest(data, images, seed=args.seed)
        accused += found
        caught += planted(net, images) if data == "digits" else []
    print(f"\nfalse alarms {sum(accused)} of {len(accused)}, planted networks caught {sum(caught)} of "
          f"{len(caught)}; seed {args.seed}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
