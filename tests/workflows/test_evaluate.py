"""An evaluation of a run, beside the checkpoint that it was pruned from."""
from pathlib import Path

import pytest
from helpers.data_files import write_idx
from helpers.workflow_calls import run_in

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.data import datasets
from pwoa_cli.workflows import evaluate
from pwoa_cli.workflows.finished_run import FinishedRun


@pytest.mark.parametrize("typed", ["MNIST", "d", "d/mnist", "d/MNIST", "d/MNIST/raw", "{}/d/mnist"])
def test_the_data_of_a_run_is_found_again_as_it_was_named(tmp_path, monkeypatch, typed):
    write_idx(tmp_path / "d/MNIST/raw")
    monkeypatch.setattr(datasets, "places", lambda: (tmp_path / "d",))
    Path(tmp_path / "elsewhere").mkdir()
    run = FinishedRun(tmp_path / "runs/one", {"data": {"argument": typed.format(tmp_path), "name": "mnist"}})
    for here in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(here)
        assert Path(datasets.load(run.data).where).resolve() == tmp_path / "d/MNIST/raw"


def test_eval_of_a_run_reads_its_source_as_the_run_did(tmp_path):
    """A tie on the probe images must not lose the --mean and --std that the run was told."""
    made, _ = run_in(tmp_path / "run", mean=(0.02,), std=(1.0,))
    asked = evaluate.Request(Source(str(tmp_path / "run")), attacks="fgsm", n=20)
    found = evaluate.execute(evaluate.prepare(asked, say=lambda text: None), progress=lambda *_: None,
                             say=lambda text: None).result
    assert (found["teacher"] == made["teacher"] and found["student"] == made["student"]
            and found["drop"] == made["drop"])
