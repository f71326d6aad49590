"""Hints on data sets: names, arrays, folders of pictures, which class is which."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers import small_models as small
from helpers.data_files import write_idx
from helpers.situations import DRY, EVAL, prints, without
from pwoa_cli.data import datasets, fetching, formats, pictures

AT, FOLDERS = "data/datasets.py:", "data/classes.py:"
COLOUR = ["eval", "colour.pt", "--data", "pets", *EVAL[4:], "--dry-run"]


def at(data, words=EVAL):
    """The words of an evaluation on other data."""
    return [*words[:2], "--data", data, *words[4:]]


def write_pictures(
    folder="pets", *, names=("cat", "dog", "eel", "fox"), side=8, n=24, splits=("train", "test")
):
    """A folder of pictures that a small network of four classes learns, a folder a class; returns it."""
    pixels, labels = small.images(n, channels=3)
    for split in splits:
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            place = Path(folder) / split / names[label]
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image)
            (picture.resize((side, side)) if side != 8 else picture).save(place / f"{number}.png")
    return folder


def write_colour(classes=4):
    """A network in colour that learnt those pictures."""
    small.save(small.learn(small.resnet(num_classes=classes), channels=3), "colour.pt")


@prints(
    AT + "_resolve: A data",
    AT + "_resolve: Name",
    AT + "_unknown",
    AT + "_in_folder",
    AT + "_one_of: Say",
    AT + "_require",
    AT + "_find_or_fetch: Put",
    AT + "_find_or_fetch: If",
)
def names_of_data_sets(tool):
    tool.patch.setattr(datasets, "places", lambda: (Path("place"),))
    tool.patch.setattr(fetching, "download", _no_route)
    for text in ("minst", "absent.npz", "model.pt"):
        assert "an .npz file or an image folder" in tool.refused(*at(text))
    tool.works(*EVAL)
    Path("empty").mkdir()
    assert ".npz file or an image folder" in tool.refused(*at("empty"))
    shutil.copy("tiny.npz", "place.npz")
    both = Path("both of mine")
    write_idx(both / "MNIST" / "raw")
    write_idx(both / "FashionMNIST" / "raw")
    words = tool.refused(*at(str(both)))
    assert words == "Say which one: --data 'both of mine/mnist'"
    assert datasets.load("both of mine/mnist", download=False).name == "mnist"
    first, npz = (
        tool.refused(*at("empty/mnist"))
        .removeprefix("Expected ")
        .rstrip(".")
        .split(" and its companions there, or ")
    )
    assert (both / first).exists() or list((both / first).parent.glob("*"))
    hint = tool.refused(*at("mnist"))
    assert hint.startswith("Put it into ") and first in hint
    with tool.patch.context() as patch:
        patch.setattr(datasets, "places", lambda: (both,))
        assert datasets.load("mnist", download=False).num_classes == 10
    Path("mnist").mkdir()
    write_idx(Path("mnist/MNIST/raw"))
    hint = tool.refused(*at("mnist")).splitlines()[0]
    assert hint == "If the folder mnist holds it: --data ./mnist"
    assert datasets.load(hint.split()[-1], download=False).name == "mnist"
    (file,) = Path("mnist/MNIST/raw").glob("t10k-images*")
    hint = tool.refused(*at(str(file)))
    assert hint == "Name the folder that it lies in: --data mnist/MNIST/raw"
    assert datasets.load(hint.split()[-1], download=False).name == "mnist"
    shutil.copytree(both / "MNIST", Path("place/mnist/MNIST"))
    assert datasets.load("mnist").num_classes == 10


def _no_route(*args, **options):
    raise OSError("no route to host")


@prints(
    "data/formats.py:_unit_range",
    "data/formats.py:_channels_first",
    "data/formats.py:_labels: From",
    "data/formats.py:_labels: Robust",
    "data/formats.py:read_npz: Fetch",
    "data/formats.py:read_npz: Expected",
    "data/formats.py:_images",
    "data/formats.py:_idx",
    "data/formats.py:_cifar_batch",
    "data/formats.py:read_svhn",
    "errors.py:reading",
)
def arrays_that_are_no_images(tool):
    with np.load("tiny.npz") as file:
        arrays = dict(file)

    def refused(**changes):
        np.savez("odd.npz", **{k: v for k, v in (arrays | changes).items() if v is not None})
        return tool.refused(*at("odd.npz"))

    def works(**changes):
        np.savez("odd.npz", **(arrays | changes))
        tool.works(*at("odd.npz"))

    x, y = arrays["x_test"], arrays["y_test"]
    assert "unnormalised" in refused(x_test=x / 255 * 2 - 1)
    assert refused(x_test=x.astype(np.int16)) == "Save it as uint8."
    works(x_test=x.astype(np.uint8))
    assert "(N,C,H,W)" in refused(
        x_test=np.zeros((64, 8, 8, 2), np.uint8), x_train=np.zeros((64, 8, 8, 2), np.uint8)
    )
    works(x_test=x.transpose(0, 3, 1, 2), x_train=arrays["x_train"].transpose(0, 3, 1, 2))
    line = refused(y_test=np.eye(4, dtype=int)[y]).removeprefix("From one-hot: ").rstrip(".")
    works(y_test=eval(line, {"y": np.eye(4, dtype=int)[y]}))  # noqa: S307 (the package's own words)
    assert "one class an image" in refused(y_test=np.ones((64, 4), int))
    assert "np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)" in refused(x_test=None)
    works()
    Path("odd.npz").write_bytes(Path("tiny.npz").read_bytes()[:-99])
    tool.refused(*at("odd.npz"))
    for name, read in (
        ("train-images-idx3-ubyte", formats.read_idx),
        ("train", formats.read_cifar100),
        ("train_32x32.mat", formats.read_svhn),
    ):
        Path(name).write_bytes(b"cut")
        assert tool.raised(read, Path()) == formats.AGAIN


@prints(
    FOLDERS + "from_zero",
    FOLDERS + "check_range",
    "data/choices.py:check_for_arrays",
    "data/choices.py:check_nothing_said",
    "cli/options.py:parse: For",
)
def labels_that_count_otherwise(tool):
    with np.load("tiny.npz") as file:
        np.savez("one.npz", **{name: file[name] + name.startswith("y_") for name in file.files})
    tool.follow(at("one.npz"), "--labels-from 1")
    tool.follow([*at("one.npz"), "--labels-from", "x"])
    for words, flag in (
        ([*EVAL, "--labels-from", "1"], "--labels-from"),
        ([*EVAL, "--image-size", "8"], "--image-size"),
    ):
        tool.refused(*words)
        tool.works(*without(words, flag))
    tool.follow(["info", "model.pt", "--labels-from", "1"], "--data NAME|PATH", "--data one.npz")


@prints(
    FOLDERS + "numbered",
    FOLDERS + "_check_order_open",
    "data/choices.py:check_for_folders",
    "cli/options.py:choices: --class-order",
    FOLDERS + "_by_synset",
    FOLDERS + "read_map",
    FOLDERS + "_text_rows",
    FOLDERS + "_mapped",
)
def folders_and_their_numbers(tool):
    write_colour()
    write_pictures()
    tool.follow([*COLOUR, "--class-order", "number"])
    assert "--class-map FILE" in tool.refused(*COLOUR, "--labels-from", "1")
    tool.refused(*COLOUR, "--class-order", "size")
    write_pictures("numbers", names=("2", "4", "8", "16"))
    tool.follow([*at("numbers", COLOUR), "--class-order", "size"])
    write_pictures("three", names=("cat", "dog", "eel", "eel"))
    words = at("three", COLOUR)
    hint = tool.refused(*words)
    for name, content in (
        ("absent.txt", None),
        ("map.txt", "cat\n"),
        ("map.txt", "cat x\ndog y\n"),
        ("map.txt", ""),
        ("map.txt", "cat 0\n"),
        ("map.json", "{"),
    ):
        if content is not None:
            Path(name).write_text(content)
        assert tool.refused(*words, "--class-map", name) == hint
    assert "--class-map FILE, with a line FOLDER NUMBER for each, or JSON" in hint
    numbers = {"cat": 0, "dog": 1, "eel": 2}
    for name, content in (("map.txt", "cat 0\ndog 1\neel 2\n"), ("map.json", json.dumps(numbers))):
        Path(name).write_text(content)
        tool.works(*words, "--class-map", name)
        both = [*words, "--class-map", name, "--class-order", "text"]
        assert tool.refused(*both) == "Leave --class-order out."


@prints(
    "data/image_folder.py:_class_names",
    "data/image_folder.py:_mode",
    "data/pictures.py:_opened: Remove",
    "data/pictures.py:_check: Convert",
    "data/pictures.py:_check: Remove",
    "data/splits.py:samples",
    "cli/options.py:parse_size",
    "data/image_folder.py:_size",
    "workflows/setup.py:check_training",
)
def pictures_in_folders(tool):
    write_colour()
    write_pictures()
    for size in ("224", "192x256"):
        assert f"--image-size {size}" in tool.refused(*COLOUR, "--image-size", "big")
        tool.fails_otherwise(*COLOUR, "--image-size", size, than="is no size of images")
    tool.works(*COLOUR, "--image-size", "8")
    write_pictures("more", names=("cat", "dog", "eel", "gnu"), splits=("train",))
    write_pictures("more", splits=("test",))
    tool.refused(*at("more", COLOUR))
    Path("more/train/gnu").rename("more/train/fox")
    tool.works(*at("more", COLOUR))
    for picture in Path("more/train/fox").iterdir():
        picture.unlink()
    assert tool.refused(*at("more", COLOUR)).startswith("Remove the empty folder")
    Path("deep").mkdir()
    write_pictures("deep")
    first = next(Path("deep/train/cat").iterdir())
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(first)
    hint = tool.refused(*at("deep", COLOUR))
    assert ".npz file: x / 65535" in hint, hint
    with tool.patch.context() as patch:
        patch.setattr(pictures, "MOST_PIXELS", 10)
        assert "make it smaller" in tool.refused(*COLOUR)
    first.write_bytes(first.read_bytes()[:20])
    assert tool.refused(*at("deep", COLOUR)).startswith("Remove the file")
    first.unlink()
    tool.works(*at("deep", COLOUR))
    assert "--data FILE.npz" in tool.raised(datasets.load, "pets", channels=2)
    small.write_npz("two.npz", channels=2)
    assert datasets.load("two.npz", channels=2).shape == (2, 8, 8)
    write_pictures("only", splits=("test",))
    words = ["prune", "colour.pt", *DRY[2:4], "--data", "only", *DRY[6:]]
    tool.refused(*words)
    write_pictures("only", splits=("train",))
    tool.works(*words)
    write_pictures("sizes")
    write_pictures("sizes", side=9, n=4, splits=("train",))
    assert "--image-size 224" in tool.raised(datasets.load, "sizes")
    tool.works(*at("sizes", COLOUR), "--image-size", "8")


@prints(
    "evaluation/inputs.py:check_range",
    "evaluation/inputs.py:check_threat",
    "evaluation/inputs.py:check_logits: Use",
    "evaluation/inputs.py:check_logits: Check",
    "evaluation/evaluate.py:_clean",
    "evaluation/sample_file.py:read",
)
def what_an_evaluation_asks(tool):
    from pwoa_cli.evaluation import evaluate, sample_file

    x, y = small.images(20)
    x, y = torch.tensor(x).permute(0, 3, 1, 2).float(), torch.tensor(y)
    model = small.sparse_lenet()
    one = {"norm": "linf", "eps": 0.1, "attacks": "fgsm"}
    assert "Divide bytes by 255" in tool.raised(evaluate.evaluate, model, x, y, **one)
    hint = tool.raised(evaluate.evaluate, model, x / 255, y, norm=None, eps=None, attacks="fgsm")
    assert hint == "For example --norm linf --eps 8/255"
    tool.works(*without(EVAL, "--eps"), *hint.split()[2:])
    tool.raised(evaluate.evaluate, model, x / 255, y + 1, **one)
    tool.raised(evaluate.evaluate, torch.nn.Sequential(model, Nan()), x / 255, y, **one)
    evaluate.evaluate(model, x / 255, y, **one)
    small.write_npz("two.npz", classes=2)
    small.save(small.learn(small.lenet(num_classes=2), classes=2), "two.pt")
    tool.follow(at("two.npz", ["eval", "two.pt", *EVAL[2:-1], "fgsm,aa"]))
    Path("samples.npz").write_bytes(b"none")
    hint = tool.raised(sample_file.read, Path("samples.npz"))
    assert "pwoa eval ... --save-samples FILE.npz" in hint
    tool.works(*EVAL, "--save-samples", "samples.npz")
    assert sample_file.read(Path("samples.npz"))


class Nan(torch.nn.Module):
    def forward(self, x):
        return x / 0
