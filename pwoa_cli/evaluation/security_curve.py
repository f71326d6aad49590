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
from pwoa_cli.evaluation.result_checks import LEVEL
from pwoa_cli.evaluation.results import Evaluation, Result
from pwoa_cli.evaluation.words import WORST

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
    radius has no score there, and one on which no attack could be run has none anywhere: [] if that is so of
    all. What makes a point unreliable stands in its `findings`; of the threat's own radius (`at`) it is the
    report's.
    """
    first, doubted = next(filter(None, found.values())), doubts(found)
    attacked = {who: evaluation for who, evaluation in first.items()
                if evaluation.unfinished or _over_all(evaluation)}
    if not attacked:
        return []
    made: list[dict[str, Any]] = [{"eps": 0.0, "scores": {
        who: _score(evaluation["clean"]) for who, evaluation in attacked.items()}}]
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
    for eps, models in found.items():
        smaller = {small: before for small, before in found.items() if small < eps}
        made[eps] += [{"check": "curve-rises", "unreliable": True, "text": text,
                       "models": [who] if len(models) > 1 else []}
                      for who in models if (text := _rise(who, smaller, models[who], eps))]
    return made


def _rise(who: str, smaller: Mapping[float, Measured], after: Evaluation, eps: float) -> str:
    """Why a model's accuracy at a radius is above that at a smaller one beyond chance, "" where it is not:
    what breaks a sample within a radius breaks it within any larger one, so the attacks got stuck there, and
    at all larger ones that stay as high.

    Paired: of the samples that broke at one radius only, at least half should be those of the larger:
    P(X >= b | b + c, 1/2) < LEVEL, shared among the smaller radii (Bonferroni); the clearest is said.
    """
    other, seen = _over_all(after), []
    for small, before in smaller.items():
        one = _over_all(before[who]) if who in before else None
        if one is not None and other is not None:
            won = int((other.correct & ~one.correct).sum())
            lost = int((one.correct & ~other.correct).sum())
            seen.append((binomial_tail(won, won + lost, 0.5), won, lost, small))
    if not seen or min(seen)[0] >= LEVEL / len(seen):
        return ""
    _, won, lost, small = min(seen)
    return (f"{won} samples that broke within eps {small:.6g} hold at {eps:.6g}, against {lost} the other "
            "way; the attacks get stuck, gradients may be masked.")
