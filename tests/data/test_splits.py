"""Which parts of a folder count: hidden names, splits without labels, only a test split; all of it said."""
from pathlib import Path

import pytest
from helpers.data_files import pixels, write_folder
from PIL import Image

from pwoa_cli.data import datasets
from pwoa_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("nowhere")
HIDDEN = [".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/cat/0.png", "cat/._0.png", "cat/.DS_Store",
          "cat/.ipynb_checkpoints/0.png", "Thumbs.db", "cat/__MACOSX/0.png", ".thumbnails/0.jpg"]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(8, 8, 3)).save(path)
    return path


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("split", ["train", "test"])
def test_hidden_files_and_folders_are_no_data(nowhere, split, name):
    write_folder(nowhere / "pets")
    plain = datasets.load(str(nowhere / "pets"))
    path = nowhere / "pets" / split / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    loaded = datasets.load(str(nowhere / "pets"))
    assert loaded.num_classes == 2
    assert (loaded.train.images, loaded.test.images) == (plain.train.images, plain.test.images)
    file = name.rpartition("/")[2]
    said = any(file in note and note.startswith("skipped 1 hidden") for note in loaded.notes)
    assert said == (name.startswith("cat/") and name.endswith(".png"))  # a picture of a class


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("test", ["test", "testing", "val", "valid", "validation", "VAL"])
def test_names_of_splits(nowhere, train, test):
    write_folder(nowhere / "pets", test=test)
    (nowhere / "pets/train").rename(nowhere / "pets" / train)
    loaded = datasets.load(str(nowhere / "pets"))
    assert (len(loaded.train), len(loaded.test), loaded.probe_name) == (6, 4, "training images")


@pytest.mark.parametrize("unlabelled", ["test/images/test_0.png", "test/0.png", "test/unknown/0.png"])
def test_a_split_without_labels_hides_none_with_labels(nowhere, unlabelled):
    """Tiny-ImageNet's and Kaggle's test images."""
    write_folder(nowhere / "tiny", test="val")
    picture(nowhere / "tiny" / unlabelled)
    loaded = datasets.load(str(nowhere / "tiny"))
    assert len(loaded.test) == 4 and [note.startswith("skipped test/: ") for note in loaded.notes] == [True]


def test_files_that_are_no_pictures_are_left_out_and_said(nowhere):
    write_folder(nowhere / "tiny")
    plain = datasets.load(str(nowhere / "tiny"))
    for name in ("cat_boxes.txt", "a.gif", ".DS_Store"):
        (nowhere / "tiny/train/cat" / name).write_bytes(b"0")
    loaded = datasets.load(str(nowhere / "tiny"))
    assert loaded.train.images == plain.train.images
    assert len(loaded.notes) == 1 and loaded.notes[0].startswith("skipped 2 files that are no pictures (")


def test_a_split_with_all_classes_wins_over_one_with_some(nowhere):
    write_folder(nowhere / "pets", test="val")
    picture(nowhere / "pets/test/cat/0.png")
    loaded = datasets.load(str(nowhere / "pets"))
    assert len(loaded.test) == 4 and loaded.notes == ("skipped test/: its folders (cat) are not the classes",)


def test_a_labelled_test_split_wins_over_a_labelled_validation_split(nowhere):
    write_folder(nowhere / "pets")
    for name in ("cat", "dog"):
        picture(nowhere / "pets/val" / name / "9.png")
    assert len(datasets.load(str(nowhere / "pets")).test) == 4


@pytest.mark.parametrize("where", ["pets", "pets/val"])
def test_only_test_images_are_a_data_set_to_evaluate_on(nowhere, where):
    write_folder(nowhere / "pets", test="val")
    (nowhere / "pets/train").rename(nowhere / "elsewhere")
    loaded = datasets.load(str(nowhere / where))
    assert (len(loaded.train), len(loaded.test), loaded.num_classes) == (0, 4, 2)
    assert loaded.probe is loaded.test and loaded.probe_name == "test images"
    assert any("test images" in note for note in loaded.notes)


def test_a_folder_without_test_images_is_no_data_set(nowhere):
    write_folder(nowhere / "pets")
    (nowhere / "pets/test").rename(nowhere / "elsewhere")
    with pytest.raises(InputError, match="holds no known data set, nor train/CLASS/ and test/CLASS/"):
        datasets.load(str(nowhere / "pets"))


def test_folders_of_other_things_are_no_classes(nowhere):
    for name in ("one", "two"):
        (nowhere / "work" / name).mkdir(parents=True)
        Path(nowhere / "work" / name / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="holds no known data set"):
        datasets.load(str(nowhere / "work"))
