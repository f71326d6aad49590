"""report.md and report.json of a run or an evaluation."""
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pwoa_cli.files.atomic import each, write_text_atomic
from pwoa_cli.files.plain import write_json
from pwoa_cli.reports import tables


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """report.md and report.json of a run or an evaluation, whichever can be written; the JSON comes last, as
    a run with it is finished. Raises: as `files.atomic.each`."""
    each(partial(write_text_atomic, folder / "report.md", tables.markdown(result)),
         partial(write_json, folder / "report.json", result))
