"""Checkpoint files in the working folder, and what a user is told of those that cannot be read."""
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.errors import InputError

WEIGHTS = OrderedDict({"w.weight": torch.arange(6.0).reshape(2, 3), "w.bias": torch.zeros(2)})


def saved(content, **options):
    torch.save(content, "m.pt", **options)
    return "m.pt"


def written(content):
    Path("m.pt").write_bytes(content)
    return "m.pt"


def refused(path):
    """What the user is told: one sentence about the file, and what to do."""
    return refused_with(path)[0]


def refused_with(path, **options):
    """(message, hint)."""
    with pytest.raises(InputError) as caught:
        read_state_dict(path, **options)
    message, hint = caught.value.message, caught.value.hint
    assert hint and str(path) in message and len(message) < 190 + len(str(path))
    assert "\n" not in message and caught.value.exit_code == 2
    return message, hint
