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
         ("convex-net", {"widths": [2, 3], "kernels": [4, 4], "hidden": [5]})]


def side(guess):
    return (guess.input_shape or (3, 32, 32))[1:]


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
            assert again(torch.empty(1, guess.options["in_channels"], *side(guess))).shape == (1, 10)


@pytest.mark.parametrize(("family", "options"), SMALL, ids=str)
def test_every_reading_of_a_file_is_read_said_and_read_back(tmp_path, family, options):
    torch.manual_seed(0)
    torch.save(trained(FAMILIES[family].make(**options)).state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt")
    assert loaded.arch == family and loaded.notes and set(said(other) for other in loaded.others) <= \
        {note.partition("keys: ")[2] for note in loaded.notes}
    shape = loaded.input_shape or (loaded.arch_options["in_channels"], *loaded.default_size)
    x = torch.rand(2, *shape)
    for change in loaded.others:
        other = read_as(loaded, options=change)
        assert other.model(x[..., :other.default_size[0], :other.default_size[1]]).shape == (2, 10)
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
