"""`pwoa eval --curve`: accuracy over eps in the report, its table, its time, wrong radii."""
import json
from pathlib import Path

import pytest
from helpers.cli_world import TINY

from pwoa_cli.evaluation import sample_file

EVAL = ["eval", "model.pt", *TINY, "--attacks", "fgsm,pgd-2"]


def made(pwoa, *args, code=0):
    got, out, err = pwoa(*args, "--json")
    assert got == code, err
    return json.loads(out)


def test_each_point_is_what_eval_says_at_that_eps(here, pwoa):
    curve = made(pwoa, *EVAL, "--curve", "0,0.02,0.1")["curve"]
    assert [point["eps"] for point in curve] == [0, 0.02, 0.1, 0.5]
    for point in curve:
        alone = made(pwoa, *EVAL, "--eps", str(point["eps"] or 0.5))["results"]
        score = alone["worst case" if point["eps"] else "clean"]
        assert point["scores"]["model"] == {key: score[key] for key in ("accuracy", "n", "ci95")}


def test_a_run_and_several_models_have_a_curve_each(here, pwoa):
    attack = ["--n", "20", "--attacks", "fgsm", "--curve", "0.1"]
    curve = made(pwoa, "eval", *attack)["curve"]
    assert all(point["scores"].keys() == {"teacher", "pruned"} for point in curve)
    curve = made(pwoa, "eval", "model.pt", "pruned.safetensors", *TINY, *attack)["curve"]
    assert [list(point["scores"]) for point in curve] == [["model.pt", "pruned.safetensors"]] * 3


def test_the_curve_is_a_table_of_the_report(here, pwoa):
    code, out, _ = pwoa(*EVAL, "--curve", "0.1", "--out", "measured")
    assert code == 0
    assert "## Accuracy over eps\n\n| eps | model |\n|---|---:|\n| 0 | 100.0 [83.9, 100.0] |\n" in out
    assert Path("measured/report.md").read_text() == out
    assert pwoa("report", "measured")[:2] == (0, out)


def test_a_curve_that_time_did_not_suffice_for_is_unfinished_and_goes_on(here, pwoa, monkeypatch):
    from pwoa_cli.workflows import evaluate

    measure, calls = evaluate.measure, []

    def first_only(*args, **options):
        calls.append(options["eps"])
        return measure(*args, **options | ({"seconds": 0.0} if len(calls) > 1 else {}))

    monkeypatch.setattr(evaluate, "measure", first_only)
    late = made(pwoa, *EVAL, "--curve", "0.1", "--max-seconds", "600", code=3)
    assert late["curve"][1] == {"eps": 0.1, "scores": {}} and late["results"]["worst case"]
    assert any("the curve is unfinished at eps 0.1" in note for note in late["notes"])
    monkeypatch.setattr(evaluate, "measure", measure)
    done = made(pwoa, *EVAL, "--curve", "0.1", "--resume")
    assert done["curve"] == made(pwoa, *EVAL, "--curve", "0.1")["curve"]
    assert not Path("pwoa-runs/.eval").exists()


@pytest.mark.parametrize(("more", "words"), [
    (["--curve", "0.1,,0.2"], "hint: One comma between two radii"),
    (["--curve", "300"], "but inputs are in [0,1]"),
    (["--curve", "0.1", "--attacks", "clean"], "no attack is named")])
def test_wrong_radii_are_refused_before_anything_is_attacked(here, pwoa, more, words):
    code, out, err = pwoa(*EVAL, *more)
    assert code == 2 and not out and words in err.replace("\n  ", " ")


def test_words_that_are_no_radii_are_refused_before_the_model_is_read(here, pwoa):
    code, _, err = pwoa("eval", "absent.pt", "--curve", "0.1,abc")
    assert code == 2 and "eps 'abc' is not a number" in err and "absent" not in err


def test_a_dry_run_counts_every_point(here, pwoa):
    one, three = (made(pwoa, *EVAL, *more, "--dry-run") for more in ([], ["--curve", "0.1,0.2"]))
    assert three["seconds_by_attack"].keys() == one["seconds_by_attack"].keys()
    assert three["seconds"] > one["seconds"]


def test_samples_with_inputs_may_lie_in_the_folder_of_the_report(here, pwoa):
    code, _, err = pwoa(*EVAL, "--out", "measured", "--save-samples", "measured/samples.npz")
    assert code == 0, err
    assert "model/inputs" in sample_file.read(Path("measured/samples.npz"))
    code, _, err = pwoa(*EVAL, "--out", "other", "--save-samples", "nowhere/samples.npz")
    assert code == 2 and "cannot be written" in err and not Path("other").exists()
