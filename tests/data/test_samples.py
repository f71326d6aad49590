"""Stratified samples: exact, fair in any first part, the same for everyone with the seed."""
import pytest
import torch

from pwoa_cli.data.dataset import Split, drawn
from pwoa_cli.data.pictures import ImageFiles
from pwoa_cli.data.samples import stratified, without_samples
from pwoa_cli.errors import InputError
from pwoa_cli.machine.seeds import epoch_order


@pytest.mark.parametrize("n", [1, 2, 7, 10, 33, 99, 100])
def test_stratified_is_proportional_exact_and_deterministic(n):
    labels = torch.tensor([0] * 50 + [1] * 30 + [3] * 17 + [4] * 3)[epoch_order(100, seed=0, epoch=0)]
    chosen = stratified(labels, n, seed=1)
    assert len(chosen) == n == len(chosen.unique())
    share = torch.bincount(labels) * n / 100
    assert ((torch.bincount(labels[chosen], minlength=5) - share).abs() < 1).all()
    assert torch.equal(chosen, stratified(labels, n, seed=1))


def test_any_first_part_of_a_sample_is_fair_whatever_the_order_of_the_file():
    # class by class; halves of the file
    labels, halves = torch.arange(10).repeat_interleave(100), torch.arange(1000) < 500
    first = stratified(labels, 600, seed=0)[:200]
    assert (torch.bincount(labels[first], minlength=10) > 8).all() and 80 < halves[first].sum() < 120


@pytest.mark.parametrize(("classes", "each", "n"), [(1000, 5, 100), (1000, 5, 1500), (10, 100, 5)])
def test_which_classes_get_one_more_is_drawn(classes, each, n):
    """It was the first ones under every seed: 100 samples of ImageNet were of its first 100 classes."""
    labels = torch.arange(classes).repeat_interleave(each)
    seen = [torch.bincount(labels[stratified(labels, n, seed=seed)], minlength=classes) for seed in range(40)]
    mean = torch.stack(seen).double().mean(0)
    first, last = mean[:classes // 2].mean(), mean[classes // 2:].mean()
    assert abs(float(first - last)) < 0.25 * n / classes and (mean - n / classes).abs().max() < 0.5
    assert all(int((counts - n // classes).max()) <= 1 for counts in seen)
    assert all(without_samples(labels, n, seed=seed) == int((counts == 0).sum())
               for seed, counts in enumerate(seen))


def test_no_class_without_samples_where_there_is_none():
    assert without_samples(torch.tensor([0, 0, 3, 3]), 4, seed=0) == 0
    assert without_samples(torch.tensor([0, 0, 3, 3]), 1, seed=0) == 1


def test_stratified_depends_on_the_seed_and_refuses_too_many():
    labels = torch.arange(100) % 10
    assert not torch.equal(stratified(labels, 50, seed=0), stratified(labels, 50, seed=1))
    with pytest.raises(InputError, match="101 samples were asked for, but the data has 100"):
        stratified(labels, 101, seed=0)
    with pytest.raises(InputError, match=r"expected 1\.\.100"):
        stratified(labels, 0, seed=0)


def test_a_part_of_a_split_has_its_images_and_labels():
    images, labels = torch.randint(0, 256, (9, 1, 2, 2), dtype=torch.uint8), torch.arange(9)
    index = torch.tensor([7, 0, 3])
    part = Split(images, labels).part(index)
    x, y = part.batch(torch.arange(3))
    assert torch.equal(x, images[index].float() / 255) and y.tolist() == [7, 0, 3] and len(part) == 3


def test_a_part_of_picture_files_decodes_none():
    files = ImageFiles(tuple(f"absent{i}.png" for i in range(9)), (2, 2), "L")
    part = Split(files, torch.arange(9)).part(torch.tensor([7, 0]))
    assert part.images.paths == ("absent7.png", "absent0.png") and part.labels.tolist() == [7, 0]


@pytest.mark.parametrize("classes", [2, 4, 10])
@pytest.mark.parametrize("count", [500, 600, 1000, 50_000])
def test_images_that_a_model_is_tried_on_are_of_all_classes_also_where_classes_take_turns(count, classes):
    """At even distances half of the classes were left out of 500 of 1000, and a reading that always gives one
    class could be right on the first 20."""
    index = drawn(count, 500)
    assert len(index.unique()) == 500 and torch.equal(index[:20], drawn(count, 20))
    for labels in (torch.arange(count) % classes, torch.arange(count) * classes // count):
        for first, most in ((20, 1.6 / classes + 0.2), (100, 1.5 / classes + 0.05), (500, 1.3 / classes)):
            share = labels[index[:first]].bincount(minlength=classes).max().item() / first
            assert share <= most, (first, share)


def test_of_fewer_images_all_are_drawn():
    assert sorted(drawn(7, 500).tolist()) == list(range(7))
