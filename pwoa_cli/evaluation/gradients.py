"""Whether the gradients that attacks follow are the network's: probes on a few images, and Square where they
are not.

x inputs (B,C,H,W) in [0,1], y labels (B,), z logits (B,K), m margin max_{j != y} z_j - z_y, g its input
gradient. Networks hide from gradients without being robust (Athalye et al. 2018). `blind`: the share of
pixels that the network reads and through which no gradient comes. `slopes`: how much m, seen without
gradients, changes along sign(g), over what g predicts. Constants were measured on honest networks
(examples/benchmarks/probes.py, docs/benchmarks.md), as a false alarm costs as much trust as a miss.
"""
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.attacks import FIXED, Attack, parse, stages
from pwoa_cli.attacks.base import contain, wrong
from pwoa_cli.attacks.bounded import Bounded, Meter, fitting_batch
from pwoa_cli.attacks.gradient import margin
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.results import Finding
from pwoa_cli.evaluation.rounding import gap, rounding, unit
from pwoa_cli.evaluation.words import first_line, percent, share
from pwoa_cli.machine import signals
from pwoa_cli.machine.seeds import generator

# towards grey, before gradients are asked for: clamp(0, 1) inside a model has none at 0 and 1, but elsewhere
INWARDS = 1 / 255
# noise on them: in a flat area all pixels of a pool are its largest, and one of them gets the gradient
DITHER = 1 / 510
# of the probe without gradient; honest networks have none, a dead ReLU or two may take a few samples
LOST_SHARE = 0.1
# noise around a sample: over a flat background whole filters are silent, beside it they are not
NEAR = 8 / 255
NEAR_DRAWS = 4
FAR_DRAWS = 4  # images far away, which show what a network reads at all
HARMLESS = 0.01  # share of entries without gradient below which it is not asked who reads them
UNREAD = 0.05  # of what all pixels change: pixels that change the margin by less are not read
BLIND = 0.5  # most honest networks: at most 0.18 (an MLP pruned to 99%); planted ones: from 0.86
# of finite differences: bf16 and straight-through rounding want long ones
STEPS = (1 / 255, 4 / 255, 16 / 255)
PLAIN = (0.5, 2.0)  # a slope between these needs no longer step
HEARD = 16  # steps of rounding of the largest logit that a predicted change must exceed
FEW = 4  # samples with such a change: the median of fewer tells nothing
SLOPES = (0.2, 3.0)  # honest networks: 0.50 to 1.05; planted ones: below 0.12, or above 4.8
SUBSET, QUERIES = 50, 1000  # of Square where a probe fires: seconds on a LeNet
# of the subset, what Square breaks and PGD leaves. A robust LeNet pruned to 90% has no gradient at 87% of the
# pixels, as its filters fall silent below a threshold, and PGD finds its way all the same
MISSED = 0.1
BLIND_TO_ALL = "no-gradient"
FAULTS = (BLIND_TO_ALL, "zero-gradients", "blind-pixels", "wrong-gradients", "other-with-gradients")


@dataclass(frozen=True, eq=False)
class Probe:
    """What B samples tell.

    cross_entropy, margins: (B,) bool: no entry of that loss's gradient is finite and not 0. zeros: the share
    of such entries of g. blind: the share of the pixels read, 0..1. slopes: by step, the median of finite
    difference over prediction, NaN where rounding drowns it. other: max |z - z'| / max |z'| of logits with
    gradients on and off, and what rounding explains.
    """

    cross_entropy: Tensor
    margins: Tensor
    zeros: float
    blind: float
    slopes: tuple[float, ...]
    other: float
    rounding: float

    @property
    def slope(self) -> float:
        """Of the step that speaks best for the gradient: the nearest to 1 in ratio; NaN where none tells."""
        heard = [slope for slope in self.slopes if not isnan(slope)]
        return max(heard, key=lambda slope: min(slope, 1 / slope) if slope > 0 else slope, default=nan)

    def faults(self) -> Iterator[Finding]:
        """What the two probes and the two passes accuse the network of."""
        if self.blind > BLIND:
            yield Finding("blind-pixels",
                          f"no gradient comes through {percent(self.blind)} of the pixels that the model "
                          f"reads ({len(self.margins)} samples; honest networks: below {percent(BLIND)}), so "
                          "white-box attacks may leave them alone.", True)
        low, high = SLOPES
        if not isnan(self.slope) and not low <= self.slope <= high:
            yield Finding("wrong-gradients",
                          f"a small step along the gradient changes the margin by {self.slope:.2f} of what "
                          f"the gradient predicts (median of {len(self.margins)} samples; honest networks: "
                          f"{low:g} to {high:g}), so white-box attacks are led astray.", True)
        if self.other > self.rounding:
            yield Finding("other-with-gradients",
                          f"the logits of the same {len(self.margins)} samples differ by "
                          f"{percent(self.other)} of the largest when gradients are asked for, so white-box "
                          "attacks search another network than the one that is judged.", True)


def of_gradients(model: nn.Module, x: Tensor, y: Tensor, *, attacks: Collection[str] | None,
                 steady: bool = True) -> Iterator[Finding]:
    """What attacks with gradients cannot see: anything, some samples or pixels, the right way, or only what
    plain cross-entropy hides.

    Args: model: frozen, in eval mode. attacks: resolved names, None for any. steady: whether its answers are
    the same in every pass and beside any samples; without that the two probes tell nothing.
    """
    try:
        tried = probe(model, x, y)
    except Exception as error:  # no graph, NumPy inside, no backward: whatever foreign code raises
        signals.let_through(error)
        yield Finding(BLIND_TO_ALL,
                      f"the model lets no gradient through to its inputs ({first_line(error)}), so only "
                      "attacks without gradients, such as square, tell anything.", True)
        return
    lost, masked, n = int(tried.margins.sum()), int((tried.cross_entropy & ~tried.margins).sum()), len(x)
    if lost > LOST_SHARE * n:
        yield Finding("zero-gradients",
                      f"the margin loss has no gradient on {share(lost, n)} probed samples, so white-box "
                      "attacks are blind there (quantised or rounded inputs, preprocessing without "
                      "derivative).", True)
    if masked > LOST_SHARE * n:
        yield Finding("masked-cross-entropy",
                      f"plain cross-entropy has no gradient on {share(masked, n)} probed samples, as the "
                      "logits are so large: apgd-ce and other people's PGD are blind there; pgd here climbs "
                      "a stable form, and cw and apgd-t see through.",
                      attacks is None or "apgd-ce" in attacks)
    if steady:
        yield from (fault for fault in tried.faults()
                    if not (lost > LOST_SHARE * n and fault.check == "blind-pixels"))  # said above


def probe(model: nn.Module, x: Tensor, y: Tensor) -> Probe:
    """Both probes on samples that are right when clean, moved INWARDS, with DITHER.

    Four passes forwards and two back, up to thirty and eighteen where pixels have no gradient or a short step
    says little. Args: model: frozen, in eval mode; x: (B,C,H,W) in [0,1]; y: (B,). The random numbers are the
    same in every call. Raises: what the model raises where it has no gradient to give.
    """
    draw = generator(0, "gradient probe")
    x = x + INWARDS * (1 - 2 * x) + DITHER * (2 * _uniform(x, draw) - 1)
    logits, cross_entropy, g = _asked(model, x, y)
    with torch.no_grad():
        seen = model(x).float()
    lost = [grad.flatten(1).eq(0).all(1) for grad in (cross_entropy, g)]
    return Probe(lost[0], lost[1], float(g.eq(0).float().mean()), _blind(model, x, y, g, draw),
                 _slopes(model, x, y, g, logits), gap(logits, seen), rounding(seen))


def _asked(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and the input gradients of cross-entropy and of the margin, not finite entries as 0."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(x).float()
        losses = F.cross_entropy(logits, y, reduction="sum"), margin(logits, y).sum()
    grads = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
    cross_entropy, g = (torch.nan_to_num(grad, nan=0, posinf=0, neginf=0) for grad in grads)
    return logits.detach(), cross_entropy, g


def _slopes(model: nn.Module, x: Tensor, y: Tensor, g: Tensor, logits: Tensor) -> tuple[float, ...]:
    """For each step h, up to one that speaks for the gradient plainly, the median over samples of
    (m(x + h s) - m(x - h s)) / <g, 2 h s>, s = sign(g), both points kept in [0,1]."""
    drowned, found = HEARD * unit(logits) * logits.abs().amax(1), []
    for step in STEPS:
        up, down = ((x + side * step * g.sign()).clamp(0, 1) for side in (1, -1))
        predicted = (g * (up - down)).flatten(1).sum(1)
        ratio = ((_margin(model, up, y) - _margin(model, down, y)) / predicted)[predicted > drowned]
        found.append(float(ratio.median()) if len(ratio) >= min(FEW, len(x)) else nan)
        if PLAIN[0] <= found[-1] <= PLAIN[1]:
            break
    return tuple(found)


def _blind(model: nn.Module, x: Tensor, y: Tensor, g: Tensor, draw: torch.Generator) -> float:
    """Of the pixels that are read, the share without gradient at a sample and beside it.

    Honest networks have such pixels too: where whole filters are silent over a flat background, where a pool
    passes on another pixel, where pruning or a stride left nothing that reads them. So a pixel counts if no
    noise around the sample wakes it, and if it is read: it has a gradient at some image far away, or all
    those that have none anywhere change the margin when they are moved at once.
    """
    near, far = g.eq(0), torch.zeros_like(g, dtype=torch.bool)
    for _ in range(NEAR_DRAWS):
        if near.float().mean() < HARMLESS:  # the share of those that are read is no larger
            return float(near.float().mean())
        beside = (x + NEAR * (2 * _uniform(x, draw) - 1)).clamp(INWARDS, 1 - INWARDS)
        near &= _asked(model, beside, y)[2].eq(0)
    if not near.any():
        return 0.0
    # with half of another sample
    away = [(_uniform(x, draw) + x.roll(1 + i, 0)) / 2 for i in range(FAR_DRAWS)]
    for image in away:
        far |= _asked(model, image, y)[2].ne(0)
    silent, here = near & ~far, _margin(model, x, y)
    some, all_of_them = (torch.stack([(_margin(model, torch.where(which, image, x), y) - here).abs()
                                      for image in away]).amax(0).median()
                         for which in (silent, torch.ones_like(silent)))
    if some > UNREAD * all_of_them:
        return float(near.float().mean())
    return float((near & far).sum() / (~silent).sum().clamp_min(1))


@torch.no_grad()
def _margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return margin(model(x).float(), y)


def _uniform(x: Tensor, draw: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=draw).to(x)


# --- What is done about it ---------------------------------------------------------------


def fitting(model: nn.Module, x: Tensor, *, most: int) -> int:
    """`fitting_batch`, also of a model that fails where gradients are asked for: then `most`."""
    try:
        return fitting_batch(model, x, most=most)
    except Exception as error:  # whatever foreign code raises
        signals.let_through(error)
        return most


def without_gradients(findings: Sequence[Finding],
                      chosen: Sequence[Attack]) -> tuple[list[Finding], list[Attack]]:
    """The attacks that can be run, and the findings saying which ones cannot where there is no gradient."""
    blind = next((finding for finding in findings if finding.check == BLIND_TO_ALL), None)
    needy = [attack.name for attack in chosen if attack.needs_gradients]
    if blind is None or not needy:
        return list(findings), list(chosen)
    names = f"{', '.join(needy[:-1])} and {needy[-1]}" if len(needy) > 1 else needy[0]
    said = replace(blind, text=f"{blind.text.removesuffix('.')}; {names} {'were' if needy[1:] else 'was'} "
                               "not run.")
    return ([said if finding is blind else finding for finding in findings],
            [attack for attack in chosen if not attack.needs_gradients])


def with_square(findings: Sequence[Finding], chosen: Sequence[Attack], model: Bounded, x: Tensor, y: Tensor,
                *, eps: float, norm: str, seed: int,
                beat: Callable[[], None] = lambda: None) -> list[Finding]:
    """The findings, those about gradients with how many of the samples Square breaks, which needs none.

    Pixels without gradient mislead only if Square breaks what PGD leaves (MISSED): otherwise they are said,
    and the figure stands. Square is not run where no probe fired, and where it is among the chosen attacks
    anyway and nothing is to be told apart. It draws from a
    seed of its own and on a count of its own, so nothing else moves. Args: x, y: samples that are right when
    clean, (b,C,H,W) and (b,), the first SUBSET are used. model: frozen. beat: called at every pass.
    """
    asked = any(part.name == "square" for attack in chosen for part in stages(attack))
    doubted = {finding.check for finding in findings} & set(FAULTS)
    if not len(x) or not doubted or asked and doubted != {"blind-pixels"}:
        return list(findings)
    x, y = x[:SUBSET], y[:SUBSET]
    misled = True

    def broken_by(attack: Attack, **options: int) -> Tensor:
        adv = attack.run(Bounded(model.model, model.batch_size, Meter(beat=beat)), x, y, eps=eps, norm=norm,
                         generator=generator(seed, f"{attack.name} on a subset"), **options)
        with torch.no_grad():
            return wrong(model.model(contain(adv, x, eps=eps, norm=norm)).float(), y)

    try:
        broken = broken_by(FIXED["square"], queries=QUERIES)
    except InputError as error:  # images too small for its tiles
        told = f"Square, which needs no gradient, could not be run: {error.message}"
    else:
        told = (f"Square, which needs no gradient, broke {share(int(broken.sum()), len(x))} with {QUERIES} "
                "queries each (--attacks square for all).")
        if doubted == {"blind-pixels"}:
            missed = int((broken & ~broken_by(parse("pgd-20")[0])).sum())
            misled = missed > MISSED * len(x)
            told += f" PGD-20 left {missed} of them."
    return [replace(finding, text=f"{finding.text} {told}", unreliable=finding.unreliable and misled)
            if finding.check in FAULTS else finding for finding in findings]
