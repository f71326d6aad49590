"""FMN and CW-L2 against the smallest perturbation of a linear model, and against foolbox on real digits."""
import math
from functools import partial

import pytest
import torch
from helpers import foolbox_digits
from helpers.attack_checks import linear, samples
from torch import nn

from pwoa_cli.attacks import base, minimum_norm
from pwoa_cli.errors import InputError

BATCHES = (1, 3, 8)


# attack, norm, how far above the smallest norm its answer may be
CASES = [(minimum_norm.fmn, "linf", 0.003), (minimum_norm.fmn, "l2", 0.003), (minimum_norm.fmn, "l1", 0.003),
         (minimum_norm.cw_l2, "l2", 0.02)]


def smallest(model, x, y, target, norm):
    """Smallest norm in the box that makes `target` beat y: bisection over the radius of the ball.

    The most that z_t - z_y can rise within radius r and the box: linf, every pixel moves min(r, room); l1,
    the pixels of largest slope first; l2, min(lambda * slope, room), lambda being what is bisected.
    """
    slope = (model[1].weight[target] - model[1].weight[y]).double()
    need = -float((model(x[None])[0, target] - model(x[None])[0, y]).double())
    flat, scale = x.flatten().double(), float(slope.abs().max())
    need, slope = need / scale, slope / scale
    room, slope = torch.where(slope > 0, 1 - flat, flat), slope.abs()

    def delta(r):
        if norm == "linf":
            return room.clamp_max(r)
        if norm == "l2":
            return torch.minimum(r * slope, room)
        order, moved = slope.argsort(descending=True), torch.zeros_like(room)
        for i in order.tolist():
            moved[i] = min(float(room[i]), r - float(moved.sum()))
        return moved

    low, high = 0.0, 32.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if float((delta(middle) * slope).sum()) >= need else (middle, high)
    return float(base.distance(delta(high)[None], norm))


@pytest.fixture(scope="module")
def digits():
    return foolbox_digits.load()


@pytest.mark.parametrize("interior", [True, False])
@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("run,norm,tolerance", CASES)
def test_the_norm_is_the_smallest_of_a_linear_model(run, norm, tolerance, n, interior):
    model, x = (linear(seed=4),
                samples(n, seed=5) if interior else samples(n, seed=6, low=-0.3, high=1.3).clamp(0, 1))
    y = model(x).argmax(1)
    adv = run(model, x, y, norm=norm)
    assert (model(adv).argmax(1) != y).all() and adv.min() >= 0 and adv.max() <= 1
    for i in range(n):
        least = smallest(model, x[i], int(y[i]), 1 - int(y[i]), norm)
        assert least * (1 - 1e-4) <= float(base.distance(adv - x, norm)[i]) <= least * (1 + tolerance) + 1e-5


@pytest.mark.parametrize("norm,dual", [("linf", 1), ("l2", 2), ("l1", math.inf)])
def test_the_oracle_is_the_margin_over_the_dual_norm_away_from_the_box(norm, dual):
    model, x = linear(seed=4), samples(8, seed=5)
    y = model(x).argmax(1)
    for i in range(8):
        w, z = model[1].weight, model(x)[i]
        margin = (z[y[i]] - z[1 - y[i]]).abs() / (w[0] - w[1]).norm(p=dual)
        assert smallest(model, x[i], int(y[i]), 1 - int(y[i]), norm) == pytest.approx(float(margin), rel=1e-4)


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("run,norm,tolerance", CASES)
def test_targeted_reaches_the_target_at_the_smallest_norm(run, norm, tolerance, n):
    """Where the target beats the label at the nearest point, and no third class does, two classes decide."""
    model, x = linear(classes=3, seed=1), samples(n, seed=2)
    with torch.no_grad():
        model[1].bias[2] = -20  # the third class never wins
    y = model(x).argmax(1)
    adv = run(model, x, y, norm=norm, targets=1 - y)
    assert (model(adv).argmax(1) == 1 - y).all()
    for i in range(n):
        least = smallest(model, x[i], int(y[i]), 1 - int(y[i]), norm)
        # CLEAR counts from a logit of -20
        assert float(base.distance(adv - x, norm)[i]) <= least * (1 + tolerance) + 1e-4
    # what cannot be reached
    assert torch.equal(run(model, x, y, norm=norm, steps=5, targets=torch.full_like(y, 2)), x)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("run,norm,tolerance", CASES)
def test_the_scale_of_the_logits_does_not_matter(run, norm, tolerance, scale):
    model, x = linear(seed=4, scale=scale), samples(3, seed=5)
    y = model(x).argmax(1)
    size = base.distance(run(model, x, y, norm=norm) - x, norm)
    for i in range(3):
        least = smallest(model, x[i], int(y[i]), 1 - int(y[i]), norm)
        assert float(size[i]) <= least * (1 + tolerance) + 1e-5


@pytest.mark.parametrize("run,norm,tolerance", CASES)
def test_wrong_samples_and_zero_gradients_come_back_untouched(run, norm, tolerance):
    model, x = linear(classes=10), samples(3)
    y = (model(x).argmax(1) + torch.tensor([0, 1, 0])) % 10
    adv = run(model, x, y, norm=norm, steps=60)
    assert torch.equal(adv[1], x[1]) and (model(adv).argmax(1) != y).all()
    dead = nn.Sequential(nn.Flatten(), nn.Threshold(2.0, 0.0), nn.Linear(16, 3))  # inputs never exceed 2
    assert torch.equal(run(dead, x, dead(x).argmax(1), norm=norm, steps=5), x)


@pytest.mark.parametrize("run,norm,tolerance", CASES)
def test_a_sample_does_not_depend_on_its_neighbours(run, norm, tolerance):
    model, x = linear(classes=5, seed=4), samples(8, seed=5)
    y = model(x).argmax(1)
    run = partial(run, norm=norm, **({"searches": 4, "steps": 30} if run is minimum_norm.cw_l2 else {}))
    whole = base.distance(run(model, x, y) - x, norm)
    for size in BATCHES[:2]:
        parts = [base.distance(run(model, a, b) - a, norm)
                 for a, b in zip(x.split(size), y.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=2e-3, atol=0)


def test_pixels_at_the_limits_have_a_gradient_in_cw_l2():
    """The trap of an atanh without an interior clamp: all pixels at 0 or 1 then look robust."""
    model, x = linear(seed=4), samples(8, seed=9).round()
    y = model(x).argmax(1)
    adv = minimum_norm.cw_l2(model, x, y)
    assert (model(adv).argmax(1) != y).all()


def test_nan_logits_are_never_robust():
    class Fragile(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).sum(1),
                                torch.where(x.flatten(1).amin(1) < 0.2, torch.nan, -1.0)], 1)

    x = samples(3)
    adv = minimum_norm.fmn(Fragile(), x, torch.zeros(3, dtype=torch.long), norm="linf")
    assert not Fragile()(adv).isfinite().all(1).any()


def test_cw_l2_refuses_another_norm():
    with pytest.raises(InputError, match="in the norm l2, got linf"):
        minimum_norm.cw_l2(linear(), samples(1), torch.zeros(1, dtype=torch.long), norm="linf")


@pytest.mark.parametrize("norm,name", [("linf", "LInfFMNAttack"), ("l1", "L1FMNAttack")])
def test_the_paper_s_fmn_has_foolbox_s_norms_on_digits(digits, norm, name):
    model, x, y = digits
    ours = minimum_norm.fmn(model, x, y, norm=norm, as_published=True)
    theirs = foolbox_digits.run(lambda fb: getattr(fb.attacks, name)(steps=100), model, x, y)
    ours, theirs = base.distance(ours - x, norm), base.distance(theirs - x, norm)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0)


def test_fmn_in_l2_is_never_above_foolbox_on_digits(digits):
    """Foolbox 3.3 divides a norm by itself in its l2 projection, so its ball never shrinks: ours are half."""
    model, x, y = digits
    ours = base.distance(minimum_norm.fmn(model, x, y, norm="l2") - x, "l2")
    adv = foolbox_digits.run(lambda fb: fb.attacks.L2FMNAttack(steps=100), model, x, y)
    theirs = base.distance(adv - x, "l2")
    assert (ours > 0).sum() >= (theirs > 0).sum() and (ours <= 1.02 * theirs)[theirs > 0].all()


def test_signed_steps_find_smaller_linf_norms_for_every_digit(digits):
    model, x, y = digits
    ours = base.distance(minimum_norm.fmn(model, x, y, norm="linf") - x, "linf")
    paper = base.distance(minimum_norm.fmn(model, x, y, norm="linf", as_published=True) - x, "linf")
    assert (ours > 0).all() and (ours <= torch.where(paper > 0, paper, torch.inf)).all()
    assert float(ours.median()) < 0.36 and float(paper[paper > 0].median()) > 0.55


def test_cw_l2_is_as_strong_as_foolbox_on_digits(digits):
    model, x, y = digits[0], digits[1][[6, 7, 9]], digits[2][[6, 7, 9]]
    ours = base.distance(minimum_norm.cw_l2(model, x, y, steps=100, searches=6) - x, "l2")
    attack = foolbox_digits.run(lambda fb: fb.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, steps=100, stepsize=0.05, initial_const=0.1), model, x, y)
    theirs = base.distance(attack - x, "l2").nan_to_num(torch.inf)
    theirs = torch.where(model(attack).argmax(1) != y, theirs, torch.inf)
    assert (ours > 0).all() and (ours <= 1.1 * theirs).all()
