"""Each fault planted in the results of attacks fires its check and no other; honest results fire none."""
from fractions import Fraction
from math import comb
from types import SimpleNamespace

import pytest
import torch
from helpers.attack_checks import generator
from helpers.faults import Around, only

from pwoa_cli.attacks import autoattack, gradient
from pwoa_cli.attacks.base import contain, distance, wrong
from pwoa_cli.evaluation import checks
from pwoa_cli.evaluation.result_checks import of_results

EPS = 0.17  # breaks some of the samples


def result(name, n, broken=(), *, attacked=None, parts=None, nonfinite=0, outside=0):
    """broken: indices, or a count from the start."""
    flags = torch.zeros(n, dtype=torch.bool)
    flags[list(range(broken)) if isinstance(broken, int) else list(broken)] = True
    attacked = torch.ones(n, dtype=torch.bool) if attacked is None else attacked
    return SimpleNamespace(name=name, n=n, broken=flags, attacked=attacked, correct=attacked & ~flags,
                           nonfinite=nonfinite, accuracy=float((attacked & ~flags).float().mean()),
                           outside=outside, parts=parts or {})


def results(*each):
    return {r.name: r for r in each}


def clean(n):
    return result("clean", n)


def attacked(model, x, y, **runs):
    """Results of attacks (model, x, y) -> adv, each on its own on all that are right."""
    right, found = ~wrong(model(x), y), [clean(len(x))]
    for name, run in runs.items():
        name = name.replace("_", "-")
        adv = run(model, x, y)
        outside = int((distance(adv - x, "linf") > EPS + 1e-6).sum())
        broken = right & wrong(model(contain(adv, x, eps=EPS, norm="linf")), y)
        rows = broken.nonzero().flatten().tolist()
        found.append(result(name, len(x), rows, attacked=right, outside=outside))
    return results(*found)


def fgsm(model, x, y):
    return gradient.fgsm(model, x, y, eps=EPS, norm="linf")


def pgd(model, x, y, **options):
    return gradient.pgd(model, x, y, eps=EPS, norm="linf", generator=generator(), **options)


def cw(model, x, y):
    return pgd(model, x, y, loss="margin")


def apgd_t(model, x, y):
    return autoattack.apgd_t(model, x, y, eps=EPS, norm="linf", generator=generator(), steps=5)


def fab_t(model, x, y):
    return autoattack.fab_t(model, x, y, eps=EPS, norm="linf", generator=generator(), steps=5)


def square(model, x, y):
    return autoattack.square(model, x, y, eps=EPS, norm="linf", generator=generator(), queries=300)


def test_nothing_fires_on_attacks_of_an_honest_network(trained, data):
    found = attacked(trained, *data, fgsm=fgsm, pgd_20=pgd, cw=cw, apgd_t=apgd_t, fab_t=fab_t, square=square)
    assert 0 < found["square"].broken.sum() < found["pgd-20"].broken.sum() < 64
    assert of_results(found) == [] and of_results(results(clean(10))) == [] and of_results({}) == []


@pytest.mark.parametrize("white", [{}, {"apgd_t": apgd_t, "fab_t": fab_t}], ids=["pgd and cw", "autoattack"])
def test_square_on_quantised_inputs_is_caught(trained, data, white):
    quantised = Around(trained, lambda net, x: net((x * 15).round() / 15 + 0 * x)).eval()
    found = attacked(quantised, *data, pgd_20=pgd, cw=cw, **white, square=square)
    text = only(of_results(found), "square-alone", unreliable=True)
    others = torch.stack([r.broken for r in found.values() if r.name != "square"]).any(0)
    alone = int((found["square"].broken & ~others).sum())
    assert text == (f"Square broke {100 * alone / 64:.1f}% ({alone} of 64) that white-box attacks did not;"
                    " gradients may be masked.")


@pytest.mark.parametrize("n, alone, fires", [
    (100, 1, False), (100, 2, False), (100, 3, True), (1000, 6, False), (1000, 8, True), (10000, 20, False),
    (10000, 80, True)])
def test_square_as_the_last_part_of_autoattack(n, alone, fires):
    parts = {"apgd-ce": range(20), "apgd-t": range(20, 22), "fab-t": (), "square": range(50, 50 + alone)}
    parts = {name: result(name, n, rows).broken for name, rows in parts.items()}
    rows = [*range(22), *range(50, 50 + alone)]
    found = of_results(results(clean(n), result("aa", n, rows, parts=parts)))
    assert bool(found) == fires
    if fires:
        assert f"{100 * alone / n:.1f}% ({alone} of {n})" in only(found, "square-alone", unreliable=True)


def test_square_counts_only_where_others_were_run_and_failed():
    some = torch.arange(100) < 10
    thorough = result("apgd-t", 100, 2), result("fab-t", 100)
    assert of_results(results(result("apgd-t", 100, attacked=some),
                              result("square", 100, range(10, 100)))) == []
    assert of_results(results(result("square", 100, 90))) == []
    few_steps = result("fgsm", 100, 5), result("pgd-3", 100)
    assert of_results(results(result("square", 100, 90), *few_steps)) == []
    assert of_results(results(result("square", 100, 50), *thorough, result("pgd-20", 100, 50))) == []
    assert of_results(results(result("square", 100, 5), *thorough)) != []


@pytest.mark.parametrize("alone, fires", [(4, False), (11, False), (12, True)])
@pytest.mark.parametrize("weak", ["pgd-20", "cw", "fmn", "apgd-ce", "apgd-t"])
def test_square_may_break_a_little_more_than_attacks_that_leave_honest_samples_over(weak, alone, fires):
    found = results(result(weak, 100, 10), result("square", 100, range(5, 10 + alone)))
    assert bool(of_results(found)) == fires


class TurnedOffGrid(torch.autograd.Function):
    """x, whose gradient points the wrong way unless all pixels are 255ths: fgsm on images never notices."""

    @staticmethod
    def forward(ctx, x):
        off = (x * 255 - (x * 255).round()).abs().flatten(1).amax(1)
        ctx.sign = torch.where(off < 1e-3, 1.0, -1.0)[:, None, None, None]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.sign * gradient


def test_one_step_that_beats_many_on_masked_gradients_is_caught(trained, data):
    masked = Around(trained, lambda net, x: net(TurnedOffGrid.apply(x))).eval()
    assert [finding.check for finding in checks.of_model(masked, *data)] == ["wrong-gradients"]
    found = attacked(masked, *data, fgsm=fgsm, pgd_20=pgd)
    won = int((found["fgsm"].broken & ~found["pgd-20"].broken).sum())
    text = only(of_results(found), "fewer-steps-win", unreliable=True)
    assert (f"fgsm broke {won} of 64 ({100 * won / 64:.1f}%) samples that pgd-20" in text
            and "against 0 the other way" in text)


def test_a_wrong_step_is_caught(trained, data):
    short = {"pgd_40_s1e-5": lambda *a: pgd(*a, steps=40, step_size=1e-5)}
    found = attacked(trained, *data, pgd_10=lambda *a: pgd(*a, steps=10), **short)
    assert "pgd-40-s1e-5" in only(of_results(found), "fewer-steps-win", unreliable=True)


@pytest.mark.parametrize("won, lost, fires", [
    (6, 0, False), (7, 0, True), (10, 2, False), (14, 2, True), (30, 25, False), (0, 9, False)])
def test_fewer_steps_win_by_more_than_chance(won, lost, fires):
    few, many = result("fgsm", 100, range(won)), result("pgd-20", 100, range(60, 60 + lost))
    assert bool(of_results(results(few, many))) == fires
    exact = sum(Fraction(comb(won + lost, i), 2 ** (won + lost)) for i in range(won, won + lost + 1))
    assert fires == (exact < Fraction(1, 100))


@pytest.mark.parametrize("few, many, comparable", [
    ("fgsm", "cw", True), ("fgsm", "pgd-40-r5-s0.01", True), ("pgd-10", "pgd-40", True),
    ("cw-10", "cw", True), ("pgd-20", "cw-40", False), ("pgd-20-r5", "pgd-40", False),
    ("pgd-40", "pgd-20", False), ("fgsm", "fmn", False), ("fgsm", "apgd-ce", False), ("pgd-20", "aa", False)])
def test_only_attacks_of_one_loss_are_compared(few, many, comparable):
    parts = {"apgd-t": torch.arange(100) < 10}
    found = of_results(results(result(few, 100, 50), result(many, 100, 10, parts=parts)))
    assert [f.check for f in found] == ["fewer-steps-win"] * comparable


def test_samples_that_the_longer_attack_was_not_given_do_not_count():
    left = torch.arange(100) >= 50
    longer = result("pgd-20", 100, range(50, 55), attacked=left)
    assert of_results(results(result("fgsm", 100, 50), longer)) == []


def test_nonfinite_logits_and_answers_outside_the_ball_are_said():
    found = results(result("pgd-20", 200, 10, nonfinite=3))
    text = only(of_results(found), "nonfinite-logits", unreliable=False)
    assert "pgd-20 met NaN or infinite logits on 3 of 200 (1.5%)" in text
    found = results(result("mine", 200, 10, outside=7))
    text = only(of_results(found), "outside-ball", unreliable=False)
    assert "mine gave 7 of 200 (3.5%) answers outside" in text


def test_shares_are_of_the_samples_that_are_done():
    done = torch.arange(1000) < 100  # time ran out
    broken = {"apgd-t": 5, "fab-t": 0, "square": range(5, 8)}
    found = results(*(result(name, 1000, rows, attacked=done) for name, rows in broken.items()))
    for r in found.values():
        r.n = 100
    assert "3.0% (3 of 100)" in only(of_results(found), "square-alone", unreliable=True)


def test_the_worst_case_is_no_attack():
    worst = result("worst case", 100, 50)
    assert of_results(results(result("pgd-20", 100, 10), result("square", 100, 50), worst)) != []


def test_an_attack_that_leaves_the_ball_is_said(trained, data):
    found = attacked(trained, *data, wide=lambda model, x, y: x + 2 * EPS)
    assert "wide gave 64 of 64 (100.0%)" in only(of_results(found), "outside-ball", unreliable=False)


def test_unreliable_findings_come_first():
    found = results(result("pgd-20", 100, 2, nonfinite=1), result("fgsm", 100, 30))
    assert [f.check for f in of_results(found)] == ["fewer-steps-win", "nonfinite-logits"]
