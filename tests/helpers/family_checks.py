"""What the tests of all families need: networks that are small, without memory, as if trained, by every
reading."""
import json

import torch

# one small network of each family
SIZES = {"cifar-resnet": {"widths": [4, 4, 6, 8], "blocks": [1, 1, 1, 1]},
         "preact-resnet": {"widths": [4, 4, 6, 8], "blocks": [1, 1, 1, 1]},
         "wide-resnet": {"blocks": [1, 1, 1], "stem": 4, "widths": [4, 6, 8]},
         "dm-wide-resnet": {"blocks": [1, 1, 1], "stem": 4, "widths": [4, 6, 8]},
         "dm-preact-resnet": {"blocks": [1, 1, 1, 1], "stem": 4, "widths": [4, 6, 8, 8]},
         "cifar-vgg": {"stages": [[4]] * 5, "end": "max", "side": 1, "features": "features"},
         "lenet5": {"widths": [3, 4], "hidden": 6}, "smallcnn": {"widths": [2, 2, 3, 3], "hidden": [5, 6]},
         "convex-net": {"widths": [2, 3], "kernels": [4, 4], "hidden": [5]},
         "plain": {"convs": ["conv1"], "widths": [3], "kernels": [3], "strides": [1], "paddings": [1],
                   "pools": [2], "side": 14, "heads": ["fc"], "hidden": []},
         "plain-resnet": {"widths": [3, 4], "hidden": [20]}}


def meta(make, **options):
    """A network of shapes alone."""
    with torch.device("meta"):
        return make(**options)


def count(net):
    return sum(p.numel() for p in net.parameters())


def trained(net):
    """The network as if trained: batch norms that do something, eval mode."""
    for m in net.modules():
        if getattr(m, "running_mean", None) is not None:
            for tensor in (m.running_mean, m.bias.data):
                tensor.normal_(0, 0.3)
            for tensor in (m.running_var, m.weight.data):
                tensor.uniform_(0.5, 2)
    return net.eval()


def normed(x, w, name):
    """Batch norm in eval mode, by hand."""
    mean, var, scale, shift = (w[f"{name}.{k}"].view(1, -1, 1, 1)
                               for k in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def changed(state, change):
    """A state dict with tensors of other shapes, or without them (None)."""
    with torch.device("meta"):
        added = {k: torch.empty(s) for k, s in change.items() if s is not None}
    return {k: t for k, t in (state | added).items() if change.get(k, ()) is not None}


def guesses(family, net):
    """Networks by every reading of a state dict, in their order, with its weights."""
    guess = family.identify(net.state_dict())
    for change in ({}, *guess.others):
        again = family.make(**json.loads(json.dumps(guess.options | change))).eval()
        again.load_state_dict(net.state_dict())
        yield change, again
