"""FGSM, PGD and CW against closed forms on linear models and foolbox sample by sample; the rules that every answer obeys."""
import copy
import warnings
from functools import partial

import attack_checks
import pytest
import torch
from attack_checks import SHORT, generator, linear, samples
from torch import nn
from torch.nn import functional as F

from pwoa_cli import attacks
from pwoa_cli.attacks import base, gradient

NORMS, BATCHES = ("linf", "l2"), (1, 3, 8)
ALL_NORMS = base.NORMS


def worst_delta(model, x, y, eps, norm):
    """Closed form for two classes: the perturbation that raises z_other - z_y most, in the ball and in [0,1] (linf)."""
    w = model[1].weight
    slope = (w[1 - y] - w[y]).view_as(x)
    if norm == "l2":
        return eps * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return torch.where(slope > 0, (1 - x).clamp_max(eps), -x.clamp_max(eps))


@pytest.fixture(scope="module")
def trained():
    return attack_checks.trained()


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("interior", [True, False])
def test_fgsm_is_the_exact_worst_case_of_a_linear_model(norm, n, interior):
    model, x = linear(), samples(n) if interior or norm == "l2" else samples(n, low=0, high=1)
    y = model(x).argmax(1)
    adv = gradient.fgsm(model, x, y, eps=0.2, norm=norm)
    torch.testing.assert_close(adv, x + worst_delta(model, x, y, 0.2, norm), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_breaks_exactly_the_samples_that_can_be_broken(norm, n, loss):
    model, x, eps = linear(seed=4), samples(n, seed=5), 0.03 if norm == "linf" else 0.08
    y = model(x).argmax(1)
    worst = x + worst_delta(model, x, y, eps, norm)
    adv = gradient.pgd(model, x, y, eps=eps, norm=norm, generator=generator(), steps=40, loss=loss)
    broken = model(worst).argmax(1) != y
    assert torch.equal(model(adv).argmax(1) != y, broken)
    left = 1e-6 if norm == "linf" else 2 * (8 / 9) ** 40 * eps  # each l2 step keeps 8/9 of what is not along the gradient
    torch.testing.assert_close(adv[~broken], worst[~broken], atol=left, rtol=0)


def test_the_linear_oracle_has_both_kinds_of_samples():
    for norm, eps in (("linf", 0.03), ("l2", 0.08)):
        model, x = linear(seed=4), samples(8, seed=5)
        y = model(x).argmax(1)
        assert 0 < (model(x + worst_delta(model, x, y, eps, norm)).argmax(1) != y).sum() < 8


def test_pgd_returns_the_first_misclassified_iterate():
    model, x = linear(), samples(8)
    y = model(x).argmax(1)
    alpha = 0.02
    adv = gradient.pgd(model, x, y, eps=0.3, norm="linf", generator=generator(), steps=15, step_size=alpha, random_start=False)
    direction = worst_delta(model, x, y, 0.3, "linf").sign()
    for i in range(8):
        path = [x[i:i + 1] + k * alpha * direction[i:i + 1] for k in range(16)]
        first = next((p for p in path if model(p).argmax(1) != y[i]), path[-1].clamp(x[i:i + 1] - 0.3, x[i:i + 1] + 0.3))
        torch.testing.assert_close(adv[i:i + 1], first, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["fgsm", "pgd-5", "pgd-5-r3", "cw", "apgd-ce", "apgd-t", "fab-t", "aa-fast"])
@pytest.mark.parametrize("norm", ALL_NORMS)
def test_an_already_wrong_sample_stays_wrong(norm, name):
    model, x = linear(classes=10), samples(3)
    y = (model(x).argmax(1) + torch.tensor([0, 1, 0])) % 10
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    adv = run(model, x, y, eps=0.01, norm=norm, generator=generator())
    assert model(adv)[1].argmax() != y[1]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw"])
@pytest.mark.parametrize("norm", ALL_NORMS)
def test_a_zero_gradient_moves_nothing_and_gives_no_nan(norm, name):
    dead = nn.Sequential(nn.Flatten(), nn.Threshold(2.0, 0.0), nn.Linear(16, 3))  # inputs never exceed 2
    x = samples(3)
    y = dead(x).argmax(1)
    run = attacks.parse(name)[0].run if name == "fgsm" else partial(attacks.parse(name)[0].run, random_start=False)
    assert torch.equal(run(dead, x, y, eps=0.2, norm=norm, generator=generator()), x)


@pytest.mark.parametrize("name", ["fgsm", "pgd-10-r2", "cw-10", "apgd-ce", "apgd-t", "fab-t", "square"])
@pytest.mark.parametrize("norm", ALL_NORMS)
def test_answers_stay_in_the_ball_and_in_the_box(trained, norm, name):
    model, x, y = trained
    x, y, eps = x[:8], y[:8], {"linf": 0.1, "l2": 0.6, "l1": 3.0}[norm]
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    adv = run(model, x, y, eps=eps, norm=norm, generator=generator())
    assert not base.outside(adv, x, eps=eps, norm=norm).any()
    assert adv.min() >= -base.SLACK and adv.max() <= 1 + base.SLACK
    assert base.distance(adv - x, norm).max() <= eps + 1e-5


@pytest.mark.parametrize("norm", ALL_NORMS)
def test_random_starts_fill_the_ball_uniformly(norm):
    x = torch.full((4000, 1, 2, 2), 0.5)
    radius = base.distance(gradient._random_start(x, eps=0.2, norm=norm, generator=generator()) - x, norm) / 0.2
    for quantile in (0.25, 0.5, 0.75):  # P(radius < q) = q^d in both balls, d = 4
        assert abs(float((radius < quantile).float().mean()) - quantile**4) < 0.02


def test_ce_margin_gives_cross_entropy_and_its_direction():
    logits, labels = torch.randn(8, 5, generator=generator(), dtype=torch.float64).requires_grad_(), torch.arange(8) % 5
    m = gradient.ce_margin(logits, labels)
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(F.softplus(m), cross_entropy)
    direct, = torch.autograd.grad(cross_entropy.sum(), logits, retain_graph=True)
    ours, = torch.autograd.grad(m.sum(), logits)
    torch.testing.assert_close(direct, ours * torch.sigmoid(m)[:, None])


def test_rescaled_logits_do_not_hide_the_gradient():
    model, x = linear(seed=4, scale=1000.0), samples(8, seed=5)
    y = model(x).argmax(1)
    assert F.cross_entropy(model(x), y, reduction="none").min() == 0  # the plain loss is flat in float32
    adv = gradient.pgd(model, x, y, eps=0.08, norm="linf", generator=generator())
    worst = x + worst_delta(model, x, y, 0.08, "linf")
    assert torch.equal(model(adv).argmax(1), model(worst).argmax(1))


def test_restarts_only_add_broken_samples(trained):
    model, x, y = trained
    eps, broken = 0.12, []
    for restarts in (1, 4):
        adv = gradient.pgd(model, x, y, eps=eps, norm="linf", generator=generator(), steps=4, step_size=eps / 4,
                           restarts=restarts)
        broken.append(model(adv).argmax(1) != y)
    assert (broken[1] | ~broken[0]).all() and broken[1].sum() > broken[0].sum()


@pytest.mark.parametrize("norm,eps", [("linf", 0.12), ("l2", 0.6)])
def test_pgd_agrees_with_foolbox_sample_by_sample(trained, norm, eps):
    model, x, y = copy.deepcopy(trained[0]).double(), trained[1][:40].double(), trained[2][:40]
    ours = gradient.pgd(model, x, y, eps=eps, norm=norm, generator=generator(), steps=10, random_start=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
        attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
        theirs, done = x.clone(), torch.zeros(40, dtype=torch.bool)
        for steps in range(1, 11):  # the first misclassified iterate of foolbox, which itself returns the last one
            last = attack(abs_stepsize=eps / 8, steps=steps, random_start=False)
            adv = last.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilon=eps).detach()
            theirs = torch.where(done.view(-1, 1, 1, 1), theirs, adv)
            done |= model(adv).argmax(1) != y
    assert 0 < done.sum() < 40
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["pgd-5", "cw-5", "apgd-ce", "square"])
def test_equal_seeds_give_equal_answers_and_torch_keeps_its_own(trained, name):
    model, x, y = trained
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (run(model, x[:8], y[:8], eps=0.05, norm="linf", generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert name in ("apgd-ce", "square") or not torch.equal(first, other)


@pytest.mark.parametrize("name", ["fgsm", "pgd-10"])
@pytest.mark.parametrize("norm", ALL_NORMS)
def test_a_sample_does_not_depend_on_its_neighbours(trained, norm, name):
    model, x, y = trained
    options = {"random_start": False} if name == "pgd-10" else {}
    run = partial(attacks.parse(name)[0].run, model, eps=0.1, norm=norm, generator=generator(), **options)
    whole = run(x[:8], y[:8])
    for size in (1, 3):
        parts = torch.cat([run(a, b) for a, b in zip(x[:8].split(size), y[:8].split(size))])
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_parameters_keep_their_gradients_and_flags(trained):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    _, x, y = trained
    model.train()
    for name in ("pgd-2", "apgd-ce", "apgd-t", "fab-t"):
        run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
        run(model, x[:4], y[:4], eps=0.05, norm="linf", generator=generator())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and model.training


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("norm", ALL_NORMS)
@pytest.mark.parametrize("loss", ["fgsm", "ce", "margin"])
def test_targeted_goes_where_untargeted_goes_with_two_classes(norm, n, loss):
    model, x = linear(seed=4), samples(n, seed=5)
    y = model(x).argmax(1)
    run = gradient.fgsm if loss == "fgsm" else partial(gradient.pgd, loss=loss, random_start=False)
    plain, aimed = (run(model, x, y, eps=0.05, norm=norm, generator=generator(), targets=t) for t in (None, 1 - y))
    torch.testing.assert_close(plain, aimed)
    assert (plain != x).any()


@pytest.mark.parametrize("norm,eps", [("linf", 0.3), ("l2", 2.0), ("l1", 8.0)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_targeted_pgd_reaches_each_class_and_stops_there(trained, norm, eps, loss):
    model, x, y = trained
    targets = (y[:8] + 1 + torch.arange(8)) % 10
    adv = gradient.pgd(model, x[:8], y[:8], eps=eps, norm=norm, generator=generator(), loss=loss, targets=targets)
    there = targets != y[:8]
    assert (model(adv).argmax(1) == targets)[there].float().mean() > 0.7
    already = model(x[:8]).argmax(1)
    same = gradient.pgd(model, x[:8], y[:8], eps=eps, norm=norm, generator=generator(), targets=already, random_start=False)
    assert torch.equal(same, x[:8])


def worst_l1(model, x, y, eps):
    """The best one-sample attack in the l1 ball and the box by filling pixels in the order of their slope, in a loop."""
    slope, moved, left = (model[1].weight[1 - y] - model[1].weight[y]), x.flatten().clone(), eps
    for i in slope.abs().argsort(descending=True).tolist():
        step = min(left, float(1 - moved[i]) if slope[i] > 0 else float(moved[i]))
        moved[i] += step * slope[i].sign()
        left -= step
    return moved.view_as(x)


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("eps", [0.1, 1.5])
def test_fgsm_is_the_exact_worst_case_in_l1(n, eps):
    model, x = linear(seed=4), samples(n, seed=5, low=0, high=1)
    y = model(x).argmax(1)
    adv = gradient.fgsm(model, x, y, eps=eps, norm="l1")
    torch.testing.assert_close(adv, torch.stack([worst_l1(model, a, b, eps) for a, b in zip(x, y)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_pgd_finds_the_worst_case_in_l1(loss):
    model, x, eps = linear(seed=4), samples(8, seed=5), 0.15
    y = model(x).argmax(1)
    worst = torch.stack([worst_l1(model, a, b, eps) for a, b in zip(x, y)])
    adv = gradient.pgd(model, x, y, eps=eps, norm="l1", generator=generator(), steps=40, loss=loss)
    broken = model(worst).argmax(1) != y
    assert torch.equal(model(adv).argmax(1) != y, broken) and 0 < broken.sum() < 8
    torch.testing.assert_close(adv[~broken], worst[~broken], atol=1e-5, rtol=0)


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
        assert (base.distance(inside - x, norm) <= eps + 1e-6).all() and inside.min() >= 0 and inside.max() <= 1


@pytest.mark.parametrize("value,is_out", [(1 + 2e-7, False), (-2e-7, False), (1.001, True), (-0.001, True),
                                          (float("inf"), True), (-float("inf"), True), (float("nan"), True)])
@pytest.mark.parametrize("norm", ALL_NORMS)
def test_one_pixel_out_of_the_box_is_outside_unless_it_is_rounding(norm, value, is_out):
    x = torch.full((2, 1, 4, 4), 0.5)
    adv = x.clone()
    adv[1, 0, 2, 3] = value
    assert base.outside(adv, x, eps=2.0, norm=norm).tolist() == [False, is_out]


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("norm,fraction", [("linf", 0.1), ("l2", 0.03), ("l1", 0.02)])
def test_answers_at_the_edge_stay_bit_for_bit_and_those_beyond_do_not(norm, fraction, shape):
    """The edge as float64 has it, rounded pixel by pixel; eps up to 18, 3072 pixels; beyond is a thousandth of eps."""
    x = 0.3 + 0.4 * torch.rand(5, *shape, generator=generator(1))
    way = torch.randn(5, *shape, generator=generator(2), dtype=torch.float64).clamp(-2.5, 2.5)
    way = way.sign() if norm == "linf" else way
    eps = fraction * {"linf": 1, "l2": x[0].numel() ** 0.5, "l1": 0.3 * x[0].numel()}[norm]
    edge, beyond = ((x + way * base.per_sample(factor * eps / base.distance(way, norm), way)).float() for factor in (1, 1.003))
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
    assert base.distance(adv - x, "l1").max() > eps + 5 * base.SLACK  # why `slack` grows with the number of pixels
    assert not base.outside(adv, x, eps=eps, norm="l1").any()


@pytest.mark.parametrize("norm,eps", [("linf", 0.1), ("l2", 0.3)])
def test_every_step_climbs_on_where_a_broken_sample_would_leave(trained, norm, eps):
    model, x, y = trained
    options = {"eps": eps, "norm": norm, "steps": 12, "random_start": False}
    first = gradient.pgd(model, x, y, generator=generator(), **options)
    last = gradient.pgd(model, x, y, generator=generator(), every_step=True, **options)
    broken = model(first).argmax(1) != y
    losses = [nn.functional.cross_entropy(model(adv), y, reduction="none") for adv in (first, last)]
    assert 0 < broken.sum() < len(x) and torch.equal(first[~broken], last[~broken])
    assert (losses[1][broken] >= losses[0][broken]).all() and (losses[1][broken] > losses[0][broken] + 0.01).any()
    assert base.distance(last - x, norm).max() <= eps * (1 + 1e-5)
