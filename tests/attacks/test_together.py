"""Blocks searched together: every point, random number and gradient is that of the block alone."""
import threading
from functools import partial

import pytest
import torch
from helpers import attack_checks
from helpers.attack_checks import generator
from torch import nn

from pwoa_cli.attacks import autoattack, base
from pwoa_cli.attacks.together import together

SIZES = (7, 5, 1)
EPS = {"linf": 0.15, "l2": 1.5, "l1": 6.0}


class Alone(nn.Module):
    """A network whose sums do not depend on the size of the batch; passes are noted."""

    def __init__(self, classes=10):
        super().__init__()
        self.weight = torch.randn(classes, 64, generator=generator(1))
        self.inner = torch.randn(64, generator=generator(2))
        self.passes = []

    def forward(self, x):
        self.passes.append(len(x))
        hidden = (x.flatten(1) - 0.5) * self.inner
        return ((hidden + hidden.abs() / 2)[:, None] * self.weight).sum(2)


@pytest.fixture
def blocks():
    model, draw = Alone(), generator(4)
    x = [torch.rand(n, 1, 8, 8, generator=draw) for n in SIZES]
    return model, x, [model(part).argmax(1) for part in x]


def searches(name, x, y, norm):
    """A search for each block, with a seed of its own."""
    def one(seed, x, y):
        run = partial(autoattack.component, name, x, y, eps=EPS[norm], norm=norm, seed=seed, steps=8)
        return lambda asked: run(model=asked, queries=40)
    return [one(seed, *part) for seed, part in enumerate(zip(x, y, strict=True))]


@pytest.mark.parametrize("norm", base.NORMS)
@pytest.mark.parametrize("name", autoattack.STANDARD)
def test_every_block_gets_the_points_that_it_gets_alone(blocks, name, norm):
    model, x, y = blocks
    alone = [search(model) for search in searches(name, x, y, norm)]
    n_alone, model.passes = len(model.passes), []
    before = torch.get_rng_state()
    ours = together(model, searches(name, x, y, norm))
    assert all(torch.equal(*pair) for pair in zip(ours, alone, strict=True))
    assert any(not torch.equal(*pair) for pair in zip(ours, x, strict=True))
    assert len(model.passes) < n_alone and max(model.passes) == sum(SIZES)
    assert torch.equal(before, torch.get_rng_state())


def test_a_copy_is_made_once_and_asked_by_all(blocks):
    model, x, _ = blocks
    other, made = Alone(), []

    def make(whole):
        made.append(whole)
        return other

    def search(part):
        return lambda asked: asked.copied("twice", make)(part) + asked(part)

    model.passes = []
    ours = together(model, [search(part) for part in x])
    assert made == [model] and other.passes == model.passes == [sum(SIZES)]
    assert all(torch.equal(one, 2 * model(part)) for one, part in zip(ours, x, strict=True))


def test_a_trained_network_is_broken_on_the_same_samples():
    model, x, y = attack_checks.trained()
    x, y = [x[:8], x[8:20]], [y[:8], y[8:20]]
    alone, ours = ([run(model) for run in searches("apgd-ce", x, y, "linf")],
                   together(model, searches("apgd-ce", x, y, "linf")))
    for one, other, labels in zip(ours, alone, y, strict=True):
        assert torch.equal(model(one).argmax(1) == labels, model(other).argmax(1) == labels)


def test_a_failing_search_ends_all(blocks):
    model, x, y = blocks

    def fails(asked):
        asked(x[1])
        raise ValueError("no")

    n_threads = threading.active_count()
    with pytest.raises(ValueError, match="^no$"):
        together(model, [*searches("square", x, y, "linf")[:1], fails])
    assert threading.active_count() == n_threads


def test_an_interruption_ends_all_and_gives_the_generator_back(blocks):
    model, x, y = blocks
    before, n_threads = torch.get_rng_state(), threading.active_count()
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "forward", interrupted)
        together(model, searches("square", x, y, "linf"))
    assert torch.equal(before, torch.get_rng_state()) and threading.active_count() == n_threads


def interrupted(x):
    raise KeyboardInterrupt


def test_a_failing_pass_ends_all(blocks):
    _, x, y = blocks

    def model(x):
        raise RuntimeError("out of memory")

    n_threads = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        together(model, searches("square", x, y, "linf"))
    assert threading.active_count() == n_threads
