"""The main path of `pwoa bench`: load the models -> make every runtime that is here -> time all of them in
turn -> say what was measured."""
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pwoa_cli.checkpoints.model import Loaded, Source
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.exports.runtimes import RUNTIMES, Ready, Unavailable, synced
from pwoa_cli.machine import signals
from pwoa_cli.machine.devices import device_named
from pwoa_cli.machine.environment import environment
from pwoa_cli.machine.memory import threads
from pwoa_cli.machine.timing import alternating, ratios, spread
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import Normalized, raised, tried
from pwoa_cli.progress import Progress, Say
from pwoa_cli.reports import numbers, tables
from pwoa_cli.workflows.images import image_shape
from pwoa_cli.workflows.setup import open_model

TWIN = "without zeros"
ZEROS = 0.3  # of the weights: from here on a model without another is compared with itself without zeros
SAME = 0.1  # a ratio so near to 1 is no gain
CHILD = """
import json, sys, time
import torch, pwoa_cli, pwoa_cli.checkpoints.model
from pwoa_cli.machine.memory import peak_bytes
torch.set_num_threads(int(sys.argv[3]))
before, start = peak_bytes(), time.perf_counter()
model = pwoa_cli.load(sys.argv[1], arch=sys.argv[4] or None)
loaded = time.perf_counter() - start
with torch.no_grad():
    model(torch.zeros(json.loads(sys.argv[2])))
after = peak_bytes()
print(json.dumps([loaded, None if before is None else after - before or None]))
"""


@dataclass(frozen=True)
class Request:
    """What the user asked `pwoa bench` for. seconds: for each batch size. runtimes: names of RUNTIMES. size:
    (H, W) of the images; None: what the file says, else tried."""

    source: Source
    against: Source | None = None
    batches: Sequence[int] = (1, 128)
    threads: int = 1
    seconds: float = 10.0
    runtimes: Sequence[str] = ()
    device: str = "auto"
    size: tuple[int, int] | None = None


# --- the run ---------------------------------------------------------------------------

def bench(request: Request, *, progress: Progress, say: Say) -> dict[str, Any]:
    """Time the models. Returns: the JSON object of `pwoa bench`: models, rows (a runtime at a batch size with
    milliseconds by model and how many times as fast the first is as the last), left_out, conclusion.

    Raises: InputError for a runtime or model that is not known, or a size of images that it does not take.
    """
    unknown = [name for name in request.runtimes if name not in RUNTIMES]
    if unknown:
        raise InputError(f"--runtimes: {unknown[0]} is none of {', '.join(RUNTIMES)}.",
                         hint="For example: --runtimes eager,onnx")
    device = device_named(request.device)
    with threads(request.threads):
        loaded = _models(request, device, say=say)
        shape = _shape(loaded, request.size)
        known = {name: _known(one, shape, request) for name, one in loaded.items()}
        rows, left_out = _timed(request, loaded, shape, device, progress=progress, say=say)
    result = {"models": known, "image": list(shape), "rows": rows, "left_out": left_out,
              "environment": environment(device=str(device), seed=0) | {"threads": request.threads}}
    return result | {"conclusion": conclusion(result)}


def _models(request: Request, device: torch.device, *, say: Say) -> dict[str, Loaded]:
    """The model, and what it is compared with, by heading."""
    first = open_model(request.source, device=device, say=say)
    if request.against is not None:
        return {"model": first, "against": open_model(request.against, device=device, say=say)}
    if zeros(first.model) < ZEROS:
        return {"model": first}
    say("compared with the same network without zeros (--against FILE names another)")
    return {"model": first, TWIN: replace(first, model=filled(first.model))}


def zeros(model: nn.Module) -> float:
    """The share of zeros in the weights."""
    return layers.zeros_of(layers.prunable(model, None))


def filled(model: Normalized) -> Normalized:
    """A copy in which small numbers stand for zeros in the weights: as fast as before pruning."""
    twin, draw = deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in layers.prunable(twin, None).values():
            noise = 1e-3 * torch.randn(w.shape, generator=draw).to(w)
            w.copy_(torch.where(w == 0, noise, w))
    return twin


def _shape(loaded: Mapping[str, Loaded], size: tuple[int, int] | None) -> tuple[int, ...]:
    """(C, H, W) of images that all models take. Raises: InputError."""
    first, *others = loaded.values()
    shape = image_shape(first, size=size, hint="Name the size of its images: --image-size 224")
    for other in others:
        why = tried(other.model, channels=shape[0], sizes=[(shape[1], shape[2])])
        if isinstance(why, str):
            raise InputError(f"{other.source} takes no images of {' x '.join(map(str, shape))}, which "
                             f"{first.source} takes: {why}.",
                             hint="Name a model of the same images: --against FILE")
    return shape


def _known(loaded: Loaded, shape: tuple[int, ...], request: Request) -> dict[str, Any]:
    """What does not depend on the runtime: zeros, parameters, the file, time and memory of loading it (None:
    not known)."""
    path = Path(loaded.source)
    found: dict[str, Any] = {
        "source": loaded.source, "arch": loaded.arch, "zeros": zeros(loaded.model),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "file_bytes": path.stat().st_size if path.is_file() else None, "load_seconds": None,
        "memory_bytes": None}
    with suppress(subprocess.CalledProcessError, ValueError, OSError):
        words = [loaded.source, json.dumps([max(request.batches), *shape]), str(request.threads),
                 loaded.arch if ".py:" in loaded.arch else ""]
        done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True,
                              check=True)
        found["load_seconds"], found["memory_bytes"] = json.loads(done.stdout.splitlines()[-1])
    return found


def _timed(request: Request, loaded: Mapping[str, Loaded], shape: tuple[int, ...], device: torch.device, *,
           progress: Progress, say: Say) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows, {runtime: why it is left out})."""
    wanted, rows = list(request.runtimes or RUNTIMES), list[dict[str, Any]]()
    left_out: dict[str, str] = {}
    for batch in request.batches:
        x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        calls: dict[tuple[str, str], Ready] = {}
        for runtime in [name for name in wanted if name not in left_out]:
            say(f"batch {batch}: preparing {runtime}")
            try:
                for name, one in loaded.items():
                    calls[runtime, name] = synced(RUNTIMES[runtime](one.model, x), device)
                    with torch.no_grad():
                        calls[runtime, name]()
            except (Unavailable, PwoaError) as why:
                signals.let_through()
                left_out[runtime] = str(why)
            except Exception as error:  # a backend that is here and does not work: a compiler is missing, ...
                signals.let_through()
                left_out[runtime] = raised(error)
            if runtime in left_out:
                calls = {key: call for key, call in calls.items() if key[0] != runtime}
        label = {key: " ".join(key) for key in calls}
        progress("bench", 0, len(request.batches), f"batch {batch}")
        with torch.no_grad():
            times = alternating({label[key]: call for key, call in calls.items()}, seconds=request.seconds)
        for runtime in dict.fromkeys(runtime for runtime, _ in calls):
            taken = {name: times[label[runtime, name]] for name in loaded}
            rows.append(_row(runtime, batch, taken))
        progress("bench", len(rows), len(rows), f"batch {batch}")
    return rows, left_out


def _row(runtime: str, batch: int, taken: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    names = list(taken)
    found: dict[str, Any] = {
        "runtime": runtime, "batch": batch, "rounds": len(taken[names[0]]),
        "milliseconds": {name: asdict(spread([1000 * t for t in times])) for name, times in taken.items()},
        "images_per_second": {name: batch / spread(times).median for name, times in taken.items()}}
    if len(names) > 1:
        found["times_as_fast"] = asdict(ratios(taken[names[0]], taken[names[1]]))
    return found


# --- saying ---------------------------------------------------------------------------

def conclusion(result: Mapping[str, Any]) -> str:
    """What the figures say, in a sentence; "" where nothing is compared. A gain is one where the lower
    quartile is above 1 too."""
    models, compared = result["models"], [row for row in result["rows"] if "times_as_fast" in row]
    if not compared:
        return ""
    other = next(name for name in models if name != "model")
    what = models[other]["source"] if other == "against" else "the same network without zeros"
    sure = [row for row in compared if row["times_as_fast"]["low"] > 1]
    best = max(sure, key=_gained, default=None)
    if best is not None and _gained(best) >= 1 + SAME:
        return f"Up to {_gained(best):.2f} times as fast as {what} ({_where(best)})."
    best = max(compared, key=_gained)
    if _gained(best) >= 1 + SAME:  # a quarter of the rounds, or more, were no faster
        return (f"No gain stands out of the noise: at best {_ratio(best['times_as_fast'])} times as fast as "
                f"{what} ({_where(best)}).")
    same_size = models["model"]["parameters"] == models[other]["parameters"]
    why = "Single zeros buy bytes, not time" if same_size and models["model"]["zeros"] >= ZEROS else \
        "It is no faster"
    return f"{why}: at best {_gained(best):.2f} times as fast as {what} ({_where(best)})."


def _gained(row: Mapping[str, Any]) -> float:
    return float(row["times_as_fast"]["median"])


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['runtime']}, batch {row['batch']}"


def facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known beside the times, as (label, sentence)."""
    lines = []
    for name, one in result["models"].items():
        if name == TWIN:
            continue
        parts = [f"{one['parameters']:,} parameters", f"{numbers.percent_of_weights(one['zeros'])}% zeros"]
        if one["file_bytes"] is not None:
            parts.append(f"file {numbers.size(one['file_bytes'])}")
        if one["load_seconds"] is not None:
            parts.append(f"loaded in {1000 * one['load_seconds']:.0f} ms")
        if one["memory_bytes"] is not None:
            parts.append(f"{numbers.size(one['memory_bytes'])} of memory at the largest batch")
        lines.append((name, f"{one['source']}: {', '.join(parts)}"))
    machine = result["environment"]
    threads, shape = machine["threads"], " x ".join(map(str, result["image"]))
    lines.append(("machine", f"{machine['device']}, {threads} thread{'s' * (threads > 1)}, torch "
                             f"{machine['torch']}, image {shape}"))
    lines += [("left out", f"{name}: {why}") for name, why in result["left_out"].items()]
    return [*lines, *([("so", result["conclusion"])] if result["conclusion"] else [])]


def markdown(result: Mapping[str, Any]) -> str:
    """The times as a table, then the facts."""
    names = list(result["models"])
    head = ["runtime", "batch", *(f"{name}, ms" for name in names), "images/s",
            *(["times as fast"] if len(names) > 1 else [])]
    rows = [[row["runtime"], str(row["batch"]), *(_ms(row["milliseconds"][name]) for name in names),
             f"{row['images_per_second'][names[0]]:,.0f}",
             *([_ratio(row["times_as_fast"])] if len(names) > 1 else [])] for row in result["rows"]]
    lines = [*tables.markdown_table(head, rows), "",
             "Median [quartiles] of calls in turn, warmed up."] if rows else ["Nothing was timed."]
    return "\n".join([*lines, "", *(f"- {label}: {text}" for label, text in facts(result))]) + "\n"


def _ms(values: Mapping[str, float]) -> str:
    return f"{values['median']:.3g} [{values['low']:.3g}, {values['high']:.3g}]"


def _ratio(values: Mapping[str, float]) -> str:
    return str("{median:.2f} [{low:.2f}, {high:.2f}]".format(**values))

