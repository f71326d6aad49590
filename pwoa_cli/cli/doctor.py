"""`pwoa doctor`: look at this machine -> show."""
import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.errors import PwoaError

EXAMPLES = """\b
Examples:
  pwoa doctor
  pwoa doctor --json"""


def doctor(*, json: options.Json = False) -> None:
    """Check this installation and machine."""
    console = Console(json=json)
    console.say("loading torch")
    from pwoa_cli.workflows import doctor as workflow

    found = workflow.examine(say=console.say)
    console.result(workflow.markdown(found), found)
    if not all(check["ok"] for check in found["checks"]):
        raise typer.Exit(PwoaError.exit_code)
