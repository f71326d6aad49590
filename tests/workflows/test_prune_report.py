"""What a report and a configuration say of a pruning run."""
from helpers import small_models as small
from helpers.workflow_calls import FAST, run_in

from pwoa_cli.workflows.prune_job import LOGITS_ALONE


def test_a_teacher_with_other_hidden_layers_teaches_its_logits_and_that_is_said(tmp_path):
    narrow = small.save(small.learn(small.LeNet(size=8, widths=(2, 8), hidden=16, num_classes=4)),
                        tmp_path / "narrow.pt")
    made, said = run_in(tmp_path / "run", teacher=narrow)
    assert made["recipe"]["hidden_weight"] == 0 and LOGITS_ALONE in made["notes"] and LOGITS_ALONE in said


def test_the_reading_is_in_report_and_config(tmp_path):
    made, said = run_in(tmp_path / "run", "resnet.pt")
    settled = [note for note in made["notes"] if note.startswith("confirmed: as read ")]
    assert len(settled) == 1 and settled[0] in said and made["model"]["arch_options"]["shortcut"] == "conv"
    assert 'shortcut = "conv"' in (tmp_path / "run/config.toml").read_text()


def test_admm_without_an_update_is_said(tmp_path):
    made, _ = run_in(tmp_path / "run", recipe="paper")
    assert any("ADMM made no z/u update" in note for note in made["notes"])


def test_partial_access_is_said(tmp_path):
    made, _ = run_in(tmp_path / "run", overrides=FAST | {"mix_ratio": "0.25"})
    assert made["notes"][-1] == ("Partial access: adversarial examples (PGD-10 on the student, linf, eps "
                                 "0.1) took the place of 25% of the training batches.")
    made, _ = run_in(tmp_path / "without")
    assert made["notes"][-1] == "No adversarial example was generated while pruning."
