"""Other people's robust checkpoints, found with no flag and as accurate as published (needs ../shared)."""
import hashlib
from pathlib import Path

import pytest
import torch

import pwoa_cli
from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.data import datasets
from pwoa_cli.files import sparse

CHECKPOINTS = Path(__file__).parents[3] / "shared/checkpoints"
LENET, RESNET = CHECKPOINTS / "mnist_lenet5_advtrained.pt", CHECKPOINTS / "CIFAR10-resnet20-adv.pth"


def accuracy(model, name, n):
    test = datasets.load(name).test
    x, y = test.batch(torch.arange(n))
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(250)])
    return (logits.argmax(1) == y).double().mean().item()


def test_lenet5_of_advertorch_is_named_from_its_keys():
    loaded = load_model(LENET)
    assert (loaded.arch, loaded.num_classes, loaded.input_shape) == ("lenet5", 10, (1, 28, 28))
    assert loaded.arch_options["widths"] == [32, 64] and loaded.arch_options["hidden"] == 200
    assert loaded.arch_options["padded"]
    assert loaded.mean is None and loaded.threat is None and "normalisation: none" in loaded.notes[-1]
    assert loaded.sha256 == hashlib.sha256(LENET.read_bytes()).hexdigest()
    assert accuracy(loaded.model, "mnist", 1000) == pytest.approx(0.986, abs=0.008)


def test_resnet20_of_vanilla_adversarial_training_is_named_from_its_keys():
    loaded = load_model(RESNET)
    assert (loaded.arch, loaded.num_classes, loaded.default_size) == ("cifar-resnet", 10, (32, 32))
    assert loaded.arch_options == {"num_classes": 10, "in_channels": 3, "blocks": [3, 3, 3],
                                   "widths": [16, 32, 64], "bottleneck": False, "shortcut": "pad-end",
                                   "style": "stage_ab", "pool": False}
    assert accuracy(loaded.model, "cifar10", 1000) == pytest.approx(0.880, abs=0.008)


def test_resnet20_pads_behind_and_not_on_both_sides():
    """What the keys cannot say, told by accuracy: with zeros on both sides the same weights are near
    chance."""
    both_sides = load_model(Source(str(RESNET), arch="cifar-resnet:shortcut=pad"))
    assert accuracy(both_sides.model, "cifar10", 250) < 0.3


def test_names_of_ours_agree_with_the_keys():
    for path, name in ((RESNET, "cifar-resnet20"), (LENET, "lenet5")):
        assert load_model(Source(str(path), arch=name)).arch_options == load_model(path).arch_options


@pytest.mark.parametrize("path", [LENET, RESNET], ids=["lenet5", "resnet20"])
def test_pruned_file_gives_the_same_logits_and_the_checkpoint_s_own_keys(path, tmp_path):
    loaded = load_model(path)
    sparse.save(loaded.model.net.state_dict(), tmp_path / "m.safetensors", metadata=to_metadata(loaded))
    x = torch.rand(2, *(loaded.input_shape or (3, 32, 32)), generator=torch.Generator().manual_seed(0))
    assert torch.equal(pwoa_cli.load(tmp_path / "m.safetensors")(x), loaded.model(x))
    file = torch.load(path, map_location="cpu", weights_only=True)
    assert set(pwoa_cli.load_state_dict(tmp_path / "m.safetensors")) == set(file.get("state_dict", file))
