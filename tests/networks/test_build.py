"""Networks by name, and the normalisation inside them."""
import pytest
import torch
from torch import nn

from pwoa_cli.errors import InputError
from pwoa_cli.networks.build import Normalized, build, tried


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


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


class Small(nn.Module):
    def forward(self, x):
        if x.shape[-1] > 8:
            raise MemoryError
        return x


def test_what_is_not_the_network_s_fault_is_no_answer_of_it():
    assert tried(Fails(KeyError("out")), channels=3) == "KeyError: 'out'"
    assert tried(Small(), channels=3, sizes=[(64, 64), (8, 8)])[0].shape[-1] == 8  # the first was a guess
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):
        with pytest.raises(type(error)):
            tried(Fails(error), channels=3)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(48, 3)

    def forward(self, x):
        return self.head(self.flat(x)), x


@pytest.mark.parametrize("net", [nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), Several()])
@pytest.mark.parametrize("mean", [(), (0.1, 0.2, 0.3)])
def test_normalized_is_exported_with_a_free_batch(net, mean):
    model, x = Normalized(net, mean, mean, num_classes=3).eval(), torch.rand(4, 3, 4, 4)
    free = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b", min=1, max=64)},))
    for count in (1, 7):
        images = torch.rand(count, 3, 4, 4)
        assert torch.equal(free.module()(images), model(images))


def test_normalized_is_traced_by_fx():
    model, x = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (0.5,) * 3, (2.0,) * 3,
                          num_classes=3).eval(), torch.rand(4, 3, 4, 4)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x[:1]), model(x[:1]))
    assert not any(node.target in (len, getattr) for node in traced.graph.nodes)  # nothing asks for sizes


def test_images_are_tried_where_the_network_is():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 5))
    x, logits = tried(net, channels=3)
    assert x.is_meta and x.shape == (2, 3, 28, 28) and logits.shape == (2, 5)
    assert isinstance(tried(net, channels=3, sizes=[(8, 8)]), str)
