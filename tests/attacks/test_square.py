"""Square against pyautoattack's own, and the part of a pass that a window needs against the whole pass."""
import copy

import pytest
import torch
from helpers.odd_networks import Plant, Several, Viewed, images, pooled, with_statistics
from helpers.small_models import images as labelled
from helpers.small_models import learn, lenet, resnet
from pyautoattack.square import SquareAttack
from torch import nn

from pwoa_cli.attacks import square
from pwoa_cli.attacks.bounded import Bounded
from pwoa_cli.attacks.quick import quick
from pwoa_cli.networks.build import Normalized


def overlapping():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
                         nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


def strided_pool():
    """A pool with gaps, and a border of the inputs that no output reads."""
    return nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, 3),
                         nn.Conv2d(4, 3, 3, padding=2), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(3 * 3 * 3, 5))


CHAINS = {  # name: (network, channels, side)
    "lenet": (lenet, 1, 8),
    "5x5, batch norm, overlapping pool, 3 channels": (pooled, 3, 24),
    "no pool between, odd sides": (overlapping, 1, 15),
    "pool with gaps": (strided_pool, 1, 15),
    "no pool": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                                      nn.Linear(12, 4)), 2, 7),
    "no head but one": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(8), nn.Flatten()),
                        1, 8),
    "normalised": (lambda: Normalized(lenet(), [0.3], [0.2], num_classes=4), 1, 8),
    "normalised, 3 channels": (lambda: Normalized(pooled(), [0.3, 0.4, 0.5], [0.2, 0.1, 0.3], num_classes=5),
                               3, 24),
}


def made(make, channels, side, *, n=7):
    """(model, its quick copy, points) in float64."""
    torch.manual_seed(0)
    model, x = make().double().eval(), images(n, channels, side)
    ready = quick(model, x)
    assert ready is not model
    return model, ready, x


@pytest.mark.parametrize("way", ["windowed", "whole"])
@pytest.mark.parametrize("kind", CHAINS)
def test_windows_give_the_logits_of_the_whole_pass(kind, way):
    model, ready, best = made(*CHAINS[kind])
    n, channels, side, _ = best.shape
    answer = square.Windowed.of(ready, best) if way == "windowed" else square.Whole(ready)
    answer.keep(best)
    draw = torch.Generator().manual_seed(2)
    changed = 0
    for turn in range(90):
        size = (1, side, int(torch.randint(1, side + 1, (1,), generator=draw)))[turn % 3]
        top, left = (int(torch.randint(0, side - size + 1, (1,), generator=draw)) for _ in range(2))
        rows = (torch.rand(n, generator=draw) < 0.5).nonzero().flatten()
        if not len(rows):
            continue
        patch = torch.rand(len(rows), channels, size, size, generator=draw, dtype=torch.float64)
        points = best[rows]
        points[:, :, top:top + size, left:left + size] = patch
        with torch.no_grad():
            logits, found = answer.logits(rows, patch, ((top, top + size), (left, left + size)))
            torch.testing.assert_close(logits, model(points), atol=1e-11, rtol=1e-11)
        better = torch.rand(len(rows), generator=draw) < 0.5
        answer.accept(rows, found, better)
        best[rows[better]] = points[better]
        changed += int(better.sum())
    assert changed > 60


NO_CHAINS = {
    "residual": (lambda: with_statistics(resnet()), 3, 8),
    "functions": (Viewed, 2, 12),
    "several outputs": (lambda: Normalized(Several(), [0.5, 0.5], [0.2, 0.2], num_classes=5), 2, 12),
    "stride": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Flatten(), nn.Linear(144, 5)), 1, 13),
    "two pools": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.MaxPool2d(2),
                                        nn.Flatten()), 1, 8),
    "no convolution": (lambda: Plant(None), 1, 8),
}


@pytest.mark.parametrize("kind", NO_CHAINS)
def test_other_networks_take_whole_passes(kind):
    _, ready, x = made(*NO_CHAINS[kind])
    assert square.Windowed.of(ready, x) is None


@pytest.mark.parametrize("name,stages", [("conv1", None), ("pool1", 1), ("conv2", 1), ("linear1", 2)])
def test_a_layer_with_a_hook_sees_whole_maps_only(name, stages):
    x, model, shapes = images(4, 1, 8, torch.float32), lenet(), []
    model.get_submodule(name).register_forward_hook(lambda _, args, __: shapes.append(args[0].shape[1:]))
    ready = quick(model, x)
    answer = square.Windowed.of(ready, x)
    assert answer is None if stages is None else len(answer.stages) == stages
    if answer:
        answer.keep(x)
        shapes.clear()
        whole = answer.logits(torch.tensor([1, 2]), x[:2, :, :1, :1], ((3, 4), (5, 6)))[0]
        assert whole.shape == (2, 4) and len(shapes) == 1
        ready(x)
        assert shapes[0] == shapes[1]


def test_a_model_that_is_not_traced_takes_whole_passes():
    x = images(4, 1, 8, torch.float32)
    assert square.Windowed.of(lenet(), x) is None


def test_memory_bounds_the_maps(monkeypatch):
    _, ready, x = made(*CHAINS["lenet"])
    assert square.Windowed.of(Bounded(ready, 7), x) and square.Windowed.of(Bounded(ready, 6), x) is None
    one = square.Windowed.of(ready, x)
    one.keep(x)
    needed = sum(part.nbytes for part in one.maps)
    monkeypatch.setattr(square, "MAP_BYTES", needed)
    assert square.Windowed.of(ready, x)
    monkeypatch.setattr(square, "MAP_BYTES", needed - 1)
    assert square.Windowed.of(ready, x) is None


# --- the attack ---------------------------------------------------------------


def attack(kind, model, *, norm="Linf", eps=0.12, queries):
    return kind(model, p_init=0.8, n_queries=queries, n_restarts=1, resc_schedule=False, eps=eps, norm=norm,
                device="cpu")


def trained(channels):
    x, y = labelled(20, channels=channels, seed=3)
    model = learn(lenet() if channels == 1 else resnet(), channels=channels)
    return model.requires_grad_(False), torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.tensor(y)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["chain", "normalised", "bounded", "residual"])
def test_square_finds_the_points_of_the_reference(kind, seed):
    model, x, y = trained(3 if kind == "residual" else 1)
    if kind == "normalised":
        inner = copy.deepcopy(model)
        inner.conv1.weight.mul_(0.5)
        model = Normalized(inner, [0.0], [0.5], num_classes=4)
    ready = quick(Bounded(model, 6) if kind == "bounded" else model, x)
    assert (square.Windowed.of(ready, x) is not None) == (kind in ("chain", "normalised"))
    eps, n = (0.22, 60) if kind == "residual" else (0.16, 200)
    points, queries = [], []
    with torch.random.fork_rng(()), torch.no_grad():
        for way, net in ((square.Square, ready), (SquareAttack, model)):
            torch.manual_seed(seed)
            one = attack(way, net, eps=eps, queries=n)
            one.init_hyperparam(x)
            paid, best = one.attack_single_run(x, y)
            points.append(best)
            queries.append(paid)
        ours, theirs = (model(p).argmax(1) != y for p in points)
    torch.testing.assert_close(*points, atol=1e-5, rtol=0)
    assert torch.equal(ours, theirs) and 0 < ours.sum() < len(x)
    assert (queries[0] <= queries[1]).all() and queries[0].sum() < queries[1].sum()


def test_every_query_that_is_counted_is_an_image_that_passes_the_model():
    model, x, y = trained(1)
    passed = []
    model.register_forward_hook(lambda _, args, __: passed.append(len(args[0])))
    with torch.random.fork_rng(()), torch.no_grad():
        torch.manual_seed(0)
        queries, _ = attack(square.Square, model, eps=0.02, queries=100).attack_single_run(x, y)
    assert passed[:4] == [8, 8, 1, 20]  # `steady`, then the start
    assert sum(passed[4:]) == queries.sum() - 20
    assert queries.sum() < 20 * 100  # some were not needed


@pytest.mark.parametrize("norm,fault", [("L2", None), ("Linf", "noise"), ("Linf", "batch")])
def test_the_reference_runs_as_it_is(norm, fault):
    torch.manual_seed(0)
    model, x = Plant(fault).eval(), images(6, 1, 8, torch.float32)
    answers = []
    with torch.random.fork_rng(()), torch.no_grad():
        y = model(x).argmax(1)
        for way in (square.Square, SquareAttack):
            run = attack(way, model, norm=norm, eps=0.05 if norm == "Linf" else 0.5, queries=30)
            answers.append(run.perturb(x, y))
    assert torch.equal(*answers) and not torch.equal(answers[0], x)
