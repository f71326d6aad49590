"""`pwoa export RUN --card DIR` as a user types it: what is written, what is said to be missing and followed,
what is refused."""
import json
import pickle
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.cli_world import PRUNE, TINY
from huggingface_hub import ModelCard

import pwoa_cli
from pwoa_cli.evaluation.words import WORST
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.workflows import card

FILES = ["README.md", "SHA256SUMS", "model.safetensors", "pruning-benchmark.json", "report.json", "report.md",
         "robustbench.json"]


@pytest.fixture
def run(here, monkeypatch):
    """The finished run of the world."""
    found = next(Path("pwoa-runs").glob("model-*"))
    return found.rename("run")


@pytest.fixture
def made(run, pwoa, monkeypatch):
    """Write a card: (its JSON object, stderr)."""
    def call(*words, paths=(run,), out="card", ends=0):
        code, text, err = pwoa("export", *paths, "--card", out, "--json", *words)
        assert code == ends, err
        return json.loads(text), err

    return call


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_a_card_is_whole_and_its_model_is_the_runs(made, run):
    found, err = made("--license", "mit")
    assert below("card") == FILES and not list(Path().glob(".pwoa*"))
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd="card", check=True, capture_output=True)
    assert Path("card/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert found["model_sha256"] == file_sha256(run / "model.safetensors")
    assert found["model_sha256"] in Path("card/README.md").read_text()
    assert found["files"]["README.md"] == file_sha256("card/README.md")
    data = ModelCard.load("card/README.md").data
    report = json.loads((run / "report.json").read_text())["student"]
    assert {r.metric_name: r.metric_value for r in data.eval_results} == {
        "clean accuracy": report["clean"]["accuracy"], "robust accuracy (fgsm)": report["fgsm"]["accuracy"]}
    assert pwoa_cli.load("card/model.safetensors") and "wrote card" in err


def test_a_folder_that_came_while_a_card_was_written_stays(run, pwoa, monkeypatch):
    sums = card.sums

    def late(folder):
        Path("card").mkdir(exist_ok=True)
        Path("card/mine.txt").write_text("mine")
        return sums(folder)

    monkeypatch.setattr(card, "sums", late)
    code, out, err = pwoa("export", run, "--card", "card")
    assert code == 2 and not out and "card folder card holds something else" in " ".join(err.split())
    assert below("card") == ["mine.txt"] and not list(Path().glob(".pwoa*"))


def test_what_is_missing_is_null_and_the_next_command_measures_it(made, run, pwoa, monkeypatch):
    found, err = made()
    entry = json.loads(Path("card/robustbench.json").read_text())
    assert entry["autoattack_acc"] is None and entry["clean_acc"] == "100.00" and entry["name"] is None
    command, = found["next"]
    assert f"next: {command}" in err
    assert command == "pwoa eval run --attacks aa,fmn --samples 20 --out run/eval"
    code, _, err = pwoa(*shlex.split(command)[1:])
    assert code == 0, err
    found, err = made("--name", "A title", "--additional-data", "no")
    assert found["next"] == [] and "evaluation: run/eval" in err and "next:" not in err
    entry = json.loads(Path("card/robustbench.json").read_text())
    assert entry["autoattack_acc"] == "0.00" and entry["name"] == "A title"
    assert entry["additional_data"] is False
    assert {"aa", "fmn", WORST} <= found["figures"].keys()
    one, = json.loads(Path("card/pruning-benchmark.json").read_text())["models"]
    distances = pickle.loads(Path("card", one["fmn"]["distances"]).read_bytes())
    assert len(distances) == 20 and all(isinstance(size, float) and 0 < size <= 0.5 for size in distances)
    assert json.loads(Path("card/evaluations/1.json").read_text())["attacks"] == ["aa", "fmn"]


def test_an_evaluation_elsewhere_is_named(made, run, pwoa):
    assert pwoa("eval", "run/model.safetensors", *TINY, "--attacks", "fmn", "--out", "measured")[0] == 0
    found, _ = made(paths=(run, "measured"))
    assert found["figures"]["fmn"]["of"] == "evaluations/1.json"
    assert re.search(r"--attacks aa --samples 20 --out run/eval$", found["next"][0])


def test_an_evaluation_of_another_model_or_threat_is_not_taken(made, run, pwoa):
    assert pwoa("eval", "model.pt", *TINY, "--attacks", "fmn", "--out", "other")[0] == 0
    code, _, err = pwoa("export", run, "other", "--card", "card")
    assert code == 2 and "other cannot be in the card: it is of another model." in err
    assert pwoa("eval", run, "--n", "20", "--eps", "0.1", "--attacks", "fgsm", "--out", "run/eval")[0] == 0
    found, err = made()
    assert "warning: run/eval is left out: it differs from the run in eps" in " ".join(err.split())
    assert found["figures"]["fgsm"]["of"] == "report.json" and not Path("card/evaluations").exists()


def _told(path, **changes):
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | changes))


def test_figures_in_doubt_or_unfinished_are_no_figures(made, run, pwoa):
    assert pwoa("eval", run, "--n", "20", "--attacks", "fmn", "--out", "run/eval")[0] == 0
    left = {"pruned": {"aa": {"n": 0, "of": 20}}}
    _told(run / "eval" / "report.json", unfinished=left, attacks=["fmn", "aa"])
    found, err = made()
    assert "aa" not in found["figures"] and any("aa is unfinished, 0 of 20" in s for s in found["notes"])
    doubt = {"check": "masked", "unreliable": True, "text": "gradients are masked.", "models": ["pruned"]}
    _told(run / "eval" / "report.json", findings=[doubt])
    found, err = made(ends=3)
    assert found["figures"] == {} and found["next"] == []
    assert any("gradients are masked" in sentence for sentence in found["notes"])
    assert ModelCard.load("card/README.md").data.eval_results is None
    entry = json.loads(Path("card/robustbench.json").read_text())
    assert entry["clean_acc"] is entry["autoattack_acc"] is None


def test_samples_of_another_evaluation_give_no_distances(made, run, pwoa):
    assert pwoa("eval", run, "--n", "20", "--attacks", "fmn", "--out", "run/eval")[0] == 0
    assert pwoa("eval", run, "--attacks", "fmn", "--n", "10", "--out", "ten")[0] == 0
    shutil.copy("ten/samples.npz", "run/eval/samples.npz")
    found, err = made()
    assert "no distances are taken" in err and "distances" not in str(found["files"])
    assert "--attacks aa,fmn --samples 20 --out run/eval-2" in found["next"][0]


def test_runs_of_one_teacher_are_in_one_benchmark_entry(made, run, pwoa):
    for sparsity in ("0.5", "0.95"):
        assert pwoa(*PRUNE[:3], sparsity, *PRUNE[4:], "--out", f"r{sparsity}")[0] == 0
    assert pwoa("eval", "run", "r0.5", "r0.95", *TINY, "--attacks", "fmn", "--out", "all")[0] == 0
    found, _ = made(paths=("run", "r0.5", "r0.95", "all"))
    models = json.loads(Path("card/pruning-benchmark.json").read_text())["models"]
    assert [one["sparsity"] for one in models] == ["90", "50", "95"]
    assert len({one["model_sha256"] for one in models}) == 3
    assert len({one["fmn"]["distances"] for one in models}) == 3
    assert len(found["next"]) == 3 and found["model_sha256"] == models[0]["model_sha256"]
    code, _, err = pwoa("export", "run", "r0.5", shutil.copytree("r0.5", "copy"), "--card", "two")
    assert code == 0, "their names differ, and no key is the same"
    assert pwoa(*PRUNE, "--eps", "0.25", "--out", "closer")[0] == 0
    code, _, err = pwoa("export", "run", "closer", "--card", "two")
    assert code == 2 and "closer differs from run in eps: one card is of one teacher" in err


def test_a_card_is_written_again_over_itself_and_over_nothing_else(made, pwoa):
    made()
    first = Path("card/README.md").read_text()
    made("--license", "mit")
    assert first != Path("card/README.md").read_text() and below("card") == FILES
    Path("card/README.md").write_text(first + "filled in by hand\n")
    for out in ("card", ".", "pwoa-runs/..", "model.pt", "model.pt/card"):
        code, _, err = pwoa("export", "run", "--card", out)
        assert code == 2 and len(err.splitlines()) >= 2 and "hint: " in err, (out, err)
    assert Path("card/README.md").read_text() == first + "filled in by hand\n"
    assert not list(Path().glob(".pwoa*"))


def test_the_same_card_has_the_same_bytes(made):
    made("--license", "mit")
    first = Path("card/SHA256SUMS").read_bytes()
    made("--license", "mit", out="again")
    assert Path("again/SHA256SUMS").read_bytes() == first


@pytest.mark.parametrize(("words", "message"), [
    (["run"], "was not told what to write"),
    (["run", "--format", "dense", "--license", "mit", "--link", "x"],
     "--link and --license: of a card alone"),
    (["run", "run", "--format", "dense"], "--format writes one model"),
    (["run", "--card", "c", "--format", "dense", "--n", "3"],
     "--format and --samples are of other exports"),
    (["run", "--card", "c", "--out", "d", "--arch", "lenet5"], "--out and --arch are of other exports"),
    (["run", "--card", "c", "--additional-data", "perhaps"], "neither yes nor no"),
    (["model.pt", "--card", "c"], "model.pt is no run"), (["nowhere", "--card", "c"], "nowhere is no run"),
    (["run", "nowhere", "--card", "c"], "nowhere/report.json cannot be read")])
def test_wrong_use_is_a_sentence_and_writes_nothing(run, pwoa, words, message):
    code, out, err = pwoa("export", *words)
    assert code == 2 and not out and message in " ".join(err.split()) and "hint: " in err
    assert not Path("c").exists()


def test_a_run_of_two_models_has_no_card(run, pwoa):
    shutil.copy("model.pt", run / "model.safetensors")
    code, _, err = pwoa("export", run, "--card", "card")
    assert code == 2 and "run is of two runs" in err and not Path("card").exists()


def test_quiet_says_nothing_but_the_result(made, run, pwoa):
    code, out, err = pwoa("export", run, "--card", "card", "--quiet")
    assert code == 0 and not err and out.startswith("card: card\n") and "note: " in out


def test_the_help_names_several_models_without_braces(here, pwoa):
    code, out, _ = pwoa("export", "--help")
    first, _, rest = out.partition("\n")
    assert code == 0 and first in ("Usage: pwoa export [OPTIONS] MODEL...",  # typer 0.26.0 has no dots
                                   "Usage: pwoa export [OPTIONS] MODEL") and "--card DIR" in rest
