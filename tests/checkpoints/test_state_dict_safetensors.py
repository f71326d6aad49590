"""Safetensors files that are cut short or lie about their sizes, and torch files under their name."""
from pathlib import Path

import pytest
import safetensors.torch
from helpers.torch_files import STATE, refused, save

from pwoa_cli.checkpoints.state_dict import read_state_dict

pytestmark = pytest.mark.usefixtures("folder")


def test_truncated_safetensors():
    whole = safetensors.torch.save(STATE)
    for kept in range(1, len(whole), len(whole) // 22 + 1):
        for name in ("m.safetensors", "m.pt"):
            Path(name).write_bytes(whole[:kept])
            assert refused(path=name)


@pytest.mark.parametrize(("old", "new"), [
    (b'"shape":[4,4]', b'"shape":[4,5]'), (b'"shape":[4,4]', b'"shape":[9,9]'),
    (b'"data_offsets":[0,64]', b'"data_offsets":[0,99]'),
    (b'"data_offsets":[0,64]', b'"data_offsets":[9,64]'),
    (b'"data_offsets":[64,96]', b'"data_offsets":[0,32]'), (b'"F32"', b'"F99"'),
    (b'"shape":[4,4]', b'"shape":[4,]'), (b'"shape":[4,4]', b'"shape":4   ')])
def test_safetensors_header_that_lies(old, new):
    whole = safetensors.torch.save(STATE)
    assert old in whole
    length = int.from_bytes(whole[:8], "little") + len(new) - len(old)
    Path("m.safetensors").write_bytes(length.to_bytes(8, "little") + whole[8:].replace(old, new, 1))
    assert refused(path="m.safetensors")


def test_safetensors_header_longer_than_the_file():
    for claim in (2**40, 2**63, 10**8):
        content = claim.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    '
        assert f"header claims {claim} bytes" in refused(content)
        assert refused(content, path="m.safetensors")


def test_torch_file_with_the_suffix_of_another_format():
    Path("m.safetensors").write_bytes(save(STATE))
    assert set(read_state_dict("m.safetensors")[0]) == set(STATE)
