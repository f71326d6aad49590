"""Readings of a file in a race: what is clearly behind is shown no more images, and the choice stays.

Oracle: the same choice where every reading sees every image.
"""
from dataclasses import replace

import pytest
import torch
from helpers.levels import levels, nearest_centre, settle

from pwoa_cli.checkpoints import reading as reading_of
from pwoa_cli.checkpoints import readings, witnesses
from pwoa_cli.checkpoints.normalisation import NORMALISATIONS, Normalisation
from pwoa_cli.errors import InputError
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
    assert seen["normalisation half"] == (100 if truth == "half" else 20)
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
    assert [r.words for r in readings._leading([best, fitting, behind])] == ["a", "b"]
    longer = [replace(r, hits=r.hits.repeat(5)) for r in (best, fitting, behind)]
    assert [r.words for r in readings._leading(longer)] == ["a"]


def test_the_first_reading_is_left_where_the_others_break_on_later_images(monkeypatch):
    run = readings.run

    def breaking(words, loaded, dataset, *, images, after=None, **options):
        if words != "as read" and images > 20:
            raise InputError("infinite logits", hint="-")
        return run(words, loaded, dataset, images=images, after=after, **options)

    loaded = nearest_centre(levels(), "imagenet")
    monkeypatch.setattr(readings, "run", breaking)
    tried, left = readings._raced(run("as read", loaded, levels(), images=100),
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
