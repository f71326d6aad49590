"""Hashes of what a model holds."""
import torch

from pwoa_cli.files.hashes import state_sha256


def test_the_hash_sees_names_values_shapes_and_types():
    state = {"a": torch.zeros(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(3)}
    same = {k: state[k].clone() for k in "cba"}
    assert state_sha256(state) == state_sha256(same)
    for changed in ({"a": torch.zeros(3, 2)}, {"a": -torch.zeros(2, 3)},
                    {"b": torch.ones(2, dtype=torch.float16)}, {"d": torch.zeros(0)}):
        assert state_sha256(state | changed) != state_sha256(state)
