"""Which reading of a checkpoint is right: what its file leaves open, options and normalisation, tried on
labelled images.

Two witnesses: how often a reading is right, and how well the statistics stored in its batch norms fit those
images: of all of them where options are open, of the first one where the normalisation is. A reading is taken
instead of the first one only if it is clearly better, and if the other witness does not contradict.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.attacks import parse
from pwoa_cli.attacks.base import frozen
from pwoa_cli.checkpoints.batch_norms import Statistics, first_misfit
from pwoa_cli.checkpoints.model import Loaded, Source, read_as, said
from pwoa_cli.checkpoints.normalisation import NORMALISATIONS, Normalisation, Values, known_for
from pwoa_cli.data import datasets
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.checks import LOW, gives_probabilities
from pwoa_cli.evaluation.intervals import near_chance
from pwoa_cli.machine.seeds import generator
from pwoa_cli.networks.build import parts
from pwoa_cli.progress import Patience

PROBE = 500  # training images that tell whether model and data belong together
SCREEN = 5  # every fifth of them is shown to every reading
FAR = 5.0  # standard deviations above chance that a model must be
CLEAR = 3.0  # standard deviations of a paired difference that make one reading better than another
SURE = 1 - CLEAR ** 2 / PROBE  # accuracy above which no other reading can be clearly better: 98.2%
MORE, TIED = 2000, 8  # training images that tell options apart that PROBE does not; how many of them
FITS_BETTER = 2.0  # times the misfit of another reading
ATTACK = "pgd-5"  # under which a robust network holds far better as it was made than otherwise
SHOWN = 4  # readings in a sentence


class Undecided(InputError):
    """Images do not tell how a file is to be read."""


@dataclass(frozen=True)
class Reading:
    """One way to read a file. words: what it supposes. hits: (n,) bool, on which images it is right. misfit:
    of its batch norms' statistics, first: of the first one's (batch_norms.py), None without batch norms.
    attacked: (n,) bool, which images hold under attack, where nothing else told. tried: each other way, where
    none was better. losses: (n,), as `tempered` gives them."""

    words: str
    loaded: Loaded
    hits: Tensor
    misfit: float | None
    first: float | None = None
    attacked: Tensor | None = None
    tried: str = ""
    losses: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def accuracy(self) -> float:
        """In 0..1."""
        return self.hits.double().mean().item()

    def figures(self) -> str:
        """For people: normalisation cifar10 84.2% (misfit 0.0002, all layers 0.024)."""
        fit = "" if self.misfit is None or self.first is None else (
            f" (misfit {self.first:.2g}, all layers {self.misfit:.2g})")
        held = "" if self.attacked is None else (
            f" ({100 * self.attacked.double().mean().item():.1f}% under attack)")
        return f"{self.words} {100 * self.accuracy:.1f}%{fit}{held}"


def warn_of_code(source: Source, *, say: Callable[[str], None]) -> None:
    """The warning before a file may run its own code."""
    if source.trust_pickle:
        say(f"warning: --trust-pickle: {source.path} may run code of its own while it is read.")


def settle(loaded: Loaded, dataset: datasets.Dataset, *, say: Callable[[str], None]) -> Reading:
    """The reading of a file that labelled training images confirm; its `loaded` says so in `settled`.

    Raises: InputError if the model cannot take the images; Undecided if another reading than the first is
    better and it cannot be told which, with each one's figures.
    """
    patience = Patience(say)
    loaded = _of_their_size(loaded, dataset)
    first = run("as read", loaded, dataset, patience=patience)
    if not (loaded.others or loaded.normalisation.said_by == "nobody"):
        return first
    tried, ways = [first], _alternatives(loaded, dataset, together=first.accuracy < SURE)
    if ways:
        say(f"trying {len(ways)} other ways to read what the file leaves open")
    for words, options, normalisation in ways:
        other = read_as(loaded, options=options, normalisation=normalisation)
        with suppress(InputError):  # a wrong reading may not take the images, or give infinite logits
            tried.append(run(words, other, dataset, every=SCREEN, patience=patience))
    screened = [replace(first, hits=first.hits[::SCREEN]), *tried[1:]]
    leading = max(screened, key=_score)
    finalists = [first if r.words == first.words else run(r.words, r.loaded, dataset, patience=patience)
                 for r in screened
                 if not is_clearly_better(leading.hits, r.hits)]
    best = max(finalists, key=_score)
    if is_near_chance(best, loaded.num_classes):
        return replace(first, tried=_listed(tried))
    even = _of_better_options([r for r in finalists if not is_clearly_better(best.hits, r.hits)], first,
                              dataset)
    left = _told_apart(even)
    if len(left) > 1 and all(r.first is None for r in left):
        even = _under_attack(left, dataset)
        left, first = _holding(even), next((r for r in even if r.words == first.words), first)
    chosen = _chosen(left, first)
    likeliest = chosen or min(left, key=lambda r: (r.first or 0.0, -_score(r)))
    figures = (f"{_how_sure(likeliest, even)}{_listed([*even, *tried], first=likeliest)}, right on "
               f"{len(first.hits)} {dataset.probe_name} of {dataset.name} (every {SCREEN}th for those far "
               "behind)")
    if chosen is None or _contradicted(chosen, screened, first):
        why = ("its batch norms' statistics fit another reading than the one that is right most often"
               if chosen else "neither accuracy nor its batch norms' statistics tell; likeliest first")
        raise Undecided(f"{loaded.source}: its file does not say how it is to be read, and {why}: {figures}.",
                        hint=_how(likeliest.loaded, loaded))
    if chosen is not first:
        settled = f"read as {chosen.words}: {figures}"
    elif len(left) > 1:
        settled = f"read as it is, though images do not tell (--normalize and --arch decide): {figures}"
    elif first.accuracy < LOW:
        settled = f"read as it is, as no other reading is better: {figures}"
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


def _chosen(left: Sequence[Reading], first: Reading) -> Reading | None:
    """One of readings that nothing tells apart: the only one, else the first, else of several normalisations
    of the same options that of the first."""
    if len(left) == 1 or first in left:
        return left[0] if len(left) == 1 else first
    same = [r for r in left if _normalisation(r) == _normalisation(first)]
    return same[0] if len({_key(r) for r in left}) == 1 and len(same) == 1 else None


def _told_apart(even: Sequence[Reading]) -> list[Reading]:
    """Of readings that are right about equally often those that batch norms leave: the normalisation that
    fits the first one far better than any other, then the options that fit all of them far better."""
    if any(r.first is None or r.misfit is None for r in even):
        return list(even)
    left = _fitting(even, {_normalisation(r): r.first or 0.0 for r in even}, _normalisation)
    if len({_normalisation(r) for r in left}) > 1:
        return left
    return _fitting(left, {r.words: r.misfit or 0.0 for r in left}, lambda r: r.words)


def _under_attack(even: Sequence[Reading], dataset: datasets.Dataset) -> list[Reading]:
    """Readings with what holds of the images under ATTACK; as they are where no threat is known."""
    threat = even[0].loaded.threat or dataset.threat
    if threat is None:
        return list(even)
    (norm, eps), attack = threat, parse(ATTACK)[0]
    shown = [dataset.probe.batch(part) for part in spread(dataset).split(100)]
    tried = []
    for reading in even:
        model, draw, held = reading.loaded.model, generator(0, "readings"), []
        with frozen(model):
            for x, y in shown:
                adv = attack.run(model, x, y, eps=eps, norm=norm, generator=draw)
                with torch.no_grad():
                    held.append(model(adv).argmax(1) == y)
        tried.append(replace(reading, attacked=torch.cat(held).cpu()))
    return tried


def _holding(tried: Sequence[Reading]) -> list[Reading]:
    """Those that hold most often: a network is robust under the normalisation that it was made robust with.
    All where none stands out."""
    held = [(r.attacked, r) for r in tried if r.attacked is not None]
    if not held:
        return list(tried)
    best = max((attacked for attacked, _ in held), key=lambda attacked: int(attacked.sum()))
    return [r for attacked, r in held if not is_clearly_better(best, attacked)]


def _how_sure(likeliest: Reading, even: Sequence[Reading]) -> str:
    """How much better its normalisation fits than the next of those that are right about equally often."""
    others = [r.first for r in even if r.first and _normalisation(r) != _normalisation(likeliest)]
    if not others or not likeliest.first or min(others) <= FITS_BETTER * likeliest.first:
        return ""
    return f"its first batch norm fits {min(others) / likeliest.first:.0f} times better than the next, "


def _fitting(readings: Sequence[Reading], misfits: Mapping[Any, float],
             key: Callable[[Reading], Any]) -> list[Reading]:
    """The readings of the key whose misfit is far less than all others; all where there is none."""
    least = min(misfits, key=lambda k: misfits[k])
    clear = all(FITS_BETTER * misfits[least] < misfit for k, misfit in misfits.items() if k != least)
    return [r for r in readings if key(r) == least] if clear else list(readings)


def _normalisation(reading: Reading) -> tuple[Values, Values]:
    return reading.loaded.normalisation.mean, reading.loaded.normalisation.std


def _of_better_options(even: Sequence[Reading], first: Reading, dataset: datasets.Dataset) -> list[Reading]:
    """Without readings whose options are clearly worse on more images than others that are even with them:
    less often right, or less sure of the right class and not more often right. One reading stands for all
    normalisations of its options. The first is not given up for a loss alone, nor an activation for another:
    networks that were trained for a short time are surer with smoother ones."""
    by_options = {_key(r): r for r in sorted(even, key=_score)}
    leading = sorted(by_options.values(), key=_score)[-TIED:]
    if len(leading) == 1:
        return list(even)
    again = {_key(r): run(r.words, r.loaded, dataset, images=MORE) for r in leading}
    worse = {key for key, r in again.items() for other in again.values()
             if is_clearly_better(other.hits, r.hits)
             or key != _key(first) and _activation(other) == _activation(r)
             and _score(other) >= _score(r) and is_clearly_less(other.losses, r.losses)}
    return [r for r in even if _key(r) not in worse]


def _key(reading: Reading) -> str:
    return str(reading.loaded.arch_options)


def _activation(reading: Reading) -> object:
    return reading.loaded.arch_options.get("activation")


def tempered(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, (B,), at the temperature that suits the logits (B, K) best (Guo et al.
    2017): robust networks are less sure than they could be, and another reading must not gain by scale."""
    losses = [F.cross_entropy(logits.double() / t, labels, reduction="none")
              for t in torch.logspace(-1.5, 1.5, 31).tolist()]
    return min(losses, key=lambda loss: loss.mean().item())


def is_clearly_less(less: Tensor, more: Tensor) -> bool:
    """Whether a loss is significantly less on the same images (paired, normal approximation)."""
    difference = more - less
    n = len(difference)
    return n > 1 and difference.mean().item() > CLEAR * difference.std().item() / n ** 0.5


def _contradicted(chosen: Reading, screened: Sequence[Reading], first: Reading) -> bool:
    """Whether a change of reading is at odds with the batch norms: another normalisation fits the first one
    far better, or other options fit all of them better at all, as accuracy alone misleads there."""
    own = next(r for r in screened if r.words == chosen.words)
    if chosen is first or own.first is None or own.misfit is None:
        return False
    if any(r.first is not None and FITS_BETTER * r.first < own.first for r in screened):
        return True
    return chosen.loaded.arch_options != first.loaded.arch_options and any(
        r.misfit is not None and r.misfit < own.misfit for r in screened
        if _normalisation(r) == _normalisation(chosen))


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
    """(words, options, normalisation) of every combination but the one that was read; if not `together`, of
    those that change one of both."""
    normalisations = [("", loaded.normalisation)]
    if loaded.normalisation.said_by == "nobody":
        normalisations += [(f"normalisation {n}", Normalisation(*NORMALISATIONS[n], "nobody"))
                           for n in _names(dataset)]
    side = dataset.shape[-1]  # a reading for images of another size cannot be tried on these
    options = [other for other in loaded.others if other.get("size", side) == side]
    ways = [way for way in list(product([{}, *options], normalisations))[1:]
            if together or not way[0] or not way[1][0]]
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
        what: str = "", patience: Patience | None = None) -> Reading:
    """A reading tried on every `every`-th of so many training images (test images where there are no others)
    that are spread over the set.

    Args: what: the model's name in errors; default: its source. Raises: InputError if the classes differ, the
    model cannot take the images, or does not return finite logits.
    """
    what, classes = what or loaded.source, loaded.num_classes
    if classes != dataset.num_classes:
        raise InputError(f"{what} has {classes} classes, the data set {dataset.name} has "
                         f"{dataset.num_classes}.",
                         hint="Name the data that it was trained on (--data), or the classes that it really "
                              "has (--num-classes).")
    probe, index = dataset.probe, spread(dataset, images)[::every]
    right, losses = [], []
    with Statistics(loaded.model) as statistics:
        for part in index.split(100):
            x, y = probe.batch(part)
            logits = _forward(loaded.model, x, what=what, where=dataset.name)
            _check_logits(logits, (len(x), classes), what)
            right.append(logits.argmax(1) == y)
            losses.append((logits, y))
            if patience:
                patience.say(f"trying {words}: {sum(map(len, right))} of {len(index)} images")
    all_logits, labels = map(torch.cat, zip(*losses, strict=True))
    first = first_misfit(loaded.model, (probe.batch(part)[0] for part in spread(dataset).split(100)))
    return Reading(words, loaded, torch.cat(right).cpu(), statistics.misfit(), first,
                   losses=tempered(all_logits, labels).cpu())


def spread(dataset: datasets.Dataset, images: int = PROBE) -> Tensor:
    """The indices of so many images that are spread over those that a model is tried on, (n,) long."""
    return torch.linspace(0, len(dataset.probe) - 1, min(images, len(dataset.probe))).long()


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
