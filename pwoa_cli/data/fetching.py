"""Known data sets from the net, by torchvision's addresses and sums: whole or not at all; without a
network refused at once."""
import contextlib
import socket
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_CONNECT_SECONDS = 20  # a firewall that drops packets would otherwise hold the command for minutes


def download(name: str, *, kind: str, cache: Path) -> None:
    """Fetch a known data set into CACHE/name; it appears there whole or not at all.

    Args: kind: its class in torchvision.
    Raises: OSError, RuntimeError or HTTPException, as torchvision and urllib do.
    """
    target = cache / name
    if target.exists():
        raise FileExistsError(f"not tried: {target} exists but is incomplete; move it away")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as temporary, _quiet_network():
        fetched = Path(temporary) / name
        _check_network(kind)
        _fetch(kind, fetched)
        for archive in fetched.rglob("*.gz"):  # unpacked beside it
            archive.unlink()
        if not target.exists():  # else another process was faster
            fetched.rename(target)


def _check_network(kind: str) -> None:
    """Raises: OSError if no name of a server is known here: torchvision would ask again for each file, each
    mirror and both http and https."""
    from torchvision import datasets

    dataset = getattr(datasets, kind)
    addresses = (getattr(dataset, "mirrors", None) or [getattr(dataset, "url", None)
                                                       or dataset.split_list["train"][0]])
    if urllib.request.getproxies():  # it knows the names
        return
    for address in addresses:
        try:
            socket.getaddrinfo(urllib.parse.urlsplit(address).hostname, None)
            return
        except socket.gaierror as error:
            refused = f"{urllib.parse.urlsplit(address).hostname}: {error.strerror or error}"
    raise OSError(f"no network: {refused}")


def _fetch(kind: str, into: Path) -> None:
    """torchvision's addresses and MD5 sums. Its CIFAR and SVHN constructors would also unpickle and want
    scipy."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    dataset = getattr(datasets, kind)
    if issubclass(dataset, datasets.MNIST):
        dataset(into, download=True)
    elif issubclass(dataset, datasets.CIFAR10):
        download_and_extract_archive(dataset.url, into, filename=dataset.filename, md5=dataset.tgz_md5)
    else:
        for split in ("train", "test"):
            url, file, md5 = dataset.split_list[split]
            download_url(url, into, file, md5)


@contextlib.contextmanager
def _quiet_network() -> Iterator[None]:
    """torchvision may print its progress: stdout is for the result. It sets no timeout either."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)
