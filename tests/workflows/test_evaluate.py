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


def test_a_teacher_that_is_pruned_itself_is_said_to_be(tmp_path):
    """Of prunings one after the other each drop may be small: 0.5 and 0.5 and 0.5."""
    first, _ = run_in(tmp_path / "first", sparsity=0.5)
    assert not any("pruned itself" in note for note in first["notes"])
    again = str(tmp_path / "first/model.safetensors")
    second, said = run_in(tmp_path / "second", again, sparsity=0.8)
    note = ("The teacher is pruned itself, 50% of its weights are zero: what that cost is in no drop.")
    assert note in second["notes"]
    assert f"note: {note} --teacher FILE, of the network before, distils from it and compares with it" in said
    asked = evaluate.Request(Source(str(tmp_path / "second")), attacks="fgsm", n=20)
    found = evaluate.execute(evaluate.prepare(asked, say=lambda text: None), progress=lambda *_: None,
                             say=lambda text: None).result
    assert note in found["notes"]
    third, said = run_in(tmp_path / "third", again, sparsity=0.8, teacher="lenet.pt")
    assert not any("pruned itself" in text for text in (*third["notes"], *said.splitlines()))
