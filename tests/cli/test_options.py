"""The options: one word, one meaning in every command; help in a narrow terminal; sparsities as typed."""
import re

import pytest
from helpers.cli_world import PRUNE, TINY

from pwoa_cli.cli import options
from pwoa_cli.errors import InputError
from pwoa_cli.machine import memory

SIZE = options._bytes("--max-memory", "8GB")


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
    assert "Default: channel with --channels or --macs, else unstructured." in words
    for default in ("default", "fgsm,pgd-10,pgd-20,cw", "1000", "0", "auto"):
        assert f"[default: {default}]" in words


def test_the_same_word_in_every_command(pwoa):
    model = ["--arch", "--num-classes", "--normalize", "--mean", "--std", "--entry", "--keep",
             "--trust-pickle", "--max-memory",
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


@pytest.mark.parametrize(("text", "size"), [
    ("8GB", 8e9), ("8 gb", 8e9), ("500M", 5e8), ("1.5GiB", 1.5 * 2**30), ("2048", 2048), ("1KiB", 1024),
    ("0.5T", 5e11)])
def test_sizes_of_memory(text, size):
    assert SIZE(text) == size and SIZE(SIZE(text)) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1e9", "8 XB", "9" * 5000, "nan"])
def test_wrong_sizes_of_memory(text):
    with pytest.raises(InputError, match="--max-memory .*is no number of bytes"):
        SIZE(text)


@pytest.mark.parametrize("command", [PRUNE, ["eval", "model.pt", *TINY, "--attacks", "fgsm"],
                                     ["info", "model.pt"]])
def test_more_memory_than_was_said_is_refused(here, pwoa, monkeypatch, command):
    monkeypatch.setattr(memory, "_said", None)  # as it was, after the test
    code, out, err = pwoa(*command, "--max-memory", "3KB", "--quiet")
    assert code == 2 and not out and "model.pt: its tensors would take" in err and err.count("\n") == 2
    assert "(--max-memory)" in err and "hint: If the file is right: --max-memory 0.1GB" in err
    assert pwoa(*command, "--max-memory", "0.1GB", "--quiet", *["--dry-run"] * (command[0] != "info"))[0] == 0


@pytest.mark.parametrize(("more", "said"), [
    (["--seed", str(2**63)], "--seed 9223372036854775808 is not a whole number of at least 0 and at most"),
    (["--seed", "9" * 5000], "is not a whole number of at least 0 and at most"),
    (["--samples", "9" * 15], "is not a whole number of at least 1 and at most"),
    (["--image-size", "9" * 5000], "is no size of images"), (["--image-size", "0"], "is no size of images"),
    (["--set", "lr=1e308"], "lr = 1e+308, expected a number above 0 and at most 1e+09"),
    (["--set", "mask_updates=1e300"], "mask_updates = 100000000000"),
    (["--eps", "1e308"], ""), (["--eps", "9" * 5000], ""), (["--mean", "1e308"], ""),
    (["--keep", "9" * 5000], ""),
    (["--num-classes", "9" * 30], "--num-classes 9999")])
def test_numbers_that_nothing_holds(here, pwoa, more, said):
    code, out, err = pwoa(*PRUNE, *more, "--quiet", "--dry-run")
    assert code == 2 and not out and said in err and err.startswith("error: ") and "Traceback" not in err
