"""Damage by layer: slopes of the hull, and what measuring asks of the model."""
import pytest
import torch
from helpers.plans import groups_of, make_plan, weight_scores

from pwoa_cli.pruning import curves


def test_marginal_damage_is_the_slope_of_the_convex_hull():
    curve = [(0, 0.0), (2, 4.0), (4, 4.4), (6, 9.0)]  # the first step is dear, but four are not
    assert curves.marginal(curve).tolist() == pytest.approx([1.1] * 4 + [2.3] * 2)
    falling = [(0, 0.0), (3, -1.0), (5, 1.0)]
    assert curves.marginal(falling).tolist() == pytest.approx([-1 / 3] * 3 + [1.0] * 2)
    assert len(curves.marginal([(0, 0.0)])) == 0


def test_curves_need_no_labels_and_no_gradient():
    plan, student = make_plan()
    weights = {"fc.weight": student.fc.weight}
    for p in student.parameters():
        p.requires_grad_(False)
    with torch.enable_grad():
        found = curves.measured(student, plan.teacher, [torch.rand(4, 1, 8, 8)],
                                groups=groups_of(weights, "column"), scores=weight_scores(weights, "column"),
                                temperature=1.0)
    assert found["fc.weight"][-1][0] == 6 * 36 - 1
