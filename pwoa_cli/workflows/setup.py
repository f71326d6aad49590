"""What a command works on: a model, the data that fits it and the threat it was trained against; inferred
things are said."""
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pwoa_cli.attacks.threat import parse_eps, parse_norm
from pwoa_cli.checkpoints.architecture import UnknownArchitecture, is_file
from pwoa_cli.checkpoints.model import Loaded, Source, load_model, read_as
from pwoa_cli.checkpoints.reading import Reading, is_near_chance, outputs, run
from pwoa_cli.checkpoints.readings import Undecided, check_decided, provisional, settle, warn_of_code
from pwoa_cli.checkpoints.witnesses import is_clearly_better
from pwoa_cli.data import datasets
from pwoa_cli.data.choices import Choices
from pwoa_cli.data.samples import without_samples
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import units
from pwoa_cli.evaluation.checks import LOW
from pwoa_cli.machine.home import home
from pwoa_cli.networks import layers
from pwoa_cli.networks.build import Normalized
from pwoa_cli.networks.some_classes import SomeClasses
from pwoa_cli.progress import Say
from pwoa_cli.reports.numbers import percent_of_weights, radius, size
from pwoa_cli.workflows import images

SPARSE = 0.1  # fraction of zeros in a pruned network's weights; a dense one has as good as none
LARGE_BYTES = 100e6  # of a checkpoint: to read it and its SHA-256 takes a second


@dataclass(frozen=True)
class Subject:
    """A model on its device in eval mode, its data set, and the threat model (norm, eps in units of inputs in
    [0,1]), None where nobody says and nothing is attacked. choices: what the user said of the data."""

    loaded: Loaded
    dataset: datasets.Dataset
    norm: str | None
    eps: float | None
    choices: Choices = field(default_factory=Choices)

    @property
    def threat(self) -> tuple[str, float]:
        """Norm and eps, of what is attacked."""
        assert self.norm is not None and self.eps is not None
        return self.norm, self.eps

    @property
    def model(self) -> Normalized:
        """The model, inputs (B, C, H, W) in [0,1], logits out."""
        return self.loaded.model


def open_model(source: Source, *, device: torch.device, say: Say) -> Loaded:
    """Load a model to the device and say what was inferred about it. Raises: InputError as `load_model`."""
    warn_of_code(source, say=say)
    say_of_size(source, say=say)
    loaded = load_model(source)
    say(f"{loaded.source}: {loaded.arch}, {loaded.num_classes} classes")
    for note in loaded.notes:
        say(f"  {note}")
    return replace(loaded, model=loaded.model.to(device).eval())


def own_code(*models: Loaded) -> list[str]:
    """SHA-256 of the user's modules that networks are made by."""
    files = [Path(one.arch.rpartition(":")[0]) for one in models if is_file(one.arch)]
    return [units.of_folder(file) for file in files]


def say_of_size(source: Source, *, say: Say) -> None:
    """Before a file is read that takes its time."""
    size_bytes = os.path.getsize(source.path) if os.path.isfile(source.path) else 0
    if size_bytes >= LARGE_BYTES:
        say(f"reading {source.path} ({size(size_bytes)})")


def open_teacher(source: Source, subject: Subject, *, device: torch.device, say: Say,
                 flag: str = "--teacher") -> Loaded:
    """The model of --teacher, or of another `flag`, for the images and classes of the subject.

    What its file does not tell is taken from the subject's model: the architecture, and the normalisation if
    the teacher is right more often with it. Raises: InputError as `load_model`, or if it does not fit the
    subject's images and classes.
    """
    like, some = subject.loaded, subject.loaded.model.net
    classes = some.all_classes if isinstance(some, SomeClasses) else like.num_classes

    def asked(one: Loaded) -> Loaded:
        return images.of_some_classes(one, subject.dataset) if isinstance(some, SomeClasses) else one

    try:
        teacher = open_model(source, device=device, say=say)
    except InputError as error:
        if any(flag in error.hint for flag in ("--entry", "--keep")):
            raise InputError(error.message,
                             hint="--entry and --keep are for MODEL: save the teacher in a file of its own "
                                  "first.") from error
        again: Loaded | None = None
        with suppress(InputError):
            again = open_model(replace(source, arch=like.arch, num_classes=classes), device=device,
                               say=say)
        if again is None:
            raise  # what the file itself lacks
        teacher = again
    if teacher.num_classes != classes:
        raise InputError(f"{flag} {source.path} has {teacher.num_classes} classes, {like.source} has "
                         f"{classes}.",
                         hint="A teacher must know the same classes in the same order.")
    if teacher.others and _same_shapes(teacher, like):  # what was decided for the subject holds for it
        teacher = read_as(teacher, options=like.arch_options)
    refused, right = None, torch.zeros(0, dtype=torch.bool)
    try:
        right = run("as read", asked(teacher), subject.dataset, what=f"{flag} {source.path}").hits
    except InputError as error:  # as that network it takes other images
        refused = error
    if teacher.arch != like.arch and source.arch is None:  # its keys may be of several networks
        with suppress(InputError):
            other = load_model(replace(source, arch=like.arch, num_classes=classes))
            other = replace(other, model=other.model.to(device))
            right_so = run("as read", asked(other), subject.dataset).hits
            if right_so.sum() >= right.sum():
                say(f"  it is right as often as {like.arch}, the architecture of {like.source}: taken"
                    if refused is None else f"  as {like.arch}, the architecture of {like.source}, it takes "
                                            "these images: taken")
                teacher, right, refused = other, right_so, None
    if refused is not None:
        raise refused
    if teacher.others and not _same_shapes(teacher, like) and not isinstance(some, SomeClasses):
        settled = settle(teacher, subject.dataset, say=say)
        teacher, right = settled.loaded, settled.hits
    if teacher.normalisation.said_by == "nobody" and like.mean is not None:
        other = read_as(teacher, normalisation=like.normalisation)
        right_so = run("as read", asked(other), subject.dataset).hits
        if right_so.sum() >= right.sum():
            say(f"  it is right more often with the normalisation of {like.source} ({_percent(right)} "
                "without): taken")
            teacher, right = other, right_so
    say(f"  it is right on {_percent(right)} of the same {subject.dataset.probe_name}")
    return asked(teacher)


def _same_shapes(one: Loaded, other: Loaded) -> bool:
    """Whether two models are of one architecture and size."""
    shapes = [{name: t.shape for name, t in loaded.model.net.state_dict().items()} for loaded in (one, other)]
    return one.arch == other.arch and shapes[0] == shapes[1]


def _percent(right: torch.Tensor) -> str:
    return f"{100 * right.double().mean().item():.1f}%"


def open_subject(source: Source, *, data: str | None, norm: str | None, eps: str | None, device: torch.device,
                 say: Say, choices: Choices | None = None, attacked: bool = True,
                 near_chance: Literal["refused", "of pruned", "possible"] = "refused") -> Subject:
    """Model, data and threat of one command; everything that can be wrong with them is found here, before any
    work.

    Args: data: --data, None: the known data set on this machine on which the model is right most often.
    norm, eps: as typed, None: from the file, else the convention of the data set. choices: what the user says
    of how the data is read. attacked: whether a threat is needed. near_chance: what such a model is;
    "possible" where it was pruned on this very data, "of pruned" where that holds if the file is a pruned
    one.
    Raises: InputError if model and data do not belong together or the threat cannot be known.
    """
    choices = choices or Choices()
    asked = norm and parse_norm(norm)  # a typing mistake is told before a large file is read
    if eps is not None:
        parse_eps(eps, norm=asked or "l2")  # the file may say l2, where more is possible
    try:
        loaded = open_model(source, device=device, say=say)
    except UnknownArchitecture as error:
        loaded = _candidate(source, error, data, choices, device=device, say=say)
    loaded, dataset = _fitting_data(loaded, data, choices, device=device, say=say, near_chance=near_chance)
    for sentence in outputs(loaded, first_images(dataset)):
        say(sentence)
    threat = _threat(loaded, dataset, asked, eps, attacked=attacked, say=say)
    dataset = datasets.decoded(dataset, say=say)
    if choices.logits == "data":
        loaded, dataset = images.of_some_classes(loaded, dataset), dataset.of_some_classes()
        say(f"  {dataset.notes[-1]}")
    return Subject(loaded, dataset, threat[0], threat[1], choices)


def first_images(dataset: datasets.Dataset) -> torch.Tensor:
    """Two images (2, C, H, W), or one of a set of one."""
    return dataset.probe.batch(torch.arange(min(2, len(dataset.probe))))[0]


def _candidate(source: Source, error: UnknownArchitecture, data: str | None, choices: Choices, *,
               device: torch.device, say: Say) -> Loaded:
    """The one of several networks with the same keys that is right on clearly more training images; else the
    error is raised."""
    def quiet(_: str) -> None: ...

    readings: dict[str, Reading] = {}
    for name in error.candidates:
        say(f"{source.path} fits {len(error.candidates)} networks; trying {name} on training images")
        try:
            loaded = open_model(replace(source, arch=name), device=device, say=quiet)
            readings[name] = _tried(loaded, data, choices, device=device, say=quiet)[1]
        except Undecided as undecided:
            readings[name] = undecided.reading
        except InputError:  # it may not take the images
            continue
    best = max(readings, key=lambda name: readings[name].accuracy, default=None)
    others = [reading for name, reading in readings.items() if name != best]
    if best is None or not all(is_clearly_better(readings[best].hits, other.hits) for other in others):
        raise error
    check_decided(readings[best])
    shown = ", ".join(f"{name} {100 * reading.accuracy:.1f}%" for name, reading in readings.items())
    say(f"{error.message} Told apart by accuracy on training images: {shown}.")
    return open_model(replace(source, arch=best), device=device, say=say)


def _tried(loaded: Loaded, data: str | None, choices: Choices, *, device: torch.device,
           say: Say) -> tuple[datasets.Dataset, Reading]:
    """The data set that was named or that fits best, and the reading of the model that is right on it."""
    if data is None:
        choices.check_for_arrays("a known data set")
        return _guess_data(loaded, choices, device=device, say=say)
    return images.settled(loaded, images.ways(loaded, data, choices, device=device, say=say), say=say)


def _fitting_data(loaded: Loaded, data: str | None, choices: Choices, *, device: torch.device, say: Say,
                  near_chance: str) -> tuple[Loaded, datasets.Dataset]:
    """The data set that was named or that fits best, and the reading of the model that is right on it.

    Raises: InputError if the model is near chance on it and may not be.
    """
    dataset, reading = _tried(loaded, data, choices, device=device, say=say)
    right = f"right on {100 * reading.accuracy:.1f}% of {len(reading.hits)} {dataset.probe_name}"
    say(f"data set: {dataset.name} from {short_path(dataset.where)}, {len(dataset.train)} training and "
        f"{len(dataset.test)} test images; the model is {right}")
    say_of_data(dataset, say=say)
    hint = ("Another data set (--data), or the normalisation that the model was trained with (--normalize, "
            "or --mean and --std)?")
    meant = near_chance == "possible" or near_chance == "of pruned" and "recipe" in loaded.extra
    if is_near_chance(reading, loaded.num_classes) and not meant:
        tried = reading.tried and f"; other readings, {reading.tried}"
        if dataset.is_scaled():
            tried += f"; images of {dataset.size_words()}"
            hint += " Or the size that it was trained with: --image-size N"
        if dataset.reordered is not None:
            tried += "; its folders are numbers, and both orders, of text and of number, were tried"
        raise InputError(f"{loaded.source} is {right} of {dataset.name}, near chance "
                         f"({100 / loaded.num_classes:.1f}%){tried}.", hint=hint)
    if reading.accuracy < LOW and not meant:
        say(f"warning: {loaded.source} is {right} of {dataset.name}. {hint}")
    return reading.loaded, dataset


def say_of_data(dataset: datasets.Dataset, *, say: Say) -> None:
    """Size of the images, and what else was inferred of them, a line each."""
    say(f"  images of {dataset.size_words()}")
    for note in dataset.notes:
        say(f"  {note}")


def short_path(path: str) -> str:
    """A path with ~ for the home folder: shorter, and without the user's name in reports."""
    folder = home()
    return f"~{path.removeprefix(str(folder))}" if folder and path.startswith(f"{folder}/") else path


def _guess_data(loaded: Loaded, choices: Choices, *, device: torch.device,
                say: Say) -> tuple[datasets.Dataset, Reading]:
    """The fitting known data set with the highest clean accuracy among those that are here (or the first,
    downloaded). Raises: Undecided if that is of one on which it is not known how the file is to be read."""
    fitting = datasets.candidates(loaded.input_shape, loaded.num_classes,
                                  channels=loaded.arch_options.get("in_channels"))
    if not fitting:
        shape = "x".join(map(str, loaded.input_shape)) if loaded.input_shape else "its"
        raise InputError(f"No known data set has {shape} inputs and {loaded.num_classes} classes, as "
                         f"{loaded.source} has.",
                         hint="Name yours: --data FILE.npz (x_train, y_train, x_test, y_test) or --data "
                              "FOLDER (train/CLASS/*.png, test/CLASS/*.png).")
    here = [name for name in fitting if datasets.locate(name)] or [fitting[0]]
    tried, refused = {}, None
    for name in here:
        dataset = datasets.load(name, device=device, choices=choices, say=say)
        try:
            tried[name] = dataset, provisional(loaded, dataset, say=say)
        except InputError as error:  # a model of three channels and a set of one; another may fit
            refused = error
    if refused and not tried:
        raise refused
    best = sorted(tried, key=lambda name: -tried[name][1].accuracy)
    if len(tried) > 1:
        shown = ", ".join(f"{name} {100 * tried[name][1].accuracy:.1f}%" for name in best)
        say(f"data sets that fit its shape, by accuracy: {shown}")
    check_decided(tried[best[0]][1])
    return tried[best[0]]


def _threat(loaded: Loaded, dataset: datasets.Dataset, norm: str | None, eps: str | None, *,
            attacked: bool, say: Say) -> tuple[str, float] | tuple[None, None]:
    """(norm, eps): what the user says, else what the file says, else the data set's convention; the last two
    are said. None where none does and nothing is attacked."""
    if eps is not None:
        norm = norm or (loaded.threat[0] if loaded.threat else "linf")
        return norm, parse_eps(eps, norm=norm)
    for where, threat in (("the model file", loaded.threat),
                          (f"the convention for {dataset.name}", dataset.threat)):
        if threat and norm in (None, threat[0]):
            say(f"threat model: {threat[0]}, eps {radius(threat[1])} ({where}; --norm and --eps change it)")
            return threat
    if not attacked:
        return None, None
    which = f"an eps for {norm}" if norm else "an eps"
    raise InputError(f"The threat model of {loaded.source} is not known: neither the file nor {dataset.name} "
                     f"gives {which}.",
                     hint=f"Say it: --norm {norm or 'linf'} --eps {'0.5' if norm == 'l2' else '8/255'}")


def pruned_already(teacher: Loaded) -> list[str]:
    """What a reader of drops must know of a teacher that is a pruned model, or nothing: they begin there, and
    of several prunings one after the other each may be small."""
    zeros = layers.zeros_of(layers.prunable(teacher.model, None))
    if zeros < SPARSE:
        return []
    return [f"The teacher is pruned itself, {percent_of_weights(zeros)}% of its weights are zero: what that "
            "cost is in no drop."]


def data_notes(subject: Subject, *, n: int, seed: int) -> list[str]:
    """What a reader of the figures must know of how the images were read and drawn, a sentence each. Args: n,
    seed: of the samples."""
    dataset = subject.dataset
    size = [f"images of {dataset.size_words()}"] if dataset.is_scaled() else []
    none = without_samples(dataset.test.labels, n, seed=seed)
    few = [f"{n:,} samples, none of {none:,} of its {len(dataset.present):,} classes"] if none else []
    return [f"{dataset.name}: {note}" for note in (*size, *dataset.notes, *few)]


def data_fields(subject: Subject, *, n: int, seed: int) -> dict[str, Any]:
    """What a report says of the samples: size and channels of the images, how pictures were framed, all that
    was inferred, the images on which the reading of the model was settled, and what the user chose."""
    dataset = subject.dataset
    return {"name": dataset.name, "where": short_path(dataset.where), "n": n, "seed": seed,
            "shape": dataset.shape, "images": dataset.size_words(), "inferred": dataset.notes,
            "settled_on": dataset.probe_name,
            "classes": {"model": dataset.num_classes, "in_test_images": len(dataset.present)},
            "choices": subject.choices.said() | dict(dataset.taken)} | (
                {"class_numbers": dataset.present} if subject.choices.logits == "data" else {})


def check_training(dataset: datasets.Dataset) -> None:
    """Raises: InputError if only test images are there."""
    if not len(dataset.train):
        raise InputError(f"{dataset.where} holds no training images, and pruning trains.",
                         hint="Add them: the set's other files, train/CLASS/*.png beside it, or x_train and "
                              "y_train in the file; pwoa eval needs none.")
