"""The folder that a command writes to: new or empty, and what is kept in it is said where a command fails."""
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.cli_world import PRUNE, RUN_FILES, TINY

import pwoa_cli
from pwoa_cli.errors import PwoaError
from pwoa_cli.files import run_folder, sparse
from pwoa_cli.workflows import prune, prune_job


def test_out_may_be_new_or_empty(here, pwoa):
    Path("empty").mkdir()
    for out in ("empty", "new/deep"):
        assert pwoa(*PRUNE, "--quiet", "--out", out)[0] == 0
        assert sorted(p.name for p in Path(out).iterdir()) == RUN_FILES
    code, _, err = pwoa(*PRUNE, "--out", "empty")
    assert code == 2 and "empty exists and is not empty; nothing in it was touched" in err
    assert sorted(p.name for p in Path("empty").iterdir()) == RUN_FILES


def test_no_run_yet(tmp_path, monkeypatch, pwoa):
    monkeypatch.chdir(tmp_path)
    code, _, err = pwoa("eval", "--quiet")
    assert code == 2
    assert err == ("error: no finished run under pwoa-runs (nothing there).\n"
                   "hint: Make one: pwoa prune model.pt --sparsity 0.9\n")


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_disk_that_cannot_take_the_model_is_said_before_the_training(here, pwoa, monkeypatch, more):
    dense = sparse.dense_bytes(pwoa_cli.load("model.pt").state_dict())
    need = round(0.1 * dense)  # PRUNE asks for 90%
    monkeypatch.setattr(run_folder, "LEAST_FREE", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need - 1))
    code, _, err = pwoa(*PRUNE, *more, "--out", "full")
    assert code == 2 and "error: the disk of full has" in err and "another disk: --out DIR" in err
    assert not Path("full").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need))
    assert pwoa(*PRUNE, *more, "--out", "full")[0] == 0
    if not more:  # it goes on whatever is free: the room is taken already
        Path("full/report.json").unlink()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        assert pwoa("prune", "--resume", "--out", "full")[0] == 0


@pytest.mark.parametrize(("error", "code"),
                         [(KeyboardInterrupt(), 130), (PwoaError("The loss is not finite."), 4)])
def test_what_is_kept_is_said(here, pwoa, monkeypatch, error, code):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(prune, "measure", fails)  # after the model was saved
    got, out, err = pwoa(*PRUNE, "--out", "late")
    assert got == code and not out
    assert ("kept in late: config.toml, metrics.jsonl, model.safetensors, state.pt.\n"
            "The pruned model is whole; measure it: pwoa eval late/model.safetensors --data tiny.npz\n"
            ) in err
    assert ("Go on: pwoa prune --resume --out late\n" in err) == (code == 130)
    monkeypatch.setattr(sparse, "save", fails)
    got, out, err = pwoa(*PRUNE, "--out", "early")
    assert got == code and ("kept in early: config.toml, metrics.jsonl, state.pt. No pruned model was "
                                          "written.") in err
    assert sorted(p.name for p in Path("early").iterdir()) == ["config.toml", "metrics.jsonl", "state.pt"]
    monkeypatch.setattr(prune_job, "prepare", fails)
    got, out, err = pwoa(*PRUNE, "--out", "never")
    assert (got == code and not Path("never").exists()
            and (code != 130 or "interrupted; nothing was written." in err))


def test_the_line_that_measures_what_is_kept_works_when_it_is_pasted(here, pwoa, monkeypatch):
    """With spaces and umlauts, code of one's own, pictures in a folder."""
    Path("my net.py").write_text("from pwoa_cli.networks.families.small import LeNet\n"
                                 "def fn(): return LeNet(size=8, widths=(4, 8), hidden=16, num_classes=4)\n")
    Path("my data").mkdir()
    Path("tiny.npz").rename("my data/tiny.npz")
    words = [*PRUNE, "--data", "my data/tiny.npz", "--arch", "my net.py:fn"]
    with monkeypatch.context() as patch:
        patch.setattr(prune, "measure", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        code, _, err = pwoa(*words, "--out", "run 3 \u00fc")
    assert code == 130
    line, = (one for one in err.splitlines() if "measure it: pwoa " in one)
    typed = shlex.split(line.partition("measure it: pwoa ")[2])
    assert typed == ["eval", "run 3 \u00fc/model.safetensors", "--data", "my data/tiny.npz",
                     "--arch", "my net.py:fn"]
    code, _, err = pwoa(*typed, "--attacks", "fgsm", "--samples", "20", "--quiet")
    assert code in (0, 3), err


def test_a_run_without_a_report_is_not_the_newest(here, pwoa, monkeypatch):
    finished = run_folder.newest()
    monkeypatch.setattr(prune, "write", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert pwoa(*PRUNE)[0] == 130
    assert run_folder.newest() == finished


def test_a_stopped_run_is_told_alike_wherever_its_report_is_asked_for(here, pwoa, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prune, "measure", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        assert pwoa(*PRUNE, "--out", "a run")[0] == 130
    finished = str(run_folder.newest())
    told = {pwoa(*words)[2].partition("error: ")[2] for words in (
        ["eval", "a run", "--quiet"], ["report", "a run"], ["report", finished, "a run"],
        ["export", "a run", "--card", "card", "--quiet"])}
    assert told == {"a run is no finished run: a folder without report.json.\n"
                    "hint: Finish it: pwoa prune --resume --out 'a run'\n"}
    Path("empty").mkdir()
    assert "hint: Make a run: pwoa prune model.pt" in pwoa("report", "empty")[2]


@pytest.mark.parametrize("folder", ["run", "notes"])
def test_resume_never_writes_over_what_is_no_evaluation(here, pwoa, folder):
    made = run_folder.newest() if folder == "run" else Path("notes")
    made.mkdir(exist_ok=True)
    if folder == "notes":
        (made / "report.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    code, _, err = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--resume", "--out", str(made))
    assert (code == 2 and "exists and is not empty" in err
            and {path.name: path.read_bytes() for path in made.iterdir()} == before)
