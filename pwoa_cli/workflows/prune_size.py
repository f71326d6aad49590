"""The sparsity at which a network's file has so many bytes.

It is measured on files of the network without its weights of least magnitude, as many in each layer: so
positions pack worst. What training leaves packs a little worse than what magnitude leaves: files of a
ResNet-18 at 90, 95 and 99% were 0.9, 1.8 and 2.4% larger than this says, so MARGIN is kept free.
"""
import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.errors import InputError
from pwoa_cli.files import sparse
from pwoa_cli.networks.build import public_name
from pwoa_cli.pruning import allocation
from pwoa_cli.pruning.criteria import magnitude
from pwoa_cli.pruning.groups import Groups, kept, masks, scores_by_layer
from pwoa_cli.reports import numbers
from pwoa_cli.reports.escapes import visible
from pwoa_cli.version import __version__
from pwoa_cli.workflows.setup import Subject

MARGIN = 0.04  # of the bytes
HIGHEST = 0.9995
HALVINGS = 12


def file_metadata(subject: Subject, *, recipe: str, seed: int) -> dict[str, str]:
    """What the file of a pruned model says of it."""
    norm, eps = subject.threat
    metadata = to_metadata(subject.loaded) | {
        "data": subject.dataset.name, "norm": norm, "eps": repr(eps), "recipe": recipe,
        "source": Path(subject.loaded.source).name, "source_sha256": subject.loaded.sha256,
        "pwoa_version": __version__, "seed": str(seed)}
    return {key: visible(text) for key, text in metadata.items()}  # names of files may be no UTF-8


def sparsity_for(limit: int, state: Mapping[str, Tensor], weights: Mapping[str, Tensor],
                 groups: Mapping[str, Groups], *, metadata: Mapping[str, str], where: str) -> float:
    """The least sparsity, of four digits, whose file has at most `limit` bytes, less MARGIN.

    Args: state: all tensors of the file. weights: those that are pruned, by their names in the model.
    metadata: of the file. Raises: InputError where the file is that small already, or cannot become so.
    """
    scores = scores_by_layer(groups, magnitude(weights))
    # one of each layer must stay, and whole groups hardly ever give a sparsity beyond that
    highest = min(HIGHEST, 1 - 2 * len(groups) / sum(group.count for group in groups.values()))

    def size_at(sparsity: float) -> int:
        lost = allocation.quotas(groups, scores, sparsity, method="uniform")
        cut = {public_name(name): mask for name, mask in masks(groups, kept(groups, scores, lost)).items()}
        return sparse.size_bytes({name: t.masked_fill(~cut[name], 0) if name in cut else t
                                  for name, t in state.items()}, metadata=metadata)

    wanted = (1 - MARGIN) * limit
    if (now := sparse.size_bytes(state, metadata=metadata)) <= limit:
        raise InputError(f"{where} fits into {numbers.size(limit)} as it is: its file has "
                         f"{numbers.size(now)}.",
                         hint=f"As it is: pwoa export {shlex.quote(where)} --format sparse")
    if (least := size_at(highest)) > wanted:
        raise InputError(f"{where} does not fit into {numbers.size(limit)}: with "
                         f"{numbers.percent_of_weights(highest)}% zeros its file has {numbers.size(least)}, "
                         f"and {100 * MARGIN:g}% are kept free.",
                         hint=f"--target-bytes {math.ceil(1.02 * least / (1 - MARGIN))}")
    low, high = 0.0, highest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if size_at(middle) > wanted else (low, middle)
    return min(highest, round(high + 5e-5, 4))
