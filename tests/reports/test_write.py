"""report.md and report.json, of which the second says that a run is finished."""
import os
from pathlib import Path

import pytest
from helpers.report_samples import report

from pwoa_cli.errors import PwoaError
from pwoa_cli.files.plain import read_json
from pwoa_cli.reports import tables
from pwoa_cli.reports.write import write


def test_both_forms_of_a_report_are_written(tmp_path):
    write(tmp_path, report())
    assert read_json(tmp_path / "report.json") == report()
    assert (tmp_path / "report.md").read_text() == tables.markdown(report())
    assert sorted(os.listdir(tmp_path)) == ["report.json", "report.md"]


@pytest.mark.parametrize(("fails", "there"), [("report.md", "report.json"), ("report.json", "report.md")])
def test_one_form_that_cannot_be_written_does_not_cost_the_other(tmp_path, monkeypatch, fails, there):
    replace = os.replace

    def fail(temporary, target):
        if Path(target).name == fails:
            raise OSError(28, "No space left on device")
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PwoaError, match=f"{fails} cannot be written: No space left on device"):
        write(tmp_path, report())
    assert os.listdir(tmp_path) == [there]
