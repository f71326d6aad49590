"""examples/benchmarks/transfer.py: linear models in closed form, and the command on a tiny network."""
import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import small_models as small
from torch import nn

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/transfer.py"
spec = importlib.util.spec_from_file_location("transfer", SCRIPT)
transfer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(transfer)


def linear(weight):
    """x (N, 1, 1, D) -> x W^T."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.fixture
def world():
    """A teacher and a pruned copy of it, linear, and images well inside [0,1]."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=g)
    weight -= weight.mean(1, keepdim=True)  # no class wins everywhere
    pruned = weight * (weight.abs() > 0.5)
    x = torch.rand(40, 1, 1, 6, generator=g) * 0.8 + 0.1
    return weight, pruned, x, linear(weight)(x).argmax(1)


def test_slopes_of_a_linear_model_are_differences_of_its_rows(world):
    weight, _, x, _ = world
    pairs = torch.tensor([[0, 1], [3, 2]]).repeat(20, 1)
    torch.testing.assert_close(transfer.slopes(linear(weight), x, pairs),
                               weight[pairs[:, 0]] - weight[pairs[:, 1]])


def test_row_of_a_linear_model_is_the_closed_form(world):
    """The worst case of a linear model in the ball is known: the smallest margin less eps times the L1 norm
    of its slope."""
    weight, pruned, x, labels = world
    teacher, student, eps = linear(weight), linear(pruned), 0.05
    row = transfer.measured(teacher, {"pruned": student}, x, labels, eps=eps, norm="linf", seed=0)[1]
    said = student(x).detach()
    others = [[j for j in range(4) if j != y] for y in labels]
    worst = [min(float(said[i, y] - said[i, j] - eps * (pruned[y] - pruned[j]).abs().sum())
                 for j in others[i])
             for i, y in enumerate(labels.tolist())]
    assert row["clean"] == int((said.argmax(1) == labels).sum())
    assert row["own PGD-20"] == sum(w > 0 for w in worst) < row["clean"]
    p, q = teacher(x).detach().softmax(1), said.softmax(1)
    assert row["KL"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    top = teacher(x).topk(2, 1).indices
    a, b = (w[top[:, 0]] - w[top[:, 1]] for w in (pruned, weight))
    assert row["gradients"] == pytest.approx(float(((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean()),
                                             rel=1e-5)


def test_attacks_are_handed_over_in_the_named_direction(world):
    """On a model that sees nothing of the teacher's directions the teacher's attack does nothing, and its own
    all the same."""
    weight, _, x, labels = world
    blind = linear(torch.zeros_like(weight))
    row = transfer.measured(linear(weight), {"blind": blind}, x, labels, eps=0.05, norm="linf", seed=0)[1]
    assert row["the teacher's"] == row["own PGD-20"] == row["clean"] == int((labels == 0).sum())
    teacher = transfer.measured(linear(weight), {"same": linear(weight)}, x, labels, eps=0.05, norm="linf",
                                seed=0)
    first, same = teacher
    assert same["teacher on its"] == same["the teacher's"] == first["own PGD-20"] < first["clean"] == 40


def test_mean_of_opposite_errors_is_the_teacher(world):
    weight, pruned, x, labels = world
    pair = {"pruned": linear(pruned), "mirrored": linear(2 * weight - pruned)}
    rows = transfer.measured(linear(weight), pair, x, labels, eps=0.05, norm="linf", seed=0)
    assert [row["model"] for row in rows] == ["teacher", "pruned", "mirrored", "mean of their logits"]
    assert rows[3]["own PGD-20"] == rows[0]["own PGD-20"]
    assert rows[3]["KL"] == pytest.approx(0, abs=1e-6)
    [(one, other, of_logits, of_gradients)] = transfer.shared(linear(weight), pair, x)
    assert (one, other) == ("pruned", "mirrored")
    assert of_logits == pytest.approx(-1, abs=1e-4)
    assert of_gradients == pytest.approx(-1, abs=1e-4)


def test_command_prints_a_table_and_tells_what_is_wrong(tmp_path, capsys):
    threads = torch.get_num_threads()
    small.save(small.learn(small.lenet()), tmp_path / "lenet.pt")
    small.write_npz(tmp_path / "grey.npz")
    args = [str(tmp_path / "lenet.pt"), str(tmp_path / "lenet.pt"), "--data", str(tmp_path / "grey.npz"),
            "--eps", "0.1", "--n", "20"]
    try:
        transfer.main([*args, "--threads", str(threads)])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "| model | clean | own PGD-20 | the teacher's | teacher on its | KL | gradients |"
        assert lines[2].startswith("| teacher | ")
        assert lines[3].endswith(" | 0.000 | 1.000 |")
        with pytest.raises(SystemExit) as stop:
            transfer.main([args[0], str(tmp_path / "none.pt"), *args[2:]])
        assert stop.value.code == 2
        assert "none.pt" in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
