"""Class numbers: of folders by order, map or synset; of labels that count from 1 or name some classes."""
import json

import numpy as np
import pytest
import torch
from helpers.data_files import pixels, write_npz
from PIL import Image

from pwoa_cli.data import datasets
from pwoa_cli.data.choices import Choices, of_report
from pwoa_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("nowhere")


def folder(path, names, splits=("train", "val")):
    """One picture a class, of a shade that is the position of its name."""
    for split in splits:
        for shade, name in enumerate(names):
            (path / split / name).mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path / split / name / "0.png")
    return str(path)


def numbers(data, names, **options):
    """Class number of each name."""
    split = datasets.load(data, **options).test
    x, y = split.batch(torch.arange(len(split)))
    shades = (x[:, 0, 0, 0] * 255).round().int().tolist()
    return {names[shade]: label for shade, label in zip(shades, y.tolist(), strict=True)}


def test_folders_that_are_numbers(nowhere):
    names = [str(n) for n in range(12)]
    data = folder(nowhere / "d", names)
    text = {name: number for number, name in enumerate(sorted(names))}
    assert numbers(data, names) == text == numbers(data, names, choices=Choices(class_order="text"))
    assert numbers(data, names, choices=Choices(class_order="number")) == {name: int(name) for name in names}
    loaded = datasets.load(data)
    assert loaded.notes == ("folders that are numbers are classes in the order of text: 0, 1, 10, 11, ...",)
    other = loaded.in_other_order()
    assert other.test.labels.tolist() == [int(name) for name in sorted(names)]
    assert datasets.load(folder(nowhere / "e", ["00", "01", "10"])).reordered is None  # no question
    with pytest.raises(InputError, match="folders that are no numbers, such as cat"):
        datasets.load(folder(nowhere / "f", ["1", "cat"]), choices=Choices(class_order="number"))


MAPS = {"json": json.dumps({"cat": 5, "dog": 2, "eel": 0}), "csv": "folder,class\ncat,5\ndog,2\neel,0\n",
        "text": "# mine\ncat 5\ndog\t2\n\neel 0", "semicolons": "cat;5\ndog;2", "bom": "\ufeffcat,5\ndog,2"}


@pytest.mark.parametrize("kind", MAPS)
def test_a_class_map_says_what_the_folders_are(nowhere, kind):
    names, file = ["cat", "dog"], nowhere / "map.txt"
    file.write_text(MAPS[kind], encoding="utf-8")
    data, choices = folder(nowhere / "d", names), Choices(class_map=str(file))
    assert numbers(data, names, classes=6, choices=choices) == {"cat": 5, "dog": 2}
    loaded = datasets.load(data, classes=6, choices=choices)
    assert loaded.num_classes == 6 and loaded.present == (2, 5)
    assert any("2 of 6 classes; accuracy is over all 6 logits" in note for note in loaded.notes)


def test_a_class_map_may_name_splits_with_other_classes(nowhere):
    (nowhere / "map.txt").write_text("cat 0\ndog 1\neel 2")
    folder(nowhere / "d", ["cat", "dog"], splits=["train"])
    data = folder(nowhere / "d", ["dog", "eel"], splits=["val"])
    loaded = datasets.load(data, classes=3, choices=Choices(class_map=str(nowhere / "map.txt")))
    assert loaded.train.labels.tolist() == [0, 1] and loaded.test.labels.tolist() == [1, 2]


@pytest.mark.parametrize("text, message", [
    ("cat 5", "does not name 1 of the 2 folders of .*: dog"),
    ("cat 5\ndog 6", "dog is class 6, but the model has 6"),
    ("cat five\ndog 2\ncat x", "line 3: 'x' is no class number"),
    ("cat,1,2", "line 1: 3 columns, expected 2"),
    ("{", "cannot be read as class numbers"), ("[" * 9999, "is no class number|expected 2"),
    ('{"a": [' * 2000, "nested too deep"), ('{"a": ' + "9" * 5000 + "}", "cannot be read as class numbers"),
    ("cat " + "9" * 5000, "is no class number"), ("", "names no folder"),
    ("cat 1\ncat 2", "cat is both 1 and 2"),
    ('{"cat": "a"}', "'a' is no class number"), ('{"cat": 1.5}', "'1.5' is no class number")])
def test_a_bad_class_map_is_named(nowhere, text, message):
    (nowhere / "map.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        datasets.load(folder(nowhere / "d", ["cat", "dog"]), classes=6,
                      choices=Choices(class_map=str(nowhere / "map.txt")))


def test_synsets_are_numbered_as_in_imagenet(nowhere):
    names = ["n01440764", "n02102040", "n03888257"]  # tench, English springer, parachute: 0, 217, 701
    data = folder(nowhere / "nette", names)
    assert numbers(data, names, classes=1000) == dict(zip(names, (0, 217, 701), strict=True))
    with pytest.raises(InputError, match="--class-order text has nothing to order: .*by ImageNet's synsets"):
        datasets.load(data, classes=1000, choices=Choices(class_order="text"))
    with pytest.raises(InputError, match="3 class folders, the model has 10 classes") as error:
        datasets.load(data, classes=10)
    assert "--class-map FILE" in error.value.hint


def test_some_classes_of_the_model_keep_their_numbers_in_an_npz(nowhere):
    labels = np.array([1, 3] * 4, np.uint8)
    path = write_npz(nowhere / "some.npz", x_train=None, y_train=None, y_test=labels)
    loaded = datasets.load(str(path), classes=6)
    assert (loaded.num_classes, loaded.present, loaded.test.labels.tolist()) == (6, (1, 3), labels.tolist())
    assert datasets.load(str(path), classes=2).num_classes == 4  # for the model's error to name


def test_labels_from_1(nowhere):
    path = str(write_npz(nowhere / "one.npz", y_train=np.arange(12) % 4 + 1, y_test=np.arange(8) % 4 + 1))
    with pytest.raises(InputError, match="labels run from 1 to 4, the model's 4 classes are 0 to 3") as error:
        datasets.load(path, classes=4)
    assert error.value.hint.endswith("--labels-from 1")
    loaded = datasets.load(path, classes=4, choices=Choices(labels_from=1))
    assert (loaded.num_classes, loaded.test.labels.tolist()) == (4, [0, 1, 2, 3, 0, 1, 2, 3])
    zero = str(write_npz(nowhere / "zero.npz"))
    with pytest.raises(InputError, match="--labels-from 1, but .*zero.npz holds the label 0"):
        datasets.load(zero, classes=10, choices=Choices(labels_from=1))


@pytest.mark.parametrize("shape", [(12, 13, 6, 5), (12, 6, 5, 13), (12, 6, 5, 4)])
def test_arrays_of_the_networks_channels(nowhere, shape):
    channels = 4 if 4 in shape else 13
    x = pixels(*shape)
    loaded = datasets.load(str(write_npz(nowhere / "many.npz", x_train=x, x_test=x[:8])), channels=channels)
    assert loaded.shape == (channels, 6, 5)
    first = x if shape[1] == 13 else x.transpose(0, 3, 1, 2)
    assert np.array_equal(loaded.test.images.numpy(), first[:8])


@pytest.mark.parametrize("own, wanted", [(1, 3), (3, 1)])
def test_arrays_get_the_channels_of_the_network(nowhere, own, wanted):
    x = pixels(8, 6, 5, own)
    loaded = datasets.load(str(write_npz(nowhere / "x.npz", x_train=None, y_train=None, x_test=x)),
                           channels=wanted)
    mode = {1: "L", 3: "RGB"}[wanted]
    oracle = [np.asarray(Image.fromarray(im.squeeze()).convert(mode)).reshape(6, 5, -1) for im in x]
    assert np.abs(np.stack(oracle).transpose(0, 3, 1, 2) - loaded.test.batch(
        torch.arange(8))[0].numpy() * 255).max() <= (1.01 if wanted == 1 else 1e-4)
    assert any(f"as the network takes {wanted}" in note for note in loaded.notes)


def test_multi_hot_labels_are_not_called_one_hot(nowhere):
    several = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]] * 3, np.uint8)
    with pytest.raises(InputError, match="it is not one-hot: rows hold 0 to 2 classes") as error:
        datasets.load(str(write_npz(nowhere / "m.npz", y_train=several)))
    assert "argmax" not in error.value.hint
    with pytest.raises(InputError) as error:
        datasets.load(str(write_npz(nowhere / "o.npz", y_train=np.eye(12, dtype=np.uint8))))
    assert "argmax" in error.value.hint


def test_choices_survive_a_report():
    for choices in (Choices(), Choices((8, 9), "map.txt", "number", 1)):
        assert of_report(json.loads(json.dumps(choices.said()))) == choices


def test_choices_win_over_earlier_ones_one_by_one():
    earlier = Choices(class_map="map.txt", labels_from=1)
    assert Choices(class_map="other.txt", logits="data").over(earlier) == Choices(
        class_map="other.txt", labels_from=1, logits="data")


@pytest.mark.parametrize("choices", [Choices(image_size=(8, 8)), Choices(class_map="m"),
                                     Choices(class_order="text")])
def test_choices_about_folders_are_refused_for_arrays(nowhere, choices):
    with pytest.raises(InputError, match="is for folders of pictures; .*holds arrays"):
        datasets.load(str(write_npz(nowhere / "x.npz")), choices=choices)
