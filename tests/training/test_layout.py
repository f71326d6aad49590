"""The memory layout of a training falls back by itself."""
from dataclasses import replace

import pytest
import torch
from helpers.plans import make_plan
from torch import nn
from torch.nn import functional as F

from pwoa_cli.errors import InputError
from pwoa_cli.training import layout


class Net(nn.Module):
    """For images 1x8x8. Args: forward: (network, features (B, 4, 8, 8)) -> features (B, 256)."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.same = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.tail = nn.Linear(256, 10), forward

    def forward(self, x):
        return self.head(self.tail(self, self.conv(x).relu()))


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, z):
        return z.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient.view(-1).view(gradient.shape)  # not in channels_last


class Cube(Net):
    def forward(self, x):
        return super().forward(F.conv3d(x[:, None], self.kernel, padding=1)[:, 0])

    def __init__(self, forward):
        super().__init__(forward)
        self.kernel = nn.Parameter(torch.rand(1, 1, 3, 3, 3))


def of_eight(_net, z):
    return z.reshape(len(z) // 8, 8, 256).flatten(0, 1) if len(z) % 8 == 0 else z.missing


def of_training(net, z):
    return z.flatten(1) if not net.training else {"features": z}["feature"]


def first(net):
    plan, _ = make_plan()
    return layout.fastest(replace(plan, teacher=net), net, where="net.pt")


@pytest.mark.parametrize(("forward", "expected"), [
    (lambda _net, z: z.flatten(1), torch.channels_last),
    (lambda _net, z: z.view(len(z), -1), torch.contiguous_format),
    (lambda _net, z: z.permute(0, 2, 3, 1).view(len(z), -1), torch.channels_last),
    (lambda net, z: net.same(Backwards.apply(z)).flatten(1), torch.contiguous_format),
    (of_eight, torch.channels_last)])
def test_the_fastest_layout_that_runs_is_taken(forward, expected):
    (plan, _), net = make_plan(), Net(forward).eval()
    plan = replace(plan, teacher=net)
    before = {k: t.clone() for k, t in net.state_dict().items()}
    state = torch.get_rng_state()
    assert layout.fastest(plan, net, where="net.pt") is expected
    assert not net.training and all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and torch.equal(state, torch.get_rng_state())


def test_convolutions_of_volumes_stay_as_they_are():
    assert first(Cube(lambda _net, z: z.flatten(1))) is torch.contiguous_format


def test_a_teacher_that_needs_the_plain_layout_gets_it():
    (plan, _), net = make_plan(), Net(lambda _net, z: z.flatten(1))
    plan = replace(plan, teacher=Net(lambda _net, z: z.view(len(z), -1)))
    assert layout.fastest(plan, net, where="net.pt") is torch.contiguous_format


def test_a_forward_that_fails_in_training_mode_is_refused():
    with pytest.raises(InputError) as caught:
        first(Net(of_training).eval())
    assert caught.value.message == ("net.pt cannot be trained on images (1, 8, 8): in training mode it "
                                    "raises KeyError: 'feature'.")
    assert "net.train()" in caught.value.hint
