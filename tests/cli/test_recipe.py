"""`pwoa recipe`, `version` and `help`."""
import json
import tomllib
from pathlib import Path

import pytest

import pwoa_cli
from pwoa_cli.training.recipe import shipped


def test_recipes_are_listed_shown_and_checked(here, pwoa):
    code, out, _ = pwoa("recipe", "list", "--json")
    assert code == 0 and list(json.loads(out)["recipes"]) == shipped()
    code, out, _ = pwoa("recipe", "show", "paper")
    assert code == 0 and tomllib.loads(out)["method"] == "admm"
    Path("mine.toml").write_text(out + "\n[data.mnist]\nlr = 1e-4\n" if "[data.mnist]" not in out else out)
    code, out, _ = pwoa("recipe", "check", "mine.toml")
    assert code == 0 and "mine.toml is a recipe" in out


@pytest.mark.parametrize(("args", "said"), [
    (["lst"], "expected list, show, check"), (["list", "x"], "takes no name"), (["show"], "takes a name"),
    (["check", "nothing"], "neither shipped nor a file"), (["check", "bad.toml"], "no recipe field 'lrr'"),
    (["check", "text.toml"], "cannot be read as a TOML file")])
def test_what_is_no_recipe(here, pwoa, args, said):
    Path("bad.toml").write_text("lrr = 1")
    Path("text.toml").write_text("lr is 1")
    code, out, err = pwoa("recipe", *args)
    assert code == 2 and not out and said in err and "hint: " in err


def test_version_and_help(pwoa):
    assert pwoa("version") == (0, f"pwoa {pwoa_cli.__version__}\n", "")
    for command in ("prune", "report"):
        assert pwoa("help", command) == pwoa(command, "--help")
    assert pwoa("help")[1] == pwoa("--help")[1]
    code, _, err = pwoa("help", "nothing")
    assert code == 2 and "no command 'nothing'" in err
