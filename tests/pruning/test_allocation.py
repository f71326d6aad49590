"""Quotas of layers against closed forms and slow loops."""
import itertools

import numpy as np
import pytest
import torch
from helpers.plans import curves_of, groups_of, keep_mask, quotas, strength

from pwoa_cli.pruning.allocation import ALLOCATIONS, PER_ROW, SHARE, least_kept
from pwoa_cli.pruning.curves import marginal


def random_weights(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"conv1.weight": torch.randn(8, 1, 3, 3, generator=g),
            "conv2.weight": torch.randn(16, 8, 3, 3, generator=g),
            "fc.weight": torch.randn(10, 64, generator=g) * 0.1}


@pytest.mark.parametrize("method", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.5, 0.9, 0.97, 0.99])
def test_quotas_sum_to_exactly_k(method, sparsity):
    weights = random_weights()
    total = sum(w.numel() for w in weights.values())
    quota = quotas(weights, sparsity, method=method, curves=curves_of(weights))
    assert sum(quota.values()) == round(sparsity * total)
    assert all(0 <= quota[n] < weights[n].numel() for n in weights)


def starving(seed=0):
    """A first layer a thousand times smaller than the others: global magnitude would leave it one weight."""
    weights = random_weights(seed)
    return weights | {"conv1.weight": 1e-3 * weights["conv1.weight"]}


@pytest.mark.parametrize("method", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97, 0.99])
def test_no_layer_starves_and_the_total_is_exact(method, sparsity):
    """Against the formula layer by layer: at least 1, SHARE of what `uniform` leaves, and of these a weight
    for each output."""
    weights = starving()
    curves = curves_of(weights) | {"conv1.weight": [(0, 0.0), (71, 1e-6)]}  # nothing is to be had for less
    quota = quotas(weights, sparsity, method=method, curves=curves)
    total = sum(w.numel() for w in weights.values())
    kept_in_all = total - round(sparsity * total)
    assert sum(quota.values()) == total - kept_in_all
    for name, w in weights.items():
        alike = kept_in_all * w.numel() // total
        assert w.numel() - quota[name] >= max(1, int(SHARE * alike), min(alike, PER_ROW * len(w))), name


@pytest.mark.parametrize("kind", ["filter", "column"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_whole_groups_keep_their_share_too(kind, sparsity):
    weights = {"a": torch.randn(200, 16, 3, 3) * 1e-4, "b": torch.randn(64, 200, 3, 3)}
    quota = quotas(weights, sparsity, method="global", structure=kind)
    total, lost = sum(w.numel() for w in weights.values()), 0
    for name, group in groups_of(weights, kind).items():
        assert group.count - quota[name] >= max(1, int(SHARE * (1 - sparsity) * group.count)), name
        lost += quota[name] * group.size
    assert abs(lost - sparsity * total) <= max(g.size for g in groups_of(weights, kind).values())


def test_a_layer_that_global_magnitude_spares_loses_what_it_did():
    """The least of a layer changes nothing where it is not reached: by sorting in plain Python."""
    weights = random_weights() | {"fc.weight": torch.linspace(-1, 3, 640).view(10, 64)}
    sizes = sorted((abs(v), n) for n, w in weights.items() for v in w.flatten().tolist())
    want = [n for _, n in sizes[: round(0.6 * len(sizes))]]
    assert quotas(weights, 0.6, method="global") == {n: want.count(n) for n in weights}


@pytest.mark.parametrize("method", ALLOCATIONS)
def test_tied_weights_still_give_exactly_k(method):
    weights = {n: torch.sign(w) for n, w in random_weights().items()}
    quota = quotas(weights, 0.9, method=method, curves=curves_of(weights))
    zeros = sum(int((~keep_mask(w, quota[n])).sum()) for n, w in weights.items())
    assert zeros == round(0.9 * sum(w.numel() for w in weights.values()))


def test_uniform_takes_the_same_fraction_everywhere():
    weights = random_weights()
    quota = quotas(weights, 0.75, method="uniform")
    assert all(abs(quota[n] - 0.75 * w.numel()) <= 1 for n, w in weights.items())


def test_lamp_equals_the_slow_loop():
    """Lee et al. 2021, eq. 4, by sorting all scores of all layers in plain Python."""
    weights = random_weights()
    scored = []
    for name, w in weights.items():
        square = sorted(w.flatten().double().square().tolist())
        tails = np.cumsum(square[::-1])[::-1]
        scored += [(s / t, name) for s, t in zip(square, tails, strict=True)]
    cut = sorted(scored)[: round(0.8 * len(scored))]
    want = {name: sum(n == name for _, n in cut) for name in weights}
    assert quotas(weights, 0.8, method="lamp") == want


def test_erk_density_is_proportional_to_its_shape():
    weights = random_weights()
    quota = quotas(weights, 0.9, method="erk")
    factor = {n: (1 - quota[n] / w.numel()) / (sum(w.shape) / w.numel()) for n, w in weights.items()}
    below_one = [f for n, f in factor.items() if quota[n]]
    assert max(below_one) / min(below_one) < 1.05


@pytest.mark.parametrize("kind", ["filter", "column"])
@pytest.mark.parametrize("method", ["uniform", "lamp"])
def test_whole_groups_come_near_the_target(kind, method):
    weights = {"a": torch.randn(32, 16, 3, 3), "b": torch.randn(64, 32, 3, 3)}
    quota = quotas(weights, 0.5, method=method, structure=kind)
    masks = {n: keep_mask(w, quota[n], kind) for n, w in weights.items()}
    zeros = sum(int((~m).sum()) for m in masks.values())
    total = sum(w.numel() for w in weights.values())
    biggest = max(w.numel() / len(strength(w, kind)) for w in weights.values())
    assert abs(zeros - total / 2) <= biggest
    for m in masks.values():
        rows = m.flatten(1) if kind == "filter" else m.flatten(1).T
        assert all(row.all() or not row.any() for row in rows)


@pytest.mark.parametrize("sparsity", [0.002, 0.3, 0.9])
def test_group_quotas_pass_over_groups_that_are_too_large(sparsity):
    """A group of 3136 weights is weakest; filling stops only when no smaller one comes nearer."""
    weights = {"fc": torch.randn(200, 3136) * 0.01, "conv": torch.randn(32, 1, 3, 3)}
    for method in ("lamp", "global"):
        quota = quotas(weights, sparsity, method=method, structure="filter")
        zeros = quota["fc"] * 3136 + quota["conv"] * 9
        assert abs(zeros - sparsity * (200 * 3136 + 288)) <= 3136 / 2


def test_a_sparsity_that_empties_layers_is_refused():
    with pytest.raises(ValueError, match="a weight must stay in each of 3 layers"):
        quotas(random_weights(), 0.9999, method="lamp")


def test_sensitive_layers_keep_more_and_the_sum_is_least():
    """Against all ways to share the budget, on the curves' hulls."""
    weights = {"a": torch.randn(2, 4), "b": torch.randn(3, 4), "c": torch.randn(1, 6)}
    curves = {"a": [(0, 0.0), (4, 1.0), (7, 9.0)], "b": [(0, 0.0), (6, 0.5), (11, 2.0)],
              "c": [(0, 0.0), (3, 3.0), (5, 3.5)]}
    slopes = {n: marginal(c).tolist() for n, c in curves.items()}
    for budget in (1, 9, 13, 20, 23):
        quota = quotas(weights, budget / 26, method="sensitivity", curves=curves)
        cost = sum(sum(slopes[n][:k]) for n, k in quota.items())
        least = least_kept(groups_of(weights), budget)
        room = [range(weights[n].numel() - least[n] + 1) for n in "abc"]
        ways = [w for w in itertools.product(*room) if sum(w) == budget]
        least = min(sum(sum(slopes[n][:k]) for n, k in zip("abc", way, strict=True)) for way in ways)
        assert sum(quota.values()) == budget and cost == pytest.approx(least)
    rows = {n: w[None] for n, w in weights.items()}
    assert quotas(rows, 0.5, method="sensitivity", structure="column", curves=curves)["b"] >= 6
    with pytest.raises(ValueError, match="sensitivity"):
        quotas(weights, 0.5, method="sensitivity")


@pytest.mark.parametrize("method", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.99, 0.995, 0.998])
def test_many_small_layers_leave_room_for_the_zeros_that_are_asked_for(method, sparsity):
    """Layers of which the density leaves less than one weight keep one each; the others give way for it."""
    draw = torch.Generator().manual_seed(0)
    weights = {f"wide{i}": torch.randn(64, 16, 1, 1, generator=draw) for i in range(20)}
    weights |= {f"small{i}": torch.randn(50, 1, 1, 1, generator=draw) for i in range(30)}
    total = sum(w.numel() for w in weights.values())
    if total - round(sparsity * total) < len(weights):
        with pytest.raises(ValueError, match="a weight must stay in each of 50 layers"):
            quotas(weights, sparsity, method=method, curves=curves_of(weights))
        return
    quota = quotas(weights, sparsity, method=method, curves=curves_of(weights))
    assert sum(quota.values()) == round(sparsity * total)
    assert all(quota[name] < w.numel() for name, w in weights.items())
