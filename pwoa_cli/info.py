"""The main path of `pwoa info`: what a checkpoint is, what that was read from, what its weights are; no data set is needed."""
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pwoa_cli import data as datasets
from pwoa_cli import cpu, layers, models, report, run, show
from pwoa_cli.architecture import UnknownArchitecture
from pwoa_cli.checkpoint import Loaded, Source, answer, load_model, said
from pwoa_cli.checkpoint_file import file_sha256, read_state_dict
from pwoa_cli.readings import Undecided, is_near_chance, outputs, settle, warn_of_code

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms: buffers, no parameters
PRUNED = ("recipe", "source", "source_sha256", "data", "norm", "eps", "seed", "pwoa_version")  # what a pruned file says


def describe(source: Source, *, data: str | None = None, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that a checkpoint says of itself: the JSON object of `pwoa info`.

    Args: data: a data set on whose training images the model is tried, and what its file leaves open is settled.
    Raises: InputError if it cannot be read. An architecture that is not known is a finding: `arch` is null then,
    `unknown` says why and what to do, and `layers` are the matrices in the file.
    """
    with cpu.one_thread() if data is None else nullcontext():
        return _described(source, data, say=say)


def _described(source: Source, data: str | None, *, say: Callable[[str], None]) -> dict[str, Any]:
    warn_of_code(source, say=say)
    about = {"source": source.path, "file_bytes": os.path.getsize(source.path) if os.path.isfile(source.path) else None}
    try:
        loaded = load_model(source)
    except UnknownArchitecture as error:
        return run.plain(about | _of_no_architecture(source, error))
    accuracy, x = None, None
    if data is not None:
        dataset = datasets.load(data, device=torch.device("cpu"), size=loaded.default_size)
        x = dataset.train.batch(torch.arange(2))[0]
        try:
            reading = settle(loaded, dataset, say=say)
            loaded, accuracy = reading.loaded, {"data": data, "images": len(reading.hits), "accuracy": reading.accuracy,
                                                "near_chance": is_near_chance(reading, loaded.num_classes)}
        except Undecided as error:  # a finding too
            loaded = replace(loaded, settled=f"{error.message} {error.hint}")
    weights, notes = _weights(loaded, x)
    return run.plain(about | {
        "sha256": loaded.sha256, "arch": loaded.arch, "arch_options": loaded.arch_options, "evidence": loaded.evidence,
        "chosen": loaded.chosen(), "same_keys": loaded.others, "settled": loaded.settled, "num_classes": loaded.num_classes,
        "input_shape": loaded.input_shape, "default_size": loaded.default_size,
        "normalisation": {"mean": loaded.mean, "std": loaded.std, "said_by": loaded.normalisation.said_by,
                          "words": loaded.normalisation.words()},
        "threat": {"norm": loaded.threat[0], "eps": loaded.threat[1]} if loaded.threat else None,
        "unwrapped": loaded.unwrapped, "clean": accuracy, **weights, "pruned": _pruned(loaded), "notes": notes})


def _of_no_architecture(source: Source, error: UnknownArchitecture) -> dict[str, Any]:
    state, _, unwrapped = read_state_dict(source.path, entry=source.entry, keep=source.keep, trust_pickle=source.trust_pickle)
    matrices = {name: t for name, t in state.items() if t.ndim >= 2 and t.is_floating_point()}
    return {"sha256": file_sha256(source.path), "arch": None, "unwrapped": unwrapped, **_counted(matrices, None), "notes": [],
            "unknown": {"why": error.message, "what_to_do": error.hint, "candidates": error.candidates},
            "parameters": sum(t.numel() for k, t in state.items() if not k.endswith(STATISTICS))}


def _weights(loaded: Loaded, x: Tensor | None) -> tuple[dict[str, Any], list[str]]:
    """Counts of the prunable weights, those that never reach the logits apart, and what running the network showed.

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
    reached = models.live_parameters(loaded.model, x)
    live = layers.prunable(loaded.model, reached)
    others = [name.removeprefix("net.") for name in layers.uncounted(loaded.model, reached)]
    counted = _counted(everything, set(live)) | {"parameters": parameters}
    dead = [name.removeprefix("net.") for name in everything if name not in live]
    notes = [f"{counted['weights']['dead']:,} weights never reach the logits ({', '.join(dead[:3])}{', ...' * (len(dead) > 3)}): "
             "they do not count for sparsity and are not pruned"] if dead else []
    if others:
        notes.append(f"{', '.join(others[:3])}{', ...' * (len(others) > 3)} of layers that pwoa does not prune do not count")
    return counted, notes + outputs(loaded, x)


def _images(loaded: Loaded) -> tuple[Tensor | None, str]:
    """Two images (2, C, H, W) that the network takes, or (None, why none)."""
    options = loaded.arch_options
    channels = loaded.input_shape[0] if loaded.input_shape else options.get("in_channels", options.get("in_chans"))
    sizes = [loaded.default_size] if loaded.default_size else models.SIZES
    made = answer(loaded.model, loaded.model.state_dict(), channels=channels, sizes=sizes)
    if isinstance(made, str):
        return None, made
    x, logits = made
    fine = isinstance(logits, Tensor) and logits.shape == (2, loaded.num_classes)
    return (x, "") if fine else (None, f"it does not return {loaded.num_classes} logits for an image (--num-classes)")


def _counted(weights: Mapping[str, Tensor], live: set[str] | None) -> dict[str, Any]:
    """Sums and a row a layer. Args: live: names of those that reach the logits; None: not known, all count."""
    rows = [{"name": name.removeprefix("net."), "shape": list(w.shape), "total": w.numel(), "nonzero": int(w.count_nonzero()),
             "live": None if live is None else name in live} for name, w in weights.items()]
    counting = [row for row in rows if row["live"] is not False]
    total, nonzero = sum(row["total"] for row in counting), sum(row["nonzero"] for row in counting)
    dead = sum(row["total"] for row in rows) - total
    weights = {"total": total, "nonzero": nonzero, "dead": dead, "sparsity": 1 - nonzero / max(1, total)}
    return {"weights": weights, "layers": rows}


def _pruned(loaded: Loaded) -> dict[str, Any] | None:
    """What a file of pwoa's says of its making, and the report beside it if that is its own; None for other files."""
    if "arch_options" not in loaded.extra:
        return None
    made = {key: loaded.extra[key] for key in PRUNED if key in loaded.extra}
    beside = Path(loaded.source).with_name("report.json")
    if not beside.is_file():
        return made | {"report": None}
    found = run.read_json(beside)
    own = found.get("size", {}).get("file_bytes") == os.path.getsize(loaded.source)
    return made | {"report": report.validate(found, where=str(beside)) if own else None}


# --- showing ---------------------------------------------------------------------------------------------------------

def headline(info: Mapping[str, Any]) -> str:
    """What it is, in a line."""
    name = os.path.basename(info["source"].rstrip("/")) or info["source"]
    if info["arch"] is None:
        several = ", ".join(info["unknown"]["candidates"])
        return f"{name}: {f'one of {several}' if several else 'an architecture that pwoa does not know'}"
    sizes = info["input_shape"] or (["images of any size"] if info["default_size"] else ["images of a size that is not known"])
    shape = " x ".join(map(str, sizes))
    return f"{name}: {info['arch']}, {info['num_classes']} classes, {shape}"


def facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was found, as (label, sentence)."""
    weights = info["weights"]
    lines = [*_identity(info), *(("reading", text) for text in info["unwrapped"])]
    zeros = show.percent_of_weights(weights["sparsity"])
    lines.append(("weights", f"{weights['total']:,} in {len(info['layers'])} layers ({info['parameters']:,} parameters in all)"
                  + (f", and {weights['dead']:,} dead" if weights["dead"] else "")))
    lines.append(("sparsity", f"{zeros}%: {weights['nonzero']:,} of {weights['total']:,} nonzero"))
    file = show.size(info["file_bytes"]) + ", " if info["file_bytes"] is not None else ""
    lines.append(("file", f"{file}SHA-256 {info['sha256']}"))
    if info.get("pruned"):
        lines += _history(info["pruned"])
    return [*lines, *(("note", note) for note in info["notes"])]


def _identity(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    if info["arch"] is None:
        return [("architecture", f"not known. {info['unknown']['why']}"), ("next", info["unknown"]["what_to_do"])]
    threat, clean = info["threat"], info["clean"]
    lines = [("architecture", f"{info['arch']}{info['chosen'] and ' with ' + info['chosen']} from {info['evidence']}")]
    for other in map(said, info["same_keys"]):
        lines.append(("or", f"{other}: the same keys (--arch {info['arch']}:{other.replace(' ', '')})"))
    lines.append(("normalisation", info["normalisation"]["words"]))
    if clean:
        doubt = ": near chance, so the data or the reading is wrong" if clean["near_chance"] else ""
        lines.append(("right on", f"{100 * clean['accuracy']:.1f}% of {clean['images']} training images of {clean['data']}{doubt}"))
    if info["settled"]:
        lines.append(("reading", info["settled"]))
    words = f"{threat['norm']}, eps {show.radius(threat['eps'])}" if threat else "not in the file (--norm, --eps say it)"
    return [*lines, ("threat", words)]


def _history(pruned: Mapping[str, Any]) -> list[tuple[str, str]]:
    made, lines = pruned.get("report"), []
    source = pruned.get("source") or (made and os.path.basename(made["model"]["source"])) or "a checkpoint"
    lines.append(("pruned from", f"{source}, SHA-256 {pruned.get('source_sha256', 'not known')}"))
    recipe, seed, data, version = (pruned.get(key, "not known") for key in ("recipe", "seed", "data", "pwoa_version"))
    lines.append(("recipe", f"{recipe}, seed {seed}, data {data}, pwoa {version}"))
    return lines + ([("report", f"{show.summary(made)} {show.caption(made)}")] if made else [])


def rows(info: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Layer, shape, weights and sparsity in percent of each."""
    return [(row["name"], "x".join(map(str, row["shape"])), f"{row['total']:,}",
             "dead" if row["live"] is False else show.percent_of_weights(1 - row["nonzero"] / max(1, row["total"])))
            for row in info["layers"]]


HEAD = ("layer", "shape", "weights", "zero %")


def markdown(info: Mapping[str, Any]) -> str:
    """The findings as one Markdown document."""
    lines = [f"# {show.inline(headline(info))}", "", *(f"- {label}: {show.inline(text)}" for label, text in facts(info))]
    return "\n".join([*lines, "", *show.markdown_table(HEAD, rows(info))]) + "\n"


def table(info: Mapping[str, Any]) -> Any:
    """The findings for a terminal: a rich renderable that holds at 60 columns."""
    from rich.console import Group
    from rich.table import Table

    plain = {"box": None, "pad_edge": False, "padding": (0, 2, 0, 0)}
    findings, weights = Table(**plain, show_header=False), Table(**plain, header_style="bold")
    findings.add_column(no_wrap=True)
    findings.add_column(overflow="fold")
    for label, text in facts(info):
        findings.add_row(label, show.text_cell(text))
    weights.add_column(HEAD[0], overflow="fold")
    for heading in HEAD[1:]:
        weights.add_column(heading, justify="right", no_wrap=True)
    for row in rows(info):
        weights.add_row(*map(show.text_cell, row))
    return Group(show.text_cell(headline(info), "bold"), "", findings, "", weights)
