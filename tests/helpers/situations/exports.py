"""Hints on models in other forms and on how fast they are."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import torch

import pwoa_cli
from helpers import small_models as small
from helpers.cli_world import TINY
from helpers.situations import followed, in_files, prints, typed, without
from helpers.situations.files import raises
from pwoa_cli.checkpoints.model import load_model
from pwoa_cli.networks.build import build
from pwoa_cli.workflows import export as workflow

BENCH = ["bench", "model.pt", "--seconds", "0.01", "--runtimes", "eager", "--batch", "1"]
EXPORT = ["export", "model.pt", *TINY, "--attacks", "fgsm", "--format"]
AT = "workflows/export.py:"

typed("cli/bench.py:bench: --batch", [*without(BENCH, "--batch"), "--batch", "few"])
typed("cli/bench.py:bench: --threads", [*BENCH, "--threads", "0"], "--threads 1")
typed("workflows/bench.py:bench", [*without(BENCH, "--runtimes"), "--runtimes", "fastest"])
typed(AT + "_check: For", [*EXPORT, "best"])
typed(AT + "_check: --dtype", [*EXPORT, "dense", "--dtype", "int8"])
typed(AT + "_check_out", [*EXPORT, "dense", "--out", "model.pt"],
      "--out FILE; or, if this command was stopped: --resume", "--out other.pt")
typed(AT + "_written", [*EXPORT, "dense", "--out", "model.pt", "--resume"], "--out FILE", "--out other.pt")


@prints("files/atomic.py:atomic: Name another")
def a_file_that_another_export_was_faster_with(tool):
    write, words = workflow._write, [*EXPORT, "dense", "--out", "d.pt"]

    def late(job):
        job.out.write_bytes(b"theirs")
        return write(job)

    with tool.patch.context() as patch:
        patch.setattr(workflow, "_write", late)
        hint = tool.refused(*words)
    assert Path("d.pt").read_bytes() == b"theirs"
    tool.works(*followed(words, hint.replace("FILE", "other.pt")))


TAKES_20 = """from torch import nn


def fn():
    return nn.Sequential(nn.Flatten(), nn.Linear(400, 4))
"""


@prints("workflows/bench.py:_shape: Name the size")
def timing_a_network_of_a_size_that_is_seldom(tool):
    words = ["--arch", in_files(TAKES_20), "--normalize", "none"]
    small.save(build(words[1], {}), "m.pt")
    hint = tool.refused("bench", "m.pt", *BENCH[2:], *words)
    assert hint.endswith("--image-size 224")
    tool.works("bench", "m.pt", *BENCH[2:], *words, "--image-size", "20")


@prints("workflows/bench.py:_shape: Name a model")
def timing_beside_a_network_of_other_images(tool):
    small.save(small.resnet(), "colour.pt")
    tool.follow([*BENCH, "--against", "colour.pt"], "--against FILE", "--against pruned.safetensors")


@prints(AT + "_check: Leave it")
def gates_where_nothing_is_attacked(tool):
    words = [*EXPORT, "sparse", "--max-drop", "worst=1"]
    tool.refused(*words)
    tool.works(*without(words, "--max-drop"))


@prints(AT + "_check: Leave them", AT + "_check: Give")
def words_around_the_weights(tool):
    words = [*EXPORT, "sparse", "--prefix", "module."]
    tool.follow(words)
    tool.works(*without(words, "--prefix"))
    words = [*EXPORT, "dense", "--like", "model.pt", "--prefix", "module."]
    tool.refused(*words)
    for number, flag in enumerate(("--like", "--prefix")):
        tool.works(*without(words, flag), "--out", f"{number}.pt")


@prints("exports/dense.py:_substituted")
def an_envelope_of_another_network(tool):
    small.save(small.lenet(num_classes=7), "seven.pt")
    tool.follow([*EXPORT, "dense", "--like", "seven.pt"])


@prints("exports/onnx.py:check_installed", "exports/onnx.py:save")
def onnx_that_is_not_to_be_had(tool):
    there = importlib.util.find_spec
    with tool.patch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else there(name))
        assert tool.refused(*EXPORT, "onnx") == "pip install 'pwoa-cli[onnx]'"
    with tool.patch.context() as patch:
        patch.setattr(torch.onnx, "export", raises(RuntimeError("no such operator")))
        assert tool.refused(*EXPORT, "onnx", code=4).startswith("--format dense ")
    tool.works(*EXPORT, "dense")


@prints("exports/quantised.py:save", AT + "_calibration")
def integers_that_are_not_to_be_had(tool):
    import onnxruntime.quantization as library

    words = [*EXPORT, "onnx", "--dtype", "int8"]
    with tool.patch.context() as patch:
        patch.setattr(library, "quantize_static", raises(RuntimeError("no such operator")))
        assert tool.refused(*words, code=4).startswith("--format onnx ")
    tool.works(*without(words, "--dtype"), "--out", "float.onnx")
    arrays = np.load("tiny.npz")
    np.savez("test.npz", x_test=arrays["x_test"][:20], y_test=arrays["y_test"][:20])
    words = [*without(words, "--data"), "--data", "test.npz"]
    hint = tool.refused(*words)
    tool.works(*without(words, "--n"), *hint.split())


@prints("files/folders.py:temporary_folder")
def temporary_files_on_a_full_disk(tool):
    words = [*EXPORT, "onnx", "--dtype", "int8"]
    with tool.patch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", raises(OSError(28, "No space left on device")))
        assert tool.refused(*words, code=4).endswith("TMPDIR=/var/tmp pwoa ...")
    Path("there").mkdir()
    tool.patch.setenv("TMPDIR", "there")
    tool.patch.setattr(tempfile, "tempdir", None)
    tool.works(*words)


@prints(AT + "execute")
def files_that_give_other_logits(tool):
    tool.patch.setattr(workflow, "_again", lambda job: load_model("pruned.safetensors"))
    assert tool.refused(*EXPORT, "dense", "--out", "d.pt", code=4).endswith("the file is kept.")
    assert Path("d.pt").is_file()


@prints("workflows/parameters.py:check")
def numbers_from_python_that_are_none(tool):
    options = {"data": "tiny.npz", "eps": 0.5, "attacks": "fgsm"}
    assert tool.raised(pwoa_cli.evaluate, "model.pt", samples="50", **options) == "For example: samples=50"
    assert tool.raised(pwoa_cli.evaluate, "model.pt", max_seconds=0, **options).endswith("max_seconds=600")
    line = tool.raised(pwoa_cli.evaluate, "model.pt", mean="0.5", **options)
    assert line == "For example: mean=[0.491, 0.482, 0.447]"
    assert pwoa_cli.evaluate("model.pt", samples=50, mean=[0.0], std=[1.0], **options).worst
    line = tool.raised(pwoa_cli.evaluate, "model.pt", curve=0.1, **options).removeprefix("For example: ")
    assert line == 'curve=["2/255", "8/255"]'
    curve = eval(line.removeprefix("curve="))  # noqa: S307 (the package's own words)
    assert pwoa_cli.evaluate("model.pt", samples=50, max_seconds=600, curve=curve, **options).worst
