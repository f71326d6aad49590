"""ADMM on problems whose solution is known; projection against every choice of groups."""
from itertools import combinations

import pytest
import torch
from helpers.plans import groups_of, project, strength

from pwoa_cli.pruning import admm
from pwoa_cli.pruning.groups import STRUCTURES


@pytest.mark.parametrize("kind", [*STRUCTURES, "block:1x2", "block:3x1"])
def test_projection_is_the_nearest_sparse_tensor(kind):
    """Against every choice of groups of the same count."""
    weight = torch.randn(3, 2, 1, 2, generator=torch.Generator().manual_seed(1))
    groups = len(strength(weight, kind))
    got = (project(weight, 2, kind) - weight).square().sum().item()
    losses = [strength(weight, kind)[list(c)].sum().item() for c in combinations(range(groups), 2)]
    assert got == pytest.approx(min(losses))


def test_admm_on_a_quadratic_finds_the_sparse_minimum():
    """min |w - a|^2 / 2 with two nonzeros: w-step in closed form, the two largest entries of a survive."""
    a = torch.tensor([[3.0, -0.5, 2.0, 0.1]])
    zeros, w = {"w": 2}, torch.tensor([[3.0, -0.5, 2.0, 0.1]])
    groups = groups_of({"w": w})
    state = admm.begin({"w": w}, groups, zeros, rho=0.1)
    for _ in range(60):
        w = (a + state.rho * (state.z["w"] - state.u["w"])) / (1 + state.rho)
        state = admm.update(state, {"w": w}, groups, zeros, growth=1.35, rho_max=1.0)
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
