"""What tells readings of a checkpoint apart: McNemar's test of accuracy, batch norms, robustness."""
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pwoa_cli.attacks import parse
from pwoa_cli.attacks.base import frozen
from pwoa_cli.checkpoints.normalisation import Values
from pwoa_cli.checkpoints.reading import PROBE, Reading, passes
from pwoa_cli.data import datasets
from pwoa_cli.data.dataset import drawn
from pwoa_cli.machine.seeds import generator

CLEAR = 3.0  # standard deviations of a paired difference that make one reading better than another
FITS_BETTER = 2.0  # times the misfit of another reading
STANDS_OUT = 5.0  # times, enough to look no further: the right one fits 9 times better or more
ATTACK = "pgd-5"  # under which a robust network holds far better as it was made than otherwise


def told_apart(even: Sequence[Reading]) -> list[Reading]:
    """Of readings that are right about equally often those that batch norms leave: the normalisation that
    fits the first one far better than any other, then the options that fit all of them far better."""
    if any(r.first is None or r.misfit is None for r in even):
        return list(even)
    left = _fitting(even, {normalised(r): r.first or 0.0 for r in even}, normalised)
    if len({normalised(r) for r in left}) > 1:
        return left
    return _fitting(left, {r.words: r.misfit or 0.0 for r in left}, lambda r: r.words)


def standing_out(readings: Sequence[Reading]) -> list[Reading]:
    """Those of the one normalisation that fits the first batch norm STANDS_OUT times better than all others;
    all where none does."""
    if any(r.first is None for r in readings):
        return list(readings)
    least: dict[Any, float] = {}
    for r in readings:
        least[normalised(r)] = min(r.first or 0.0, least.get(normalised(r), math.inf))
    return _fitting(readings, least, normalised, times=STANDS_OUT)


def under_attack(even: Sequence[Reading], dataset: datasets.Dataset) -> tuple[list[Reading], list[Reading]]:
    """(readings with what holds of the images under ATTACK, those of them that hold most often: a network is
    robust under the normalisation that it was made robust with). What is clearly behind after a fifth of the
    images is shown no more; all as they are where no threat is known."""
    threat = even[0].loaded.threat or dataset.threat
    if threat is None:
        return list(even), list(even)
    tried, draws = {r.words: r for r in even}, {r.words: generator(0, "readings") for r in even}
    left, index = list(even), drawn(len(dataset.probe), PROBE)
    for some in (index[:len(index) // 5], index[len(index) // 5:]):
        left = [_attacked(r, some, dataset, threat, draws[r.words]) for r in left]
        tried |= {r.words: r for r in left}
        left = _holding(left)
        if len(left) == 1:
            break
    return list(tried.values()), left


def _attacked(reading: Reading, index: Tensor, dataset: datasets.Dataset, threat: tuple[str, float],
              draw: torch.Generator) -> Reading:
    """The reading with what holds of these images added to what it has."""
    (norm, eps), attack, model = threat, parse(ATTACK)[0], reading.loaded.model
    held = [] if reading.attacked is None else [reading.attacked]
    with frozen(model):
        for part in passes(index, dataset, attacked=True):
            x, y = dataset.probe.batch(part)
            adv = attack.run(model, x, y, eps=eps, norm=norm, generator=draw)
            with torch.no_grad():
                held.append((model(adv).argmax(1) == y).cpu())
    return replace(reading, attacked=torch.cat(held))


def _holding(tried: Sequence[Reading]) -> list[Reading]:
    """Those than which none holds clearly more often."""
    held = [(r.attacked, r) for r in tried if r.attacked is not None]
    best = max((attacked for attacked, _ in held), key=lambda attacked: int(attacked.sum()))
    return [r for attacked, r in held if not is_clearly_better(best, attacked)]


def how_sure(likeliest: Reading, tried: Sequence[Reading]) -> str:
    """How much better its normalisation fits than the next of those that were tried."""
    others = [r.first for r in tried if r.first and normalised(r) != normalised(likeliest)]
    if not others or not likeliest.first or min(others) <= FITS_BETTER * likeliest.first:
        return ""
    return f"its first batch norm fits {min(others) / likeliest.first:.0f} times better than the next, "


def _fitting(readings: Sequence[Reading], misfits: Mapping[Any, float], key: Callable[[Reading], Any], *,
             times: float = FITS_BETTER) -> list[Reading]:
    """The readings of the key whose misfit is so many times less than all others; all where there is none."""
    least = min(misfits, key=lambda k: misfits[k])
    clear = all(times * misfits[least] < misfit for k, misfit in misfits.items() if k != least)
    return [r for r in readings if key(r) == least] if clear else list(readings)


def normalised(reading: Reading) -> tuple[Values, Values]:
    return reading.loaded.normalisation.mean, reading.loaded.normalisation.std


def contradicted(chosen: Reading, screened: Sequence[Reading], first: Reading) -> bool:
    """Whether a change of reading is at odds with the batch norms: another normalisation fits the first one
    far better, or other options fit all of them better at all, as accuracy alone misleads there."""
    own = next(r for r in screened if r.words == chosen.words)
    if chosen is first or own.first is None or own.misfit is None:
        return False
    if any(r.first is not None and FITS_BETTER * r.first < own.first for r in screened):
        return True
    return chosen.loaded.arch_options != first.loaded.arch_options and any(
        r.misfit is not None and r.misfit < own.misfit for r in screened
        if normalised(r) == normalised(chosen))


def score(reading: Reading) -> int:
    return int(reading.hits.sum())


def is_clearly_better(better: Tensor, worse: Tensor) -> bool:
    """Whether a reading is right significantly more often on the same images (McNemar 1947, normal
    approximation)."""
    if better.shape != worse.shape:
        return False
    only_better, only_worse = int((better & ~worse).sum()), int((worse & ~better).sum())
    return only_better - only_worse > CLEAR * (only_better + only_worse) ** 0.5


def is_clearly_less(less: Tensor, more: Tensor) -> bool:
    """Whether a loss is significantly less on the same images (paired, normal approximation)."""
    difference = more - less
    n = len(difference)
    return n > 1 and difference.mean().item() > CLEAR * difference.std().item() / n ** 0.5
