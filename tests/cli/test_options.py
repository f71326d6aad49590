"""The options: one word, one meaning in every command; help in a narrow terminal; sparsities as typed."""
import re

import pytest
from helpers.cli_world import PRUNE


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [[], ["prune"], ["eval"]])
def test_help_holds_in_a_narrow_terminal(pwoa, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = pwoa(*command, "--help")
    assert code == 0 and not err
    assert max(map(len, out.splitlines())) <= columns
    assert not re.search(r"\w\.\.\.$|<str>|\{", out, re.M)  # nothing cut, nothing of the parser's inside


def test_help_groups_options_and_shows_defaults(pwoa):
    _, out, _ = pwoa("prune", "--help")
    assert re.findall(r"^(\w.*):$", out, re.M) == ["Arguments", "Pruning", "Model", "Data and attacks",
                                                  "Gates", "Run"]
    words = " ".join(out.split())
    for default in ("unstructured", "default", "fgsm,pgd-10,pgd-20,cw", "1000", "0", "auto"):
        assert f"[default: {default}]" in words


def test_the_same_word_in_every_command(pwoa):
    model = ["--arch", "--num-classes", "--normalize", "--mean", "--std", "--entry", "--keep",
             "--trust-pickle",
             "--data", "--json", "--quiet", "--verbose"]
    every = [*model, "--norm", "--eps", "--attacks", "--samples", "--batch-size", "--seed", "--device",
             "--out",
             "--dry-run"]
    own = {"prune": [*every, "--teacher", "--recipe", "--sparsity", "--epochs"],
           "eval": [*every, "--compare"],
           "info": model}
    for command, flags in own.items():
        _, out, _ = pwoa(command, "--help")
        assert set(flags) <= set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.M))


@pytest.mark.parametrize(("text", "message"), [
    ("0", "nothing to prune"), ("1", "nothing left"), ("-0.1", "is not between 0 and 1"),
    ("90", "Did you mean 0.9?"),
    ("90%", "Did you mean 0.9?"), ("0,9", "Did you mean 0.9?"), ("abc", "abc is not a number"),
    ("", "is not a number"),
    ("nan", "is not between 0 and 1"), ("inf", "is not between 0 and 1"), ("100", "is not between 0 and 1"),
    ("1e-9", "less than one weight"), ("0.9999", "a weight must stay in each of 4 layers")])
def test_wrong_sparsity(here, pwoa, text, message):
    code, out, err = pwoa(*PRUNE, "--sparsity", text, "--quiet")
    assert code == 2 and not out and message in err and err.count("\n") == 2
    assert not re.search(r"hint: .*--sparsity (90|abc|1)\b", err)
