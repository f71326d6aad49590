"""Two models on the same samples: the drop over those both are done on, findings said once, time shared."""
import pytest
import torch
from helpers.problems import centred

from pwoa_cli.data import datasets
from pwoa_cli.data.samples import View
from pwoa_cli.evaluation.comparison import compare, findings, measure, notes
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.intervals import discordant, paired_drop
from pwoa_cli.evaluation.results import Evaluation, Finding, result
from pwoa_cli.evaluation.words import WORST, in_points


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def line(name, correct, done=None):
    done = torch.ones_like(correct) if done is None else done
    return result(name, correct & done, done=done, attacked=done, broken=done & ~correct, seconds=0.0,
                  distance=torch.full(correct.shape, torch.nan))


def evaluation(*lines, unfinished=(), found=()):
    return Evaluation({each.name: each for each in lines}, findings=found, broken_by=(),
                      unfinished=unfinished)


def test_the_drop_is_over_the_samples_that_both_are_done_on():
    right, left = flags(1, 1, 1, 0, 1, 1), flags(1, 0, 1, 0, 0, 1)
    both = flags(1, 1, 1, 1, 0, 0)
    teacher = evaluation(line("clean", right), line("pgd-20", right, flags(1, 1, 1, 1, 1, 0)),
                         line("cw", right))
    student = evaluation(line("clean", left), line("pgd-20", left, flags(1, 1, 1, 1, 0, 1)),
                         line("fgsm", left))
    found = compare(teacher, student)
    assert list(found) == ["clean", "pgd-20"]
    drop, (low, high) = paired_drop(right[both], left[both])
    lost, won, p = discordant(right[both], left[both])
    points = {"points": 100 * drop, "ci95": [100 * low, 100 * high]}
    assert found["pgd-20"] == points | {"lost": lost, "won": won, "p": p}
    assert (drop, lost, won) == (0.25, 1, 0) and found["clean"]["points"] == pytest.approx(100 / 3)


def test_samples_that_are_done_for_one_model_only_are_no_comparison():
    right = flags(1, 1)
    assert compare(evaluation(line("cw", right, flags(1, 0))),
                   evaluation(line("cw", right, flags(0, 1)))) == {}


@pytest.mark.parametrize("cut", ["teacher", "student", None])
def test_worst_cases_are_compared_only_where_no_time_ran_out(cut):
    lines = line("clean", flags(1, 1)), line(WORST, flags(1, 0))
    teacher, student = (evaluation(*lines, unfinished=("aa",) if who == cut else ())
                        for who in ("teacher", "student"))
    assert list(compare(teacher, student)) == (["clean"] if cut else ["clean", WORST])


def test_a_finding_of_all_models_is_said_once_and_says_whose_it_is():
    random, coarse = (Finding("random-model", "it is random.", True),
                      Finding("coarse-logits", "it is coarse.", False))
    found = {"teacher": evaluation(found=[random]), "pruned": evaluation(found=[random, coarse])}
    assert findings(found) == [
        {"check": "random-model", "unreliable": True, "text": "it is random.",
         "models": ["teacher", "pruned"]},
        {"check": "coarse-logits", "unreliable": False, "text": "it is coarse.", "models": ["pruned"]}]
    assert notes(found) == ["unreliable: teacher and pruned: it is random.", "pruned: it is coarse."]
    assert notes({"model": evaluation(found=[random])}) == ["unreliable: it is random."]


def test_points_are_hundredths():
    assert in_points(0.25, (-0.5, 1.0)) == {"points": 25.0, "ci95": [-50.0, 100.0]}


def test_models_are_measured_on_the_same_samples_and_progress_ends_at_its_whole():
    model, x, _ = centred(30)
    view = View(datasets.Split((x * 255).byte(), model(x).argmax(1)), torch.arange(30))
    asked, told = [], []
    found = measure({"teacher": model, "pruned": model}, view, norm="linf", eps=0.2,
                    attack_names="fgsm,pgd-2",
                    seed=3, progress=lambda *step: told.append(step), say=lambda text: None,
                    unfinished=lambda who, sha256: asked.append((who, sha256)))
    alone = evaluate(model, view, view.labels, attacks="fgsm,pgd-2", norm="linf", eps=0.2, seed=3)
    assert list(found) == ["teacher", "pruned"] and [who for who, _ in asked] == ["teacher", "pruned"]
    assert asked[0][1] == asked[1][1]  # the same samples, and predictions
    for each in found.values():
        assert all(torch.equal(each[name].correct, alone[name].correct) for name in alone)
    steps = [done for _, done, _, _ in told]
    assert steps == sorted(steps) and told[-1] == ("evaluate", 2000, 2000, "")
    assert {title.split()[0] for _, _, _, title in told[:-1]} == {"teacher", "pruned"}


def test_time_that_is_up_cuts_every_model():
    model, x, _ = centred(10)
    view = View(datasets.Split((x * 255).byte(), model(x).argmax(1)), torch.arange(10))
    found = measure({"teacher": model, "pruned": model}, view, norm="linf", eps=0.2, attack_names="pgd-2",
                    seed=0, progress=lambda *step: None, say=lambda text: None, seconds=0.0)
    assert all(list(each) == ["clean"] and each.unfinished == ("pgd-2",) for each in found.values())
