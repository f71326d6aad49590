"""Gates on the command line: exit codes, sentences, files; `pwoa report` judges what others measured."""
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from helpers.cli_world import PRUNE, TINY

from pwoa_cli.files import run_folder


def test_eval_passes_and_fails_its_gates(here, pwoa):
    args = ["eval", "model.pt", *TINY, "--attacks", "pgd-2", "--json"]
    code, out, err = pwoa(*args, "--min", "clean=0.5", "--min", "pgd-2=0.0")
    assert code == 0 and err.count("gate passed: ") == 2
    assert [gate["passed"] for gate in json.loads(out)["gates"]] == [True, True]
    code, out, err = pwoa(*args, "--min", "pgd-2=1.0", "--min", "clean=0.5", "--junit", "g.xml", "--out", "m",
                          "--quiet")
    assert code == 1 and "gate failed: --min pgd-2=1: pgd-2 is " in err and "gate passed" not in err
    assert json.loads(Path("m/report.json").read_text())["gates"] == json.loads(out)["gates"]
    assert ET.parse("g.xml").getroot().get("failures") == "1"


def test_twenty_samples_pass_and_say_how_many_would_decide_and_strict_fails(here, pwoa):
    args = ["eval", "model.pt", *TINY, "--attacks", "fgsm", "--min", "clean=0.95"]
    code, _, err = pwoa(*args)
    assert code == 0 and "the interval reaches beyond it; about " in err
    code, _, err = pwoa(*args, "--strict")
    assert code == 1 and "gate failed" in err


def test_prune_and_report_judge_the_same_figures(here, pwoa):
    gates = ["--max-drop", "clean=-100", "--min", "worst=0"]
    code, out, err = pwoa(*PRUNE, *gates, "--out", "o", "--json")
    made = json.loads(out)
    assert code == 1 and json.loads(Path("o/report.json").read_text())["gates"] == made["gates"]
    assert [gate["passed"] for gate in made["gates"]] == [True, False]
    code, out, _ = pwoa("report", "o", *gates, "--json")
    assert made.pop("run") == {"folder": "o", "model": "o/model.safetensors"}
    assert code == 1 and json.loads(out) == made
    code, out, _ = pwoa("report", "o/report.json", "--min", "fgsm=0")
    assert code == 0 and out.startswith("# model.pt pruned to 90% sparsity")
    code, out, _ = pwoa("report")
    assert code == 0 and out.startswith("# model.pt pruned to 90%")


@pytest.mark.parametrize(("args", "said"), [
    (["--min", "pgd=45"], "Did you mean 0.45?"), (["--min", "cw=0.4"], "cw is not measured; there are clean"),
    (["--max-drop", "fgsm=1"], "no other model to lose against"), (["--junit", "x.txt"], "no .xml file")])
def test_gates_that_cannot_be_are_refused_before_any_work(here, pwoa, args, said):
    code, out, err = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", *args)
    assert code == 2 and not out and said in err and "evaluate 0%" not in err


def test_an_unfinished_figure_fails_its_gate(here, pwoa):
    args = ["eval", "model.pt", *TINY, "--attacks", "aa", "--max-seconds", "1e-9"]
    code, _, err = pwoa(*args, "--min", "aa=0")
    assert code == 1 and "gate failed: --min aa=0: aa is unfinished: aa 0 of 20 samples." in err
    assert pwoa(*args)[0] == 3


def test_report_of_what_is_none(here, pwoa):
    Path("x.json").write_text("{}")
    assert pwoa("report", "x.json")[0] == 2
    assert "cannot be read" in pwoa("report", "nowhere")[2]
    evaluated = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--out", "e")
    assert evaluated[0] == 0 and pwoa("report", "e", "--min", "fgsm=0")[0] == 0
    assert pwoa("report", str(run_folder.newest()))[0] == 0
