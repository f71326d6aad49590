"""`pwoa bench` as a user types it: what is timed, what is left out and why, what it concludes."""
import json
from pathlib import Path

import pytest
import torch
from helpers import small_models as small

from pwoa_cli.checkpoints.model import load_model
from pwoa_cli.exports import runtimes
from pwoa_cli.networks.build import Normalized, build
from pwoa_cli.workflows import bench, info

QUICK = ["--batch", "1,3", "--seconds", "0.01", "--runtimes", "eager,channels-last,2:4"]
ONCE = ["--batch", "1", "--seconds", "0.01", "--runtimes", "eager"]


def test_a_sparse_model_is_compared_with_itself_without_zeros(here, pwoa):
    code, out, err = pwoa("bench", "pruned.safetensors", *QUICK, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found["models"]) == ["model", bench.TWIN]
    assert found["models"]["model"]["zeros"] > 0.85 and found["models"][bench.TWIN]["zeros"] == 0
    assert [(row["runtime"], row["batch"]) for row in found["rows"]] == [
        (name, batch) for batch in (1, 3) for name in ("eager", "channels-last")]
    assert found["left_out"] == {"2:4": "NVIDIA GPUs alone have these kernels"}
    for row in found["rows"]:
        low, middle, high = (row["milliseconds"]["model"][key] for key in ("low", "median", "high"))
        assert 0 < low <= middle <= high
        assert row["images_per_second"]["model"] == pytest.approx(1000 * row["batch"] / middle)
    known = found["models"]["model"]
    assert known["load_seconds"] > 0 and known["file_bytes"] > 1000
    assert known["memory_bytes"] is None or known["memory_bytes"] > 0


def test_the_memory_is_that_of_the_model_however_large_the_program_is_that_measures(here, pwoa):
    """The child began at its parent's peak, and 0 B were said."""
    held = b"x" * 800_000_000
    words = ["model.pt", "--batch", "20000", *ONCE[2:]]
    code, out, err = pwoa("bench", *words, "--json")
    assert code == 0 and held, err
    images = 20000 * 8 * 8 * 4
    assert json.loads(out)["models"]["model"]["memory_bytes"] > images


def test_a_memory_that_is_not_known_is_left_out():
    one = {"source": "m.pt", "parameters": 10, "zeros": 0.0, "file_bytes": 100, "load_seconds": 0.5}
    result = {"environment": {"device": "cpu", "threads": 1, "torch": "2"}, "image": [1, 8, 8],
              "left_out": {}, "conclusion": ""}
    for memory, words in ((None, "loaded in 500 ms"), (2_000_000, "2.0 MB of memory at the largest batch")):
        label, text = bench.facts(result | {"models": {"model": one | {"memory_bytes": memory}}})[0]
        assert label == "model" and text.endswith(words)


def test_of_no_weights_none_is_zero():
    """All were: 100% were said, and the model was compared with itself."""
    assert bench.zeros(Normalized(torch.nn.Flatten())) == 0
    assert info._counted({}, None)["weights"]["sparsity"] == 0


def test_another_model_is_named(here, pwoa):
    code, out, err = pwoa("bench", "pruned.safetensors", "--against", "model.pt", *QUICK)
    assert code == 0, err
    assert "| runtime | batch | model, ms | against, ms | images/s | times as fast |" in out
    assert "- against: model.pt: " in out and "left out: 2:4: NVIDIA" in out


def test_a_dense_model_is_timed_alone(here, pwoa):
    code, out, err = pwoa("bench", "model.pt", *QUICK[:4], "--runtimes", "eager")
    assert code == 0 and "times as fast" not in out and "- so:" not in out, err


def test_the_images_are_those_that_the_network_takes(here, pwoa):
    """The file says no size: 32x32 in colour was guessed, and every runtime was left out."""
    Path("net.py").write_text("from torch import nn\ndef fn():\n    return nn.Sequential("
                              "nn.Flatten(), nn.Linear(64, 4))\n")
    torch.save(build("net.py:fn", {}).state_dict(), "m.pt")
    words = ["m.pt", "--arch", "net.py:fn", "--normalize", "none", *ONCE]
    code, out, err = pwoa("bench", *words, "--json")
    assert code == 0 and json.loads(out)["image"] == [1, 8, 8] and len(json.loads(out)["rows"]) == 1, err
    code, out, err = pwoa("bench", *words, "--image-size", "16")
    assert code == 2 and not out and "m.pt takes no images of 16 pixels: mat1 and mat2" in err
    code, out, err = pwoa("bench", *words, "--image-size", "4x16", "--json")
    assert code == 0 and json.loads(out)["image"] == [1, 4, 16], err
    code, out, err = pwoa("bench", *words, "--image-size", "0")
    assert code == 2 and "--image-size 0 is no size of images" in err


def test_both_models_take_the_images(here, pwoa):
    small.save(small.resnet(), "colour.pt")
    code, out, err = pwoa("bench", "model.pt", "--against", "colour.pt", *ONCE)
    assert code == 2 and not out and "colour.pt takes no images of 1 x 8 x 8, which model.pt takes" in err


@pytest.mark.parametrize(("words", "sentence"), [
    (["--batch", "0"], "--batch 0 is no list of whole numbers above 0"),
    (["--batch", "1,x"], "--batch 1,x is no list"), (["--threads", "0"], "numbers above 0"),
    (["--seconds", "-1"], "numbers above 0"), (["--runtimes", "eager,tvm"], "--runtimes: tvm is none of")])
def test_wrong_use_is_one_sentence(here, pwoa, words, sentence):
    code, out, err = pwoa("bench", "model.pt", *words)
    assert code == 2 and not out and sentence in " ".join(err.split()) and "hint: " in err


def row(times, *, runtime="eager", low=None):
    spread = {"median": times, "low": times if low is None else low, "high": times + 0.2}
    return {"runtime": runtime, "batch": 1, "times_as_fast": spread}


@pytest.mark.parametrize(("zeros", "sizes", "times", "says"), [
    (0.9, (100, 100), 1.02, "Single zeros buy bytes, not time: at best 1.02 times as fast as t.pt"),
    (0.0, (50, 100), 3.0, "Up to 3.00 times as fast as t.pt (eager, batch 1)."),
    (0.0, (100, 100), 0.9, "It is no faster: at best 0.90 times as fast as t.pt")])
def test_the_conclusion_is_what_was_measured(zeros, sizes, times, says):
    models = {name: {"source": source, "zeros": zeros, "parameters": size} for name, source, size in zip(
        ("model", "against"), ("m.pt", "t.pt"), sizes, strict=True)}
    assert bench.conclusion({"models": models, "rows": [row(times), row(0.5)]}).startswith(says)
    assert bench.conclusion({"models": models, "rows": []}) == ""


@pytest.mark.parametrize(("rows", "says"), [
    ([row(1.21, low=0.83)], "No gain stands out of the noise: at best 1.21 [0.83, 1.41] times as fast as the "
                            "same network without zeros (eager, batch 1)."),
    ([row(1.21, low=0.83), row(1.04, runtime="onnx")], "No gain stands out of the noise: at best 1.21 "),
    ([row(1.5, low=1.0), row(1.3, runtime="onnx", low=1.2)],
     "Up to 1.30 times as fast as the same network without zeros (onnx, batch 1)."),
    ([row(1.08, low=0.7), row(1.06, low=1.03)], "Single zeros buy bytes, not time: at best 1.08 times ")])
def test_a_gain_is_one_whose_lower_quartile_is_above_one(rows, says):
    models = {name: {"source": "m.pt", "zeros": zeros, "parameters": 100}
              for name, zeros in (("model", 0.9), (bench.TWIN, 0.0))}
    assert bench.conclusion({"models": models, "rows": rows}).startswith(says)


@pytest.mark.parametrize("model", ["model.pt", "pruned.safetensors"])
def test_where_every_runtime_is_left_out_that_is_said_and_exit_code_3(here, pwoa, model):
    words = ["bench", model, *ONCE[:-1], "2:4"]
    code, out, err = pwoa(*words)
    assert code == 3 and "left out: 2:4: NVIDIA GPUs alone have these kernels" in out, err
    assert out.startswith("Nothing was timed.\n\n- model: ") and "|" not in out
    code, out, err = pwoa(*words, "--json")
    assert code == 3 and list(json.loads(out)["left_out"]) == ["2:4"] and not json.loads(out)["rows"], err


def test_a_runtime_that_breaks_is_left_out_with_its_reason(here, pwoa, monkeypatch):
    def broken(model, x):
        raise RuntimeError("no compiler\nsecond line")

    monkeypatch.setitem(runtimes.RUNTIMES, "compile", broken)
    code, out, err = pwoa("bench", "model.pt", "--batch", "1", "--seconds", "0.01", "--runtimes",
                          "eager,compile", "--json")
    assert code == 0 and json.loads(out)["left_out"] == {"compile": "no compiler"}, err


def test_every_runtime_that_is_here_gives_the_models_logits(here):
    """compile and OpenVINO are left to `pwoa bench` itself, as they take long or are not here."""
    model, x = load_model("pruned.safetensors").model, torch.rand(3, 1, 8, 8)
    want = model(x)
    with torch.no_grad():
        for name, near in (("eager", 1e-4), ("channels-last", 1e-4), ("onnx", 1e-4), ("onnx-int8", 1)):
            assert torch.allclose(runtimes.RUNTIMES[name](model, x)(), want, atol=near), name
