import argparse
import datetime
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from pwoa_cli.checkpoint_file import read_state_dict, threat_of
from pwoa_cli.errors import InputError

WEIGHTS = OrderedDict({"w.weight": torch.arange(6.0).reshape(2, 3), "w.bias": torch.zeros(2)})


class Bomb:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(content, **options):
    torch.save(content, "m.pt", **options)
    return "m.pt"


def written(content):
    Path("m.pt").write_bytes(content)
    return "m.pt"


def refused(path):
    """What the user is told: one sentence about the file, and what to do."""
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    assert caught.value.hint and str(path) in caught.value.message and len(caught.value.message) < 150 + len(str(path))
    return caught.value.message


# what lies beside the weights

@pytest.mark.parametrize(("settings", "threat"), [
    ({"eps": "2.0", "norm": "l2"}, ("l2", 2.0)), ({"eps": 8, "norm": "Linf"}, ("linf", 8 / 255)),
    ({"epsilon": 0.3}, ("linf", 0.3)), ({"eps": 1e-8}, None), ({"eps": "nan"}, None), ({"eps": 0}, None),
    ({"args": {"eps": 0.1}}, ("linf", 0.1)),
    ({"args": argparse.Namespace(epsilon=0.5, norm="L2")}, ("l2", 0.5)),
    ({"eps": "8/255"}, ("linf", 8 / 255)), ({"eps": True}, None), ({"eps": True, "epsilon": 0.3}, ("linf", 0.3)),
    ({"eps": "8/0"}, None), ({"eps": "small"}, None), ({"args": {"eps": torch.tensor([0.1, 0.2])}}, None),
    ({"eps": np.float64(0.3)}, ("linf", 0.3))])
def test_threat_of_settings(settings, threat):
    assert threat_of(settings) == threat


@pytest.mark.parametrize("args", [{"epsilon": 0.3, "lr": 0.1}, argparse.Namespace(epsilon=0.3)])
def test_settings_beside_the_weights_are_kept(args):
    assert threat_of(read_state_dict(saved({"state_dict": WEIGHTS, "args": args}))[1]) == ("linf", 0.3)


def test_numbers_of_numpy_beside_the_weights_are_data():
    numbers = {"best_acc": np.float64(93.5), "epoch": np.int64(7), "lr": np.float32(0.5), "done": np.bool_(True)}
    for new in (True, False):
        state, extra, notes = read_state_dict(saved({"net": WEIGHTS} | numbers, _use_new_zipfile_serialization=new))
        assert extra == numbers and not notes and set(state) == set(WEIGHTS)


def test_numbers_of_numpy_1_are_read_too():
    file = saved({"net": WEIGHTS, "best_acc": np.float64(93.5)}, _use_new_zipfile_serialization=False)
    content = Path(file).read_bytes().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    assert read_state_dict(written(content))[1] == {"best_acc": 93.5}


class Forged:
    """A number of NumPy whose bytes would be taken for the address of an object, were its dtype let in with other flags."""

    def __reduce__(self):
        return np.float64(0).__reduce__()[0], (np.dtype("O"), b"\x41" * 8)


def test_objects_in_numpy_s_clothes_are_not_data():
    assert "posix.system to be read; nothing was run" in refused(saved({"net": WEIGHTS, "log": np.array([Bomb()])}))
    assert refused(saved({"net": WEIGHTS, "best_acc": Forged()})) and not Path("ran").exists()


def test_scalar_tensors_beside_an_envelope_and_envelopes_without_weights():
    scalars = {"epoch": torch.tensor(3), "best_acc": torch.tensor(93.5)}
    assert set(read_state_dict(saved({"net": WEIGHTS} | scalars))[0]) == set(WEIGHTS)
    state, extra, notes = read_state_dict(saved({"model": {"depth": 3}, "net": {"state_dict": WEIGHTS}, "epoch": 3}))
    assert set(state) == set(WEIGHTS) and not notes and extra["epoch"] == 3


def test_envelope_in_itself_ends():
    content = {"epoch": 3}
    content["model"] = content
    assert "holds no weights" in refused(saved(content))
    assert set(read_state_dict(saved(content | {"model": WEIGHTS}))[0]) == set(WEIGHTS)


# files that hold more than tensors, or other tensors

@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(("extra", "name"), [(Bomb(), "system"), (datetime.date(2020, 1, 1), "datetime.date")])
def test_what_a_file_would_run_is_named_and_not_run(new, extra, name):
    message = refused(saved({"w": torch.ones(2), "extra": extra}, _use_new_zipfile_serialization=new))
    assert f"{name} to be read; nothing was run" in message and not Path("ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_plain_pickle_would_run_is_named_and_not_run(protocol):
    message = refused(written(pickle.dumps({"w": [1.0], "extra": Bomb()}, protocol=protocol)))
    assert "system to be read; nothing was run" in message and not Path("ran").exists()


@pytest.mark.parametrize(("tensor", "said"), [
    (torch.ones(2, 2).to_sparse(), "sparse_coo"), (torch.ones(2, 2, device="meta"), "without values")])
def test_tensors_that_are_not_dense_are_named(tensor, said):
    assert f"w.weight is {'torch.' if 'sparse' in said else ''}{said}" in refused(saved({"w.weight": tensor, "v": torch.ones(2)}))


def test_not_finite_weights_are_named_and_counted():
    weight = torch.ones(4, 27)
    weight[0, :9], weight[1, 0] = float("nan"), float("inf")
    assert "w has 10 NaN or infinite values of 108" in refused(saved({"w": weight}))


# files that are none

@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"), (b"<!DOCTYPE html><html>", "HTML page"), (b"\n <HTML lang=en>", "HTML page"),
    (b"<?xml version", "HTML page"),
    (b"hello world\n" * 10, "is not a checkpoint"), (b"version https://git-lfs.github.com/spec/v1\n", "is not a checkpoint"),
    (b"import torch\nfrom torch import nn\n", "is not a checkpoint"), (bytes(range(7, 256)) * 20, "is not a checkpoint")])
def test_files_that_are_no_checkpoint(content, said):
    assert said in refused(written(content))


def test_safetensors_whose_first_byte_is_that_of_a_page():
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(ord("<"))
    file = written(len(header).to_bytes(8, "little") + header + np.ones(2, "<f4").tobytes())
    assert Path(file).read_bytes()[:1] == b"<" and read_state_dict(file)[0]["w"].tolist() == [1, 1]


def test_broken_safetensors(tmp_path):
    for content in (b"\xff" * 20, b"<html>"):
        Path("m.safetensors").write_bytes(content)
        assert refused("m.safetensors")


@pytest.mark.parametrize("new", [True, False])
def test_truncated_files_are_said_in_one_sentence(new):
    whole = Path(saved({"w": torch.ones(200)}, _use_new_zipfile_serialization=new)).read_bytes()
    for kept in (100, len(whole) // 2, len(whole) - 10):
        assert "broken or truncated" in refused(written(whole[:kept]))


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {}, {"epoch": 3}, {"a": torch.zeros(3, dtype=torch.long)}])
def test_files_without_weights(content):
    message = refused(saved(content))
    assert "expected a state dict" in message or "holds no weights" in message


def test_paths_that_are_no_file(tmp_path):
    assert "no such file" in refused("none.pt") and "no such file" in refused("a" * 300 + ".pt")
    assert "folder" in refused(tmp_path)
    for url in ("https://example.org/m.pt", Path("https://example.org/m.pt")):  # a Path makes one slash of two
        with pytest.raises(InputError) as caught:
            read_state_dict(url)
        assert caught.value.hint == "A URL must be downloaded first."
