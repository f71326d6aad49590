"""The parts that settle a reading is made of, each by itself: sizes, temperature, belief, better options."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pwoa_cli.checkpoints import readings
from pwoa_cli.checkpoints.reading import Reading, passes, tempered


def reading(options=None, *, right=1.0, n=200, misfit=None, classes=4, words="", loss=0.1):
    """A reading that is right on the first part of n images."""
    loaded = SimpleNamespace(arch_options=options or {}, num_classes=classes,
                             normalisation=SimpleNamespace(mean=(), std=()))
    return Reading(words or str(options), loaded, torch.arange(n) < right * n, misfit,
                   losses=torch.full((n,), loss) + 0.01 * torch.sin(torch.arange(n).double()))


def cross_entropy(logits, labels):
    """In NumPy: log sum exp minus the label's logit."""
    z = logits.astype(np.float64)
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]


def test_the_temperature_is_the_best_of_the_grid_by_a_loop():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 60)
    logits = draw.normal(size=(60, 4)) + 2 * np.eye(4)[labels]
    tried = [cross_entropy(logits / 10 ** t, labels) for t in np.linspace(-0.3, 1.5, 19)]
    best = min(tried, key=np.mean)
    found = tempered(torch.tensor(logits), torch.tensor(labels)).numpy()
    np.testing.assert_allclose(found, best, rtol=1e-5)


def test_scale_gains_nothing_down_to_half():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (300,), generator=draw)
    logits = torch.randn(300, 4, generator=draw, dtype=torch.float64)
    logits[torch.arange(300), labels] += 1
    plain = tempered(logits, labels)
    torch.testing.assert_close(tempered(10 ** 0.5 * logits, labels), plain, rtol=1e-5, atol=1e-6)
    sure = 20.0 * torch.nn.functional.one_hot(labels, 4)
    half = 10 ** -0.3  # the least temperature: what is always right still has a loss
    expected = cross_entropy((sure / half).numpy(), labels.numpy())
    np.testing.assert_allclose(tempered(sure, labels).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(("shape", "side", "size"), [
    ((1, 28, 28), 8, 8), ((1, 28, 28), 32, 32), ((1, 28, 28), 28, None), ((1, 28, 28), 64, None),
    (None, 8, None)])
def test_the_first_reading_is_one_for_images_of_their_size(monkeypatch, shape, side, size):
    monkeypatch.setattr(readings, "read_as", lambda loaded, options: options)
    loaded = SimpleNamespace(input_shape=shape, others=({"size": 32}, {"size": 8}, {"padded": True}))
    found = readings._of_their_size(loaded, SimpleNamespace(shape=(1, side, side)))
    assert found == {"size": size} if size else found is loaded


@pytest.mark.parametrize(("options", "right", "classes", "misfit", "believed"), [
    ({"pools": 2}, 0.0, 4, None, True),  # the first one's own options
    ({"pools": 3}, 0.1, 4, 0.02, True),  # batch norms are a witness
    ({"pools": 3}, 0.74, 4, None, False), ({"pools": 3}, 0.76, 4, None, True),  # three times chance
    ({"pools": 3}, 0.025, 100, None, False), ({"pools": 3}, 0.035, 100, None, True),
    ({"pools": 3}, 0.89, 2, None, False), ({"pools": 3}, 0.91, 2, None, True),  # never above 0.9
    ({"pools": 2, "activation": "silu"}, 0.94, 4, None, False),
    ({"pools": 2, "activation": "silu"}, 0.96, 4, None, True)])
def test_other_options_are_believed_where_they_are_right_often_enough(options, right, classes, misfit,
                                                                      believed):
    chosen = reading(options, right=right, classes=classes, misfit=misfit)
    assert readings._is_believed(chosen, reading({"pools": 2}, classes=classes)) == believed


def better(monkeypatch, again, even, first):
    """Words of what is left, where more images give the readings `again`, by their words."""
    ran = []

    def run(words, loaded, dataset, *, images, patience):
        ran.append(words)
        assert images == readings.MORE
        return again[words]

    monkeypatch.setattr(readings, "run", run)
    return [r.words for r in readings._of_better_options(even, first, None, patience=None)], ran


def test_options_that_more_images_show_to_be_worse_are_left_out(monkeypatch):
    one, two = reading({"pools": 2}, words="one"), reading({"pools": 3}, words="two")
    again = {"one": reading({"pools": 2}, right=0.95, n=2000),
             "two": reading({"pools": 3}, right=0.7, n=2000)}
    assert better(monkeypatch, again, [one, two], one)[0] == ["one"]
    assert better(monkeypatch, again, [one, two], two)[0] == ["one"], "the first one is given up for it too"


def test_a_loss_alone_tells_others_apart_and_not_the_first(monkeypatch):
    one, two = reading({"pools": 2}, words="one"), reading({"pools": 3}, words="two")
    again = {"one": reading({"pools": 2}, n=2000, loss=0.3), "two": reading({"pools": 3}, n=2000, loss=0.1)}
    assert better(monkeypatch, again, [one, two], one)[0] == ["one", "two"], "the first is not given up"
    assert better(monkeypatch, again, [one, two], two)[0] == ["two"], "another is"
    again["two"] = reading({"pools": 3, "activation": "silu"}, n=2000, loss=0.1)
    assert better(monkeypatch, again, [one, two], two)[0] == ["one", "two"], "not for another activation"


def test_readings_of_the_same_options_are_not_tried_again(monkeypatch):
    one, two = reading({"pools": 2}, words="one"), reading({"pools": 2}, words="two")
    assert better(monkeypatch, {}, [one, two], one) == (["one", "two"], [])


@pytest.mark.parametrize(("side", "attacked", "largest"), [
    (28, False, 100), (224, False, 100), (448, False, 25), (10_000, False, 1), (28, True, 100),
    (224, True, 25)])
def test_large_images_go_through_a_network_a_few_at_a_time(side, attacked, largest):
    dataset = SimpleNamespace(shape=(3, side, side))
    parts = passes(torch.arange(500), dataset, attacked=attacked)
    assert max(map(len, parts)) == largest and torch.equal(torch.cat(parts), torch.arange(500))
