"""Files of somebody else's making as plain tensors: what lies beside them, envelopes, prefixes, and what is
refused."""
import argparse
import datetime
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoint_files import WEIGHTS, refused, refused_with, saved, written

from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.checkpoints.training_threat import threat_of
from pwoa_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("folder")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch ran",)


def prefixed(prefix, state=WEIGHTS):
    return {prefix + key: tensor for key, tensor in state.items()}


def notes_of(content, **options):
    return read_state_dict(saved(content), **options)[2]


# --- what lies beside the weights ---------------------------------------------------------------

@pytest.mark.parametrize("args", [{"epsilon": 0.3, "norm": "inf"},
                                  argparse.Namespace(epsilon=0.3, norm="l_inf")])
def test_settings_beside_the_weights_are_kept(args):
    assert threat_of(read_state_dict(saved({"state_dict": WEIGHTS, "args": args}))[1]) == ("linf", 0.3)


def test_numbers_of_numpy_beside_the_weights_are_data():
    numbers = {"best_acc": np.float64(93.5), "epoch": np.int64(7), "lr": np.float32(0.5),
               "done": np.bool_(True)}
    for new in (True, False):
        file = saved({"net": WEIGHTS} | numbers, _use_new_zipfile_serialization=new)
        state, extra, notes = read_state_dict(file)
        assert extra == numbers and notes == ("unwrapped: net",) and set(state) == set(WEIGHTS)


def test_numbers_of_numpy_1_are_read_too():
    file = saved({"net": WEIGHTS, "best_acc": np.float64(93.5)}, _use_new_zipfile_serialization=False)
    content = Path(file).read_bytes().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    assert read_state_dict(written(content))[1] == {"best_acc": 93.5}


class Forged:
    """A number of NumPy whose bytes would be taken for the address of an object, were its dtype let in with
    other flags."""

    def __reduce__(self):
        return np.float64(0).__reduce__()[0], (np.dtype("O"), b"\x41" * 8)


def test_objects_in_numpy_s_clothes_are_not_data():
    message = refused(saved({"net": WEIGHTS, "log": np.array([Bomb()])}))
    assert "posix.system to be read; nothing was run" in message
    assert refused(saved({"net": WEIGHTS, "best_acc": Forged()})) and not Path("ran").exists()


def test_scalar_tensors_beside_an_envelope_and_envelopes_without_weights():
    scalars = {"epoch": torch.tensor(3), "best_acc": torch.tensor(93.5)}
    assert set(read_state_dict(saved({"net": WEIGHTS} | scalars))[0]) == set(WEIGHTS)
    file = saved({"model": {"depth": 3}, "net": {"state_dict": WEIGHTS}, "epoch": 3})
    state, extra, notes = read_state_dict(file)
    assert set(state) == set(WEIGHTS) and notes == ("unwrapped: net > state_dict",) and extra["epoch"] == 3


def test_envelope_in_itself_ends():
    content = {"epoch": 3}
    content["model"] = content
    assert "holds no weights" in refused(saved(content))
    assert set(read_state_dict(saved(content | {"model": WEIGHTS}))[0]) == set(WEIGHTS)


# --- envelopes ---------------------------------------------------------------

MORE = prefixed("1.") | prefixed("2.")


@pytest.mark.parametrize(("content", "said"), [
    ({"state_dict": {"model": prefixed("module.model.")}},
     "unwrapped: state_dict > model; prefix module.model."),
    ({"net": {"state_dict": {"best_model": WEIGHTS}}}, "unwrapped: net > state_dict > best_model"),
    ({"swa_model": prefixed("module."), "n": 3}, "unwrapped: swa_model; prefix module."),
    ({"my_weights": prefixed("_orig_mod.")}, "unwrapped: my_weights; _orig_mod in keys"),
    ({"run": {"phase2": WEIGHTS},
      "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 3)}}, "param_groups": []}},
     "unwrapped: run > phase2"),
    (prefixed("module.basic_model.1.", MORE), "unwrapped: prefix module.basic_model.1."),
    (prefixed("wrapped.", MORE), "unwrapped: prefix wrapped.")])
def test_what_was_unwrapped_is_said(content, said):
    state, _, notes = read_state_dict(saved(content))
    assert notes == (said,) and set(state) in (set(WEIGHTS), set(MORE))


@pytest.mark.parametrize("content", [
    WEIGHTS, {"w.weight": torch.ones(2)}, prefixed("a.") | {"b.weight": torch.ones(2)}])
def test_names_of_layers_are_no_wrapper_s(content):
    state, _, notes = read_state_dict(saved(content))
    assert set(state) == set(content) and notes == ()


def test_doubles_are_dropped_and_counted():
    content = prefixed("module.model.") | prefixed("module.attacker.model.") | {
        f"module.{where}.new_mean": torch.zeros(3) for where in ("normalizer", "attacker.normalize")}
    state, _, notes = read_state_dict(saved({"model": content}))
    assert notes == ("unwrapped: model; prefix module.model.; dropped 3 tensors that are no layer's: "
                     "attacker.*",)
    assert set(state) == {*WEIGHTS, "normalizer.new_mean"}


def test_prefixes_are_removed_from_the_start_alone():
    state = {"module.a.module.weight": torch.ones(2), "module.b.model.weight": torch.ones(2)}
    assert set(read_state_dict(saved(state))[0]) == {"a.module.weight", "b.model.weight"}
    mixed = {"module.a.weight": torch.ones(2), "b.weight": torch.ones(2)}
    assert set(read_state_dict(saved(mixed))[0]) == set(mixed)


OTHER = {key: tensor + 1 for key, tensor in WEIGHTS.items()}


@pytest.mark.parametrize(("names", "choice"), [
    (("last", "best"), "best"), (("teacher", "student"), "student"),
    (("netG", "netD"), "netG"), (("phase1", "phase2"), "phase1")])
def test_two_models_are_not_chosen_between(names, choice):
    path = saved({names[0]: {"state_dict": WEIGHTS}, names[1]: {"state_dict": OTHER}, "epoch": 3})
    message, hint = refused_with(path)
    assert all(f"'{name}'" in message for name in names) and f"--entry {choice}" in hint
    for name, expected in zip(names, (WEIGHTS, OTHER), strict=True):
        for entry in (name, f"{name}.state_dict"):
            state, extra, notes = read_state_dict(path, entry=entry)
            assert torch.equal(state["w.bias"], expected["w.bias"]) and extra["epoch"] == 3
            assert notes == (f"unwrapped: {name} > state_dict",)
    message, hint = refused_with(path, entry="first")
    assert "no entry 'first'" in message and all(name in message for name in names) and "--entry" in hint


def test_entry_looks_inside_envelopes_and_takes_what_is_left_aside_otherwise():
    content = {"checkpoint": {"model": WEIGHTS, "ema.v2": OTHER}}
    path = saved(content)
    assert notes_of(content)[0].endswith("it also holds 'ema.v2', which is not used")
    for entry in ("ema.v2", "checkpoint.ema.v2"):
        assert torch.equal(read_state_dict(path, entry=entry)[0]["w.bias"], OTHER["w.bias"])
    assert torch.equal(read_state_dict(path, entry="model")[0]["w.bias"], WEIGHTS["w.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_models_side_by_side_in_one_state_dict(prefix):
    path = saved({"state_dict": prefixed(prefix, prefixed("student.") | prefixed("teacher.", OTHER))})
    message, hint = refused_with(path)
    assert "student, teacher" in message and hint == "Say which: --entry student"
    state, _, notes = read_state_dict(path, entry="teacher")
    assert torch.equal(state["w.bias"], OTHER["w.bias"]) and notes == ("unwrapped: state_dict > teacher.*",)
    assert "begin with: student, teacher" in refused_with(path, entry="net")[0]


def test_lightning_s_checkpoint():
    content = {"state_dict": prefixed("model."), "hyper_parameters": {"eps": 8, "norm": "Linf"}, "epoch": 3,
               "loops": {"fit": {}},
               "optimizer_states": [{"state": {0: {"m": torch.ones(2, 3)}}, "param_groups": []}],
               "callbacks": {"x": {"best": 1}}}
    state, extra, notes = read_state_dict(saved(content))
    assert set(state) == set(WEIGHTS) and threat_of(extra) == ("linf", 8 / 255)
    assert "prefix model." in notes[0]


# --- more than tensors, or other tensors ---------------------------------------------------------------

@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(("extra", "name"), [
    (Bomb(), "system"), (datetime.date(2020, 1, 1), "datetime.date")])
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
    message = refused(saved({"w.weight": tensor, "v": torch.ones(2)}))
    assert f"w.weight is {'torch.' if 'sparse' in said else ''}{said}" in message


def test_not_finite_weights_are_named_and_counted():
    weight = torch.ones(4, 27)
    weight[0, :9], weight[1, 0] = float("nan"), float("inf")
    assert "w has 10 NaN or infinite values of 108" in refused(saved({"w": weight}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16,
                                   torch.float8_e5m2])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_one_value_of_any_dtype_is_found(dtype, value):
    for place in (0, 57, 107):
        weight = torch.ones(108)
        weight[place] = float(value)
        assert "w has 1 NaN or infinite values of 108" in refused(saved({"w": weight.view(4, 27).to(dtype)}))
    weight = torch.full((4, 27), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
    finite = {"w": weight, "none": torch.ones(0, 3).to(dtype)}
    assert read_state_dict(saved(finite))[0]["w"].dtype == dtype


@pytest.mark.parametrize("content", [torch.zeros(3), [3.0], {}, {"epoch": 3},
                                     {"a": torch.zeros(3, dtype=torch.long)}])
def test_files_without_weights(content):
    message = refused(saved(content))
    assert "expected a state dict" in message or "holds no weights" in message


@pytest.mark.parametrize(("make", "said"), [
    (lambda w: w.to(torch.int8), "w.weight is int8, expected floating point"),
    (lambda w: w.to(torch.complex64), "w.weight is complex64"), (lambda w: w.to_sparse_csr(), "sparse_csr"),
    (lambda w: torch.quantize_per_tensor(w, 1, 0, torch.qint8), "quantized")])
@pytest.mark.filterwarnings("ignore")  # of beta states and deprecated types
def test_weights_of_other_numbers_are_named(make, said):
    assert said in refused(saved({"w.weight": make(torch.ones(2, 2)), "v": torch.ones(2)}))


def test_float8_is_read():
    weight = torch.ones(2, 2).to(torch.float8_e4m3fn)
    assert read_state_dict(saved({"w.weight": weight}))[0]["w.weight"].dtype == torch.float8_e4m3fn


# --- files that are none ---------------------------------------------------------------

@pytest.mark.parametrize("new", [True, False])
def test_truncated_files_are_said_in_one_sentence(new):
    whole = Path(saved({"w": torch.ones(200)}, _use_new_zipfile_serialization=new)).read_bytes()
    for kept in (100, len(whole) // 2, len(whole) - 10):
        assert "broken or truncated" in refused(written(whole[:kept]))


def test_pipes_and_devices_do_not_hang():
    os.mkfifo("pipe.pt")
    caught = []
    thread = threading.Thread(target=lambda: caught.extend([refused("pipe.pt"), refused("/dev/zero")]),
                              daemon=True)
    thread.start()
    thread.join(10)
    assert [m.endswith("is not a file.") for m in caught] == [True, True]


def test_paths_that_are_no_file(tmp_path):
    assert "no such file" in refused("none.pt") and "no such file" in refused("a" * 300 + ".pt")
    assert "folder" in refused(tmp_path)
    for url in ("https://example.org/m.pt", Path("https://example.org/m.pt")):  # the latter makes // to /
        with pytest.raises(InputError) as caught:
            read_state_dict(url)
        assert "is a URL" in caught.value.message and caught.value.hint.startswith("Download it first: ")


@pytest.mark.parametrize(("beside", "said"), [
    ({"ema": {"decay": 0.9, "shadow_params": [torch.ones(2, 2)]}}, "'ema' of the file is an average"),
    ({"model_ema": [torch.ones(2, 2)]}, "'model_ema' of the file is an average whose tensors have no names"),
    ({"mask": {"w.weight": torch.tensor([[True, False]])}}, "'mask' of the file is not applied"),
    ({"ema_decay": 0.9, "masked": True}, "")])
def test_averages_without_names_and_masks_are_named(beside, said, tmp_path, monkeypatch):
    """They were left out without a word."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w.weight": torch.ones(1, 2), "w.bias": torch.ones(1)}} | beside, "m.pt")
    notes = read_state_dict("m.pt")[2]
    assert not said or any(said in note for note in notes)
    assert len([n for n in notes if "warning" in n]) == bool(said)
