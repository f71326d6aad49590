"""Accuracy over eps: the same attacks on the same samples at several radii, 0 (clean) and that of the threat
among them.

Carlini et al. 2019, section 3.1 and "increasing the distortion bound should increase the attack's success".
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pwoa_cli.attacks.threat import parse_eps
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import comparison
from pwoa_cli.evaluation.intervals import binomial_tail
from pwoa_cli.evaluation.results import Evaluation, Result
from pwoa_cli.evaluation.words import WORST

LEVEL = 0.01  # of the test for a rise: the level of the other checks (result_checks.py)
Measured = Mapping[str, Evaluation]  # by heading


def radii(text: str, *, norm: str, threat: float) -> tuple[float, ...]:
    """The radii of "0,2/255,0.1" and the threat's own in rising order, none twice; 0 is left out, as clean is
    always measured. Raises: InputError naming the first that is no radius in this norm."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"--curve {text}: a radius is missing.",
                         hint="One comma between two radii: --curve 2/255,4/255,8/255")
    asked = [parse_eps(part, norm=norm) for part in parts if part != "0"]
    close = [eps for eps in asked if abs(eps - threat) > 1e-6 * threat]  # 8/255 in float32 is 8/255
    return tuple(sorted({*close, threat}))


def measured_at(eps: Sequence[float], threat: Measured, other: Callable[[float], Measured], *,
                at: float) -> dict[float, Measured]:
    """What is found at each radius, {} where the time was over before. Args: threat: what is known of the
    radius `at`; other: measures one."""
    late = any(evaluation.unfinished for evaluation in threat.values())
    return {one: threat if one == at else {} if late else other(one) for one in eps}


def points(found: Mapping[float, Measured]) -> list[dict[str, Any]]:
    """[{"eps", "scores": {heading: score over all attacks}}], clean first; a model that is not finished at a
    radius has no score there."""
    first = next(filter(None, found.values()))
    clean = {"eps": 0.0, "scores": {who: _score(evaluation["clean"]) for who, evaluation in first.items()}}
    return [clean, *({"eps": eps, "scores": {
        who: _score(over_all) for who, evaluation in models.items()
        if (over_all := _over_all(evaluation)) is not None}} for eps, models in found.items())]


def _score(result: Result) -> dict[str, Any]:
    return {"accuracy": result.accuracy, "n": result.n, "ci95": list(result.ci95)}


def _over_all(evaluation: Evaluation) -> Result | None:
    """What holds against all attacks; None where time did not suffice, or none could be run."""
    names = [name for name in evaluation if name != "clean"]
    whole = names and not evaluation.unfinished
    return evaluation.get(WORST, evaluation[names[0]]) if whole else None


def findings(found: Mapping[float, Measured], *, at: float) -> list[dict[str, Any]]:
    """What makes a curve doubtful: a rise, and what makes its points but that of the threat (`at`) so."""
    others = [finding | {"text": f"at eps {eps:.6g}: {finding['text']}"}
              for eps, models in found.items() if eps != at
              for finding in comparison.findings(models) if finding["unreliable"]]
    known = {finding["check"] for finding in comparison.findings(found[at]) if finding["unreliable"]}
    return [*rises(found), *(finding for finding in others if finding["check"] not in known)]


def rises(found: Mapping[float, Measured]) -> list[dict[str, Any]]:
    """Where a curve rises beyond chance: what breaks a sample within a radius breaks it within any larger
    one, so the attacks got stuck there.

    Paired: of the samples that broke at one of two neighbours only, at least half should be those of the
    larger: P(X >= b | b + c, 1/2) < LEVEL.
    """
    several = len(next(filter(None, found.values()))) > 1
    made = []
    for (small, before), (large, after) in zip(found.items(), list(found.items())[1:], strict=False):
        for who in before.keys() & after.keys():
            holds = [_over_all(models[who]) for models in (before, after)]
            if holds[0] and holds[1] and (text := _rise(holds[0].correct, holds[1].correct, small, large)):
                made.append({"check": "curve-rises", "unreliable": True, "text": text,
                             "models": [who] if several else []})
    return made


def _rise(before: Tensor, after: Tensor, small: float, large: float) -> str:
    """The sentence on a rise; "" where there is none. Args: before, after: (n,) bool, who holds."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    if binomial_tail(won, won + lost, 0.5) >= LEVEL:
        return ""
    return (f"{won} samples that broke within eps {small:.6g} hold at {large:.6g}, against {lost} the other "
            "way; the attacks get stuck, gradients may be masked.")
