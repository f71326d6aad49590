"""Several models in one report: short names, each by itself, a table that holds at 60 columns."""
import io

import pytest
from helpers.report_samples import DATA, ENVIRONMENT, STUDENT, TEACHER, drops, evaluation
from rich.console import Console

from pwoa_cli.reports import gates, schema, several, tables, terminal


@pytest.mark.parametrize(("paths", "names"), [
    (["a.pt", "runs/b"], ["a.pt", "b"]),
    (["runs/net-0.9-20261128-080329", "runs/net-0.5-20261128-080318-2/"], ["net-0.9", "net-0.5"]),
    (["runs/net-0.9-20261128-080329", "runs/net-0.9-20261128-090000"],
     ["net-0.9-20261128-080329", "net-0.9-20261128-090000"]),
    (["runs/one/model.safetensors", "two/model.safetensors"], ["one", "two"]),
    (["x/one/m.pt", "x/two/m.pt", "m.safetensors"], ["one/m.pt", "two/m.pt", "m.safetensors"]),
    (["m.pt", "./m.pt", "../{here}/m.pt"], ["m.pt", "m.pt (2)", "m.pt (3)"]),
    (["m.pt", "m.pt (2)", "m.pt"], ["m.pt", "m.pt (2)", "m.pt (3)"]),
    (["timm:resnet18", "hf-hub:timm/resnet18"], ["timm:resnet18", "hf-hub:timm/resnet18"]),
    (["x/teacher", "teacher.pt"], ["x/teacher", "teacher.pt"])])
def test_names_are_short_and_none_is_there_twice(tmp_path, monkeypatch, paths, names):
    monkeypatch.chdir(tmp_path)
    found = several.headings([path.format(here=tmp_path.name) for path in paths], taken=("teacher",))
    assert found == names


def table(reference="teacher", **changes):
    """Two models, and what they are compared with."""
    drop = drops(TEACHER, STUDENT)
    models = {name: {"source": f"/a/{name}", "sha256": "0" * 64, "arch": "lenet5", "scores": STUDENT,
                     "drop": drop if reference else {}}
              for name in ("resnet18-a-rather-long-name", "drop")}
    if reference:
        models = {reference: models["drop"] | {"scores": TEACHER, "drop": {}}} | models
    fields = {"models": models, "reference": reference, "norm": "linf", "eps": 0.3, "seconds": {"aa": 3.0},
              "environment": ENVIRONMENT, "data": DATA}
    return schema.build_several(**fields | changes)


def rendered(shown):
    stream = io.StringIO()
    Console(file=stream, width=60, force_terminal=False).print(terminal.one(shown))
    return stream.getvalue()


def test_a_view_is_the_evaluation_of_one_model_beside_the_reference():
    shown = several.view(table(), "drop")
    alone = evaluation(teacher=TEACHER, headings=("teacher", "drop"), eps=0.3)
    for name in ("teacher", "student", "drop", "headings", "threat", "data"):
        assert shown[name] == alone[name]
    assert tables.rows(shown) == tables.rows(alone)
    assert several.view(table(None), "drop")["results"] == STUDENT
    assert several.view(table(), "teacher")["results"] == TEACHER
    assert several.compared(table()) == ["resnet18-a-rather-long-name", "drop"]


def test_a_finding_is_of_its_model_only():
    found = [{"check": "x", "unreliable": True, "text": "why", "models": ["drop"]}]
    for reference in ("teacher", None):
        made = table(reference, findings=found)
        verdicts = gates.judged(made, gates.parse("min", ["aa=0"]))
        assert {v["model"]: v["passed"] for v in verdicts} == {"resnet18-a-rather-long-name": True,
                                                               "drop": False}
        assert tables.headings(made)[-2:] == ["resnet18-a-rather-long-name", "drop (unreliable)"]


def test_what_is_unfinished_is_of_its_model_only():
    left = {"teacher": {}, "resnet18-a-rather-long-name": {"fab-t": {"n": 200, "of": 1000}}, "drop": {}}
    made = table(unfinished=left, attacks=["aa", "fab-t"])
    passed = [v["passed"] for v in gates.judged(made, gates.parse("min", ["worst=0"]))]
    assert passed == [False, False] and tables.falls_short(made)  # no worst case anywhere
    assert [row[2] for row in tables.rows(made)][-1] == "unfinished, 200 of 1000"
    assert not tables.unfinished(several.view(made, "drop"))
    assert "unfinished, 200" in rendered(made)


def test_a_table_of_several_holds_at_60_columns_whatever_the_names():
    out = rendered(table())
    assert max(map(len, out.splitlines())) <= 60
    words = " ".join(out.split())
    assert words.startswith("2 models under attack aa: teacher 83.0%, resnet18-a-rather-long-name 82.0%")
    assert "drop 98.7 [97.8, 99.2] -0.1 [" in words and "drop in points against teacher." in words
    evil = "a|b\n\x1b[31m[x]" * 9
    models = table()["models"]
    out = rendered(table(models={"teacher": models["teacher"], evil: models["drop"]}))
    assert max(map(len, out.splitlines())) <= 60 and "\x1b" not in out


def test_markdown_of_several_has_a_column_a_model_and_the_drops_below():
    lines = tables.markdown(table()).splitlines()
    assert "|  | teacher | resnet18-a-rather-long-name | drop |" in lines
    assert "| pgd-10 | 93.6 [91.9, 95.0] | 93.2 [91.5, 94.6] | 93.2 [91.5, 94.6] |" in lines
    assert "| drop | resnet18-a-rather-long-name | drop |" in lines
    assert any(line.startswith("| pgd-10 | 0.4 [") for line in lines)
    assert "| drop | resnet18" not in tables.markdown(table(None))


def test_a_wrong_field_of_several_is_named(tmp_path):
    models = table()["models"]
    with pytest.raises(schema.InputError, match="models.x.scores is missing"):
        table(models=models | {"x": {"source": "", "sha256": "", "arch": "", "drop": {}}})
