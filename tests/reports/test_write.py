"""report.md and report.json, of which the second says that a run is finished."""
import os
from pathlib import Path

import pytest
from helpers.report_samples import report

from pwoa_cli.errors import InputError
from pwoa_cli.files.plain import read_json
from pwoa_cli.reports import tables
from pwoa_cli.reports.write import write


def test_both_forms_of_a_report_are_written(tmp_path):
    write(tmp_path, report())
    assert read_json(tmp_path / "report.json") == report()
    assert (tmp_path / "report.md").read_text() == tables.markdown(report())
    assert sorted(os.listdir(tmp_path)) == ["report.json", "report.md"]


def test_a_report_that_cannot_be_written_leaves_no_json_behind(tmp_path, monkeypatch):
    replace = os.replace

    def fail(temporary, target):
        if Path(target).name == "report.md":
            raise OSError(28, "No space left on device")
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="report.md cannot be written: No space left on device"):
        write(tmp_path, report())
    assert os.listdir(tmp_path) == []
