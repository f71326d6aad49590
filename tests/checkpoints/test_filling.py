"""A network of the user's is filled as its own load_state_dict judges; parametrised weights become plain."""
import pytest
import torch
from helpers.checkpoints import load, refused
from torch import nn
from torch.nn.utils import parametrize

from pwoa_cli.files import sparse
from pwoa_cli.networks.build import build

NETS = """
import warnings
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
def make(wrap, k):
    return nn.Sequential(wrap(nn.Conv2d(3, 4, 3, 2)), nn.ReLU(), wrap(nn.Conv2d(4, 6, 3)), nn.Flatten(),
                         nn.Linear(6, k))
class Half(nn.Module):
    def forward(self, w):
        return w / 2
def halved(m):
    parametrize.register_parametrization(m, "weight", Half())
    return m
def old_weight_norm(m):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        return weight_norm(m)
def orthogonal(m):
    return halved(m) if m.weight.ndim > 2 else parametrizations.orthogonal(m)
def no(num_classes=5): return make(lambda m: m, num_classes)
def wn(num_classes=5): return make(parametrizations.weight_norm, num_classes)
def frozen(num_classes=5):
    net = wn(num_classes)
    net[0].requires_grad_(False)
    return net
def wn_old(num_classes=5): return make(old_weight_norm, num_classes)
def sn(num_classes=5): return make(parametrizations.spectral_norm, num_classes)
def sn_old(num_classes=5): return make(spectral_norm, num_classes)
def own_formula(num_classes=5): return make(halved, num_classes)
def masked(num_classes=5): return make(lambda m: prune.random_unstructured(m, "weight", 0.5), num_classes)
def orth(num_classes=5):
    return nn.Sequential(nn.Flatten(), orthogonal(nn.Linear(147, 8)), nn.Linear(8, num_classes))
def lazy(num_classes=5):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))
class Quantised(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("scales", torch.ones(1))  # one a filter, once that is known, as torch's are
    def _load_from_state_dict(self, state, prefix, *rest):
        self.scales = state[prefix + "scales"].clone()
        super()._load_from_state_dict(state, prefix, *rest)
    def forward(self, x):
        step = self.scales.view(-1, 1, 1, 1) / 64
        return self._conv_forward(x, (self.weight / step).round() * step, self.bias)
def quantised(num_classes=5):
    return nn.Sequential(Quantised(3, 4, 3), nn.Flatten(), nn.Linear(100, num_classes))
class Strict(nn.Linear):
    def load_state_dict(self, state, strict=True):
        raise KeyError("version")
def strict(num_classes=5): return Strict(147, num_classes)
"""
PARAMETRISED = ["wn", "frozen", "wn_old", "sn", "sn_old", "own_formula", "masked", "orth"]


@pytest.fixture
def nets(tmp_path):
    """The functions of a user's file, by name, and how --arch names them."""
    (tmp_path / "nets.py").write_text(NETS)
    return lambda name: f"{tmp_path}/nets.py:{name}"


@pytest.mark.parametrize("name", PARAMETRISED)
def test_a_parametrised_network_gets_its_own_keys_and_pruned_files_load_again(nets, save, name):
    net, x = build(nets(name), {}), torch.rand(4, 3, 7, 7)
    with torch.no_grad():
        net.train()(x)  # moves the vectors of a spectral norm
        expected = net.eval()(x)
    loaded = load(save(net.state_dict()), arch=nets(name))
    assert loaded.num_classes == 5 and torch.allclose(loaded.model(x), expected, atol=1e-6)
    first = "1.weight" if name == "orth" else "0.weight"
    assert first in dict(loaded.model.net.named_parameters())
    assert not any(parametrize.is_parametrized(m) or m._forward_pre_hooks for m in loaded.model.modules())
    assert any("made plain" in note and first in note for note in loaded.notes)
    pruned = save({}).with_name("pruned.safetensors")
    sparse.save(loaded.model.net.state_dict(), pruned)
    assert torch.equal(load(pruned, arch=nets(name)).model(x), loaded.model(x))


@pytest.mark.parametrize(("written", "read"), [("wn", "wn_old"), ("wn", "no"), ("masked", "sn"),
                                               ("no", "wn")])
def test_files_of_another_parametrisation_are_folded_as_before(nets, save, written, read):
    net, x = build(nets(written), {}).eval(), torch.rand(4, 3, 7, 7)
    loaded = load(save(net.state_dict()), arch=nets(read))
    assert torch.allclose(loaded.model(x), net(x), atol=1e-6)


def test_lazy_modules_are_made_by_their_file(nets, save):
    net, x = build(nets("lazy"), {}), torch.rand(4, 3, 7, 7)
    net(x)
    loaded = load(save(net.state_dict()), arch=nets("lazy"))
    assert loaded.num_classes == 5 and torch.equal(loaded.model(x), net.eval()(x))
    state = {k: t for k, t in net.state_dict().items() if not k.startswith("3.")}
    assert "2 tensors missing (3.weight, 3.bias)" in refused(save(state), arch=nets("lazy"))


def test_what_the_network_s_own_code_takes_is_taken(nets, save):
    net = build(nets("quantised"), {})
    state = net.state_dict() | {"0.scales": torch.ones(4)}
    loaded = load(save(state), arch=nets("quantised"))
    assert loaded.model.net[0].scales.shape == (4,) and loaded.num_classes == 5


def test_what_the_network_s_own_code_refuses_is_said(nets, save):
    state = nn.Linear(147, 5).state_dict()
    assert "its load_state_dict raises KeyError: 'version'" in refused(save(state), arch=nets("strict"))


@pytest.mark.parametrize(("length", "said"), [(3000, "a tensor's name has 3000 characters"),
                                              (190, "3 tensors too many")])
def test_names_of_a_damaged_file_do_not_fill_a_page(save, length, said):
    state = build("lenet5", {}).state_dict() | {f"{i}{'[' * (length - 1)}": torch.ones(2) for i in range(3)}
    message = refused(save(state), arch="lenet5")
    assert said in message and len(message) < 600
