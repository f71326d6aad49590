"""The options of gates, and what is done with their verdicts."""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pwoa_cli.cli.console import Console
from pwoa_cli.errors import GATE, UNASKED
from pwoa_cli.files import run_folder
from pwoa_cli.reports import ci, gates

HEADING = "Gates"
Min = Annotated[list[str] | None, typer.Option(
    "--min", rich_help_panel=HEADING, metavar="ATTACK=F",
    help="Fail (exit code 1) below this accuracy, such as worst=0.45 (repeatable).")]
MaxDrop = Annotated[list[str] | None, typer.Option(
    "--max-drop", rich_help_panel=HEADING, metavar="ATTACK=P",
    help="Fail if more points are lost against the teacher, such as aa=1.0 (repeatable).")]
Strict = Annotated[bool, typer.Option(
    "--strict", rich_help_panel=HEADING, help="Fail also where only the 95% interval is beyond a limit.")]
Junit = Annotated[Path | None, typer.Option(
    "--junit", rich_help_panel=HEADING, metavar="FILE.xml", help="Write the verdicts as JUnit XML.")]


@dataclass(frozen=True)
class GateOptions:
    """What a figure must be for the command to exit with 0."""

    min: Min = None
    max_drop: MaxDrop = None
    strict: Strict = False
    junit: Junit = None

    def parsed(self) -> list[gates.Gate]:
        """The gates, and that the JUnit file can be written. Raises: InputError."""
        run_folder.check_file(self.junit, flag="--junit", ending=".xml")
        return gates.parse("min", self.min) + gates.parse("max-drop", self.max_drop)


def close(console: Console, options: GateOptions, report: Mapping[str, Any], *, text: str, name: str,
          short: bool) -> None:
    """The end of a command with a report: a sentence for each of its verdicts on stderr, and where CI looks
    for it, with the report as Markdown.

    Args: short: whether something that was asked for is not there. Raises: typer.Exit with GATE if a gate
    failed, else with UNASKED if it is short.
    """
    verdicts = report.get("gates", [])
    for verdict in verdicts:
        sentence = f"{gates.title(verdict)}: {verdict['text']}"
        if verdict["passed"]:
            console.say(f"gate passed: {sentence}")
        else:
            console.warn(f"gate failed: {sentence}")
    for line in ci.annotations(verdicts, report["notes"]):
        console.raw(line)
    if why := ci.summarise(text, verdicts):
        console.warn(f"the step summary cannot be written: {why}")
    if options.junit:
        ci.write_junit(options.junit, verdicts, name=name)
    if not all(verdict["passed"] for verdict in verdicts):
        raise typer.Exit(GATE)
    if short:
        raise typer.Exit(UNASKED)
