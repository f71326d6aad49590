"""What an evaluation found: a line for each attack, the samples behind it, and its forms in report.json."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, inf

from pwoa_cli.evaluation.intervals import wilson


@dataclass(frozen=True)
class Finding:
    """One fault. check: its id; text: a sentence; unreliable: the figures must not be believed."""

    check: str
    text: str
    unreliable: bool


CURVE = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)  # radii of a security curve, in units of eps


@dataclass(frozen=True, eq=False)
class Result:
    """One line of the evaluation, over the n samples that are `done` (all, unless time ran out).

    correct, attacked, broken: (N,) bool on the CPU: still right after this attack (for the AutoAttack family:
    and after the cheaper ones); given to it; broken by it. distance: (N,) float32, norm of the perturbation,
    NaN where there is none. parts: `broken` by component. outside, nonfinite: answers outside the ball or
    [0,1], which were projected; samples with NaN or infinite logits, which count as broken. forwards,
    backwards: samples through the model.
    """

    name: str
    correct: Tensor
    done: Tensor
    attacked: Tensor
    broken: Tensor
    distance: Tensor
    seconds: float
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    outside: int = 0
    nonfinite: int = 0
    forwards: int = 0
    backwards: int = 0
    curve: tuple[tuple[float, float], ...] = ()  # (eps, accuracy), of minimum-norm attacks

    @property
    def n(self) -> int:
        """Samples that are done."""
        return int(self.done.sum())

    @property
    def accuracy(self) -> float:
        """Of the samples that are done."""
        return int(self.correct.sum()) / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's interval of the accuracy."""
        return wilson(int(self.correct.sum()), self.n)


class Evaluation(dict[str, Result]):
    """{"clean": Result, resolved attack name: Result, ..., "worst case": Result (from two attacks on)} of
    what is finished, and what goes with it.

    findings: what may be wrong with the figures. broken_by: (N,) names: the first attack that broke a sample,
    "clean" where it was wrong before, "" where it holds. inputs: (N,C,H,W) adversarial inputs of those
    attacks, clean elsewhere; None unless asked for. unfinished: names of attacks that time did not suffice
    for: there is no worst case then. partial: what those of them did that are done with some samples; never a
    figure of the model. seconds: that all attacks took, those on blocks that were not finished too.
    """

    def __init__(self, results: Mapping[str, Result], *, findings: Sequence[Finding],
                 broken_by: Sequence[str], inputs: Tensor | None = None, unfinished: Sequence[str] = (),
                 partial: Mapping[str, Result] | None = None, seconds: float = 0.0):
        super().__init__(results)
        self.findings, self.broken_by, self.inputs = tuple(findings), tuple(broken_by), inputs
        self.unfinished, self.partial, self.seconds = tuple(unfinished), dict(partial or {}), seconds


def curve(result: Result, clean: Tensor, eps: float) -> tuple[tuple[float, float], ...]:
    """(radius, accuracy) by the smallest perturbations that were found: right when clean, and none within the
    radius.

    What counts as broken at eps may lie beyond it by float32 rounding (base.py:slack); it counts as broken
    here too.
    """
    size, right = result.distance[result.done].nan_to_num(inf), clean[result.done]
    size = size.where(result.correct[result.done], size.clamp(max=eps))
    return tuple((c * eps, float((right & (size > c * eps)).double().mean())) for c in CURVE)


def to_json(results: Mapping[str, Result]) -> dict[str, dict]:
    """{NAME: {"accuracy": 0..1, "n": int, "ci95": [low, high], ...}}, the form in report.json; attacks also
    say what they cost."""
    return {name: {"accuracy": r.accuracy, "n": r.n, "ci95": list(r.ci95)}
            | ({} if name == "clean" else _spent(r))
            for name, r in results.items()}


def _spent(r: Result) -> dict[str, object]:
    found = {"attacked": int(r.attacked.sum()), "broken": int(r.broken.sum()), "forwards": r.forwards,
             "backwards": r.backwards}
    parts = {"parts": {part: int(flags.sum()) for part, flags in r.parts.items()}} if r.parts else {}
    return found | parts | ({"curve": [list(point) for point in r.curve]} if r.curve else {})


def unfinished_json(evaluation: Evaluation, n: int) -> dict[str, dict[str, object]]:
    """{NAME: {"n": samples done, "of": n, ...}} of attacks that time did not suffice for; what they did on
    the samples that are done stands here and nowhere else."""
    done = to_json(evaluation.partial)
    return {name: {"n": 0, "of": n} | done.get(name, {}) for name in evaluation.unfinished}


def by_class(results: Mapping[str, Result], labels: Tensor) -> dict[str, dict[int, dict]]:
    """{NAME: {class: {"accuracy", "n", "ci95"}}} over the samples of each class that are done."""
    found: dict[str, dict[int, dict]] = {}
    for name, r in results.items():
        counts = {int(c): (int((r.correct & (labels == c)).sum()), int((r.done & (labels == c)).sum()))
                  for c in labels.unique()}
        found[name] = {c: {"accuracy": right / n, "n": n, "ci95": list(wilson(right, n))}
                       for c, (right, n) in counts.items() if n}
    return found
