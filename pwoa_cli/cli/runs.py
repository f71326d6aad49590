"""`pwoa runs`: list the runs of a folder. torch is not needed."""
from pathlib import Path
from typing import Annotated

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.files import run_folder
from pwoa_cli.reports import runs as listing

EXAMPLES = """\b
Examples:
  pwoa runs
  pwoa runs pwoa-runs --json"""


def runs(
    *, root: Annotated[Path, typer.Argument(metavar="DIR", show_default=False,
                                            help="Default: pwoa-runs.")] = run_folder.ROOT,
    json: options.Json = False,
) -> None:
    """List runs with what they cost."""
    found = listing.listed(root)
    Console(json=json).result(listing.markdown(found), {"runs": found}, table=lambda: listing.table(found))
