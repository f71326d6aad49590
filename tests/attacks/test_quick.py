"""The quick copy against its model in float64, and each model that must not be copied."""
import pytest
import torch
from helpers.odd_networks import Plant, Several, Viewed, images, pooled, with_statistics
from helpers.small_models import lenet, resnet
from torch import nn

from pwoa_cli.attacks import quick
from pwoa_cli.attacks.bounded import Bounded
from pwoa_cli.networks.build import Normalized
from pwoa_cli.networks.families.small import LeNet

COPIED = {  # name: (network, channels, side)
    "lenet": (lenet, 1, 8),
    "pools": (pooled, 3, 24),
    "residual": (lambda: with_statistics(resnet()), 3, 8),
    "functions and view": (Viewed, 2, 12),
    "stride": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(),
                                     nn.Linear(144, 5)), 1, 13),
    "no square kernel": (lambda: nn.Sequential(nn.Conv2d(2, 3, (3, 5), padding=(0, 1), bias=False),
                                               nn.Flatten(), nn.Linear(3 * 7 * 7, 4)), 2, 9),
    "normalised": (lambda: Normalized(lenet(), [0.2], [0.3], num_classes=4), 1, 8),
    "several outputs": (lambda: Normalized(Several(), [0.5, 0.4], [0.2, 0.3], num_classes=5), 2, 12),
}


def gradient(model, x):
    """Of a logit picked by the sample, for x."""
    x = x.clone().requires_grad_()
    logits = model(x)
    picked = logits[torch.arange(len(x)), torch.arange(len(x)) % logits.shape[1]]
    return torch.autograd.grad(picked.sum(), x)[0]


@pytest.mark.parametrize("kind", COPIED)
@pytest.mark.parametrize("bound", [None, 3])
def test_the_copy_has_equal_logits_and_gradients(kind, bound):
    make, channels, side = COPIED[kind]
    torch.manual_seed(0)
    model, x = make().double().eval(), images(8, channels, side)
    if bound:
        model = Bounded(model, bound)
        copied = quick.quick(model, x)
        assert isinstance(copied, Bounded) and copied.model is not model.model and copied.batch_size == bound
        ours, theirs = copied.model, model.model
    else:
        ours, theirs = quick.quick(model, x), model
        assert ours is not theirs
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient(ours, x), gradient(theirs, x), atol=1e-12, rtol=1e-10)
    assert (all(p.requires_grad for p in model.parameters())
            and not any(p.requires_grad for p in ours.parameters()))


def test_pools_come_first_and_images_get_the_cheap_gradient():
    torch.manual_seed(0)
    copied = quick.quick(LeNet(size=8, widths=(6, 8), hidden=16, num_classes=4),
                         images(8, 1, 8, torch.float32))
    order = [type(copied.get_submodule(n.target)).__name__ for n in copied.graph.nodes
             if n.op == "call_module"]
    assert order == ["_FirstConv", "MaxPool2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU", "Flatten", "Linear",
                     "ReLU", "Linear"]


FAULTS = ("other for a trace", "branch on values", "hidden gradient", "noise", "batch", "no gradient",
          "calls", "nan", "cannot be copied")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_a_copy_would_change_is_used_itself(fault):
    torch.manual_seed(0)
    model, x = Plant(fault), images(8, 1, 8, torch.float32)
    assert quick.quick(model, x) is model
    wrapped = Bounded(model, 4)
    assert quick.quick(wrapped, x) is wrapped


def test_a_healthy_plant_is_copied():
    model = Plant(None)
    assert quick.quick(model, images(8, 1, 8, torch.float32)) is not model


@pytest.mark.parametrize("fault,answer", [
    (None, True), ("noise", False), ("calls", False), ("batch", False), ("nan", False)])
def test_steady(fault, answer):
    torch.manual_seed(0)
    model = Plant(fault)
    before = torch.get_rng_state()
    assert quick.steady(model, images(8, 1, 8, torch.float32)) is answer
    assert torch.equal(before, torch.get_rng_state())


def test_another_device_uses_the_model_itself():
    model = lenet()
    assert quick.quick(model, torch.empty(2, 1, 8, 8, device="meta")) is model


def test_the_model_stays_as_it_was():
    model = with_statistics(resnet()).train()
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    copied = quick.quick(model, images(8, 3, 8, torch.float32))
    assert not copied.training and not any(part.training for part in copied.modules())
    assert (all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
            and torch.equal(rng, torch.get_rng_state()))
    assert all(part.training for part in model.modules())
    assert all(p.requires_grad and p.grad is None and p.is_contiguous() for p in model.parameters())


def test_a_convolution_with_a_hook_keeps_its_class_and_its_hook():
    model, seen = lenet(), []
    model.conv1.register_forward_hook(lambda *_: seen.append(1))
    copied = quick.quick(model, images(8, 1, 8, torch.float32))
    seen.clear()
    copied(images(2, 1, 8, torch.float32))
    assert seen == [1]
