"""`pwoa export` as a user types it: every format, what is tried and said, and wrong use."""
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_models as small
from helpers.cli_world import BUDGET, PACKAGE, TINY, start
from helpers.processes import wait

import pwoa_cli
from pwoa_cli.exports import onnx
from pwoa_cli.files import sparse
from pwoa_cli.workflows import export as workflow

X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def run_folder():
    return next(Path("pwoa-runs").glob("model-*"))


def export(pwoa, *words):
    code, out, err = pwoa("export", *words)
    assert code == 0, err
    return out, err


def test_dense_of_a_run_comes_in_the_envelope_of_its_checkpoint(here, pwoa):
    out, err = export(pwoa, run_folder(), "--format", "dense", "--out", "d.pt")
    assert "envelope: as in model.pt" in out and "are the model's, bit for bit" in out
    net = small.lenet()
    net.load_state_dict(torch.load("d.pt", weights_only=True))
    want = pwoa_cli.load(run_folder() / "model.safetensors")(X)
    assert torch.equal(net.eval()(X), want)
    out, err = export(pwoa, run_folder(), "--format", "dense", "--prefix", "module.",
                      "--out", "p.safetensors")
    assert "envelope" not in out and torch.equal(pwoa_cli.load("p.safetensors")(X), want)


def test_the_envelope_is_found_where_the_run_is_elsewhere_or_missed_aloud(here, pwoa):
    """From another folder it was left out in silence, and code that reads ckpt["state_dict"] broke."""
    torch.save({"state_dict": torch.load("model.pt", weights_only=True)}, "model.pt")
    assert pwoa("prune", "model.pt", "--sparsity", "0.6", *TINY, *BUDGET, "--out", "run")[0] == 0
    (here / "below").mkdir()
    os.chdir("below")
    out, err = export(pwoa, "../run", "--format", "dense", "--out", "d.pt")
    assert list(torch.load("d.pt", weights_only=True)) == ["state_dict"] and "as in ../model.pt" in out
    for why, change in (("is another file now", lambda: shutil.copy("d.pt", "../model.pt")),
                        ("is not there any more", lambda: os.remove("../model.pt"))):
        change()
        out, err = export(pwoa, "../run", "--format", "dense", "--out", f"{len(why)}.pt")
        assert f"model.pt, in whose envelope it would be, {why}" in " ".join(err.split())
        assert "state_dict" not in torch.load(f"{len(why)}.pt", weights_only=True)


@pytest.mark.parametrize("words", [["--format", "slim"], ["--format", "onnx"],
                                   ["--format", "sparse", "--dtype", "bf16", "--attacks", "fgsm",
                                    "--samples", "8"]], ids=str)
def test_a_teacher_that_is_another_file_by_now_is_not_asked_for(here, pwoa, words):
    """What is written is the run's model alone."""
    code, _, err = pwoa("prune", "model.pt", "--sparsity", "0.6", "--structure", "channel", *TINY, *BUDGET,
                        "--out", "run")
    assert code == 0, err
    state = torch.load("model.pt", weights_only=True)
    torch.save({name: t * 1.5 if t.is_floating_point() else t for name, t in state.items()}, "model.pt")
    ending = ".onnx" if "onnx" in words else ".safetensors"
    _, err = export(pwoa, "run", *words, "--out", f"m{ending}")
    assert Path(f"m{ending}").stat().st_size and "warning: its teacher" not in err


def test_the_envelope_of_a_checkpoint_that_must_be_trusted_is_opened_too(here, pwoa):
    torch.save({"state_dict": torch.load("model.pt", weights_only=True), "args": Settings()}, "trusted.pt")
    code, _, err = pwoa("prune", "trusted.pt", "--trust-pickle", "--sparsity", "0.6", *TINY, *BUDGET, "--out",
                        "run")
    assert code == 0, err
    _, err = export(pwoa, "run", "--format", "dense", "--trust-pickle", "--out", "d.pt")
    assert "in the envelope of trusted.pt" in err
    assert torch.load("d.pt", weights_only=False)["args"].lr == 0.1


class Settings:
    """What only unpickling code gives back."""

    def __init__(self):
        self.lr = 0.1

    def __reduce__(self):
        return Settings, ()


def test_the_file_is_named_after_the_model(here, pwoa):
    out, _ = export(pwoa, "pruned.safetensors", "--format", "dense", "--json")
    found = json.loads(out)
    assert found["file"] == "pruned-dense.pt" and Path("pruned-dense.pt").is_file()
    assert found["file_bytes"] == Path("pruned-dense.pt").stat().st_size and found["largest_difference"] == 0


def test_sparse_in_full_precision_is_the_same_file(here, pwoa):
    export(pwoa, "pruned.safetensors", "--format", "sparse", "--out", "s.safetensors")
    assert Path("s.safetensors").read_bytes() == Path("pruned.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_rounded_values_are_attacked_again(here, pwoa, dtype):
    words = ("pruned.safetensors", "--format", "sparse", "--dtype", dtype, *TINY, "--attacks", "fgsm")
    out, _ = export(pwoa, *words, "--out", "s.safetensors", "--json")
    found = json.loads(out)
    made = found["evaluation"]
    assert made["headings"] == ["original", "exported"] and made["data"]["n"] == 20
    assert set(made["teacher"]) == set(made["student"]) == {"clean", "fgsm"}
    assert 0 < found["largest_difference"] < 0.5
    assert found["file_bytes"] < Path("pruned.safetensors").stat().st_size
    assert sparse.load_metadata("s.safetensors") == sparse.load_metadata("pruned.safetensors")
    out, _ = export(pwoa, *words, "--out", "again.safetensors", "--no-measure")
    assert "worst" not in out and Path("again.safetensors").read_bytes() == Path("s.safetensors").read_bytes()
    out, _ = export(pwoa, *words, "--out", "table.safetensors")
    assert "| fgsm |" in out and f"values: {dtype}" in out


def test_onnx_is_tried_on_test_images(here, pwoa):
    """On as many as there are, whatever --samples is for attacks."""
    out, err = export(pwoa, "pruned.safetensors", "--format", "onnx", *TINY[:4], "--json")
    found = json.loads(out)
    assert found["compared_on"] == "64 test images of tiny" and 0 <= found["largest_difference"] < 1e-4
    assert found["input"] == ["batch", 1, 8, 8] and found["opset"] == onnx.OPSET
    model = pwoa_cli.load("pruned.safetensors")
    assert torch.allclose(onnx.Opened(Path("pruned-onnx.onnx"), model)(X), model(X), atol=1e-4)


def test_onnx_of_integers_is_attacked_beside_the_original(here, pwoa):
    words = ("pruned.safetensors", "--format", "onnx", "--dtype", "int8", *TINY, "--attacks", "fgsm")
    out, _ = export(pwoa, *words, "--out", "q.onnx", "--json")
    found = json.loads(out)
    made = found["evaluation"]
    assert made["headings"] == ["original", "exported"] and set(made["student"]) == {"clean", "fgsm"}
    assert made["notes"][-1].startswith("exported: rounding has no gradient")
    assert not Path("pwoa-runs/.eval").exists()  # the figures are shown: nothing is left to go on from
    training = len(np.load("tiny.npz")["x_train"])
    assert found["calibrated_on"] == f"{training} training images of tiny"
    assert (found["images"], found["other_class"]) == (64, 0) and 0 < found["largest_difference"] < 1
    export(pwoa, *words, "--out", "plain.onnx", "--no-measure")
    assert Path("plain.onnx").read_bytes() == Path("q.onnx").read_bytes()
    out, _ = export(pwoa, *words, "--out", "again.onnx")
    assert "| fgsm |" in out and "another class than exact arithmetic on 0 of 64 images" in out


def test_without_training_images_integers_are_of_test_images_that_are_not_measured(here, pwoa):
    arrays = dict(np.load("tiny.npz"))
    np.savez("test.npz", **{name: array for name, array in arrays.items() if name.endswith("test")})
    words = ("model.pt", "--format", "onnx", "--dtype", "int8", "--eps", "0.5", "--attacks", "fgsm", "--data",
             "test.npz")
    for more in ([], ["--no-measure", "--out", "again.onnx"]):  # then --samples is still used, for this
        out, err = export(pwoa, *words, "--samples", "20", *more, "--json")
        assert json.loads(out)["calibrated_on"] == f"{len(arrays['x_test']) - 20} other test images of test"
        assert "--samples: not used" not in " ".join(err.split())


@pytest.mark.parametrize("words", [["--dtype", "bf16", "--no-measure"], []], ids=str)
def test_what_is_of_attacks_is_said_where_nothing_is_attacked(here, pwoa, words):
    """And nothing is: not one image either."""
    out, err = export(pwoa, "model.pt", "--format", "sparse", *words, *TINY, "--json")
    assert "evaluation" not in json.loads(out)
    assert "--eps and --samples: not used, as nothing is attacked" in " ".join(err.split())


@pytest.mark.parametrize(("kind", "name"), [("sparse", "q.safetensors"), ("onnx", "q.onnx")])
def test_a_stopped_export_says_what_is_there_and_goes_on(here, pwoa, kind, name):
    words = ("export", "model.pt", "--format", kind, "--dtype", "int8", "--out", name, *TINY)
    process = start(*words, "--eps", "1e-6", "--attacks", "fgsm,fmn-1000000")
    kept = Path("pwoa-runs/.eval")
    wait(process, lambda: len(list(kept.glob("*/fgsm.*.npz"))) == 2, seconds=120)  # of both models
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and not out
    assert err.endswith(f"interrupted; {name} is whole, but was not tried to the end. The same command with "
                        "--resume goes on.\n")
    there = Path(name).read_bytes()
    words = (*words[1:], "--eps", "1e-6", "--attacks", "fgsm")
    code, _, err = pwoa("export", *words)
    assert code == 2 and f"{name} exists; it was not touched" in err
    out, err = export(pwoa, *words, "--resume", "--json")
    assert json.loads(out)["evaluation"]["student"]["fgsm"]["n"] == 20
    assert "2 finished parts of an earlier run were taken over" in " ".join(err.split())
    assert Path(name).read_bytes() == there and not kept.exists()


@pytest.mark.parametrize(("words", "code"), [(["--max-drop", "fgsm=50"], 0), (["--max-drop", "worst=50"], 0),
                                             (["--min", "clean=0.5", "--min", "fgsm=1"], 1),
                                             (["--max-drop", "fgsm=-90"], 1)], ids=str)
@pytest.mark.parametrize(("kind", "name"), [("sparse", "q.safetensors"), ("onnx", "q.onnx")])
def test_gates_judge_what_rounding_costs(here, pwoa, kind, name, words, code):
    found, out, err = pwoa("export", "model.pt", "--format", kind, "--dtype", "int8", *TINY, "--attacks",
                           "fgsm", "--out", name, "--json", "--junit", "g.xml", *words)
    assert found == code and Path(name).is_file(), err
    verdicts = json.loads(out)["evaluation"]["gates"]
    assert len(verdicts) == len(words) // 2 and verdicts[-1]["passed"] == (code == 0)
    assert ("gate failed: " in err) == bool(code) and "<testcase" in Path("g.xml").read_text()


def test_gates_of_what_is_not_measured_are_refused(here, pwoa):
    words = ("export", "model.pt", "--format", "sparse", *TINY, "--max-drop")
    for more, sentence in ((["worst=1"], "--max-drop worst=1: nothing is attacked (no value is rounded)"),
                           (["worst=1", "--dtype", "int8", "--no-measure"], "(--no-measure)"),
                           (["aa=1", "--dtype", "int8"], "aa is not measured")):
        code, out, err = pwoa(*words, *more)
        assert code == 2 and not out and sentence in " ".join(err.split()), err
    assert not Path("model-sparse.safetensors").exists()


def test_another_file_is_not_taken_for_a_stopped_export_s(here, pwoa):
    Path("s.safetensors").write_bytes(b"mine")
    code, _, err = pwoa("export", "model.pt", "--format", "sparse", "--out", "s.safetensors", "--resume")
    assert code == 2 and "is another file than this command writes; it was not touched" in " ".join(
        err.split())
    assert Path("s.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("kind", "dtype", "name"), [
    ("dense", "fp32", "m.pt"), ("sparse", "fp32", "m.safetensors"), ("slim", "fp32", "m.safetensors"),
    ("onnx", "fp32", "m.onnx"), ("onnx", "int8", "m.onnx")])
def test_a_file_that_came_while_one_was_written_stays(here, pwoa, monkeypatch, kind, dtype, name, resume):
    """Of two exports with one --out both said they wrote it, and the first one's file was the other's."""
    write = workflow._write

    def late(job):
        job.out.write_bytes(b"theirs")
        return write(job)

    monkeypatch.setattr(workflow, "_write", late)
    if kind == "slim":
        code, _, err = pwoa("prune", "model.pt", "--channels", "0.5", *TINY, *BUDGET, "--attacks", "fgsm",
                            "--out", "run")
        assert code in (0, 3), err
    model = "run" if kind == "slim" else "model.pt"
    code, out, err = pwoa("export", model, "--format", kind, "--dtype", dtype, "--out", name, *TINY,
                          "--no-measure", *["--resume"] * resume)
    assert code == 2 and not out and f"{name} exists; it was not touched" in err, err
    assert Path(name).read_bytes() == b"theirs" and not list(Path().glob(".pwoa-*"))


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.onnx"])
def test_the_same_export_gives_the_same_bytes(here, pwoa, name):
    kind = "onnx" if name == "m.onnx" else "dense"
    export(pwoa, "model.pt", "--format", kind, "--out", name)
    there = Path(name).read_bytes()
    out, _ = export(pwoa, "model.pt", "--format", kind, "--out", name, "--resume", "--json")
    assert json.loads(out)["file_bytes"] == len(there) and Path(name).read_bytes() == there


@pytest.mark.parametrize("structure", ["channel", "filter"])
def test_slim_files_run_everywhere(here, pwoa, structure):
    """Channels are removed, also of a network of silent filters; every command takes what is left."""
    code, _, err = pwoa("prune", "model.pt", "--sparsity", "0.6", "--structure", structure, *TINY, *BUDGET,
                        "--out", "run")
    assert code == 0, err
    out, _ = export(pwoa, "run", "--format", "slim", *TINY, "--out", "slim.safetensors", "--json")
    found = json.loads(out)
    slim, masked = found["slim"], pwoa_cli.load("run/model.safetensors")
    assert 0 < slim["channels_removed"] < slim["channels"] == 28 and slim["macs"][1] < slim["macs"][0]
    assert found["compared_on"] == "64 test images of tiny" and found["largest_difference"] < 1e-5
    small = pwoa_cli.load("slim.safetensors")
    torch.testing.assert_close(small(X), masked(X), atol=1e-5, rtol=0)
    assert sum(p.numel() for p in small.parameters()) == slim["parameters"][1] < slim["parameters"][0]
    for words in (["info", "slim.safetensors"], ["eval", "slim.safetensors", *TINY, "--attacks", "fgsm"],
                  ["export", "slim.safetensors", "--format", "onnx", *TINY],
                  ["bench", "slim.safetensors", "--against", "run/model.safetensors", "--batch", "1",
                   "--seconds", "0.1", "--runtimes", "eager"],
                  ["prune", "slim.safetensors", "--sparsity", "0.5", *TINY, *BUDGET, "--out", "again"]):
        code, out, err = pwoa(*words)
        assert code in (0, 3) and out, err
    assert "layers have the sizes of their tensors" in pwoa("info", "slim.safetensors")[1]
    assert (pwoa_cli.load("again/model.safetensors").net.conv1.weight.shape == small.net.conv1.weight.shape)


@pytest.mark.parametrize(("kind", "name"), [("dense", "d.pt"), ("dense", "d.safetensors"),
                                             ("sparse", "s.safetensors")])
def test_a_full_disk_is_the_machine_s_fault_and_leaves_nothing(here, kind, name):
    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    bundled = str(PACKAGE.parent / "examples/mnist_lenet_linf0.3.pt")
    process = start("export", bundled, "--format", kind, "--out", name, preexec_fn=full)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4 and "cannot be written" in err and "File too large" in err, err
    assert not Path(name).exists() and not list(Path().glob(".pwoa*"))


WRONG = {
    "format": (["--format", "zip"], "--format zip is none of sparse, slim, dense, onnx"),
    "dtype": (["--format", "dense", "--dtype", "fp8"], "--dtype fp8 is none of fp32, bf16, fp16"),
    "dtype of a format": (["--format", "onnx", "--dtype", "bf16"],
                          "--dtype bf16 is not offered for onnx, which has fp32, int8"),
    "ending": (["--format", "onnx", "--out", "a.pt"], "--out a.pt is no .onnx file"),
    "there": (["--format", "dense", "--out", "model.pt"], "model.pt exists; it was not touched"),
    "folder": (["--format", "dense", "--out", "no/a.pt"], "--out no/a.pt cannot be written"),
    "prefix": (["--format", "sparse", "--prefix", "a."], "--prefix and --like are of dense files"),
    "both": (["--format", "dense", "--prefix", "a.", "--like", "model.pt"], "both say how names begin"),
    "like": (["--format", "dense", "--like", "missing.pt"], "missing.pt"),
    "attack": (["--format", "sparse", "--attacks", "pgdd"], "pgdd")}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_sentence_and_writes_nothing(here, pwoa, case):
    words, sentence = WRONG[case]
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    code, out, err = pwoa("export", "pruned.safetensors", *words)
    assert code == 2 and not out and "hint: " in err
    assert sentence in " ".join(err.split())
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.mark.parametrize("format", ["dense", "sparse", "onnx"])
def test_a_file_that_says_another_size_is_told_before_anything_is_written(here, pwoa, format):
    state, said = sparse.load("pruned.safetensors"), sparse.load_metadata("pruned.safetensors")
    sparse.save(state, "lies.safetensors", metadata=said | {"input_shape": "[1, 20, 20]"})
    code, out, err = pwoa("export", "lies.safetensors", "--format", format)
    assert code == 2 and not out and "lies.safetensors takes no images of 20 pixels: mat1 and mat2" in err
    assert not list(Path().glob("lies-*"))


@pytest.mark.parametrize(("kind", "ending"), [
    ("dense", ".pt"), ("onnx", ".onnx"), ("sparse", ".safetensors")])
def test_data_to_compare_logits_on_needs_no_threat(here, pwoa, kind, ending):
    _, err = export(pwoa, "model.pt", "--format", kind, "--data", "tiny.npz", "--out", f"x{ending}")
    assert "threat" not in err
    code, _, err = pwoa("export", "model.pt", "--format", "sparse", "--dtype", "int8", "--data", "tiny.npz")
    assert code == 2 and "neither the file nor tiny gives an eps" in " ".join(err.split())
