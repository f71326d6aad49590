"""`pwoa report RUN1 RUN2 ...`: one table of reports that can be compared, gates for each run."""
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from helpers.report_samples import DATA, STUDENT, TEACHER, evaluation, report, score

from pwoa_cli.files.plain import read_json
from pwoa_cli.reports import collection, sections, tables
from pwoa_cli.reports.write import write

MODEL = {"source": "/a/b/lenet.pt", "sha256": "0" * 64, "arch": "lenet5", "num_classes": 10,
         "teacher": "/a/b/lenet.pt", "teacher_sha256": "0" * 64}
WEAK = STUDENT | {"aa": score(0.7, 0.63, 0.76, 200)}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs `a` and `b` of one teacher, `c` under another eps."""
    monkeypatch.chdir(tmp_path)
    for name, fields in (("a", {}), ("b", {"student": WEAK}), ("c", {"eps": 0.1})):
        Path(name).mkdir()
        write(Path(name), report(model=MODEL, **fields))
    return tmp_path


def shown(pwoa, *args, code=0):
    got, out, err = pwoa("report", *args, "--json")
    assert got == code, err
    return json.loads(out), err


def test_runs_that_can_be_compared_stand_in_one_table_beside_their_teacher(runs, pwoa):
    made, _ = shown(pwoa, "a", "b/report.json")
    (table,) = made["tables"]
    assert table["reference"] == "teacher" and list(table["models"]) == ["teacher", "a", "b"]
    assert made["gates"] == [] and made["notes"] == table["notes"]
    for name in "ab":
        alone = read_json(Path(name, "report.json"))
        model = table["models"][name]
        assert model["scores"] == alone["student"] and model["drop"] == alone["drop"]
        assert (model["sparsity"], model["file_bytes"], model["macs"]) == (
            alone["sparsity"]["achieved"], 240_000, 812_345)
    assert table["models"]["teacher"]["scores"] == TEACHER
    code, out, _ = pwoa("report", "a", "b")
    assert code == 0 and "|  | teacher | a | b |" in out and "| drop | a | b |" in out
    assert "- model: b: b/model.safetensors, 90% zeros, 240.0 kB" in out


def test_runs_that_cannot_be_compared_stand_apart_and_what_differs_is_said(runs, pwoa):
    made, _ = shown(pwoa, "a", "b", "c")
    assert [list(table["models"]) for table in made["tables"]] == [["teacher", "a", "b"], ["teacher", "c"]]
    said = "Not compared with one another, as they differ in eps 0.3 (a and b), 0.1 (c)."
    assert made["notes"][0] == said and said in pwoa("report", "a", "b", "c")[1]


@pytest.mark.parametrize(("fields", "words"), [
    ({"norm": "l2"}, "norm linf (a), l2 (d)"), ({"data": DATA | {"name": "cifar10"}}, "data mnist (a)"),
    ({"data": DATA | {"n": 500}}, "n 1000 (a), 500 (d)"), ({"data": DATA | {"seed": 1}}, "seed 0 (a), 1 (d)"),
    ({"data": DATA | {"choices": {"class_order": "text"}}}, "class_order not said (a), text (d)"),
    ({"data": DATA | {"shape": [3, 8, 8]}}, "shape not said (a), 3x8x8 (d)")])
def test_each_condition_that_differs_keeps_figures_apart(runs, pwoa, fields, words):
    Path("d").mkdir()
    write(Path("d"), report(model=MODEL, **fields))
    made, _ = shown(pwoa, "a", "d")
    assert len(made["tables"]) == 2 and words in made["notes"][0]


def test_data_in_two_places_is_taken_as_the_same_and_that_is_said(runs, pwoa):
    Path("d").mkdir()
    write(Path("d"), report(model=MODEL, data=DATA | {"where": "/elsewhere"}))
    made, _ = shown(pwoa, "a", "d")
    assert len(made["tables"]) == 1
    assert made["notes"] == ["The data lies in different places, and is taken as the same: a: examples/data; "
                             "d: /elsewhere."]


def test_runs_of_other_teachers_keep_their_own_drops(runs, pwoa):
    Path("d").mkdir()
    write(Path("d"), report(model=MODEL | {"teacher_sha256": "1" * 64}))
    (table,) = shown(pwoa, "a", "d")[0]["tables"]
    assert table["reference"] is None and list(table["models"]) == ["a", "d"]
    assert table["models"]["d"]["drop"] == report()["drop"]
    assert "drop in points against the teacher of each" in pwoa("report", "a", "d")[1]


def test_a_teacher_that_was_measured_otherwise_is_not_one_column(runs, pwoa):
    Path("d").mkdir()
    write(Path("d"), report(model=MODEL, teacher=TEACHER | {"aa": score(0.81, 0.75, 0.86, 200)}))
    assert shown(pwoa, "a", "d")[0]["tables"][0]["reference"] is None
    write(Path("d"), report(model=MODEL, teacher={"clean": TEACHER["clean"], "cw": TEACHER["aa"]}))
    (table,) = shown(pwoa, "a", "d")[0]["tables"]  # more attacks of the same teacher are all its own
    assert table["models"]["teacher"]["scores"].keys() == {*TEACHER, "cw"}


def test_gates_are_judged_for_each_run_in_every_table(runs, pwoa):
    gates = ["--min", "aa=0.75", "--max-drop", "clean=5"]
    made, err = shown(pwoa, "a", "b", "c", *gates, "--junit", "g.xml", code=1)
    assert [(v["model"], v["passed"]) for v in made["gates"]] == [
        ("a", True), ("a", True), ("b", False), ("b", True), ("c", True), ("c", True)]
    assert "gate failed: b: --min aa=0.75: aa is 0.7" in err and err.count("gate passed") == 5
    assert ET.parse("g.xml").getroot().get("failures") == "1"
    code, out, err = pwoa("report", "a", "b", "--min", "cw=0.5")
    assert code == 2 and not out and "a: --min cw=0.5: cw is not measured" in err


def test_evaluations_and_runs_in_one_table(runs, pwoa):
    Path("e").mkdir()
    write(Path("e"), evaluation(eps=0.3, model="/x/model.pt", attacks=["aa"],
                                models={"model": {"source": "/x/model.pt", "sha256": "2" * 64, "arch": "r"}}))
    (table,) = shown(pwoa, "a", "e")[0]["tables"]
    assert table["reference"] == "teacher" and table["models"]["e"]["drop"] == {}
    assert table["models"]["e"]["source"] == "/x/model.pt" and table["models"]["e"]["sha256"] == "2" * 64
    write(Path("e"), table)  # as `pwoa eval a e --out` would have written
    made, _ = shown(pwoa, "e", "b", "--min", "aa=0")
    assert list(made["tables"][0]["models"]) == ["teacher", "e/a", "e/e", "b"]
    assert [verdict["model"] for verdict in made["gates"]] == ["e/a", "e/e", "b"]
    code, out, err = pwoa("report", "e", "--min", "aa=0")
    assert code == 0 and out.startswith("# 2 models under attack") and err.count("gate passed: ") == 2


def test_what_is_unfinished_unreliable_or_guesses_says_so_here_too(runs, pwoa):
    Path("e").mkdir()
    found = [{"check": "x", "unreliable": True, "text": "masked.", "models": ["compared"]}]
    part = {"compared": {"fab-t": {"n": 0, "of": 1000}}, "model": {"fab-t": {"n": 200, "of": 1000}}}
    write(Path("e"), evaluation(
        eps=0.3, teacher=TEACHER, headings=("compared", "model"), findings=found, unfinished=part,
        models={who: {"source": who, "sha256": sha * 64, "arch": ""}
                for who, sha in (("compared", "0"), ("model", "2"))}))
    made, _ = shown(pwoa, "a", "e", code=3)
    (table,) = made["tables"]
    assert table["unfinished"]["e"] == part["model"] and table["unfinished"]["teacher"] == part["compared"]
    assert tables.headings(table) == ["teacher (unreliable)", "a", "e"]
    assert made["notes"] == ["unreliable: teacher: masked."]
    write(Path("b"), report(model=MODEL | {"teacher_sha256": "3" * 64}))
    (table,) = shown(pwoa, "b", "e", code=3)[0]["tables"]
    assert table["findings"][0] | {"check": ""} == {"check": "", "unreliable": True, "models": ["e"],
                                                    "text": "its teacher: masked."}


def test_a_path_without_a_report_is_one_sentence(runs, pwoa):
    code, out, err = pwoa("report", "a", "nowhere")
    assert code == 2 and not out and "nowhere" in err and "Traceback" not in err
    shutil.copytree("a", "again")
    assert list(shown(pwoa, "a", "a", "again")[0]["tables"][0]["models"]) == ["teacher", "a", "a (2)",
                                                                             "again"]


def test_choices_in_another_order_are_the_same_conditions():
    """As they were typed in one command and inferred in the other."""
    made = [evaluation(data=DATA | {"choices": dict(order)}) for order in (
        [("class_order", "text"), ("logits", "data")], [("logits", "data"), ("class_order", "text")])]
    (table,) = collection.together({name: collection.Entry(Path(name), one)
                                    for name, one in zip("ab", made, strict=True)})
    assert table


def test_worst_cases_over_other_attacks_are_not_compared(tmp_path):
    """The one over more attacks is lower for that alone: no plot, no summary of both, and it is said."""
    sets = {"a": ("pgd-20", "cw"), "b": ("pgd-20", "cw"), "c": ("pgd-20", "aa")}
    for name, attacks in sets.items():
        scores = {"clean": STUDENT["clean"], **dict.fromkeys(attacks, score(0.8, 0.77, 0.82)),
                  "worst case": score(0.7 if name == "c" else 0.75, 0.67, 0.78)}
        (tmp_path / name).mkdir()
        write(tmp_path / name, report(model=MODEL, teacher=scores, student=scores))
    (alike,), (differ,) = (collection.together(collection.read([str(tmp_path / name) for name in names]))
                           for names in ("ab", "abc"))
    words = "The worst case is over pgd-20, cw (a and b); over pgd-20, aa (c)."
    assert words not in tables.caption(alike) and words in tables.caption(differ)
    assert tables.summary(alike).startswith("worst case: ") and tables.summary(differ).startswith("pgd-20: ")
    assert sections.several(differ, name="t")["table"]["head"][-2] == "pgd-20"
    differ["models"]["d"] = differ["models"]["c"] | {"scores": {}, "drop": {}}
    differ["unfinished"]["d"] = {"clean": {"n": 0, "of": 1000}}
    assert tables.summary(differ).endswith(", d unfinished.")
    assert sections.several(alike, name="t")["table"]["head"][-2] == "worst case"
