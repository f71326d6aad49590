"""examples/benchmarks/latency.py: the networks that it compares, and what it prints."""
import importlib.util
from pathlib import Path

import pytest
import torch
from helpers.small_models import lenet

import pwoa_cli
from pwoa_cli.networks import layers

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/latency.py"
spec = importlib.util.spec_from_file_location("latency", SCRIPT)
latency = importlib.util.module_from_spec(spec)
spec.loader.exec_module(latency)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("latency") / "m.pt"
    torch.save(lenet().state_dict(), path)
    return path


def test_networks_are_the_same_size_as_torch_prunings_and_slim_ones_answer_alike(path):
    model = pwoa_cli.load(path)
    x = torch.rand(4, 1, 8, 8)
    made = dict(latency.variants(model, x, [0.5]))
    shapes = {name: [tuple(p.shape) for p in net.parameters()] for name, net in made.items()}
    assert shapes["channels 50%, slim"] == shapes["channels 50%, Torch-Pruning"]
    assert shapes["90% single zeros"] == shapes["filter 50%, masked"] == shapes["dense"]
    assert shapes["filter 50%, slim"][0][0] == shapes["dense"][0][0] // 2
    zeros = [float((w == 0).float().mean()) for w in layers.prunable(made["90% single zeros"], None).values()]
    assert zeros == pytest.approx([0.9] * len(zeros), abs=0.02)
    with torch.no_grad():
        assert torch.allclose(made["filter 50%, slim"](x), made["filter 50%, masked"](x), atol=1e-5)
        assert not torch.allclose(made["dense"](x), made["filter 50%, masked"](x), atol=1e-2)


def test_a_cell_is_the_median_and_the_ratio_round_by_round():
    assert latency.cell([0.001, 0.002, 0.004], [0.004, 0.004, 0.004]) == "2 ms, 2.00 [1.50, 3.00]"


def test_the_page(path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["latency.py", str(path), "--channels", "0.5", "--batch", "2",
                                     "--runtimes", "eager,2:4", "--seconds", "0", "--device", "cpu"])
    latency.main()
    out = capsys.readouterr().out
    assert "left out: 2:4: NVIDIA GPUs alone" in out
    assert "| batch 2 | eager |" in out and out.count("| channels 50%, Torch-Pruning |") == 2
    assert "| dense | " in out and "1.00 [1.00, 1.00]" in out
