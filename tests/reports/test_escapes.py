"""Hostile text at every free-text field of a report, in every form that is shown: read again with a parser,
it is text and nothing more."""
import copy
import io
import json
import re
import xml.etree.ElementTree as ET

import pytest
from helpers import report_samples
from helpers.nasty_texts import NASTY, flat, rendered
from rich.console import Console as RichConsole

from pwoa_cli.files.plain import dumps
from pwoa_cli.reports import checkpoint, ci, escapes, runs, tables, terminal


@pytest.mark.parametrize("kind", NASTY)
@pytest.mark.parametrize("form", ["{}\n", "# {}\n", "- note: {}\n", "| a | b |\n|---|---|\n| {} | c |\n"])
def test_markdown_renders_as_the_text_itself(kind, form):
    shown = rendered(form.format(escapes.markdown(NASTY[kind])))[2 if "|" in form else 0]
    assert shown.removeprefix("note: ") == flat(NASTY[kind])


def test_bare_addresses_are_no_links_on_github_and_ordinary_names_stay_readable():
    assert escapes.markdown("https://evil.com www.evil.com") == "https:\\//evil.com www\\.evil.com"
    for name in ("layer1.0.conv_1.weight", "8/255", "93.2 [91.5, 94.6]", "p = 0.05: no loss (95%)", "pgd-20",
                 "model (1).pt", "-", "a & b"):
        assert escapes.markdown(name) == name


FREE = ["source", "arch", "structure", "recipe", "data", "device", "torch", "norm", "note", "layer", "attack",
        "heading", "class", "gate", "verdict", "phase", "model"]


def report(field, text):
    """A report, or an evaluation with classes, with a text at one of FREE."""
    if field in ("heading", "class", "model"):
        score = report_samples.STUDENT
        who = text if field == "heading" else "pruned"
        classes = {who: {"clean": {text if field == "class" else "0": score["clean"]}}}
        return report_samples.evaluation(
            teacher=report_samples.TEACHER, headings=["teacher", who], classes=classes,
            models={"teacher": {"source": text if field == "model" else "t.pt", "sha256": "0", "arch": "a"},
                    who: {"source": "m.pt", "sha256": "1", "arch": "a"}})
    made = copy.deepcopy(report_samples.report())
    places = {"source": (made["model"], "source"), "arch": (made["model"], "arch"),
              "structure": (made["sparsity"], "structure"), "recipe": (made["recipe"], "name"),
              "data": (made["data"], "name"), "device": (made["environment"], "device"),
              "torch": (made["environment"], "torch"), "norm": (made["threat"], "norm"),
              "note": (made["notes"], 0), "layer": (made["sparsity"]["layers"][0], "name")}
    if field in places:
        owner, key = places[field]
        owner[key] = text
    if field == "attack":
        made |= {who: {text: made[who].pop("aa"), **made[who]} for who in ("teacher", "student")}
    if field == "phase":
        made["seconds"] = {text: 1.0}
    return made


@pytest.mark.parametrize("field", FREE)
@pytest.mark.parametrize("kind", NASTY)
def test_every_form_of_a_report_shows_text_as_text(field, kind, monkeypatch, tmp_path):
    text = NASTY[kind]
    made = report(field, text)
    verdicts = [{"gate": text if field == "gate" else "--min clean=1", "passed": passed,
                 "text": text if field == "verdict" else "fine"} for passed in (True, False)]
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    ci.summarise(tables.markdown(made), verdicts)
    written = (tmp_path / "summary.md").read_text(encoding="utf-8")
    in_summary = rendered(written.replace("**failed**", "failed"))
    plain = rendered(tables.markdown(report(field, "plain")))
    assert len(rendered(tables.markdown(made))) == len(plain)  # the same blocks and cells
    if field not in ("arch", "source"):  # is not shown; its last part
        assert any(flat(text) in block for block in in_summary)
    suite = ET.fromstring(ci.junit(verdicts, name=text))
    assert suite[0].get("classname") == escapes.visible(text)
    for line in ci.annotations(verdicts, [f"unreliable: {text}"]):
        assert line.startswith("::") and "\n" not in line and "\r" not in line and "\x1b" not in line
    assert json.loads(dumps(made)) == made


@pytest.mark.parametrize("field", FREE)
@pytest.mark.parametrize("kind", NASTY)
def test_a_terminal_s_table_reads_no_markup_and_sends_no_controls(field, kind):
    stream = io.StringIO()
    RichConsole(file=stream, width=2000, height=25).print(terminal.one(report(field, NASTY[kind])))
    shown = stream.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800-\udfff]", shown)
    if field in ("note", "model"):
        assert flat(NASTY[kind]).split()[-1] in shown


@pytest.mark.parametrize("kind", NASTY)
def test_lists_of_runs_and_what_info_found_are_text(kind):
    entry = {"folder": NASTY[kind], "model": "m.pt", "sparsity": None, "clean": None, "worst_case": None,
             "attacks": None, "file_bytes": None, "created": NASTY[kind], "state": f"broken: {NASTY[kind]}"}
    assert f"broken: {flat(NASTY[kind])}" in rendered(runs.markdown([entry]))
    text = NASTY[kind]
    info = {"source": text, "arch": text, "num_classes": 2, "input_shape": [1, 8, 8], "default_size": None,
            "weights": {"total": 1, "dead": 0, "nonzero": 1, "sparsity": 0.0}, "parameters": 1,
            "chosen": text, "evidence": text, "same_keys": [], "normalisation": {"words": text},
            "threat": None, "clean": None, "settled": text, "unwrapped": [text], "file_bytes": 1,
            "sha256": "0", "pruned": None, "notes": [text],
            "layers": [{"name": text, "shape": [1], "total": 1, "nonzero": 1, "live": True}]}
    found = rendered(checkpoint.markdown(info))
    assert f"note: {flat(text)}" in found and flat(text) in found  # the second is the layer's
    RichConsole(file=io.StringIO(), width=60).print(checkpoint.table(info))


@pytest.mark.parametrize("text", ["::error::x", "a\n::add-mask::x", "a\n  ##[error]x"])
def test_no_line_of_a_log_is_a_command_to_github_s_runner(text):
    for line in escapes.terminal(text).splitlines():
        assert not line.lstrip().startswith(("::", "##["))
