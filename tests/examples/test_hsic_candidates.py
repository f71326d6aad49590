"""examples/benchmarks/hsic_candidates.py on a tiny plan: which ways are exact, and what each leaves out."""
import importlib.util
from pathlib import Path

import pytest
import torch
from helpers.plans import make_plan

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/hsic_candidates.py"
spec = importlib.util.spec_from_file_location("hsic_candidates", SCRIPT)
candidates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(candidates)


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    plan, student = make_plan(cutmix=0.5, sparsity=0.5)
    state, step = candidates.warmed(plan, student, 6)
    assert state.step == 6 and len(step) == 3
    return {row.name: row for row in candidates.measure(plan, state, windows=1)}


def test_the_exact_way_is_exact_and_the_others_are_not(rows):
    exact = ("exact", "exact, one layer a step")  # there is one hidden layer
    assert max(rows[name].errors[0] for name in exact) < 1e-2
    assert min(min(row.errors) for name, row in rows.items() if name not in exact) > 1e-2
    assert len(rows["exact"].milliseconds) == candidates.WINDOW


def test_all_beginnings_of_a_way_that_leaves_steps_out_are_tried(rows):
    assert [len(rows[f"exact, every {k} steps"].errors) for k in (2, 4, 8)] == [2, 4, 8]
    assert [rows[f"exact, every {k} steps"].of_steps for k in (2, 4, 8)] == [1 / 2, 1 / 4, 1 / 8]


def test_the_table_has_a_line_for_each_way(rows):
    lines = candidates.table(list(rows.values()), 10.0).splitlines()
    assert len(lines) == 2 + len(rows) and all(line.count("|") == 7 for line in lines)
