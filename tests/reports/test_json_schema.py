"""The published JSON Schema: one source with what validates, and the same verdicts."""
import copy
import json
from pathlib import Path

import pytest
from helpers.report_samples import STUDENT, TEACHER, drops, evaluation, report
from jsonschema import Draft202012Validator

from pwoa_cli.errors import InputError
from pwoa_cli.files.plain import dumps
from pwoa_cli.reports import json_schema, schema

DOCS = Path(__file__).parents[2] / "docs" / "report.schema.json"
FINDING = {"check": "x", "unreliable": True, "text": "why", "models": []}
MORE = {"findings": [FINDING], "attacks": ["aa"]}
LEFT = {"model": {"aa": {"n": 200, "of": 1000}}}
SAMPLES = {
    "run": report(**MORE), "one": evaluation(**MORE, unfinished=LEFT, classes={"model": {"clean": {"0": {
        "accuracy": 1.0, "n": 2, "ci95": [0.3, 1.0], "curve": [[0.1, 0.5]]}}}}),
    "two": evaluation(teacher=TEACHER, **MORE) | {"gates": [{"gate": "", "passed": True, "text": ""}]},
    "several": schema.build_several(
        norm="linf", eps=0.3, reference=None, seconds={}, notes=[], **MORE,
        environment=report()["environment"], data=report()["data"] | {"shape": [1, 8, 8]},
        models={"a": {"source": "", "sha256": "", "arch": "", "scores": STUDENT, "sparsity": 0.9,
                      "drop": drops(TEACHER, STUDENT)}})}


def test_the_published_file_is_what_the_code_makes_and_the_command_prints(pwoa):
    text = DOCS.read_text(encoding="utf-8")
    assert text == dumps(json_schema.json_schema(), indent=1) + "\n", (
        "run: pwoa report --schema > docs/report.schema.json")
    assert pwoa("report", "--schema") == (0, text, "")
    assert json.loads(pwoa("report", "--schema", "--json")[1]) == json.loads(text)
    Draft202012Validator.check_schema(json.loads(text))


def test_every_field_says_what_it_is_and_no_description_is_left_over(monkeypatch):
    used = set()

    class Told(dict):
        def get(self, key, default=None):
            used.update({key} & self.keys())
            return super().get(key, default)

        def __getitem__(self, key):
            used.add(key)
            return super().__getitem__(key)

    monkeypatch.setattr(json_schema, "DESCRIPTIONS", Told(json_schema.DESCRIPTIONS))
    json_schema.json_schema()  # a field without one is a KeyError
    assert used == json_schema.DESCRIPTIONS.keys()


def places(value, path=()):
    """Every place in a JSON value; of a list the first item."""
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(
        value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def damaged(sample, path, value):
    """A copy with another value at a place; without it for `...`."""
    holder = made = copy.deepcopy(sample)
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return made


def is_read(value, folder):
    (folder / "report.json").write_text(dumps(value))
    try:
        return bool(schema.read(folder / "report.json"))
    except InputError:
        return False


@pytest.mark.parametrize("kind", SAMPLES)
def test_both_take_the_same_reports_and_refuse_the_same(kind, tmp_path):
    validator, refused, sample = Draft202012Validator(json_schema.json_schema()), 0, SAMPLES[kind]
    assert validator.is_valid(sample) and is_read(sample, tmp_path)
    for path in places(sample):
        for value in (..., None, True, "text", 1.5, [], [0.5], {}, {"x": 1}):
            changed = damaged(sample, path, value)
            if path == ("schema_version",) and value is not ...:
                continue  # version 1 is read, and not published
            taken = is_read(changed, tmp_path)
            assert validator.is_valid(changed) == taken, (path, value)
            refused += not taken
    assert refused > 200


def test_a_field_beyond_the_schema_is_welcome_and_a_wrong_one_is_named():
    validator = Draft202012Validator(json_schema.json_schema())
    assert validator.is_valid(SAMPLES["run"] | {"newer": {"steps": [1]}})
    (error,) = validator.iter_errors(damaged(SAMPLES["run"], ("student", "aa", "accuracy"), 82.0))
    assert list(error.absolute_path) == ["student", "aa", "accuracy"] and "82.0" in error.message


def test_reports_of_version_1_are_read_whatever_their_optional_fields(tmp_path):
    assert is_read(SAMPLES["run"] | {"schema_version": 1, "findings": ["a sentence"]}, tmp_path)
    assert not is_read(SAMPLES["run"] | {"findings": ["a sentence"]}, tmp_path)
