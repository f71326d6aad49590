"""Finding, fetching and loading data; the formats have their own tests."""
import ast
import functools
import hashlib
import http.server
import socket
import tarfile
import threading
import urllib.request
from pathlib import Path

import pytest
import scipy.io
import torch
from helpers.data_files import cifar_batch, digits, equal, pixels, write_folder, write_idx, write_npz

from pwoa_cli.data import datasets, formats
from pwoa_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("nowhere")


# --- finding ---------------------------------------------------------------

def test_names_are_searched_in_order(nowhere, monkeypatch):
    cache = nowhere / "home/.cache/pwoa/data"
    source, here, extra = (nowhere / "source/examples/data", Path("examples/data").absolute(),
                           nowhere / "extra")
    for folder in (source, here, cache, extra):
        write_idx(folder / "MNIST/raw")
        if folder == extra:
            assert datasets.locate("mnist") == cache / "MNIST/raw"
            monkeypatch.setenv("PWOA_DATA", str(extra))
        assert datasets.locate("mnist") == folder / "MNIST/raw"
        assert datasets.load("MNIST", download=False).where == str(folder / "MNIST/raw")
    assert datasets.places() == (extra, cache, here, source)
    assert datasets.locate("svhn") is None
    with pytest.raises(InputError, match="Did you mean mnist"):
        datasets.locate("minst")


@pytest.mark.parametrize("text, name", [("CIFAR-10", "cifar10"), ("cifar_100", "cifar100"),
                                        ("fashionmnist", "fashion-mnist"),
                                        ("Fashion_MNIST", "fashion-mnist"), ("SVHN", "svhn"),
                                        ("imagenet", None)])
def test_known_name(text, name):
    assert datasets.known_name(text) == name


def test_candidates():
    assert datasets.candidates((1, 28, 28), 10) == ("mnist", "fashion-mnist")
    assert datasets.candidates((3, 32, 32), 10) == ("cifar10", "svhn")
    assert datasets.candidates(None, 100) == ("cifar100",)
    assert datasets.candidates((3, 224, 224), 1000) == ()


@pytest.mark.parametrize("text, message, hint", [
    ("cifra10", "Unknown data set 'cifra10'. Did you mean cifar10?", "an image folder"),
    ("zzz", "Unknown data set 'zzz'.", "mnist, fashion-mnist"),
    ("no/such/dir", "no/such/dir: no such file or folder.", "an .npz file"),
    ("my.npz", "my.npz: no such file or folder.", ""),
    (".", ". holds no known data set, nor train/CLASS/", ""),
    ("./cifar100", "cifar100 is not in . (not there).", "Expected cifar-100-python/train and its companions"),
    ("note.txt", "note.txt is neither an .npz file nor a folder.", "A data set is one of mnist"),
    ("test_32x32.mat", "test_32x32.mat is neither an .npz file nor a folder.", "lies in: --data ."),
    ("train", "train is neither an .npz file nor a folder.", "A data set is one of mnist"),
])
def test_what_cannot_be_found_is_explained(text, message, hint):
    if text in ("note.txt", "test_32x32.mat", "train"):
        Path(text).write_text("hello")
    with pytest.raises(InputError) as error:
        datasets.load(text, download=False)
    assert error.value.message.startswith(message) and hint in error.value.hint


def test_several_sets_in_a_folder_must_be_told_apart(nowhere):
    write_idx(nowhere / "d/mnist/MNIST/raw")
    write_idx(nowhere / "d/fashion-mnist/FashionMNIST/raw")
    with pytest.raises(InputError, match="holds 2 data sets: mnist, fashion-mnist") as error:
        datasets.load(str(nowhere / "d"))
    assert f"--data {nowhere / 'd/mnist'}" in error.value.hint
    for name in ("mnist", "fashion-mnist", "fashionmnist"):
        assert datasets.load(str(nowhere / "d" / name)).name in (name, "fashion-mnist")


def write_cifar(folder, files, labels):
    for name in files:
        cifar_batch(folder / name, pixels(5, 3, 32, 32), digits(5, 10), labels)


def write_svhn(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats.SVHN_FILES:
        scipy.io.savemat(folder / name, {"X": pixels(32, 32, 3, 4), "y": digits(4)[:, None] + 1})


PUBLISHED = {
    "mnist": ("MNIST/raw", write_idx), "fashion-mnist": ("FashionMNIST/raw", write_idx),
    "cifar10": ("cifar-10-batches-py", lambda path: write_cifar(path, formats.CIFAR10_FILES, "labels")),
    "cifar100": ("cifar-100-python", lambda path: write_cifar(path, formats.CIFAR100_FILES, "fine_labels")),
    "svhn": ("SVHN", write_svhn)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_any_folder_of_a_published_layout_may_be_named(nowhere, monkeypatch, name):
    layout, write = PUBLISHED[name]
    write(nowhere / "d" / layout)
    folders = [nowhere / "d" / layout, *(nowhere / "d" / layout).parents][:len(Path(layout).parts) + 1]
    for folder in folders[:1] if name == "svhn" else folders:  # whose files lie in the folder itself
        loaded = datasets.load(str(folder), download=False)
        assert (loaded.name, loaded.where) == (name, str(nowhere / "d" / layout))
        assert loaded.threat == datasets.KNOWN[name].threat
        assert datasets.load(loaded.where).sha256() == loaded.sha256()
    monkeypatch.chdir(nowhere / "d" / layout)
    assert datasets.load(".").name == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_with_the_test_images_alone_is_enough_to_measure(nowhere, monkeypatch, name):
    layout, write = PUBLISHED[name]
    folder = nowhere / "d" / layout
    write(folder)
    whole = datasets.load(str(folder))
    train, test = datasets.KNOWN[name].layouts[0].split
    assert set(train) | set(test) == {path.name for path in folder.iterdir()}
    for file in train[1:]:
        (folder / file).unlink()
    if train[1:]:  # what is half there was not meant to be left out
        with pytest.raises(InputError, match="holds no known data set") as error:
            datasets.load(str(folder))
        assert f"{name}: . lacks {', '.join(train[1:])}" in error.value.hint
    (folder / train[0]).unlink()
    alone = datasets.load(str(folder))
    assert (alone.name, alone.threat, alone.num_classes) == (name, whole.threat, whole.num_classes)
    assert len(alone.train) == 0 and alone.notes[0] == "only test images are there"
    x, y = whole.test.batch(torch.arange(len(whole.test)))
    assert equal(alone.test, x.numpy(), y.numpy())
    monkeypatch.setenv("PWOA_DATA", str(nowhere / "d"))  # a set known by its name is the whole one
    assert datasets.locate(name) is None
    (folder / test[0]).unlink()
    with pytest.raises(InputError, match="holds no known data set"):
        datasets.load(str(folder))


def test_files_of_two_sets_are_told_apart_by_the_folder_s_name_or_by_the_user(nowhere, monkeypatch):
    """Those of MNIST and Fashion-MNIST have the same names."""
    write_idx(nowhere / "raw")
    with pytest.raises(InputError, match="raw holds the files of mnist or fashion-mnist.") as error:
        datasets.load(str(nowhere / "raw"))
    assert error.value.hint == f"Say which one: --data {nowhere / 'raw/mnist'}"
    assert datasets.load(str(nowhere / "raw/fashion-mnist")).threat == ("linf", 0.1)
    with monkeypatch.context() as there:  # a known name alone would be another set
        there.chdir(nowhere / "raw")
        with pytest.raises(InputError) as error:
            datasets.load(".")
        assert error.value.hint == "Say which one: --data ./mnist"
        assert datasets.load("./mnist").where == "."
    write_idx(nowhere / "MNIST/raw")
    monkeypatch.setenv("PWOA_DATA", str(nowhere / "MNIST/raw"))
    assert datasets.locate("fashion-mnist") is None
    for file in formats.IDX_FILES[2:]:
        (nowhere / "MNIST/raw" / file).unlink()
    with pytest.raises(InputError, match="holds no known data set") as error:
        datasets.load(str(nowhere / "MNIST/raw"))
    assert "mnist: . lacks t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte" in error.value.hint


def test_test_images_alone_are_taken_where_nothing_else_is_there(nowhere, monkeypatch):
    root = nowhere / "root"
    write_cifar(root / "cifar-10-batches-py", formats.CIFAR10_FILES, "labels")
    write_svhn(root)
    (root / "train_32x32.mat").unlink()  # as torchvision leaves it where only split="test" was asked for
    assert datasets.load(str(root)).name == "cifar10"
    assert len(datasets.load(str(root / "svhn")).train) == 0
    pets = nowhere / "pets"
    write_folder(pets)
    write_cifar(pets, ["test_batch"], "labels")
    assert datasets.load(str(pets)).name == "pets"
    (pets / "train").rename(pets / "training")
    (pets / "test").rename(pets / "val")
    write_cifar(pets, ["test"], "fine_labels")  # a file that is called as a folder might be
    assert datasets.load(str(pets)).name == "pets"


def test_a_link_to_training_images_that_leads_nowhere_is_not_left_out(nowhere):
    write_svhn(nowhere / "d")
    (nowhere / "d/train_32x32.mat").unlink()
    (nowhere / "d/train_32x32.mat").symlink_to("elsewhere/train_32x32.mat")
    with pytest.raises(InputError, match="holds no known data set") as error:
        datasets.load(str(nowhere / "d"))
    assert "svhn: . lacks train_32x32.mat" in error.value.hint


def test_the_set_that_was_said_is_read(nowhere):
    """The files of CIFAR-10 and CIFAR-100 in one folder, whole or the test images alone."""
    flat = nowhere / "flat"
    write_cifar(flat, formats.CIFAR10_FILES, "labels")
    cifar_batch(flat / "train", pixels(7, 3, 32, 32), digits(7, 10) + 90, "fine_labels")
    cifar_batch(flat / "test", pixels(6, 3, 32, 32), digits(6, 10) + 90, "fine_labels")
    for _ in range(2):
        with pytest.raises(InputError, match="holds the files of cifar10 or cifar100|holds 2 data sets"):
            datasets.load(str(flat))
        for name, labels in (("cifar10", digits(5, 10)), ("cifar100", digits(6, 10) + 90)):
            read = datasets.load(str(flat / name))
            assert (read.name, read.test.labels.tolist()) == (name, labels.tolist())
        for file in ("train", *formats.CIFAR10_FILES[:-1]):
            (flat / file).unlink(missing_ok=True)


def test_a_folder_here_of_a_known_name_is_pointed_at(nowhere):
    write_svhn(Path("svhn"))
    with pytest.raises(InputError) as error:
        datasets.load("svhn", download=False)
    assert error.value.hint.startswith("If the folder svhn holds it: --data ./svhn\n")
    with pytest.raises(InputError) as error:
        datasets.load("svhn/test_32x32.mat")
    assert error.value.hint == "Name the folder that it lies in: --data ./svhn"
    assert datasets.load("./svhn").name == "svhn"


def test_a_missing_set_says_where_it_looked(nowhere, monkeypatch):
    monkeypatch.setenv("PWOA_DATA", str(nowhere / "extra"))
    write_idx(Path("examples/data/MNIST/raw"), skip=formats.IDX_FILES[2:])
    with pytest.raises(InputError) as error:
        datasets.load("mnist", download=False)
    lines = error.value.message.splitlines()
    assert lines[0] == "The data set mnist was not found. Looked in:"
    assert (lines[1] == f"  {nowhere}/extra (no such folder)"
            and lines[2].endswith("home/.cache/pwoa/data (no such folder)"))
    assert lines[3].endswith("examples/data (MNIST/raw lacks t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte)")
    assert len(lines) == 5 and "--data DIR" in error.value.hint and "PWOA_DATA=DIR" in error.value.hint


# --- fetching ---------------------------------------------------------------

@pytest.mark.parametrize("name", ["mnist", "cifar100", "svhn"])
def test_a_failed_download_is_said_and_leaves_nothing(nowhere, name, capfd):
    with pytest.raises(InputError, match=r"Looked in:(.*\n)+  the network \(.+\)") as error:
        datasets.load(name)
    assert "examples/data" in error.value.message
    assert list((nowhere / "home/.cache/pwoa/data").iterdir()) == []
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name, asked", [("mnist", 2), ("cifar10", 1), ("svhn", 1)])
def test_no_network_is_said_at_the_first_refusal(nowhere, monkeypatch, name, asked):
    """A name that cannot be resolved may take a resolver 10 s: each server is asked for once."""
    from torchvision import datasets as public
    names = []

    def unknown(host, *_, **__):
        names.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.delenv(proxy)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = []
    with pytest.raises(InputError, match=r"the network \(no network: .*: Temporary failure in name res"):
        datasets.load(name, say=said.append)
    assert len(names) == len(set(names)) == min(asked, len(public.MNIST.mirrors))
    assert len(said) == 1 and said[0].startswith(f"fetching {name} into ")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(nowhere, monkeypatch):
    """A folder and its address on a web server of our own: torchvision's code fetches, checks MD5 sums and
    unpacks."""
    folder = nowhere / "mirror"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0),
                                         functools.partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_download_appears_whole_in_the_cache_and_prints_to_stderr(nowhere, mirror, monkeypatch, capfd):
    from torchvision import datasets as public
    folder, url = mirror
    x_train, y_train, *_ = write_idx(folder, ending=".gz")
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]
    monkeypatch.setattr(public.MNIST, "mirrors", [url])
    monkeypatch.setattr(public.MNIST, "resources", sums)
    loaded = datasets.load("mnist")
    cache = nowhere / "home/.cache/pwoa/data"
    assert loaded.where == str(cache / "mnist/MNIST/raw") and equal(loaded.train, x_train[:, None], y_train)
    assert sorted(p.name for p in cache.rglob("*") if p.is_file()) == sorted(formats.IDX_FILES)
    assert capfd.readouterr().out == ""
    assert datasets.load("mnist", download=False).where == loaded.where


def test_downloaded_archive_is_unpacked(nowhere, mirror, monkeypatch):
    from torchvision import datasets as public
    folder, url = mirror
    images, labels = pixels(5, 3, 32, 32), digits(5, 100)
    for name in ("train", "test"):
        cifar_batch(folder / "cifar-100-python" / name, images, labels, "fine_labels")
    archive = folder / public.CIFAR100.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(public.CIFAR100, "url", url + archive.name)
    monkeypatch.setattr(public.CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert equal(datasets.load("cifar100").test, images, labels)
    assert [p.name for p in (nowhere / "home/.cache/pwoa/data/cifar100").iterdir()] == ["cifar-100-python"]


def test_download_with_a_wrong_md5_sum_is_refused(nowhere, mirror, monkeypatch):
    from torchvision import datasets as public
    folder, url = mirror
    folder.mkdir()
    (folder / "train.mat").write_bytes(b"other")
    monkeypatch.setattr(public.SVHN, "split_list", {
        split: [f"{url}{split}.mat", f"{split}_32x32.mat", "0" * 32] for split in ("train", "test")})
    with pytest.raises(InputError, match="the network .*corrupted"):
        datasets.load("svhn")
    assert list((nowhere / "home/.cache/pwoa/data").iterdir()) == []


def test_an_incomplete_set_in_the_cache_is_not_touched(nowhere):
    folder = nowhere / "home/.cache/pwoa/data/mnist/MNIST/raw"
    write_idx(folder, skip=formats.IDX_FILES[:1])
    with pytest.raises(InputError, match="lacks train-images-idx3-ubyte(.*\n)+.*incomplete; move it away"):
        datasets.load("mnist")
    assert len(list(folder.iterdir())) == 3


# --- loading ---------------------------------------------------------------

def test_large_arrays_stay_off_the_device(nowhere, monkeypatch):
    monkeypatch.setattr(formats, "SMALL_BYTES", 0)
    loaded = datasets.load(str(write_npz(nowhere / "my.npz")), device="meta")
    assert loaded.train.images.device.type == "cpu" and loaded.train.labels.device.type == "meta"


def test_torchvision_is_imported_inside_functions_only():
    paths = list(Path(formats.__file__).parent.glob("*.py"))
    assert len(paths) > 3  # the readers among them
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                     else [getattr(node, "module", "") or ""])
            assert not any(name.startswith(("torchvision", "PIL", "scipy")) for name in names)
