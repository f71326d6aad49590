"""In place of the command line's world: trained networks with and without batch norms, and data for them."""
import pytest
import torch
from helpers import small_models as small


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Trained networks with and without batch norm, and data for them."""
    folder = tmp_path_factory.mktemp("world")
    small.save(small.learn(small.lenet()), folder / "lenet.pt")
    small.save(small.learn(small.resnet(), channels=3), folder / "resnet.pt")
    small.write_npz(folder / "grey.npz")
    small.write_npz(folder / "colour.npz", channels=3)
    return folder


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(world)
    yield world
    torch.set_num_threads(threads)
