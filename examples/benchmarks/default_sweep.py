"""Whether the default recipe spoils a network: many kinds, each trained here for a few seconds and pruned.

    .venv/bin/python examples/benchmarks/default_sweep.py WORK [NAME ...] --train 20 --prune 25

Each network is trained for --train seconds (Adam, cross-entropy) and kept in WORK, then pruned with the
default recipe for about --prune seconds of training at each sparsity. A row holds what the recipe settled on,
the layer of least density, clean accuracy before and after on the first --samples test images, the loss and
whether the rate had to be lowered. Rows are appended to WORK/rows.jsonl; those that are there are not run
again. --table prints them as Markdown.
"""
import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.data import datasets
from pwoa_cli.errors import PwoaError
from pwoa_cli.networks import families
from pwoa_cli.training.state import State
from pwoa_cli.workflows import prune
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_request import Job, Request

MNIST = Path(__file__).parents[1] / "data"


# --- networks ---------------------------------------------------------------

def mlp(*, channels: int = 3, size: int = 32, norm: bool = False) -> nn.Module:
    """Linear layers of 256 and 128 neurons, with batch norm or without."""
    widths, found = (channels * size * size, 256, 128), [nn.Flatten()]
    for inside, outside in zip(widths, widths[1:], strict=False):
        found += [nn.Linear(inside, outside), *[nn.BatchNorm1d(outside)] * norm, nn.ReLU()]
    return nn.Sequential(*found, nn.Linear(widths[-1], 10))


def single(*, channels: int = 3, size: int = 32) -> nn.Module:
    """One linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, 10))


def plain(*, channels: int = 3, norm: bool = False, scale: float = 1.0) -> nn.Module:
    """Four 3x3 convolutions and a mean over positions, with batch norm or without.

    Args: scale: the first layer starts so many times as large, the second as many times smaller.
    """
    found: list[nn.Module] = []
    for inside, outside, stride in ((channels, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)):
        found += [nn.Conv2d(inside, outside, 3, stride, 1), *[nn.BatchNorm2d(outside)] * norm, nn.ReLU()]
    with torch.no_grad():
        for layer in (m for m in found if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight)
        for layer, factor in ((found[0], scale), (found[2 + norm], 1 / scale)):
            for parameter in layer.parameters():
                parameter.mul_(factor)
    return nn.Sequential(*found, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vit() -> nn.Module:
    """timm's vision transformer: patches of 4, 96 channels, 4 blocks."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=10)


def convnext() -> nn.Module:
    """timm's ConvNeXt: a stem of stride 2, 32 to 128 channels, 4 blocks."""
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=10, depths=(1, 1, 1, 1), dims=(32, 48, 64, 128), patch_size=2)


_RES = {"blocks": [1, 1, 1], "widths": [16, 32, 64]}
_VGG = {"stages": [[16], [16], [32], [32], [64]]}
_GREY = {"in_channels": 1, "size": 28}
_COLOUR = {"in_channels": 3, "size": 32}


def family(name: str, **options: Any) -> Callable[[], nn.Module]:
    """One of pwoa's own networks."""
    return partial(families.make, name, options)


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "cifar_convex": ("cifar10", family("convex-net", **_COLOUR)),
    "cifar_lenet": ("cifar10", family("lenet5", **_COLOUR)),
    "cifar_smallcnn": ("cifar10", family("smallcnn", **_COLOUR)),
    "cifar_plain": ("cifar10", plain),
    "cifar_plain_bn": ("cifar10", partial(plain, norm=True)),
    "cifar_plain_scaled": ("cifar10", partial(plain, scale=0.05)),
    "cifar_mlp": ("cifar10", mlp),
    "cifar_mlp_bn": ("cifar10", partial(mlp, norm=True)),
    "cifar_single": ("cifar10", single),
    "cifar_vgg": ("cifar10", family("cifar-vgg", batch_norm=False, **_VGG)),
    "cifar_vgg_bn": ("cifar10", family("cifar-vgg", batch_norm=True, **_VGG)),
    "cifar_resnet": ("cifar10", family("cifar-resnet", **_RES)),
    "cifar_preact": ("cifar10", family("preact-resnet", **_RES)),
    "cifar_preact_noend": ("cifar10", family("preact-resnet", bn=False, **_RES)),
    "cifar_wide": ("cifar10", family("wide-resnet", stem=16, **_RES)),
    "cifar_dm_wide": ("cifar10", family("dm-wide-resnet", stem=16, **_RES)),
    "cifar_dm_preact": ("cifar10", family("dm-preact-resnet", stem=16, **_RES)),
    "cifar_vit": ("cifar10", vit),
    "cifar_convnext": ("cifar10", convnext),
    "mnist_lenet": ("mnist", family("lenet5", **_GREY)),
    "mnist_convex": ("mnist", family("convex-net", **_GREY)),
    "mnist_smallcnn": ("mnist", family("smallcnn", **_GREY)),
    "mnist_mlp": ("mnist", partial(mlp, channels=1, size=28)),
    "mnist_mlp_bn": ("mnist", partial(mlp, channels=1, size=28, norm=True)),
    "mnist_single": ("mnist", partial(single, channels=1, size=28)),
    "mnist_plain_bn": ("mnist", partial(plain, channels=1, norm=True)),
    "mnist_resnet": ("mnist", family("cifar-resnet", in_channels=1, **_RES)),
}


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """So that `--arch default_sweep.py:cifar_vit` finds a network of the table."""
    if name not in NETWORKS:
        raise AttributeError(name)
    return NETWORKS[name][1]


# --- training and pruning ---------------------------------------------------------------

def data_of(name: str) -> datasets.Dataset:
    """The network's images: CIFAR-10 of the cache, or the MNIST images beside this script."""
    where = str(MNIST) if NETWORKS[name][0] == "mnist" else "cifar10"
    return datasets.load(where)


def trained(name: str, seconds: float, path: Path, *, seed: int) -> None:
    """Adam, 2e-3 falling to 0, on cross-entropy, batches of 128, for so many seconds; the file is kept."""
    torch.manual_seed(seed)
    model, split = NETWORKS[name][1](), data_of(name).train
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    start, spent, step = time.perf_counter(), 0.0, 0
    while spent < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 30) * (1 - spent / seconds)
        x, labels = split.batch(torch.randint(0, len(split), (128,)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(x), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        spent, step = time.perf_counter() - start, step + 1
    torch.save(model.eval().state_dict(), path)


def accuracy(model: nn.Module, data: datasets.Dataset, n: int) -> float:
    """Percent of the first n test images that are right."""
    x, labels = data.test.batch(torch.arange(min(n, len(data.test))))
    with torch.no_grad():
        answers: Tensor = torch.cat([model(part) for part in x.split(250)]).argmax(1)
    return round(100 * (answers == labels).double().mean().item(), 1)


def job_of(name: str, path: Path, sparsity: float, fields: dict[str, str], seed: int) -> Job:
    """What `pwoa prune` would do with this file."""
    source = Source(str(path), arch=f"{__file__}:{name}")
    where = str(MNIST) if NETWORKS[name][0] == "mnist" else "cifar10"
    return prepare(Request(source, sparsity=sparsity, data=where, norm="linf", eps="8/255", attacks="fgsm",
                           n=100,
                           overrides=fields, seed=seed), say=lambda text: None)


def row(name: str, path: Path, sparsity: float, *, seconds: float, n: int, seed: int,
        fields: dict[str, str]) -> dict[str, Any]:
    """Prune for about so many seconds and say what became of the network."""
    first = job_of(name, path, sparsity, fields | {"epochs": "1"}, seed)
    step = prune.time_to_fit(first).seconds_per_step
    epochs = max(40, round(seconds / step)) / first.plan.steps_per_epoch
    job = job_of(name, path, sparsity, fields | {"epochs": str(epochs)}, seed)
    losses: list[float] = []
    scales: list[float] = []

    def note(state: State, means: dict[str, float]) -> None:
        losses.append(means["loss"])
        scales.append(getattr(state, "lr_scale", 1.0))

    recipe, data = job.plan.recipe, job.subject.dataset
    found: dict[str, Any] = {
        "network": name, "sparsity": sparsity, "seed": seed, "fields": fields, "optimizer": recipe.optimizer,
        "lr": recipe.lr, "allocation": recipe.allocation, "batch": recipe.batch_size, "noise": recipe.noise,
        "steps": job.plan.steps, "before": accuracy(job.subject.model, data, n)}
    try:
        student = prune.fit(job, note=note)
    except PwoaError as error:
        return found | {"after": None, "error": error.message}
    weights = {weight: student.get_parameter(weight) for weight in job.plan.weights}
    counts = {weight: (int(w.count_nonzero()), w.numel()) for weight, w in weights.items()}
    least = min(counts, key=lambda weight: counts[weight][0] / counts[weight][1])
    return found | {"after": accuracy(student, data, n), "least": counts[least], "layer": least,
                    "losses": [losses[0], max(losses), losses[-1]], "lr_scale": scales[-1],
                    "finite": all(map(math.isfinite, losses))}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line for each network and sparsity."""
    lines = ["| network | zeros | settled | steps | least dense layer | clean before -> after | loss: first, "
             "most, last | rate lowered |", "|---" * 8 + "|"]
    for r in rows:
        settled = f"{r['optimizer']} {r['lr']:g}, {r['allocation']}"
        if r["after"] is None:
            lines.append(f"| {r['network']} | {100 * r['sparsity']:g}% | {settled} | {r['steps']} | - | "
                         f"{r['before']} -> **{r['error']}** | - | - |")
            continue
        kept, total = r["least"]
        lines.append(f"| {r['network']} | {100 * r['sparsity']:g}% | {settled} | {r['steps']} | "
                     f"{100 * kept / total:.2g}% ({kept:,} of {total:,}) | {r['before']} -> {r['after']} | "
                     f"{', '.join(f'{loss:.3g}' for loss in r['losses'])} | "
                     f"{'no' if r['lr_scale'] == 1 else r['lr_scale']} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not there, prune what is not in the rows, then show."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(NETWORKS)}; none: all")
    parser.add_argument("--train", type=float, default=20, help="seconds of training")
    parser.add_argument("--prune", type=float, default=25, help="seconds at each sparsity; 0: train only")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.9, 0.97])
    parser.add_argument("--samples", "--n", dest="n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--rows", default="rows.jsonl", help="file in WORK")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_intermixed_args(argv)
    if unknown := set(args.names) - set(NETWORKS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    args.work.mkdir(exist_ok=True, parents=True)
    names, file = args.names or list(NETWORKS), args.work / args.rows
    for name in names:
        if not (path := args.work / f"{name}.pt").exists():
            trained(name, args.train, path, seed=args.seed)
            print(f"{name}: trained", flush=True)
    fields = dict(text.split("=", 1) for text in args.set)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for name, sparsity in ((name, s) for name in names for s in args.sparsity if args.prune):
        wanted = {"network": name, "sparsity": sparsity, "seed": args.seed, "fields": fields}
        if not any(wanted.items() <= r.items() for r in rows):
            rows.append(row(name, args.work / f"{name}.pt", sparsity, seconds=args.prune, n=args.n,
                            seed=args.seed, fields=fields))
            with file.open("a") as out:
                out.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    if args.table:
        print(table(rows))


if __name__ == "__main__":
    main()
