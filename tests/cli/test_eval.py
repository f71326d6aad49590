"""`pwoa eval` as a program: one model, a run and its teacher, two models compared, samples, wrong input."""
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_models as small
from helpers.cli_world import TINY, start
from helpers.processes import wait

from pwoa_cli.cli.eval import GOES_ON
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import sample_file
from pwoa_cli.files import run_folder
from pwoa_cli.workflows import setup


def test_eval_of_one_model(here, pwoa):
    code, out, _ = pwoa("eval", "model.pt", *TINY, "--attacks", "pgd-2", "--json", "--out", "measured")
    made = json.loads(out)
    assert code == 0 and made["results"].keys() == {"clean", "pgd-2"} and "teacher" not in made
    assert made["results"]["clean"] == {"accuracy": 1.0, "n": 20,
                                        "ci95": pytest.approx([0.839, 1.0], abs=1e-3)}
    assert made["results"]["pgd-2"]["attacked"] == 20 and made["results"]["pgd-2"]["backwards"] > 0
    assert json.loads(Path("measured/report.json").read_text()) == made
    assert Path("measured/report.md").read_text().startswith("# model.pt under attack")
    assert made["environment"]["device"] in ("cpu", "cuda", "mps")  # resolved, not "auto"


@pytest.mark.parametrize("model", ["newest", "folder", "file"])
def test_eval_of_a_run_beside_its_teacher(here, pwoa, model):
    folder = str(run_folder.newest())
    named = {"newest": [], "folder": [folder],
             "file": [f"{folder}/model.safetensors", "--teacher", "model.pt", *TINY]}[model]
    code, out, err = pwoa("eval", *named, "--n", "20", "--attacks", "fgsm", "--json")
    assert code == 0, err
    made, before = json.loads(out), json.loads(Path(folder, "report.json").read_text())
    assert all(made[key] == before[key] for key in ("teacher", "student", "drop"))
    # only of a run is it known who taught whom
    names = ("compared", "model") if model == "file" else ("teacher", "pruned")
    assert made["seconds"].keys() == {f"{who} {attack}" for who in names for attack in ("clean", "fgsm")}


NO_GRADIENT = """
from pwoa_cli.networks.families.small import LeNet


class Closed(LeNet):
    def forward(self, x):
        return super().forward(x).detach()


def fn():
    return Closed(size=8, widths=(4, 8), hidden=16, num_classes=4)
"""


def test_eval_of_attacks_that_cannot_be_run_exits_3(here, pwoa):
    Path("closed.py").write_text(NO_GRADIENT)
    code, out, err = pwoa("eval", "model.pt", "--arch", "closed.py:fn", *TINY, "--attacks", "fgsm", "--json")
    made = json.loads(out)
    assert code == 3 and made["results"].keys() == {"clean"} and made["attacks"] == ["fgsm"]
    assert "fgsm was not run" in err and "Traceback" not in err


def test_eval_headline_names_the_run(here, pwoa):
    _, out, _ = pwoa("eval", "--n", "20", "--attacks", "fgsm")
    assert out.startswith(f"# {run_folder.newest().name} under attack")


def test_eval_results_depend_on_no_batch_size(here, pwoa):
    runs = [pwoa("eval", "model.pt", *TINY, "--attacks", "cw-3", "--batch-size", size, "--json")[1]
            for size in (7, 200)]
    assert json.loads(runs[0])["results"] == json.loads(runs[1])["results"]


def test_eval_where_the_teacher_has_gone_or_changed(here, pwoa):
    small.save(small.learn(small.lenet(), seed=1), "model.pt")
    code, out, err = pwoa("eval", "--n", "20", "--attacks", "fgsm")
    assert code == 2 and not out and "SHA-256 differs" in err and "--compare FILE" in err
    Path("model.pt").rename("away.pt")
    code, out, err = pwoa("eval", "--n", "20", "--attacks", "fgsm", "--json")
    assert code == 0 and "results" in json.loads(out) and "model.pt is not there any more" in err
    code, out, err = pwoa("eval", "--n", "20", "--attacks", "fgsm", "--json", "--teacher", "away.pt")
    assert code == 0 and "teacher" in json.loads(out)


def test_compare_is_paired_and_says_what_no_drop_means(here, pwoa):
    code, out, err = pwoa("eval", "model.pt", "--compare", "pruned.safetensors", *TINY, "--attacks",
                          "fgsm,pgd-3", "--json")
    made = json.loads(out)
    assert code == 0 and made["headings"] == ["compared", "model"] and "compared fgsm" in made["seconds"]
    for name in ("clean", "fgsm", "pgd-3", "worst case"):
        drop = made["drop"][name]
        lost = made["teacher"][name]["accuracy"] - made["student"][name]["accuracy"]
        assert drop["points"] == pytest.approx(100 * lost)
        assert drop["lost"] - drop["won"] == round(drop["points"] * 20 / 100) and 0 < drop["p"] <= 1
    code, out, _ = pwoa("eval", "model.pt", "--teacher", "model.pt", *TINY, "--attacks", "fgsm")
    assert "0 samples lost, 0 won, McNemar p = 1: no loss beyond chance; one above" in " ".join(out.split())
    assert "|  | compared | model | drop |" in out


def test_samples_hold_what_the_table_says(here, pwoa):
    options = ["--attacks", "fgsm,pgd-3", "--eps", "0.05", "--save-samples", "s.npz", "--out", "made",
               "--json", "--per-class"]
    code, out, err = pwoa("eval", "model.pt", *TINY, *options)
    made, read, bare = (json.loads(out), sample_file.read(Path("s.npz")),
                        sample_file.read(Path("made/samples.npz")))
    assert code == 0 and "wrote made" in err and "wrote s.npz" in err
    assert bare.keys() == read.keys() - {"model/inputs"} and read["model/inputs"].shape == (20, 1, 8, 8)
    for name, score in made["results"].items():
        assert read[f"model/correct/{name}"].mean() == score["accuracy"]
    with np.load("tiny.npz") as data:
        clean = torch.tensor(data["x_test"][read["index"]]).permute(0, 3, 1, 2).float() / 255
        assert np.array_equal(data["y_test"][read["index"]], read["label"])
    moved = np.abs(read["model/inputs"] - clean.numpy()).max((1, 2, 3))
    assert moved.max() <= 0.05 + 1e-6 and np.array_equal(moved > 0, read["model/broken_by"] != "")
    assert np.allclose(np.nan_to_num(read["model/distance/fgsm"]),
                       np.where(read["model/correct/fgsm"], 0, moved), atol=1e-6)
    by_class = made["classes"]["model"]["worst case"]
    assert sum(score["n"] for score in by_class.values()) == 20 and set(by_class) == {"0", "1", "2", "3"}
    assert "## By class (model)" in Path("made/report.md").read_text()


def test_the_command_knows_l1_and_minimum_norms(here, pwoa):
    code, out, err = pwoa("eval", "model.pt", *TINY, "--norm", "L1", "--eps", "2", "--attacks",
                          "pgd-3,fmn-20", "--json")
    made = json.loads(out)
    assert code == 0 and made["threat"] == {"norm": "l1", "eps": 2.0}
    curve = made["results"]["fmn-20"]["curve"]
    assert (len(curve) == 10 and curve[0][1] >= curve[-1][1]
            and dict(map(tuple, curve))[2.0] == made["results"]["fmn-20"]["accuracy"])


def test_an_unreliable_figure_is_said_on_stderr_too(here, pwoa):
    args = ["--sparsity", "0.97", *TINY, "--attacks", "fgsm", "--epochs", "0.1", "--out", "guess", "--quiet"]
    code, out, _ = pwoa("prune", "model.pt", *args)
    first = "# model.pt pruned to 97% sparsity, near chance: clean 25.0%"
    assert code == 3 and out.startswith(f"{first}\n\nUnreliable: clean 100.0 -> 25.0%, ")
    assert "pruned (unreliable) | drop (unreliable)" in out
    code, out, err = pwoa("eval", "guess/model.safetensors", *TINY, "--attacks", "fgsm", "--quiet")
    assert (code == 0 and "warning: unreliable: clean accuracy 25.0% is near chance (25.0%)" in err
            and "- note: unreliable: " in out and "Unreliable: clean 25.0%" in out
            and "| accuracy (unreliable) |" in out)


@pytest.mark.parametrize("args,message", [
    (["--eps", "8"], "Did you mean 8/255?"), (["--eps=-0.1"], "it must be finite and above 0"),
    (["--eps", "0"], "nothing to attack"),
    (["--eps", "8/256x"], "is not a number"), (["--attacks", "pdg"], "Did you mean pgd?"),
    (["--norm", "l3"], "Unknown norm"),
    (["--n", "65"], "the data has 64"), (["--n", "0"], "at least 1"),
    (["--max-seconds", "0"], "not a number above 0"),
    (["--max-seconds", "soon"], "not a number above 0"), (["--save-samples", "flags.csv"], "is no .npz file"),
    (["--save-samples", "no/such/flags.npz"], "cannot be written"), (["--save-samples", "."], "is a folder"),
    (["--attacks", "cw-l2"], "cw-l2 attacks in l2"), (["--mean", "0.5", "--std", "1e6"], "near chance"),
    (["--compare", "missing.pt"], "missing.pt"), (["--batch-size", "0"], "at least 1")])
def test_wrong_input_is_a_sentence_before_any_work(here, pwoa, args, message):
    code, out, err = pwoa("eval", "model.pt", *TINY, *args)
    assert code == 2 and not out and message in err and "Traceback" not in err and "evaluate" not in err
    assert "hint: " in err


@pytest.mark.parametrize("classes,attacks,message",
                         [(2, "aa", "needs at least 4 classes"), (3, "apgd-t", "needs at least 4 classes")])
def test_few_classes(here, pwoa, classes, attacks, message):
    small.write_npz("few.npz", classes=classes)
    small.save(small.learn(small.lenet(num_classes=classes), classes=classes), "few.pt")
    code, out, err = pwoa("eval", "few.pt", "--data", "few.npz", "--eps", "0.1", "--n", "20", "--attacks",
                          attacks)
    assert code == 2 and message in err
    code, out, err = pwoa("eval", "few.pt", "--data", "few.npz", "--eps", "0.1", "--n", "4", "--attacks",
                          "fab-t", "--json")
    assert code == 0 and any(f"the model has {classes} classes" in note for note in json.loads(out)["notes"])


def test_one_class_and_labels_out_of_range(here, pwoa):
    x, _ = small.images(64)
    y = np.zeros(64, dtype=np.int64)
    np.savez("one.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    code, out, err = pwoa("eval", "model.pt", "--data", "one.npz", "--eps", "0.1", "--n", "20")
    assert code == 2 and "class" in err and "Traceback" not in err
    y[3] = 7
    np.savez("far.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    code, out, err = pwoa("eval", "model.pt", "--data", "far.npz", "--eps", "0.1", "--n", "20")
    assert code == 2 and "class" in err and "Traceback" not in err


def test_a_model_with_nan_weights(here, pwoa):
    model = small.learn(small.lenet())
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    small.save(model, "nan.pt")
    code, out, err = pwoa("eval", "nan.pt", *TINY)
    assert code == 2 and "nan" in err.lower() and not out


def test_a_folder_that_cannot_be_written_does_not_stop_the_evaluation(here, pwoa):
    shutil.rmtree(run_folder.ROOT)
    run_folder.ROOT.write_text("in the way")
    code, out, err = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--json")
    assert code == 0 and json.loads(out) and "warning: what is finished cannot be kept" in err
    assert GOES_ON not in err


def test_a_full_disk_at_the_end_does_not_cost_the_figures(here, pwoa, monkeypatch):
    def full(*_, **__):
        raise InputError("s.npz cannot be written: full.")

    monkeypatch.setattr(sample_file, "save", full)
    code, out, err = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--save-samples", "s.npz")
    assert code == 2 and "s.npz cannot be written" in err and "| fgsm |" in out


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_evaluating(here, stop):
    process = start("eval", "model.pt", *TINY, "--eps", "1e-6", "--attacks", "fmn-1000000", "--out",
                    "stopped")
    while "evaluate" not in (line := process.stderr.readline()):
        assert line
    wait(process, lambda: False, seconds=0.3)  # into the attack
    process.send_signal(stop)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and not out and "Traceback" not in err
    assert err.endswith("interrupted; nothing was written.\n") and not Path("stopped").exists()
    assert not Path("pwoa-runs/.eval").exists()  # nothing was finished


@pytest.mark.parametrize("models", [
    ["model.pt"], ["model.pt", "other.pt"], ["model.pt", "--compare", "other.pt"]])
def test_clean_accuracy_needs_no_threat(here, pwoa, models):
    """Data without a convention: nothing is attacked, so nobody has to name an eps."""
    shutil.copy("model.pt", "other.pt")
    words = ("eval", *models, "--data", "tiny.npz", "--attacks", "clean", "--samples", "20")
    code, out, err = pwoa(*words, "--out", "clean")
    assert code == 0 and "| clean |" in out and "attacks within" not in out, err
    made = json.loads(Path("clean/report.json").read_text())
    assert made["threat"] == {"norm": None, "eps": None}
    for more in (["report", "clean"], ["report", "clean", "--html", "page.html"]):
        assert pwoa(*more)[0] == 0
    code, _, err = pwoa(*words[:-4], "--attacks", "fgsm", "--samples", "20")
    assert code == 2 and "neither the file nor tiny gives an eps" in " ".join(err.split())
    code, _, err = pwoa(*words, "--curve", "0.1")
    assert code == 2 and "no attack is named" in err


STRIDED = """
import torch.nn.functional as F
from torch import nn


class Strided(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=3, padding=1)
        self.f = nn.Linear(8 * 9, 4)

    def forward(self, x):
        return self.f(F.relu(self.c2(F.relu(self.c1(x)))).flatten(1))
"""


@pytest.mark.parametrize("words", [
    ["eval", "own.pt", "--compare", "other.pt", "--attacks", "fgsm"],
    ["prune", "own.pt", "--sparsity", "0.5", "--teacher", "other.pt", "--dry-run"]], ids=["eval", "prune"])
def test_another_file_of_ones_own_network_is_read_as_it(here, pwoa, monkeypatch, words):
    """Its keys are also those of a plain chain, which takes other images: "cannot take images", next --arch,
    which was given."""
    real = setup.run

    def run(words, loaded, *args, **options):
        if loaded.arch == "plain":
            raise InputError("other.pt cannot take images", hint="--arch")
        return real(words, loaded, *args, **options)

    monkeypatch.setattr(setup, "run", run)
    Path("net.py").write_text(STRIDED)
    made = {}
    exec(STRIDED, made)
    net = small.learn(made["Strided"]())
    torch.save(net.state_dict(), "own.pt")
    torch.save({key: t + 0.01 for key, t in net.state_dict().items()}, "other.pt")
    code, _, err = pwoa(*words, *TINY, "--arch", "net.py:Strided")
    assert code == 0 and "the architecture of own.pt, it takes these images: taken" in err, err
