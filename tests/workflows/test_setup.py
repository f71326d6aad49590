"""Model, data, teacher and threat of a command: what is inferred is said, what does not fit is refused."""
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from helpers import small_models as small
from helpers.data_files import write_idx
from helpers.levels import levels, nearest_centre
from helpers.workflow_calls import FAST, described, refused, request, run_in
from torch import nn

import pwoa_cli
from pwoa_cli.checkpoints import architecture
from pwoa_cli.checkpoints.model import Source
from pwoa_cli.checkpoints.normalisation import NORMALISATIONS
from pwoa_cli.checkpoints.readings import Undecided
from pwoa_cli.data import datasets
from pwoa_cli.data.choices import Choices
from pwoa_cli.errors import InputError
from pwoa_cli.files import sparse
from pwoa_cli.networks.build import build
from pwoa_cli.workflows import evaluate, images, setup
from pwoa_cli.workflows.prune_job import prepare


@pytest.mark.parametrize("folder", ["plain", "v:2"])
def test_code_of_ones_own_is_hashed_wherever_it_lies(tmp_path, folder):
    file = tmp_path / folder / "own.py"
    file.parent.mkdir()
    file.write_text("WIDTH = 4\n")
    loaded = SimpleNamespace(arch=f"{file}:net")
    before = setup.own_code(loaded, SimpleNamespace(arch="lenet5"))
    file.write_text("WIDTH = 8\n")
    assert len(before) == 1 and setup.own_code(loaded) != before


def test_a_teacher_must_fit(tmp_path):
    teacher = small.save(small.lenet(num_classes=5), tmp_path / "five.pt")
    assert refused(teacher=teacher) == f"--teacher {teacher} has 5 classes, lenet.pt has 4."
    assert refused(teacher="resnet.pt").startswith("--teacher resnet.pt cannot take images (1, 8, 8) of grey")
    assert refused(teacher="absent.pt").startswith("absent.pt: there is no such file")
    narrow = small.save(small.learn(small.LeNet(size=8, widths=(2, 8), hidden=16, num_classes=4)),
                        tmp_path / "narrow.pt")
    message = refused(teacher=narrow, overrides=FAST | {"hidden_weight": "1"})
    assert message == "Hidden layers of the model and of --teacher differ, so they cannot be matched."
    assert refused(teacher=narrow, overrides=FAST | {"explain_weight": "1"}) == message


def test_a_teacher_without_normalisation_in_its_file_gets_the_models(tmp_path):
    """`--mean` and `--std` describe the images, and the teacher is often the model itself, before it was
    pruned."""
    shifted = small.lenet()
    shifted.load_state_dict(torch.load("lenet.pt", weights_only=True))
    with torch.no_grad():  # conv1((x - 0.4) / 0.1) in place of conv1(x), but for the border
        shifted.conv1.weight *= 0.1
        shifted.conv1.bias += 4 * shifted.conv1.weight.sum((1, 2, 3))
    file = small.save(shifted, tmp_path / "shifted.pt")
    made, said = run_in(tmp_path / "run", file, mean=(0.4,), std=(0.1,), teacher=file)
    assert "right more often with the normalisation" in said and made["teacher"]["clean"]["accuracy"] > 0.9


def test_files_that_are_no_model(tmp_path):
    names = "text.pt", "empty.pt", "cut.pt", "cut.safetensors", "nan.pt", "inf.pt", "nothing.pt"
    files = {name: tmp_path / name for name in names}
    files["text.pt"].write_text("not a checkpoint\n" * 100)
    files["empty.pt"].write_bytes(b"")
    files["cut.pt"].write_bytes(Path("lenet.pt").read_bytes()[:2000])
    sparse.save(torch.load("lenet.pt", weights_only=True), tmp_path / "whole.safetensors")
    files["cut.safetensors"].write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-50])
    for name, value in (("nan.pt", np.nan), ("inf.pt", np.inf)):
        state = torch.load("lenet.pt", weights_only=True)
        state["conv2.weight"][0, 0, 0, :2] = value
        torch.save(state, files[name])
    torch.save({"epoch": 3}, files["nothing.pt"])
    messages = {name: refused(str(file)) for name, file in files.items()}
    words = ("not a checkpoint", "is empty", "truncated", "",
             "conv2.weight has 2 NaN or infinite values of 288",
             "conv2.weight has 2 NaN or infinite", "holds no weights; it has: epoch")
    for name, expected in zip(names, words, strict=True):
        assert name in messages[name] and expected in messages[name]


def test_wrong_architecture_names_the_tensor():
    message = refused(arch="resnet18")
    assert message.startswith("lenet.pt as resnet18: conv1.weight has shape (4, 1, 3, 3), expected (64, ")
    assert "resnt18" in refused(arch="resnt18")
    assert refused(arch="absent.py:net").startswith("--arch absent.py:net: there is no file absent.py")
    assert "--num-classes" in (message := refused(num_classes=7)) and "7" in message and "4" in message


def test_data_that_does_not_fit(tmp_path):
    small.write_npz("six.npz", classes=6)
    assert refused(data="six.npz") == "lenet.pt has 4 classes, the data set six has 6."
    np.savez("four.npz", x_test=np.zeros((8, 4, 8, 8), np.uint8), y_test=np.arange(8) % 4)
    assert refused(data="four.npz").startswith("four.npz: x_test has shape (8, 4, 8, 8), which has neither ")
    x, y = small.images(64)
    np.savez("shuffled.npz", x_train=x, y_train=np.roll(y, 1), x_test=x, y_test=y)
    message = refused(data="shuffled.npz")
    assert "is right on 0.0% of 64 training images of shuffled, near chance (25.0%)" in message
    assert "No known data set has 1x8x8 inputs and 4 classes" in refused(data=None)
    assert "absent.npz: no such file or folder" in refused(data="absent.npz")
    assert "Did you mean mnist?" in refused(data="minst")


def test_a_doubtful_model_is_warned_of(tmp_path):
    x, y = small.images(200)
    wrong = (y + 1 + np.arange(200) // 20 % 3) % 4  # of every other class, lest another reading fits them
    half = np.where(np.arange(200) % 20 < 11, wrong, y)  # right on 9 of 20
    np.savez("doubtful.npz", x_train=x, y_train=half, x_test=x, y_test=y)
    said = []
    prepare(request(data="doubtful.npz"), say=said.append)
    assert [line for line in said
            if line.startswith("warning: lenet.pt is right on 45.0% of 200 training images of doubtful.")]


def no_route(*_):
    raise OSError("no route to host")


def test_missing_data_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "places", lambda: (tmp_path / "place",))
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache is below it
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # which would know the names of servers
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_route)
    with pytest.raises(InputError) as caught:
        prepare(request(data="mnist"), say=lambda text: None)
    assert str(tmp_path / "place") in caught.value.message
    assert "the network (no route to host)" in caught.value.message
    assert "--data DIR" in caught.value.hint and "PWOA_DATA" in caught.value.hint


def test_options_of_arrays_hold_for_data_that_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "places", lambda: (tmp_path,))
    write_idx(tmp_path / "MNIST/raw")
    file = small.save(small.LeNet(size=28, widths=(1, 2), hidden=4, num_classes=10), tmp_path / "digits.pt")
    message = refused(file, data=None, choices=Choices(labels_from=1))
    assert message == f"--labels-from 1, but {tmp_path}/MNIST/raw holds the label 0."


def test_threat_models():
    assert "is not known: neither the file nor grey gives an eps." in refused(eps=None)
    assert "gives an eps for l2." in refused(eps=None, norm="l2")
    with pytest.raises(InputError) as caught:
        prepare(request(eps=None, norm="l2"), say=lambda text: None)
    assert caught.value.hint == "Say it: --norm l2 --eps 0.5"
    assert prepare(request(eps="3", norm="l2"), say=lambda text: None).subject.eps == 3
    assert "eps is 3" in refused(eps="3") and "0/0" in refused(eps="0/0")


def test_the_threat_of_a_pruned_file_is_that_of_its_run(tmp_path):
    run_in(tmp_path / "run", norm="l2", eps="1.5")
    file, said = str(tmp_path / "run/model.safetensors"), []
    subject = prepare(request(file, sparsity=0.9, eps=None), say=said.append).subject
    assert (subject.norm, subject.eps) == ("l2", 1.5)
    assert "threat model: l2, eps 1.5 (the model file" in "\n".join(said)
    subject = prepare(request(file, sparsity=0.9, eps="2"), say=said.append).subject
    assert (subject.norm, subject.eps) == ("l2", 2)  # the file's norm, the user's radius


def test_entry_and_keep_are_the_model_s_and_not_the_teacher_s(tmp_path):
    state = torch.load("lenet.pt")
    torch.save({"best": state, "last": state}, "both.pt")
    with pytest.raises(InputError) as caught:
        prepare(request(teacher="both.pt"), say=lambda text: None)
    assert ("'last' and 'best'" in caught.value.message
            and "save the teacher in a file of its own" in caught.value.hint)
    run_in(tmp_path / "run", "both.pt", entry="best", teacher="lenet.pt")
    asked = evaluate.Request(Source(str(tmp_path / "run")), attacks="fgsm", n=20)
    assert list(evaluate.prepare(asked, say=lambda text: None).models) == ["teacher", "pruned"]
    run_in(tmp_path / "own", "both.pt", entry="best")
    job = evaluate.prepare(evaluate.Request(Source(str(tmp_path / "own")), attacks="fgsm", n=20),
                           say=lambda text: None)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(job.models["teacher"](x), pwoa_cli.load("lenet.pt")(x))


def test_networks_with_the_same_keys_are_told_apart_by_accuracy(monkeypatch):
    Path("two.py").write_text("""
from torch import nn
def first(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
def second(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
def third(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LeakyReLU(1e-3), nn.Linear(16, 4))""")
    file = small.save(small.learn(build("two.py:second", {})), "two.pt")
    names = ["two.py:first", "two.py:second"]

    def several(state, *, where):
        raise architecture.UnknownArchitecture(f"{where} fits {len(names)} networks.", hint="Say which.",
                                               candidates=tuple(names))

    monkeypatch.setattr(architecture, "identify", several)
    monkeypatch.setattr(small.torch.nn.Tanh, "forward", lambda self, x: -x)  # far from ReLU
    said = []
    job = prepare(request(file), say=said.append)
    assert job.subject.loaded.arch == "two.py:second"
    assert any("fits 2 networks. Told apart by accuracy on training images: two.py:first " in line
               for line in said)
    names.append("two.py:third")  # as right as the second
    assert refused(file) == f"{file} fits 3 networks."


def test_models_that_answer_nonsense(tmp_path):
    file = small.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), "one.pt")
    answers = {"(x[:, :2], x[:, :3])":
               "returns a tuple of 0 (20, 2), 1 (20, 3) for 20 images, expected logits (20, 4)",
               "x[:, :2]": "returns (20, 2) for 20 images", "x / 0": "returns NaN or infinite logits",
               "x.reshape(3, -1)": "cannot take images (1, 8, 8) of grey"}
    for body, words in answers.items():
        Path("odd.py").write_text(f"""
from torch import nn
class Net(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return {body}
def net():
    return Net(nn.Flatten(), nn.Linear(64, 4))""")
        assert words in refused(file, arch="odd.py:net", num_classes=4), body


RAISING = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 4))
class Two(Net):
    def forward(self, x, meta):
        return super().forward(x)
class Key(Net):
    def forward(self, x):
        return {"logits": super().forward(x)}["out"]
class Hub(Net):
    def forward(self, x):
        return super().forward(x["pixel_values"])
class Attribute(Net):
    def forward(self, x):
        return super().forward(x.pixels)
class Silent(Net):
    def forward(self, x):
        assert x is None
class Quits(Net):
    def forward(self, x):
        raise NotImplementedError
"""


@pytest.mark.parametrize(("name", "words"), [
    ("Two", "TypeError: Two.forward() missing 1 required positional argument: 'meta'"),
    ("Key", "KeyError: 'out'"), ("Hub", "IndexError: too many indices"), ("Silent", "AssertionError"),
    ("Attribute", "AttributeError: 'Tensor' object has no attribute 'pixels'"),
    ("Quits", "NotImplementedError")])
def test_a_forward_that_raises_anything_is_a_sentence(tmp_path, name, words):
    Path("raising.py").write_text(RAISING)
    file = small.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), tmp_path / "one.pt")
    for options in ({}, {"num_classes": 4}):  # found by running it, or said
        message = refused(file, arch=f"raising.py:{name}", **options)
        assert message.startswith(f"{file} cannot take images (1, 8, 8) of grey: {words}")
    noted = described(file, arch=f"raising.py:{name}")["notes"]
    assert any(f"the network was not run, so dead weights are not known: {words}" in note for note in noted)


# --- several that may fit, one of which is read in several ways ---------------------------------

def undecided():
    """(a network, images) that several normalisations fit."""
    torch.manual_seed(0)
    dataset = levels(step=60)
    return nearest_centre(dataset, "imagenet", norm=False), dataset


def of_other_classes(dataset, labels):
    split = datasets.Split(dataset.train.images, labels)
    return replace(dataset, train=split, test=split)


@pytest.mark.parametrize("order", [("cifar10", "svhn"), ("svhn", "cifar10")])
def test_that_a_set_does_not_tell_is_said_and_not_that_another_one_does_not_fit(monkeypatch, order):
    """The network is of the first set, and no better than chance on the second."""
    dataset = undecided()[1]
    chance = dataset.train.labels[torch.randperm(len(dataset.train))]
    sets = {"cifar10": dataset, "svhn": replace(of_other_classes(dataset, chance), name="svhn")}
    monkeypatch.setattr(datasets, "candidates", lambda *_, **__: order)
    monkeypatch.setattr(datasets, "locate", lambda name: Path(name))
    monkeypatch.setattr(datasets, "load", lambda name, **_: sets[name])

    def opened(**options):
        source = Source("model.pt", arch="net.py:Without", **options)
        return setup.open_subject(source, data=None, norm=None, eps="8/255", device=torch.device("cpu"),
                                  say=lambda text: None)

    with pytest.raises(Undecided, match="right on 500 training images of cifar10") as caught:
        opened()
    name = caught.value.hint.rpartition("--normalize ")[2]
    mean, std = NORMALISATIONS[name]
    assert opened(mean=mean, std=std).dataset.name == "cifar10", "the hint helps"


def test_that_a_size_or_an_order_of_folders_does_not_tell_is_said():
    """The likeliest size, or order, is near chance; the other one is right, read in several ways."""
    loaded, dataset = undecided()
    labels = dataset.train.labels
    other = of_other_classes(dataset, labels[torch.randperm(len(labels))])
    for possible in ([other, dataset], [dataset, other]):
        with pytest.raises(Undecided, match="does not say how it is to be read"):
            images.settled(loaded, possible, say=lambda text: None)
    numbers = torch.tensor([3, 0, 1, 2])
    turned = replace(of_other_classes(dataset, (labels + 1) % 4), reordered=numbers)
    with pytest.raises(Undecided, match="does not say how it is to be read"):
        images.settled(loaded, [turned], say=lambda text: None)


def test_that_the_better_of_two_networks_does_not_tell_is_said(monkeypatch):
    """Of two networks with the same keys the first is right, under several normalisations."""
    dataset = undecided()[1]
    with open("net.py", "a") as file:
        file.write("""
class Turned(Without):
    def forward(self, x):
        return super().forward(x).roll(1, 1)
""")

    def two(state, *, where):
        raise architecture.UnknownArchitecture(f"{where} fits 2 networks.", hint="Say which.",
                                               candidates=("net.py:Without", "net.py:Turned"))

    monkeypatch.setattr(architecture, "identify", two)
    monkeypatch.setattr(images, "ways", lambda *_, **__: [dataset])
    with pytest.raises(Undecided, match="does not say how it is to be read") as caught:
        setup.open_subject(Source("model.pt"), data="levels", norm=None, eps="8/255",
                           device=torch.device("cpu"), say=lambda text: None)
    assert "--normalize " in caught.value.hint
