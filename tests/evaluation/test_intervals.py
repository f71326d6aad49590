"""Intervals and tests of accuracies against published figures and simulations, and chance as a formula."""
from fractions import Fraction
from math import comb

import pytest
import torch

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.intervals import binomial_tail, discordant, near_chance, paired_drop, wilson


# Newcombe 1998, Statist. Med. 17:857-872, the score interval
@pytest.mark.parametrize("correct,n,low,high", [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    (20, 20, 0.8389, 1.0)])
def test_wilson_gives_the_published_intervals(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_are_exact():
    for n in (1, 7, 1000):
        assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0


@pytest.mark.parametrize("correct,n", [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_count(correct, n):
    with pytest.raises(InputError, match="no interval"):
        wilson(correct, n)


def flags(both, only_teacher, only_student, neither):
    t = torch.tensor([1] * both + [1] * only_teacher + [0] * only_student + [0] * neither).bool()
    s = torch.tensor([1] * both + [0] * only_teacher + [1] * only_student + [0] * neither).bool()
    return t, s


@pytest.mark.parametrize("table,drop,low,high", [
    ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),  # Newcombe 1998, Statist. Med. 17:2635-2650, method 10
    ((14, 5, 0, 22), 0.122, 0.011, 0.226),  # Altman et al. 2000, Statistics with Confidence, Table 6.2
    ((1, 1, 7, 12), -0.286, -0.507, -0.026)])  # Fagerland et al. 2017, ch. 8 (Bentur et al. 2009)
def test_paired_drop_gives_the_published_intervals(table, drop, low, high):
    got, ci95 = paired_drop(*flags(*table))
    assert (got, *ci95) == pytest.approx((drop, low, high), abs=5e-5 if drop == 0.2 else 5e-4)


def test_paired_drop_mirrors_and_holds_zero_for_equal_models():
    t, s = flags(30, 9, 4, 7)
    drop, (low, high) = paired_drop(t, s)
    assert paired_drop(s, t) == (-drop, (pytest.approx(-high), pytest.approx(-low)))
    drop, (low, high) = paired_drop(t, t)
    assert drop == 0 and low < 0 < high and high < 0.2
    everyone = torch.ones(50, dtype=torch.bool)
    assert paired_drop(everyone, everyone)[0] == 0


def test_paired_drop_covers_the_truth():
    """95% of 400 simulated comparisons hold the true drop of 3 points (slack: 3 binomial standard errors)."""
    draw = torch.Generator().manual_seed(0)
    # correlated flags: both right below 0.88, the teacher alone up to 0.92, ...
    u = torch.rand(400, 300, generator=draw)
    teacher, student = (u < 0.92), (u < 0.88) | ((u > 0.92) & (u < 0.93))
    drops = [paired_drop(t, s) for t, s in zip(teacher, student, strict=True)]
    held = [low <= 0.03 <= high for _, (low, high) in drops]
    assert 0.92 <= sum(held) / 400 <= 1.0


def test_paired_drop_refuses_different_samples():
    with pytest.raises(InputError, match="not of the same samples"):
        paired_drop(torch.ones(3), torch.ones(4))


@pytest.mark.parametrize("table,p", [
    # 2 (1/2)^6, and sums above 1
    ((0, 6, 0, 0), 0.03125), ((0, 1, 0, 5), 1.0), ((9, 0, 0, 9), 1.0), ((3, 4, 4, 3), 1.0),
    ((59, 6, 16, 80), 0.052479)])  # scipy.stats.binomtest(6, 22).pvalue
def test_mcnemar_is_the_exact_binomial_test(table, p):
    teacher, student = flags(*table)
    assert discordant(teacher, student) == (table[1], table[2], pytest.approx(p, abs=1e-6))


def test_mcnemar_of_thousands_of_samples_is_a_number():
    lost, won, p = discordant(*flags(10, 3000, 2900, 5))
    # normal approximation: |z| = 99/sqrt(5900) = 1.289, p = 0.197
    assert (lost, won) == (3000, 2900) and 0.19 < p < 0.2


@pytest.mark.parametrize("deviations", [1, 2, 3, 5])
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_near_chance_is_the_closed_form(classes, deviations):
    """x = correct/n - 1/K is at most d sd: x <= 0 or x^2 <= d^2 p (1 - p) / n, in fractions, p = 1/K."""
    p = Fraction(1, classes)
    for n in (26, 57, 100, 1000):
        for correct in range(n + 1):
            above = Fraction(correct, n) - p
            near = above <= 0 or above**2 <= deviations**2 * p * (1 - p) / n
            enough = n * (classes - 1) > deviations**2
            assert near_chance(correct, n, classes, deviations=deviations) == (near and enough), (correct, n)


@pytest.mark.parametrize("deviations", [1, 2, 3, 5])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_too_few_samples_are_never_near_chance(classes, deviations):
    """1/K + d sd reaches 1, where a perfect model is, up to n (K - 1) = d^2: 9 for two classes and d = 3."""
    most = deviations**2 // (classes - 1)
    for n in range(1, most + 1):
        assert not any(near_chance(correct, n, classes, deviations=deviations) for correct in range(n + 1)), n
    assert near_chance(0, most + 1, classes, deviations=deviations)
    assert not near_chance(most + 1, most + 1, classes, deviations=deviations)


@pytest.mark.parametrize("k, n, p", [
    (0, 5, 0.5), (3, 100, 0.002), (7, 7, 0.5), (8, 1000, 0.002), (510, 1000, 0.5)])
def test_tails_are_those_of_the_binomial(k, n, p):
    top, bottom = Fraction(str(p)).as_integer_ratio()
    exact = Fraction(sum(comb(n, i) * top**i * (bottom - top) ** (n - i) for i in range(k, n + 1)), bottom**n)
    assert binomial_tail(k, n, p) == pytest.approx(float(exact), rel=1e-9)


def test_tails_of_many_samples_are_near_the_normal_distribution():
    upper = torch.special.ndtr(torch.tensor(-(5100 - 0.5 - 5000) / 50, dtype=torch.float64))
    assert binomial_tail(5100, 10000, 0.5) == pytest.approx(float(upper), rel=1e-2)
