"""What the file counts as pruned is what the network multiplies, or it is refused with the cause: a table of
networks."""
from pathlib import Path

import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import refused, run_in
from torch import nn
from torch.nn import functional as F

import pwoa_cli
from pwoa_cli.files import sparse
from pwoa_cli.networks.build import build

NETS = '''
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

def around(conv, width):
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), conv,
                         nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                         nn.Linear(16 * width, 4))
def plain(): return around(nn.Conv2d(6, 8, 3), 8)
def depthwise(): return around(nn.Conv2d(6, 12, 3, groups=6), 12)
def weight_normed(): return around(parametrizations.weight_norm(nn.Conv2d(6, 8, 3)), 8)
def spectral(): return around(parametrizations.spectral_norm(nn.Conv2d(6, 8, 3)), 8)
def transposed(): return around(nn.ConvTranspose2d(6, 8, 2, 2), 8)
def transposed_in_groups(): return around(nn.ConvTranspose2d(6, 8, 3, 2, groups=2), 8)
class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)
def standardised(): return around(Standardised(6, 8, 3), 8)
class Binary(nn.Conv2d):
    def forward(self, x):
        sign = torch.where(self.weight >= 0, 1.0, -1.0) * 0.2
        return self._conv_forward(x, self.weight + (sign - self.weight).detach(), self.bias)
def binary(): return around(Binary(6, 8, 3), 8)
class Rounded(nn.Conv2d):
    def forward(self, x):
        fine = (self.weight * 128).round() / 128
        return self._conv_forward(x, self.weight + (fine - self.weight).detach(), self.bias)
def rounded(): return around(Rounded(6, 8, 3), 8)
class Scaled(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight * self.weight.square().mean().rsqrt() / 8, self.bias)
def scaled(): return around(Scaled(6, 8, 3), 8)
class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(64, 16)
        self.down, self.up = nn.Parameter(torch.rand(4, 64) / 8), nn.Parameter(torch.rand(16, 4) / 8)
        self.head = nn.Linear(16, 4)
    def forward(self, x):
        weight = self.base.weight + self.up @ self.down
        return self.head(F.linear(x.flatten(1), weight, self.base.bias).relu())
class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.one, self.two, self.head = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Linear(96, 4)
    def forward(self, x):
        h = self.one(self.conv(self.stem(x).relu())).relu()
        return self.head(F.adaptive_avg_pool2d(self.two(self.conv(h)).relu(), 4).flatten(1))
class Attention(nn.Module):
    def __init__(self, kdim=None):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 2, 2)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True, kdim=kdim, vdim=kdim)
        self.head = nn.Linear(128, 4)
    def forward(self, x):
        t = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((t + self.att(t, t, t, need_weights=False)[0]).flatten(1))
def transformer():
    class Net(Attention):
        def __init__(self):
            super().__init__()
            self.att = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        def forward(self, x):
            return self.head(self.att(self.stem(x).flatten(2).transpose(1, 2)).flatten(1))
    return Net()
class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(128, 4)
        self.where = nn.Parameter(torch.rand(16, 8))
    def forward(self, x):
        return self.head((self.stem(x).flatten(2).transpose(1, 2) + self.where).flatten(1))
class Relative(Attention):
    """Positions that layers compute from constants, added to the scores of attention."""
    def __init__(self):
        super().__init__()
        self.att = nn.Linear(8, 24)
        self.one, self.two = nn.Linear(2, 6), nn.Linear(6, 1)
        self.register_buffer("apart", torch.rand(16, 16, 2))
    def forward(self, x):
        q, k, v = self.att(self.stem(x).flatten(2).transpose(1, 2)).chunk(3, 2)
        bias = self.two(self.one(self.apart).relu())[..., 0]
        return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).flatten(1))
class Gated(Positions):
    def forward(self, x):
        return self.head((self.stem(x).flatten(2).transpose(1, 2) * self.where.sigmoid()).flatten(1))
class Spline(nn.Module):
    """Efficient KAN: two matrices a layer, the second stored with a scale of its own."""
    def __init__(self, inside, outside):
        super().__init__()
        self.base = nn.Parameter(torch.randn(outside, inside) / inside ** 0.5)
        self.spline = nn.Parameter(torch.randn(outside, inside, 5) * 0.1)
        self.scaler = nn.Parameter(torch.rand(outside, inside) + 0.5)
        self.register_buffer("centres", torch.linspace(-1, 1, 5))
    def forward(self, x):
        near = torch.exp(-4 * (x.unsqueeze(-1) - self.centres) ** 2).flatten(1)
        spline = (self.spline * self.scaler[..., None]).flatten(1)
        return F.linear(F.silu(x), self.base) + F.linear(near, spline)
def kan(): return nn.Sequential(nn.Flatten(), Spline(64, 12), Spline(12, 4))
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 4)
    def forward(self, x):
        return self.head(self.gru(x[:, 0])[0].mean(1))
class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(288, 4)
    def forward(self, x):
        return self.head(F.dropout(self.conv(x).relu(), 0.1).flatten(1))
class Counting(Dropped):
    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
    def forward(self, x):
        self.passes += 1
        return self.head(self.conv(x).relu().flatten(1))
'''
# what each is refused with, by structure; "" is pruned
CHANGED, WHOLE = "zeros in {} are no zeros in what the network multiplies", "no weights that could be pruned"
TABLE = {
    "plain": ("", ""), "depthwise": ("", ""), "weight_normed": ("", ""), "spectral": ("", ""),
    "transposed": ("", ""), "transposed_in_groups": ("", ""), "rounded": ("", ""), "scaled": ("", ""),
    "standardised": (CHANGED.format("3.weight"), ""), "binary": (CHANGED.format("3.weight"),) * 2,
    "LowRank": (CHANGED.format("base.weight"),) * 2, "Twice": ("", ""), "Attention": ("", ""),
    "transformer": ("", ""), "Relative": ("", ""),
    "Positions": ("", "reaches 32 weights alone: where (80% of the weights)"),
    "Gated": ("", "where (80% of the weights)"),
    "kan": ("", WHOLE + " (filter): 1.base, 1.spline, 1.scaler are of other layers"),
    "Recurrent": ("64 weights alone: gru.weight_ih_l0, gru.weight_hh_l0 (94.74% of the weights)", WHOLE),
    "Dropped": ("is random in eval mode: two passes on the same 8 samples differ",) * 2,
    "Counting": ("passes change with every pass in eval mode",) * 2}
LEFT_OUT = {"Positions": "where", "Gated": "where"}  # and said


@pytest.mark.parametrize(("structure", "which"), [("unstructured", 0), ("filter", 1)])
@pytest.mark.parametrize("name", TABLE)
def test_zeros_of_the_file_are_multiplied_or_the_cause_is_said(tmp_path, name, structure, which):
    Path("nets.py").write_text(NETS)
    arch = f"nets.py:{name}"
    torch.manual_seed(0)
    file = small.save(learned(build(arch, {})), tmp_path / "net.pt")
    if words := TABLE[name][which]:
        assert words in refused(file, arch=arch, structure=structure, sparsity=0.375)
        return
    made, said = run_in(tmp_path / "run", file, arch=arch, structure=structure, sparsity=0.375)
    path = tmp_path / "run/model.safetensors"
    rows = {row["name"]: row for row in made["sparsity"]["layers"]}
    factors = multiplied(pwoa_cli.load(path, arch=arch), torch.rand(3, 1, 8, 8))
    state = sparse.load(path)
    assert sum(row["total"] - row["nonzero"] for row in rows.values()) > 0.3 * made["sparsity"]["total"]
    for row in rows.values():
        zeros, shape = state[row["name"]] == 0, tuple(row["shape"])
        assert int(zeros.sum()) == row["total"] - row["nonzero"]
        mine = [f for f in factors if f.numel() == row["total"]]
        assert any(bool((f.reshape(shape)[zeros] == 0).all()) for f in mine), row["name"]
    if which == 0 and name in LEFT_OUT:
        assert LEFT_OUT[name] not in rows and f"{LEFT_OUT[name]} (" in said


def learned(net):
    """Trained for a second on the images of the small world."""
    x, y = small.images(256)
    x, y = torch.tensor(x)[..., 0][:, None].float() / 255, torch.tensor(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net.train()(x), y).backward()
        optimizer.step()
    return net.eval()


def multiplied(model, x):
    """All tensors that torch's products get in a pass: an oracle that asks neither names nor gradients."""
    class Seen(torch.overrides.TorchFunctionMode):
        tensors: list = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.tensors.extend(t for t in [*args, *(kwargs or {}).values()] if isinstance(t, torch.Tensor))
            return func(*args, **(kwargs or {}))

    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Seen() as seen, torch.no_grad():
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return seen.tensors


def test_filters_of_a_shared_layer_are_silent_behind_every_norm(tmp_path):
    Path("nets.py").write_text(NETS)
    torch.manual_seed(0)
    file = small.save(learned(build("nets.py:Twice", {})), tmp_path / "net.pt")
    run_in(tmp_path / "run", file, arch="nets.py:Twice", structure="filter", sparsity=0.4)
    state = sparse.load(tmp_path / "run/model.safetensors")
    gone = (state["conv.weight"].flatten(1) == 0).all(1)
    assert gone.any() and all((state[f"{norm}.{kind}"][gone] == 0).all()
                              for norm in ("one", "two") for kind in ("weight", "bias"))


def test_a_network_of_one_layer_has_nothing_to_prune_by_filter(tmp_path):
    Path("single.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), "
                                 "nn.Linear(64, 4))\n")
    file = small.save(small.learn(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), tmp_path / "one.pt")
    assert "its one layer gives the logits" in refused(file, arch="single.py:net", structure="filter")
    made, _ = run_in(tmp_path / "run", file, arch="single.py:net", sparsity=0.5)
    assert made["sparsity"]["nonzero"] == 128
