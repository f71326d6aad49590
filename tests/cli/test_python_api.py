"""The commands as functions: the same figures as the command line's, nothing printed, errors that can be
caught."""
import importlib.util
import json
from pathlib import Path

import pytest
from helpers.cli_world import PRUNE

import pwoa_cli
from pwoa_cli.errors import InputError

SETTINGS = {"data": "tiny.npz", "eps": 0.5, "samples": 20}
QUICK = {"settings": {"epochs": 0.1, "batch_size": 16}, "attacks": "fgsm"}


def test_prune_gives_what_the_command_gives_and_prints_nothing(here, pwoa, capfd):
    assert pwoa(*PRUNE, "--out", "by_command")[0] == 0
    steps, said = [], []
    run = pwoa_cli.prune("model.pt", 0.9, out="by_api", **SETTINGS, **QUICK,
                         progress=lambda *state: steps.append(state), say=said.append)
    assert capfd.readouterr() == ("", "")
    assert run.model.read_bytes() == Path("by_command/model.safetensors").read_bytes()
    report = json.loads(Path("by_command/report.json").read_text())
    assert run.scores["clean"].accuracy == report["student"]["clean"]["accuracy"]
    assert run.teacher["fgsm"].ci95 == tuple(report["teacher"]["fgsm"]["ci95"])
    assert run.worst == run.scores["fgsm"] and not run.short
    assert {"prune", "evaluate"} <= {phase for phase, *_ in steps} and any("data set" in s for s in said)
    again = pwoa_cli.prune(run.folder, 0.95, **SETTINGS, **QUICK)
    assert again.folder.parent.name == "pwoa-runs" and again.report["sparsity"]["target"] == 0.95


def test_evaluate_of_a_file_and_of_a_run(here, pwoa):
    alone = pwoa_cli.evaluate("model.pt", attacks="pgd-2,fgsm", **SETTINGS)
    assert alone.teacher == {} and alone.scores["clean"].accuracy == 1.0 and alone.scores["clean"].n == 20
    assert alone.worst == alone.scores["worst case"]
    run = next(Path("pwoa-runs").glob("model-*"))
    beside = pwoa_cli.evaluate(run, attacks="fgsm", samples=20)
    assert beside.teacher["clean"].accuracy == 1.0 and beside.report["headings"] == ["teacher", "pruned"]
    late = pwoa_cli.evaluate("model.pt", attacks="aa", max_seconds=1e-9, **SETTINGS)
    assert late.short and late.worst is None


def test_evaluate_of_several_gives_each_as_it_is_alone(here):
    run = next(Path("pwoa-runs").glob("model-*"))
    options = {"attacks": "fgsm,pgd-2", "samples": 20}
    both = pwoa_cli.evaluate([run, "pruned.safetensors"], **options)
    alone = pwoa_cli.evaluate(run, **options)
    assert list(both) == ["model-0.9", "pruned.safetensors"]
    of_run = both["model-0.9"]
    assert (of_run.scores, of_run.teacher, of_run.worst) == (alone.scores, alone.teacher, alone.worst)
    assert of_run.report["drop"] == alone.report["drop"] and not of_run.short
    (one,) = pwoa_cli.evaluate([run], **options).values()
    assert one.scores == alone.scores
    late = pwoa_cli.evaluate([run, "model.pt"], max_seconds=1e-9, **options)
    assert all(result.short and result.worst is None for result in late.values())
    with pytest.raises(InputError, match="names no model"):
        pwoa_cli.evaluate([])


def test_wrong_input_is_an_error_of_ours_and_leaves_nothing(here):
    before = sorted(here.rglob("*"))
    for call in (lambda: pwoa_cli.prune("missing.pt", 0.9, out="o"),
                 lambda: pwoa_cli.evaluate("model.pt", attacks="nothing", **SETTINGS),
                 lambda: pwoa_cli.prune("model.pt", 0.9, out="o", settings={"lr": "x"}, **SETTINGS)):
        with pytest.raises(InputError):
            call()
    assert sorted(here.rglob("*")) == before
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pwoa_cli.nothing  # noqa: B018


def test_the_example_runs(here, capfd):
    file = Path(pwoa_cli.__file__).parents[1] / "examples/api.py"
    spec = importlib.util.spec_from_file_location("api_example", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main("model.pt", "tiny.npz", eps=0.5, samples=20, **QUICK)
    out, _ = capfd.readouterr()
    assert "worst case" in out and "parameters are not zero" in out
