"""Pictures as a model takes them: size, channels, classes, only test images; said, and in the report."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import refused, request, run_in
from PIL import Image
from torch import nn

from pwoa_cli.checkpoints import protocol
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.data.choices import Choices
from pwoa_cli.errors import InputError
from pwoa_cli.workflows import evaluate, export, images, info
from pwoa_cli.workflows.prune_job import prepare

NET = """
from torch import nn
def net(num_classes=4, c=1):
    return nn.Sequential(nn.Conv2d(c, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(32, num_classes))
"""


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with a network of a user's file that takes images of any size, trained on grey 8x8 images."""
    monkeypatch.chdir(tmp_path)
    Path("grey.py").write_text(NET)
    Path("colour.py").write_text(NET.replace("c=1", "c=3"))
    scope: dict = {}
    exec(NET, scope)
    small.save(small.learn(scope["net"]()), "grey.pt")
    small.save(small.learn(scope["net"](c=3), channels=3), "colour.pt")
    return tmp_path


def write(folder, *, names=("0", "1", "2", "3"), channels=1, splits=(("train", 64), ("test", 32)), side=8):
    """A folder of the pictures of `small.images`; returns its path as text."""
    for seed, (split, n) in enumerate(splits):
        for i, (pixels, label) in enumerate(zip(*small.images(n, channels=channels, seed=seed), strict=True)):
            path = Path(folder, split, names[label], f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.squeeze()).resize((side, side), Image.Resampling.NEAREST).save(path)
    return str(folder)


def measured(model, data, *, n=20, **choices):
    """(result, what was said) of an evaluation of NAME.pt, a network of NAME.py."""
    said, arch = [], model.replace(".pt", ".py:net")
    job = evaluate.prepare(evaluate.Request(
        Source(model, arch=arch, mean=(), std=()), attacks="fgsm", data=data, choices=Choices(**choices),
        eps="1/255", n=n), say=said.append)
    return evaluate.execute(job, progress=lambda *_: None, say=said.append).result, "\n".join(said)


@pytest.mark.parametrize("model, channels, words", [
    ("colour.pt", 1, "grey pictures are repeated to 3 channels, as the network takes 3"),
    ("grey.pt", 3, "pictures in colour are made grey, as the network takes 1"), ("grey.pt", 1, "")])
def test_channels_follow_the_network_and_are_said(there, model, channels, words):
    result, said = measured(model, write(there / "d", channels=channels))
    assert result["results"]["clean"]["accuracy"] > 0.9 and words in said
    assert result["data"]["inferred"] == ([words] if words else [])
    assert result["data"]["shape"] == [3 if model == "colour.pt" else 1, 8, 8]


def test_the_pictures_own_size_is_tried_and_taken_where_it_is_clearly_better(there, monkeypatch):
    """A library's default size, 160 here, says what its published weights saw, not what this file saw."""
    framing = protocol.standard((160, 160), by="the size of test")
    monkeypatch.setattr("pwoa_cli.workflows.images.framing_of", lambda loaded: framing)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 2))
    Path("scale.py").write_text("""
from torch import nn
def net(num_classes=2):
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, num_classes))
""")
    generator = np.random.default_rng(0)
    fine = np.indices((8, 8)).sum(0) % 2 * 200  # a chessboard of pixels, or a grey of the same mean
    x = np.stack([fine if i % 2 else np.full((8, 8), 100) for i in range(60)])
    x = (x + generator.integers(0, 20, x.shape)).astype(np.uint8)
    for i, pixels in enumerate(x):
        path = there / "d" / ("train" if i < 40 else "test") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    images, y = torch.tensor(x)[:, None].float() / 255, torch.arange(60) % 2
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), y).backward()
        optimizer.step()
    small.save(model, "scale.pt")
    result, said = measured("scale.pt", str(there / "d"))
    assert result["results"]["clean"]["accuracy"] == 1.0
    assert result["data"]["images"] == "8x8, as the pictures are"
    assert "taken: images of 8x8 (--image-size decides); right on training images: images of 8x8 100" in said
    with pytest.raises(InputError, match=r"near chance .* images of 16x16: pictures of 8x8 are sc") as error:
        measured("scale.pt", str(there / "d"), image_size=(16, 16))
    assert "--image-size" in error.value.hint


def test_an_image_size_that_is_asked_for_is_taken_and_kept(there):
    result, said = measured("grey.pt", write(there / "d", side=16), image_size=(8, 8))
    assert result["data"]["shape"] == [1, 8, 8] and result["data"]["choices"] == {"image_size": [8, 8]}
    assert "  images of 8x8: pictures of 16x16 are scaled to cover 8x8 (bilinear) (--image-size)" in said
    assert result["results"]["clean"]["accuracy"] > 0.9
    assert result["notes"][0].startswith("d: images of 8x8: pictures of 16x16 are scaled")


def test_folders_that_are_numbers_are_tried_in_both_orders(there):
    names = ("1", "2", "3", "10")  # as text: 1, 10, 2, 3
    result, said = measured("grey.pt", write(there / "d", names=names))
    assert result["results"]["clean"]["accuracy"] > 0.9
    assert "in the order of text: 1, 10, 2, 3" in said
    assert "taken: in the order of number (--class-order decides); right on training images: " in said
    message = refused("grey.pt", arch="grey.py:net", data="d", choices=Choices(class_order="text"), mean=(),
                      std=())
    assert "near chance" in message


@pytest.mark.parametrize("kind", ["arrays", "cats", "numbers", "flat"])
@pytest.mark.parametrize("choices, used", [
    (Choices(image_size=(4, 4)), "cats numbers flat"), (Choices(class_map="map.txt"), "cats numbers flat"),
    (Choices(class_order="number"), "numbers"), (Choices(labels_from=1), "arrays"),
    (Choices(class_map="map.txt", class_order="number"), "")])
def test_no_option_is_ignored_for_some_kind_of_data(there, kind, choices, used):
    """Either the images or their classes are others than without it, or it is refused by its name."""
    names = ("1", "2", "3", "10") if kind == "numbers" else ("cat", "dog", "eel", "fox")
    Path("map.txt").write_text("".join(f"{name} {3 - i}\n" for i, name in enumerate(names)))
    x, y = small.images(16)
    np.savez("d.npz", x_test=x, y_test=y + 1)
    folders = write(there / "d", names=names)
    data = {"arrays": "d.npz", "flat": f"{folders}/train"}.get(kind, folders)
    loaded = load_model(Source("grey.pt", arch="grey.py:net"))

    def read(choices):
        made = images.ways(loaded, data, choices, device=torch.device("cpu"), say=lambda text: None)[0]
        return made.shape, made.test.labels.tolist()

    if kind in used.split():
        assert kind == "arrays" or read(choices) != read(Choices())
        assert kind != "arrays" or read(choices)[1] == y.tolist()
        return
    with pytest.raises(InputError) as caught:
        read(choices)
    said = [f"--{name.replace('_', '-')}" for name in choices.said()]
    assert any(flag in caught.value.message for flag in said) and "\n" not in caught.value.message


@pytest.mark.parametrize("choices", [Choices(image_size=(4, 4)), Choices(class_map="map.txt"),
                                     Choices(class_order="text"), Choices(labels_from=1)])
def test_options_of_data_need_data(there, choices):
    """pwoa info, and an export that opens none."""
    source, (name,) = Source("grey.pt", arch="grey.py:net"), choices.said()
    for call in (lambda: info.describe(source, choices=choices, say=print),
                 lambda: export.prepare(export.Request(source, "dense", choices=choices), say=print)):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} says how --data is read, but no"):
            call()


def test_near_chance_names_the_order_of_folders_as_a_cause(there):
    data = write(there / "d", names=("3", "10", "2", "1"))
    message = refused("grey.pt", arch="grey.py:net", data=data, mean=(), std=())
    assert "near chance" in message and "both orders, of text and of number, were tried" in message


@pytest.mark.parametrize("kind", ["folder", "val", "npz"])
def test_eval_needs_no_training_image_and_says_on_what_the_reading_was_settled(there, kind):
    x, y = small.images(64, seed=1)
    np.savez("t.npz", x_test=x, y_test=y)
    data = {"npz": "t.npz", "folder": "d", "val": "d/val"}[kind]
    write("d", splits=[("val", 64)])
    result, said = measured("grey.pt", data)
    assert result["results"]["clean"]["accuracy"] > 0.9 and result["data"]["settled_on"] == "test images"
    assert "0 training and 64 test images; the model is right on " in said and "of 64 test images" in said
    message = refused("grey.pt", arch="grey.py:net", data=data, mean=(), std=())
    assert message.endswith("holds no training images, and pruning trains.")


def test_some_of_the_models_classes_by_a_class_map(there):
    write("d", splits=[("val", 64)])
    for name, to in (("0", None), ("1", "eel"), ("2", None), ("3", "fox")):
        path = there / "d/val" / name
        path.rename(there / "d/val" / to if to else there / name)
    with pytest.raises(InputError, match="2 class folders, the model has 4 classes"):
        measured("grey.pt", "d")
    Path("map.csv").write_text("eel,1\nfox,3\n")
    result, said = measured("grey.pt", "d", class_map="map.csv")
    assert result["results"]["clean"]["accuracy"] > 0.9
    assert result["data"]["classes"] == {"model": 4, "in_test_images": 2}
    assert "accuracy is over all 4 logits" in said and "classes of the folders from map.csv" in said


@pytest.fixture
def some(there):
    """grey.pt with a bias to class 0 that costs it a fifth of the images of classes 1 and 3; returns (those
    images, labels, network)."""
    x, y = small.images(80, seed=1)
    x, y = x[np.isin(y, (1, 3))], y[np.isin(y, (1, 3))]
    np.savez("some.npz", x_test=x, y_test=y)
    state, scope = torch.load("grey.pt"), {}
    exec(NET, scope)
    net, images = scope["net"](), torch.tensor(x).permute(0, 3, 1, 2).float() / 255
    net.load_state_dict(state)
    with torch.no_grad():
        logits = net(images)
        margin = logits[torch.arange(len(y)), y] - logits[:, 0]
        net[4].bias[0] += margin.sort().values[8] - 1e-4
    small.save(net.eval(), "grey.pt")
    return images, torch.tensor(y), net


@pytest.mark.parametrize("logits, columns", [(None, [0, 1, 2, 3]), ("data", [1, 3])])
def test_accuracy_over_all_logits_or_those_of_the_data_only(some, logits, columns):
    images, y, net = some
    with torch.no_grad():
        expected = (torch.tensor(columns)[net(images)[:, columns].argmax(1)] == y).double().mean().item()
    assert expected == 0.8 if logits is None else expected > 0.95
    result, said = measured("grey.pt", "some.npz", logits=logits, n=40)
    assert result["results"]["clean"]["accuracy"] == expected
    words = "logits of the 2 classes of its test images only" if logits else "accuracy is over all 4 logits"
    assert words in said and ("all 4" in said) != (logits == "data")
    assert any(words in note for note in result["notes"])  # in report.md too
    assert result["data"].get("class_numbers") == ([1, 3] if logits else None)


def test_what_a_model_is_compared_with_decides_among_the_same_classes(some):
    job = evaluate.prepare(evaluate.Request(
        Source("grey.pt", arch="grey.py:net", mean=(), std=()), attacks="fgsm", data="some.npz", n=40,
        choices=Choices(logits="data"), eps="1/255", teacher=Source("grey.pt")), say=lambda text: None)
    x = some[0][:5]
    assert torch.equal(job.models["compared"](x), job.models["model"](x))
    assert torch.equal(job.models["model"](x), some[2](x)[:, [1, 3]])


@pytest.mark.parametrize("asked", [Choices(class_order="number"), Choices()])
def test_a_run_is_evaluated_on_the_images_that_it_was_pruned_on(there, asked):
    """The order of classes too, which a network that was pruned too far could not tell any more, and whatever
    else is asked for now."""
    names = ("1", "2", "3", "10")
    options = {"arch": "grey.py:net", "data": write(there / "d", names=names), "mean": (), "std": (),
               "choices": asked}
    made, _ = run_in(there / "run", "grey.pt", **options)
    assert made["data"]["choices"] == {"class_order": "number"}
    again = evaluate.Request(Source(str(there / "run"), arch="grey.py:net"), attacks="fgsm", n=20)
    job = evaluate.prepare(again, say=lambda text: None)
    assert job.subject.choices == Choices(class_order="number")
    assert job.subject.dataset.notes == (
        "folders that are numbers are classes in the order of number: 1, 2, 3, 10",)
    job = evaluate.prepare(replace(again, choices=Choices(logits="data")), say=lambda text: None)
    assert job.subject.choices == Choices(class_order="number", logits="data")


def test_info_says_how_the_pictures_are_read(there):
    said = []
    found = info.describe(Source("colour.pt", arch="colour.py:net", mean=(), std=()), data=write(there / "d"),
                          say=said.append)
    assert found["clean"]["read"] == "8x8, as the pictures are"
    assert found["clean"]["inferred"] == ["grey pictures are repeated to 3 channels, as the network takes 3"]
    assert "  images of 8x8, as the pictures are" in said


def test_a_network_of_four_channels_gets_them_from_an_npz(there):
    x, y = small.images(64, channels=4)
    scope: dict = {}
    exec(NET, scope)
    small.save(small.learn(scope["net"](c=4), channels=4), "four.pt")
    Path("four.py").write_text(NET.replace("c=1", "c=4"))
    np.savez("four.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    result, _ = measured("four.pt", "four.npz")
    assert result["results"]["clean"]["accuracy"] > 0.9 and result["data"]["shape"] == [4, 8, 8]


def test_pictures_are_decoded_once_before_the_epochs(there):
    job = prepare(request("grey.pt", arch="grey.py:net", data=write(there / "d"), mean=(), std=()),
                  say=lambda text: None)
    assert isinstance(job.subject.dataset.train.images, torch.Tensor)


def test_a_file_without_a_name_and_a_size_has_no_framing(there):
    assert protocol.framing_of(load_model(Source("grey.pt", arch="grey.py:net"))) is None


def test_grey_arrays_are_pruned_on_in_three_channels(there):
    small.write_npz("grey.npz", n=128)
    made, _ = run_in(there / "run", "colour.pt", arch="colour.py:net", data="grey.npz", mean=(), std=())
    assert made["data"]["shape"] == [3, 8, 8] and made["teacher"]["clean"]["accuracy"] > 0.9
    assert "grey: grey images are repeated to 3 channels, as the network takes 3" in made["notes"]
