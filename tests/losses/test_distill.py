"""Every distance between student and teacher against its definition, closed forms and gradcheck."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pwoa_cli.losses import distill

SHAPES = [(5, 3, 4, 2), (5, 4, 3), (5, 6)]  # maps, tokens, units


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


# --- logits -------------------------------------------------------------------------------------------------

def test_kl_against_its_definition():
    s, t = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    p, q = F.softmax(t / 2, 1), F.softmax(s / 2, 1)
    want = (p * (p / q).log()).sum().item()
    assert distill.kl(s, t, temperature=2).item() == pytest.approx(want / 4, rel=1e-5)
    assert distill.kl(s, t, temperature=2, reduction="mean").item() == pytest.approx(want / 12, rel=1e-5)
    assert distill.kl(s, s, temperature=2).item() == pytest.approx(0, abs=1e-7)


def test_logit_error_equals_the_slow_loop_and_ignores_what_softmax_ignores():
    s, t = pair((5, 4))
    error = power = 0.0
    for a, b in zip(s.numpy(), t.numpy(), strict=True):
        error += (((a - a.mean()) - (b - b.mean())) ** 2).sum()
        power += ((b - b.mean()) ** 2).sum()
    assert distill.logit_error(s, t).item() == pytest.approx(error / power, rel=1e-12)
    shift = torch.randn(5, 1, dtype=torch.float64)
    assert distill.logit_error(s + shift, t - 2 * shift).item() == pytest.approx(error / power, rel=1e-9)
    assert distill.logit_error(1.1 * t, t).item() == pytest.approx(0.01, rel=1e-9)
    assert distill.logit_error(t, t).item() == 0.0
    assert torch.autograd.gradcheck(lambda a: distill.logit_error(a, t), (s.requires_grad_(),))


# --- hidden layers ------------------------------------------------------------------------------------------

def channels_first(z):
    """(B, C, P) of maps (B, C, ...), tokens (B, P, C) or units (B, C)."""
    return z.swapaxes(1, 2) if z.ndim == 3 else z.reshape(*z.shape[:2], -1)


def slow_relative(z, t):
    return ((z - t) ** 2).sum() / (t**2).sum()


def slow_channels(z, t):
    z, t = channels_first(z), channels_first(t)
    variances = [t[:, c].var() for c in range(t.shape[1])]
    floor = distill.CHANNEL_FLOOR * np.mean(variances)
    return np.mean([((z[:, c] - t[:, c]) ** 2).mean() / max(v, floor) for c, v in enumerate(variances)])


def slow_attention(z, t):
    def maps(a):
        if a.ndim == 2:
            return [row**2 / np.linalg.norm(row**2) for row in a]
        return [(image**2).mean(0) / np.linalg.norm((image**2).mean(0)) for image in channels_first(a)]

    return np.mean([((a - b) ** 2).sum() for a, b in zip(maps(z), maps(t), strict=True)])


def slow_cka(z, t):
    """Kornblith et al. 2019 in the feature space: |T'Z|^2 / (|Z'Z| |T'T|) of features around their mean."""
    z, t = (a.reshape(len(a), -1) - a.reshape(len(a), -1).mean(0) for a in (z, t))
    return 1 - np.linalg.norm(t.T @ z) ** 2 / (np.linalg.norm(z.T @ z) * np.linalg.norm(t.T @ t))


SLOW = {"relative": slow_relative, "channels": slow_channels, "attention": slow_attention, "cka": slow_cka}


@pytest.mark.parametrize("kind", distill.HIDDEN_LOSSES)
def test_hidden_errors_equal_the_slow_loops(kind):
    students, teachers = zip(*(pair(shape, seed) for seed, shape in enumerate(SHAPES)), strict=True)
    want = sum(SLOW[kind](z.numpy(), t.numpy()) for z, t in zip(students, teachers, strict=True))
    assert distill.hidden_error(students, teachers, kind=kind).item() == pytest.approx(want, rel=1e-10)
    assert distill.hidden_error(teachers, teachers, kind=kind).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", distill.HIDDEN_LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_errors_have_the_right_gradient(kind, shape):
    z, t = pair(shape)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: distill.hidden_error([a], [t], kind=kind), (z,))


@pytest.mark.parametrize("kind", distill.HIDDEN_LOSSES)
def test_hidden_errors_do_not_depend_on_the_layout(kind):
    z, t = (a.float() for a in pair((6, 3, 4, 4)))
    flat, last = (z.to(memory_format=m) for m in (torch.contiguous_format, torch.channels_last))
    want = distill.hidden_error([flat], [t], kind=kind).item()
    for teacher in (t, t.to(memory_format=torch.channels_last)):
        assert distill.hidden_error([last], [teacher], kind=kind).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("kind", distill.HIDDEN_LOSSES)
def test_silent_layers_give_finite_losses_and_gradients(kind):
    z = torch.zeros(4, 3, 2, 2, requires_grad=True)
    for teacher in (torch.zeros(4, 3, 2, 2), torch.rand(4, 3, 2, 2)):
        loss = distill.hidden_error([z], [teacher], kind=kind)
        gradient, = torch.autograd.grad(loss, z)
        assert loss.isfinite() and gradient.isfinite().all()


def test_hidden_error_is_relative_and_cka_blind_to_scale_and_rotation():
    t = [torch.randn(4, 2, 3), torch.randn(4, 5)]
    assert distill.hidden_error([1.1 * a for a in t], t).item() == pytest.approx(2 * 0.01, rel=1e-4)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    z, _ = pair((6, 5))
    assert distill.hidden_error([3 * z @ turn + 1], [z], kind="cka").item() == pytest.approx(0, abs=1e-12)


def test_a_channel_that_is_silent_in_the_teacher_cannot_outweigh_the_others():
    t = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    t[:, 0] = 0.0
    z = t.clone()
    z[:, 0] += 0.1
    want = 0.1**2 / (distill.CHANNEL_FLOOR * t.var((0, 2, 3), correction=0).mean()) / 4
    assert distill.hidden_error([z], [t], kind="channels").item() == pytest.approx(want.item(), rel=1e-9)


def test_attention_and_cka_take_layers_of_different_widths():
    z, t = torch.randn(4, 3, 5, 5), torch.randn(4, 7, 5, 5)
    assert all(distill.hidden_error([z], [t], kind=kind).isfinite() for kind in ("attention", "cka"))


# --- explanations -------------------------------------------------------------------------------------------

def test_the_map_of_a_pooled_linear_head_is_known():
    """a_c = w_kc / P, so the map sums to the logit without its bias."""
    z, head = torch.randn(3, 5, 2, 4, dtype=torch.float64, requires_grad=True), nn.Linear(5, 6).double()
    classes = torch.tensor([1, 5, 0])
    logits = head(z.mean((2, 3)))
    got = distill.class_map(logits, z, classes, differentiable=False)
    want = torch.einsum("bc,bchw->bhw", head.weight[classes] / 8, z).flatten(1)
    assert torch.allclose(got, want, atol=1e-12)
    assert torch.allclose(got.sum(1), logits.gather(1, classes[:, None])[:, 0] - head.bias[classes])


@pytest.mark.parametrize("shape", SHAPES)
def test_maps_of_any_head_equal_the_slow_loop(shape):
    """Behind a quadratic head y_k = sum_i w_ki z_i^2 gradients are 2 w_k z; their means are taken by hand."""
    z = pair(shape)[0].requires_grad_()
    w = torch.randn(7, z[0].numel(), dtype=torch.float64)
    classes = torch.tensor([0, 6, 3, 1, 1])
    got = distill.class_map(z.square().flatten(1) @ w.T, z, classes, differentiable=False)
    for i, k in enumerate(classes):
        slope = channels_first((2 * w[k].reshape(1, *shape[1:]) * z[i:i + 1]).detach().numpy())[0]
        image = channels_first(z[i:i + 1].detach().numpy())[0]
        want = slope[:, 0] * image[:, 0] if len(shape) == 2 else (slope.mean(1, keepdims=True) * image).sum(0)
        assert np.allclose(got[i].detach().numpy(), want, atol=1e-12)


def test_the_student_learns_through_its_map():
    """gradcheck through the gradient: of 1 - cos with respect to layers before and behind the hidden map."""
    x, want = torch.rand(3, 1, 5, 5, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    before, behind = torch.randn(4, 1, 3, 3, dtype=torch.float64), torch.randn(6, 36, dtype=torch.float64)

    def loss(before, behind):
        z = F.softplus(F.conv2d(x, before))
        logits = F.linear(torch.tanh(z).flatten(1), behind)
        found = distill.class_map(logits, z, torch.tensor([2, 0, 5]), differentiable=True)
        return distill.map_error(found, want)

    assert torch.autograd.gradcheck(loss, (before.requires_grad_(), behind.requires_grad_()))


def test_map_error_compares_directions():
    m = torch.randn(4, 9)
    assert distill.map_error(3 * m, m).item() == pytest.approx(0, abs=1e-6)
    assert distill.map_error(-m, m).item() == pytest.approx(2, abs=1e-6)
    assert distill.map_error(torch.zeros_like(m), m).item() == 1.0
