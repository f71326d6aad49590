"""Models from checkpoint files, and what a user is told of those that cannot be had."""
import pytest

from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.errors import InputError


def load(path, **options):
    return load_model(Source(str(path), **options))


def prefixed(net, prefix):
    return {prefix + k: t for k, t in net.state_dict().items()}


def refused(path, **options):
    """What the user is told: one sentence that names the file, and what to do."""
    with pytest.raises(InputError) as caught:
        load(path, **options)
    assert caught.value.hint and caught.value.exit_code == 2
    return caught.value.message
