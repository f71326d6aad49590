"""The metrics log: a line a record, on disk at once."""
import json
import math
from pathlib import Path

import pytest

from pwoa_cli.errors import InputError
from pwoa_cli.files.metrics import MetricsLog, read_metrics


def test_metrics_are_on_disk_line_by_line():
    with MetricsLog(Path("metrics.jsonl")) as log:
        log.append({"step": 1, "loss": math.nan})
        assert read_metrics(Path("metrics.jsonl")) == [{"step": 1, "loss": None}]  # before close


def test_metrics_of_a_killed_run_are_read_and_continued():
    path = Path("metrics.jsonl")
    with MetricsLog(path) as log:
        for step in range(3):
            log.append({"step": step})
    path.write_bytes(path.read_bytes()[:-4])
    assert [r["step"] for r in read_metrics(path)] == [0, 1]
    with MetricsLog(path) as log:
        log.append({"step": 2})
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 2}
    with open(path, "a") as file:  # found by damaging such files at random
        file.write("[" * 9999 + "\n" + "9" * 5000 + "\n" + '{"step": NaN}\n')
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]
    with pytest.raises(InputError, match="cannot be read"):
        read_metrics(Path("none.jsonl"))
