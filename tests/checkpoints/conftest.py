"""Small networks, a file to write them to, and a folder of one's own."""
import pytest
import safetensors.torch
import torch

from pwoa_cli.networks.families.resnet import CifarResNet
from pwoa_cli.networks.families.small import LeNet


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def lenet():
    return LeNet(widths=(3, 4), hidden=5).eval()


@pytest.fixture
def resnet():
    return CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)).eval()


@pytest.fixture
def save(tmp_path):
    """Writes an object as model.pt (or .safetensors) and returns its path."""
    def write(content, name="model.pt", **options):
        path = tmp_path / name
        if name.endswith(".safetensors"):
            safetensors.torch.save_file(content, path, **options)
        else:
            torch.save(content, path, **options)
        return path
    return write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
