"""The workflows that users copy, run by a shell that plays the runner."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.cli_world import BUDGET, TINY

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / ".github/actions/compress/action.yml").read_text())


def filled(text, values):
    return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: values[m[1]], text)


def runner(place, **inputs):
    """Run the action's steps as a runner would: (exit code, stderr, step summary). pip is a stand-in."""
    values = {name: str(field.get("default", "")) for name, field in ACTION["inputs"].items()} | inputs
    tools = place / "tools"
    tools.mkdir(exist_ok=True)
    for name, line in (("pip", "exit 0"), ("pwoa", f'exec {sys.executable} -m pwoa_cli "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    summary = place / "summary.md"
    base = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "CI": "true",
                         "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary),
                         "OMP_NUM_THREADS": "1",
                         "GITHUB_ACTION_PATH": str(ROOT / ".github/actions/compress")}
    code, err = 0, ""
    for step in ACTION["runs"]["steps"]:
        if code and step.get("if") != "always()":
            continue
        if "uses" in step:
            assert step["if"] == "always()"
            kept = filled(step["with"]["path"], values).split()
            assert all((place / name).exists() for name in kept), kept
            continue
        own = {key: filled(text, values) for key, text in step.get("env", {}).items()}
        done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", step["run"]], env=base | own, cwd=place,
                              capture_output=True, text=True)
        code, err = done.returncode, err + done.stderr
    return code, err, summary.read_text() if summary.exists() else ""


OPTIONS = " ".join([*TINY, *BUDGET])


@pytest.mark.parametrize(("gates", "code", "said"), [
    ("--min clean=0.1 --max-drop clean=100", 0, "gate passed: --min clean=0.1: clean is "),
    ("--max-drop clean=-100", 1, "::error title=pwoa --max-drop clean=-100::clean loses "),
    ("--min fgsm=0.0", 0, "gate passed: --min fgsm=0: "),
    ("--min clean=0.9", 0, "samples would decide"),  # of 20 samples
    ("--min clean=0.9 --strict", 1, "gate failed: --min clean=0.9")])
def test_the_action_compresses_judges_and_keeps_what_was_made(here, gates, code, said):
    found, err, summary = runner(here, model="model.pt", gates=gates, options=OPTIONS, folder="run")
    assert found == code and said in err, err
    assert "# model.pt pruned to 90% sparsity" in summary and "| gate |" in summary


def test_an_unfinished_evaluation_fails_its_gate_in_ci(here):
    """The step that a user adds behind the action, under a time limit."""
    runner(here, model="model.pt", options=OPTIONS, folder="run")
    step = "pwoa eval run --attacks aa --max-seconds 1e-9 --n 20 --min aa=0.1 --junit aa.xml"
    env = os.environ | {"PATH": f"{here / 'tools'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                        "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", step], env=env, cwd=here, capture_output=True, text=True)
    assert done.returncode == 1 and "aa is unfinished" in done.stderr and (here / "aa.xml").exists()


def test_the_examples_are_as_long_as_promised_and_call_what_there_is():
    github, gitlab = ((ROOT / "examples/ci" / f"{name}.yml").read_text() for name in ("github", "gitlab"))
    for text in (github, gitlab):
        assert len([line for line in text.splitlines() if line.strip() and line[0] != "#"]) <= 10
    step = yaml.safe_load(github)["jobs"]["compress"]["steps"][-1]
    assert step["uses"].startswith("OWNER/pwoa/.github/actions/compress@")
    assert set(step["with"]) <= set(ACTION["inputs"])
    script = yaml.safe_load(gitlab)["compress"]["script"][-1]
    assert script.startswith("pwoa prune model.pt ") and "--junit pwoa-run.xml" in script
