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


class Full:
    """A file whose disk is full for some of its writes: it takes nothing, or half."""

    def __init__(self, file, answers):
        self.file, self.answers = file, list(answers)

    def write(self, data):
        answer = self.answers.pop(0)
        if answer == "full":
            raise OSError(28, "No space left on device")
        return self.file.write(data[:len(data) // 2] if answer == "half" else data)

    def close(self):
        self.file.close()


@pytest.mark.parametrize("answers", [["", "full", "full", ""], ["", "half", "full", ""],
                                     ["full", "", "", ""]])
def test_a_line_that_cannot_be_written_costs_the_log_and_not_the_run(answers):
    said = []
    with MetricsLog(Path("metrics.jsonl"), lost=said.append) as log:
        log._file = Full(log._file, answers)
        for step in range(4):
            log.append({"step": step})
    assert [r["step"] for r in read_metrics(Path("metrics.jsonl"))] == [
        step for step, answer in enumerate(answers) if not answer]
    assert len(said) == 1 and said[0].startswith("warning: metrics.jsonl cannot be written (")


def test_a_disk_without_a_byte_does_not_cost_the_log_that_is_closed():
    with MetricsLog(Path("/dev/full")) as log:
        log.append({"step": 1})
