"""Two models on the same samples: each attacked, the drop between them with its paired interval, what the
checks found."""
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn

from pwoa_cli.data.samples import View
from pwoa_cli.evaluation.evaluate import attack_all, evaluating
from pwoa_cli.evaluation.intervals import discordant, paired_drop
from pwoa_cli.evaluation.results import Evaluation
from pwoa_cli.evaluation.units import Unfinished
from pwoa_cli.evaluation.words import in_points, told
from pwoa_cli.progress import Progress, Say

STEPS = 1000  # of the progress bar, for each model


def measure(models: Mapping[str, nn.Module], x: View, *, norm: str | None, eps: float | None,
            attack_names: str, seed: int, progress: Progress, say: Say,
            batch_size: int | None = None, seconds: float | None = None, keep_inputs: bool = False,
            unfinished: Callable[[str, str], Unfinished | None] = lambda who, sha256: None,
            ) -> dict[str, Evaluation]:
    """The evaluation of each model on the same samples, under one threat, side by side: block by block, so
    that what is finished after `seconds` is of the same samples.

    Args: unfinished: from the name of a model and the SHA-256 of the samples, where what is finished is kept.
    """
    end = None if seconds is None else time.monotonic() + seconds
    shares = dict.fromkeys(models, 0.0)

    def tell(who: str, name: str, share: float) -> None:
        shares[who] = share
        title = f"{who} " if len(models) > 1 else ""
        progress("evaluate", round(STEPS * sum(shares.values())), STEPS * len(models), title + name)

    with ExitStack() as stack:
        evaluations = {}
        for who, model in models.items():
            tell(who, "clean", 0.0)
            evaluations[who] = stack.enter_context(evaluating(
                model, x, x.labels, attacks=attack_names, norm=norm, eps=eps, seed=seed, say=say,
                batch_size=batch_size, progress=partial(tell, who), keep_inputs=keep_inputs,
                unfinished=partial(unfinished, who)))
        attack_all(evaluations, end=end)
        found = {who: under.evaluation() for who, under in evaluations.items()}
    if not any(evaluation.unfinished for evaluation in found.values()):
        progress("evaluate", STEPS * len(models), STEPS * len(models), "")
    return found


def compare(teacher: Evaluation, student: Evaluation) -> dict[str, dict[str, Any]]:
    """Drop in points with its paired 95% interval and McNemar's test, by attack that both are finished
    with."""
    found = {}
    for name in (name for name in teacher if name in student):
        t, s = teacher[name].correct, student[name].correct
        lost, won, p = discordant(t, s)
        found[name] = in_points(*paired_drop(t, s)) | {"lost": lost, "won": won, "p": p}
    return found


def findings(found: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """What the checks found, by model, as plain dictionaries; the same finding of all models once."""
    several = len(found) > 1
    texts: dict[tuple[str, str, bool], list[str]] = {}
    for who, evaluation in found.items():
        for finding in evaluation.findings:
            texts.setdefault((finding.check, finding.text, finding.unreliable), []).append(who)
    return [{"check": check, "unreliable": unreliable, "text": text, "models": who if several else []}
            for (check, text, unreliable), who in texts.items()]


def notes(found: Mapping[str, Evaluation]) -> list[str]:
    """The findings as sentences."""
    return told(findings(found))
