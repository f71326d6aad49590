"""The main path of `pwoa info`: what a checkpoint is, what that was read from, what its weights are; no data
set is needed."""
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pwoa_cli.checkpoints.architecture import UnknownArchitecture
from pwoa_cli.checkpoints.model import Loaded, Source, load_model
from pwoa_cli.checkpoints.parametrisations import Misfit
from pwoa_cli.checkpoints.reading import is_near_chance, outputs
from pwoa_cli.checkpoints.readings import Undecided, warn_of_code
from pwoa_cli.checkpoints.shards import checkpoint_sha256
from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.data.choices import Choices
from pwoa_cli.errors import InputError
from pwoa_cli.files.plain import plain, read_json
from pwoa_cli.machine.environment import log as log_environment
from pwoa_cli.machine.memory import threads
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import public_name
from pwoa_cli.progress import Say
from pwoa_cli.reports import schema
from pwoa_cli.workflows import images
from pwoa_cli.workflows.prune_weights import not_counted
from pwoa_cli.workflows.setup import first_images, say_of_data, say_of_size

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms: buffers, no parameters
# what a pruned file says
PRUNED = ("recipe", "source", "source_sha256", "data", "norm", "eps", "seed", "pwoa_version")


def describe(source: Source, *, data: str | None = None, choices: Choices | None = None,
             say: Say) -> dict[str, Any]:
    """Everything that a checkpoint says of itself: the JSON object of `pwoa info`.

    Args: data: a data set on whose training images the model is tried, and what its file leaves open is
    settled. choices: what the user says of how it is read.
    Raises: InputError if it cannot be read. An architecture that is not known is a finding: `arch` is null
    then, `unknown` says why and what to do, and `layers` are the matrices in the file. So are parametrised
    weights whose parts do not fit: they are shown as they are stored.
    """
    # for two images several threads gain nothing, and on a busy machine they wait for each other: 8.3 s
    # instead of 2.1 s for a ResNet-18 on 2 cores with 3 other jobs
    with threads(1) if data is None else nullcontext():
        return _described(source, data, choices or Choices(), say=say)


def _described(source: Source, data: str | None, choices: Choices, *, say: Say) -> dict[str, Any]:
    if data is None:
        choices.check_nothing_said()
    log_environment(device="cpu")
    warn_of_code(source, say=say)
    say_of_size(source, say=say)
    about = {"source": source.path,
             "file_bytes": os.path.getsize(source.path) if os.path.isfile(source.path) else None}
    try:
        loaded = load_model(source)
    except UnknownArchitecture as error:
        return plain(about | _of_no_architecture(source, error, candidates=error.candidates))
    except Misfit as error:
        return plain(about | _of_no_architecture(source, error, folded=False))
    accuracy, x = None, None
    if data is not None:
        possible = images.ways(loaded, data, choices, device=torch.device("cpu"), say=say)
        x = first_images(possible[0])
        try:
            dataset, reading = images.settled(loaded, possible, say=say)
            x = first_images(dataset)
            say_of_data(dataset, say=say)
            loaded, accuracy = reading.loaded, {"data": data, "images": len(reading.hits),
                                                "accuracy": reading.accuracy,
                                                "of": dataset.probe_name, "read": dataset.size_words(),
                                                "inferred": dataset.notes,
                                                "near_chance": is_near_chance(reading, loaded.num_classes)}
        except Undecided as error:  # a finding too
            loaded = replace(loaded, settled=f"{error.message} {error.hint}")
    weights, notes = _weights(loaded, x)
    return plain(about | {
        "sha256": loaded.sha256, "arch": loaded.arch, "arch_options": loaded.arch_options,
        "evidence": loaded.evidence,
        "chosen": loaded.chosen(), "same_keys": [loaded.changed(other) for other in loaded.others],
        "settled": loaded.settled,
        "num_classes": loaded.num_classes,
        "input_shape": loaded.input_shape, "default_size": loaded.default_size,
        "normalisation": {"mean": loaded.mean, "std": loaded.std, "said_by": loaded.normalisation.said_by,
                          "words": loaded.normalisation.words()},
        "threat": {"norm": loaded.threat[0], "eps": loaded.threat[1]} if loaded.threat else None,
        "unwrapped": loaded.unwrapped, "clean": accuracy, **weights, "pruned": _pruned(loaded),
        "notes": notes})


def _of_no_architecture(source: Source, error: InputError, *, candidates: tuple[str, ...] = (),
                        folded: bool = True) -> dict[str, Any]:
    """Args: folded: whether parametrised weights are shown as they are multiplied, or as they are stored."""
    state, _, unwrapped = read_state_dict(source.path, entry=source.entry, keep=source.keep,
                                          trust_pickle=source.trust_pickle, folded=folded)
    matrices = {name: t for name, t in state.items() if t.ndim >= 2 and t.is_floating_point()}
    return {"sha256": checkpoint_sha256(source.path), "arch": None, "unwrapped": unwrapped,
            **_counted(matrices, None), "notes": [],
            "unknown": {"why": error.message, "what_to_do": error.hint, "candidates": candidates},
            "parameters": sum(t.numel() for k, t in state.items() if not k.endswith(STATISTICS))}


def _weights(loaded: Loaded, x: Tensor | None) -> tuple[dict[str, Any], list[str]]:
    """Counts of the prunable weights, those that never reach the logits apart, and what running the network
    showed.

    Args: x: two images that it takes; None: not known.
    """
    everything = layers.prunable(loaded.model, None)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    why = ""
    if x is None:
        x, why = _images(loaded)
    if x is None:
        return _counted(everything, None) | {"parameters": parameters}, [
            f"the network was not run, so dead weights are not known: {why}"]
    reached = layers.live_parameters(loaded.model, x)
    live = layers.prunable(loaded.model, reached)
    others = layers.uncounted(loaded.model, reached, live)
    counted = _counted(everything, set(live)) | {"parameters": parameters}
    dead = [public_name(name) for name in everything if name not in live]
    notes = [f"{counted['weights']['dead']:,} weights never reach the logits "
             f"({', '.join(dead[:3])}{', ...' * (len(dead) > 3)}): "
             "they do not count for sparsity and are not pruned"] if dead else []
    if others:
        left_out = {name: p.numel() for name, p in others.items()}
        notes.append(not_counted(left_out, counted["weights"]["total"]).rstrip("."))
    return counted, notes + outputs(loaded, x)


def _images(loaded: Loaded) -> tuple[Tensor | None, str]:
    """Two images (2, C, H, W) that the network takes, or (None, why none)."""
    made = images.two_images(loaded)
    if isinstance(made, str):
        return None, made
    x, logits = made
    fine = isinstance(logits, Tensor) and logits.shape == (2, loaded.num_classes)
    return (x, "") if fine else (None, f"it does not return {loaded.num_classes} logits for an image "
                                       "(--num-classes)")


def _counted(weights: Mapping[str, Tensor], live: set[str] | None) -> dict[str, Any]:
    """Sums and a row a layer. Args: live: names of those that reach the logits; None: not known, all
    count."""
    rows: list[dict[str, Any]] = [
        {"name": public_name(name), "shape": list(w.shape), "total": w.numel(),
         "nonzero": int(w.count_nonzero()), "live": None if live is None else name in live}
        for name, w in weights.items()]
    counting = [row for row in rows if row["live"] is not False]
    total, nonzero = sum(row["total"] for row in counting), sum(row["nonzero"] for row in counting)
    dead = sum(row["total"] for row in rows) - total
    sparsity = 1 - nonzero / total if total else 0.0
    return {"weights": {"total": total, "nonzero": nonzero, "dead": dead, "sparsity": sparsity},
            "layers": rows}


def _pruned(loaded: Loaded) -> dict[str, Any] | None:
    """What a file of pwoa's says of its making, and the report beside it if that is its own; None for other
    files."""
    if "arch_options" not in loaded.extra:
        return None
    made = {key: loaded.extra[key] for key in PRUNED if key in loaded.extra}
    beside = Path(loaded.source).with_name("report.json")
    if not beside.is_file():
        return made | {"report": None}
    found = read_json(beside)
    size = found.get("size")
    own = isinstance(size, dict) and size.get("file_bytes") == os.path.getsize(loaded.source)
    return made | {"report": schema.validate(found, where=str(beside)) if own else None}

