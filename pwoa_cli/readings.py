"""Which reading of a checkpoint is right: what its file leaves open (options of the same keys, normalisation), tried on labelled images.

A reading is taken instead of the first one only if it is right on significantly more of the same images.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pwoa_cli import data as datasets
from pwoa_cli.checkpoint import Loaded, Source, read_as, said
from pwoa_cli.errors import InputError
from pwoa_cli.models import parts
from pwoa_cli.normalisation import NORMALISATIONS, Normalisation, known_for

PROBE = 500  # training images that tell whether model and data belong together
SCREEN = 100  # of them, on which every reading is tried
SURE = 0.95  # accuracy on training images that leaves nothing to ask
FAR = 5.0  # standard deviations above chance that a model must be
FITS_BETTER = 2.0  # times the misfit of the next one
CLEAR = 3.0  # standard deviations of a paired difference that make one reading better than another


@dataclass(frozen=True)
class Reading:
    """One way to read a file. words: what it supposes. hits: (n,) bool, on which images it is right. tried: the accuracy of
    each other way, where they were tried and none was better."""

    words: str
    loaded: Loaded
    hits: Tensor
    tried: str = ""

    @property
    def accuracy(self) -> float:
        """In 0..1."""
        return self.hits.double().mean().item()

    def percent(self) -> str:
        """For people: cifar10 84.2%."""
        return f"{self.words} {100 * self.accuracy:.1f}%"


def warn_of_code(source: Source, *, say: Callable[[str], None]) -> None:
    """The warning before a file may run its own code."""
    if source.trust_pickle:
        say(f"warning: --trust-pickle: {source.path} may run code of its own while it is read.")


def settle(loaded: Loaded, dataset: datasets.Dataset, *, say: Callable[[str], None]) -> Reading:
    """The reading of a file that is right on labelled training images, tried where the file leaves something open.

    Raises: InputError if the model cannot take the images, or if several other readings beat the first and cannot be told
    apart; with each one's accuracy.
    """
    first = Reading("as read", loaded, hits(loaded, dataset))
    if not (loaded.others or loaded.normalisation.said_by == "nobody") or first.accuracy >= SURE:
        return first
    tried = _screened(loaded, dataset)
    leading = max(tried, key=_score)
    finalists = [_whole(reading, dataset) for reading in tried if not is_clearly_better(leading.hits, reading.hits)]
    best = max(finalists, key=_score)
    if not is_clearly_better(best.hits, first.hits) or is_near_chance(best, loaded.num_classes):
        return replace(first, tried=f"of {len(leading.hits)}: {_listed(tried)}")
    even = [reading for reading in finalists if not is_clearly_better(best.hits, reading.hits)]
    shown = f"{_listed([first, *even])} of {len(best.hits)} training images of {dataset.name} right"
    if len(even) > 1:
        best, fits = _by_statistics(even, dataset)
        shown += fits
        if best is None:
            raise InputError(f"{loaded.source}: its file does not say how it is to be read, and neither do the images: {shown}.",
                             hint=_how(even[0].loaded, loaded))
    say(f"read as {best.words}: {shown}")
    return best


def _listed(readings: Iterable[Reading]) -> str:
    return ", ".join(reading.percent() for reading in sorted(readings, key=_score, reverse=True))


def _by_statistics(readings: Sequence[Reading], dataset: datasets.Dataset) -> tuple[Reading | None, str]:
    """The reading under which the first batch norm meets what it was trained on, if one fits far better; and the figures.

    The mean over channels of KL(batch || stored), both Gaussian: what the images give and the running mean and variance.
    Measured on small CIFAR-10 networks, trained with four normalisations on natural or FGSM images: 0.001 to 0.002 for
    the right one, 4 times that or more for the next, where accuracy tells three of five not apart.
    """
    fits = [misfit(reading.loaded.model, dataset) for reading in readings]
    if None in fits:
        return None, ""
    best = min(range(len(fits)), key=fits.__getitem__)
    others = [fit for i, fit in enumerate(fits) if i != best]
    listed = ", ".join(f"{reading.words} {fit:.2g}" for reading, fit in zip(readings, fits, strict=True))
    return (readings[best] if FITS_BETTER * fits[best] < min(others) else None,
            f"; misfit of the statistics in its first batch norm: {listed}")


def misfit(model: nn.Module, dataset: datasets.Dataset) -> float | None:
    """The KL of `_by_statistics` on PROBE training images; None if the model has no batch norm with statistics."""
    norm = next((m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_var is not None), None)
    if norm is None:
        return None
    kept: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    index = torch.linspace(0, len(dataset.train) - 1, min(PROBE, len(dataset.train))).long()
    with torch.no_grad():
        for part in index.split(100):
            model(dataset.train.batch(part)[0])
    handle.remove()
    z = torch.cat(kept)
    mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3)).clamp_min(1e-12)  # a dead channel has none
    stored = norm.running_var.clamp_min(1e-12)
    kl = (stored / variance).log() + (variance + (mean - norm.running_mean) ** 2) / stored - 1
    return 0.5 * kl.mean().item()


def _score(reading: Reading) -> int:
    return int(reading.hits.sum())


def is_clearly_better(better: Tensor, worse: Tensor) -> bool:
    """Whether a reading is right significantly more often on the same images (McNemar 1947, normal approximation)."""
    if better.shape != worse.shape:
        return False
    only_better, only_worse = int((better & ~worse).sum()), int((worse & ~better).sum())
    return only_better - only_worse > CLEAR * (only_better + only_worse) ** 0.5


def _screened(loaded: Loaded, dataset: datasets.Dataset) -> list[Reading]:
    """Every option with the normalisation as read, then every known normalisation with the best option, on a few images."""
    readings = [_tried(loaded, {}, loaded.normalisation, dataset)]
    readings += [_tried(loaded, other, loaded.normalisation, dataset) for other in loaded.others]
    best = max(readings, key=_score).loaded
    if loaded.normalisation.said_by == "nobody":
        changed = {k: v for k, v in best.arch_options.items() if loaded.arch_options.get(k) != v}
        readings += [_tried(loaded, changed, Normalisation(*NORMALISATIONS[name], "nobody"), dataset, name)
                     for name in _names(dataset)]
    return readings


def _names(dataset: datasets.Dataset) -> list[str]:
    """Normalisations that people use with a data set: its own, those of ImageNet and of 0.5; all for one that is not known."""
    fitting = [name for name in known_for(dataset.shape[0]) if name != "none"]
    own = [name for name in fitting if name.startswith(dataset.name)]
    return [*own, *(n for n in fitting if n in ("imagenet", "half"))] if own else fitting


def _tried(loaded: Loaded, options: Mapping[str, object], normalisation: Normalisation, dataset: datasets.Dataset,
           name: str = "") -> Reading:
    reading = read_as(loaded, options=options, normalisation=normalisation)
    words = ", ".join(part for part in (said(options), f"normalisation {name}" if name else "") if part)
    return Reading(words or "as read", reading, hits(reading, dataset, images=SCREEN))


def _whole(reading: Reading, dataset: datasets.Dataset) -> Reading:
    return Reading(reading.words, reading.loaded, hits(reading.loaded, dataset))


def _how(best: Loaded, loaded: Loaded) -> str:
    """The options that choose a reading on the command line."""
    changed = {k: v for k, v in best.arch_options.items() if loaded.arch_options.get(k) != v}
    arch = f"--arch {best.arch}:{said(changed).replace(' ', '')}" if changed else ""
    same = next((n for n, v in NORMALISATIONS.items() if v == (best.normalisation.mean, best.normalisation.std)), "none")
    return f"Say which, as whoever trained it did: {arch} --normalize {same}".replace("  ", " ")


def hits(loaded: Loaded, dataset: datasets.Dataset, *, images: int = PROBE, what: str = "") -> Tensor:
    """Which of so many training images, spread over the set, the model is right on: (images,) bool.

    Args: what: the model's name in errors; default: its source. Raises: InputError if the classes differ, the model cannot take the images, or does not return finite logits.
    """
    what, classes = what or loaded.source, loaded.num_classes
    if classes != dataset.num_classes:
        raise InputError(f"{what} has {classes} classes, the data set {dataset.name} has {dataset.num_classes}.",
                         hint="Name the data that it was trained on (--data), or the classes that it really has (--num-classes).")
    index = torch.linspace(0, len(dataset.train) - 1, min(images, len(dataset.train))).long()
    right = []
    for part in index.split(100):
        x, y = dataset.train.batch(part)
        logits = _forward(loaded.model, x, what=what, where=dataset.name)
        _check_logits(logits, (len(x), classes), what)
        right.append(logits.argmax(1) == y)
    return torch.cat(right).cpu()


def _forward(model: nn.Module, x: Tensor, *, what: str, where: str) -> Tensor:
    try:
        with torch.no_grad():
            return model(x)
    except (RuntimeError, AssertionError, ValueError) as error:  # what networks raise for a wrong size
        why = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{what} cannot take images {tuple(x.shape[1:])} of {where}: {why}.",
                         hint="Name the data that it was trained on (--data), or its architecture (--arch).") from error


def _check_logits(logits: object, expected: tuple[int, int], what: str) -> None:
    if not isinstance(logits, Tensor) or logits.shape != expected:
        several = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts(logits))
        got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}{several and f' of {several}'}"
        raise InputError(f"{what} returns {got} for {expected[0]} images, expected logits {expected}.",
                         hint="Wrap it in a module that returns the logits: --arch file.py:fn")
    if not logits.isfinite().all():
        raise InputError(f"{what} returns NaN or infinite logits.",
                         hint="Check its weights and its normalisation (--normalize, or --mean and --std).")


def outputs(loaded: Loaded, x: Tensor) -> list[str]:
    """What there is to say of what the network returns on images x (B, C, H, W): which of several, log-probabilities, ...

    Returns: sentences; none for plain logits.
    """
    with torch.no_grad():
        out = loaded.model.net(x if loaded.model.mean is None else (x - loaded.model.mean) / loaded.model.std)
        logits = loaded.model(x)
    several = [f"{name} {tuple(part.shape)}" for name, part in parts(out)]
    which = next((name for name, part in parts(out) if part is logits or part.shape == logits.shape), "")
    notes = [f"forward returns {', '.join(several)}; {which} is taken as the logits"] if several else []
    total = logits.exp().sum(1)
    if torch.allclose(total, torch.ones_like(total), atol=1e-4):
        notes.append("forward returns log-probabilities; they serve as logits, their softmax is the same")
    elif logits.min() >= 0 and torch.allclose(logits.sum(1), torch.ones_like(total), atol=1e-4):
        notes.append("warning: forward returns probabilities, not logits: gradients vanish in its softmax, so attacks on it "
                     "flatter; wrap the network without its softmax: --arch file.py:fn")
    return notes


def is_near_chance(reading: Reading, classes: int) -> bool:
    """Whether a model is no better than guessing, within FAR standard deviations."""
    chance, images = 1 / classes, len(reading.hits)
    return reading.accuracy < chance + FAR * (chance * (1 - chance) / images) ** 0.5
