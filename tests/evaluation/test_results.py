"""Figures by class, and security curves that agree with the accuracy at eps."""
import pytest
import torch
from helpers.problems import right_on

from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.results import Result, by_class, curve


def test_by_class():
    model, x, y = right_on(50)
    found = evaluate(model, x, y, attacks="fgsm", norm="linf", eps=0.02)
    split = by_class(found, y)
    assert sum(score["n"] for score in split["fgsm"].values()) == 50
    for c, score in split["fgsm"].items():
        assert score["accuracy"] == float(found["fgsm"].correct[y == c].double().mean())


@pytest.mark.parametrize("norm,eps", [("l2", 0.5), ("l1", 3.0)])
def test_a_curve_is_never_above_the_accuracy(norm, eps):
    model, x, y = right_on(60)
    found = evaluate(model, x, y, attacks="fmn-10", norm=norm, eps=eps)["fmn-10"]
    assert 0 < found.accuracy < 1 and dict(found.curve)[eps] == pytest.approx(found.accuracy, abs=1e-9)


def test_a_perturbation_beyond_eps_by_rounding_counts_in_curve_and_accuracy():
    eps, four = 3.0, torch.ones(4, dtype=torch.bool)
    line = Result("fmn", torch.tensor([False, False, True, True]), done=four, attacked=four, seconds=0.0,
                  broken=torch.tensor([True, False, False, False]),
                  # just beyond, not clean, far, none found
                  distance=torch.tensor([eps + 2.4e-7, torch.nan, 4.0, torch.nan]))
    found = dict(curve(line, torch.tensor([True, False, True, True]), eps))
    assert found[eps] == line.accuracy == 0.5 and found[0.75 * eps] == 0.75 and found[4 * eps] == 0.25
