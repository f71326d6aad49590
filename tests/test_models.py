import pytest
import torch
from torch import nn

from pwoa_cli.errors import InputError
from pwoa_cli.models import Normalized, build, live_parameters


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_normalized_is_the_network_on_shifted_and_scaled_inputs():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(2, 3, 2, 2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(Normalized(net, mean, std)(x), net(by_hand))
    assert torch.equal(Normalized(net)(x), net(x))


def test_normalized_keeps_its_constants_out_of_the_state_dict():
    net = nn.Linear(2, 2)
    assert set(Normalized(net, (0.5,), (0.5,)).state_dict()) == {"net.weight", "net.bias"}


@pytest.mark.parametrize(("arch", "meant"), [("lenett5", "lenet5"), ("resent18", "resnet18"),
                                             ("cifar-resnet200", "cifar-resnet20")])
def test_unknown_arch_asks_did_you_mean(arch, meant):
    with pytest.raises(InputError, match=arch) as caught:
        build(arch, {})
    assert meant in caught.value.hint and caught.value.hint.count(f" {meant},") <= 1


def test_what_the_user_s_own_code_prints_is_not_a_result(tmp_path, capsys):
    code = "import torch\nprint('imported')\ndef net():\n    print('called')\n    return torch.nn.ReLU()\n"
    (tmp_path / "own.py").write_text(code)
    build(f"{tmp_path}/own.py:net", {})
    assert capsys.readouterr() == ("", "imported\ncalled\n")


class Unused(nn.Module):
    """A WideResNet of TRADES-like code in small: a second sub_block1 that forward never uses, and a frozen batch norm."""

    def __init__(self):
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())
        self.sub_block1 = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.block1(x).mean((2, 3)))


def test_live_parameters_leaves_out_what_forward_never_uses():
    net = Unused()
    used = {n for n, _ in net.named_parameters() if not n.startswith("sub_block1")}
    assert live_parameters(net, torch.rand(2, 1, 4, 4)) == used


def test_live_parameters_counts_frozen_ones_and_changes_nothing():
    net = Unused().train()
    net.block1[1].eval()
    net.fc.weight.requires_grad_(False)
    net.fc.bias.grad = torch.ones(3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        assert "fc.weight" in live_parameters(net, torch.rand(2, 1, 4, 4))
    assert net.training and net.sub_block1[1].training and not net.block1[1].training
    assert not net.fc.weight.requires_grad and net.fc.bias.requires_grad
    assert torch.equal(net.fc.bias.grad, torch.ones(3)) and net.fc.weight.grad is None
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
