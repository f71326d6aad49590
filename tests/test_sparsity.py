"""Structures, allocation, ADMM and schedules against closed forms and slow loops."""
import numpy as np
import pytest
import torch

from pwoa_cli import admm, allocation, schedule, structure


def random_weights(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"conv1.weight": torch.randn(8, 1, 3, 3, generator=g), "conv2.weight": torch.randn(16, 8, 3, 3, generator=g),
            "fc.weight": torch.randn(10, 64, generator=g) * 0.1}


@pytest.mark.parametrize("method", allocation.ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.5, 0.9, 0.97, 0.99])
def test_quotas_sum_to_exactly_k(method, sparsity):
    weights = random_weights()
    total = sum(w.numel() for w in weights.values())
    quota = allocation.quotas(weights, sparsity, method=method)
    assert sum(quota.values()) == round(sparsity * total)
    assert all(0 <= quota[n] < weights[n].numel() for n in weights)


@pytest.mark.parametrize("method", allocation.ALLOCATIONS)
def test_tied_weights_still_give_exactly_k(method):
    weights = {n: torch.sign(w) for n, w in random_weights().items()}
    quota = allocation.quotas(weights, 0.9, method=method)
    zeros = sum(int((~structure.keep_mask(w, quota[n], "unstructured")).sum()) for n, w in weights.items())
    assert zeros == round(0.9 * sum(w.numel() for w in weights.values()))


def test_uniform_takes_the_same_fraction_everywhere():
    weights = random_weights()
    quota = allocation.quotas(weights, 0.75, method="uniform")
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
    assert allocation.quotas(weights, 0.8, method="lamp") == want


def test_erk_density_is_proportional_to_its_shape():
    weights = random_weights()
    quota = allocation.quotas(weights, 0.9, method="erk")
    factor = {n: (1 - quota[n] / w.numel()) / (sum(w.shape) / w.numel()) for n, w in weights.items()}
    below_one = [f for n, f in factor.items() if quota[n]]
    assert max(below_one) / min(below_one) < 1.05


@pytest.mark.parametrize("kind", ["filter", "column"])
@pytest.mark.parametrize("method", ["uniform", "lamp"])
def test_whole_groups_come_near_the_target(kind, method):
    weights = {"a": torch.randn(32, 16, 3, 3), "b": torch.randn(64, 32, 3, 3)}
    quota = allocation.quotas(weights, 0.5, method=method, structure=kind)
    masks = {n: structure.keep_mask(w, quota[n], kind) for n, w in weights.items()}
    zeros = sum(int((~m).sum()) for m in masks.values())
    total = sum(w.numel() for w in weights.values())
    biggest = max(w.numel() / len(structure.strength(w, kind)) for w in weights.values())
    assert abs(zeros - total / 2) <= biggest
    for m in masks.values():
        rows = m.flatten(1) if kind == "filter" else m.flatten(1).T
        assert all(row.all() or not row.any() for row in rows)


@pytest.mark.parametrize("sparsity", [0.002, 0.3, 0.9])
def test_group_quotas_pass_over_groups_that_are_too_large(sparsity):
    """A group of 3136 weights is weakest; filling stops only when no smaller one comes nearer to the target."""
    weights = {"fc": torch.randn(200, 3136) * 0.01, "conv": torch.randn(32, 1, 3, 3)}
    for method in ("lamp", "global"):
        quota = allocation.quotas(weights, sparsity, method=method, structure="filter")
        zeros = quota["fc"] * 3136 + quota["conv"] * 9
        assert abs(zeros - sparsity * (200 * 3136 + 288)) <= 3136 / 2


def test_a_sparsity_that_empties_layers_is_refused():
    with pytest.raises(ValueError, match="a weight must stay in each of 3 layers"):
        allocation.quotas(random_weights(), 0.9999, method="lamp")


def test_keep_mask_breaks_ties_by_index():
    keep = structure.keep_mask(torch.tensor([[1.0, -1.0, 1.0, 2.0]]), 2, "unstructured")
    assert keep.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("kind", structure.STRUCTURES)
def test_projection_is_the_nearest_sparse_tensor(kind):
    """Against every choice of groups of the same count."""
    from itertools import combinations

    weight = torch.randn(3, 2, 1, 2, generator=torch.Generator().manual_seed(1))
    groups = len(structure.strength(weight, kind))
    got = (structure.project(weight, 2, kind) - weight).square().sum().item()
    losses = [structure.strength(weight, kind)[list(c)].sum().item() for c in combinations(range(groups), 2)]
    assert got == pytest.approx(min(losses))


def test_admm_on_a_quadratic_finds_the_sparse_minimum():
    """min |w - a|^2 / 2 with two nonzeros: w-step in closed form, the two largest entries of a survive."""
    a = torch.tensor([[3.0, -0.5, 2.0, 0.1]])
    zeros, w = {"w": 2}, torch.tensor([[3.0, -0.5, 2.0, 0.1]])
    state = admm.begin({"w": w}, zeros, structure="unstructured", rho=0.1)
    for _ in range(60):
        w = (a + state.rho * (state.z["w"] - state.u["w"])) / (1 + state.rho)
        state = admm.update(state, {"w": w}, zeros, structure="unstructured", growth=1.35, rho_max=1.0)
    assert state.rho == 1.0
    assert torch.allclose(state.z["w"], torch.tensor([[3.0, 0.0, 2.0, 0.0]]), atol=1e-3)
    assert torch.allclose(w, state.z["w"], atol=1e-3)


def test_admm_penalty_and_its_gradient():
    w = torch.tensor([[1.0, 2.0]], requires_grad=True)
    state = admm.Admm(z={"w": torch.tensor([[0.0, 2.0]])}, u={"w": torch.tensor([[0.5, 0.0]])}, rho=0.2)
    loss = admm.penalty(state, {"w": w})
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * 1.5**2)
    assert torch.allclose(w.grad, 0.2 * torch.tensor([[1.5, 0.0]]))


def test_cubic_schedule_has_the_published_ends():
    assert schedule.cubic_sparsity(0.9, 0.0) == 0.0 and schedule.cubic_sparsity(0.9, 0.5) == pytest.approx(0.9 * 0.875)
    assert schedule.cubic_sparsity(0.9, 1.0) == 0.9 == schedule.cubic_sparsity(0.9, 3.0)


def test_learning_rates():
    def at(kind, step):
        return schedule.learning_rate(kind, 0.1, step=step, steps=100, steps_per_epoch=4)

    assert at("cosine", 0) == pytest.approx(0.1) and at("cosine", 50) == pytest.approx(0.05)
    assert at("warm-cosine", 4) == pytest.approx(0.05) and at("warm-cosine", 10) == pytest.approx(0.1)
    # published ADMM schedule: one step late, a tenth at each later epoch of a period of three
    assert [at("admm", s) for s in (0, 4, 5, 8, 9, 12, 13)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.1])
    with pytest.raises(ValueError, match="schedule 'linear'"):
        at("linear", 0)
