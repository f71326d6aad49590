"""Verdicts of gates where CI systems look for them: JUnit XML, GitHub's step summary and annotations."""
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pwoa_cli.files.atomic import write_text_atomic
from pwoa_cli.reports.escapes import markdown as inline
from pwoa_cli.reports.escapes import visible, workflow_command
from pwoa_cli.reports.gates import title


def junit(verdicts: Sequence[Mapping[str, Any]], *, name: str) -> str:
    """A test suite of the gates, a case each (the format of Ant, as GitLab, Jenkins and others read it)."""
    import xml.etree.ElementTree as ET  # a tenth of what --help takes

    failed = [verdict for verdict in verdicts if not verdict["passed"]]
    suite = ET.Element("testsuite", name="pwoa", tests=str(len(verdicts)), failures=str(len(failed)),
                       errors="0", skipped="0")
    for verdict in verdicts:
        case = ET.SubElement(suite, "testcase", classname=visible(name), name=visible(title(verdict)))
        if verdict["passed"]:
            ET.SubElement(case, "system-out").text = visible(verdict["text"])
        else:
            ET.SubElement(case, "failure", message=visible(verdict["text"]))
    ET.indent(suite)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suite, encoding="unicode")}\n'


def write_junit(path: Path, verdicts: Sequence[Mapping[str, Any]], *, name: str) -> None:
    """`junit` as a file, whole or not at all."""
    write_text_atomic(path, junit(verdicts, name=name))


def summarise(markdown: str, verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Append the report and its gates to GitHub's step summary, where $GITHUB_STEP_SUMMARY names one.

    Returns: why that failed, "" if it did not."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return ""
    rows = [f"| {'passed' if v['passed'] else '**failed**'} | {inline(title(v))} | {inline(v['text'])} |"
            for v in verdicts]
    table = ["", "| gate | | |", "|---|---|---|", *rows, ""] if rows else [""]
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n".join([markdown.rstrip("\n"), *table]) + "\n")
    except OSError as error:
        return str(error.strerror)
    return ""


def annotations(verdicts: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> list[str]:
    """Lines that GitHub Actions shows at the run: an error for each failed gate, a warning for each
    unreliable figure; none elsewhere."""
    if os.environ.get("GITHUB_ACTIONS", "").lower() != "true":
        return []
    failed = [f"::error title=pwoa {workflow_command(title(v), of_property=True)}::"
              f"{workflow_command(v['text'])}" for v in verdicts if not v["passed"]]
    return failed + [f"::warning title=pwoa::{workflow_command(note)}" for note in notes
                     if note.startswith("unreliable: ")]
