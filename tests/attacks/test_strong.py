"""Restarts that learn: closed forms of directions, targets and discarding; what `strong` is to `aa`."""
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import attack_checks
from helpers.attack_checks import generator, linear, samples
from torch import nn

from pwoa_cli import attacks
from pwoa_cli.attacks import base, gradient, strong
from pwoa_cli.attacks.bounded import Bounded
from pwoa_cli.evaluation.evaluate import evaluate

BALLS = [("linf", 0.03), ("l2", 0.08), ("l1", 0.12)]


def restarts(model, x, y, *, eps, norm="linf", seed=0, **options):
    return strong.restarts(model, x, y, eps=eps, norm=norm, generator=generator(seed),
                           **{"rounds": 4, "steps": 20} | options)


def worst_margin(model, x, y, *, eps, norm):
    """Closed form for two classes, the box out of reach: f + eps |w|_q with q dual to the norm."""
    w = model[1].weight
    slopes = w[1 - y] - w[y]
    logits = model(x)
    gap = logits.gather(1, (1 - y)[:, None]) - logits.gather(1, y[:, None])
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    return gap[:, 0] + eps * torch.linalg.vector_norm(slopes, ord=dual, dim=1)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("norm,eps", BALLS)
def test_exactly_the_samples_that_can_be_broken_are(norm, eps, n):
    model, x = linear(seed=4), samples(n, seed=5)
    y = model(x).argmax(1)
    worst = worst_margin(model, x, y, eps=eps, norm=norm)
    assert (worst.abs() > 1e-3).all()  # none at the very edge
    adv = restarts(model, x, y, eps=eps, norm=norm)
    assert torch.equal(model(adv).argmax(1) != y, worst > 0)
    assert torch.equal(adv[worst < 0], x[worst < 0])  # what holds out comes back clean
    assert not base.outside(adv, x, eps=eps, norm=norm).any()


@pytest.mark.parametrize("norm,eps", BALLS)
def test_the_linear_oracle_has_both_kinds_of_samples(norm, eps):
    model, x = linear(seed=4), samples(8, seed=5)
    worst = worst_margin(model, x, model(x).argmax(1), eps=eps, norm=norm)
    assert 0 < (worst > 0).sum() < 8


@pytest.mark.parametrize("norm,eps", [("linf", 0.1), ("l2", 0.8), ("l1", 3.0)])
def test_answers_stay_in_the_ball_and_depend_on_the_seed_alone(norm, eps):
    model, x, y = attack_checks.trained()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (restarts(model, x[:16], y[:16], eps=eps, norm=norm, seed=seed)
                           for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert not base.outside(first, x[:16], eps=eps, norm=norm).any()
    assert first.min() >= 0 and first.max() <= 1


def test_more_rounds_only_add_broken_samples():
    model, x, y = attack_checks.trained()
    broken = [model(restarts(model, x, y, eps=0.07, rounds=rounds, steps=3)).argmax(1) != y
              for rounds in (1, 8)]
    assert (broken[1] | ~broken[0]).all() and broken[1].sum() > broken[0].sum()


def test_zero_gradients_wrong_samples_and_no_numbers():
    dead = nn.Sequential(nn.Flatten(), nn.Threshold(2.0, 0.0), nn.Linear(16, 3))  # inputs never exceed 2
    x = samples(3)
    y = dead(x).argmax(1)
    assert torch.equal(restarts(dead, x, y, eps=0.2), x)
    wrong = (y + torch.tensor([0, 1, 0])) % 3
    assert torch.equal(dead(restarts(dead, x, wrong, eps=0.2)).argmax(1) == wrong,
                       torch.tensor([True, False, True]))

    class Nan(nn.Module):
        def forward(self, x):
            return dead(x) * math.nan

    assert restarts(Nan(), x, y, eps=0.2).isfinite().all()
    assert restarts(dead, x[:0], y[:0], eps=0.2).shape == (0, 1, 4, 4)


# --- What rounds learn ---------------------------------------------------------------


def test_signs_are_drawn_as_often_as_they_helped():
    helped = torch.tensor([[-1.0, 1.0, 0.5]] * 8 + [[-1.0, 1.0, -0.5]] * 8)
    for learnt, chances in ((torch.empty(0, 3), [1 / 2] * 3), (helped, [1 / 18, 17 / 18, 1 / 2])):
        w = strong._directions(20_000, learnt, generator())
        assert w.abs().max() <= 1 and abs(float(w.abs().mean()) - 0.5) < 0.01
        torch.testing.assert_close((w > 0).float().mean(0), torch.tensor(chances), atol=0.015, rtol=0)


def test_directions_by_rank_are_those_of_the_classes():
    ranks, w = torch.tensor([[2, 0, 1], [0, 2, 1]]), torch.tensor([[-0.9, 0.5, 0.1], [-0.8, 0.4, 0.2]])
    assert torch.equal(strong._by_class(w, ranks), torch.tensor([[0.5, 0.1, -0.9], [-0.8, 0.2, 0.4]]))


def test_what_a_round_learns_and_is_given(monkeypatch):
    """Rounds whose outcome is written down: what helped, who goes on, how many steps, which target."""
    outcomes = [([-3.0, -2.0, 0.5], [False, False, True]), ([-2.5, -1.0], [False, False]), ([-4.0], [False])]
    given, drawn, directions = [], [], strong._directions

    def climb(model, start, x, y, w, targets, *, eps, norm, steps):
        best, broken = (torch.tensor(part) for part in outcomes[len(given)])
        given.append((x[:, 0, 0, 0].tolist(), targets, steps))
        return start, broken, best

    def draw(count, learnt, generator):
        drawn.append((learnt, directions(count, learnt, generator)))
        return drawn[-1][1]

    monkeypatch.setattr(strong, "_climb", climb)
    monkeypatch.setattr(strong, "_directions", draw)
    model, x = linear(classes=4), samples(3)
    y = model(x).argmax(1)
    pixels, likeliest = x[:, 0, 0, 0].tolist(), model(x).argsort(1, descending=True)[:, 1]
    restarts(model, x, y, eps=0.1, rounds=3, steps=20)
    nearest_first = [pixels[1], pixels[0]]
    assert [part[0] for part in given] == [pixels, nearest_first, [pixels[0]]]  # all, 62.5% and 25% of two
    assert [part[2] for part in given] == [20, 32, 80]
    assert given[0][1] is None and given[2][1] is None
    assert given[1][1].tolist() == [int(likeliest[1]), int(likeliest[0])]
    (none, first), (broke, second), (nearer, _) = drawn
    assert not len(none) and torch.equal(broke, first[2:])
    assert torch.equal(nearer, torch.cat([first[2:], second[1:]]))  # -2.5 is no nearer than -2


def test_a_start_goes_along_its_direction():
    """The first points that the network sees: steps of size eps up <w, z>."""
    model, x, w, seen = linear(classes=3), samples(1), torch.tensor([[0.0, -1.0, 0.5]]), []
    y = model(x).argmax(1)

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return model(x) + 100 * torch.eye(3)[y]  # holds out

    strong._climb(Watched(), x, x, y, w, None, eps=0.1, norm="linf", steps=1)
    up = (w @ model[1].weight).view_as(x).sign()
    for point in seen[1:strong.STARTING + 1]:
        torch.testing.assert_close(point, x + 0.1 * up)
    assert len(seen) == strong.STARTING + 2 and not torch.equal(seen[-1], seen[-2])


def test_classes_are_ranked_label_first_then_by_logit():
    logits = nn.Sequential(nn.Flatten())
    z = torch.tensor([[0.3, 0.9, 0.1, 0.5]]).view(1, 1, 2, 2)
    assert strong._ranks(logits, z, torch.tensor([2])).tolist() == [[2, 1, 3, 0]]
    assert strong._ranks(logits, z, torch.tensor([1])).tolist() == [[1, 3, 0, 2]]


def test_the_samples_nearest_to_the_boundary_go_on():
    standing = torch.tensor([True, True, False, True, True])
    nearest = torch.tensor([-3.0, -1.0, 5.0, -2.0, -4.0])
    for share, rows in ((1.0, [1, 3, 0, 4]), (0.5, [1, 3]), (0.51, [1, 3, 0]), (0.01, [1])):
        assert strong._likeliest(standing, nearest, share).tolist() == rows
    assert not len(strong._likeliest(torch.zeros(5, dtype=torch.bool), nearest, 1.0))


@pytest.mark.parametrize("norm,q", [("linf", 1), ("l2", 2), ("l1", math.inf)])
def test_many_classes_are_aimed_at_in_malts_order(norm, q):
    """For a linear network the order is that of the exact distances to the boundaries; a NumPy-like loop."""
    model, x = linear(classes=120), samples(3)
    ranks = strong._ranks(model, x, model(x).argmax(1))
    found = strong._targets(model, x, ranks, norm)
    w, z = model[1].weight, model(x)
    for i, y in enumerate(ranks[:, 0].tolist()):
        away = {t: float((z[i, y] - z[i, t]) / torch.linalg.vector_norm(w[t] - w[y], ord=q))
                for t in ranks[i, 1:101].tolist()}
        assert found[i].tolist() == sorted(away, key=away.get)[:9]
        assert found[i].tolist() != ranks[i, 1:10].tolist()


@pytest.mark.parametrize("classes,count", [(2, 1), (3, 2), (10, 9), (99, 9)])
def test_fewer_classes_are_aimed_at_by_their_logits(classes, count):
    model, x = linear(classes=classes), samples(3)
    ranks = strong._ranks(model, x, model(x).argmax(1))
    assert torch.equal(strong._targets(model, x, ranks, "linf"), ranks[:, 1:1 + count])


def test_the_budget_is_what_the_page_says():
    """Of a network that holds out: passes by round, at most a tenth above those of equal rounds."""
    model, x = linear(classes=10), samples(40)
    bounded, y = Bounded(model, 40), model(x).argmax(1)
    strong.restarts(bounded, x, y, eps=1e-9, norm="linf", generator=generator())
    rounds = strong.ROUNDS * strong.STEPS + strong.ROUNDS * (strong.STARTING + 1) * (1 + strong.LEAST) / 2
    assert bounded.meter.forwards / 40 == pytest.approx(rounds, rel=0.1)
    assert 3 * rounds == pytest.approx(attacks.FIXED["restarts"].cost, rel=0.1)


# --- Its names ---------------------------------------------------------------


def test_strong_brings_aa_along_and_comes_after_it():
    for given in ("strong", "aa,strong", "strong,aa"):
        chosen = sorted(attacks.parse(given), key=lambda attack: attack.cost)
        assert [attack.name for attack in chosen] == ["aa", "strong"]
    assert attacks.typed("strong") == {"strong": "strong", "aa": "aa"}  # a gate may name both
    assert [part.name for part in attacks.stages(attacks.FIXED["strong"])] == ["restarts"]


def test_strong_goes_on_with_what_aa_left_and_leaves_its_figure_alone(monkeypatch):
    model, x, y = attack_checks.trained()
    for name in ("aa", "apgd-ce", "apgd-t", "fab-t", "square"):
        options = attack_checks.SHORT.get(name, {"steps": 2, "queries": 5})
        monkeypatch.setitem(attacks.FIXED, name, short(attacks.FIXED[name], **options))
    ball = {"norm": "linf", "eps": 0.1, "seed": 3}
    alone, both = (evaluate(model, x[:60], y[:60], attacks=name, **ball) for name in ("aa", "strong"))
    assert torch.equal(alone["aa"].correct, both["aa"].correct)
    assert torch.equal(both["strong"].attacked, both["aa"].correct)
    assert not (both["strong"].correct & ~both["aa"].correct).any()
    assert 0 < both["strong"].correct.sum() <= both["aa"].correct.sum()


def short(attack, **options):
    return replace(attack, run=partial(attack.run, **options))


def test_the_margin_is_climbed_as_cw_does():
    """One round without a start along w, from x, with the steps of the cosine: a loop written out."""
    model, x, y = attack_checks.trained()
    x, y, eps, steps = x[:4], y[:4], 0.02, 5
    w = torch.zeros(4, 10)
    ours, broken, best = strong._climb(model, x, x, y, w, None, eps=eps, norm="linf", steps=steps)
    adv, seen = x, [gradient.margin(model(x), y)]
    for k in range(steps):
        grad, _, _ = gradient.ascent(model, adv, y, loss="margin")
        size = eps * (1 + math.cos(math.pi * k / steps)) / 2
        adv = torch.clamp(adv + size * grad.sign(), x - eps, x + eps).clamp(0, 1)
        seen.append(gradient.margin(model(adv), y))
    stands = torch.stack(seen).amax(0) < 0
    assert torch.equal(broken, ~stands) and stands.any()
    torch.testing.assert_close(best[stands], torch.stack(seen).amax(0)[stands])
