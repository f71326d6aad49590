"""Pruning networks of the user's own: from a file of code, layers of other kinds, frozen and tied weights."""
from pathlib import Path

import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import FAST, refused, request, run_in
from torch import nn

import pwoa_cli
from pwoa_cli.files import sparse
from pwoa_cli.networks.build import build
from pwoa_cli.workflows import prune
from pwoa_cli.workflows.prune_job import prepare


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, small.CLASSES))

    def forward(self, x):
        return self.body(x)


WIDE = """
from torch import nn
def net(classes=4):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, classes))
        def forward(self, x):
            return self.body(x)
    return Wide()
"""


def test_a_network_from_a_file_of_code(tmp_path):
    Path("wide.py").write_text(WIDE)
    small.save(small.learn(Wide()), "wide.pt")
    made, _ = run_in(tmp_path / "run", "wide.pt", arch="wide.py:net", overrides=FAST | {"hidden": "body.2"})
    assert made["model"]["arch"] == "wide.py:net" and made["sparsity"]["total"] == 64 * 40 + 40 * 4
    pruned = str(tmp_path / "run/model.safetensors")
    # a teacher whose keys say nothing
    again, _ = run_in(tmp_path / "again", pruned, arch="wide.py:net", sparsity=0.9, teacher="wide.pt")
    assert again["teacher"]["clean"]["accuracy"] == 1 and again["model"]["teacher"] == "wide.pt"
    assert "code is not run" in refused(pruned)


def test_dead_weights_are_left_out_and_said(tmp_path):
    Path("dead.py").write_text(WIDE.replace("super().__init__()",
                                            "super().__init__(); self.never = nn.Linear(7, 3)"))
    model = small.learn(Wide())
    torch.save({"never.weight": torch.ones(3, 7), "never.bias": torch.ones(3), **model.state_dict()},
               "dead.pt")
    made, said = run_in(tmp_path / "run", "dead.pt", arch="dead.py:net", data="grey.npz", sparsity=0.5)
    total = 64 * 40 + 40 * 4
    assert made["sparsity"]["total"] == total and made["sparsity"]["nonzero"] == total // 2
    assert "21 weights never reach the logits; they are not pruned and do not count." in made["notes"]
    assert pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")["never.weight"].eq(1).all()


CUSTOM = """
import torch
from torch import nn
class Capsules(nn.Module):
    # Matrices that turn 8 capsules of 8 numbers into a capsule a class, with one round of routing;
    # its length is the logit
    def __init__(self, classes=4):
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(classes, 8, 8, 6) * 0.3)
        self.gain = nn.Parameter(torch.ones(1, classes))
    def forward(self, x):
        votes = torch.einsum("bci,kcij->bkcj", x, self.matrices)
        agreement = (votes * votes.mean(2, keepdim=True)).sum(-1, keepdim=True)
        return self.gain * 4 * (agreement.softmax(2) * votes).sum(2).norm(dim=-1)
class Capsule(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.capsules = nn.Conv2d(1, 8, 3, 2, 1), Capsules()
    def forward(self, x):
        h = self.conv(x).relu().flatten(2)
        h = nn.functional.adaptive_avg_pool1d(h, 8)
        return self.capsules(h), h
class KANLayer(nn.Module):
    # Every edge has a learned function: a base weight and weights of 5 Gaussian bumps
    def __init__(self, inside, outside):
        super().__init__()
        self.base = nn.Parameter(torch.randn(outside, inside) / inside ** 0.5)
        self.bumps = nn.Parameter(torch.randn(outside, inside, 5) * 0.1)
        self.register_buffer("centres", torch.linspace(-1, 1, 5))
    def forward(self, x):
        near = torch.exp(-4 * (x.unsqueeze(-1) - self.centres) ** 2)
        return nn.functional.linear(x, self.base) + torch.einsum("big,oig->bo", near, self.bumps)
class KAN(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), KANLayer(64, 12), nn.Tanh(), KANLayer(12, 4))
    def forward(self, x):
        return super().forward(x).log_softmax(1)
"""


@pytest.mark.parametrize(("name", "weights", "said"), [
    ("Capsule", {"conv.weight": 72, "capsules.matrices": 1536},
     "forward returns 0 (2, 4), 1 (2, 8, 8); 0 is taken as the logits"),
    ("KAN", {"1.base": 768, "1.bumps": 3840, "3.base": 48, "3.bumps": 240},
     "forward returns log-probabilities")])
def test_layers_of_the_user_s_own_are_pruned_and_saved(tmp_path, name, weights, said):
    Path("custom.py").write_text(CUSTOM)
    arch = f"custom.py:{name}"
    net = build(arch, {})
    logits_of = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return logits_of(self.net(x))

    torch.manual_seed(0)
    x, y = small.images(256)
    x, y = torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.tensor(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(Logits()(x), y).backward()
        optimizer.step()
    file = small.save(net.eval(), "custom.pt")
    made, spoken = run_in(tmp_path / "run", file, arch=arch, sparsity=0.6)
    assert {row["name"]: row["total"] for row in made["sparsity"]["layers"]} == weights
    assert made["sparsity"]["nonzero"] == sum(weights.values()) - round(0.6 * sum(weights.values()))
    assert said in spoken and any("are of other layers" in note for note in made["notes"])
    assert made["student"]["clean"]["accuracy"] > 0.8
    again = pwoa_cli.load(tmp_path / "run/model.safetensors", arch=arch)
    assert again(x[:3]).shape == (3, 4)
    if name == "KAN":  # it has no filters
        assert "no weights that could be pruned (filter)" in refused(file, arch=arch, structure="filter")


FROZEN_AND_TIED = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mu = nn.Parameter(nn.init.constant_(__import__("torch").empty(1), 0.13), requires_grad=False)
        self.flat, self.first, self.relu = nn.Flatten(), nn.Linear(64, 32), nn.ReLU()
        self.a, self.b, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.b.weight = self.a.weight
    def forward(self, x):
        x = self.relu(self.first(self.flat(x - self.mu)))
        return self.last(self.relu(self.b(self.relu(self.a(x)))))
def net():
    return Net()
"""


def test_frozen_parameters_stay_and_tied_weights_are_not_dead(tmp_path):
    (tmp_path / "own.py").write_text(FROZEN_AND_TIED)
    names = {}
    exec(FROZEN_AND_TIED, names)
    model = small.save(small.learn(names["net"]()), tmp_path / "own.pt")
    made, _ = run_in(tmp_path / "run", model, arch=f"{tmp_path}/own.py:net")
    assert not any("never reach" in note for note in made["notes"])
    assert torch.equal(sparse.load(tmp_path / "run/model.safetensors")["mu"],
                       torch.load(model, weights_only=True)["mu"])


VIEWED = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(128, 4)
    def forward(self, x):
        return self.fc(self.conv(x).relu().view(x.size(0), -1))
"""


def test_a_network_with_view_on_a_feature_map_is_pruned(tmp_path):
    Path("viewed.py").write_text(VIEWED)
    Path("flat.py").write_text(VIEWED.replace("view(x.size(0), -1)", "flatten(1)"))  # learns from any layout
    file = small.save(small.learn(build("flat.py:Net", {})), tmp_path / "viewed.pt")
    made, said = run_in(tmp_path / "run", file, arch="viewed.py:Net", sparsity=0.5)
    assert "memory layout: plain" in said
    assert made["sparsity"]["nonzero"] == made["sparsity"]["total"] // 2
    assert made["student"]["clean"]["accuracy"] > 0.8
    estimate = prune.time_to_fit(prepare(request(file, arch="viewed.py:Net"), say=lambda text: None))
    assert estimate.seconds > 0
