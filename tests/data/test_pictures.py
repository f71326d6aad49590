"""Pictures become images as torchvision's and timm's own transforms make them; channels; what is refused."""
import numpy as np
import pytest
import torch
from helpers.data_files import pixels, write_folder
from PIL import Image
from torchvision import transforms

from pwoa_cli.data import datasets, pictures
from pwoa_cli.data.pictures import Framing, standard
from pwoa_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("nowhere")


def made(path, framing, mode="RGB"):
    return pictures.ImageFiles((str(path),), framing.size, mode, framing)[torch.tensor([0])][0]


@pytest.fixture
def path(nowhere):
    Image.fromarray(pixels(61, 97, 3)).resize((500, 375)).save(nowhere / "x.png")
    return nowhere / "x.png"


def test_interpolations_are_those_of_torchvision():
    assert tuple(mode.value for mode in transforms.InterpolationMode) == pictures.INTERPOLATIONS


@pytest.mark.parametrize("size", [224, 160, 299])
def test_the_usual_protocol_is_torchvisions_resize_and_centre_crop(path, size):
    shorter = {224: 256, 160: 183, 299: 342}[size]  # 342: what torchvision says of Inception v3
    with Image.open(path) as image:
        oracle = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size),
                                     transforms.PILToTensor()])(image)
    assert torch.equal(made(path, standard((size, size), by="")), oracle)


@pytest.mark.parametrize("crop_pct, mode, interpolation", [
    (0.95, "center", "bicubic"), (0.9, "squash", "bilinear"), (1.0, "center", "bicubic"),
    (1.0, "squash", "bicubic")])
def test_timms_protocol(path, crop_pct, mode, interpolation):
    from timm.data.transforms_factory import transforms_imagenet_eval
    oracle = transforms_imagenet_eval(224, crop_pct, mode, interpolation=interpolation, use_prefetcher=True)
    scaled = int(224 / crop_pct)
    framing = Framing((224, 224), (scaled, scaled), interpolation, squashed=mode == "squash")
    with Image.open(path) as image:
        assert np.array_equal(made(path, framing).numpy(), oracle(image))


def test_pictures_of_the_right_size_are_taken_as_they_are(nowhere):
    written = np.stack(write_folder(nowhere / "pets", sizes=((160, 160),)))
    loaded = datasets.load(str(nowhere / "pets"), framing=standard((160, 160), by="a test"))
    assert torch.equal(loaded.train.batch(torch.arange(6))[0] * 255,
                       torch.from_numpy(written).permute(0, 3, 1, 2).float())
    assert loaded.size_words() == "160x160, as the pictures are"


@pytest.mark.parametrize("mode, channels, note", [("L", 3, "grey pictures are repeated to 3 channels"),
                                                  ("RGB", 1, "pictures in colour are made grey"),
                                                  ("RGB", 3, None), ("L", 1, None)])
def test_pictures_get_the_channels_of_the_network(nowhere, mode, channels, note):
    write_folder(nowhere / "pets", mode=mode)
    loaded = datasets.load(str(nowhere / "pets"), channels=channels)
    with Image.open(nowhere / "pets/train/cat/0.png") as image:
        oracle = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(8, 8, -1)
    assert np.array_equal(loaded.train.batch(torch.tensor([0]))[0][0] * 255, oracle.transpose(2, 0, 1))
    assert [said.partition(",")[0] for said in loaded.notes] == ([note] if note else [])


def test_an_alpha_channel_is_read_for_a_network_of_four_and_dropped_for_one_of_three(nowhere):
    write_folder(nowhere / "pets")
    rgba = pixels(8, 8, 4, seed=7)
    Image.fromarray(rgba).save(nowhere / "pets/train/cat/0.png")
    for channels in (3, 4):
        loaded = datasets.load(str(nowhere / "pets"), channels=channels)
        x = loaded.train.batch(torch.tensor([0]))[0][0] * 255
        assert np.array_equal(x, rgba[..., :channels].transpose(2, 0, 1))
    with pytest.raises(InputError, match="takes images of 13 channels"):
        datasets.load(str(nowhere / "pets"), channels=13)


@pytest.mark.parametrize("dtype, words", [(np.uint16, "16 bits"), (np.int32, "expected 8 bits a channel")])
def test_pictures_of_more_than_8_bits_are_named_as_such(nowhere, dtype, words):
    write_folder(nowhere / "pets", mode="L")
    Image.fromarray(np.zeros((8, 8), dtype)).save(nowhere / "pets/train/dog/2.tif")
    with pytest.raises(InputError, match="dog/2.tif has pixels of ") as error:
        datasets.decoded(datasets.load(str(nowhere / "pets")))
    assert words in error.value.message and "65535" in error.value.hint


def test_an_image_bomb_is_one_sentence(nowhere, monkeypatch):
    write_folder(nowhere / "pets")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 63)
    with pytest.raises(InputError, match="0.png is refused: it has 64 pixels, expected at most 63"):
        datasets.load(str(nowhere / "pets"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)  # Pillow refuses twice as many before it is asked
    with pytest.raises(InputError, match=r"0.png cannot be read as an image.*\(64 pixels\) exceeds limit"):
        datasets.load(str(nowhere / "pets"))
