"""What all families share: any classes and channels, and every public size is named from its keys."""
import json

import pytest
import torch

from pwoa_cli.networks import families
from pwoa_cli.networks.build import build
from pwoa_cli.networks.families import MEMBERS


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_every_family_gives_logits_for_any_classes_and_channels(name):
    size = 28 if name.startswith(("lenet5", "smallcnn", "convex")) or name == "plain" else 32
    with torch.device("meta"):
        net = build(name, {"num_classes": 7, "in_channels": 2})
        assert net(torch.empty(2, 2, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_every_public_size_is_named_from_its_keys(name):
    family, fixed = MEMBERS[name]
    for extra in ({"num_classes": 10}, {"num_classes": 100, "in_channels": 1}):
        with torch.device("meta"):
            net = families.make(name, extra)
        guess = families.identify(net.state_dict())
        assert guess is not None and guess.arch == family
        assert {k: guess.options[k] for k in (*fixed, *extra)} == {**fixed, **extra}
        json.dumps(guess.options)
