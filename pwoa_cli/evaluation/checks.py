"""What makes an evaluation wrong: each check looks for one fault and says it in one sentence with figures.

x inputs (B,C,H,W) in [0,1], y labels (B,), z logits (B,K), n samples. `of_model` tries the model on a few
images before the attacks, `of_threat` reads the radius; result_checks.py compares the attacks with each
other. The faults are those that Athalye et al. 2018, Carlini et al. 2019 and Croce & Hein 2020 met in
published figures. Constants were measured on honest models (tests/evaluation/test_checks.py), as a false
alarm costs as much trust as a miss.
"""
from collections.abc import Collection

import torch
from torch import Tensor, nn

from pwoa_cli.attacks.autoattack import MAX_TARGETS
from pwoa_cli.attacks.base import SLACK, frozen, wrong
from pwoa_cli.attacks.mixed import CLOSING_STEPS
from pwoa_cli.attacks.reduced import reduced
from pwoa_cli.evaluation import gradients
from pwoa_cli.evaluation.intervals import near_chance
from pwoa_cli.evaluation.results import Finding
from pwoa_cli.evaluation.rounding import COARSE_DTYPES, gap, precision, rounding
from pwoa_cli.evaluation.words import first_line, percent, share
from pwoa_cli.machine import signals
from pwoa_cli.machine.devices import multiplies_bf16
from pwoa_cli.machine.generators import drawn_since, own_draws, states

PROBE = 32  # samples whose gradients are looked at, and most in one pass
COMPANY = 8  # samples for repeated passes
PASSES = 4  # on the same samples: a model that draws one of two forms stays hidden in 1 of 8 runs
ONE = 1e-3  # probabilities sum to 1 up to this
TARGETED = ("apgd-t", "fab-t", "aa", "aa-fast", "aa-mixed")
COMMON_255 = (1, 2, 4, 8, 16)  # radii of the literature in 255ths
SAME_EPS = 1e-3  # relative: 0.0314 is 8/255 for every figure that is measured
# relative: 0.031 is off by 1.2%, 0.016 by 2.0%; 0.03 by 4.4%: a radius of its own, as papers use it
NEAR_EPS = 0.025
STEP_AT_ONE = 2**-24  # between float32 numbers just below 1
GREY_EPS = 0.5  # linf: every image of [0,1] reaches uniform grey
LOW = 0.5  # clean accuracy below which one doubts the data or the normalisation
FAR = 3.0  # standard deviations above chance that a clean accuracy must be


# --- The model ---------------------------------------------------------------


def of_model(model: nn.Module, inputs: Tensor, labels: Tensor, *, was_training: bool = False,
             attacks: Collection[str] | None = None, batch_size: int = PROBE) -> list[Finding]:
    """Faults that show on a few images: eight small passes, and thirty over PROBE samples that are right when
    clean, a third of them backwards (gradients.py).

    Args: model: itself, not a wrapper that changes its dtype; it is in eval mode meanwhile, and torch's
        generators are left as they were. inputs: (B,C,H,W) float in [0,1] on its device, B > 0; 2 * PROBE are
        looked at. labels: (B,) long. was_training: it was handed over in training mode. attacks: resolved
        names; with them, few classes are said only where targets are tried, and a scale that masks
        cross-entropy alone is unreliable only for apgd-ce, a note otherwise. batch_size: most samples in one
        pass, where memory holds fewer than PROBE.
    """
    most = min(PROBE, batch_size)
    with torch.no_grad(), frozen(model), own_draws():
        x, y, logits = _probe(model, inputs, labels, most)
        some, tolerance = inputs[:max(1, min(COMPANY, most - 1))], rounding(logits)
        # noise would look like company
        unsteady = _random(model, some, tolerance) or _batch_dependent(model, some, tolerance)
        found = [_training_mode(was_training), _few_classes(logits.shape[1], attacks), _coarse(logits),
                 _probabilities(logits), unsteady]
        found += gradients.of_gradients(model, x, y, attacks=attacks, steady=not unsteady)
    return [finding for finding in found if finding]


def of_mixed(model: nn.Module, inputs: Tensor, *, attacks: Collection[str]) -> list[Finding]:
    """What aa-mixed, if it is among the attacks, does with this model on the device of the inputs
    (B,C,H,W)."""
    if "aa-mixed" not in attacks:
        return []
    if reduced(model, inputs) is not None:
        return [Finding("mixed-precision",
                        "aa-mixed searched in bfloat16: what it broke is broken in float32; what held went "
                        f"through apgd-t with {CLOSING_STEPS} steps to each target in float32, and a few "
                        "that aa breaks may be left.", False)]
    why = (f"has no instructions for bfloat16 ({inputs.device.type})" if not multiplies_bf16(inputs.device)
           else "would answer otherwise in bfloat16, or cannot run in it")
    who = "this device" if why.startswith("has") else "the model"
    return [Finding("mixed-precision", f"{who} {why}: aa-mixed searched in float32 and is aa.", False)]


def of_randomness(model: nn.Module, inputs: Tensor) -> Finding | None:
    """Whether passes in eval mode on the same few inputs (B,C,H,W) differ; of COMPANY of them, as
    `of_model`."""
    x = inputs[:COMPANY]
    with torch.no_grad(), frozen(model), own_draws():
        return _random(model, x, rounding(model(x)))


def same_function(one: nn.Module, other: nn.Module, inputs: Tensor) -> Finding | None:
    """Whether two networks that should be one function are: a masked one and its compacted form, a model and
    its fast copy.

    max |z - z'| / max |z'| over inputs (B,C,H,W), and labels that differ; equal up to rounding is None.
    """
    with torch.no_grad(), frozen(one), frozen(other):
        ours, theirs = (torch.cat([model(part) for part in inputs.split(PROBE)]) for model in (one, other))
    if ours.shape != theirs.shape:
        return Finding("other-function",
                       f"two networks that should be one function give logits of shapes {tuple(ours.shape)} "
                       f"and {tuple(theirs.shape)}.", True)
    apart = gap(ours, theirs)
    if apart <= max(rounding(ours), rounding(theirs)):
        return None
    return Finding("other-function",
                   f"two networks that should be one function differ: {_differ(apart, ours, theirs)}.", True)


def _probe(model: nn.Module, inputs: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Up to `most` samples that are right when clean (the first ones where none is), and all logits that were
    looked at."""
    x, y = inputs[:2 * PROBE], labels[:2 * PROBE]
    logits = torch.cat([model(part) for part in x.split(most)])
    right = (~wrong(logits, y)).nonzero().flatten()[:most]
    rows = right if len(right) else torch.arange(min(most, len(x)), device=x.device)
    return x[rows], y[rows], logits


def _training_mode(was_training: bool) -> Finding | None:
    if not was_training:
        return None
    return Finding("training-mode",
                   "the model was handed over in training mode; it was evaluated in eval mode.", False)


def _few_classes(classes: int, attacks: Collection[str] | None) -> Finding | None:
    if classes > MAX_TARGETS or (attacks is not None and not set(attacks) & set(TARGETED)):
        return None
    return Finding("few-classes",
                   f"the model has {classes} classes, so targeted attacks try at most {classes - 1} "
                   f"target{'s' * (classes > 2)} for each sample where {MAX_TARGETS} would be possible.",
                   False)


def _coarse(logits: Tensor) -> Finding | None:
    """Logits of few digits: a tie of the two largest is decided by their order, and attacks stop at it."""
    dtype = precision(logits)
    if dtype not in COARSE_DTYPES:
        return None
    first, second = logits.float().topk(2).values.unbind(1)
    tied, name = int((first == second).sum()), str(dtype).removeprefix("torch.")
    said = f"the model gives its logits with the precision of {name}"
    if not tied:
        return Finding("coarse-logits", f"{said}; run it in float32 for figures that others can compare.",
                       False)
    return Finding("coarse-logits",
                   f"{said}, and the two largest tie on {share(tied, len(logits))} clean samples: their "
                   "order decides who is right.", True)


def gives_probabilities(logits: Tensor) -> bool:
    """Whether answers (B, K) are probabilities: none below 0, each row's sum 1 up to rounding.
    Log-probabilities are none: the losses are the same up to a constant."""
    tolerance = max(ONE, rounding(logits))
    return bool((logits >= 0).all() and ((logits.float().sum(1) - 1).abs() <= tolerance).all())


def _probabilities(logits: Tensor) -> Finding | None:
    if not gives_probabilities(logits):
        return None
    return Finding("probabilities",
                   f"the model gives probabilities (none below 0, sum 1 on all {len(logits)} samples) "
                   "instead of logits; a softmax inside flattens the losses that attacks climb.", True)


def _random(model: nn.Module, x: Tensor, tolerance: float) -> Finding | None:
    """PASSES passes on the same samples. On CUDA sums may run in another order, so tiny differences need a
    drawn number."""
    once = model(x)
    for _ in range(PASSES - 1):
        before = states()
        again = model(x)
        apart, drawn = gap(again, once), drawn_since(before)
        if apart > (0 if drawn else tolerance):
            return Finding("random-model",
                           f"two passes on the same {len(x)} samples differ: {_differ(apart, again, once)}; "
                           "a random model needs attacks on its expectation (EOT), and its flags cannot be "
                           "reproduced.", True)
    return None


def _batch_dependent(model: nn.Module, x: Tensor, tolerance: float) -> Finding | None:
    """The last sample alone, and behind others (a negative too, so that one sample has company as well)."""
    beside = model(torch.cat([1 - x[:1], x]))[-1:]
    try:
        alone = model(x[-1:])
    except (RuntimeError, ValueError) as error:  # batch norm on one value, a batch size written into the code
        signals.let_through(error)
        return Finding("batch-dependent",
                       f"the model answers {len(x) + 1} samples at once but fails on one alone "
                       f"({first_line(error)}); attacks need the answer for each sample.", True)
    apart = gap(alone, beside)
    if apart <= tolerance:
        return None
    return Finding("batch-dependent", f"the logits of a sample alone and beside {len(x)} others differ by "
                                      f"{percent(apart)} of the largest; its flag depends on the batch it is "
                                      "in.", True)


# --- The threat and the clean accuracy ---------------------------------------------------------------


def of_threat(eps: float, norm: str, *, pixels: int) -> list[Finding]:
    """A radius that is nearly k/255 (linf), so large that nothing can hold: half the diagonal of the box of
    `pixels` values, or so small that float32 rounds perturbations away."""
    found = []
    least = {"linf": SLACK, "l2": SLACK + pixels**0.5 * STEP_AT_ONE, "l1": SLACK + pixels * STEP_AT_ONE}[norm]
    if eps < least:
        found.append(Finding("tiny-eps",
                             f"eps is {eps:g} in {norm}: below {least:.2g} float32 cannot express the "
                             f"perturbations of {pixels} pixels (x + eps = x near 1), so accuracies under "
                             "attack say what rounding does.", True))
    near = [k for k in COMMON_255 if SAME_EPS < abs(eps * 255 / k - 1) <= NEAR_EPS]
    if norm == "linf" and near:
        usual = f"{near[0]}/255"
        found.append(Finding("rounded-eps",
                             f"eps is {eps:g}, {percent(abs(eps * 255 / near[0] - 1))} off {usual} = "
                             f"{near[0] / 255:.6f}; figures of others are for {usual} (--eps "
                             f"{usual}).", False))
    grey = {"linf": GREY_EPS, "l2": GREY_EPS * pixels**0.5, "l1": GREY_EPS * pixels}[norm]
    if eps >= grey:
        found.append(Finding("large-eps",
                             f"eps is {eps:g} in {norm}: from {grey:.4g} on every image can be made the same "
                             "uniform grey, so no model can hold above chance.", False))
    return found


def of_accuracy(correct: int, n: int, classes: int) -> list[Finding]:
    """A clean accuracy near chance, or so low that one doubts the data or the normalisation."""
    shown = percent(correct / n)
    if near_chance(correct, n, classes, deviations=FAR):
        return [Finding("near-chance", f"clean accuracy {shown} is near chance ({percent(1 / classes)}).",
                        True)]
    doubt = f"clean accuracy is {shown}: are the data and the normalisation those of its training?"
    return [Finding("low-accuracy", doubt, False)] if correct / n < LOW else []


# --- Numbers ---------------------------------------------------------------


def _differ(apart: float, one: Tensor, other: Tensor) -> str:
    changed = int((one.argmax(1) != other.argmax(1)).sum())
    return f"logits by up to {percent(apart)} of the largest, and {share(changed, len(one))} labels change"


