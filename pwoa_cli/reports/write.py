"""report.md and report.json of a run or an evaluation."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pwoa_cli.files.atomic import write_text_atomic
from pwoa_cli.files.plain import write_json
from pwoa_cli.reports import tables


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """report.md and report.json of a run or an evaluation; the JSON comes last, as a run with it is
    finished."""
    write_text_atomic(folder / "report.md", tables.markdown(result))
    write_json(folder / "report.json", result)
