"""Hints on several models in one table: what their runs do not agree on."""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers import small_models as small
from helpers.cli_world import PRUNE
from helpers.situations import prints
from pwoa_cli.files.plain import read_json, write_json

AT = "workflows/several.py:"
TABLE = ["eval", "half", "most", "--n", "20", "--attacks", "fgsm"]


def two_runs(tool):
    """Runs of one teacher, half and most, on data whose name has a space."""
    shutil.copy("tiny.npz", "tiny one.npz")
    for name, sparsity in (("half", "0.5"), ("most", "0.9")):
        tool.works(*PRUNE, "--sparsity", sparsity, "--data", "tiny one.npz", "--out", name)


def changed(**changes):
    """Fields of a run's report with other values."""
    path = Path("most/report.json")
    made = read_json(path)
    for name, values in changes.items():
        made[name] |= values
    write_json(path, made)


@prints(AT + "_of_runs", AT + "_one_threat", AT + "_agree")
def runs_that_differ(tool):
    two_runs(tool)
    before = Path("most/report.json").read_text()
    for change in (
        {"data": {"argument": "tiny.npz"}},
        {"threat": {"eps": 0.1}},
        {"threat": {"norm": "l2"}},
    ):
        changed(**change)
        tool.follow(TABLE)
        Path("most/report.json").write_text(before)
    tool.works(*TABLE)


@prints(AT + "open_several", AT + "_subjects")
def models_that_do_not_go_together(tool):
    two_runs(tool)
    tool.refused(*TABLE[:3], "absent.pt", *TABLE[3:])
    tool.works(*TABLE)
    write_grey_pictures()
    small.save(doubled(), "large.pt")
    more = ["--data", "grey", "--eps", "0.5", *TABLE[3:]]
    assert tool.refused("eval", "model.pt", "large.pt", *more).startswith("Measure them apart")
    for name in ("model.pt", "large.pt"):
        tool.works("eval", name, *more)


def write_grey_pictures():
    """The images of tiny.npz as a folder of pictures, grey."""
    with np.load("tiny.npz") as file:
        for split in ("train", "test"):
            for number, (image, label) in enumerate(
                zip(file[f"x_{split}"], file[f"y_{split}"], strict=True)
            ):
                place = Path("grey", split, str(label))
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.squeeze()).save(place / f"{number}.png")


def doubled():
    """A network of images of twice the size, that learnt them."""
    x, y = small.images(256)
    x = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2) / 255, scale_factor=2, mode="bilinear"
    )
    net = small.LeNet(size=16, widths=(4, 8), hidden=16, num_classes=4)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.tensor(y)).backward()
        optimizer.step()
    return net
