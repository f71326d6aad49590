"""Data sets in every format that the package reads, written here and read back equal; broken ones named."""
import contextlib
import gzip
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from helpers.data_files import cifar_batch, digits, equal, pixels, write_idx, write_npz

from pwoa_cli.data import datasets, formats
from pwoa_cli.errors import InputError
from pwoa_cli.machine import memory

pytestmark = pytest.mark.usefixtures("nowhere")

BUNDLED = Path(__file__).resolve().parents[2] / "examples" / "data"


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name, folder", [("mnist", "mnist/MNIST/raw"), ("mnist", "MNIST/raw"),
                                          ("fashion-mnist", "fashion-mnist/FashionMNIST/raw")])
def test_idx_reads_back_equal(nowhere, name, folder, ending):
    x_train, y_train, x_test, y_test = write_idx(nowhere / "d" / folder, ending=ending)
    before = sorted((nowhere / "d").rglob("*"))
    loaded = datasets.load(str(nowhere / "d"))
    assert (loaded.name, loaded.shape, loaded.num_classes) == (name, (1, 28, 28), 10)
    assert loaded.augment == "none" and loaded.threat == ("linf", 0.3 if name == "mnist" else 0.1)
    assert Path(loaded.where) == nowhere / "d" / folder
    assert equal(loaded.train, x_train[:, None], y_train) and equal(loaded.test, x_test[:, None], y_test)
    assert sorted((nowhere / "d").rglob("*")) == before  # nothing unpacked beside it


def test_bundled_mnist_is_whole_and_not_written_to():
    before = sorted(BUNDLED.rglob("*"))
    loaded = datasets.load(str(BUNDLED), download=False)
    assert len(loaded.train) == 60000 and len(loaded.test) == 10000
    # the published mean
    assert loaded.train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)
    counts = torch.bincount(loaded.test.labels).tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert sorted(BUNDLED.rglob("*")) == before


@pytest.mark.parametrize("protocol", range(2, 6))
def test_cifar100_pickles_read_back_equal(nowhere, protocol):
    images, labels = pixels(30, 3, 32, 32), digits(30, 100)
    cifar_batch(nowhere / "cifar-100-python" / "train", images, labels, "fine_labels", protocol)
    cifar_batch(nowhere / "cifar-100-python" / "test", images[:7], labels[:7], "fine_labels", protocol)
    loaded = datasets.load(str(nowhere / "cifar100"))
    assert (loaded.num_classes, loaded.augment, loaded.threat) == (100, "crop-flip", ("linf", 8 / 255))
    assert equal(loaded.train, images, labels) and equal(loaded.test, images[:7], labels[:7])


def test_cifar10_batches_are_joined_in_order(nowhere):
    images, labels = pixels(25, 3, 32, 32), digits(25)
    folder = nowhere / "cifar-10-batches-py"
    for i in range(5):
        cifar_batch(folder / f"data_batch_{i + 1}", images[5 * i:5 * i + 5], labels[5 * i:5 * i + 5],
                    "labels")
    cifar_batch(folder / "test_batch", images[:3], labels[:3], "labels")
    loaded = datasets.load(str(nowhere))
    assert loaded.name == "cifar10" and loaded.num_classes == 10
    assert equal(loaded.train, images, labels)


def test_python2_numpy_pickle_is_read():
    """The opcodes of the official archives: text as Python 2 str, arrays of `numpy.core`."""
    values = bytes(range(256)) * 12
    old = (b"\x80\x02}(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\n"
           b"(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
           b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + values
           + b"tbU\x06labels](K\x05eu.")
    for name in formats.CIFAR100_FILES:
        Path(name).write_bytes(old)
    read = formats.read_cifar100(Path())
    for images, labels in ((read.x_train, read.y_train), (read.x_test, read.y_test)):
        assert images.shape == (1, 3, 32, 32) and images.numpy().tobytes() == values
        assert labels.tolist() == [5]


def test_cifar_pickle_cannot_run_code(nowhere):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(nowhere / "owned"),)

    folder = nowhere / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": Evil()}, protocol=2))
    with pytest.raises(InputError,
                       match=r"train cannot be read as a CIFAR batch.* asks for (posix|nt)\.mkdir"):
        datasets.load(str(nowhere))
    assert not (nowhere / "owned").exists()


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn_mat_reads_back_equal(nowhere, compressed):
    images, labels = pixels(9, 3, 32, 32), np.array([10, 1, 2, 3, 4, 5, 6, 7, 10])
    for name, n in (("train_32x32.mat", 9), ("test_32x32.mat", 1)):
        scipy.io.savemat(nowhere / name,
                         {"X": images[:n].transpose(2, 3, 1, 0), "y": labels[:n, None].astype(np.uint8)},
                         do_compression=compressed)
    loaded = datasets.load(str(nowhere))
    assert (loaded.name, loaded.augment, loaded.threat) == ("svhn", "none", ("linf", 8 / 255))
    assert equal(loaded.train, images, labels % 10) and equal(loaded.test, images[:1], labels[:1] % 10)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_npz_reads_back_equal(nowhere, layout, dtype):
    def images(n):
        x = pixels(n, 3 if layout != "NHW" else 1, 6, 5, seed=n)
        return x if dtype == "uint8" else (x.astype(np.float32) / 300).astype(dtype)

    def stored(x):
        return {"NHWC": x.transpose(0, 2, 3, 1), "NCHW": x, "NHW": x[:, 0]}[layout]

    path = write_npz(nowhere / "my.npz", x_train=stored(images(12)), x_test=stored(images(8)),
                     y_train=digits(12)[:, None])
    loaded = datasets.load(str(path))
    assert (loaded.name, loaded.num_classes, loaded.augment, loaded.threat) == ("my", 10, "none", None)
    assert loaded.shape == (1 if layout == "NHW" else 3, 6, 5)
    assert equal(loaded.train, images(12).astype(dtype if dtype == "uint8" else np.float32), digits(12))
    assert equal(loaded.test, images(8).astype(dtype if dtype == "uint8" else np.float32), digits(8))


def test_npz_of_a_known_set_has_its_defaults_and_a_mere_namesake_has_not(nowhere):
    write_npz(nowhere / "cifar10.npz", x_train=pixels(12, 32, 32, 3), x_test=pixels(8, 32, 32, 3),
              y_train=digits(12, 3),
              y_test=digits(8, 3))
    for text in (nowhere, nowhere / "cifar10", nowhere / "cifar10.npz"):
        loaded = datasets.load(str(text))
        assert (loaded.name, loaded.num_classes, loaded.augment) == ("cifar10", 10, "crop-flip")
    loaded = datasets.load(str(write_npz(nowhere / "svhn.npz")))
    assert (loaded.threat, loaded.shape) == (None, (3, 6, 5))
    with pytest.raises(InputError,
                       match=r"images \(3, 6, 5\) in 10 classes, expected \(3, 32, 32\) in 10 for svhn"):
        datasets.load(str(nowhere / "svhn"))


BAD_NPZ = {
    "lacks y_test, x_test": ({"x_test": None, "y_test": None},
                             "lacks x_test, y_test; it holds x_train, y_train"),
    "lengths": ({"y_train": digits(11)}, "x_train has 12 images but y_train has 11 labels"),
    "integers": ({"x_test": pixels(8, 6, 5, 3).astype(np.int64)}, "x_test has dtype int64, expected uint8"),
    "normalised": ({"x_test": np.full((8, 6, 5, 3), -0.5)},
                   "x_test has float values from -0.5 to -0.5, expected 0..1"),
    "0..255 floats": ({"x_test": pixels(8, 6, 5, 3).astype(np.float32)},
                      "x_test has float values from 0 to 255"),
    "NaN": ({"x_test": np.full((8, 6, 5, 3), np.nan)}, "x_test has float values from nan to nan"),
    "half float": ({"x_test": np.zeros((8, 6, 5, 3), np.float32)},
                   "x_train is torch.uint8, x_test torch.float32"),
    "no channels": ({"x_train": pixels(12, 6, 5, 4)},
                    r"shape \(12, 6, 5, 4\), which has neither 1 nor 3 channels"),
    "ambiguous": ({"x_train": pixels(12, 3, 5, 3)}, r"which could be \(N,H,W,C\) or \(N,C,H,W\)"),
    "flat": ({"x_train": pixels(12, 90)}, r"x_train has shape \(12, 90\), expected images"),
    "empty": ({"x_train": pixels(0, 6, 5, 3), "y_train": digits(0)}, r"x_train has shape \(0, 6, 5, 3\)"),
    "other size": ({"x_test": pixels(8, 5, 5, 3)},
                   r"training images are \(3, 6, 5\), test images \(3, 5, 5\)"),
    "one-hot": ({"y_train": np.eye(12, dtype=np.uint8)},
                r"y_train has shape \(12, 12\), expected class numbers"),
    "float labels": ({"y_train": np.zeros(12)}, "y_train has dtype float64, expected integer"),
    "negative": ({"y_train": np.arange(12) - 1}, "y_train holds the label -1"),
    "objects": ({"y_train": np.array([{}] * 12)}, "cannot be read as an .npz file"),
}


@pytest.mark.parametrize("changes, message", BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_npz_is_named(nowhere, changes, message):
    with pytest.raises(InputError, match=message) as error:
        datasets.load(str(write_npz(nowhere / "bad.npz", **changes)))
    assert "bad.npz" in error.value.message


# --- broken files ---------------------------------------------------------------

def damaged(content):
    return {"empty": b"", "text": b"<html>not found</html>" * 40, "cut": content[:len(content) // 2],
            "short": content[:-1]}


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "short"])
@pytest.mark.parametrize("kind", ["idx", "idx.gz", "npz", "cifar", "mat", "mat.z"])
def test_broken_files_are_one_clear_sentence(nowhere, kind, damage):
    if kind.startswith("idx"):
        write_idx(nowhere / "MNIST/raw", ending=kind[3:])
        path = nowhere / "MNIST/raw" / (formats.IDX_FILES[0] + kind[3:])
    elif kind == "npz":
        path = write_npz(nowhere / "x" / "cifar10.npz")
    elif kind == "cifar":
        path = nowhere / "cifar-100-python/train"
        for name in ("train", "test"):
            cifar_batch(path.with_name(name), pixels(4, 3, 32, 32), digits(4), "fine_labels")
    else:
        path = nowhere / "train_32x32.mat"
        for name in formats.SVHN_FILES:
            scipy.io.savemat(nowhere / name,
                             {"X": pixels(32, 32, 3, 4), "y": np.array([[10], [1], [2], [3]])},
                             do_compression=kind == "mat.z")
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(InputError, match=f"{path.name} cannot be read as an? .*broken or truncated") as error:
        datasets.load(str(path.parent if kind == "npz" else nowhere))
    assert "\n" not in error.value.message and error.value.exit_code == 2


@pytest.mark.parametrize("compressed", [False, True])
def test_flipped_bytes_of_a_mat_file_are_read_or_refused(nowhere, compressed):
    """scipy's reader ends the process on some of these files."""
    content = {"X": pixels(32, 32, 3, 4), "y": np.array([[10], [1], [2], [3]])}
    for name in formats.SVHN_FILES:
        scipy.io.savemat(nowhere / name, content, do_compression=compressed)
    path, draw = nowhere / formats.SVHN_FILES[0], np.random.default_rng(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for place in draw.integers(400, size=4):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert formats.read_svhn(nowhere).x_train.shape[1:] == (3, 32, 32)
            continue
        refused += 1
    assert 0 < refused < 200 or compressed


def test_a_member_that_is_no_array_is_a_broken_file(nowhere):
    """np.load gives its bytes (found by damaging such files at random)."""
    path = write_npz(nowhere / "my.npz")
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, part in parts.items():
            new.writestr(name, b"no array" if name == "y_test.npy" else part)
    with pytest.raises(InputError, match="my.npz cannot be read as an .npz file"):
        datasets.load(str(path))


@pytest.mark.parametrize("header", [b"{'shape': (2,",
                                    b"{'descr': '|u1', 'fortran_order': False, 'shape': (2,)", b"\xff"])
def test_a_broken_array_header_is_a_broken_file(nowhere, header):
    """np.load raises tokenize.TokenError on an open bracket (found by flipping bytes at random)."""
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(nowhere / "my.npz", "w") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(InputError, match="my.npz cannot be read as an .npz file"):
        datasets.load(str(nowhere / "my.npz"))


def test_a_labels_file_in_the_place_of_images_is_refused(nowhere):
    write_idx(nowhere / "MNIST/raw")
    images, labels = (nowhere / "MNIST/raw" / name for name in formats.IDX_FILES[:2])
    images.write_bytes(labels.read_bytes())
    with pytest.raises(InputError, match=r"raw: x_train has shape \(12,\), expected images"):
        datasets.load(str(nowhere))


# --- files that claim more than they hold, or unpack to more than there is room for ---------------------

def idx_gz(folder, shape, content):
    write_idx(folder, ending=".gz")
    packed = gzip.compress(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(packed)
    return folder


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(nowhere, monkeypatch):
    monkeypatch.setattr(memory, "_said", 2**20)
    folder = idx_gz(nowhere / "bomb", (2**10, 2**8, 2**8), bytes(2**26))
    with pytest.raises(InputError, match="would take 0.0671 GB of memory"):
        formats.read_idx(folder)


def test_a_gzip_file_that_goes_on_is_read_no_further(nowhere, monkeypatch):
    monkeypatch.setattr(memory, "_said", 2**20)
    folder = idx_gz(nowhere / "bomb", (2, 4, 4), bytes(2**26))
    tracemalloc.start()
    with pytest.raises(InputError, match="33 bytes of values or more, expected 32"):
        formats.read_idx(folder)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_an_idx_file_cannot_claim_more_than_deflate_holds(nowhere):
    folder = idx_gz(nowhere / "lie", (2**31, 2**31), bytes(9))
    with pytest.raises(InputError, match="it claims 4611686018427387904 bytes, a file of its size"):
        formats.read_idx(folder)


def test_a_mat_bomb_is_refused_before_it_is_unpacked(nowhere, monkeypatch):
    def packed(size, content):
        body = zlib.compress(struct.pack("<II", 14, size) + content)
        return b"\0" * 126 + b"IM" + struct.pack("<II", 15, len(body)) + body

    monkeypatch.setattr(memory, "_said", 2**20)
    (nowhere / "train_32x32.mat").write_bytes(packed(2**26, bytes(2**26)))
    with pytest.raises(InputError, match="would take 0.0671 GB of memory"):
        formats.read_svhn(nowhere)
    (nowhere / "train_32x32.mat").write_bytes(packed(8, bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(InputError, match="cannot be read as a MATLAB 5 file"):
        formats.read_svhn(nowhere)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("harm", [
    b"\x80\x02]r\xff\xff\xff\x7f.",  # the memo's index 2**31 - 1: 16 GiB to the unpickler in C
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n\x8a\x05\0\0\0\0\x01\x85U\x01btR.",
    b"\x80\x02cnumpy\ndtype\n(U\x02u1K\0K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb."])
def test_cifar_pickles_take_nothing_of_what_they_ask_for(nowhere, harm):
    (nowhere / "test").write_bytes(harm)
    tracemalloc.start()
    with pytest.raises(InputError, match="test cannot be read as a CIFAR batch"):
        formats._cifar_batch(nowhere / "test")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
