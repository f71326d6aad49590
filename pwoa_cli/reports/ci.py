"""Verdicts of gates where CI systems look for them: JUnit XML, GitHub's step summary and annotations."""
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pwoa_cli.files.atomic import write_text_atomic
from pwoa_cli.reports.gates import title
from pwoa_cli.reports.tables import inline


def junit(verdicts: Sequence[Mapping[str, Any]], *, name: str) -> str:
    """A test suite of the gates, a case each (the format of Ant, as GitLab, Jenkins and others read it)."""
    failed = [verdict for verdict in verdicts if not verdict["passed"]]
    suite = ET.Element("testsuite", name="pwoa", tests=str(len(verdicts)), failures=str(len(failed)),
                       errors="0", skipped="0")
    for verdict in verdicts:
        case = ET.SubElement(suite, "testcase", classname=_printable(name), name=_printable(title(verdict)))
        if verdict["passed"]:
            ET.SubElement(case, "system-out").text = _printable(verdict["text"])
        else:
            ET.SubElement(case, "failure", message=_printable(verdict["text"]))
    ET.indent(suite)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suite, encoding="unicode")}\n'


def write_junit(path: Path, verdicts: Sequence[Mapping[str, Any]], *, name: str) -> None:
    """`junit` as a file, whole or not at all."""
    write_text_atomic(path, junit(verdicts, name=name))


def summarise(markdown: str, verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Append the report and its gates to GitHub's step summary, where $GITHUB_STEP_SUMMARY names one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    rows = [f"| {'passed' if v['passed'] else '**failed**'} | {inline(title(v))} | {inline(v['text'])} |"
            for v in verdicts]
    table = ["", "| gate | | |", "|---|---|---|", *rows, ""] if rows else [""]
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join([markdown.rstrip("\n"), *table]) + "\n")


def annotations(verdicts: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> list[str]:
    """Lines that GitHub Actions shows at the run: an error for each failed gate, a warning for each
    unreliable figure; none elsewhere."""
    if os.environ.get("GITHUB_ACTIONS", "").lower() != "true":
        return []
    failed = [f"::error title=pwoa {_escaped(title(v), ',:')}::{_escaped(v['text'])}"
              for v in verdicts if not v["passed"]]
    return failed + [f"::warning title=pwoa::{_escaped(note)}" for note in notes
                     if note.startswith("unreliable: ")]


def _escaped(text: str, more: str = "") -> str:
    """As workflow commands want data (and properties, `more`)."""
    for char in "%\r\n" + more:
        text = text.replace(char, f"%{ord(char):02X}")
    return text


def _printable(text: str) -> str:
    """XML 1.0 holds no control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)
