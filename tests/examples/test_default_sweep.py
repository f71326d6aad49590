"""examples/benchmarks/default_sweep.py: every network of its table is built, trained and pruned by name."""
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/default_sweep.py"
sys.path.insert(0, str(SCRIPT.parent))
import default_sweep  # noqa: E402

sys.path.pop(0)


@pytest.mark.parametrize("name", default_sweep.NETWORKS)
def test_every_network_takes_its_images(name):
    data, make = default_sweep.NETWORKS[name]
    x = torch.rand(2, 1, 28, 28) if data == "mnist" else torch.rand(2, 3, 32, 32)
    assert make().eval()(x).shape == (2, 10)


def test_a_row_is_run_once_and_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    command = [str(tmp_path), "mnist_single", "--train", "1", "--prune", "0.2", "--sparsity", "0.9", "--n",
               "50", "--table"]
    default_sweep.main(command)
    default_sweep.main(command)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1
    assert capsys.readouterr().out.count("| mnist_single | 90% | adam 0.0015, lamp") == 2
