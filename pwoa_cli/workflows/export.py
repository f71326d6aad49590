"""The main path of `pwoa export`: find the model -> write it in the form that is asked for -> read that again
and prove it -> measure it where its numbers changed."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pwoa_cli import attacks
from pwoa_cli.checkpoints import hub
from pwoa_cli.checkpoints.architecture import is_file
from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import Loaded, Source, load_model
from pwoa_cli.checkpoints.slim import is_slim
from pwoa_cli.data.choices import Choices
from pwoa_cli.data.dataset import Dataset
from pwoa_cli.data.samples import samples, stratified
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.exports import dense, onnx, quantised, slim
from pwoa_cli.files import run_folder, sparse
from pwoa_cli.files.folders import temporary_folder
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.files.plain import read_json
from pwoa_cli.networks.build import Normalized
from pwoa_cli.progress import Progress, Say
from pwoa_cli.reports import numbers
from pwoa_cli.reports.gates import Gate, resolved
from pwoa_cli.workflows import evaluate as evaluation
from pwoa_cli.workflows.images import image_shape
from pwoa_cli.workflows.setup import open_model

ENDINGS = {"sparse": (".safetensors",), "slim": (".safetensors",), "dense": dense.ENDINGS,
           "onnx": (".onnx",)}
# to which values are rounded; None: to none
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
OFFERED = {"sparse": tuple(DTYPES), "slim": ("fp32",), "dense": ("fp32", "bf16", "fp16"),
           "onnx": ("fp32", "int8")}
TRIED = 100  # images, at most, on which logits are compared
BY_ORIGINAL = ("exported: rounding has no gradient, so the attacks went by the original's, on the logits of "
               "ONNX Runtime on this machine (BPDA).")
CLOSE = 1e-3  # largest difference of logits that float32 rounding makes in another runtime


@dataclass(frozen=True)
class Request:
    """What the user asked `pwoa export` for; None: inferred. like: a checkpoint whose envelope a dense file
    gets; "none": nothing around the names. measure: attack both where values changed. resume: go on with an
    export that was stopped; its file may be there. eps as typed."""

    source: Source
    format: str
    out: Path | None = None
    dtype: str = "fp32"
    prefix: str = ""
    like: str | None = None
    data: str | None = None
    choices: Choices = field(default_factory=Choices)
    norm: str | None = None
    eps: str | None = None
    attacks: str = "fgsm,pgd,cw"
    n: int = 1000
    seed: int = 0
    measure: bool = True
    resume: bool = False
    gates: Sequence[Gate] = ()
    strict: bool = False

    @property
    def idle(self) -> str:
        """Why nothing is attacked; "" where both models are."""
        return "no value is rounded" if self.dtype == "fp32" else "" if self.measure else "--no-measure"

    @property
    def integers(self) -> bool:
        """Whether the file's products are of integers, whose ranges images tell: none of the n samples."""
        return (self.format, self.dtype) == ("onnx", "int8")


@dataclass(frozen=True)
class Job:
    """A request with everything found and checked. evaluation: data and threat, None where none is needed.
    like: the checkpoint whose envelope is taken. images: (N, C, H, W) in [0,1], on which logits are compared;
    compared_on: what they are. slimmed: the model without its silent channels, if that is asked for.
    calibration: (N, C, H, W) in [0,1], whose activations say the ranges of integers, if they are rounded,
    and what they are."""

    request: Request
    loaded: Loaded
    out: Path
    like: Source | None
    evaluation: evaluation.Job | None
    images: Tensor
    compared_on: str
    slimmed: slim.Slim | None = None
    calibration: tuple[Tensor, str] | None = None


# --- setting up ---------------------------------------------------------------------------

def prepare(request: Request, *, say: Say) -> Job:
    """Find and check everything before anything is written. Raises: InputError."""
    _check(request)
    path = request.source.path
    out = request.out or Path(f"{run_folder.name_for(path)}-{request.format}{ENDINGS[request.format][0]}")
    _check_out(out, request)
    found: evaluation.Job | None = None
    if (not request.idle or request.integers or request.data
            or request.format in ("onnx", "slim") and Path(path).is_dir()):
        attacked = {"attacks": request.attacks, "norm": request.norm, "eps": request.eps, "n": request.n}
        found = evaluation.prepare(evaluation.Request(
            request.source, data=request.data, choices=request.choices, seed=request.seed, device="cpu",
            resume=request.resume, strict=request.strict, alone=True,
            **({"attacks": "clean", "n": 1} if request.idle else attacked)), say=say)
        loaded = found.subject.loaded
    else:
        request.choices.check_nothing_said()
        source = replace(request.source, path=run_folder.model_of(path))
        loaded = open_model(source, device=torch.device("cpu"), say=say)
    like = _like(request, say=say) if request.format == "dense" else None
    if request.format == "dense" and is_slim(loaded.extra, path):
        raise InputError(f"{path} is a slim file: the code of its architecture builds larger layers than "
                         "those of its tensors.", hint="--format onnx")
    job = Job(request, loaded, out, like, found, *_images(request, loaded, found))
    if request.integers and found is not None:
        return replace(job, calibration=_calibration(request, found.subject.dataset))
    return replace(job, slimmed=_slim(job, say=say)) if request.format == "slim" else job


def _images(request: Request, loaded: Loaded, found: evaluation.Job | None) -> tuple[Tensor, str]:
    """Images to compare logits on (N, C, H, W) in [0,1], and what they are: test images where the data is
    known."""
    if found is not None:
        dataset = found.subject.dataset
        count = min(TRIED, len(dataset.test))
        return samples(dataset, count, seed=request.seed)[:], f"{count} test images of {dataset.name}"
    draw = torch.Generator().manual_seed(request.seed)
    shape = image_shape(loaded, hint="Name images that it takes: --data FOLDER")
    return torch.rand(8, *shape, generator=draw), "8 random images (--data names real ones)"


def _calibration(request: Request, dataset: Dataset) -> tuple[Tensor, str]:
    """Images (N, C, H, W) in [0,1] that nothing is measured on, and what they are: training images, or where
    there are none, test images that are left. Raises: InputError if there are too few."""
    split, what = dataset.train, "training images"
    if not len(split):
        left = torch.ones(len(dataset.test), dtype=torch.bool)
        left[samples(dataset, request.n, seed=request.seed).index] = False
        split, what = dataset.test.part(left.nonzero().flatten()), "other test images"
    if len(split) < 2:
        raise InputError(f"{dataset.name} has no image left to calibrate integers on: no training images, "
                         f"and {request.n:,} of its {len(dataset.test):,} test images are measured.",
                         hint=f"--samples {max(1, len(dataset.test) // 2)}")
    count = min(quantised.CALIBRATION, len(split))
    index = stratified(split.labels, count, seed=request.seed)
    return split.batch(index)[0].cpu(), f"{count} {what} of {dataset.name}"


def _slim(job: Job, *, say: Say) -> slim.Slim:
    say("finding which channels are silent in every layer that they pass")
    made = slim.reduced(job.loaded.model, job.images, job.request.source.path)
    for name, why in made.stay.items():
        say(f"channels of {name} stay: {why}")
    return made


def _check(request: Request) -> None:
    if request.format not in ENDINGS:
        raise InputError(f"--format {request.format} is none of {', '.join(ENDINGS)}.",
                         hint="For example: --format dense")
    if request.dtype not in OFFERED[request.format]:
        what = "none of" if request.dtype not in DTYPES else f"not offered for {request.format}, which has"
        raise InputError(f"--dtype {request.dtype} is {what} {', '.join(OFFERED[request.format])}.",
                         hint=f"--dtype {OFFERED[request.format][-1]}")
    if request.gates and request.idle:
        raise InputError(f"{request.gates[0]}: nothing is attacked ({request.idle}), so there is nothing to "
                         "judge.", hint="Leave it out.")
    if request.format != "dense" and (request.prefix or request.like):
        raise InputError("--prefix and --like are of dense files.", hint="Leave them out, or: --format dense")
    if request.prefix and request.like not in (None, "none"):
        raise InputError("--prefix and --like both say how names begin.", hint="Give one of them.")
    _gates(request)
    if request.format == "onnx":
        onnx.check_installed()


def _gates(request: Request) -> list[Gate]:
    """Under the names that the report will have. Raises: InputError."""
    return resolved(request.gates, attacks.typed(request.attacks), compared=True)


def _check_out(out: Path, request: Request) -> None:
    """Raises: InputError unless a file of that name can be written and is not there yet, but for one that a
    stopped export may have left."""
    endings = ENDINGS[request.format]
    run_folder.check_file(out, flag="--out", ending=out.suffix if out.suffix in endings else endings[0])
    if out.exists() and not request.resume:
        raise InputError(f"{out} exists; it was not touched.",
                         hint="Name another: --out FILE; or, if this command was stopped: --resume")


def _like(request: Request, *, say: Say) -> Source | None:
    """The checkpoint whose envelope a dense file gets: the one that is named, else the one that a run was
    made from, if it is still there."""
    if request.like == "none" or request.prefix:
        return None
    if request.like is not None:
        return Source(request.like, entry=request.source.entry, trust_pickle=request.source.trust_pickle)
    folder = Path(request.source.path)
    if not (folder / "report.json").is_file():
        return None
    model = read_json(folder / "report.json").get("model", {})
    name = str(model.get("source", ""))
    origin = Path(run_folder.beside(name, folder))
    if origin.is_file() and file_sha256(origin) == model.get("sha256"):
        say(f"in the envelope of {origin}, which it was pruned from (--like none: names alone)")
        return Source(str(origin), entry=model.get("reading", {}).get("entry"),
                      trust_pickle=request.source.trust_pickle)
    if not hub.is_name(name):
        why = "is another file now" if origin.is_file() else "is not there any more"
        say(f"names alone: {name}, in whose envelope it would be, {why} (--like FILE names one)")
    return None


# --- doing ---------------------------------------------------------------------------

@dataclass(frozen=True)
class Outcome:
    """An export. result: the JSON object of `pwoa export`; `evaluation` in it is what `pwoa eval` gives,
    where the numbers changed. forget: removes what is kept for --resume, for when the result is shown."""

    result: dict[str, Any]
    forget: Callable[[], None] = lambda: None


def execute(job: Job, *, progress: Progress, say: Say) -> Outcome:
    """Write, prove and measure. Raises: InputError if --resume finds another file; PwoaError if the file
    gives other logits."""
    request, net = job.request, job.loaded.model.net
    say(f"writing {job.out}")
    size = _written(job)
    result: dict[str, Any] = {
        "format": request.format, "dtype": request.dtype, "file": str(job.out), "file_bytes": size,
        "sha256": file_sha256(job.out), "source": job.loaded.source, "source_sha256": job.loaded.sha256,
        "arch": job.loaded.arch, "dense_bytes": sparse.dense_bytes(net.state_dict()),
        "normalisation": {"mean": job.loaded.mean, "std": job.loaded.std},
        "envelope": job.like.path if job.like else None, "compared_on": job.compared_on}
    again, allowed = _again(job), 0.0
    if request.format == "onnx":
        result |= {"opset": onnx.OPSET, "input": ["batch", *job.images.shape[1:]]}
        allowed = CLOSE
    if job.calibration is not None:
        result |= {"calibrated_on": job.calibration[1], "images": len(job.images),
                   "other_class": quantised.other_classes(job.out, job.loaded.model, job.images)}
    if job.slimmed is not None:
        result["slim"] = {"channels_removed": job.slimmed.channels[0], "channels": job.slimmed.channels[1],
                          "macs": list(job.slimmed.macs), "parameters": list(job.slimmed.parameters)}
        allowed = slim.difference(again.model, job.loaded.model, job.images)[1]
    with torch.no_grad():
        result["largest_difference"] = float(
            (again.model(job.images) - job.loaded.model(job.images)).abs().max())
    if request.dtype == "fp32" and not result["largest_difference"] <= allowed:
        raise PwoaError(f"{job.out} gives other logits than the model when it is loaded again, by "
                        f"{result['largest_difference']:.3g} on {job.compared_on}.",
                        hint="Please report this, with the checkpoint: the file is kept.")
    if not request.idle and job.evaluation is not None:
        both = replace(job.evaluation, request=replace(job.evaluation.request, gates=_gates(request)),
                       loaded={"original": job.loaded, "exported": again})
        made = evaluation.execute(both, progress=progress, say=say)
        if request.format == "onnx":
            made.result["notes"].append(BY_ORIGINAL)
        return Outcome(result | {"evaluation": made.result}, partial(evaluation.forget, made, both))
    return Outcome(result)


def _written(job: Job) -> int:
    """Write the file; the one that a stopped export left must be the same. Returns: its bytes. Raises:
    InputError if another came meanwhile."""
    if not (job.request.resume and job.out.exists()):
        return _write(job)
    with temporary_folder() as folder:
        again = folder / job.out.name
        size = _write(replace(job, out=again))
        if file_sha256(again) != file_sha256(job.out):
            raise InputError(f"{job.out} is another file than this command writes; it was not touched.",
                             hint="Name another: --out FILE")
    return size


def _write(job: Job) -> int:
    request, loaded = job.request, job.loaded
    kept = {key: text for key, text in loaded.extra.items() if isinstance(text, str)} \
        if "arch_options" in loaded.extra else {}
    if job.slimmed is not None:
        return slim.save(job.slimmed.model, job.out, metadata=kept | to_metadata(loaded))
    if request.format == "sparse":
        return sparse.save(loaded.model.net.state_dict(), job.out, metadata=kept | to_metadata(loaded),
                           dtype=DTYPES[request.dtype], new=True)
    if request.format == "dense":
        return dense.save(loaded.model.net, job.out, dtype=DTYPES[request.dtype], prefix=request.prefix,
                          like=job.like)
    if job.calibration is not None:
        return quantised.save(loaded.model, job.out, images=job.calibration[0])
    return onnx.save(loaded.model, job.out, example=job.images[:2])


def _again(job: Job) -> Loaded:
    """The exported file as a model, read as the original was."""
    like = job.loaded
    if job.request.format == "onnx":
        model = Normalized(onnx.Opened(job.out, like.model)).eval()
        return replace(like, model=model, source=str(job.out), sha256=file_sha256(job.out))
    source = Source(str(job.out), trust_pickle=job.request.source.trust_pickle)
    if job.request.format in ("sparse", "slim"):
        return load_model(replace(source, arch=like.arch if is_file(like.arch) else None))
    entry = job.like.entry if job.like and job.out.suffix != ".safetensors" else None
    return load_model(replace(source, arch=like.arch, options=like.arch_options, mean=like.mean or (),
                              std=like.std or (), entry=entry))


# --- saying ---------------------------------------------------------------------------

def facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was written, as (label, sentence)."""
    mean, std = (result["normalisation"][key] for key in ("mean", "std"))
    inside = "inside" if result["format"] != "dense" else "not in the file, apply it to images in [0,1]"
    lines = [("file", f"{result['file']}, {numbers.size(result['file_bytes'])} "
                      f"({numbers.size(result['dense_bytes'])} dense in float32)"),
             ("SHA-256", result["sha256"]), ("values", result["dtype"]),
             ("normalisation", f"mean {mean}, std {std}: {inside}" if mean else "none")]
    if result["envelope"]:
        lines.append(("envelope", f"as in {result['envelope']}"))
    if result["format"] == "onnx":
        shape = " x ".join(map(str, result["input"]))
        lines.append(("input", f"images ({shape}) in [0,1], float32, opset {result['opset']}"))
    if removed := result.get("slim"):
        lines.append(("channels", f"{removed['channels_removed']:,} of {removed['channels']:,} removed"))
        for what, label in (("parameters", "parameters"), ("macs", "MACs")):
            before, after = removed[what]
            lines.append((label, f"{numbers.scaled(after)} of {numbers.scaled(before)} "
                                 f"({100 * after / before:.1f}%)"))
    if "calibrated_on" in result:
        lines += [("calibrated on", result["calibrated_on"]),
                  ("kernels", f"those of this machine name another class than exact arithmetic on "
                              f"{result['other_class']} of {result['images']} images")]
    lines.append(("logits", f"{_differ(result['largest_difference'])} on {result['compared_on']}"))
    return lines


def _differ(largest: float) -> str:
    return f"differ by at most {largest:.3g} from the model's" if largest else "are the model's, bit for bit,"
