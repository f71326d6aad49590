"""Which reading of a checkpoint is right: what its file leaves open, options and normalisation, tried on
labelled images.

Two witnesses: how often a reading is right, and how well the statistics stored in its batch norms fit those
images. A reading is taken instead of the first one only if it is clearly better, and if the other witness
does not contradict.
"""
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pwoa_cli.checkpoints.model import Loaded, Source, read_as, said
from pwoa_cli.checkpoints.normalisation import NORMALISATIONS, Normalisation, known_for
from pwoa_cli.data import datasets
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.checks import gives_probabilities
from pwoa_cli.evaluation.intervals import near_chance
from pwoa_cli.networks.build import parts

PROBE = 500  # training images that tell whether model and data belong together
SCREEN = 5  # every fifth of them is shown to every reading
FAR = 5.0  # standard deviations above chance that a model must be
CLEAR = 3.0  # standard deviations of a paired difference that make one reading better than another
SURE = 1 - CLEAR ** 2 / PROBE  # accuracy above which no other reading can be clearly better: 98.2%
MORE, TIED = 2000, 8  # training images that tell options apart that PROBE does not; how many of them
LIKELY = 8  # options that are tried with every normalisation
FINALISTS = 16  # readings that all of PROBE is shown to, and those that are even with the last of them
BELIEVED = 0.95  # accuracy from which another activation is
FITS_BETTER = 2.0  # times the misfit of another reading
SHOWN = 4  # readings in a sentence


class Undecided(InputError):
    """Images do not tell how a file is to be read."""


@dataclass(frozen=True)
class Reading:
    """One way to read a file. words: what it supposes. hits: (n,) bool, on which images it is right. misfit:
    of its batch norms' statistics, None without batch norms. tried: each other way, where none was better.
    losses: (n,), as `tempered` gives them."""

    words: str
    loaded: Loaded
    hits: Tensor
    misfit: float | None
    tried: str = ""
    losses: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def accuracy(self) -> float:
        """In 0..1."""
        return self.hits.double().mean().item()

    def figures(self) -> str:
        """For people: normalisation cifar10 84.2% (misfit 0.002)."""
        fit = "" if self.misfit is None else f" (misfit {self.misfit:.2g})"
        return f"{self.words} {100 * self.accuracy:.1f}%{fit}"


def warn_of_code(source: Source, *, say: Callable[[str], None]) -> None:
    """The warning before a file may run its own code."""
    if source.trust_pickle:
        say(f"warning: --trust-pickle: {source.path} may run code of its own while it is read.")


def settle(loaded: Loaded, dataset: datasets.Dataset, *, say: Callable[[str], None]) -> Reading:
    """The reading of a file that labelled training images confirm; its `loaded` says so in `settled`.

    Raises: InputError if the model cannot take the images; Undecided if another reading than the first is
    better and it cannot be told which, with each one's figures.
    """
    loaded = _of_their_size(loaded, dataset)
    first = run("as read", loaded, dataset)
    if not (loaded.others or loaded.normalisation.said_by == "nobody"):
        return first
    tried, ways = [first], _alternatives(loaded, dataset, together=first.accuracy < SURE)
    if ways:
        say(f"trying {len(ways)} other ways to read what the file leaves open")
    for words, options, normalisation in ways:
        other = read_as(loaded, options=options, normalisation=normalisation)
        with suppress(InputError):  # a wrong reading may not take the images, or give infinite logits
            tried.append(run(words, other, dataset, every=SCREEN))
    screened = [replace(first, hits=first.hits[::SCREEN]), *tried[1:]]
    leading = max(screened, key=_score)
    close = [r for r in screened if not is_clearly_better(leading.hits, r.hits)]
    least = sorted(map(_score, close))[-FINALISTS:][0]
    finalists = [first if r.words == first.words else run(r.words, r.loaded, dataset) for r in close
                 if _score(r) >= least]
    best = max(finalists, key=_score)
    if is_near_chance(best, loaded.num_classes):
        return replace(first, tried=_listed(tried))
    even = _told_apart([r for r in finalists if not is_clearly_better(best.hits, r.hits)], first, dataset)
    chosen = _decided(even, first)
    if chosen and not _is_believed(chosen, first):
        if is_near_chance(first, loaded.num_classes):
            return replace(first, tried=_listed(tried))
        chosen = None
    listed = _listed([*even, *tried], first=chosen or first)
    figures = (f"{listed}, right on {len(first.hits)} training images of {dataset.name} (every {SCREEN}th "
               "for those far behind)")
    if chosen is None or _contradicted(chosen, screened, first):
        why = ("its batch norms' statistics fit another reading than the one that is right most often"
               if chosen else "neither accuracy nor its batch norms' statistics tell")
        raise Undecided(f"{loaded.source}: its file does not say how it is to be read, and {why}: {figures}.",
                        hint=_how(best.loaded, loaded))
    if chosen is not first:
        settled = f"read as {chosen.words}: {figures}"
    elif len(even) > 1:
        settled = f"read as it is, though images do not tell (--normalize and --arch decide): {figures}"
    else:
        settled = f"confirmed: {figures}"
    say(settled)
    return replace(chosen, loaded=replace(chosen.loaded, settled=settled))


def _of_their_size(loaded: Loaded, dataset: datasets.Dataset) -> Loaded:
    """The first reading for images of the data's size, if the keys allow one: the others cannot take them."""
    side = dataset.shape[-1]
    if loaded.input_shape is None or loaded.input_shape[-1] == side:
        return loaded
    fitting = next((other for other in loaded.others if other.get("size") == side), None)
    return read_as(loaded, options=fitting) if fitting else loaded


def _decided(even: Sequence[Reading], first: Reading) -> Reading | None:
    """One of readings that are right about equally often: the one that fits far better, else the first, else
    the only one; of several normalisations of the same options that of the first."""
    misfits = [(r.misfit, r) for r in even if r.misfit is not None]
    if len(misfits) == len(even):
        least, fitting = min(misfits, key=lambda pair: pair[0])
        if all(FITS_BETTER * least < misfit for misfit, r in misfits if r is not fitting):
            return fitting
    if first in even:
        return first
    same = [r for r in even if _as_normalised(r, first)]
    chosen = same if len({_key(r) for r in even}) == 1 else even
    return chosen[0] if len(chosen) == 1 else None


def _told_apart(even: Sequence[Reading], first: Reading, dataset: datasets.Dataset) -> list[Reading]:
    """Without readings whose options are clearly worse on more images than others that are even with them:
    less often right, or less sure of the right class and not more often right. One reading stands for all
    normalisations of its options. The first is not given up for a loss alone, nor an activation for another:
    networks that were trained for a short time are surer with smoother ones."""
    by_options: dict[str, Reading] = {}
    for r in even:  # likeliest first, and so they stay
        by_options[_key(r)] = max(by_options.get(_key(r), r), r,
                                  key=lambda r: (_as_normalised(r, first), _score(r)))
    if len(by_options) == 1:
        return list(even)
    leading = sorted(by_options.values(), key=lambda r: (_key(r) != _key(first), -_score(r)))[:TIED]
    again = {_key(r): run(r.words, r.loaded, dataset, images=MORE) for r in leading}
    worse = {key for key, r in again.items() for other in again.values()
             if is_clearly_better(other.hits, r.hits)
             or key != _key(first) and _activation(other) == _activation(r)
             and _score(other) >= _score(r) and is_clearly_less(other.losses, r.losses)}
    return [r for r in even if _key(r) in again.keys() - worse]


def _key(reading: Reading) -> str:
    return str(reading.loaded.arch_options)


def _activation(reading: Reading) -> object:
    return reading.loaded.arch_options.get("activation")


def _as_normalised(reading: Reading, first: Reading) -> bool:
    return reading.loaded.normalisation == first.loaded.normalisation


def _is_believed(chosen: Reading, first: Reading) -> bool:
    """Whether options may be changed: without batch norms as a witness only to what is right three times as
    often as chance, as one of many readings is better than chance by chance; an activation only if hardly
    anything is wrong, as a network that was trained for a short time is right more often with a smoother one.
    """
    if chosen.misfit is not None or _key(chosen) == _key(first):
        return True
    least = min(0.9, 3 / chosen.loaded.num_classes)
    return chosen.accuracy >= (least if _activation(chosen) == _activation(first) else BELIEVED)


def tempered(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, (B,), at the temperature that suits the logits (B, K) best (Guo et al.
    2017): robust networks are less sure than they could be, and another reading must not gain by scale.
    Not below 1/2, where those that are always right have no loss at all."""
    losses = [F.cross_entropy(logits.double() / t, labels, reduction="none")
              for t in torch.logspace(-0.3, 1.5, 19).tolist()]
    return min(losses, key=lambda loss: loss.mean().item())


def is_clearly_less(less: Tensor, more: Tensor) -> bool:
    """Whether a loss is significantly less on the same images (paired, normal approximation)."""
    difference = more - less
    n = len(difference)
    return n > 1 and difference.mean().item() > CLEAR * difference.std().item() / n ** 0.5


def _contradicted(chosen: Reading, screened: Sequence[Reading], first: Reading) -> bool:
    """Whether a change of reading is at odds with the batch norms: another one fits them better (of a change
    of options at all, as accuracy alone misleads there; of normalisation far better)."""
    if chosen is first or chosen.misfit is None:
        return False
    margin = FITS_BETTER if chosen.loaded.arch_options == first.loaded.arch_options else 1.0
    own = next(r.misfit for r in screened if r.words == chosen.words)
    return own is not None and any(r.misfit is not None and margin * r.misfit < own
                                   for r in screened if r.words != chosen.words)


def _score(reading: Reading) -> int:
    return int(reading.hits.sum())


def _listed(readings: Iterable[Reading], *, first: Reading | None = None) -> str:
    """Figures of the best few, each once; `first` and what was read at the front."""
    by_words = {r.words: r for r in reversed([*([first] if first else []), *readings])}
    front = ([first.words] if first else []) + ["as read"]
    ordered = sorted(by_words.values(),
                     key=lambda r: (front.index(r.words) if r.words in front else len(front), -r.accuracy))
    return ", ".join(r.figures() for r in ordered[:SHOWN])


def is_clearly_better(better: Tensor, worse: Tensor) -> bool:
    """Whether a reading is right significantly more often on the same images (McNemar 1947, normal
    approximation)."""
    if better.shape != worse.shape:
        return False
    only_better, only_worse = int((better & ~worse).sum()), int((worse & ~better).sum())
    return only_better - only_worse > CLEAR * (only_better + only_worse) ** 0.5


def _alternatives(loaded: Loaded, dataset: datasets.Dataset, *,
                  together: bool) -> list[tuple[str, dict[str, Any], Normalisation]]:
    """(words, options, normalisation) of every combination of the likely options but the one that was read,
    and of the others by themselves; if not `together`, of those that change one of both."""
    normalisations = [("", loaded.normalisation)]
    if loaded.normalisation.said_by == "nobody":
        normalisations += [(f"normalisation {n}", Normalisation(*NORMALISATIONS[n], "nobody"))
                           for n in _names(dataset)]
    side = dataset.shape[-1]  # a reading for images of another size cannot be tried on these
    options = [other for other in loaded.others if other.get("size", side) == side]
    likely = [{}, *options[:LIKELY]] if together else [{}]
    ways = [*list(product(likely, normalisations))[1:],
            *product(options[len(likely) - 1:], normalisations[:1])]
    return [(", ".join(part for part in (said(loaded.changed(other)), name) if part), other, normalisation)
            for other, (name, normalisation) in ways]


def _names(dataset: datasets.Dataset) -> list[str]:
    """Normalisations that people use with a data set: its own, those of ImageNet and of 0.5; all for one that
    is not known."""
    fitting = [name for name in known_for(dataset.shape[0]) if name != "none"]
    own = [name for name in fitting if name == dataset.name or name.startswith(dataset.name + "-")]
    return [*own, *(n for n in fitting if n in ("imagenet", "half"))] if own else fitting


def _how(best: Loaded, loaded: Loaded) -> str:
    """The options that choose a reading on the command line."""
    changed = {k: v for k, v in best.arch_options.items() if loaded.arch_options.get(k) != v}
    arch = f"--arch {best.arch}:{said(changed).replace(' ', '')}" if changed else ""
    same = next((n for n, v in NORMALISATIONS.items()
                 if v == (best.normalisation.mean, best.normalisation.std)), "none")
    return f"Say which, as whoever trained it did: {arch} --normalize {same}".replace("  ", " ")


def run(words: str, loaded: Loaded, dataset: datasets.Dataset, *, every: int = 1, images: int = PROBE,
        what: str = "") -> Reading:
    """A reading tried on every `every`-th of so many training images that are spread over the set.

    Args: what: the model's name in errors; default: its source. Raises: InputError if the classes differ, the
    model cannot take the images, or does not return finite logits.
    """
    what, classes = what or loaded.source, loaded.num_classes
    if classes != dataset.num_classes:
        raise InputError(f"{what} has {classes} classes, the data set {dataset.name} has "
                         f"{dataset.num_classes}.",
                         hint="Name the data that it was trained on (--data), or the classes that it really "
                              "has (--num-classes).")
    index = torch.linspace(0, len(dataset.train) - 1, min(images, len(dataset.train))).long()[::every]
    right, losses = [], []
    with Statistics(loaded.model) as statistics:
        for part in index.split(100):
            x, y = dataset.train.batch(part)
            logits = _forward(loaded.model, x, what=what, where=dataset.name)
            _check_logits(logits, (len(x), classes), what)
            right.append(logits.argmax(1) == y)
            losses.append((logits, y))
    all_logits, labels = map(torch.cat, zip(*losses, strict=True))
    return Reading(words, loaded, torch.cat(right).cpu(), statistics.misfit(),
                   losses=tempered(all_logits, labels).cpu())


class Statistics:
    """Inside the block, sums over what every batch norm of a model gets; then how badly that fits what it has
    stored.

    The misfit of a batch norm is the mean over its channels of KL(batch || stored), both Gaussian: what the
    images give and the running mean and variance. Networks trained with a known normalisation on natural or
    FGSM images have about 0.0005 under the right one and many times that under others
    (examples/benchmarks/normalisations.py), where accuracy tells three of six not apart.
    """

    def __init__(self, model: nn.Module):
        self.norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
        self.sums: dict[_BatchNorm, Tensor] = {}

    def __enter__(self) -> "Statistics":
        self.handles = [norm.register_forward_pre_hook(self._add) for norm in self.norms]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _add(self, norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        z = args[0].double().movedim(1, 0).flatten(1)
        new = torch.stack([torch.full_like(z[:, 0], z.shape[1]), z.sum(1), (z * z).sum(1)])
        self.sums[norm] = self.sums[norm] + new if norm in self.sums else new

    def misfit(self) -> float | None:
        """The mean over the batch norms that ran; None if none did."""
        values = []
        for norm, (count, total, squares) in self.sums.items():
            assert norm.running_mean is not None and norm.running_var is not None  # as for all of self.norms
            mean = total / count
            variance = (squares / count - mean ** 2).clamp_min(1e-12)  # a dead channel has none
            stored = norm.running_var.double().clamp_min(1e-12)
            kl = (stored / variance).log() + (variance + (mean - norm.running_mean) ** 2) / stored - 1
            values.append(0.5 * kl.mean().item())
        return sum(values) / len(values) if values else None


def _forward(model: nn.Module, x: Tensor, *, what: str, where: str) -> Tensor:
    try:
        with torch.no_grad():
            return model(x)
    except (RuntimeError, AssertionError, ValueError) as error:  # what networks raise for a wrong size
        why = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{what} cannot take images {tuple(x.shape[1:])} of {where}: {why}.",
                         hint="Name the data that it was trained on (--data), or its architecture (--arch)."
                         ) from error


def _check_logits(logits: object, expected: tuple[int, int], what: str) -> None:
    if not isinstance(logits, Tensor) or logits.shape != expected:
        several = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts(logits))
        kind = f"a {type(logits).__name__}{several and f' of {several}'}"
        got = tuple(logits.shape) if isinstance(logits, Tensor) else kind
        raise InputError(f"{what} returns {got} for {expected[0]} images, expected logits {expected}.",
                         hint="Wrap it in a module that returns the logits: --arch file.py:fn")
    if not logits.isfinite().all():
        raise InputError(f"{what} returns NaN or infinite logits.",
                         hint="Check its weights and its normalisation (--normalize, or --mean and --std).")


def outputs(loaded: Loaded, x: Tensor) -> list[str]:
    """What there is to say of what the network returns on images x (B, C, H, W): which of several,
    log-probabilities, ...

    Returns: sentences; none for plain logits.
    """
    with torch.no_grad():
        out = loaded.model.whole(x)
    logits = loaded.model.logits(out, len(x))
    several = [f"{name} {tuple(part.shape)}" for name, part in parts(out)]
    which = next((name for name, part in parts(out) if part is logits or part.shape == logits.shape), "")
    notes = [f"forward returns {', '.join(several)}; {which} is taken as the logits"] if several else []
    total = logits.exp().sum(1)
    if torch.allclose(total, torch.ones_like(total), atol=1e-4):
        notes.append("forward returns log-probabilities; they serve as logits, their softmax is the same")
    elif gives_probabilities(logits):
        notes.append("warning: forward returns probabilities, not logits: gradients vanish in its softmax, "
                     "so attacks on it flatter; wrap the network without its softmax: --arch file.py:fn")
    return notes


def is_near_chance(reading: Reading, classes: int) -> bool:
    """Whether a model is no better than guessing, within FAR standard deviations."""
    return near_chance(int(reading.hits.sum()), len(reading.hits), classes, deviations=FAR)
