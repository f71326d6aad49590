"""Losses where features say nothing: finite, with finite gradients, which are autograd's where there are any
to check."""
import pytest
import torch
from torch.autograd import gradcheck

from pwoa_cli.losses import distill, hsic

SHAPE = (4, 3, 2, 2)


def features(kind, *, wide=True):
    """(4, 3, 2, 2): of a kernel of rank zero or one, with repeated rows, with a channel that never varies."""
    draw = torch.Generator().manual_seed(0)
    z = torch.rand(SHAPE, generator=draw, dtype=torch.double if wide else torch.float)
    changes = {"constant": lambda: z[:1].expand(SHAPE).clone(), "zero": lambda: z * 0,
               "two values": lambda: z[[0, 0, 0, 1]], "repeated": lambda: z[[0, 0, 1, 1]],
               "silent channel": lambda: torch.cat([z[:, :2], 0 * z[:, 2:]], 1), "one of 1e8": lambda: (
                   z.index_put((torch.tensor(0),) * 4, torch.tensor(1e8, dtype=z.dtype)))}
    return changes[kind]()


KINDS = ("constant", "zero", "two values", "repeated", "silent channel", "one of 1e8")


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 0, 0, 2], [0, 1, 2, 0]], ids=str)
@pytest.mark.parametrize("sigma", [1e-9, 1e-3, 5.0, 1e9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bottleneck_of_degenerate_kernels_is_finite(kind, sigma, labels):
    z = features(kind, wide=False).requires_grad_()
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    of_x, of_y = hsic.bottleneck(x, torch.tensor(labels), [z], num_classes=3, sigma=sigma)
    (of_x.sum() - of_y.sum()).backward()
    assert of_x.isfinite().all() and of_y.isfinite().all() and z.grad.isfinite().all()
    if kind in ("constant", "zero"):
        assert max(of_x.item(), of_y.item()) < 1e-12
    if len(set(labels)) == 1:
        assert of_y.item() < 1e-12


@pytest.mark.parametrize("kind", ["constant", "zero", "two values", "repeated", "silent channel"])
def test_gradients_of_the_bottleneck_at_degenerate_kernels(kind):
    """exp(-d) is smooth where two images agree, and so is R: K~ + eps m I never loses its rank."""
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    labels = torch.tensor([0, 0, 0, 2])
    assert gradcheck(lambda z: hsic.bottleneck(x, labels, [z], num_classes=3, sigma=5.0),
                     features(kind).requires_grad_(), eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("loss", distill.HIDDEN_LOSSES)
@pytest.mark.parametrize("of_student", KINDS)
@pytest.mark.parametrize("of_teacher", KINDS)
def test_distances_of_degenerate_layers_are_finite(loss, of_student, of_teacher):
    z = features(of_student, wide=False).requires_grad_()
    error = distill.hidden_error([z], [features(of_teacher, wide=False)], kind=loss)
    error.backward()
    assert error.isfinite() and z.grad.isfinite().all()


@pytest.mark.parametrize("loss", ["relative", "channels"])
@pytest.mark.parametrize("of_student", ["constant", "zero", "repeated"])
def test_gradients_of_distances_from_degenerate_layers(loss, of_student):
    teacher = features("silent channel")
    assert gradcheck(lambda z: distill.hidden_error([z], [teacher], kind=loss),
                     features(of_student).requires_grad_())


@pytest.mark.parametrize("student", [0.0, 1e4, 1e15, -1e15])
@pytest.mark.parametrize("teacher", [0.0, 1e4, 1e15, -1e15])
def test_answers_without_and_beyond_doubt_are_finite(student, teacher):
    """Equal logits, softmax of exactly 0 and 1."""
    s, t = (torch.tensor([[0.0, size, 0.0], [1.0, 0.0, -size]]) for size in (student, teacher))
    s.requires_grad_()
    for temperature in (1e-9, 1.0, 30.0, 1e9):
        error = distill.kl(s, t, temperature=temperature)
        gradient, = torch.autograd.grad(error, s)
        assert error.isfinite() and gradient.isfinite().all() and error >= -1e-6


def test_maps_that_are_zero_are_as_far_as_unrelated_ones():
    flat = torch.zeros(2, 4, requires_grad=True)
    for other in (torch.zeros(2, 4), torch.rand(2, 4)):
        error = distill.map_error(flat, other)
        error.backward()
        assert error.item() == 1 and flat.grad.isfinite().all()


def test_gradients_of_answers_without_doubt():
    t = torch.tensor([[0.0, 50.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.double)
    s = torch.zeros(2, 3, dtype=torch.double, requires_grad=True)
    assert gradcheck(lambda z: distill.logit_error(z, t), s)
