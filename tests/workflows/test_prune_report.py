"""What a report and a configuration say of a pruning run."""
import json
import statistics
from types import SimpleNamespace

import pytest
from helpers import small_models as small
from helpers.workflow_calls import FAST, run_in

from pwoa_cli.reports import tables
from pwoa_cli.training import force
from pwoa_cli.workflows import prune_report
from pwoa_cli.workflows.prune_request import LOGITS_ALONE


def test_a_teacher_with_other_hidden_layers_teaches_its_logits_and_that_is_said(tmp_path):
    narrow = small.save(small.learn(small.LeNet(size=8, widths=(2, 8), hidden=16, num_classes=4)),
                        tmp_path / "narrow.pt")
    made, said = run_in(tmp_path / "run", teacher=narrow)
    assert made["recipe"]["hidden_weight"] == 0 and LOGITS_ALONE in made["notes"] and LOGITS_ALONE in said


def test_the_reading_is_in_report_and_config(tmp_path):
    made, said = run_in(tmp_path / "run", "resnet.pt")
    settled = [note for note in made["notes"] if note.startswith("confirmed: ")]
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


# --- how strongly HSIC pulled -------------------------------------------------------------------------------

def test_the_share_of_hsic_is_the_median_of_what_the_log_has(tmp_path, monkeypatch):
    monkeypatch.setattr(force, "STEPS", 4)
    made, _ = run_in(tmp_path / "run", overrides=FAST | {"lambda_x": "0.1", "hsic_every": "2"})
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = [line["hsic_share"] for line in lines if "hsic_share" in line]
    assert found and made["recipe"]["trained"]["hsic_share"] == pytest.approx(statistics.median(found))
    fact, = [sentence for label, sentence in tables.facts(made) if label == "HSIC"]
    assert fact == f"{100 * statistics.median(found):.2g}% of the loss's gradient while training (median)"


def test_without_hsic_no_share_is_said(tmp_path):
    made, _ = run_in(tmp_path / "run", overrides=FAST | {"lambda_x": "0", "lambda_y": "0"})
    assert made["recipe"]["hsic_every"] == 1
    assert made["recipe"]["trained"].keys() == {"epochs", "steps"}
    assert "HSIC" not in dict(tables.facts(made))


@pytest.mark.parametrize(("lines", "want"), [
    ([{"step": 20, "hsic_share": 0.3}, {"step": 40}, {"step": 60, "hsic_share": 0.1}], 0.2),
    # once more from the start at a lower rate: what was before does not count
    ([{"step": 20, "hsic_share": 0.9}, {"step": 40, "hsic_share": 0.9}, {"step": 20, "hsic_share": 0.1},
      {"step": 40, "hsic_share": 0.3}], 0.2),
    # stages of a search: that of the sparsity which was accepted
    ([{"stage": 1, "sparsity": 0.5, "step": 20, "hsic_share": 0.4},
      {"stage": 2, "sparsity": 0.9, "step": 20, "hsic_share": 0.9}], 0.4),
    ([{"step": 20}], None), (None, None)])
def test_which_lines_of_the_log_count(tmp_path, lines, want):
    log, job = tmp_path / "metrics.jsonl", SimpleNamespace(plan=SimpleNamespace(sparsity=0.5))
    if lines is not None:
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = prune_report.hsic_share(job, log)
    assert found is None if want is None else found == pytest.approx(want)
