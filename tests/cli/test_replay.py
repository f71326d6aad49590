"""--config: an earlier run again, to the byte; what is typed wins; what cannot be is refused."""
import json
import os
import shutil
import tomllib
from pathlib import Path

import pytest
from helpers.cli_world import PACKAGE, PRUNE

from pwoa_cli.cli.replay import _found

RECIPES = PACKAGE / "training/recipes"


def bytes_of(folder):
    return Path(folder, "model.safetensors").read_bytes()


def test_a_run_is_given_again_to_the_byte(here, pwoa):
    more = ["--set", "cutmix=0.5", "--set", "lr=2e-3", "--seed", "7", "--normalize", "none"]
    assert pwoa(*PRUNE, *more, "--out", "a")[0] == 0
    code, out, err = pwoa("prune", "--config", "a/config.toml", "--out", "b", "--json")
    assert code == 0, err
    assert bytes_of("a") == bytes_of("b")
    one, two = (json.loads(Path(name, "report.json").read_text()) for name in "ab")
    assert one["command"] == two["command"] and one["command"]["settings"] == ["cutmix=0.5", "lr=2e-3"]
    assert one["command"]["model"] == "model.pt" and "out" not in one["command"]
    for report in (one, two):
        del report["created"], report["seconds"]
    assert one == two
    assert tomllib.loads(Path("a/config.toml").read_text())["command"] == one["command"]


def test_what_is_typed_wins(here, pwoa):
    assert pwoa(*PRUNE, "--out", "a")[0] == 0
    shutil.copy("model.pt", "other.pt")
    code, out, err = pwoa("prune", "other.pt", "--config", "a/config.toml", "--sparsity", "0.5", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["sparsity"]["target"] == 0.5 and made["model"]["source"] == "other.pt"
    assert made["command"]["sparsity"] == "0.5"


def test_another_file_under_the_old_name_is_refused(here, pwoa):
    assert pwoa(*PRUNE, "--out", "a")[0] == 0
    shutil.copy("pruned.safetensors", "model.pt")
    code, _, err = pwoa("prune", "--config", "a/config.toml", "--out", "b")
    assert code == 2 and "is not the file that --config is of" in err and not Path("b").exists()


@pytest.mark.parametrize(("content", "said"), [
    ('[command]\nsparsty = "0.9"', "Did you mean sparsity?"), ("x = 1", "no table [command]"),
    ("x = ", "cannot be read as TOML"), ("x = " + "[" * 2000, "nested too deep"),
    ("[command]\nmodel = {a = 1}", "model is a dict"),
    ('[command]\nout = "x"', "'out' is no option"), (None, "cannot be read")])
def test_configs_that_are_none(here, pwoa, content, said):
    if content is not None:
        Path("c.toml").write_text(content)
    code, out, err = pwoa("prune", "--config", "c.toml")
    assert code == 2 and said in err and not out and "Traceback" not in err


def test_a_config_may_be_written_by_hand(here, pwoa):
    lines = ['[command]', 'model = "model.pt"', "sparsity = 0.9", 'data = "tiny.npz"', 'eps = "0.5"',
             "n = 20", "epochs = 0.1", "batch_size = 16", 'attacks = "fgsm"']
    Path("c.toml").write_text("\n".join(lines))
    assert pwoa("prune", "--config", "c.toml", "--out", "b")[0] == 0
    assert pwoa(*PRUNE, "--out", "a")[0] == 0
    assert bytes_of("a") == bytes_of("b")


def test_a_folder_of_two_runs_is_refused(here, pwoa):
    assert pwoa(*PRUNE, "--out", "a")[0] == 0
    assert pwoa("prune", "--config", "a/config.toml", "--sparsity", "0.5", "--out", "b")[0] == 0
    shutil.copy("b/model.safetensors", "a/model.safetensors")
    code, _, err = pwoa("eval", "a", "--n", "20", "--attacks", "fgsm")
    assert code == 2 and "is of two runs" in err


def test_paths_of_a_config_are_looked_for_above_it(here, pwoa):
    """As those of a finished run are: from another folder, or where the run was moved with what is around
    it."""
    (here / "files").mkdir()
    for name in ("model.pt", "tiny.npz"):
        shutil.move(name, f"files/{name}")
    shutil.copy(RECIPES / "default.toml", "files/mine.toml")
    words = ["prune", "files/model.pt", *PRUNE[2:], "--data", "files/tiny.npz", "--recipe", "files/mine.toml"]
    assert pwoa(*words, "--out", "runs/a")[0] == 0
    (here / "other" / "mnist").mkdir(parents=True)
    os.chdir(here / "other")
    code, out, err = pwoa("prune", "--config", "../runs/a/config.toml", "--out", "b", "--json")
    assert code == 0, err
    assert bytes_of("b") == bytes_of("../runs/a")
    assert json.loads(out)["command"]["model"] == "../files/model.pt"
    assert _found("mnist", here / "other" / "run") == "mnist"  # the data set, whatever lies around


def test_what_is_typed_brings_its_own_structure(here, pwoa):
    """--channels over the config of filters was refused, with "leave --structure out", which nobody typed."""
    assert pwoa(*PRUNE, "--structure", "filter", "--out", "a")[0] in (0, 3)  # few filters: near chance
    for goal, value, structure in (("--nm", "2:4", "2:4"), ("--channels", "0.2", "channel"),
                                   ("--sparsity", "0.2", "filter")):
        code, out, err = pwoa("prune", "--config", "a/config.toml", goal, value, "--out", structure, "--json")
        assert code in (0, 3), err
        made = json.loads(out)
        assert made["sparsity"]["structure"] == structure
        assert made["command"].get("structure") == (structure if goal == "--sparsity" else None)
