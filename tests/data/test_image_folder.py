"""Image folders: read back equal at once or batch by batch, resized, and broken ones named."""
import itertools
import threading

import numpy as np
import pytest
import torch
from helpers.data_files import equal, pixels, write_folder
from PIL import Image

from pwoa_cli import progress
from pwoa_cli.data import datasets, formats
from pwoa_cli.data.dataset import drawn
from pwoa_cli.data.pictures import standard
from pwoa_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("limit", [0, formats.SMALL_BYTES])
def test_image_folder_reads_back_equal(nowhere, monkeypatch, mode, test, limit):
    monkeypatch.setattr(formats, "SMALL_BYTES", limit)
    written = np.stack(write_folder(nowhere / "pets", mode=mode, test=test))
    images = written.reshape(6, 8, 8, -1).transpose(0, 3, 1, 2)
    loaded = datasets.decoded(datasets.load(str(nowhere / "pets")))
    assert isinstance(loaded.train.images, torch.Tensor) == (limit > 0)
    assert (loaded.name, loaded.num_classes, loaded.shape) == ("pets", 2, (images.shape[1], 8, 8))
    assert (loaded.augment, loaded.threat, len(loaded.test)) == ("none", None, 4)
    assert equal(loaded.train, images, [0, 0, 0, 1, 1, 1])
    index = torch.tensor([5, 0, 5])
    x, y = loaded.train.batch(index)
    assert torch.equal(x * 255, torch.from_numpy(images[index]).float()) and y.tolist() == [1, 0, 1]


def test_image_folder_is_resized_and_cropped_about_the_centre(nowhere):
    write_folder(nowhere / "pets", sizes=((16, 24), (8, 8), (30, 9)))
    with pytest.raises(InputError, match=r"differ in size: .*0.png is \(16, 24\), .*1.png \(8, 8\)"):
        datasets.load(str(nowhere / "pets"))
    loaded = datasets.load(str(nowhere / "pets"), framing=standard((8, 12), by="a test"))
    x, _ = loaded.train.batch(torch.arange(3))
    words = "8x12: pictures of different sizes are scaled to cover 8x12 (bilinear) (a test)"
    assert loaded.size_words() == words == datasets.decoded(loaded).size_words()
    assert x.shape == (3, 3, 8, 12)
    # oracle: Pillow's own resize; nothing to cut here
    with Image.open(nowhere / "pets/train/cat/0.png") as image:
        assert np.array_equal(np.asarray(image.resize((12, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1),
                              x[0] * 255)
    with Image.open(nowhere / "pets/train/cat/1.png") as image:
        whole = np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(whole[:, 2:10], x[1] * 255)


def test_one_grey_file_does_not_make_a_colour_folder_grey(nowhere):
    write_folder(nowhere / "pets")
    Image.fromarray(pixels(8, 8)).save(nowhere / "pets/train/cat/0.png")
    assert datasets.load(str(nowhere / "pets")).shape == (3, 8, 8)


def test_bad_image_folders_are_named(nowhere):
    write_folder(nowhere / "pets")
    (nowhere / "pets/train/eel").mkdir()
    with pytest.raises(InputError, match="3 classes and .* 2: only train has eel"):
        datasets.load(str(nowhere / "pets"))
    (nowhere / "pets/test/eel").mkdir()
    with pytest.raises(InputError, match="train: Found no valid file for the classes eel"):
        datasets.load(str(nowhere / "pets"))
    for split in ("train", "test"):
        (nowhere / f"pets/{split}/eel").rmdir()
    victim = nowhere / "pets/train/dog/2.png"
    victim.write_bytes(victim.read_bytes()[:90])
    with pytest.raises(InputError, match="dog/2.png cannot be read as an image"):
        datasets.decoded(datasets.load(str(nowhere / "pets")))


def test_batches_can_be_read_from_several_threads(nowhere, monkeypatch):
    monkeypatch.setattr(formats, "SMALL_BYTES", 0)
    write_folder(nowhere / "pets")
    split = datasets.load(str(nowhere / "pets")).train
    expected, got = split.batch(torch.arange(6))[0], {}
    threads = [threading.Thread(target=lambda i=i: got.__setitem__(i, split.batch(torch.arange(6))[0]))
               for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and all(torch.equal(expected, x) for x in got.values())


def test_a_cut_image_in_a_lazy_folder_is_named_when_it_is_read(nowhere, monkeypatch):
    monkeypatch.setattr(formats, "SMALL_BYTES", 0)
    write_folder(nowhere / "pets")
    victim = nowhere / "pets/train/cat/1.png"
    victim.write_bytes(victim.read_bytes()[:-30])
    split = datasets.load(str(nowhere / "pets")).train
    split.batch(torch.tensor([0, 2]))
    with pytest.raises(InputError, match="cat/1.png cannot be read as an image"):
        split.batch(torch.tensor([1]))


def test_the_probe_is_decoded_once_and_holds_what_would_be_chosen_of_the_whole(nowhere):
    write_folder(nowhere / "pets")
    loaded = datasets.load(str(nowhere / "pets"))
    probed = loaded.probed(4, say=lambda text: None)
    index = drawn(6, 4)
    assert isinstance(probed.probe.images, torch.Tensor) and len(probed.train) == 6
    for got, expected in zip(probed.probe.batch(torch.arange(4)), loaded.train.batch(index), strict=True):
        assert torch.equal(got, expected)
    assert datasets.decoded(probed).probe.images.shape == (6, 3, 8, 8)  # all of them again


def test_decoding_is_said_within_5_seconds(nowhere, monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", itertools.count(0, 6).__next__)
    write_folder(nowhere / "pets")
    said = []
    datasets.decoded(datasets.load(str(nowhere / "pets"), say=said.append), say=said.append)
    assert said[0] == f"listing the pictures of {nowhere / 'pets/train'}"
    assert "decoding pictures: 6 of 6 training images" in said
    datasets.load(str(nowhere / "pets")).probed(4, say=said.append)
    assert "decoding pictures: 4 of 4 to try it on" in said  # not more than there are
