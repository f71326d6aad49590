"""`pwoa eval --curve`: accuracy over eps in the report, its table, its time, wrong radii."""
import json
import struct
from pathlib import Path

import pytest
from helpers.cli_world import TINY
from helpers.odd_networks import NO_GRADIENT

from pwoa_cli.evaluation import sample_file, security_curve
from pwoa_cli.reports import collection, curve, sections, several
from pwoa_cli.workflows import attack_time

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


def test_a_dry_run_counts_every_point(here, pwoa, monkeypatch):
    monkeypatch.setattr(attack_time, "_of_model", lambda *_: {"clean": 1.0, "fgsm": 2.0})
    one, three = (made(pwoa, *EVAL, *more, "--dry-run") for more in ([], ["--curve", "0.1,0.2"]))
    assert one["seconds_by_attack"] == {"clean": 1.0, "fgsm": 2.0} and one["seconds"] == 3.0
    assert three["seconds_by_attack"] == {"clean": 3.0, "fgsm": 6.0} and three["seconds"] == 9.0


def test_samples_with_inputs_may_lie_in_the_folder_of_the_report(here, pwoa):
    code, _, err = pwoa(*EVAL, "--out", "measured", "--save-samples", "measured/samples.npz")
    assert code == 0, err
    assert "model/inputs" in sample_file.read(Path("measured/samples.npz"))
    code, _, err = pwoa(*EVAL, "--out", "other", "--save-samples", "nowhere/samples.npz")
    assert code == 2 and "cannot be written" in err and not Path("other").exists()


def test_curves_of_separate_evaluations_stand_in_one_table_and_one_plot(here, pwoa):
    """Oracle: the evaluation of both at once."""
    attack = [*TINY, "--attacks", "fgsm", "--curve"]
    for model, out, radii in (("model.pt", "one", "0.1,0.2"), ("pruned.safetensors", "two", "0.2,0.3")):
        assert pwoa("eval", model, *attack, radii, "--out", out)[0] == 0
    both = made(pwoa, "eval", "model.pt", "pruned.safetensors", *attack, "0.2")["curve"]
    code, out, err = pwoa("report", "one", "two", "--json")
    assert code == 0, err
    (table,) = json.loads(out)["tables"]
    names = {"model.pt": "one", "pruned.safetensors": "two"}
    named = [{names[who]: score for who, score in point["scores"].items()} for point in both]
    assert [point["scores"] for point in table["curve"]] == named
    assert [point["eps"] for point in table["curve"]] == [0.0, 0.2, 0.5]
    assert "Left out of the curves, as not all have them: eps 0.1, 0.3." in table["notes"]
    assert "| eps | one | two |" in pwoa("report", "one", "two")[1]
    assert pwoa("report", "one", "two", "--html", "page.html")[0] == 0
    assert "Accuracy over eps" in Path("page.html").read_text()
    assert pwoa("eval", "pruned.safetensors", *TINY, "--attacks", "pgd-2", "--curve", "0.2", "--out",
                "three")[0] == 0
    code, out, _ = pwoa("report", "one", "three", "--json")
    (table,) = json.loads(out)["tables"]
    assert code == 0 and "curve" not in table
    assert any("where those differ: one: fgsm; three: pgd-2." in note for note in table["notes"])


def test_the_curve_of_the_teacher_that_two_share_stands_first(here, pwoa):
    attack = ["--n", "20", "--attacks", "fgsm", "--curve", "0.1"]
    run = next(Path("pwoa-runs").glob("model-*"))
    for out in ("one", "two"):
        assert pwoa("eval", str(run), *attack, "--out", out)[0] == 0
    (table,) = json.loads(pwoa("report", "one", "two", "--json")[1])["tables"]
    single = json.loads(Path("one/report.json").read_text())["curve"]
    for point, alone in zip(table["curve"], single, strict=True):
        assert list(point["scores"]) == ["teacher", "one", "two"]
        assert point["scores"]["one"] == point["scores"]["two"] == alone["scores"]["pruned"]
        assert point["scores"]["teacher"] == alone["scores"]["teacher"]


def test_models_of_an_evaluation_of_several_keep_their_own_curve(here, pwoa):
    assert pwoa("eval", "model.pt", "pruned.safetensors", *TINY, "--attacks", "fgsm", "--curve", "0.1",
                "--out", "both")[0] == 0
    whole = json.loads(Path("both/report.json").read_text())["curve"]
    assert pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--curve", "0.1", "--out", "one")[0] == 0
    (table,) = json.loads(pwoa("report", "both", "one", "--json")[1])["tables"]
    for point, of_both in zip(table["curve"], whole, strict=True):
        assert [*point["scores"]] == ["both/model.pt", "both/pruned.safetensors", "one"]
        assert point["scores"]["both/pruned.safetensors"] == of_both["scores"]["pruned.safetensors"]
        assert point["scores"]["both/model.pt"] == point["scores"]["one"] == of_both["scores"]["model.pt"]


def test_what_doubts_a_point_goes_with_its_model():
    doubt = {"check": "curve-rises", "unreliable": True, "text": "it rises"}
    points = [{"eps": 0.0, "scores": {"model": {}}},
              {"eps": 0.1, "scores": {"model": {}}, "findings": [doubt | {"models": []}]}]
    pair = [{"eps": 0.0, "scores": {"teacher": {}, "pruned": {}}},
            {"eps": 0.1, "scores": {"pruned": {}}, "findings": [doubt | {"models": ["teacher"]}]}]
    reports = {"a": {"curve": points}, "b": {"curve": pair}}
    assert collection._curve(reports, None)[0][1] == {
        "eps": 0.1, "scores": {"a": {}, "b": {}}, "findings": [doubt | {"models": ["a"]}]}
    found, said = collection._curve(reports, "T")
    assert not said
    assert list(found[0]["scores"]) == ["T", "a", "b"] and found[1]["findings"] == [
        doubt | {"models": ["a"]}, doubt | {"models": ["T"]}]
    assert collection._curve({"a": {"attacks": ["fgsm"]}}, None) == ([], [])


def test_a_radius_in_float32_is_the_same_radius_and_a_teacher_measured_twice_is_one_column():
    near = struct.unpack("f", struct.pack("f", 8 / 255))[0]

    def curve(eps, teacher):
        return {"curve": [{"eps": 0.0, "scores": {"teacher": score(1.0), "pruned": score(1.0)}},
                          {"eps": eps, "scores": {"teacher": score(teacher), "pruned": score(0.5)}}]}

    def score(accuracy):
        return {"accuracy": accuracy, "n": 20, "ci95": [0.0, 1.0]}

    found, said = collection._curve({"a": curve(8 / 255, 0.6), "b": curve(near, 0.6)}, "T")
    assert not said
    assert [point["eps"] for point in found] == [0.0, 8 / 255] and list(found[1]["scores"]) == ["T", "a", "b"]
    found, said = collection._curve({"a": curve(0.1, 0.6), "b": curve(0.1, 0.7)}, "T")
    assert said == ["The curves of T differ, and are left out."]
    assert all(list(point["scores"]) == ["a", "b"] for point in found), "two figures are no one column"
    doubt = {"check": "curve-rises", "unreliable": True, "text": "it rises", "models": ["teacher"]}
    both = {name: curve(0.1, 0.6) for name in "ab"}
    for report in both.values():
        report["curve"][1]["findings"] = [doubt]
    assert collection._curve(both, "T")[0][1]["findings"] == [doubt | {"models": ["T"]}], "once"
    for eps in (k / 255 for k in range(1, 33)):
        threats = [{"threat": {"norm": "linf", "eps": one}, "data": {"name": "x", "n": 1}}
                   for one in (eps, struct.unpack("f", struct.pack("f", eps))[0])]
        assert collection.conditions(threats[0]) == collection.conditions(threats[1])


def test_why_a_point_is_unreliable_stands_in_the_text(here, pwoa):
    doubt = {"check": "curve-rises", "unreliable": True, "text": "it rises", "models": []}
    for out in ("one", "two"):
        assert pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--curve", "0.1", "--out", out)[0] == 0
    report = json.loads(Path("one/report.json").read_text())
    report["curve"][1]["findings"] = [doubt]
    Path("one/report.json").write_text(json.dumps(report))
    out = pwoa("report", "one", "two")[1]
    assert " unreliable |" in out and "unreliable: the curve at eps 0.1: one: it rises" in out


def test_the_point_of_the_threat_is_as_unreliable_as_the_figures_of_the_report(here, pwoa):
    """Its findings are the report's, which stand once."""
    doubt = {"check": "curve-rises", "unreliable": True, "text": "masked", "models": []}
    args = ("--attacks", "fgsm", "--curve", "0.05", "--out", "one")
    assert pwoa("eval", "model.pt", *TINY, *args)[0] == 0
    report = json.loads(Path("one/report.json").read_text())
    for findings, unreliable in ([doubt], True), ([doubt | {"unreliable": False}], False), ([], False):
        rows = curve.table(report | {"findings": findings})[1]
        assert [cell.endswith(" unreliable") for *_, cell in rows] == [False, False, unreliable]
        hollow = sections._points(report | {"findings": findings})[0]["model"]
        assert [doubted for *_, doubted in hollow] == [False, False, unreliable]


def test_a_model_of_several_is_not_doubted_for_another():
    doubt = {"check": "c", "unreliable": True, "text": "t", "models": ["b"]}
    point = {"eps": 0.1, "scores": {"a": 1, "b": 2}, "findings": [doubt]}
    assert several._of(point, ["a"]) == {"eps": 0.1, "scores": {"a": 1}}
    assert several._of(point, ["b"]) == {"eps": 0.1, "scores": {"b": 2}, "findings": [doubt]}


@pytest.mark.parametrize("zero", ["0", "0.0", "0/255", "00"])
def test_a_zero_is_clean_however_it_is_written(zero):
    assert security_curve.radii(f"{zero},2/255", norm="linf", threat=0.1) == (2 / 255, 0.1)


@pytest.mark.parametrize("more", [(), ("--max-seconds", "500"), ("--compare", "pruned.safetensors")], ids=str)
def test_a_curve_of_a_model_without_gradient(here, pwoa, more):
    """"pwoa itself broke: TypeError", or "stopped after 500 s" where no time had run out."""
    Path("net.py").write_text(NO_GRADIENT)
    words = ["eval", "model.pt", "--arch", "net.py:blind", *TINY, "--attacks", "pgd-2"]
    code, out, err = pwoa(*words, *more)
    again, shown, said = pwoa(*words, *more, "--curve", "0.1")
    assert again == code == 3 and "Traceback" not in said and "unfinished" not in shown + said, said
    assert "| 0.1 |" not in shown
    assert "itself broke" not in said and "--resume" not in said


@pytest.mark.parametrize("attacks", ["pgd-2", "pgd-2,square", "aa"])
def test_a_dry_run_of_a_model_without_gradient(here, pwoa, attacks):
    Path("net.py").write_text(NO_GRADIENT)
    code, out, err = pwoa("eval", "model.pt", "--arch", "net.py:blind", *TINY, "--attacks", attacks,
                          "--dry-run")
    assert code == 0, err
