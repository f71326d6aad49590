"""Normalisations in circulation, and what a user or a file says of them."""
import pytest
import torch

from pwoa_cli.checkpoints.normalisation import (
    NORMALISATIONS,
    Normalisation,
    decide,
    known_for,
    of_user,
    parse_numbers,
)
from pwoa_cli.errors import InputError


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
                "network": "inside the network", "nobody": "mean 0.5, std 0.25 (inferred)"}
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
