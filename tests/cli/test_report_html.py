"""`pwoa report --html`: the file, its commands, what is missing, what plain `pwoa report` keeps doing."""
import importlib.util
import json
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.cli_world import PRUNE
from helpers.pages import Page

from pwoa_cli.files import run_folder


def test_the_page_is_written_beside_what_is_shown_as_ever(here, pwoa):
    run = run_folder.newest()
    before = pwoa("report")
    code, out, err = pwoa("report", "--html", run)
    assert code == 0 and out == before[1] and f"wrote {run}/report.html (" in err.replace("\n  ", " ")
    shown = Page((run / "report.html").read_text())
    assert shown.of("h1") and "model.pt pruned to 90% sparsity" in shown.words and "Training" in shown.words
    assert json.loads(pwoa("report", "--html", "own.html", "--json")[1]) == json.loads(
        (run / "report.json").read_text())
    assert Path("own.html").read_text() == (run / "report.html").read_text()


def test_the_commands_of_the_page_get_what_it_lacks(here, pwoa):
    """Each as it stands there, with fewer images and seconds."""
    shutil.move(run_folder.newest(), "a run")
    assert pwoa("report", "a run", "--html", "a.html")[0] == 0
    for line in Page(Path("a.html").read_text()).commands:
        words, _, target = line.partition(" > ")
        words = shlex.split(words)[1:]
        words += {"eval": ["--samples", "20", "--attacks", "fgsm,pgd-2"], "bench": [
            "--seconds", "0.01", "--batch", "1", "--runtimes", "eager"],
            "prune": ["--dry-run"]}[words[0]]
        code, out, err = pwoa(*words)
        assert code == 0, err
        if target:
            Path(shlex.split(target)[0]).write_text(out)
    assert pwoa("report", "a run", "--html", "a.html")[0] == 0
    shown = Page(Path("a.html").read_text())
    assert "Left out" not in shown.words and "eager" in shown.words and "Measured again: eval" in shown.words
    assert [line.split()[:2] for line in shown.commands] == [["pwoa", "prune"], ["pwoa", "eval"]]
    code, _, err = pwoa(*shlex.split(shown.commands[1])[1:])
    assert code == 0, err


def test_several_runs_are_compared(here, pwoa):
    for name, sparsity in (("half", "0.5"), ("most", "0.9")):
        assert pwoa(*PRUNE, "--sparsity", sparsity, "--out", name)[0] == 0
    code, out, _ = pwoa("report", "half", "most", "--html", "both.html")
    assert code == 0 and out == pwoa("report", "half", "most")[1]
    shown = Page(Path("both.html").read_text())
    assert len(shown.of("svg")) == 2 and "2 models under attack" in shown.words


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_without_the_extra_only_the_page_is_refused(here, pwoa, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda one, *more: None if one == name else find(one, *more))
    code, out, err = pwoa("report", "--html", "a.html")
    assert code == 2 and not out and not Path("a.html").exists()
    assert err.endswith("hint: pip install 'pwoa-cli[report]'\n") and name in err
    assert pwoa("report")[0] == 0


@pytest.mark.parametrize(("target", "words"), [("page.txt", "is no .html file"),
                                               ("nowhere/page.html", "cannot be written")])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_shown(here, pwoa, target, words):
    code, out, err = pwoa("report", "--html", target)
    assert code == 2 and not out and words in err.replace("\n  ", " ")


def test_a_gate_judges_as_ever_beside_the_page(here, pwoa):
    code, _, err = pwoa("report", "--min", "fgsm=1.0", "--strict", "--html", "a.html")
    assert code == 1 and "gate failed" in err and Path("a.html").exists()
