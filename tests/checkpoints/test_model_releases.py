"""Every family as people release it: each wrapping gives back equal logits.

The table in docs/checkpoints.md says just that (PWOA_WRITE_DOCS=1 writes it).
"""
import argparse
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from pwoa_cli.checkpoints.model import load_model
from pwoa_cli.networks import families
from pwoa_cli.networks.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs/checkpoints.md"
BEGIN = "<!-- families: made by tests/checkpoints/test_model_releases.py -->\n"
END = "<!-- end of families -->"
# narrow members of every family and naming; what is not said here is the family's default
SMALL = {
    "preact-resnet": [{"blocks": [1, 1, 1, 1], "widths": [4, 4, 6, 8]},
                      {"blocks": [1, 2, 1, 1], "widths": [4, 4, 6, 8], "bn": True}],
    "wide-resnet": [{"blocks": [1, 1, 1], "stem": 4, "widths": [4, 6, 8]},
                    {"blocks": [1, 1, 1], "stem": 4, "widths": [4, 6, 8], "sub_block1": True},
                    {"blocks": [1, 1, 1], "stem": 4, "widths": [6, 8, 10], "style": "layer", "bias": True,
                     "stride_at": 2, "shortcut_from": "input"}],
    "dm-wide-resnet": [{"blocks": [1, 1, 1], "stem": 4, "widths": [4, 6, 8]}],
    "dm-preact-resnet": [{"blocks": [1, 1, 1, 1], "stem": 4, "widths": [4, 6, 8, 8]}],
    "cifar-resnet": [{"blocks": [1, 1, 1], "widths": [4, 6, 8]},
                     {"blocks": [1, 1, 1, 1], "widths": [4, 4, 6, 8], "shortcut": "conv"},
                     {"blocks": [1, 1, 1], "widths": [4, 6, 8], "style": "stage_ab", "shortcut": "pad-end"}],
    "lenet5": [{"widths": [3, 4], "hidden": 6}],
    "smallcnn": [{"widths": [2, 2, 3, 3], "hidden": [5, 6]}],
    "convex-net": [{"widths": [2, 3], "kernels": [4, 4], "hidden": [5]}],
    "plain": [{"convs": ["conv1", "conv2", "conv3"], "widths": [3, 4, 5], "kernels": [3, 3, 3],
               "strides": [1, 1, 1], "paddings": [1, 1, 1], "pools": [2, 2, 1], "side": 7, "heads": ["fc"],
               "hidden": [], "norms": ["bn1", "bn2", "bn3"]},
              {"widths": [3, 4], "hidden": [20]}],
    "plain-resnet": [{"widths": [3, 4], "hidden": [20]},
                     {"widths": [3, 3, 5], "stages": ["layer1", "layer2"], "blocks": [1, 1], "side": 1,
                      "projected": [False, True], "strides": [1, 1, 2], "end": "mean", "heads": ["linear"],
                      "hidden": []}],
    "cifar-vgg": [{"stages": [[4], [6, 6], [8]], "side": 4},
                  {"stages": [[4], [6, 6], [8]], "side": 4, "batch_norm": True}],
}


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


def under(state, prefix):
    return {prefix + k: t for k, t in state.items()}


def normed(state, prefix, holder):
    """With the normalisation that RobustBench's and Madry's wrappers keep beside the network."""
    channels = next(t.shape[1] for t in state.values() if t.ndim == 4)
    return under(state, prefix) | {f"{holder}mean": torch.zeros(1, channels, 1, 1),
                                   f"{holder}std": torch.ones(1, channels, 1, 1)}


def masked(net):
    """Weights as torch.nn.utils.prune keeps them, of zero masks where the weight is zero."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            torch_prune.custom_from_mask(module, "weight", module.weight != 0)
    return net.state_dict()


def safe(state, path):
    path = path.with_suffix(".safetensors")
    safetensors.torch.save_file({k: t.clone() for k, t in state.items()}, path)
    return path


WRAPPINGS = {
    "a bare state dict": save,
    "legacy format": lambda s, p: save(s, p, _use_new_zipfile_serialization=False),
    "safetensors": safe,
    "state_dict": lambda s, p: save({"state_dict": s, "epoch": 3}, p),
    "model_state_dict": lambda s, p: save({"model_state_dict": s, "optimizer": {"state": {}}}, p),
    "model": lambda s, p: save({"model": s}, p),
    "net, accuracy": lambda s, p: save({"net": s, "acc": 83.1}, p),
    "net > state_dict": lambda s, p: save({"net": {"state_dict": s}}, p),
    "best": lambda s, p: save({"best": s}, p),
    "ema beside the weights": lambda s, p: save(
        {"state_dict": s, "state_dict_ema": {k: t + 1 for k, t in s.items()}}, p),
    "args as a Namespace": lambda s, p: save({"state_dict": s, "args": argparse.Namespace(epsilon=8)}, p),
    "module. (DataParallel)": lambda s, p: save(under(s, "module."), p),
    "model.": lambda s, p: save({"state_dict": under(s, "model."), "hyper_parameters": {"lr": 0.1}}, p),
    "_orig_mod.module. (compiled)": lambda s, p: save(under(s, "_orig_mod.module."), p),
    "1. after a normalising layer 0": lambda s, p: save(normed(s, "1.", "0."), p),
    "module.model. with module.attacker. (MadryLab)": lambda s, p: save(
        {"model": normed(s, "module.model.", "module.normalizer.")
         | normed(s, "module.attacker.model.", "module.attacker.normalize.")}, p),
    "backbone. (any other prefix)": lambda s, p: save(under(s, "backbone."), p),
    "batch norm without counters": lambda s, p: save(
        {k: t for k, t in s.items() if not k.endswith("num_batches_tracked")}, p),
    "float64": lambda s, p: save({k: t.double() if t.is_floating_point() else t for k, t in s.items()}, p),
}
EXAMPLES = [(name, options) for name, several in SMALL.items() for options in several]


def network(family, options):
    """With numbers in its batch norms and a few zero weights, as a trained and pruned one has."""
    torch.manual_seed(0)
    net = FAMILIES[family].make(**options).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    with torch.no_grad():
        for p in net.parameters():
            p[p.abs() < 0.01] = 0
    return net


def images(loaded):
    shape = loaded.input_shape or (loaded.arch_options["in_channels"], *loaded.default_size)
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))


def test_every_family_has_an_example():
    assert set(SMALL) == set(FAMILIES) and len(WRAPPINGS) >= 12


@pytest.mark.parametrize(("family", "options"), EXAMPLES,
                         ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)))
def test_every_wrapping_gives_back_equal_logits(tmp_path, family, options):
    net = network(family, options)
    for name, wrap in WRAPPINGS.items():
        loaded = load_model(wrap(net.state_dict(), tmp_path / "model.pt"))
        assert loaded.arch == family, name
        assert {k: loaded.arch_options[k] for k in options} == options, name
        assert torch.equal(loaded.model(images(loaded)), net(images(loaded))), name
    before = net(images(loaded))
    again = load_model(save(masked(net), tmp_path / "model.pt"))
    assert torch.equal(again.model(images(loaded)), before), "weight_orig and weight_mask"


def table():
    """The rows of docs/checkpoints.md: names, whose files, identifying keys, what the keys leave open."""
    lines = ["| family | its names for `--arch` | whose files | keys that identify it "
             "| left open by the keys |",
             "|---|---|---|---|---|"]
    for name, family in FAMILIES.items():
        open_options = {k for options in SMALL[name]
                        for other in families.identify(network(name, options).state_dict()).others
                        for k in other}
        lines.append(f"| {name} | {', '.join(family.members) or name} | {family.origin} | {family.keys} | "
                     f"{', '.join(sorted(open_options)) or '-'} |")
    wrappings = "; ".join([*WRAPPINGS, "weight_orig and weight_mask (torch.nn.utils.prune)"])
    return "\n".join(lines) + (
        "\n\nEvery name is read back from its keys at its full size; a narrow network of every family and "
        f"naming loads back to equal logits in each of these wrappings: {wrappings}.\n")


def test_the_page_says_what_these_tests_show():
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    made, after = rest.split(END)
    if os.environ.get("PWOA_WRITE_DOCS"):
        PAGE.write_text(before + BEGIN + table() + END + after)
    else:
        assert made == table(), "PWOA_WRITE_DOCS=1 pytest tests/checkpoints/test_model_releases.py"
