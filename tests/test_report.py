"""The report: its schema, its numbers, and how it shows at 60 columns and in Markdown."""
import copy
import io
import json
import math
import re
import subprocess
import sys
from datetime import datetime

import pytest
from rich.console import Console

from pwoa_cli import report, run, show
from pwoa_cli.errors import InputError

ENVIRONMENT = {"python": "3.11.7", "torch": "2.15.0+cu132", "pwoa": "0.1.0", "platform": "Linux", "cpu_count": 2, "device": "cpu",
               "threads": 2, "seed": 0}
DATA = {"name": "mnist", "where": "examples/data", "n": 1000, "seed": 0}


def _score(accuracy: float, low: float, high: float, n: int = 1000) -> dict:
    return {"accuracy": accuracy, "n": n, "ci95": [low, high]}


TEACHER = {"clean": _score(0.986, 0.9767, 0.9916), "pgd-10": _score(0.936, 0.919, 0.9496),
           "aa": _score(0.83, 0.7718, 0.8757, 200)}
STUDENT = {"clean": _score(0.987, 0.9779, 0.9924), "pgd-10": _score(0.932, 0.9147, 0.946), "aa": _score(0.82, 0.761, 0.867, 200)}


def _report(**changes) -> dict:
    fields = {
        "created": datetime(2026, 3, 4, 5, 6, 7), "norm": "linf", "eps": 0.3, "target": 0.9, "structure": "unstructured",
        "model": {"source": "/a/b/lenet.pt", "sha256": "0" * 64, "arch": "lenet5", "num_classes": 10},
        "layers": [{"name": "conv1.weight", "shape": (32, 1, 3, 3), "nonzero": 88, "total": 288},
                   {"name": "linear1.weight", "shape": (200, 3136), "nonzero": 62661, "total": 627200}],
        "size": {"dense_bytes": 2_600_000, "file_bytes": 240_000, "limit_bytes": 238_000},
        "macs": {"dense": 5_200_000, "nonzero": 812_345},
        "teacher": TEACHER, "student": STUDENT, "seconds": {"load": 0.84, "sparsify": 43.2, "evaluate": 101.0},
        "environment": ENVIRONMENT, "recipe": {"name": "default", "epochs": 4.0}, "data": DATA, "notes": ["a note on [x]"]}
    return report.build(**fields | changes)


def _evaluation(**changes) -> dict:
    fields = {"norm": "linf", "eps": 8 / 255, "results": STUDENT, "seconds": {"aa": 12.0}, "environment": ENVIRONMENT,
              "data": DATA, "model": "lenet.pt"}
    return report.build_eval(**fields | changes)


def _rendered(shown: dict, width: int = 60) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(show.table(shown))
    return stream.getvalue()


def test_build_sums_the_layers_and_survives_json():
    built = _report()
    assert built["sparsity"]["nonzero"] == 62749 and built["sparsity"]["total"] == 627488
    assert built["sparsity"]["achieved"] == 1 - 62749 / 627488
    assert built["schema_version"] == 1 and built["drop"].keys() == TEACHER.keys()
    assert report.validate(json.loads(run.dumps(built))) == built
    assert datetime.fromisoformat(built["created"]).tzinfo is not None


def _paths(value: dict, prefix: tuple = ()) -> list[tuple]:
    inner = [path for key, item in value.items() if isinstance(item, dict) for path in _paths(item, (*prefix, key))]
    return [(*prefix, key) for key in value] + inner


def _fields_of(schema: dict) -> dict:
    return {key: _fields_of(item) if isinstance(item, dict) and "*" not in item else 0 for key, item in schema.items()}


@pytest.mark.parametrize("path", _paths(_fields_of(report.SCHEMA)), ids=".".join)
def test_every_missing_field_is_named(path):
    broken = copy.deepcopy(_report())
    holder = broken
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    with pytest.raises(InputError, match=re.escape(f"{'.'.join(path)} is missing")):
        report.validate(broken)


@pytest.mark.parametrize(("path", "value", "message"), [
    (("student", "aa", "accuracy"), 82.0, "student.aa.accuracy is 82.0, expected 0 to 1"),
    (("student", "aa", "accuracy"), None, "student.aa.accuracy is None, expected number"),
    (("student", "aa", "n"), True, "student.aa.n is True, expected int"),
    (("student", "aa", "ci95"), [0.5], "student.aa.ci95 has 1 numbers, expected 2"),
    (("sparsity", "layers", 0, "shape"), "3x3", "sparsity.layers[0].shape is '3x3', expected list"),
    (("threat", "eps"), None, "threat.eps is None, expected number"),
    (("notes",), [1], "notes[0] is 1, expected str"),
    (("schema_version",), 2, "schema_version 2, this pwoa reads 1"),
])
def test_every_wrong_field_is_named(path, value, message):
    broken = copy.deepcopy(_report())
    holder = broken
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(InputError, match=re.escape(f"here.json: {message}")):
        report.validate(broken, where="here.json")


def test_build_refuses_a_nan_instead_of_writing_null():
    with pytest.raises(InputError, match="student.clean.accuracy is None"):
        _report(student={"clean": _score(math.nan, 0, 1)})


def test_drop_interval_is_newcombes():
    # Newcombe (1998), table II, column (a) 56/70 - 48/80, method 10: 0.2000 [0.0524, 0.3339]; Wilson intervals of both
    drop = report.drops({"x": _score(56 / 70, 0.69183, 0.87695, 70)}, {"x": _score(48 / 80, 0.49045, 0.70038, 80)})["x"]
    assert drop["points"] == pytest.approx(20.0)
    assert drop["ci95"] == pytest.approx([5.24, 33.39], abs=0.005)


def test_given_drop_wins():
    assert _report(drop={"clean": report.in_points(-0.001, (-0.01, 0.008))})["drop"] == {
        "clean": {"points": -0.1, "ci95": [-1.0, 0.8]}}


def test_rows():
    assert show.rows(_report())[1] == ("pgd-10", "93.6 [91.9, 95.0]", "93.2 [91.5, 94.6]", "0.4 [-1.8, 2.6]")
    assert show.rows(_evaluation())[0] == ("clean", "98.7 [97.8, 99.2]")


def test_rows_of_attacks_that_one_side_lacks_and_of_a_tiny_drop():
    teacher, student = {"clean": _score(0.9801, 0.97, 0.99), "cw": TEACHER["aa"]}, {"clean": _score(0.9803, 0.97, 0.99)}
    assert show.rows(_report(teacher=teacher, student=student)) == [
        ("clean", "98.0 [97.0, 99.0]", "98.0 [97.0, 99.0]", "0.0 [-1.4, 1.4]"), ("cw", "83.0 [77.2, 87.6]", "-", "-")]


def test_markdown_document():
    text = show.markdown(_report())
    assert text.startswith("# lenet.pt pruned to 90% sparsity\n\n"
                           "clean 98.6 -> 98.7%, aa 83.0 -> 82.0% (lowest), file 10.8 times smaller.\n")
    for line in ("|  | teacher | pruned | drop |", "| pgd-10 | 93.6 [91.9, 95.0] | 93.2 [91.5, 94.6] | 0.4 [-1.8, 2.6] |",
                 "- sparsity: 90% wanted, 90% reached (unstructured, recipe default)",
                 "- weights: 62,749 of 627,488 nonzero, in 2 layers",
                 "- file: 240.0 kB: 10.8 times smaller than dense (2.6 MB), 1.01 times the entropy limit (238.0 kB)",
                 "- MACs: 5.2 M dense -> 812.3 k with nonzero weights (saves time only with sparse kernels)",
                 "- time: load 0.8s, sparsify 43s, evaluate 1m 41s; together 2m 25s", "- note: a note on [x]",
                 "| linear1.weight | 200x3136 | 62,661 | 627,200 | 90.01 |"):
        assert line in text.splitlines()
    assert "n = 1000 (aa: 200) test samples of mnist; attacks within linf eps 0.3." in text


def test_markdown_tables_have_equal_columns_whatever_the_names():
    evil = "a|b\n\x1b[31m`x`"
    text = show.markdown(_report(teacher={evil: TEACHER["aa"]}, student={evil: TEACHER["aa"]},
                                   layers=[{"name": evil, "shape": (1,), "nonzero": 1, "total": 2}]))
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert bars == [5, 5, 5, 6, 6, 6] and "\x1b" not in text


def test_evaluation_shows_in_the_same_style():
    one = show.markdown(_evaluation())
    assert one.startswith("# lenet.pt under attack\n\nclean 98.7%, aa 82.0% (lowest).\n")
    assert "| aa | 82.0 [76.1, 86.7] |" in one and "eps 8/255" in one and "drop" not in one and "Layers" not in one
    two = show.markdown(_evaluation(teacher=TEACHER))
    assert "| aa | 83.0 [77.2, 87.6] | 82.0 [76.1, 86.7] | 1.0 [-" in two
    assert _evaluation().keys() >= {"results"} and _evaluation(teacher=TEACHER).keys() >= {"teacher", "student", "drop"}


def test_headline_of_a_run_names_its_folder():
    assert show.headline({"model": {"source": "pwoa-runs/lenet-0.9/model.safetensors"}}) == "lenet-0.9 under attack"
    assert show.headline({"model": {"source": "model.safetensors"}}) == "model.safetensors under attack"


def test_evaluation_of_clean_accuracy_alone():
    shown = _evaluation(norm=None, eps=None, results={"clean": STUDENT["clean"]})
    assert "attacks within" not in show.markdown(shown) and "clean 98.7%." in show.markdown(shown)


def _long() -> dict:
    names = ("clean", "a-plug-in-attack-with-a-long-name-[x]", "pgd-40-r5")
    low = _score(0.0, 0.0, 1.0)
    return _report(model={"source": "x" * 90 + ".pt", "sha256": "0", "arch": "a", "num_classes": 10},
                   teacher=dict.fromkeys(names, _score(1.0, 0.9999, 1.0)), student=dict.fromkeys(names, low),
                   drop=dict.fromkeys(names, {"points": -100.0, "ci95": [-100.0, -100.0]}),
                   seconds={f"phase{i}": 1e5 for i in range(9)},
                   size=dict.fromkeys(("dense_bytes", "file_bytes", "limit_bytes"), 10**12))


@pytest.mark.parametrize("shown", [_report(), _long(), _evaluation(), _evaluation(teacher=TEACHER)],
                         ids=["report", "long", "one", "two"])
def test_terminal_table_holds_at_60_columns_with_every_number(shown):
    text = _rendered(shown)
    assert max(map(len, text.splitlines())) <= 60 and "…" not in text
    words = text.split()
    for _, *cells in show.rows(shown):
        assert all(word in words for cell in cells for word in cell.split())
    flat = "".join(words)
    assert all("".join(sentence.split()) in flat for _, sentence in show.facts(shown))


def test_terminal_table_reads_no_markup_and_no_escape():
    source = {"source": "[bold]x[/bold][/nope]\x1b[2J.pt", "sha256": "0", "arch": "a", "num_classes": 10}
    text = _rendered(_report(model=source | {"source": source["source"].replace("/", "")}))
    assert "[bold]x[bold][nope]\\x1b[2J.pt" in text and "\x1b" not in text and "a note on [x]" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0.0s"), (3.21, "3.2s"), (9.96, "10s"), (59.6, "1m 00s"), (104, "1m 44s"),
                                               (725, "12m"), (7500, "2h 05m"), (math.inf, "?"), (math.nan, "?")])
def test_duration(seconds, text):
    assert show.duration(seconds) == text


@pytest.mark.parametrize(("eps", "text"), [(0.3, "0.3"), (8 / 255, "8/255"), (0.031, "0.031"), (0.2, "0.2"), (1 / 255, "1/255"),
                                           (0.5, "0.5"), (0.0131, "0.0131"), (1, "1"), (0.123456789, "0.1235")])
def test_radius(eps, text):
    assert show.radius(eps) == text


@pytest.mark.parametrize(("sparsity", "text"), [(0, "0"), (0.9, "90"), (0.9975, "99.75"), (1 / 3, "33.33"),
                                                (0.999996, "99.9996"), (1, "100")])
def test_percent_of_weights(sparsity, text):
    assert show.percent_of_weights(sparsity) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"),
                                             (999_951, "1.0 MB"),
                                             (2_293_000, "2.3 MB"), (3.2e13, "32.0 TB"), (3.2e17, "320000.0 TB")])
def test_size(count, text):
    assert show.size(count) == text


@pytest.mark.parametrize(("a", "b", "text"), [(2.6e6, 2.4e5, "10.8"), (101, 100, "1.01"), (1200, 10, "120"), (1, 0, "-")])
def test_ratio(a, b, text):
    assert show.ratio(a, b) == text


def test_environment_has_what_the_schema_asks():
    found = report.environment(device="cpu", seed=3)
    assert not list(report._problems(found, report.SCHEMA["environment"], "")) and found["seed"] == 3
    assert found.keys() >= {"timm", "torchvision", "device_name"} and found["cpu_count"] >= 1


def test_no_torch_and_no_rich_until_they_are_needed():
    code = ("import sys, pwoa_cli.console, pwoa_cli.report, pwoa_cli.run\n"
            "print({'torch', 'rich', 'numpy', 'tomli_w'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


@pytest.mark.parametrize("lost,won,ci95,says", [
    (9, 1, [0.1, 1.6], "9 samples lost, 1 won, McNemar p = 0.021: a loss"),
    (1, 9, [-1.6, -0.1], "1 sample lost, 9 won, McNemar p = 0.021: a gain under these attacks"),
    (4, 4, [-1.2, 1.2], "4 samples lost, 4 won, McNemar p = 0.021: no loss was found; one above 1.2 points is unlikely (95%)")])
def test_what_a_paired_difference_means(lost, won, ci95, says):
    drop = {"clean": {"points": 0.0, "ci95": [-1.0, 1.0]}, "worst case": {"points": 1.0, "ci95": ci95, "lost": lost, "won": won, "p": 0.021}}
    shown = show.markdown(_evaluation(teacher=TEACHER | {"worst case": TEACHER["aa"]}, results=STUDENT | {"worst case": STUDENT["aa"]}, drop=drop))
    assert f"- paired: worst case: {says}" in shown and "worst case 83.0 -> 82.0%." in shown


def test_headings_passes_and_classes_show():
    scores = {name: score | ({"forwards": 4200, "backwards": 1100} if name == "aa" else {}) for name, score in STUDENT.items()}
    by_class = {"compared": {"clean": {"0": _score(0.5, 0.4, 0.6, 10)}}, "model": {name: {"1": _score(0.25, 0.2, 0.3, 4), "0": score} for name, score in STUDENT.items()}}
    made = _evaluation(teacher=TEACHER, results=scores, headings=("compared", "model"), classes=by_class,
                       findings=[{"check": "few-classes", "unreliable": False, "text": "t", "models": []}])
    shown = show.markdown(made)
    assert "|  | compared | model | drop |" in shown and "- passes: aa 4.2 k + 1.1 k (samples forwards + backwards)" in shown
    assert "## By class (model)" in shown and "| 1 | 4 | 25.0 | 25.0 | 25.0 |" in shown and made["findings"][0]["check"] == "few-classes"
    text = _rendered(made)
    assert "By class (model)" in text and max(map(len, text.splitlines())) <= 60
