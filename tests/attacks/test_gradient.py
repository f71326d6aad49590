"""FGSM, PGD and CW against closed forms on linear models, and foolbox sample by sample."""
import copy
import warnings
from functools import partial

import pytest
import torch
from helpers import attack_checks, foolbox_digits
from helpers.attack_checks import generator, linear, samples
from torch import nn
from torch.nn import functional as F

from pwoa_cli.attacks import base, gradient

NORMS, BATCHES = ("linf", "l2"), (1, 3, 8)


def worst_delta(model, x, y, eps, norm):
    """Closed form for two classes: what raises z_other - z_y most in the ball, and for linf in [0,1]."""
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
    # each l2 step keeps 8/9 of what is not along the gradient
    left = 1e-6 if norm == "linf" else 2 * (8 / 9) ** 40 * eps
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
    adv = gradient.pgd(model, x, y, eps=0.3, norm="linf", generator=generator(), steps=15, step_size=alpha,
                       random_start=False)
    direction = worst_delta(model, x, y, 0.3, "linf").sign()
    for i in range(8):
        path = [x[i:i + 1] + k * alpha * direction[i:i + 1] for k in range(16)]
        first = next((p for p in path if model(p).argmax(1) != y[i]),
                     path[-1].clamp(x[i:i + 1] - 0.3, x[i:i + 1] + 0.3))
        torch.testing.assert_close(adv[i:i + 1], first, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", base.NORMS)
def test_random_starts_fill_the_ball_uniformly(norm):
    x = torch.full((4000, 1, 2, 2), 0.5)
    # whatever it says: without a step the start is the answer
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    start = gradient.pgd(model, x, torch.zeros(4000).long(), eps=0.2, norm=norm, generator=generator(),
                         steps=0)
    radius = base.distance(start - x, norm) / 0.2
    for quantile in (0.25, 0.5, 0.75):  # P(radius < q) = q^d in both balls, d = 4
        assert abs(float((radius < quantile).float().mean()) - quantile**4) < 0.02


def test_ce_margin_gives_cross_entropy_and_its_direction():
    logits = torch.randn(8, 5, generator=generator(), dtype=torch.float64).requires_grad_()
    labels = torch.arange(8) % 5
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
        adv = gradient.pgd(model, x, y, eps=eps, norm="linf", generator=generator(), steps=4,
                           step_size=eps / 4, restarts=restarts)
        broken.append(model(adv).argmax(1) != y)
    assert (broken[1] | ~broken[0]).all() and broken[1].sum() > broken[0].sum()


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("norm", base.NORMS)
@pytest.mark.parametrize("loss", ["fgsm", "ce", "margin"])
def test_targeted_goes_where_untargeted_goes_with_two_classes(norm, n, loss):
    model, x = linear(seed=4), samples(n, seed=5)
    y = model(x).argmax(1)
    run = gradient.fgsm if loss == "fgsm" else partial(gradient.pgd, loss=loss, random_start=False)
    plain, aimed = (run(model, x, y, eps=0.05, norm=norm, generator=generator(), targets=t)
                    for t in (None, 1 - y))
    torch.testing.assert_close(plain, aimed)
    assert (plain != x).any()


@pytest.mark.parametrize("norm,eps", [("linf", 0.3), ("l2", 2.0), ("l1", 8.0)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_targeted_pgd_reaches_each_class_and_stops_there(trained, norm, eps, loss):
    model, x, y = trained
    targets = (y[:8] + 1 + torch.arange(8)) % 10
    adv = gradient.pgd(model, x[:8], y[:8], eps=eps, norm=norm, generator=generator(), loss=loss,
                       targets=targets)
    there = targets != y[:8]
    assert (model(adv).argmax(1) == targets)[there].float().mean() > 0.7
    already = model(x[:8]).argmax(1)
    same = gradient.pgd(model, x[:8], y[:8], eps=eps, norm=norm, generator=generator(), targets=already,
                        random_start=False)
    assert torch.equal(same, x[:8])


def worst_l1(model, x, y, eps):
    """The best attack on one sample in the l1 ball and the box: pixels filled in the order of their slope."""
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
    worst = torch.stack([worst_l1(model, a, b, eps) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(adv, worst, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_pgd_finds_the_worst_case_in_l1(loss):
    model, x, eps = linear(seed=4), samples(8, seed=5), 0.15
    y = model(x).argmax(1)
    worst = torch.stack([worst_l1(model, a, b, eps) for a, b in zip(x, y, strict=True)])
    adv = gradient.pgd(model, x, y, eps=eps, norm="l1", generator=generator(), steps=40, loss=loss)
    broken = model(worst).argmax(1) != y
    assert torch.equal(model(adv).argmax(1) != y, broken) and 0 < broken.sum() < 8
    torch.testing.assert_close(adv[~broken], worst[~broken], atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm,eps", [("linf", 0.1), ("l2", 0.3)])
def test_every_step_climbs_on_where_a_broken_sample_would_leave(trained, norm, eps):
    model, x, y = trained
    options = {"eps": eps, "norm": norm, "steps": 12, "random_start": False}
    first = gradient.pgd(model, x, y, generator=generator(), **options)
    last = gradient.pgd(model, x, y, generator=generator(), every_step=True, **options)
    broken = model(first).argmax(1) != y
    losses = [nn.functional.cross_entropy(model(adv), y, reduction="none") for adv in (first, last)]
    assert 0 < broken.sum() < len(x) and torch.equal(first[~broken], last[~broken])
    assert ((losses[1][broken] >= losses[0][broken]).all()
            and (losses[1][broken] > losses[0][broken] + 0.01).any())
    assert base.distance(last - x, norm).max() <= eps * (1 + 1e-5)


@pytest.mark.parametrize("norm,eps", [("linf", 0.12), ("l2", 0.6)])
def test_pgd_agrees_with_foolbox_sample_by_sample(trained, norm, eps):
    model, x, y = copy.deepcopy(trained[0]).double(), trained[1][:40].double(), trained[2][:40]
    ours = gradient.pgd(model, x, y, eps=eps, norm=norm, generator=generator(), steps=10, random_start=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
        attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
        theirs, done = x.clone(), torch.zeros(40, dtype=torch.bool)
        # the first misclassified iterate of foolbox, which itself returns the last one
        for steps in range(1, 11):
            last = attack(abs_stepsize=eps / 8, steps=steps, random_start=False)
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
            adv = last.run(wrapped, x, y, epsilon=eps).detach()
            theirs = torch.where(done.view(-1, 1, 1, 1), theirs, adv)
            done |= model(adv).argmax(1) != y
    assert 0 < done.sum() < 40
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_fgsm_equals_foolbox_on_digits():
    model, x, y = foolbox_digits.load()
    model, x = copy.deepcopy(model).double(), x.double()  # signs of tiny gradients are noise in float32
    ours = gradient.fgsm(model, x, y, eps=0.3, norm="linf")
    theirs = foolbox_digits.run(lambda fb: fb.attacks.LinfFastGradientAttack(random_start=False), model, x, y,
                                epsilon=0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm,eps", [("linf", 0.35), ("l2", 3.0)])
def test_pgd_breaks_the_digits_that_foolbox_breaks(norm, eps):
    model, x, y = foolbox_digits.load()
    ours = gradient.pgd(model, x, y, eps=eps, norm=norm, generator=generator(), steps=8, random_start=False)
    name = {"linf": "LinfPGD", "l2": "L2PGD"}[norm]
    ours_broken, theirs_broken = model(ours).argmax(1) != y, torch.zeros(20, dtype=torch.bool)
    for steps in range(1, 9):  # foolbox returns its last iterate, ours the first that is misclassified
        theirs = foolbox_digits.run(lambda fb, steps=steps: getattr(fb.attacks, name)(
            abs_stepsize=eps / 8, steps=steps, random_start=False), model, x, y, epsilon=eps)
        theirs_broken |= model(theirs).argmax(1) != y
    assert torch.equal(ours_broken, theirs_broken) and 0 < theirs_broken.sum() < 20
