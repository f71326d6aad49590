"""What the pages' examples name, as small as it can be: networks, data, runs, in a folder for digits, one for
colour pictures, and one with a network of the published size.

The data are ten places and colours of a bright square on noise, under the names of MNIST and CIFAR-10, found
in $PWOA_DATA; the networks learn them in seconds.
"""
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import doc_examples as pages
from helpers.cli_world import in_process
from pwoa_cli.files import sparse
from pwoa_cli.networks.families.resnet import CifarResNet
from pwoa_cli.networks.families.small import LeNet

CLASSES = 10
SIDE = {1: 28, 3: 32}  # of pictures, by channels
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, as docs/results.md types it
FEW = ["--samples", "20", "--batch-size", "32"]  # of 1000 test images, the default, that the data have
NAMES = {"digits": ("model.pt", "teacher.pt", "mnist_lenet5_advtrained.pt", "MODEL.pt"),
         "colour": ("model.pt", "teacher.pt", "a.pt", "b.pt", "r18.pt", "CIFAR10-resnet20-adv.pth"),
         "big": ("model.pt",)}
NORMALISED = "cifar10_resnet18_linf8.pt"
PRUNED = {"digits": ("pruned.safetensors", "a.safetensors"), "colour": ("c.safetensors",)}
RUNS = {"digits": ("RUN1", "RUN2", "pwoa-runs/RUN", "runs/lenet-0.9"),
        "colour": ("run1", "run2", "pwoa-runs/RUN", "pwoa-runs/resnet18-0.5")}


def pictures(n, *, channels, seed):
    """(n, side, side, channels) uint8: a bright square in one of ten places on noise, and which (n,); in
    colour a tint over all of it, too, as networks that pool do not see places."""
    generator = np.random.default_rng(seed)
    labels, side = np.arange(n) % CLASSES, SIDE[channels]
    pixels, cell = generator.integers(0, 60, (n, side, side, channels)), side // 4
    for image, label in zip(pixels, labels, strict=True):
        row, column = cell * (label // 4), cell * (label % 4)
        image[row:row + cell, column:column + cell] += 120
        image += 30 * np.array([label % 3, label // 3 % 3, label // 9])[:channels] if channels == 3 else 0
    return pixels.astype(np.uint8), labels


def write_data(path, *, train, channels):
    """An .npz of a known data set's arrays; as many test images as commands take by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x_train, y_train = pictures(train, seed=0, channels=channels)
    x_test, y_test = pictures(1000, seed=1, channels=channels)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def write_folder(folder, *, test):
    """FOLDER/train/CLASS and FOLDER/val/CLASS with a few grey pictures each, in val so many."""
    for split, n, seed in (("train", 100, 2), ("val", test, 3)):
        for number, (image, label) in enumerate(zip(*pictures(n, channels=1, seed=seed), strict=True)):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(place / f"{number}.png")


def tensors(n, *, channels):
    """Pictures (n, channels, side, side) in [0,1], and their classes (n,)."""
    x, y = pictures(n, seed=0, channels=channels)
    return torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.tensor(y)


def learned(model: nn.Module, *, channels, steps=60, mean=(0.0,), std=(1.0,)) -> nn.Module:
    """Trained for a second or two on images less mean by deviation, in eval mode."""
    x, y = tensors(200, channels=channels)
    x = (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
    return model.eval()


def lenet():
    return learned(LeNet(size=28, widths=(4, 8), hidden=16, num_classes=CLASSES), channels=1)


def resnet(**normalisation):
    model = CifarResNet(blocks=(1, 1, 1), widths=(4, 8, 8), shortcut="conv", num_classes=CLASSES)
    return learned(model, channels=3, **normalisation)


def resnet18():
    """Of the published size: random layers, and a last one that fits 100 images (least squares), as training
    it takes minutes."""
    model = CifarResNet(blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512), shortcut="conv", num_classes=CLASSES)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # statistics of the one batch
    x, y = tensors(100, channels=3)
    features: list[torch.Tensor] = []
    model.linear.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        model.train()(x)
        model.eval()(x)
        wanted = nn.functional.one_hot(y, CLASSES).float() - model.linear.bias
        model.linear.weight.copy_((torch.linalg.pinv(features[1]) @ wanted).T)
    return model


def documented_network():
    """The file mine.py as docs/checkpoints.md shows it."""
    texts = [block.text for block in pages.blocks(pages.ROOT / "docs/checkpoints.md")]
    (text,) = [text for text in texts if text.startswith("# mine.py")]
    return text.partition("\npwoa ")[0]


def made(folder, kind, *, many):
    """Fill a folder with all that examples of its kind name."""
    torch.manual_seed(0)
    (folder / "examples").symlink_to(pages.ROOT / "examples")
    for name, channels in (("mnist", 1), ("cifar10", 3)):
        write_data(folder / f"data/{name}.npz", channels=channels, train=3000 if many else 300)
    shutil.copy(folder / "data/mnist.npz", folder / "FILE.npz")
    write_folder(folder / "FOLDER", test=1000 if many else 20)
    (folder / "mine.toml").write_text("epochs = 4\n")
    model = {"digits": lenet, "colour": resnet, "big": resnet18}[kind]()
    for name in NAMES[kind]:
        torch.save(model.state_dict(), folder / name)
    if kind == "big":
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PWOA_DATA", str(folder / "data"))
        (_digits if kind == "digits" else _colour)(patch)


def _run(patch, model, *options, attacks="pgd,cw", code=0):
    """Prune in RUN or --out."""
    words = [model, *options, *FEW, *(["--attacks", attacks] if attacks else []), "--quiet"]
    assert in_process(patch, "prune", *words) == code


def _copies(kind):
    for name in RUNS[kind]:
        shutil.copytree("RUN", name)
    for name in PRUNED[kind]:
        shutil.copy("RUN/model.safetensors", name)


def _digits(patch):
    """Runs of whole channels, so that they can be exported slim, and one that was stopped."""
    _run(patch, "model.pt", "--structure", "channel", "--channels", "0.25", "--out", "RUN",
         attacks="pgd,cw,aa")
    _copies("digits")
    assert in_process(patch, "export", "RUN", "--format", "slim", "--quiet") == 0
    patch.setattr(sparse, "save", _interrupt)
    _run(patch, "model.pt", "--sparsity", "0.9", "--out", "DIR", attacks="", code=130)


def _colour(patch):
    """Runs of single weights, those of a network that normalises, and the network of docs/checkpoints.md."""
    _run(patch, "model.pt", "--sparsity", "0.5", "--out", "RUN")
    _copies("colour")
    torch.save(resnet(mean=MEAN, std=STD).state_dict(), NORMALISED)
    mean, std = (",".join(map(str, three)) for three in (MEAN, STD))
    _run(patch, NORMALISED, "--sparsity", "0.5", "--mean", mean, "--std", std, "--out", "r18")
    shutil.copy("r18/model.safetensors", "r18_linf8_90.safetensors")
    Path("mine.py").write_text(documented_network())
    space = {}
    exec(Path("mine.py").read_text(), space)
    torch.save(learned(space["net"](), channels=3).state_dict(), "mine.pt")


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def copied(source, target):
    """A folder to work in; data and networks, which no command changes, are not copied."""
    for item in sorted(source.iterdir()):
        if item.is_dir() and not item.is_symlink() and item.name not in ("data", "FOLDER"):
            shutil.copytree(item, target / item.name)
        else:
            (target / item.name).symlink_to(item)


def fitted(folder, text):
    """Take away what a command is about to write; where it goes on, the newest run is the one in DIR, which
    was stopped."""
    for name in re.findall(r"--card (\S+)|--out (runs/\S+)", text):
        shutil.rmtree(folder / "".join(name), ignore_errors=True)
    if "--format slim" in text:
        (folder / "RUN-slim.safetensors").unlink()
    if "--resume" in text:
        shutil.copytree(folder / "DIR", folder / "pwoa-runs/model-0.9-20990101-000000")
