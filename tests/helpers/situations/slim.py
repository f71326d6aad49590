"""Hints on whole channels: how many go, networks in which they do not, slim files."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import small_models as small
from helpers.cli_world import BUDGET, PRUNE, TINY
from helpers.situations import DRY, in_files, left_out, prints, typed
from pwoa_cli.networks.build import build

CHANNELS = ["prune", "model.pt", "--channels", "0.5", "--structure", "channel", *PRUNE[4:], "--dry-run"]
JOB = "workflows/prune_job.py:"
typed("workflows/search.py:fraction: {} {}", [*DRY[:3], "90", *DRY[4:]])
typed("workflows/search.py:fraction: A half", [*CHANNELS[:3], "much", *CHANNELS[4:]])
left_out("workflows/search.py:goal: Give one", [*CHANNELS, "--sparsity", "0.5"], "--sparsity")
left_out(JOB + "_checked: Leave", [*CHANNELS[:5], "filter", *CHANNELS[6:]], "--structure")
typed(JOB + "_of_whole: Half", [*CHANNELS[:3], "0.01", *CHANNELS[4:]])
typed(JOB + "_of_whole: {} {}", [*CHANNELS[:3], "0.99", *CHANNELS[4:]])
ONE_LAYER = """from torch import nn


def fn():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
"""
# {}: what is done to the features (N, 6, 8, 8) between two convolutions
BETWEEN = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(1, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Linear(384, 4)

    def forward(self, x):
        {}
        return self.fc(self.two(h).flatten(1))


def fn():
    return Net()
"""


def own(text):
    """The option for a network of this code, whose weights are in m.pt."""
    arch = in_files(text)
    torch.manual_seed(0)
    net = small.learn(build(arch, {}))
    with torch.no_grad():
        if hasattr(net, "one"):  # two filters that give nothing
            net.one.weight[:2], net.one.bias[:2] = 0.0, 0.0
    small.save(net, "m.pt")
    return ["--arch", arch, "--normalize", "none"]


@prints(
    "workflows/prune_weights.py:groups_of: --structure unstructured",
    "workflows/prune_weights.py:_coupled: --structure filter",
)
def networks_whose_channels_cannot_go(tool):
    words = ["prune", "m.pt", "--structure", "channel", "--sparsity", "0.5", *PRUNE[4:], "--dry-run"]
    tool.follow([*words, *own(ONE_LAYER)])
    fixed = "h = self.one(x).reshape(-1, 2, 192).flip(1).reshape(-1, 6, 8, 8)"
    tool.follow([*words, *own(BETWEEN.format(fixed))])


@prints("exports/slim.py:_check_worth", "exports/slim.py:reduced: Prune")
def channels_that_do_not_go_are_pruned(tool):
    hint = tool.refused("export", "pruned.safetensors", "--format", "slim")
    words = hint.partition("pwoa ")[2].replace("MODEL", "model.pt").split()
    tool.works(*words, *TINY, *BUDGET, "--out", "whole")
    tool.works("export", "whole", "--format", "slim", *TINY)
    arch = own(BETWEEN.format("h = self.one(x).sigmoid()"))
    assert tool.refused("export", "m.pt", "--format", "slim", *arch) == hint


@prints("exports/slim.py:reduced: --format sparse", "workflows/export.py:prepare: --format onnx")
def other_formats(tool):
    arch = own(BETWEEN.format("h = self.one(x)"))
    code = Path("net.py").read_text()
    Path("net.py").write_text(code.replace("self.two(h).flatten(1))", "self.two(h).flatten(1)).detach()"))
    tool.follow(["export", "m.pt", "--format", "slim", *arch])
    slim = slim_file(tool)
    tool.follow(["export", slim, "--format", "dense"])


SKIPPED = """from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x):
        return x if self.training else x + 1e-3 * self.two(self.bn(self.one(x)))


def fn():
    return nn.Sequential(nn.Conv2d(1, 6, 3, 1, 1), nn.Sequential(Block()), nn.Flatten(), nn.Linear(384, 4))
"""


@prints("training/objective.py:_check_heard")
def layers_that_do_not_run_in_training(tool):
    """As with stochastic depth, but always."""
    words = ["prune", "m.pt", "--sparsity", "0.5", *PRUNE[4:], "--dry-run", "--set", "hidden=inner"]
    tool.follow([*words, *own(SKIPPED)])


@prints(JOB + "_check_sparsity: Ask for more: {}")
def more_channels_than_are_gone(tool):
    slim_file(tool)
    tool.follow(["prune", "again/model.safetensors", *CHANNELS[2:3], "0.2", *CHANNELS[4:]])


def slim_file(tool):
    """The name of a slim file of the LeNet."""
    tool.works(*[word for word in CHANNELS if word != "--dry-run"], "--out", "again")
    tool.works("export", "again", "--format", "slim", *TINY, "--out", "s.safetensors")
    return "s.safetensors"


@prints("workflows/export.py:_images", "workflows/images.py:image_shape")
def images_of_a_size_that_is_seldom(tool):
    arch = in_files(ONE_LAYER.replace("Linear(64, 4)", "Linear(400, 4)"))
    small.save(build(arch, {}), "m.pt")
    words = ["export", "m.pt", "--arch", arch, "--normalize", "none", "--format"]
    draw = np.random.default_rng(0)
    np.savez("d.npz", **{f"{kind}_{part}": draw.integers(0, high, shape, dtype=np.uint8)
                         for part in ("train", "test")
                         for kind, high, shape in (("x", 255, (40, 20, 20)), ("y", 4, (40,)))})
    for kind in ("dense", "sparse", "onnx"):
        hint = tool.refused(*words, kind)
        tool.fails_otherwise(*words, kind, "--data", "d.npz", "--eps", "0.1", "--samples", "20", than=hint)


@prints("checkpoints/slim.py:is_slim", "checkpoints/slim.py:fit", "checkpoints/slim.py:check_runs")
def slim_files_that_were_changed(tool):
    slim = slim_file(tool)
    with safe_open(slim, "pt") as file:
        said = file.metadata()
    tensors = load_file(slim)
    for change, kept in (({"slim": json.dumps({"version": 2})}, tensors),
                         ({"input_shape": "[1, 20, 20]"}, tensors),
                         ({}, tensors | {"conv1.bias": tensors["conv1.bias"][:1].clone()})):
        save_file(kept, "changed.safetensors", {**said, **change})
        tool.refused("info", "changed.safetensors")
    Path(slim).unlink()
    tool.works("export", "again", "--format", "slim", *TINY, "--out", slim)
    tool.works("info", slim)
