"""Accuracy over eps: the same attacks on the same samples at several radii, 0 (clean) and that of the threat
among them.

Carlini et al. 2019, section 3.1 and "increasing the distortion bound should increase the attack's success".
"""
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

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
    asked = [parse_eps(part, norm=norm) for part in parts if not _is_zero(part)]
    close = [eps for eps in asked if abs(eps - threat) > 1e-6 * threat]  # 8/255 in float32 is 8/255
    return tuple(sorted({*close, threat}))


def _is_zero(part: str) -> bool:
    """0, 0.0 or 0/255."""
    with suppress(ValueError):
        return float(part.partition("/")[0]) == 0
    return False


def measured_at(eps: Sequence[float], threat: Measured, other: Callable[[float], Measured], *,
                at: float) -> dict[float, Measured]:
    """What is found at each radius, {} where the time was over before. Args: threat: what is known of the
    radius `at`; other: measures one."""
    late = any(evaluation.unfinished for evaluation in threat.values())
    return {one: threat if one == at else {} if late else other(one) for one in eps}


def points(found: Mapping[float, Measured], *, at: float) -> list[dict[str, Any]]:
    """[{"eps", "scores": {heading: score over all attacks}}], clean first; a model that is not finished at a
    radius has no score there. What makes a point unreliable stands in its `findings`; of the threat's own
    radius (`at`) it is the report's.
    """
    first, doubted = next(filter(None, found.values())), doubts(found)
    made: list[dict[str, Any]] = [{"eps": 0.0, "scores": {
        who: _score(evaluation["clean"]) for who, evaluation in first.items()}}]
    for eps, models in found.items():
        over_all = {who: result for who, evaluation in models.items() if (result := _over_all(evaluation))}
        made.append({"eps": eps, "scores": {who: _score(result) for who, result in over_all.items()}}
                    | ({"findings": doubted[eps]} if doubted[eps] and eps != at else {}))
    return made


def _score(result: Result) -> dict[str, Any]:
    return {"accuracy": result.accuracy, "n": result.n, "ci95": list(result.ci95)}


def _over_all(evaluation: Evaluation) -> Result | None:
    """What holds against all attacks; None where time did not suffice, or none could be run."""
    names = [name for name in evaluation if name != "clean"]
    return None if evaluation.unfinished or not names else evaluation.get(WORST, evaluation[names[0]])


def doubts(found: Mapping[float, Measured]) -> dict[float, list[dict[str, Any]]]:
    """By radius: what makes the figures there unreliable, and where the curve rises up to it."""
    made = {eps: [finding for finding in comparison.findings(models) if finding["unreliable"]]
            for eps, models in found.items()}
    for (small, before), (large, after) in zip(found.items(), list(found.items())[1:], strict=False):
        made[large] += _rises(before, after, small, large)
    return made


def _rises(before: Measured, after: Measured, small: float, large: float) -> list[dict[str, Any]]:
    """Models whose accuracy rises beyond chance: what breaks a sample within a radius breaks it within any
    larger one, so the attacks got stuck there.

    Paired: of the samples that broke at one radius only, at least half should be those of the larger:
    P(X >= b | b + c, 1/2) < LEVEL.
    """
    made = []
    for who in (who for who in before if who in after):
        one, other = _over_all(before[who]), _over_all(after[who])
        if one is None or other is None:
            continue
        won = int((other.correct & ~one.correct).sum())
        lost = int((one.correct & ~other.correct).sum())
        if binomial_tail(won, won + lost, 0.5) < LEVEL:
            text = (f"{won} samples that broke within eps {small:.6g} hold at {large:.6g}, against {lost} "
                    "the other way; the attacks get stuck, gradients may be masked.")
            made.append({"check": "curve-rises", "unreliable": True, "text": text,
                         "models": [who] if len(before) > 1 else []})
    return made
