"""Milliseconds of one network dense, with single zeros, and without filters or channels, in every runtime
that is here; Torch-Pruning's own pruning of the same network in the same run.

    .venv/bin/python examples/benchmarks/latency.py examples/mnist_lenet_linf0.3.pt --batch 1,128

Weights, filters and channels go by magnitude, as many in every layer, and nothing is trained: time does not
depend on which stay. Calls in turn, warmed up; milliseconds are medians, times as fast are medians
[quartiles] of dense / this, round by round.
"""
import argparse
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
import torch_pruning
from torch import Tensor, nn

from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.exports import slim
from pwoa_cli.exports.runtimes import RUNTIMES, Unavailable, synced
from pwoa_cli.files import sparse
from pwoa_cli.machine.devices import device_named
from pwoa_cli.machine.environment import environment
from pwoa_cli.machine.timing import alternating, ratios, spread
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import Normalized
from pwoa_cli.pruning import allocation
from pwoa_cli.pruning.criteria import magnitude
from pwoa_cli.pruning.groups import companion_masks, kept, masks, scores_by_layer
from pwoa_cli.reports.tables import markdown_table
from pwoa_cli.training.masks import apply_masks
from pwoa_cli.workflows.images import image_shape
from pwoa_cli.workflows.prune_weights import counted, groups_of

DENSE = "dense"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--channels", default="0.5,0.75")
    parser.add_argument("--batch", default="1,128")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each runtime at each batch size")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_named(args.device)
    loaded = load_model(Source(str(args.model)))
    model, shape = loaded.model.to(device), image_shape(loaded, hint="Give one of another size.")
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    made = dict(variants(model, x, [float(word) for word in args.channels.split(",")]))
    machine = environment(device=str(device), seed=0)
    print(f"{args.model.name}, images {' x '.join(map(str, shape))}, {machine['device']}, {args.threads} "
          f"thread{'s' * (args.threads > 1)}, torch {machine['torch']}\n")
    show(("network", "MACs", "parameters", "file"), [sizes(name, net, x) for name, net in made.items()])
    for batch in map(int, args.batch.split(",")):
        images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        columns = {name: column for name in args.runtimes.split(",")
                   if (column := timed(name, made, images, args.seconds))}
        rows = [[network, *(column[network] for column in columns.values())] for network in made]
        show((f"batch {batch}", *columns), rows)


# --- networks ---------------------------------------------------------------------------

def variants(model: Normalized, x: Tensor, fractions: list[float]) -> Iterator[tuple[str, nn.Module]]:
    """(name, network) to compare, the dense one first."""
    yield DENSE, model
    yield "90% single zeros", zeroed(model, x, "unstructured", 0.9)
    silent = zeroed(model, x, "filter", 0.5)
    yield "filter 50%, masked", silent
    yield "filter 50%, slim", slim.reduced(silent, x, "filter").model
    for fraction in fractions:
        quiet = zeroed(model, x, "channel", fraction)
        yield f"channels {100 * fraction:g}%, slim", slim.reduced(quiet, x, "channel").model
        yield f"channels {100 * fraction:g}%, Torch-Pruning", torch_pruned(model, x, fraction)


def zeroed(model: Normalized, x: Tensor, structure: str, fraction: float) -> Normalized:
    """A copy whose weakest groups are zero, the same fraction of them in every layer."""
    copied = copy.deepcopy(model)
    weights = counted(copied, x, structure, where=structure).weights
    groups = groups_of(copied, x, weights, structure, where=structure)
    worth = scores_by_layer(groups, magnitude({name: w.detach() for name, w in weights.items()}))
    lost = allocation.quotas(groups, worth, fraction, method="uniform", of="groups")
    flags = kept(groups, worth, lost)
    apply_masks(copied, masks(groups, flags) | companion_masks(groups, flags))
    return copied


def torch_pruned(model: Normalized, x: Tensor, fraction: float) -> nn.Module:
    """Torch-Pruning's own pruner, magnitudes by group, the logits' layer left alone."""
    copied = copy.deepcopy(model)
    for p in copied.parameters():
        p.requires_grad_(True)  # its tracer follows gradients
    last = copied.get_submodule(layers.logit_layers(copied, x)[0])
    torch_pruning.pruner.MetaPruner(copied, x[:1], importance=torch_pruning.importance.MagnitudeImportance(),
                                    pruning_ratio=fraction, ignored_layers=[last]).step()
    return copied.eval()


def sizes(name: str, model: nn.Module, x: Tensor) -> list[str]:
    """[name, MACs, parameters, bytes of the file that pwoa writes]: sparse where there are zeros."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    if "single" in name or "masked" in name:
        with tempfile.TemporaryDirectory() as folder:
            written = sparse.save(state, Path(folder, "m.safetensors"))
    else:
        written = len(safetensors.torch.save(state))
    parameters = sum(p.numel() for p in model.parameters())
    macs = layers.macs(model, x)["dense"]
    return [name, f"{macs / 1e6:,.1f} M", f"{parameters:,}", f"{written / 1e6:.2f} MB"]


# --- times ---------------------------------------------------------------------------

def timed(runtime: str, made: dict[str, nn.Module], x: Tensor, seconds: float) -> dict[str, str]:
    """{network: its cell} in one runtime; {} where it is not to be had, said on the way."""
    try:
        calls = {name: synced(RUNTIMES[runtime](model, x), x.device) for name, model in made.items()}
    except Unavailable as why:
        print(f"left out: {runtime}: {why}")
        return {}
    with torch.no_grad():
        times = alternating(calls, seconds=seconds)
    return {name: cell(taken, times[DENSE]) for name, taken in times.items()}


def cell(ours: list[float], dense: list[float]) -> str:
    """Milliseconds, and times as fast as dense."""
    fast = ratios(ours, dense)
    return f"{1000 * spread(ours).median:.3g} ms, {fast.median:.2f} [{fast.low:.2f}, {fast.high:.2f}]"


def show(head: tuple[str, ...], rows: list[list[str]]) -> None:
    """Print a table as soon as it is there."""
    print(*markdown_table(head, rows), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
