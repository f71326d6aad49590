"""The copy in bfloat16 against layers computed by hand, and each model that must not be searched on one."""
import pytest
import torch
from helpers.attack_checks import linear, samples
from helpers.odd_networks import Plant, Viewed, images, pooled, with_statistics
from helpers.small_models import lenet, resnet
from torch import nn

from pwoa_cli.attacks import reduced
from pwoa_cli.attacks.base import frozen
from pwoa_cli.attacks.bounded import Bounded
from pwoa_cli.attacks.quick import gradient
from pwoa_cli.networks.build import Normalized


@pytest.fixture(autouse=True)
def able(monkeypatch):
    """torch multiplies bfloat16 on every CPU, slowly where there are no instructions."""
    monkeypatch.setattr(reduced, "multiplies_bf16", lambda device: True)


class Untraced(Viewed):
    """`view` on a feature map, and a branch that torch.fx cannot follow."""

    def forward(self, x):
        return super().forward(x if len(x) else x)


NETWORKS = {"lenet": (lenet, 1, 8), "pools": (pooled, 3, 24), "view": (Viewed, 2, 12),
            "residual": (lambda: with_statistics(resnet()), 3, 8), "view, untraced": (Untraced, 2, 12),
            "few channels inside": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3),
                                                          nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)), 3, 8),
            "normalised": (lambda: Normalized(lenet(), [0.2], [0.3], num_classes=4), 1, 8)}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("bound", [None, 3])
def test_the_copy_rounds_and_is_the_model_but_for_that(kind, bound):
    make, channels, side = NETWORKS[kind]
    torch.manual_seed(0)
    model, x = make().eval(), images(8, channels, side, torch.float32)
    model = Bounded(model, bound) if bound else model
    copied = reduced.reduced(model, x)
    ours, theirs = copied(x), model(x)
    assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
    assert (ours - theirs).abs().max() <= reduced.LOGITS * theirs.abs().max()
    assert (gradient(copied, x) - gradient(model, x)).norm() <= reduced.GRADIENTS * gradient(model, x).norm()
    assert not any(p.requires_grad for p in copied.parameters())


def test_the_ends_are_exact():
    """By hand: float32, rounded to bfloat16, a product of bfloat16, float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
                        nn.Linear(8, 4))
    x, first, inner, last = samples(5), net[1], net[3], net[5]
    rounded = first(x.flatten(1)).bfloat16().relu()
    rounded = nn.functional.linear(rounded, inner.weight.bfloat16(), inner.bias.bfloat16()).relu()
    assert torch.equal(reduced.reduced(net, x)(x), last(rounded.float()))


def test_a_single_layer_is_exact():
    model, x = linear(classes=4), samples(5)
    assert torch.equal(reduced.reduced(model, x)(x), model(x))


def test_a_copy_keeps_bound_and_meter():
    model, x = Bounded(lenet().eval(), 3), images(8, 1, 8, torch.float32)
    copied = reduced.reduced(model, x)
    before = model.meter.forwards
    copied(x)
    assert copied.batch_size == 3 and copied.meter is model.meter and model.meter.forwards == before + 8


def test_a_bounded_model_has_one_copy_for_all_searches():
    model, x = Bounded(lenet().eval(), 3), images(8, 1, 8, torch.float32)
    assert reduced.reduced(model, x) is reduced.reduced(model, x.flip(0)) is not None
    model.batch_size = 2  # memory ran out
    assert reduced.reduced(model, x).batch_size == 2


def test_channels_last_unless_the_network_refuses_it():
    x = images(8, 2, 12, torch.float32)
    torch.manual_seed(0)
    assert reduced.reduced(Viewed(), x).layout is torch.channels_last  # `quick` made it a reshape
    assert reduced.reduced(Untraced(), x).layout is torch.contiguous_format


@pytest.mark.parametrize("fault", ["no gradient", "nan", "cannot be copied"])
def test_a_model_without_such_a_copy_has_none(fault):
    torch.manual_seed(0)
    assert reduced.reduced(Plant(fault), images(8, 1, 8, torch.float32)) is None


class Steep(nn.Module):
    """Logits that a rounded product turns round: the difference of two large, nearly equal ones."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        hidden = self.first(x.flatten(1))
        return self.last(self.inner(1000 + hidden) - self.inner(torch.full_like(hidden, 1000)))


def test_a_model_that_lives_on_its_last_digits_has_no_copy():
    torch.manual_seed(0)
    assert reduced.reduced(Steep(), images(8, 1, 8, torch.float32)) is None


@pytest.mark.parametrize("told", [False, None])
def test_a_device_without_bfloat16_has_no_copy(monkeypatch, told):
    monkeypatch.setattr(reduced, "multiplies_bf16", lambda device: told)
    assert reduced.reduced(lenet(), images(8, 1, 8, torch.float32)) is None


def test_the_model_stays_as_it_was():
    model, x = with_statistics(resnet()).train(), images(8, 3, 8, torch.float32)
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    copied = reduced.reduced(model, x)
    assert not any(part.training for part in copied.modules()) and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state()) and not any(p._forward_pre_hooks for p in model.modules())
    assert all(p.requires_grad and p.grad is None and p.is_contiguous() for p in model.parameters())
    with frozen(model):
        assert all(part.__class__ is not reduced._Exact for part in model.modules())
