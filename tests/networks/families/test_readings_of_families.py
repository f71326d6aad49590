"""Every reading that a family offers, of every member and naming: it is built, run and said.

Oracle: the shapes of logits, and that a reading changed back gives the first one's logits bit for bit.
"""
import pytest
import torch
from helpers.family_checks import meta, trained

from pwoa_cli.checkpoints.model import load_model, read_as, said
from pwoa_cli.networks import families
from pwoa_cli.networks.families import FAMILIES, MEMBERS, Guess
from pwoa_cli.networks.families.resnet import STYLES

NARROW = {"widths": [4, 4, 6, 8], "blocks": [1, 1, 1, 1]}
PERCEPTRON = {"convs": [], "widths": [], "kernels": [], "strides": [], "paddings": [], "pools": [],
              "hidden": [20], "heads": ["fc1", "fc2"]}
CONVS = {"convs": ["conv1", "conv2", "conv3"], "widths": [3, 4, 5], "kernels": [3, 3, 3],
         "strides": [1, 1, 1], "paddings": [1, 1, 1], "pools": [2, 2, 1], "side": 7, "heads": ["fc"],
         "hidden": []}
PLAIN = [PERCEPTRON | {"side": 28}, PERCEPTRON | {"size": 32, "side": 32, "in_channels": 3},
         PERCEPTRON | {"size": 8, "side": 8, "in_channels": 3, "norms": ["bn1"]},
         CONVS, CONVS | {"norms": ["bn1", "bn2", "bn3"], "biases": [False, False, False, True]},
         CONVS | {"end": "mean", "side": 1, "widths": [3, 4, 20], "in_channels": 3,
                  "size": 32},
         CONVS | {"kernels": [4, 4, 4], "strides": [2, 2, 2], "pools": [1, 1, 1], "side": 4, "size": 32,
                  "convs": ["1", "3", "5"], "heads": ["8", "10"], "hidden": [20]}]
# what a file may be called and hold, beside the public sizes
SMALL = [*(("cifar-resnet", {"style": style, "shortcut": shortcut, **sizes})
           for style in STYLES for shortcut in ("conv", "pad")
           for sizes in (NARROW, {"widths": [4, 6, 8], "blocks": [1, 1, 1]})),
         ("cifar-resnet", {"style": "fc", "shortcut": "conv", "bottleneck": True, **NARROW}),
         ("preact-resnet", NARROW), ("preact-resnet", NARROW | {"bn": True}),
         ("wide-resnet", {"blocks": [1, 1, 1], "stem": 4, "widths": [4, 6, 8]}),
         ("wide-resnet", {"blocks": [1, 1, 1], "stem": 4, "widths": [4, 6, 8], "style": "layer"}),
         ("dm-wide-resnet", {"blocks": [1, 1, 1], "stem": 4, "widths": [4, 6, 8]}),
         ("dm-preact-resnet", {"blocks": [1, 1, 1, 1], "stem": 4, "widths": [4, 6, 8, 8]}),
         *(("cifar-vgg", {"stages": [[4]] * 5, "end": end, "side": 1, "features": features})
           for end in ("max", "mean") for features in ("features", "feature")),
         *(("lenet5", {"widths": [3, 4], "hidden": 6, "kernel": kernel}) for kernel in (1, 3, 5)),
         ("smallcnn", {"widths": [2, 2, 3, 3], "hidden": [5, 6]}),
         ("convex-net", {"widths": [2, 3], "kernels": [4, 4], "hidden": [5]}),
         *(("plain", options) for options in PLAIN), ("plain-resnet", {"widths": [3, 4], "hidden": [20]}),
         ("plain-resnet", {"widths": [3, 3, 5], "stages": ["layer1", "layer2"], "blocks": [1, 2], "side": 1,
                           "projected": [False, True], "strides": [1, 1, 2], "end": "mean", "hidden": [],
                           "heads": ["linear"], "biases": [True, False]})]


def shape(loaded):
    return loaded.input_shape or (loaded.arch_options["in_channels"], *loaded.default_size)


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_every_reading_of_every_public_size_gives_logits_and_is_said(name):
    net = meta(lambda: families.make(name, {}))
    guess = families.identify(net.state_dict())
    for change in guess.others:
        assert change.keys() <= guess.options.keys() and said(change)
        again = meta(FAMILIES[guess.arch].make, **guess.options | change)
        assert {k: t.shape for k, t in again.state_dict().items()} == \
            {k: t.shape for k, t in net.state_dict().items()}
        with torch.device("meta"):
            side = change.get("size", (guess.input_shape or (3, 32, 32))[1])
            assert again(torch.empty(2, guess.options["in_channels"], side, side)).shape == (2, 10)


@pytest.mark.parametrize(("family", "options"), SMALL, ids=str)
def test_every_reading_of_a_file_is_read_said_and_read_back(tmp_path, family, options):
    torch.manual_seed(0)
    torch.save(trained(FAMILIES[family].make(**options)).state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt")
    assert loaded.arch == family and len(loaded.others) == len(set(map(said, loaded.others)))
    words = [said(loaded.changed(other)) for other in loaded.others]
    assert words[:4] == [note.partition("others with the same keys: ")[2] for note in loaded.notes
                         if note.startswith("others")] and all(words)
    assert len(words) <= 4 or f"and {len(words) - 4} more with the same keys" in loaded.notes
    x = torch.rand(2, *shape(loaded))
    for change in loaded.others:
        other = read_as(loaded, options=change)
        assert other.model(torch.rand(2, *shape(other))).shape == (2, 10)
        back = {key: loaded.arch_options[key] for key in change}
        assert other.notes and back in other.others
        assert torch.equal(read_as(other, options=back).model(x), loaded.model(x))


def test_torchvisions_resnet_with_a_small_stem_has_a_reading_with_the_pool_and_one_without():
    net = meta(lambda: families.make("cifar-resnet18", {"style": "fc"}))
    guess = families.identify(net.state_dict())
    assert guess.options["pool"] is False and guess.others == ({"pool": True},)


def test_a_reading_that_changes_what_a_guess_does_not_say_is_a_fault_of_ours():
    with pytest.raises(AssertionError, match="pool"):
        Guess("cifar-resnet", {}, None, "", ({"pool": True},))
