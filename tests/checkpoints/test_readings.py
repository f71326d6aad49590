"""What a file leaves open, settled on labelled images.

Oracle: networks whose right reading is known, as they were made so.
"""
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import small_models as small
from helpers.levels import levels, nearest_centre, settle
from torch import nn

from pwoa_cli import progress
from pwoa_cli.checkpoints import reading as reading_of
from pwoa_cli.checkpoints import readings, witnesses
from pwoa_cli.checkpoints.batch_norms import Statistics, crops, first_misfit
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.checkpoints.normalisation import NORMALISATIONS
from pwoa_cli.data import datasets
from pwoa_cli.data.dataset import drawn
from pwoa_cli.networks.families.resnet import CifarResNet
from pwoa_cli.workflows import info


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("truth", ["cifar10", "cifar10-old", "imagenet", "half"])
def test_the_normalisation_that_a_network_was_made_with_is_found(truth):
    dataset = levels()
    reading, said = settle(nearest_centre(dataset, truth), dataset)
    assert reading.words == f"normalisation {truth}" and reading.accuracy > 0.95
    assert reading.loaded.mean == NORMALISATIONS[truth][0]
    assert reading.loaded.normalisation.said_by == "nobody"
    assert f"\nread as normalisation {truth}: " in said and "as read " in said
    x, y = dataset.train.batch(torch.arange(500))
    with torch.no_grad():
        assert (reading.loaded.model(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize("name", ["cifar100", "svhn"])
@pytest.mark.parametrize("truth", ["own", "cifar10", "cifar10-old", "imagenet"])
def test_colour_sets_are_tried_with_the_statistics_of_cifar10_too(name, truth):
    """Much code for them keeps those of CIFAR-10; their own are still told from them."""
    dataset, truth = levels(name), name if truth == "own" else truth
    reading, _ = settle(nearest_centre(dataset, truth), dataset)
    assert reading.words == f"normalisation {truth}" and reading.accuracy > 0.95


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_grey_set_in_three_channels_is_tried_with_its_own_statistics(name):
    dataset = levels(name)
    reading, _ = settle(nearest_centre(dataset, name), dataset)
    assert reading.words == f"normalisation {name}" and reading.accuracy > 0.95
    assert reading.loaded.mean == NORMALISATIONS[name][0], "one number for all channels"


@pytest.mark.parametrize(("name", "channels", "tried"), [
    ("cifar10", 3, {"cifar10", "cifar10-old", "imagenet", "half"}),
    ("cifar100", 3, {"cifar100", "cifar10", "cifar10-old", "imagenet", "half"}),
    ("svhn", 3, {"svhn", "cifar10", "cifar10-old", "imagenet", "half"}),
    ("mnist", 1, {"mnist", "half"}), ("fashion-mnist", 1, {"fashion-mnist", "mnist", "half"}),
    ("mnist", 3, {"mnist", "cifar10", "cifar10-old", "imagenet", "half"}),
    ("mine", 3, {"cifar10", "cifar10-old", "cifar100", "svhn", "imagenet", "half"}),
    ("mine", 1, {"mnist", "fashion-mnist", "half"})])
def test_normalisations_that_are_tried_with_a_set(name, channels, tried):
    assert set(readings._names(replace(levels(name), shape=(channels, 8, 8)))) == tried


def test_relatives_that_nothing_tells_apart_are_not_chosen_between():
    """CIFAR-100's and CIFAR-10's statistics differ by less than what a network without batch norms shows."""
    dataset = levels("cifar100", step=60)
    with pytest.raises(readings.Undecided, match="normalisation cifar100 100.0%") as caught:
        settle(nearest_centre(dataset, "cifar10", norm=False), dataset)
    assert "normalisation cifar10 " in caught.value.message


def test_statistics_of_batch_norm_tell_what_accuracy_cannot():
    dataset = levels(step=60)  # so far apart that similar normalisations are right equally often
    reading, said = settle(nearest_centre(dataset, "imagenet"), dataset)
    assert reading.words == "normalisation imagenet"
    assert re.search(r"normalisation cifar10 (9\d|100)\.\d% of 100 \(misfit", said), "as right as the truth"


@pytest.mark.parametrize("truth", ["cifar10", "cifar10-old", "imagenet"])
def test_a_network_trained_on_crops_padded_with_black_is_told_by_its_first_batch_norm(truth):
    """Its statistics are of darker images than those that are shown, so the wrong normalisation fits them as
    well."""
    dataset, draw = levels(step=60), torch.Generator().manual_seed(1)
    reading, said = settle(nearest_centre(dataset, truth, seen=lambda x: crops(x, draw)), dataset)
    assert reading.words == f"normalisation {truth}" and "times better" in said
    batch = dataset.train.batch(drawn(600, 500))[0]
    with Statistics(reading.loaded.model) as plain, torch.no_grad():
        reading.loaded.model(batch)
    assert first_misfit(reading.loaded.model, [batch]) < plain.misfit() / 5
    assert first_misfit(nn.Flatten(), [batch]) is None, "without batch norms"


@pytest.mark.parametrize("truth", ["none", "imagenet"])
def test_a_network_without_batch_norm_is_read_as_it_is_robust(truth):
    """Classes that lie 60 of 255 apart hold within 24 of 255 where the centres are right, and fall where they
    are off."""
    dataset = replace(levels(step=60), threat=("linf", 24 / 255))
    reading, said = settle(nearest_centre(dataset, truth, norm=False), dataset)
    assert reading.words == ("as read" if truth == "none" else f"normalisation {truth}")
    if truth == "imagenet":  # accuracy tells nothing of its relatives
        assert "% under attack)" in said and reading.attacked.double().mean() > 0.9
        assert "readings that accuracy does not tell apart\n" in said  # before they are attacked


def test_crops_move_each_image_and_are_black_where_it_left():
    x = torch.ones(64, 1, 16, 16)
    moved = crops(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape and set(moved.unique().tolist()) == {0.0, 1.0}
    rows = moved[:, 0].amax(2)
    left = (1 - rows).sum(1)  # black rows of each
    assert left.min() == 0 and left.max() == 2, "up to an eighth of the side"
    assert torch.equal(crops(x[..., :7, :7], torch.Generator()), x[..., :7, :7]), "no room to move"


def test_what_few_images_are_right_under_is_not_called_confirmed():
    dataset = levels(step=60)
    loaded = nearest_centre(dataset, "none")
    labels = dataset.train.labels.clone()
    labels[torch.arange(len(labels)) % 5 > 1] += 1  # 3 of 5 are wrong whatever the reading
    split = datasets.Split(dataset.train.images, labels % 4)
    reading, said = settle(loaded, replace(dataset, train=split, test=split))
    assert reading.accuracy < 0.5 and "confirmed" not in said and "read as it is" in said


def test_readings_that_nothing_tells_apart_are_listed_and_none_is_chosen():
    dataset = levels(step=60)
    with pytest.raises(readings.Undecided) as caught:
        settle(nearest_centre(dataset, "imagenet", norm=False), dataset)
    message = caught.value.message
    assert "normalisation imagenet 100.0%" in message and "normalisation cifar10 " in message
    assert "as read " in message and "--normalize " in caught.value.hint
    pixels, labels = dataset.train.images.permute(0, 2, 3, 1).numpy(), dataset.train.labels.numpy()
    np.savez("levels.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    made = info.describe(Source("model.pt", arch="net.py:Without"), data="levels.npz", say=lambda text: None)
    found = made["settled"]
    assert made["clean"] is None and "does not say how it is to be read" in found, "info tells what it found"


def test_the_first_reading_stays_where_no_other_is_clearly_better():
    dataset = levels()
    loaded = nearest_centre(dataset, "none")
    reading, said = settle(loaded, dataset)
    assert reading.loaded.model is loaded.model and reading.loaded.settled == said.splitlines()[1]
    assert "\nconfirmed: its first batch norm fits " in said and "next, as read 100.0% (misfit 0.00" in said
    assert reading.loaded.notes[-1] == said.splitlines()[1]


def test_what_the_user_or_the_file_says_is_not_tried_again():
    dataset = levels()
    nearest_centre(dataset, "half")
    loaded = load_model(Source("model.pt", arch="net.py:Net", mean=(), std=()))
    reading, said = settle(loaded, dataset)
    assert reading.loaded is loaded and not said and reading.accuracy < 0.5


@pytest.mark.parametrize(("truth", "stated", "words"), [
    ("cifar10", "cifar10", "as read"), ("imagenet", "imagenet", "as read"),
    ("none", "cifar10", "normalisation none"), ("imagenet", "half", "normalisation imagenet")])
def test_what_stands_beside_the_weights_is_read_first_and_images_may_know_better(truth, stated, words):
    """Settings may be of a step of training that did not use them."""
    dataset = levels()
    nearest_centre(dataset, truth)
    mean, std = map(list, NORMALISATIONS[stated])
    torch.save({"state_dict": torch.load("model.pt"), "args": {"mean": mean, "std": std}}, "model.pt")
    loaded = load_model(Source("model.pt", arch="net.py:Net"))
    assert loaded.normalisation.said_by == "settings" and list(loaded.mean) == mean
    reading, said = settle(loaded, dataset)
    assert (reading.loaded.mean or ()) == NORMALISATIONS[truth][0] and reading.accuracy > 0.95
    assert reading.words == words, said


def test_options_that_the_keys_allow_are_tried():
    torch.manual_seed(0)
    net = small.learn(CifarResNet(blocks=(1, 1, 1), widths=(4, 8, 16), shortcut="pad-end", num_classes=4),
                      channels=3)
    small.save(net, "model.pt")
    loaded = load_model("model.pt")
    assert loaded.arch_options["shortcut"] == "pad" and loaded.others == ({"shortcut": "pad-end"},)
    images, labels = small.images(400, channels=3, seed=3)
    split = datasets.Split(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels))
    reading, said = settle(loaded, datasets.Dataset("own", split, split, 4, (3, 8, 8), "none", None, "made"))
    assert reading.loaded.arch_options["shortcut"] == "pad-end" and "read as shortcut=pad-end" in said
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(reading.loaded.model(x), net(x))


def clearly_slow(better, worse):
    """McNemar's statistic (b - c) / sqrt(b + c) > 3, counted one by one."""
    b = sum(x and not y for x, y in zip(better, worse, strict=True))
    c = sum(y and not x for x, y in zip(better, worse, strict=True))
    return b + c > 0 and (b - c) / (b + c) ** 0.5 > 3


def test_clearly_is_mcnemar_s_test():
    for p in (0.0, 0.02, 0.1, 0.3):
        better = torch.rand(500) < 0.8
        worse = better & (torch.rand(500) > p)
        assert witnesses.is_clearly_better(better, worse) == clearly_slow(better.tolist(), worse.tolist())
        assert not witnesses.is_clearly_better(worse, better)


def test_misfit_is_the_divergence_of_two_gaussians():
    dataset = levels()
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 4)).eval()
    model[0].running_mean[:] = torch.tensor([0.1, 0.2, 0.3])
    model[0].running_var[:] = torch.tensor([0.5, 1.0, 2.0])
    index = torch.linspace(0, 599, 500).long()
    x = dataset.train.batch(index)[0]
    batch = torch.distributions.Normal(x.mean((0, 2, 3)), x.std((0, 2, 3)))
    stored = torch.distributions.Normal(model[0].running_mean, model[0].running_var.sqrt())
    expected = torch.distributions.kl_divergence(batch, stored).mean().item()
    assert misfit(model, dataset) == pytest.approx(expected, rel=1e-4)
    assert misfit(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), dataset) is None
    model.unused = nn.BatchNorm2d(3)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    assert misfit(model, dataset) == pytest.approx(expected, rel=1e-4), "only those that run"
    twice = nn.Sequential(model[0], nn.AvgPool2d(2), model[0], nn.Flatten(), nn.Linear(48, 4))
    assert misfit(twice, dataset) < 10


def misfit(model, dataset):
    with Statistics(model) as statistics, torch.no_grad():
        for part in torch.linspace(0, 599, 500).long().split(100):
            model(dataset.train.batch(part)[0])
    return statistics.misfit()


OUTPUTS = """
from collections import namedtuple
import torch
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 4))
    def forward(self, x):
        logits = super().forward(x)
        return {body}
"""


@pytest.mark.parametrize(("body", "said"), [
    ("logits", None),
    ("(x.mean((2, 3)), logits)", "forward returns 0 (2, 3), 1 (2, 4); 1 is taken as the logits"),
    ("[logits, x]", "forward returns 0 (2, 4), 1 (2, 3, 8, 8); 0 is taken as the logits"),
    ("dict(loss=None, logits=logits)", "forward returns logits (2, 4); logits is taken as the logits"),
    ("logits.log_softmax(1)",
     "forward returns log-probabilities; they serve as logits, their softmax is the same"),
    ("logits.softmax(1)", "warning: forward returns probabilities, not logits"),
])
def test_what_forward_returns(body, said):
    with open("odd.py", "w") as file:
        file.write(OUTPUTS.format(body=body))
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    small.save(net, "model.pt")
    loaded = load_model(Source("model.pt", arch="odd.py:Net"))
    x = torch.rand(2, 3, 8, 8)
    notes = reading_of.outputs(loaded, x)
    assert len(notes) == (said is not None) and (not notes or notes[0].startswith(said))
    expected = (net(x).log_softmax(1) if "log_soft" in body
                else net(x).softmax(1) if "softmax" in body else net(x))
    torch.testing.assert_close(loaded.model(x), expected)


def test_readings_that_are_all_near_chance_are_not_chosen_between():
    dataset = levels()
    loaded = nearest_centre(dataset, "none")
    loaded.model.net.fc.bias.data[1] += 1e3  # always the second level, but for none
    reading, said = settle(loaded, dataset)
    assert reading.loaded is loaded and "read as" not in said and reading_of.is_near_chance(reading, 4)
    assert "as read 24.8%" in reading.tried and "normalisation half " in reading.tried


def test_statistics_that_contradict_accuracy_stop_the_choice(monkeypatch):
    """Options that are right more often on networks that learned little, under statistics that fit others:
    measured on WideResNets."""
    dataset = levels()
    loaded = nearest_centre(dataset, "none")
    said = replace(loaded.normalisation, said_by="user")
    options = replace(loaded, normalisation=said, arch_options=loaded.arch_options | {"activation": "relu"},
                      others=({"activation": "silu"},))

    def chosen(loaded, words, misfits):
        """The words of the reading that is taken where that of `words` is right and the first one is not."""
        def run(what, reading, dataset, *, images=reading_of.PROBE, patience=None, after=None):
            right = torch.full((images,), what == words)
            return reading_of.Reading(what, reading, right, misfits.get(what), misfits.get(what))

        monkeypatch.setattr(readings, "run", run)
        return settle(loaded, dataset)[0].words

    with pytest.raises(readings.Undecided, match="its batch norms' statistics fit another reading"):
        chosen(options, "activation=silu", {"as read": 0.069, "activation=silu": 0.104})
    assert chosen(options, "activation=silu", {"as read": 0.2, "activation=silu": 0.104}) == "activation=silu"
    half = "normalisation half"
    taken = chosen(loaded, half, {"as read": 0.069, half: 0.104})
    assert taken == half, "far better is asked for there"
    with pytest.raises(readings.Undecided, match="its batch norms' statistics fit another reading"):
        chosen(loaded, half, {"as read": 0.05, half: 0.104})


def test_the_choice_is_kept_in_the_notes_and_the_original_becomes_the_other():
    torch.manual_seed(0)
    net = small.learn(CifarResNet(blocks=(1, 1, 1), widths=(4, 8, 16), shortcut="pad-end", num_classes=4),
                      channels=3)
    small.save(net, "model.pt")
    loaded = load_model("model.pt")
    other = readings.read_as(loaded, options={"shortcut": "pad-end"})
    weights = [model.net.conv1.weight.data_ptr() for model in (other.model, loaded.model)]
    assert weights[0] == weights[1], "weights are not copied"
    assert all(p.requires_grad for p in other.model.parameters())
    assert other.others == ({"shortcut": "pad"},) and other.chosen() == "shortcut=pad-end"
    assert loaded.chosen() == "shortcut=pad"
    assert "with shortcut=pad-end from" in other.notes[0]


def test_a_reading_that_gives_no_finite_logits_is_left_out(monkeypatch):
    dataset = levels()
    loaded = nearest_centre(dataset, "none")
    monkeypatch.setitem(readings.NORMALISATIONS, "half", ((0.5,), (1e-38,)))
    reading, said = settle(loaded, dataset)
    assert reading.loaded.model is loaded.model and "normalisation half" not in said and "confirmed" in said


def test_readings_that_take_long_are_not_tried_in_silence(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", itertools.count(0, 7).__next__)  # 7 s at every look
    dataset, said = levels(), []
    readings.settle(nearest_centre(dataset, "cifar10"), dataset, say=said.append)
    assert said[0] == "trying as read: 20 of 20 images"
    assert any(line.startswith("trying normalisation ") for line in said)
