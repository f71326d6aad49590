"""The report: built, summed and checked field by field."""
import copy
import json
import math
import re
import subprocess
import sys
from datetime import datetime

import pytest
from helpers.report_samples import TEACHER, evaluation, report, score

from pwoa_cli.errors import InputError
from pwoa_cli.files.plain import dumps
from pwoa_cli.reports import schema


def test_build_sums_the_layers_and_survives_json():
    built = report()
    assert built["sparsity"]["nonzero"] == 62749 and built["sparsity"]["total"] == 627488
    assert built["sparsity"]["achieved"] == 1 - 62749 / 627488
    assert built["schema_version"] == 2 and built["drop"].keys() == TEACHER.keys()
    assert schema.validate(json.loads(dumps(built))) == built
    assert datetime.fromisoformat(built["created"]).tzinfo is not None


def paths(value: dict, prefix: tuple = ()) -> list[tuple]:
    inner = [path for key, item in value.items() if isinstance(item, dict)
             for path in paths(item, (*prefix, key))]
    return [(*prefix, key) for key in value] + inner


def fields_of(schema: dict) -> dict:
    return {key: fields_of(item) if isinstance(item, dict) and "*" not in item else 0
            for key, item in schema.items() if not key.endswith("?")}


@pytest.mark.parametrize("path", paths(fields_of(schema.SCHEMA)), ids=".".join)
def test_every_missing_field_is_named(path):
    broken = copy.deepcopy(report())
    holder = broken
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    with pytest.raises(InputError, match=re.escape(f"{'.'.join(path)} is missing")):
        schema.validate(broken)


@pytest.mark.parametrize(("path", "value", "message"), [
    (("student", "aa", "accuracy"), 82.0, "student.aa.accuracy is 82.0, expected 0 to 1"),
    (("student", "aa", "accuracy"), None, "student.aa.accuracy is None, expected number"),
    (("student", "aa", "n"), True, "student.aa.n is True, expected int"),
    (("student", "aa", "ci95"), [0.5], "student.aa.ci95 has 1 numbers, expected 2"),
    (("sparsity", "layers", 0, "shape"), "3x3", "sparsity.layers[0].shape is '3x3', expected list"),
    (("threat", "eps"), None, "threat.eps is None, expected number"),
    (("notes",), [1], "notes[0] is 1, expected str"),
    (("findings",), [{"check": "x", "unreliable": True, "models": []}], "findings[0].text is missing"),
    (("findings",), [{"check": "x", "unreliable": 1, "models": [], "text": ""}],
     "findings[0].unreliable is 1, expected bool"),
    (("headings",), ["a"], "headings has 1 names, expected 2"),
    (("attacks",), [["aa"]], "attacks[0] is ['aa'], expected str"),
    (("size", "file_bytes"), 10**400, "size.file_bytes is 10000000000000000000, expected a number below"),
    (("model", "reading"), None, "model.reading is None, expected dict"),
    (("schema_version",), 3, "schema_version 3, this pwoa reads 1 and 2"),
])
def test_every_wrong_field_is_named(path, value, message):
    broken = copy.deepcopy(report())
    holder = broken
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(InputError, match=re.escape(f"here.json: {message}")):
        schema.validate(broken, where="here.json")


def test_build_refuses_a_nan_instead_of_writing_null():
    with pytest.raises(InputError, match="student.clean.accuracy is None"):
        report(student={"clean": score(math.nan, 0, 1)})


@pytest.mark.parametrize("modules", ["pwoa_cli.cli.console, pwoa_cli.files.run_folder",
                                     "pwoa_cli.reports.schema, pwoa_cli.reports.tables"])
def test_no_torch_and_no_rich_until_they_are_needed(modules):
    code = (f"import sys, {modules}\n"
            "print({'torch', 'rich', 'numpy', 'tomli_w'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_reports_of_schema_1_are_read():
    assert schema.validate(report() | {"schema_version": 1})["schema_version"] == 1


def test_what_is_unfinished_says_how_far_it_came():
    left = {"model": {"aa": {"n": 200, "of": 1000}}}
    assert evaluation(unfinished=left)["unfinished"] == left
    with pytest.raises(InputError, match="evaluation: unfinished.model.aa.of is missing"):
        evaluation(unfinished={"model": {"aa": {"n": 200}}})
