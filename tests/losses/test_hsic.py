"""nHSIC against a slow loop, gradcheck, closed forms; published figures: training/test_shared_trajectory."""
import numpy as np
import pytest
import torch

from pwoa_cli.losses import hsic


def slow_nhsic(a, b, *, kernel_a, kernel_b):
    """tr(R_a R_b) entry by entry in NumPy, with explicit inverses as printed in the paper."""
    m = len(a)

    def normal(points, kernel):
        k = np.array([[kernel(p, q) for q in points] for p in points])
        k = k @ (np.eye(m) - 1 / m)
        return k @ np.linalg.inv(k + 1e-5 * m * np.eye(m))

    return np.trace(normal(a, kernel_a) @ normal(b, kernel_b))


def gaussian(sigma, d):
    return lambda p, q: np.exp(-((p - q) ** 2).sum() / (2 * sigma**2 * d))


def test_bottleneck_equals_the_slow_loop():
    rng = np.random.default_rng(0)
    x, y = rng.random((12, 1, 3, 3)), np.arange(12) % 3
    hidden = [rng.standard_normal((12, 2, 2, 2)), rng.standard_normal((12, 5))]
    got_x, got_y = hsic.bottleneck(torch.tensor(x), torch.tensor(y), [torch.tensor(z) for z in hidden],
                                   num_classes=3, sigma=0.8)
    for j, z in enumerate(hidden):
        flat = z.reshape(12, -1)
        of_z = gaussian(0.8, flat.shape[1])
        want_x = slow_nhsic(x.reshape(12, 9), flat, kernel_a=gaussian(0.8, 9), kernel_b=of_z)
        want_y = slow_nhsic(np.eye(3)[y], flat, kernel_a=np.dot, kernel_b=of_z)
        assert got_x[j].item() == pytest.approx(want_x, abs=1e-8)
        assert got_y[j].item() == pytest.approx(want_y, abs=1e-8)


def test_soft_labels_equal_the_slow_loop_and_one_hot_ones_are_the_labels():
    rng = np.random.default_rng(1)
    x, y, z = rng.random((10, 4)), np.arange(10) % 3, rng.standard_normal((10, 5))
    soft = rng.dirichlet(np.ones(3), 10)
    inputs, hidden = torch.tensor(x), [torch.tensor(z)]
    _, got = hsic.bottleneck(inputs, torch.tensor(soft), hidden, num_classes=3, sigma=0.8)
    want = slow_nhsic(soft, z, kernel_a=np.dot, kernel_b=gaussian(0.8, 5))
    assert got.item() == pytest.approx(want, abs=1e-8)
    hard, hot = (hsic.bottleneck(inputs, labels, hidden, num_classes=3, sigma=0.8)[1]
                 for labels in (torch.tensor(y), torch.tensor(np.eye(3)[y])))
    assert torch.equal(hard, hot)


def test_resolvent_of_a_diagonal_kernel_is_known():
    """K~ has eigenvalues l on the space orthogonal to 1: R has l / (l + eps m) there, and 0 along 1."""
    m, scale = 6, 0.3
    r = hsic.resolvent(scale * torch.eye(m, dtype=torch.float64))
    want = scale / (scale + 1e-5 * m) * (torch.eye(m, dtype=torch.float64) - 1 / m)
    assert torch.allclose(r, want, atol=1e-12)


def test_gradcheck_in_float64():
    torch.manual_seed(0)
    x, y = torch.rand(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    z1 = torch.randn(6, 2, 2, dtype=torch.float64, requires_grad=True)
    z2 = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: torch.cat(hsic.bottleneck(x, y, [a, b], num_classes=3, sigma=0.7)), (z1, z2))


def test_channels_last_gives_the_same_kernel():
    z = torch.randn(8, 4, 5, 5)
    both = [hsic.gaussian_kernel(t, sigma=5.0) for t in (z, z.to(memory_format=torch.channels_last))]
    assert torch.allclose(*both, atol=1e-6)


def test_autocast_computes_in_float32():
    z = torch.randn(8, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hsic.gaussian_kernel(z, sigma=5.0)
    assert inside.dtype == torch.float32 and torch.equal(inside, hsic.gaussian_kernel(z, sigma=5.0))
    assert hsic.gaussian_kernel(z.bfloat16(), sigma=5.0).dtype == torch.float32


def test_non_finite_features_show():
    z = torch.randn(4, 3)
    z[1, 1] = float("nan")
    values = hsic.bottleneck(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]), [z], num_classes=2, sigma=5.0)
    assert not any(torch.isfinite(v).any() for v in values)


@pytest.mark.parametrize("batch", [1, 5])
def test_unequal_or_single_batches_are_refused(batch):
    with pytest.raises(ValueError, match="equal batches of at least 2"):
        hsic.bottleneck(torch.rand(batch, 3), torch.zeros(batch, dtype=torch.long), [torch.rand(1, 3)],
                        num_classes=2, sigma=5.0)
