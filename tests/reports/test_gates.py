"""Gates: what is typed, what is refused, and verdicts on figures whose truth is known."""
import pytest
from helpers.report_samples import STUDENT, TEACHER, evaluation, report

from pwoa_cli.cli.report import _judged
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.intervals import wilson
from pwoa_cli.evaluation.words import WORST
from pwoa_cli.reports.gates import Gate, judged, parse, resolved
from pwoa_cli.reports.search import exceeded

ATTACKS = {"pgd": "pgd-20", "pgd-20": "pgd-20", "aa": "aa"}


def figure(correct, n=1000):
    return {"accuracy": correct / n, "n": n, "ci95": list(wilson(correct, n))}


def verdict(gate, strict=False, **changes):
    made = evaluation(results={"clean": figure(900), "pgd-20": figure(450), **changes.pop("results", {})},
                      **changes)
    found, = judged(made, [gate], strict=strict)
    return found


def test_what_is_typed():
    assert parse("min", ["pgd=0.45", " worst = 0.4 "]) == [Gate("min", "pgd", 0.45), Gate("min", WORST, 0.4)]
    assert parse("max-drop", ["aa=1", "clean=-0.5"]) == [Gate("max-drop", "aa", 1.0),
                                                         Gate("max-drop", "clean", -0.5)]
    assert parse("min", None) == []


@pytest.mark.parametrize(("kind", "text", "said"), [
    ("min", "pgd=45", "Did you mean 0.45?"), ("min", "pgd", "is not ATTACK=NUMBER"),
    ("min", "=0.4", "is not ATTACK=NUMBER"), ("min", "pgd=x", "is not ATTACK=NUMBER"),
    ("min", "pgd=nan", "is not ATTACK=NUMBER"), ("min", "pgd=-1", "fraction between 0 and 1"),
    ("min", "pgd=451", "fraction between 0 and 1"), ("max-drop", "aa=101", "between -100 and 100")])
def test_what_is_refused(kind, text, said):
    with pytest.raises(InputError) as caught:
        parse(kind, [text])
    assert said in caught.value.message and f"--{kind} " in caught.value.hint


def test_names_are_those_of_the_attacks_that_are_asked_for():
    gates = [Gate("min", "pgd", 0.4), Gate("min", WORST, 0.4), Gate("max-drop", "clean", 1.0)]
    assert [g.attack for g in resolved(gates, ATTACKS, compared=True)] == ["pgd-20", WORST, "clean"]
    one = resolved([Gate("min", WORST, 0.4)], {"pgd": "pgd-20"}, compared=False)
    assert one == [Gate("min", "pgd-20", 0.4)], "of one attack there is no other worst case"
    with pytest.raises(InputError, match="cw is not measured; there are clean, pgd, pgd-20, aa, worst"):
        resolved([Gate("min", "cw", 0.4)], ATTACKS, compared=True)
    with pytest.raises(InputError, match="no other model to lose against"):
        resolved([Gate("max-drop", "aa", 1.0)], ATTACKS, compared=False)


def test_the_figure_decides_and_the_interval_is_said():
    assert verdict(Gate("min", "pgd-20", 0.40))["passed"]
    assert not verdict(Gate("min", "pgd-20", 0.46))["passed"], "the figure itself is below"
    near = verdict(Gate("min", "pgd-20", 0.44))
    assert near["passed"] and "the interval reaches beyond it" in near["text"]
    assert not verdict(Gate("min", "pgd-20", 0.44), strict=True)["passed"]
    assert "it is the limit itself" in verdict(Gate("min", "pgd-20", 0.45))["text"]
    assert verdict(Gate("min", "clean", 0.0))["passed"] and not verdict(Gate("min", "clean", 1.0))["passed"]


def test_so_many_samples_do_decide():
    text = verdict(Gate("min", "pgd-20", 0.44))["text"]
    needed = int(text.partition("about ")[2].partition(" samples")[0].replace(",", ""))
    assert wilson(round(0.45 * needed * 1.05), round(needed * 1.05))[0] > 0.44 > wilson(
        round(0.45 * needed * 0.9), round(needed * 0.9))[0]


def test_drops_in_points_and_their_intervals():
    drop = {"aa": {"points": 1.0, "ci95": [-1.5, 3.5]}}
    made = report(teacher=TEACHER, student=STUDENT, drop=drop)
    for limit, strict, passed in ((4.0, False, True), (4.0, True, True), (2.0, False, True),
                                  (2.0, True, False), (0.5, False, False)):
        found, = judged(made, [Gate("max-drop", "aa", limit)], strict=strict)
        assert found["passed"] is passed, (limit, strict)
    assert judged(made, [Gate("max-drop", "aa", 2.0)])[0]["text"].endswith(
        "about 6,250 samples would decide.")  # 1000 (2.5 / 1)^2


def test_what_is_unfinished_fails_by_name():
    left = {"model": {"aa": {"n": 200, "of": 1000, "accuracy": 0.9}}}
    for attack in ("aa", WORST):
        found = verdict(Gate("min", attack, 0.0), unfinished=left)
        assert not found["passed"] and found["text"] == f"{attack} is unfinished: aa 200 of 1000 samples."
    assert verdict(Gate("min", "pgd-20", 0.4), unfinished=left)["passed"]


def test_what_is_unreliable_fails_by_name():
    def doubt(check, models):
        return [{"check": check, "unreliable": True, "text": "gradients lie.", "models": models}]

    found = verdict(Gate("min", "pgd-20", 0.0), findings=doubt("blind-pixels", []))
    assert not found["passed"] and found["text"] == "pgd-20 is unreliable: gradients lie."
    assert verdict(Gate("min", "clean", 0.5), findings=doubt("blind-pixels", []))["passed"]
    assert not verdict(Gate("min", "clean", 0.5), findings=doubt("random-model", []))["passed"]
    of_teacher = report(teacher=TEACHER, student=STUDENT, findings=doubt("square-alone", ["teacher"]))
    assert judged(of_teacher, [Gate("min", "aa", 0.5)])[0]["passed"], "the pruned model's figure stands"
    assert not judged(of_teacher, [Gate("max-drop", "aa", 9.0)])[0]["passed"]


def test_what_was_not_measured_fails():
    assert verdict(Gate("min", "square", 0.0))["text"] == "square was not measured."


@pytest.mark.parametrize("lost", [7, 14, 28, 35, 56])
def test_a_loss_of_just_the_limit_keeps_it(lost):
    """100 * 0.007 is 0.7000000000000001."""
    entry = {"points": 100 * (lost / 1000), "ci95": [-1.0, 9.0]}
    made = report(teacher=TEACHER, student=STUDENT, drop={"aa": entry})
    (found,) = judged(made, [Gate("max-drop", "aa", lost / 10)])
    assert found["passed"], found
    assert not exceeded({"search": {"attack": "pgd-20", "max_loss": lost / 10}, "drop": {"pgd-20": entry}})


def test_a_figure_that_misses_its_limit_by_a_little_does_not_read_as_the_limit():
    made = evaluation(results={"clean": figure(900), "pgd-20": figure(450) | {
        "accuracy": 22498 / 50000, "n": 50000, "ci95": [0.445, 0.455]}})
    (found,) = judged(made, [Gate("min", "pgd-20", 0.45)])
    assert not found["passed"] and "pgd-20 is 0.44996 " in next(iter(
        text for text in found.values() if isinstance(text, str) and "wanted" in text))


def test_the_limit_stands_as_it_was_typed():
    """"worst case is 0.935, wanted at least 0.935", failed."""
    made = evaluation(results={"clean": figure(900), "pgd-20": figure(935)})
    (found,) = judged(made, [Gate("min", "pgd-20", 0.9350001)])
    assert not found["passed"] and found["gate"] == "--min pgd-20=0.9350001"
    assert found["text"].endswith("wanted at least 0.9350001.")
    (found,) = judged(made, [Gate("min", "pgd-20", 0.9349999)])
    assert found["passed"] and "no number of samples that is to be had would decide" in found["text"]


def test_a_report_s_figure_of_other_steps_is_not_that_of_a_bare_name():
    """fmn is that of 100 steps; pgd is pgd-20."""
    made = evaluation(results={"clean": figure(900), "pgd-20": figure(450), "fmn-20": figure(440)})
    (found,) = _judged(made, [Gate("min", "pgd", 0.4)], strict=False)
    assert found["gate"] == "--min pgd-20=0.4"
    with pytest.raises(InputError, match="fmn is not measured; there are clean"):
        _judged(made, [Gate("min", "fmn", 0.4)], strict=False)
