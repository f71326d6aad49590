"""Which reading of a checkpoint is right: what its file leaves open, options and normalisation, tried on
labelled images.

Two witnesses: how often a reading is right, and how well the statistics stored in its batch norms fit those
images: of all of them where options are open, of the first one where the normalisation is. A reading is taken
instead of the first one only if it is clearly better, and if the other witness does not contradict.
"""
import logging
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

from pwoa_cli.checkpoints.model import Loaded, Source, read_as, said
from pwoa_cli.checkpoints.normalisation import NORMALISATIONS, Normalisation, known_for
from pwoa_cli.checkpoints.reading import PROBE, Reading, is_near_chance, run
from pwoa_cli.checkpoints.witnesses import (
    CLEAR,
    contradicted,
    how_sure,
    is_clearly_better,
    is_clearly_less,
    normalised,
    score,
    standing_out,
    told_apart,
    under_attack,
)
from pwoa_cli.data import datasets
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.checks import LOW
from pwoa_cli.progress import Patience

_LOG = logging.getLogger(__name__)
STAGES = (PROBE // 25, PROBE // 5, PROBE)  # images shown to those that are left; all readings see the first
SURE = 1 - CLEAR ** 2 / PROBE  # accuracy above which no other reading can be clearly better: 98.2%
MORE, TIED = 2000, 8  # training images that tell options apart that PROBE does not; how many of them
LIKELY = 8  # options that are tried with every normalisation
FINALISTS = 16  # readings that all images are shown to, and those that are even with the last of them
BELIEVED = 0.95  # accuracy from which another activation is
SHOWN = 4  # readings in a sentence
USUAL = ("imagenet", "half", "cifar10", "cifar10-old", "mnist")  # much code keeps those of another set


class Undecided(InputError):
    """Images do not tell how a file is to be read. reading: the likeliest, which
    says that it is `undecided`."""

    def __init__(self, message: str, *, hint: str, reading: Reading):
        super().__init__(message, hint=hint)
        self.reading = replace(reading, undecided=self)


def provisional(loaded: Loaded, dataset: datasets.Dataset, *, say: Callable[[str], None]) -> Reading:
    """As `settle`, but where it is undecided its likeliest reading, to be compared with those of other data;
    `check_decided` is for the one that is taken. Raises: InputError if the model cannot take the images."""
    try:
        return settle(loaded, dataset, say=say)
    except Undecided as error:
        return error.reading


def check_decided(chosen: Reading) -> None:
    """Raises: Undecided, if it is not known how the file is to be read there."""
    if chosen.undecided:
        raise chosen.undecided


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
    if not (loaded.others or loaded.normalisation.is_assumed):
        return run("as read", loaded, dataset, patience=patience)
    begun = run("as read", loaded, dataset, images=STAGES[0], patience=patience)
    first = run("as read", loaded, dataset, images=STAGES[1], patience=patience, after=begun)
    if first.accuracy >= SURE:  # of so few it may be by chance
        first = run(first.words, loaded, dataset, patience=patience, after=first)
    ways = _alternatives(loaded, dataset, together=first.accuracy < SURE)
    if ways:
        say(f"trying {len(ways)} other ways to read what the file leaves open")
    tried, finalists = _raced(begun, first, ways, dataset, patience=patience)
    best = max(finalists, key=score)
    first = next((r for r in finalists if r.words == first.words), first)
    if is_near_chance(best, loaded.num_classes):
        return _not_settled(first, [*finalists, *tried], dataset)
    even = _of_better_options([r for r in finalists if not is_clearly_better(best.hits, r.hits)], first,
                              dataset, patience=patience)
    left = told_apart(even)
    if len(left) > 1 and all(r.first is None for r in left):
        say(f"attacking {len(left)} readings that accuracy does not tell apart")
        even, left = under_attack(left, dataset)
        first = next((r for r in even if r.words == first.words), first)
    chosen = _chosen(left, first)
    if chosen and not _is_believed(chosen, first):
        unsettled = _not_settled(first, [*finalists, *tried], dataset)
        if is_near_chance(unsettled, loaded.num_classes):
            return unsettled
        chosen = None
    likeliest = chosen or min(left, key=lambda r: (r.first or 0.0, -score(r)))
    figures = (f"{how_sure(likeliest, tried)}{_listed([*even, *finalists, *tried], first=likeliest)}, right "
               f"on {len(likeliest.hits)} {dataset.probe_name} of {dataset.name}")
    if chosen is None or contradicted(chosen, tried, first):
        why = ("its batch norms' statistics fit another reading than the one that is right most often"
               if chosen else "neither accuracy nor its batch norms' statistics tell; likeliest first")
        raise Undecided(f"{loaded.source}: its file does not say how it is to be read, and {why}: {figures}.",
                        hint=_how(likeliest.loaded, loaded), reading=likeliest)
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


def _raced(begun: Reading, first: Reading, ways: Iterable[tuple[str, dict[str, Any], Normalisation]],
           dataset: datasets.Dataset, *, patience: Patience) -> tuple[list[Reading], list[Reading]]:
    """(every reading on the images of the first stages that it came through, those that are left on all):
    what is clearly behind is shown no more images. Args: begun: the first one on those of the first stage."""
    left = [begun]
    for words, options, normalisation in ways:
        other = read_as(first.loaded, options=options, normalisation=normalisation)
        with suppress(InputError):  # a wrong reading may not take the images, or give infinite logits
            left.append(run(words, other, dataset, images=STAGES[0], patience=patience))
    tried = {r.words: r for r in left}
    for images in STAGES[1:]:
        leading, left = _leading(left, first), []
        for r in leading:
            after = first if r.words == first.words and len(first.hits) > len(r.hits) else r
            try:
                left.append(run(r.words, r.loaded, dataset, images=images, patience=patience,
                                after=after))
            except InputError:
                if r.words == first.words:
                    raise
        left = left or [run(first.words, first.loaded, dataset, images=images, after=first)]
        if images != PROBE:
            tried |= {r.words: r for r in left}
    for reading in tried.values():
        _LOG.debug("  tried %s of %d images", reading.figures(), len(reading.hits))
    return list(tried.values()), left


def _leading(readings: Sequence[Reading], first: Reading) -> list[Reading]:
    """Without those that are clearly less often right than the best on the images that all have seen, and
    whose batch norms do not speak for them. From the second images on (few leave many even by chance) of the
    others those with the one normalisation that stands out, the best and the first, as batch norms may have
    been frozen under another one; not more than can be tried."""
    seen = min(len(r.hits) for r in readings)
    best = max(readings, key=lambda r: int(r.hits[:seen].sum()))
    close = [r for r in readings if not is_clearly_better(best.hits[:seen], r.hits[:seen])
             or seen < STAGES[1] and (r.misfit or math.inf) < (best.misfit or 0.0)]
    if seen < STAGES[1]:
        return close
    fitting = {r.words for r in (*standing_out(close), best, first)}
    close = [r for r in close if r.words in fitting]
    least = sorted(int(r.hits[:seen].sum()) for r in close)[-FINALISTS:][0]
    return [r for r in close if int(r.hits[:seen].sum()) >= least]


def _not_settled(first: Reading, tried: Sequence[Reading], dataset: datasets.Dataset) -> Reading:
    """The first reading on all images, with what else was tried and is no better."""
    whole = run(first.words, first.loaded, dataset, after=first)
    return replace(whole, tried=_listed([whole, *tried]))


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
    same = [r for r in left if normalised(r) == normalised(first)]
    return same[0] if len({_key(r) for r in left}) == 1 and len(same) == 1 else None


def _of_better_options(even: Sequence[Reading], first: Reading, dataset: datasets.Dataset, *,
                       patience: Patience) -> list[Reading]:
    """Without readings whose options are clearly worse on more images than others that are even with them:
    less often right, or less sure of the right class and not more often right. One reading stands for all
    normalisations of its options. The first is not given up for a loss alone, nor an activation for another:
    networks that were trained for a short time are surer with smoother ones."""
    by_options: dict[str, Reading] = {}
    for r in even:  # likeliest first, and so they stay
        by_options[_key(r)] = max(by_options.get(_key(r), r), r,
                                  key=lambda r: (normalised(r) == normalised(first), score(r)))
    if len(by_options) == 1:
        return list(even)
    leading = sorted(by_options.values(), key=lambda r: (_key(r) != _key(first), -score(r)))[:TIED]
    again: dict[str, Reading] = {}
    for r in leading:
        try:
            again[_key(r)] = run(r.words, r.loaded, dataset, images=MORE, patience=patience)
        except InputError:  # of an image that it has not seen before
            if _key(r) == _key(first):
                raise
    if not again:
        return list(even)
    worse = {key for key, r in again.items() for other in again.values()
             if is_clearly_better(other.hits, r.hits)
             or key != _key(first) and _activation(other) == _activation(r)
             and score(other) >= score(r) and is_clearly_less(other.losses, r.losses)}
    return [r for r in even if _key(r) in again.keys() - worse]


def _key(reading: Reading) -> str:
    return str(reading.loaded.arch_options)


def _is_believed(chosen: Reading, first: Reading) -> bool:
    """Whether options may be changed: without batch norms as a witness only to what is right three times as
    often as chance, as one of many readings is better than chance by chance; an activation only if hardly
    anything is wrong, as a network that was trained for a short time is right more often with a smoother one.
    """
    if chosen.misfit is not None or _key(chosen) == _key(first):
        return True
    least = min(0.9, 3 / chosen.loaded.num_classes)
    return chosen.accuracy >= (least if _activation(chosen) == _activation(first) else BELIEVED)


def _activation(reading: Reading) -> object:
    return reading.loaded.arch_options.get("activation")


def _listed(readings: Iterable[Reading], *, first: Reading | None = None) -> str:
    """Figures of the best few, each once; `first` and what was read at the front."""
    by_words = {r.words: r for r in reversed([*([first] if first else []), *readings])}
    front = ([first.words] if first else []) + ["as read"]
    ordered = sorted(by_words.values(),
                     key=lambda r: (front.index(r.words) if r.words in front else len(front),
                                    -len(r.hits), -r.accuracy))
    most = max(len(r.hits) for r in ordered)
    return ", ".join(r.figures(of=most) for r in ordered[:SHOWN])


def _alternatives(loaded: Loaded, dataset: datasets.Dataset, *,
                  together: bool) -> list[tuple[str, dict[str, Any], Normalisation]]:
    """(words, options, normalisation) of every combination of the likely options but the one that was read,
    and of the others by themselves; if not `together`, of those that change one of both."""
    normalisations = [("", loaded.normalisation)]
    if loaded.normalisation.is_assumed:
        normalisations += [(f"normalisation {n}", Normalisation(*NORMALISATIONS[n], "nobody"))
                           for n in [*_names(dataset), *["none"] * bool(loaded.normalisation.mean)]]
    side = dataset.shape[-1]  # a reading for images of another size cannot be tried on these
    options = [other for other in loaded.others if other.get("size", side) == side]
    likely = [{}, *options[:LIKELY]] if together else [{}]
    ways = [*list(product(likely, normalisations))[1:],
            *product(options[len(likely) - 1:], normalisations[:1])]
    return [(", ".join(part for part in (said(loaded.changed(other)), name) if part), other, normalisation)
            for other, (name, normalisation) in ways]


def _names(dataset: datasets.Dataset) -> list[str]:
    """Normalisations that people use with a data set: its own (of one number for all channels too) and the
    USUAL ones; all for one that is not known."""
    channels = dataset.shape[0]
    fitting = [name for name in known_for(channels) if name != "none"]
    own = [name for name, (mean, _) in NORMALISATIONS.items() if len(mean) in (1, channels)
           and (name == dataset.name or name.startswith(dataset.name + "-"))]
    return list(dict.fromkeys([*own, *(name for name in fitting if name in USUAL)])) if own else fitting


def _how(best: Loaded, loaded: Loaded) -> str:
    """The options that choose a reading on the command line."""
    changed = {k: v for k, v in best.arch_options.items() if loaded.arch_options.get(k) != v}
    arch = f"--arch {shlex.quote(best.arch + ':' + said(changed).replace(' ', ''))}" if changed else ""
    same = next((n for n, v in NORMALISATIONS.items()
                 if v == (best.normalisation.mean, best.normalisation.std)), "none")
    return f"Say which, as whoever trained it did: {arch} --normalize {same}".replace("  ", " ")
