"""A model in several files with an index: each way to name it, and what is missing or wrong."""
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.checkpoint_files import refused_with

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.checkpoints.shards import checkpoint_sha256
from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.errors import InputError
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.workflows.info import describe

pytestmark = pytest.mark.usefixtures("folder")
PARTS = ({"a.weight": torch.ones(2, 3)}, {"b.weight": torch.zeros(4, 2), "b.bias": torch.ones(4)})


def sharded(end="safetensors", folder="m", **changes):
    """Two parts and their index; returns the index."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[end]
    Path(folder).mkdir()
    places = {}
    for number, state in enumerate(PARTS, 1):
        name = f"{stem}-{number:05}-of-00002.{end}"
        (safetensors.torch.save_file if end == "safetensors" else torch.save)(state, f"{folder}/{name}")
        places |= dict.fromkeys(state, name)
    index = Path(folder, f"{stem}.{end}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places} | changes))
    return index


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_a_model_in_parts_is_read_whole_by_any_of_its_names(end):
    index = sharded(end)
    for name in (index, index.parent, next(index.parent.glob("*-00002-of-*"))):
        state, _, notes = read_state_dict(name)
        assert all(torch.equal(state[k], t) for part in PARTS for k, t in part.items()) and len(state) == 3
        assert notes == (f"2 parts, as {index.name} lists them",)


def test_one_of_an_unknown_architecture_is_described_by_its_folder_too():
    index = sharded()
    found = describe(Source(str(index.parent)), say=lambda text: None)
    assert found["arch"] is None and found["sha256"] == checkpoint_sha256(index)


def test_its_hash_is_of_all_parts():
    index = sharded()
    before = checkpoint_sha256(index)
    assert before == checkpoint_sha256(index.parent) != file_sha256(index)
    safetensors.torch.save_file({"a.weight": torch.zeros(2, 3)}, next(index.parent.glob("*-00001-of-*")))
    part = index.with_name("model-00001-of-00002.safetensors")
    assert checkpoint_sha256(part) == checkpoint_sha256(index) != before


def test_parts_and_indexes_that_are_not_there():
    index = sharded()
    part = next(index.parent.glob("*-00002-of-*"))
    part.unlink()
    message, hint = refused_with(index)
    assert f"names {part.name}, and there is no such file" in message and "all 2 parts" in hint
    index.unlink()
    other = next(index.parent.glob("*-00001-of-*"))
    message, hint = refused_with(other)
    assert "is one of 2 parts" in message and index.name in hint


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[]", b'{"weight_map": []}', b'{"weight_map": {"a": "../x.safetensors"}}',
    b'{"weight_map": {"a": 3}}', b'{"weight_map": {"a": "m.index.json"}}', b'{"weight_map": {"a": "."}}',
    b"\xff\xfe", b"[" * 99999])
def test_indexes_that_are_none(content):
    Path("m.index.json").write_bytes(content)
    message, hint = refused_with(Path("m.index.json"))
    assert "m.index.json" in message and hint


def test_a_part_that_lacks_what_the_index_says():
    index = sharded()
    safetensors.torch.save_file({"c.weight": torch.ones(2)}, next(index.parent.glob("*-00001-of-*")))
    with pytest.raises(InputError, match="00001-of-00002.safetensors lacks a.weight, which"):
        read_state_dict(index)
