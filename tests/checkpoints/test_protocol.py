"""The published framing of named weights: timm's and torchvision's own transforms are the oracle."""
from dataclasses import replace

import pytest
import timm
import torch
from helpers import small_models as small
from timm.data import create_transform
from torchvision import models

from pwoa_cli.checkpoints import protocol
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.data.pictures import Framing


def oracle(transform):
    """(size, scaled, interpolation) of timm's evaluation transform of square images."""
    scale, crop = transform.transforms[:2]
    size = scale.size if isinstance(scale.size, int) else scale.size[0]
    return tuple(crop.size), size, scale.interpolation.value


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "convnext_tiny.fb_in1k",
                                  "xcit_small_12_p16_224.fb_in1k",
                                  "vit_base_patch16_224.augreg_in21k_ft_in1k", "inception_v3.tf_in1k"])
def test_weights_of_timm(name):
    made = protocol._of_timm(f"timm:{name}")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    assert (made.size, made.scaled[0], made.interpolation) == oracle(create_transform(**config))
    assert made.scaled[0] == made.scaled[1] and made.by == f"as published: timm on timm:{name}"


def test_a_file_is_known_by_its_contents_as_weights_of_torchvision(tmp_path):
    loaded = load_model(small.save(models.mobilenet_v3_small(num_classes=3), tmp_path / "mine.pt"))
    assert loaded.input_shape is None
    usual = protocol.framing_of(loaded)
    assert (usual.size, usual.scaled) == ((224, 224), (256, 256)) and not protocol.is_published(usual)
    for weights in (models.ResNet50_Weights.IMAGENET1K_V1, models.ResNet50_Weights.IMAGENET1K_V2,
                    models.EfficientNet_B1_Weights.IMAGENET1K_V2):
        digest = weights.url.rpartition("-")[2].removesuffix(".pth")
        made = protocol.framing_of(replace(loaded, sha256=digest.ljust(64, "0")))
        own = weights.transforms()
        assert made == Framing(tuple(own.crop_size * 2), tuple(own.resize_size * 2), own.interpolation.value,
                               by=f"as published: torchvision on {weights.url.rpartition('/')[2]}")
        assert protocol.is_published(made)
        pruned = replace(loaded, extra={"source": "x.pth", "source_sha256": digest.ljust(64, "0")})
        assert protocol.framing_of(pruned) == made  # of what it was pruned from


def test_a_network_that_takes_one_size_is_shown_that(tmp_path):
    loaded = load_model(Source(small.save(small.lenet(), tmp_path / "lenet.pt")))
    made = protocol.framing_of(loaded)
    assert made.size == made.scaled == (8, 8) and made.by == "the size that the network takes"
    assert loaded.model(torch.rand(2, 1, 8, 8)).shape == (2, 4)
