"""An evaluation of a run, beside the checkpoint that it was pruned from."""
from helpers.workflow_calls import run_in

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.workflows import evaluate


def test_eval_of_a_run_reads_its_source_as_the_run_did(tmp_path):
    """A tie on the probe images must not lose the --mean and --std that the run was told."""
    made, _ = run_in(tmp_path / "run", mean=(0.02,), std=(1.0,))
    asked = evaluate.Request(Source(str(tmp_path / "run")), attacks="fgsm", n=20)
    found = evaluate.execute(evaluate.prepare(asked, say=lambda text: None), progress=lambda *_: None,
                             say=lambda text: None).result
    assert (found["teacher"] == made["teacher"] and found["student"] == made["student"]
            and found["drop"] == made["drop"])
