"""The ball and the box: projections against a slow loop, and what counts of an answer at their edges."""
import pytest
import torch
from helpers.attack_checks import generator, samples

from pwoa_cli.attacks import base


def test_projection_onto_the_l1_ball_is_the_nearest_point():
    """Slow oracle: theta by bisection; one radius for each sample, 0 among them."""
    x, adv = torch.full((6, 1, 4, 4), 0.5), samples(6, seed=3, low=0, high=1)
    eps = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 50.0])
    got = base.project(adv, x, eps=eps, norm="l1") - x
    for i in range(6):
        delta, low, high = (adv - x)[i].double(), 0.0, 1.0
        for _ in range(60):
            theta = (low + high) / 2
            low, high = (low, theta) if (delta.abs() - theta).clamp_min(0).sum() <= eps[i] else (theta, high)
        want = delta if delta.abs().sum() <= eps[i] else delta.sign() * (delta.abs() - high).clamp_min(0)
        torch.testing.assert_close(got[i].double(), want, atol=1e-6, rtol=0)


def test_contain_projects_what_is_outside_and_leaves_the_rest():
    x = samples(4)
    adv = x.clone()
    adv[0] += 0.1
    adv[1] += 0.4
    adv[2] -= 5
    adv[3, 0, 0, 0] = float("nan")
    for norm, eps in (("linf", 0.2), ("l2", 0.5), ("l1", 1.7)):
        assert base.outside(adv, x, eps=eps, norm=norm).tolist() == [False, True, True, True]
        inside = base.contain(adv, x, eps=eps, norm=norm)
        assert torch.equal(inside[0], adv[0]) and torch.equal(inside[3], x[3])
        assert (base.distance(inside - x, norm) <= eps + 1e-6).all()
        assert inside.min() >= 0 and inside.max() <= 1


@pytest.mark.parametrize("value,is_out", [(1 + 2e-7, False), (-2e-7, False), (1.001, True), (-0.001, True),
                                          (float("inf"), True), (-float("inf"), True), (float("nan"), True)])
@pytest.mark.parametrize("norm", base.NORMS)
def test_one_pixel_out_of_the_box_is_outside_unless_it_is_rounding(norm, value, is_out):
    x = torch.full((2, 1, 4, 4), 0.5)
    adv = x.clone()
    adv[1, 0, 2, 3] = value
    assert base.outside(adv, x, eps=2.0, norm=norm).tolist() == [False, is_out]


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("norm,fraction", [("linf", 0.1), ("l2", 0.03), ("l1", 0.02)])
def test_answers_at_the_edge_stay_bit_for_bit_and_those_beyond_do_not(norm, fraction, shape):
    """The edge as float64 has it, rounded pixel by pixel; eps up to 18, 3072 pixels; beyond by eps/1000."""
    x = 0.3 + 0.4 * torch.rand(5, *shape, generator=generator(1))
    way = torch.randn(5, *shape, generator=generator(2), dtype=torch.float64).clamp(-2.5, 2.5)
    way = way.sign() if norm == "linf" else way
    eps = fraction * {"linf": 1, "l2": x[0].numel() ** 0.5, "l1": 0.3 * x[0].numel()}[norm]
    edge, beyond = ((x + way * base.per_sample(factor * eps / base.distance(way, norm), way)).float()
                    for factor in (1, 1.003))
    assert torch.equal(base.contain(edge, x, eps=eps, norm=norm), edge)
    assert base.outside(beyond, x, eps=eps, norm=norm).all()
    moved = base.contain(beyond, x, eps=eps, norm=norm)
    assert (moved != beyond).flatten(1).any(1).all() and not base.outside(moved, x, eps=eps, norm=norm).any()
    assert torch.equal(base.contain(moved, x, eps=eps, norm=norm), moved)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("eps", [1.0, 10.0, 60.0])
def test_the_l1_projection_of_the_reference_ends_inside_up_to_slack(eps, shape):
    from pyautoattack.autopgd_base import L1_projection

    x, delta = torch.rand(20, *shape, generator=generator(1)), torch.randn(20, *shape, generator=generator(2))
    adv = x + delta + L1_projection(x, delta, eps)
    # why `slack` grows with the number of pixels
    assert base.distance(adv - x, "l1").max() > eps + 5 * base.SLACK
    assert not base.outside(adv, x, eps=eps, norm="l1").any()
