"""What every attack's answer obeys: wrong samples, zero gradients, ball and box, seeds, neighbours."""
from functools import partial

import pytest
import torch
from helpers import attack_checks
from helpers.attack_checks import SHORT, generator, linear, samples
from torch import nn

from pwoa_cli import attacks
from pwoa_cli.attacks import base


@pytest.fixture(scope="module")
def trained():
    return attack_checks.trained()


@pytest.mark.parametrize("name", ["fgsm", "pgd-5", "pgd-5-r3", "cw", "apgd-ce", "apgd-t", "fab-t", "aa-fast"])
@pytest.mark.parametrize("norm", base.NORMS)
def test_an_already_wrong_sample_stays_wrong(norm, name):
    model, x = linear(classes=10), samples(3)
    y = (model(x).argmax(1) + torch.tensor([0, 1, 0])) % 10
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    adv = run(model, x, y, eps=0.01, norm=norm, generator=generator())
    assert model(adv)[1].argmax() != y[1]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw"])
@pytest.mark.parametrize("norm", base.NORMS)
def test_a_zero_gradient_moves_nothing_and_gives_no_nan(norm, name):
    dead = nn.Sequential(nn.Flatten(), nn.Threshold(2.0, 0.0), nn.Linear(16, 3))  # inputs never exceed 2
    x = samples(3)
    y = dead(x).argmax(1)
    run = (attacks.parse(name)[0].run if name == "fgsm"
           else partial(attacks.parse(name)[0].run, random_start=False))
    assert torch.equal(run(dead, x, y, eps=0.2, norm=norm, generator=generator()), x)


@pytest.mark.parametrize("name", ["fgsm", "pgd-10-r2", "cw-10", "apgd-ce", "apgd-t", "fab-t", "square"])
@pytest.mark.parametrize("norm", base.NORMS)
def test_answers_stay_in_the_ball_and_in_the_box(trained, norm, name):
    model, x, y = trained
    x, y, eps = x[:8], y[:8], {"linf": 0.1, "l2": 0.6, "l1": 3.0}[norm]
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    adv = run(model, x, y, eps=eps, norm=norm, generator=generator())
    assert not base.outside(adv, x, eps=eps, norm=norm).any()
    assert adv.min() >= -base.SLACK and adv.max() <= 1 + base.SLACK
    assert base.distance(adv - x, norm).max() <= eps + 1e-5


@pytest.mark.parametrize("name", ["pgd-5", "cw-5", "apgd-ce", "square"])
def test_equal_seeds_give_equal_answers_and_torch_keeps_its_own(trained, name):
    model, x, y = trained
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (run(model, x[:8], y[:8], eps=0.05, norm="linf", generator=generator(s))
                           for s in (1, 1, 2))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert name in ("apgd-ce", "square") or not torch.equal(first, other)


@pytest.mark.parametrize("name", ["fgsm", "pgd-10"])
@pytest.mark.parametrize("norm", base.NORMS)
def test_a_sample_does_not_depend_on_its_neighbours(trained, norm, name):
    model, x, y = trained
    options = {"random_start": False} if name == "pgd-10" else {}
    run = partial(attacks.parse(name)[0].run, model, eps=0.1, norm=norm, generator=generator(), **options)
    whole = run(x[:8], y[:8])
    for size in (1, 3):
        parts = torch.cat([run(a, b) for a, b in zip(x[:8].split(size), y[:8].split(size), strict=True)])
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_parameters_keep_their_gradients_and_flags(trained):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    _, x, y = trained
    model.train()
    for name in ("pgd-2", "apgd-ce", "apgd-t", "fab-t"):
        run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
        run(model, x[:4], y[:4], eps=0.05, norm="linf", generator=generator())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and model.training
