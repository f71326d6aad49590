"""Readings of a file in a race: what is clearly behind is shown no more images, and the choice stays.

Oracle: the same choice where every reading sees every image.
"""
from dataclasses import replace

import pytest
import torch
from helpers.levels import levels, nearest_centre, settle
from torch import nn

from pwoa_cli.checkpoints import reading as reading_of
from pwoa_cli.checkpoints import readings, witnesses
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.checkpoints.normalisation import NORMALISATIONS, Normalisation
from pwoa_cli.data import datasets
from pwoa_cli.data.dataset import drawn
from pwoa_cli.errors import InputError
from pwoa_cli.networks.build import Normalized
from pwoa_cli.progress import Patience


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("truth", ["none", "cifar10", "imagenet"])
@pytest.mark.parametrize("step", [40, 60])
def test_what_falls_behind_is_shown_no_more_images_and_the_choice_is_that_of_all(truth, step, monkeypatch):
    dataset, seen = levels(step=step), {}
    run = readings.run

    def counted(words, *args, **options):
        found = run(words, *args, **options)
        seen[words] = len(found.hits)
        return found

    loaded = nearest_centre(dataset, truth)
    monkeypatch.setattr(readings, "run", counted)
    raced = settle(loaded, dataset)[0]
    assert seen[raced.words] == 500, seen
    assert seen["normalisation half"] in (20, 100), "far behind"
    monkeypatch.setattr(readings, "STAGES", (500, 500, 500))
    monkeypatch.setattr(readings, "standing_out", list)
    assert settle(loaded, dataset)[0].words == raced.words


def test_a_reading_that_goes_on_is_the_one_that_saw_all_at_once():
    dataset = levels()
    loaded = nearest_centre(dataset, "imagenet")
    whole, part = reading_of.run("x", loaded, dataset), None
    for images in (20, 100, 500, 500):
        part = reading_of.run("x", loaded, dataset, images=images, after=part)
        assert len(part.hits) == images
    assert torch.equal(part.hits, whole.hits) and part.first == whole.first
    assert part.misfit == pytest.approx(whole.misfit, rel=1e-9)
    torch.testing.assert_close(part.logits, whole.logits)
    assert torch.equal(part.labels, whole.labels)


def test_what_batch_norms_speak_for_is_shown_the_second_images_too(monkeypatch):
    """Else a small misfit, uncertain after few images, could not contradict what is right more often."""
    def made(words, right, misfit):
        return reading_of.Reading(words, loaded, torch.full((20,), right), misfit, 0.1)

    loaded = nearest_centre(levels(), "none")
    best, fitting, behind = made("a", True, 0.2), made("b", False, 0.1), made("c", False, 0.3)
    assert [r.words for r in readings._leading([best, fitting, behind], best)] == ["a", "b"]
    longer = [replace(r, hits=r.hits.repeat(5)) for r in (best, fitting, behind)]
    assert [r.words for r in readings._leading(longer, best)] == ["a"]


@pytest.mark.parametrize("truth", ["none", "imagenet", "cifar10"])
def test_batch_norms_frozen_under_another_normalisation_do_not_outdo_accuracy(truth):
    """The network is right under one normalisation, its first batch norm kept statistics of another."""
    dataset = levels()
    nearest_centre(dataset, truth)
    x, _ = dataset.train.batch(torch.arange(600))
    z = Normalized(nn.Identity(), *NORMALISATIONS["half"])(x)
    state = torch.load("model.pt")
    mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3))
    state |= {"bn.running_mean": mean, "bn.running_var": variance, "bn.weight": (variance + 1e-5).sqrt(),
              "bn.bias": mean}
    torch.save(state, "model.pt")
    loaded = load_model(Source("model.pt", arch="net.py:Net"))
    if truth == "none":
        reading, _ = settle(loaded, dataset)
        assert reading.words == "as read" and reading.accuracy > 0.95
    else:
        with pytest.raises(readings.Undecided, match="does not say how it is to be read"):
            settle(loaded, dataset)


def test_from_the_second_images_on_what_stands_out_the_best_and_the_first_go_on():
    loaded = nearest_centre(levels(), "none")
    def under(m):
        return readings.read_as(loaded, normalisation=Normalisation((m,), (0.5,), "nobody"))

    made = [reading_of.Reading(words, under(m), torch.arange(100) < right, 0.1, first)
            for words, m, right, first in (("first", 0.1, 97, 5.9), ("half", 0.5, 97, 0.01),
                                           ("third", 0.4, 97, 5.8), ("best", 0.3, 98, 5.7))]
    assert [r.words for r in readings._leading(made, made[0])] == ["first", "half", "best"]
    few = [replace(r, hits=r.hits[:20]) for r in made]
    assert readings._leading(few, few[0]) == few


def test_options_that_all_break_on_more_images_are_left_as_they_are(monkeypatch):
    first = reading_of.run("as read", nearest_centre(levels(), "none"), levels())
    others = [replace(first, words=words, loaded=replace(first.loaded, arch_options={"activation": words}))
              for words in ("relu", "silu")]

    def breaking(*_, **__):
        raise InputError("infinite logits", hint="-")

    monkeypatch.setattr(readings, "run", breaking)
    assert readings._of_better_options(others, first, levels(), patience=None) == others


def test_what_saw_all_images_is_listed_before_what_saw_few():
    loaded = nearest_centre(levels(), "none")
    made = [reading_of.Reading(w, loaded, torch.ones(n) > k, None) for w, n, k in
            (("as read", 100, 0), ("x", 20, 0), ("y", 20, 0), ("b", 500, 0), ("c", 500, 2))]
    listed = readings._listed(made)
    assert [part.split(" ")[0] for part in listed.split(", ")][:3] == ["as", "b", "c"]


def test_many_that_are_even_on_few_images_all_go_on_and_then_not_more_than_can_be_tried():
    loaded = nearest_centre(levels(), "none", norm=False)
    draw = torch.Generator().manual_seed(0)
    many = [reading_of.Reading(str(i), loaded, torch.rand(100, generator=draw) < 0.6, None)
            for i in range(40)]
    few = [replace(r, hits=r.hits[:20]) for r in many]
    assert len(readings._leading(few, few[0])) > readings.FINALISTS
    left = readings._leading(many, many[0])
    assert readings.FINALISTS <= len(left) < 40


def test_a_network_that_refuses_a_later_image_is_told_as_one_that_refuses_the_first():
    """First batch norms see all images, whatever a reading was shown."""
    dataset = levels()
    loaded = nearest_centre(dataset, "none")
    images = dataset.train.images.clamp(0, 230).clone()
    images[drawn(600, 500)[150]] = 255
    forward = loaded.model.net.forward

    def refusing(x):
        if x.amax() == 1.0:
            raise ValueError("too bright")
        return forward(x)

    loaded.model.net.forward = refusing
    split = datasets.Split(images, dataset.train.labels)
    with pytest.raises(InputError, match="cannot take images .* ValueError: too bright"):
        settle(loaded, replace(dataset, train=split, test=split))


def test_options_that_break_on_more_images_are_left_out(monkeypatch):
    loaded = nearest_centre(levels(), "none")
    run = readings.run
    first = run("as read", loaded, levels())
    other = replace(first, words="other", loaded=replace(loaded, arch_options={"activation": "silu"}))

    def breaking(words, *args, **options):
        if words == "other":
            raise InputError("infinite logits", hint="-")
        return run(words, *args, **options)

    monkeypatch.setattr(readings, "run", breaking)
    assert readings._of_better_options([first, other], first, levels(), patience=None) == [first]


def test_figures_of_fewer_images_say_so():
    loaded = nearest_centre(levels(), "imagenet")
    said = settle(loaded, levels())[1]
    assert "of 20 (misfit " in said and "right on 500 training images of cifar10" in said
    assert " of 500" not in said


def test_the_first_reading_is_left_where_the_others_break_on_later_images(monkeypatch):
    run = readings.run

    def breaking(words, loaded, dataset, *, images, after=None, **options):
        if words != "as read" and images > 20:
            raise InputError("infinite logits", hint="-")
        return run(words, loaded, dataset, images=images, after=after, **options)

    loaded = nearest_centre(levels(), "imagenet")
    monkeypatch.setattr(readings, "run", breaking)
    tried, left = readings._raced(run("as read", loaded, levels(), images=20),
                                  run("as read", loaded, levels(), images=100),
                                  readings._alternatives(loaded, levels(), together=True), levels(),
                                  patience=Patience(lambda text: None))
    assert [r.words for r in left] == ["as read"] and len(left[0].hits) == 500 and len(tried) > 3


@pytest.mark.parametrize(("firsts", "left"), [
    ((0.01, 0.051, 0.2), [0]), ((0.01, 0.049, 0.2), [0, 1, 2]), ((0.01, None, 0.2), [0, 1, 2])])
def test_a_normalisation_stands_out_that_fits_five_times_better(firsts, left):
    loaded = nearest_centre(levels(), "none")
    known = [Normalisation(mean, std, "nobody") for mean, std in list(NORMALISATIONS.values())[:3]]
    tried = [reading_of.Reading(str(i), readings.read_as(loaded, normalisation=known[i]), torch.ones(20), 0.1,
                                first) for i, first in enumerate(firsts)]
    assert [int(r.words) for r in witnesses.standing_out(tried)] == left


def test_an_attack_stops_where_one_reading_stands_out(monkeypatch):
    dataset = replace(levels(), threat=("linf", 0.1))
    loaded = nearest_centre(dataset, "none")
    holds = {"all": 1.0, "most": 0.95, "half": 0.5}
    shown = dict.fromkeys(holds, 0)

    def attacked(reading, index, *rest):
        shown[reading.words] += len(index)
        now = torch.arange(len(index)) < holds[reading.words] * len(index)
        before = [] if reading.attacked is None else [reading.attacked]
        return replace(reading, attacked=torch.cat([*before, now]))

    monkeypatch.setattr(witnesses, "_attacked", attacked)
    tried, left = witnesses.under_attack([reading_of.Reading(w, loaded, torch.ones(500), None)
                                          for w in ("all", "half")], dataset)
    assert [r.words for r in left] == ["all"] and shown == {"all": 100, "most": 0, "half": 100}
    assert [len(r.attacked) for r in tried] == [100, 100]
    tried, left = witnesses.under_attack([reading_of.Reading(w, loaded, torch.ones(500), None)
                                          for w in holds], dataset)
    assert [r.words for r in left] == ["all"] and shown == {"all": 600, "most": 500, "half": 200}
