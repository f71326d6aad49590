"""Normalisations in circulation, and what a user or a file says of them."""
import argparse

import numpy as np
import pytest
import torch
from helpers.checkpoint_files import saved
from torch import nn

from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.checkpoints.normalisation import (
    NORMALISATIONS,
    Normalisation,
    decide,
    known_for,
    of_user,
    parse_numbers,
    stated,
)
from pwoa_cli.errors import InputError
from pwoa_cli.networks.families.resnet import CifarResNet


def refused(call, *args, **options):
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    return caught.value.message, caught.value.hint


def test_values_are_those_of_the_data():
    """Of CIFAR-10 only the mean is common to both of its deviations; torchvision's and timm's constants for
    ImageNet."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    assert NORMALISATIONS["imagenet"] == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert NORMALISATIONS["cifar10"][0] == NORMALISATIONS["cifar10-old"][0] != NORMALISATIONS["cifar10"][1]
    assert all(len(mean) == len(std) and all(0 < v < 1 for v in mean + std)
               for mean, std in NORMALISATIONS.values())


@pytest.mark.parametrize(("channels", "names"), [
    (1, {"none", "half", "mnist", "fashion-mnist"}),
    (3, {"none", "half", "imagenet", "cifar10", "cifar10-old", "cifar100", "svhn"}),
    (4, {"none", "half"})])
def test_known_for_channels(channels, names):
    assert set(known_for(channels)) == names


def test_of_user():
    assert of_user("half", None, None) == ((0.5,), (0.5,)) and of_user("none", None, None) == ((), ())
    assert of_user(None, (0.1,), (0.2,)) == ((0.1,), (0.2,)) and of_user(None, None, None) == (None, None)
    assert refused(of_user, "imagnet", None, None) == (
        f"--normalize imagnet is none of {', '.join(NORMALISATIONS)}.", "Did you mean imagenet?")
    assert refused(of_user, "zzz", None, None)[1] == "Or the numbers in its place: --mean A,B,C --std A,B,C"
    assert "twice" in refused(of_user, "half", (0.5,), None)[0]


def test_decide_prefers_the_user_then_the_file():
    inside = ((0.25,), (0.75,))
    assert decide((0.5,), (1.0,), inside=inside, channels=3, where="m.pt").said_by == "user"
    user, nobody = Normalisation((), (), "user"), Normalisation((), (), "nobody")
    file = Normalisation(*inside, "file")
    assert decide((), (), inside=inside, channels=3, where="m.pt") == user
    assert decide(None, None, inside=inside, channels=3, where="m.pt") == file
    assert decide(None, None, inside=(None, None), channels=3, where="m.pt") == nobody


def test_words_say_who_said_it():
    expected = {"user": "mean 0.5, std 0.25", "file": "mean 0.5, std 0.25 (in the file)",
                "network": "inside the network", "settings": "mean 0.5, std 0.25 (beside the weights)",
                "nobody": "mean 0.5, std 0.25 (inferred)"}
    for said_by, words in expected.items():
        assert Normalisation((0.5,), (0.25,), said_by).words() == words
    assert "inputs are taken in [0,1] as they are" in Normalisation((), (), "nobody").words()


def test_numbers():
    assert parse_numbers("0.5, 0.25", flag="--mean") == (0.5, 0.25)
    assert parse_numbers(None, flag="--mean") is None
    assert refused(parse_numbers, "a", flag="--mean")[0] == "--mean a is not a list of numbers."


def test_cifar10_values_are_those_of_the_images_and_of_single_images():
    """The formula behind both deviations, on made images: all pixels together, and the mean over images."""
    x = torch.rand(100, 3, 8, 8) * torch.rand(100, 1, 1, 1)
    together, single = x.std((0, 2, 3)), x.std((2, 3)).mean(0)
    older, newer = (torch.tensor(NORMALISATIONS[name][1]) for name in ("cifar10-old", "cifar10"))
    assert (single < together).all() and (older < newer).all()


# --- beside the weights of a file ---------------------------------------------------------------

MEAN, STD = [0.5, 0.25, 0.125], [0.25, 0.5, 0.75]
BOTH = {"mean": MEAN, "std": STD}
SAID = "mean and std beside the weights"
BESIDE = {
    "lists": (BOTH, SAID), "tuples": ({k: tuple(v) for k, v in BOTH.items()}, SAID),
    "tensors": ({k: torch.tensor(v).view(1, 3, 1, 1) for k, v in BOTH.items()}, SAID),
    "arrays": ({k: np.array(v) for k, v in BOTH.items()}, SAID),
    "normalize": ({"normalize": BOTH}, "normalize.mean and normalize.std beside the weights"),
    "args": ({"args": argparse.Namespace(**BOTH)}, "args.mean and args.std beside the weights"),
    "config": ({"config": {"norm": BOTH, "eps": 1}},
               "config.norm.mean and config.norm.std beside the weights"),
    "other names": ({"norm_mean": MEAN, "norm_std": STD}, "norm_mean and norm_std beside the weights")}


def weights(*, in_channels=3):
    torch.manual_seed(0)
    return CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6), in_channels=in_channels).state_dict()


@pytest.mark.parametrize("envelope", ["state_dict", "ema", "of no known name"])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_stands_beside_the_weights_is_read_and_said(tmp_path, monkeypatch, kind, envelope):
    monkeypatch.chdir(tmp_path)
    content, said = BESIDE[kind]
    loaded = load_model(saved({envelope: weights(), "epoch": 3} | content))
    assert (loaded.mean, loaded.std, loaded.normalisation.said_by) == (tuple(MEAN), tuple(STD), "settings")
    assert f"normalisation: {said}" in loaded.notes
    user = load_model(Source("m.pt", mean=(0.5,), std=(1.0,)))
    assert user.normalisation == Normalisation((0.5,), (1.0,), "user") and said not in "".join(user.notes)


def test_what_lies_in_the_network_wins_over_what_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffers = {"normalize.mean": torch.zeros(3), "normalize.std": torch.ones(3)}
    loaded = load_model(saved({"state_dict": weights() | buffers} | BOTH))
    assert (loaded.mean, loaded.std) == ((0.0,) * 3, (1.0,) * 3) and SAID not in "".join(loaded.notes)


@pytest.mark.parametrize(("beside", "channels", "expected"), [
    ({"mean": [0.1307], "std": [0.3081]}, 1, (0.1307, 0.3081)),
    ({"normalize": {"mean": 0.5, "std": 0.25}}, 3, (0.5, 0.25)),
    ({"normalize": {"mean": torch.tensor(0.5), "std": torch.tensor(0.25)}}, 3, (0.5, 0.25)),
    ({"mean": [0, 0], "std": [1, 1]}, None, (0, 0, 1, 1))])
def test_stated_for_channels(beside, channels, expected):
    found, _ = stated(beside, channels)
    assert (*found.mean, *found.std) == pytest.approx(expected) and found.is_assumed


@pytest.mark.parametrize("beside", [
    {"mean": 0.912, "std": 0.31}, {"mean": MEAN}, {"std": STD}, {"mean": "0.5", "std": "0.5"},  # accuracies
    {"mean": [True] * 3, "std": STD}, {"mean": [0.5, "a", 0.5], "std": STD}, {"mean": [], "std": []},
    {"mean": torch.zeros(3).to_sparse(), "std": torch.ones(3)}, {"mean": torch.zeros(3, device="meta")} | {
        "std": STD}, {"mean": [0.5] * 17, "std": [0.5] * 17}, {"mean": [10**400] * 3, "std": STD},
    {"normalize": True}, {"norm": "batch"}, {}])
def test_what_states_no_normalisation(beside):
    assert stated(beside, 3) == (None, "")


@pytest.mark.parametrize("beside", [
    {"mean": [0.91, 0.92, 0.9], "std": [0.01, 0.02, 0.01]},  # accuracies of three seeds
    {"mean": [91.2, 90.0, 92.3], "std": [0.9, 1, 2]},
    {"mean": [0.5, 0.5], "std": [0.5, 0.5]},
    {"mean": [-0.5, 0, 0], "std": STD}, {"mean": MEAN, "std": [0] * 3},
    {"mean": MEAN, "std": [0.5]}, {"mean": [123.7, 116.3, 103.5], "std": [1.0] * 3}])
def test_what_cannot_be_a_normalisation_is_left_with_a_sentence(beside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_model(saved({"state_dict": weights()} | beside))
    assert loaded.normalisation.said_by == "nobody"
    assert "mean and std beside the weights are not taken as a normalisation: " in "".join(loaded.unwrapped)


def test_values_of_inputs_in_0_to_255_are_brought_to_those_of_0_to_1(tmp_path, monkeypatch):
    """(255 x - m) / s = (x - m / 255) / (s / 255)."""
    monkeypatch.chdir(tmp_path)
    mean, std = [125.3, 123.0, 113.9], [63.0, 62.1, 66.7]
    loaded = load_model(saved({"state_dict": weights(), "mean": mean, "std": std}))
    assert loaded.mean == tuple(m / 255 for m in mean) and loaded.std == tuple(s / 255 for s in std)
    assert f"normalisation: {SAID}, divided by 255" in loaded.notes
    assert load_model(Source("m.pt", mean=(0.4914,), std=(0.2471,))).mean == (0.4914,)


def test_a_file_s_settings_that_hold_themselves_end():
    args = dict(BOTH)
    args["args"] = args
    assert stated({"args": args}, 3)[1] == "normalisation: args.mean and args.std beside the weights"


def test_a_network_that_normalises_itself_is_not_normalised_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("""
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        self.fc = nn.Linear(3, 2)
    def forward(self, x):
        return self.fc(((x - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)).mean((2, 3)))
""")
    state = nn.Linear(3, 2).state_dict(prefix="fc.") | {k: torch.tensor(v) for k, v in BOTH.items()}
    loaded = load_model(Source(saved({"model": state} | BOTH), arch="net.py:Net"))
    assert loaded.normalisation.said_by == "network" and loaded.mean is None


# --- layers that normalise, in the state dict -------------------------------------------------

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.75)


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)).eval().state_dict()


def buffers(names, mean=MEAN, std=STD):
    return {name: torch.tensor(values) for name, values in zip(names, (mean, std), strict=True)}


@pytest.mark.parametrize("names", [
    *((f"{holder}.mean", f"{holder}.std") for holder in (
        "normalization", "normalise", "normalize_layer", "norm_layer", "data_norm", "input_norm",
        "preprocessing", "preprocessor", "transform", "input_transform", "1")),
    ("means", "stds"), ("_mean", "_std"), ("image_mean", "image_std"), ("normalize._mean", "normalize._std")],
    ids=str)
@pytest.mark.parametrize("side", ["model.", "2.", ""])
def test_layers_that_normalise_under_their_names(net, side, names):
    """They were "of no architecture that pwoa knows", and beside --entry "none in the file"."""
    state = {side + key: tensor for key, tensor in net.items()} | buffers(names)
    loaded = load_model(Source(saved(state)))
    assert (loaded.mean, loaded.std, loaded.normalisation.said_by) == (MEAN, STD, "file")
    if side == "model.":
        loaded = load_model(Source("m.pt", entry="model"))
        assert (loaded.mean, loaded.std) == (MEAN, STD)


@pytest.mark.parametrize("first", [True, False])
def test_mean_and_std_are_those_of_one_layer(net, first):
    """The mean of one and the size of a noise gave "(in the file)", and clean 63 of 92%."""
    noise, norm = {"sigma": torch.tensor(0.25)}, buffers(("normalize.mean", "normalize.std"))
    named = {f"model.{key}": tensor for key, tensor in net.items()}
    loaded = load_model(Source(saved((noise | norm if first else norm | noise) | named)))
    assert (loaded.mean, loaded.std) == (MEAN, STD)
    assert "dropped sigma: beside the normalisation normalize.mean and normalize.std" in loaded.unwrapped


@pytest.mark.parametrize("identity_first", [True, False])
def test_an_identity_around_a_normalisation_is_none(net, identity_first):
    ones = buffers(("normalize.mean", "normalize.std"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    own, named = buffers(("model.mu", "model.sigma")), {f"model.{key}": tensor for key, tensor in net.items()}
    loaded = load_model(Source(saved((ones | own if identity_first else own | ones) | named)))
    assert (loaded.mean, loaded.std) == (MEAN, STD)


def test_two_normalisations_that_differ_are_asked_about(net):
    both = buffers(("normalize.mean", "normalize.std")) | buffers(("mu", "sigma"), (0.1, 0.1, 0.1), STD)
    message, hint = refused(load_model, Source(saved({f"model.{k}": t for k, t in net.items()} | both)))
    assert message == ("m.pt holds 2 normalisations: normalize.mean 0.5, 0.25, 0.125 and normalize.std "
                       "0.25, 0.5, 0.75; mu 0.1, 0.1, 0.1 and sigma 0.25, 0.5, 0.75.")
    assert hint == "Say which: --mean 0.5,0.25,0.125 --std 0.25,0.5,0.75"
    assert load_model(Source("m.pt", mean=MEAN, std=STD)).mean == MEAN


def test_a_mean_as_large_as_an_image_is_refused_in_a_sentence(net):
    large = {"mean": torch.zeros(3, 32, 32), "std": torch.ones(3, 32, 32) / 2}
    assert len(refused(load_model, Source(saved({f"model.{k}": t for k, t in net.items()} | large)))[0]) < 300
