"""`pwoa prune` as a program: what a run writes, says and leaves."""
import json
import re
import signal
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.cli_world import PRUNE, RUN_FILES, TINY, start
from helpers.processes import wait

from pwoa_cli.files import run_folder
from pwoa_cli.files.metrics import read_metrics
from pwoa_cli.reports import tables


def test_prune_writes_a_run_and_says_where_and_what_next(here, pwoa):
    code, out, err = pwoa(*PRUNE, "--out", "runs/one")
    assert code == 0, err
    assert sorted(p.name for p in Path("runs/one").iterdir()) == RUN_FILES
    made = json.loads(Path("runs/one/report.json").read_text())
    assert tables.markdown(made) == Path("runs/one/report.md").read_text() == out
    assert err.splitlines()[-2:] == ["wrote runs/one", "next: pwoa eval runs/one --attacks pgd,cw,aa"]
    assert "Traceback" not in err and "\x1b" not in err + out
    said = err.split("prune 900 weights")[0]
    for inferred in ("lenet5, 4 classes", "1-4-8 3x3, 32-16-4", "tiny from tiny.npz",
                     "normalisation: none in the file"):
        assert inferred in said


def test_report_json_keeps_the_contract(here, pwoa):
    folder = run_folder.newest()
    made = json.loads((folder / "report.json").read_text())
    assert made["schema_version"] == 2
    assert {"source", "sha256", "arch", "num_classes"} <= made["model"].keys()
    assert made["model"]["source"] == "model.pt"
    assert made["threat"] == {"norm": "linf", "eps": 0.5}
    sparsity = made["sparsity"]
    assert sparsity["target"] == 0.9 and sparsity["total"] == 900 and sparsity["nonzero"] == 90
    assert (sparsity["achieved"] == pytest.approx(0.9)
            and sum(layer["nonzero"] for layer in sparsity["layers"]) == 90)
    assert all(layer.keys() == {"name", "shape", "nonzero", "total"} for layer in sparsity["layers"])
    assert made["size"]["file_bytes"] == (folder / "model.safetensors").stat().st_size
    for side in ("teacher", "student"):
        assert made[side].keys() == {"clean", "fgsm"}
        for score in made[side].values():
            assert score.keys() >= {"accuracy", "n", "ci95"}
            assert 0 <= score["accuracy"] <= 1 and score["n"] == 20
    assert made["seconds"].keys() == {"load", "sparsify", "finetune", "save", "evaluate"}
    assert {"torch", "pwoa", "seed"} <= made["environment"].keys()
    assert str(Path.home()) not in json.dumps(made)


def test_config_says_everything_that_was_resolved(here):
    config = tomllib.loads((run_folder.newest() / "config.toml").read_text())
    assert (config["model"] == "model.pt" and config["arch"] == "lenet5" and config["num_classes"] == 4
            and config["seed"] == 0)
    assert (config["recipe"]["batch_size"] == 16 and config["recipe"]["epochs"] == 0.1
            and config["recipe"]["allocation"] == "lamp")
    assert (config["environment"]["torch"] == torch.__version__ and config["environment"]["pwoa"]
            and config["steps"] == 2)
    assert config["hidden_layers"] == ["relu1", "relu2", "relu3"] and len(config["sha256"]) == 64


def test_metrics_have_a_line_for_the_end_of_each_phase(here):
    lines = read_metrics(run_folder.newest() / "metrics.jsonl")
    assert [(line["step"], line["phase"]) for line in lines] == [(1, "sparsify"), (2, "finetune")]
    assert all(line["loss"] > 0 and "kl" in line for line in lines)


def test_dry_run_leaves_nothing(here, pwoa):
    before = sorted(here.rglob("*"))
    for out in ([], ["--out", "new/folder"]):
        code, text, _ = pwoa(*PRUNE, "--dry-run", *out)
        assert code == 0 and text.startswith("Everything checked; a run would write ")
        assert re.search(r"^training: about \d+ s on this machine \([\d.]+ ms a step x 2 steps; [\d.]+ m?s "
                         r"per million weights and image\)$", text, re.M)
        assert "\nepochs: 0.12 of 16 steps (as asked)\n" in text
        planned = json.loads(pwoa(*PRUNE, "--dry-run", "--json", *out)[1])
        assert planned.keys() == {"dry_run", "out", "epochs", "steps", "seconds", "seconds_per_step",
                                  "seconds_per_million_weights_and_image"}
        assert 0 < planned["seconds_per_step"] < 60
        assert pwoa("eval", "--n", "20", "--dry-run", *out)[0] == 0
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(("sparsity", "epochs"), [("0.68", 5), ("0.9", 10), ("0.99", 20)])
def test_the_default_of_epochs_is_said_for_the_model_and_what_help_says_is_true(here, pwoa, sparsity, epochs):
    _, out, err = pwoa("prune", "model.pt", "--sparsity", sparsity, *TINY, "--batch-size", "16", "--dry-run")
    percent = f"{100 * float(sparsity):g}%"
    said = f"epochs: {epochs} of 16 steps (the default of recipe default at {percent} sparsity; "
    assert said in out and said in err
    assert f"{epochs} {'up to' if epochs == 5 else 'at'} {percent}" in " ".join(
        pwoa("prune", "--help")[1].split())


def test_effort_and_partial_access(here, pwoa):
    def steps(*more):
        return json.loads(pwoa("prune", "model.pt", "--sparsity", "0.9", *TINY, "--batch-size", "16",
                               "--dry-run", "--json", *more)[1])["steps"]

    # 10 epochs of 16 steps
    assert [steps("--effort", e) for e in ("quick", "default", "max")] == [32, 160, 800] and steps() == 160
    assert steps("--effort", "max", "--epochs", "1") == steps("--epochs", "1") == 16
    code, out, err = pwoa(*PRUNE, "--mix-ratio", "0.5")
    assert code == 0 and "50% of the training batches" in out and "training: about " in err
    code, _, err = pwoa(*PRUNE, "--effort", "huge")
    assert code == 2 and "effort = 'huge', expected one of quick, default, max" in err


def test_ctrl_c_while_pruning(here):
    process = start(*PRUNE, "--epochs", "10000", "--out", "stopped")
    log = Path("stopped/metrics.jsonl")
    wait(process, lambda: log.exists() and log.stat().st_size)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and not out and "Traceback" not in err
    assert err.endswith("interrupted; kept in stopped: config.toml, metrics.jsonl, state.pt. No pruned model "
                        "was written.\nGo on: pwoa prune --resume --out stopped\n")
    assert sorted(p.name for p in Path("stopped").iterdir()) == ["config.toml", "metrics.jsonl", "state.pt"]
    assert tomllib.loads(Path("stopped/config.toml").read_text())["steps"] == 160_000
    assert read_metrics(log)[0]["phase"] == "sparsify" and log.read_text().endswith("}\n")
