"""`pwoa eval` as a program: killed and resumed, stopped by the clock, compared, saved, and with wrong input."""
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from cli_world import TINY, here, pwoa, start, world  # noqa: F401 (fixtures)

from pwoa_cli import cli, run, sample_file
from pwoa_cli.attacks import gradient
from pwoa_cli.attacks.bounded import OutOfTime
from pwoa_cli.errors import InputError

SLOW = ["eval", "model.pt", "--data", "large.npz", "--eps", "0.08", "--n", "500", "--attacks", "pgd-40-r3,cw-30,apgd-ce"]
KEPT = Path("pwoa-runs/.eval")


def units():
    return len(list(KEPT.glob("*/*.npz")))


def known(made):
    """What must not depend on an interruption: everything but the time and the machine."""
    return {key: value for key, value in made.items() if key not in ("seconds", "environment")}


@pytest.fixture
def endless(monkeypatch):
    """pgd-100000 comes to the end of --max-seconds at once: no test waits for a clock."""
    pgd = gradient.pgd

    def run(*args, steps=20, **options):
        if steps == 100000:
            raise OutOfTime
        return pgd(*args, steps=steps, **options)

    monkeypatch.setattr(gradient, "pgd", run)


@pytest.fixture
def large(here):
    small.write_npz("large.npz", n=2400)
    return here


def test_kill_9_and_resume_gives_equal_flags(large, pwoa):
    code, out, err = pwoa(*SLOW, "--json", "--save-samples", "whole.npz")
    assert code == 0, err
    assert not KEPT.exists()  # it is finished: nothing to go on from
    process = start(*SLOW, "--json", "--save-samples", "resumed.npz")
    until = time.monotonic() + 60
    while units() < 2 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    left = units()
    assert process.returncode == -signal.SIGKILL and 2 <= left < 9 and not Path("resumed.npz").exists()
    code, again, err = pwoa(*SLOW, "--json", "--save-samples", "resumed.npz", "--resume")
    assert code == 0 and f"{left} finished parts of an earlier run were taken over" in err
    assert known(json.loads(again)) == known(json.loads(out)) and not KEPT.exists()
    whole, resumed = sample_file.read(Path("whole.npz")), sample_file.read(Path("resumed.npz"))
    assert whole.keys() == resumed.keys() and all(whole[key].tobytes() == resumed[key].tobytes() for key in whole)


def test_what_was_kept_is_neither_lost_nor_mixed_up(large, endless, pwoa):
    head = SLOW[:-1]
    assert "nothing to resume" in pwoa(*head, "fgsm", "--resume", "--max-seconds", "600")[2]
    code, out, err = pwoa(*head, "fgsm,pgd-100000", "--eps", "1e-6", "--max-seconds", "600", "--json")
    made = json.loads(out)
    assert code == 0 and units() == 3 and made["results"].keys() == {"clean", "fgsm", "worst case"}
    assert ("stopped after 600 s: pgd-100000 is not there; the worst case counts what was broken until then. The same command with "
            "--resume goes on.") in made["notes"]
    _, _, err = pwoa(*head, "fgsm", "--eps", "2e-6", "--resume")
    assert "nothing to resume" in err and units() == 3  # another threat: other flags
    _, out, err = pwoa(*head, "fgsm,pgd-100000", "--eps", "1e-6", "--max-seconds", "1e-9")
    assert "warning: finished parts of this very evaluation are there" in err and "--resume goes on from them" in err and units() == 3
    assert "Nothing was finished that --resume could go on from: give it more time." in out
    pwoa(*head, "pgd-1", "--eps", "1e-6")
    assert units() == 3  # a quick look with another attack costs nobody his work
    code, out, err = pwoa(*head, "fgsm", "--eps", "1e-6", "--resume", "--json")
    assert code == 0 and "3 finished parts of an earlier run were taken over" in err and not KEPT.exists()
    assert json.loads(out)["results"]["fgsm"] == made["results"]["fgsm"]


def test_compare_is_paired_and_says_what_no_drop_means(here, pwoa):
    code, out, err = pwoa("eval", "model.pt", "--compare", "pruned.safetensors", *TINY, "--attacks", "fgsm,pgd-3", "--json")
    made = json.loads(out)
    assert code == 0 and made["headings"] == ["compared", "model"] and "compared fgsm" in made["seconds"]
    for name in ("clean", "fgsm", "pgd-3", "worst case"):
        drop = made["drop"][name]
        assert drop["points"] == pytest.approx(100 * (made["teacher"][name]["accuracy"] - made["student"][name]["accuracy"]))
        assert drop["lost"] - drop["won"] == round(drop["points"] * 20 / 100) and 0 < drop["p"] <= 1
    code, out, _ = pwoa("eval", "model.pt", "--teacher", "model.pt", *TINY, "--attacks", "fgsm")
    assert "0 samples lost, 0 won, McNemar p = 1: no loss was found; one above" in " ".join(out.split())
    assert "|  | compared | model | drop |" in out


def test_samples_hold_what_the_table_says(here, pwoa):
    options = ["--attacks", "fgsm,pgd-3", "--eps", "0.05", "--save-samples", "s.npz", "--out", "made", "--json", "--per-class"]
    code, out, err = pwoa("eval", "model.pt", *TINY, *options)
    made, read, bare = json.loads(out), sample_file.read(Path("s.npz")), sample_file.read(Path("made/samples.npz"))
    assert code == 0 and "wrote made" in err and "wrote s.npz" in err
    assert bare.keys() == read.keys() - {"model/inputs"} and read["model/inputs"].shape == (20, 1, 8, 8)
    for name, score in made["results"].items():
        assert read[f"model/correct/{name}"].mean() == score["accuracy"]
    with np.load("tiny.npz") as data:
        clean = torch.tensor(data["x_test"][read["index"]]).permute(0, 3, 1, 2).float() / 255
        assert np.array_equal(data["y_test"][read["index"]], read["label"])
    moved = np.abs(read["model/inputs"] - clean.numpy()).max((1, 2, 3))
    assert moved.max() <= 0.05 + 1e-6 and np.array_equal(moved > 0, read["model/broken_by"] != "")
    assert np.allclose(np.nan_to_num(read["model/distance/fgsm"]), np.where(read["model/correct/fgsm"], 0, moved), atol=1e-6)
    by_class = made["classes"]["model"]["worst case"]
    assert sum(score["n"] for score in by_class.values()) == 20 and set(by_class) == {"0", "1", "2", "3"}
    assert "## By class (model)" in Path("made/report.md").read_text()


def test_the_command_knows_l1_and_minimum_norms(here, pwoa):
    code, out, err = pwoa("eval", "model.pt", *TINY, "--norm", "L1", "--eps", "2", "--attacks", "pgd-3,fmn-20", "--json")
    made = json.loads(out)
    assert code == 0 and made["threat"] == {"norm": "l1", "eps": 2.0}
    curve = made["results"]["fmn-20"]["curve"]
    assert len(curve) == 10 and curve[0][1] >= curve[-1][1] and dict(map(tuple, curve))[2.0] == made["results"]["fmn-20"]["accuracy"]


def test_an_unreliable_figure_is_said_on_stderr_too(here, pwoa):
    code, out, err = pwoa("eval", "pruned.safetensors", *TINY, "--attacks", "fgsm", "--quiet")
    assert code == 0 and "warning: unreliable: clean accuracy 30.0% is near chance (25.0%)" in err and "- note: unreliable: " in out


@pytest.mark.parametrize("args,message", [
    (["--eps", "8"], "Did you mean 8/255?"), (["--eps=-0.1"], "it must be finite and above 0"), (["--eps", "0"], "nothing to attack"),
    (["--eps", "8/256x"], "is not a number"), (["--attacks", "pdg"], "Did you mean pgd?"), (["--norm", "l3"], "Unknown norm"),
    (["--n", "65"], "the data has 64"), (["--n", "0"], "at least 1"), (["--max-seconds", "0"], "not a number above 0"),
    (["--max-seconds", "soon"], "not a number above 0"), (["--save-samples", "flags.csv"], "is no .npz file"),
    (["--save-samples", "no/such/flags.npz"], "cannot be written"), (["--save-samples", "."], "is a folder"),
    (["--attacks", "cw-l2"], "cw-l2 attacks in l2"), (["--mean", "0.9", "--std", "0.001"], "near chance"),
    (["--compare", "missing.pt"], "missing.pt"), (["--batch-size", "0"], "at least 1")])
def test_wrong_input_is_a_sentence_before_any_work(here, pwoa, args, message):
    code, out, err = pwoa("eval", "model.pt", *TINY, *args)
    assert code == 2 and not out and message in err and "Traceback" not in err and "evaluate" not in err
    assert "hint: " in err


@pytest.mark.parametrize("classes,attacks,message", [(2, "aa", "needs at least 4 classes"), (3, "apgd-t", "needs at least 4 classes")])
def test_few_classes(here, pwoa, classes, attacks, message):
    small.write_npz("few.npz", classes=classes)
    small.save(small.learn(small.lenet(num_classes=classes), classes=classes), "few.pt")
    code, out, err = pwoa("eval", "few.pt", "--data", "few.npz", "--eps", "0.1", "--n", "20", "--attacks", attacks)
    assert code == 2 and message in err
    code, out, err = pwoa("eval", "few.pt", "--data", "few.npz", "--eps", "0.1", "--n", "4", "--attacks", "fab-t", "--json")
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
    import shutil

    shutil.rmtree(run.ROOT)
    run.ROOT.write_text("in the way")
    code, out, err = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--json")
    assert code == 0 and json.loads(out) and "warning: what is finished cannot be kept" in err
    assert cli.GOES_ON not in err


def test_resume_into_the_same_report_folder(large, endless, pwoa):
    args = [*SLOW[:-1], "fgsm,pgd-100000", "--eps", "1e-6", "--out", "made", "--max-seconds", "600"]
    assert pwoa(*args)[0] == 0 and units() == 3
    code, _, err = pwoa(*args)
    assert code == 2 and "exists and is not empty" in err
    code, out, err = pwoa(*args, "--resume")
    assert code == 0 and "3 finished parts" in err and Path("made/report.json").is_file()


NET = """
import torch
from torch import nn
from pwoa_cli.families.small import LeNet

class Scaled(LeNet):
    def forward(self, x):
        return super().forward({change})

def make():
    return Scaled(size=8, widths=(4, 8), hidden=16, num_classes=4)
"""


def test_an_edited_network_is_not_resumed_with_the_old_ones_flags(large, endless, pwoa):
    Path("net.py").write_text(NET.format(change="x"))
    args = ["eval", "model.pt", "--arch", "net.py:make", *SLOW[2:-1], "fgsm,pgd-100000", "--eps", "1e-6", "--max-seconds", "600", "--resume"]
    assert pwoa(*args)[0] == 0 and units() == 3
    Path("net.py").write_text(NET.format(change="x * 1.0001"))
    code, _, err = pwoa(*args)
    assert code == 0 and "nothing to resume" in err and "taken over" not in err


def test_two_models_that_time_did_not_suffice_for_are_not_compared(large, endless, pwoa):
    args = ["eval", "model.pt", "--compare", "model.pt", *SLOW[2:-1], "fgsm,pgd-100000", "--eps", "1e-6", "--max-seconds", "600"]
    code, out, _ = pwoa(*args, "--json")
    made = json.loads(out)
    assert code == 0 and made["drop"].keys() == {"clean", "fgsm"} and made["student"].keys() == {"clean", "fgsm", "worst case"}
    assert made["unfinished"] == {"compared": ["pgd-100000"], "model": ["pgd-100000"]} and made["attacks"] == ["fgsm", "pgd-100000"]
    assert made["models"]["compared"]["sha256"] == made["models"]["model"]["sha256"] and made["models"]["compared"]["source"] == "model.pt"
    assert "model unfinished pgd-100000" in made["seconds"]


@pytest.mark.parametrize("folder", ["run", "notes"])
def test_resume_never_writes_over_what_is_no_evaluation(here, pwoa, folder):
    made = run.newest() if folder == "run" else Path("notes")
    made.mkdir(exist_ok=True)
    if folder == "notes":
        (made / "report.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    code, _, err = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--resume", "--out", str(made))
    assert code == 2 and "exists and is not empty" in err and {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_two_evaluations_at_once_in_one_folder(large, pwoa):
    first = start(*SLOW, "--json")
    second = start(*SLOW[:-1], "fgsm", "--json")
    for process in (first, second):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and json.loads(out)["results"], err
    assert not KEPT.exists()


def test_a_full_disk_at_the_end_does_not_cost_the_figures(here, pwoa, monkeypatch):
    monkeypatch.setattr(sample_file, "save", lambda *_, **__: (_ for _ in ()).throw(InputError("s.npz cannot be written: full.")))
    code, out, err = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--save-samples", "s.npz")
    assert code == 2 and "s.npz cannot be written" in err and "| fgsm |" in out
