"""What networks and images are, by what they are made of."""
import pytest
import torch
from helpers import small_models as small
from torch import nn

from pwoa_cli.data.datasets import Split
from pwoa_cli.networks.families import make
from pwoa_cli.training.kinds import Kinds, images_kind, kinds_of, network_kind


class OwnNorm(nn.Module):
    """Somebody's layer norm over channels."""


class Normalize(nn.Module):
    """Takes the mean off the images: no norm of a layer."""


@pytest.mark.parametrize(("name", "options", "kind"), [
    ("cifar-resnet", {}, "batch-norm"), ("preact-resnet", {}, "batch-norm"),
    ("preact-resnet", {"bn": False}, "batch-norm"), ("wide-resnet", {}, "batch-norm"),
    ("dm-wide-resnet", {}, "batch-norm"), ("dm-preact-resnet", {}, "batch-norm"),
    ("cifar-vgg", {"batch_norm": True, "hidden": [64, 64],
                   "heads": ["classifier.0", "classifier.2", "classifier.4"]}, "batch-norm"),
    ("cifar-vgg", {"batch_norm": False}, "plain"), ("lenet5", {}, "plain"), ("smallcnn", {}, "plain"),
    ("convex-net", {}, "plain")])
def test_every_family_is_of_a_kind(name, options, kind):
    with torch.device("meta"):
        assert network_kind(make(name, options)) == kind


def test_norms_are_counted_beside_the_layers_of_weights():
    layers = [nn.Linear(4, 4) for _ in range(6)]
    assert network_kind(nn.Sequential(*layers)) == "plain"
    assert network_kind(nn.Sequential(nn.BatchNorm1d(4), *layers)) == "plain"
    assert network_kind(nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4), *layers)) == "batch-norm"
    assert network_kind(nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), *layers)) == "layer-norm"
    assert network_kind(nn.Sequential(OwnNorm(), OwnNorm(), *layers)) == "layer-norm"
    assert network_kind(nn.Sequential(Normalize(), nn.Linear(4, 4))) == "plain"
    assert network_kind(nn.Flatten()) == "plain"


def test_transformers_and_convnexts_have_layer_norms():
    from timm.models.convnext import ConvNeXt
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        assert network_kind(VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2,
                                              num_heads=2)) == "layer-norm"
        assert network_kind(ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))) == "layer-norm"


def test_images_are_flat_from_a_quarter_of_black_and_white_on():
    def split(share):
        pixels = torch.full((40, 1, 10, 10), 100, dtype=torch.uint8)
        pixels.view(40, 100)[:, :share] = torch.tensor([0, 255], dtype=torch.uint8).repeat(50)[:share]
        return Split(pixels, torch.arange(40))

    assert [images_kind(split(share)) for share in (0, 24, 25, 100)] == ["photographs"] * 2 + ["flat"] * 2
    x, y = small.images(300)
    assert images_kind(Split(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y))) == "photographs"


def test_many_weights_stay_in_a_network_with_batch_norms():
    split = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    for model, kept, found in ((small.resnet(), 299_999, "few"), (small.resnet(), 300_000, "many"),
                               (small.lenet(), 300_000, "few")):
        assert kinds_of(model, split, kept=kept).kept == found


@pytest.mark.parametrize(("kinds", "words"), [
    (Kinds("plain", "flat"), "a network with no norms on flat images"),
    (Kinds("batch-norm", "photographs"), "a network with batch norm on photographs"),
    (Kinds("batch-norm", "flat", "many"),
     "a network with batch norm and many weights that stay on flat images")])
def test_kinds_are_said_in_words(kinds, words):
    assert str(kinds) == words
