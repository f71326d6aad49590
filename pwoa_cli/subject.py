"""What a command works on: a model, the data that fits it and the threat it was trained against; inferred things are said."""
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from pwoa_cli import data as datasets
from pwoa_cli.checkpoint import Loaded, load_model
from pwoa_cli.errors import InputError
from pwoa_cli.evaluate import parse_eps, parse_norm
from pwoa_cli.report import radius

PROBE = 500  # training images that tell whether model and data belong together
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A model file and what the user said about it; None: to be inferred."""

    path: str
    arch: str | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Subject:
    """A model on its device in eval mode, its data set, and the threat model (norm, eps in units of inputs in [0,1])."""

    loaded: Loaded
    dataset: datasets.Dataset
    norm: str
    eps: float

    @property
    def model(self) -> nn.Module:
        """The model, inputs (B, C, H, W) in [0,1], logits out."""
        return self.loaded.model


def device_named(text: str) -> torch.device:
    """The torch device of --device: auto (cuda, else mps, else cpu) or a name. Raises: InputError if it is not here."""
    here = ["cpu"]
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if text == "auto":
        return torch.device(here[0])
    if text.split(":")[0] not in here:
        raise InputError(f"--device {text} is not on this machine, which has {', '.join(here)}.", hint="Leave it out, or: --device auto")
    return torch.device(text)


def open_model(source: Source, *, device: torch.device, say: Say) -> Loaded:
    """Load a model to the device and say what was inferred about it. Raises: InputError as `load_model`."""
    loaded = load_model(source.path, arch=source.arch, num_classes=source.num_classes, mean=source.mean, std=source.std)
    say(f"{source.path}: {loaded.arch}, {loaded.num_classes} classes")
    for note in loaded.notes:
        say(f"  {note}")
    return replace(loaded, model=loaded.model.to(device).eval())


def open_subject(source: Source, *, data: str | None, norm: str | None, eps: str | None, device: torch.device, say: Say) -> Subject:
    """Model, data and threat of one command; everything that can be wrong with them is found here, before any work.

    Args: data: --data, None: the known data set on this machine on which the model is right most often.
    norm, eps: as typed, None: from the file, else the convention of the data set.
    Raises: InputError if model and data do not belong together or the threat cannot be known.
    """
    if eps is not None:
        parse_eps(eps, norm=parse_norm(norm or "linf"))  # a typing mistake is told before a large file is read
    loaded = open_model(source, device=device, say=say)
    dataset = _fitting_data(loaded, data, device=device, say=say)
    return Subject(loaded, dataset, *_threat(loaded, dataset, norm, eps, say=say))


def _fitting_data(loaded: Loaded, data: str | None, *, device: torch.device, say: Say) -> datasets.Dataset:
    size = loaded.input_shape[1:] if loaded.input_shape else None
    if data is not None:
        dataset = datasets.load(data, device=device, size=size)
        accuracy = probe(loaded.model, dataset, classes=loaded.num_classes, what=loaded.source)
    else:
        dataset, accuracy = _guess_data(loaded, size, device=device, say=say)
    say(f"data set: {dataset.name} from {dataset.where}, {len(dataset.train)} training and {len(dataset.test)} test images; "
        f"the model is right on {100 * accuracy:.1f}% of {min(PROBE, len(dataset.train))} training images")
    chance = 1 / loaded.num_classes
    if accuracy < chance + 5 * (chance * (1 - chance) / PROBE) ** 0.5:  # five standard deviations
        raise InputError(f"{loaded.source} is right on {100 * accuracy:.1f}% of {PROBE} images of {dataset.name}, near chance ({100 * chance:.1f}%).",
                         hint="Another data set (--data), or the normalisation that the model was trained with (--mean, --std)?")
    return dataset


def _guess_data(loaded: Loaded, size: tuple[int, int] | None, *, device: torch.device, say: Say) -> tuple[datasets.Dataset, float]:
    """The fitting known data set with the highest clean accuracy among those that are here (or the first, downloaded)."""
    fitting = datasets.candidates(loaded.input_shape, loaded.num_classes)
    if not fitting:
        raise InputError(f"No known data set has inputs {loaded.input_shape} and {loaded.num_classes} classes, as {loaded.source} has.",
                         hint="Name yours: --data FILE.npz (x_train, y_train, x_test, y_test) or --data FOLDER (train/CLASS/*.png, test/CLASS/*.png).")
    here = [name for name in fitting if datasets.locate(name)] or [fitting[0]]
    tried = {}
    for name in here:
        dataset = datasets.load(name, device=device, size=size)
        tried[name] = (probe(loaded.model, dataset, classes=loaded.num_classes, what=loaded.source), dataset)
    best = max(tried, key=lambda name: tried[name][0])
    if len(tried) > 1:
        say("data sets that fit its shape, by accuracy: " + ", ".join(f"{name} {100 * tried[name][0]:.1f}%" for name in sorted(tried, key=lambda n: -tried[n][0])))
    return tried[best][1], tried[best][0]


def probe(model: nn.Module, dataset: datasets.Dataset, *, classes: int, what: str) -> float:
    """Clean accuracy in 0..1 on the first PROBE training images (spread over the set).

    Raises: InputError if the classes differ or the model cannot take the images.
    """
    if classes != dataset.num_classes:
        raise InputError(f"{what} has {classes} classes, the data set {dataset.name} has {dataset.num_classes}.",
                         hint="Name the data that the model was trained on: --data NAME, FILE.npz or FOLDER.")
    index = torch.linspace(0, len(dataset.train) - 1, min(PROBE, len(dataset.train))).long()
    x, y = dataset.train.batch(index)
    right = 0
    with torch.no_grad():
        for start in range(0, len(x), 100):
            try:
                logits = model(x[start:start + 100])
            except RuntimeError as error:
                raise InputError(f"{what} cannot take images {tuple(x.shape[1:])} of {dataset.name}: {str(error).splitlines()[0]}",
                                 hint="Name the data that the model was trained on (--data), or its architecture (--arch).") from error
            if not isinstance(logits, torch.Tensor) or logits.shape != (len(x[start:start + 100]), classes):
                got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
                raise InputError(f"{what} returns {got} for {len(x[start:start + 100])} images, expected logits ({len(x[start:start + 100])}, {classes}).",
                                 hint="Wrap it in a module that returns the logits: --arch file.py:fn")
            right += int((logits.argmax(1) == y[start:start + 100]).sum())
    return right / len(x)


def _threat(loaded: Loaded, dataset: datasets.Dataset, norm: str | None, eps: str | None, *, say: Say) -> tuple[str, float]:
    """(norm, eps): what the user says, else what the file says, else the data set's convention; the last two are said."""
    asked = parse_norm(norm) if norm is not None else None
    if eps is not None:
        return asked or "linf", parse_eps(eps, norm=asked or "linf")
    for where, threat in (("the model file", loaded.threat), (f"the convention for {dataset.name}", dataset.threat)):
        if threat and asked in (None, threat[0]):
            say(f"threat model: {threat[0]}, eps {radius(threat[1])} ({where}; --norm and --eps change it)")
            return threat
    raise InputError(f"The threat model of {loaded.source} is not known: neither the file nor {dataset.name} gives an eps{f' for {asked}' if asked else ''}.",
                     hint="Say it: --norm linf --eps 8/255")


def samples(dataset: datasets.Dataset, n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same n stratified test samples for everyone who asks with this seed: images (n, C, H, W), labels (n,)."""
    return dataset.test.batch(datasets.stratified(dataset.test.labels, n, seed=seed))


def parse_numbers(text: str | None, *, flag: str) -> tuple[float, ...] | None:
    """(0.5, 0.5) from "0.5,0.5". Raises: InputError naming the flag."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text!r} is not a list of numbers.", hint=f"One a channel, for example: {flag} 0.491,0.482,0.447") from None
