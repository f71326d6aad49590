"""Noise, mixing and hard augmentation against slow loops, closed forms and torchvision."""
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from pwoa_cli.errors import InputError
from pwoa_cli.training import augmentation


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_of(kinds, *, x, seed=3, **options):
    return augmentation.add_noise(x, scales=kinds, generator=rng(seed), **options) - x


# --- noise --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", augmentation.NOISES)
@pytest.mark.parametrize("shape", [(4, 1, 5, 5), (1, 3, 9, 4)])
def test_noise_stays_in_range_and_repeats(kind, shape):
    x = torch.rand(shape, generator=rng())
    a, b = (augmentation.add_noise(x, scales={kind: 0.1}, generator=rng(3)) for _ in range(2))
    alone = kind == "toward" and len(x) == 1  # no other image to go towards
    assert torch.equal(a, b) and a.min() >= 0 and a.max() <= 1 and torch.equal(a, x) == alone
    if kind != "gaussian":
        assert (a - x).abs().max() <= 0.1 + 1e-6
    assert torch.equal(augmentation.add_noise(x, scales={kind: 0.0}, generator=rng(3)), x)


def test_no_noise_is_the_input_itself():
    x = torch.rand(2, 1, 4, 4)
    assert augmentation.add_noise(x, scales={}, generator=rng(), clean=0.5) is x


def test_each_kind_has_its_distribution():
    x = torch.full((64, 1, 32, 32), 0.5)
    assert torch.allclose(noise_of({"sign": 0.1}, x=x).abs(), torch.tensor(0.1))
    uniform = noise_of({"uniform": 0.1}, x=x)
    assert uniform.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert abs(uniform.mean().item()) < 1e-3
    deviations = noise_of({"gaussian": 0.1}, x=x).std((1, 2, 3))
    assert deviations.min() < 0.02 and 0.08 < deviations.max() < 0.11
    assert deviations.mean().item() == pytest.approx(0.05, abs=0.01)


def test_toward_goes_to_another_image_of_the_batch_and_no_further():
    x = torch.rand(5, 3, 4, 4, generator=rng())
    moved = augmentation.add_noise(x, scales={"toward": 0.1}, generator=rng(2))
    for image, got in zip(x, moved, strict=True):
        want = [image + (other - image).clamp(-0.1, 0.1) for other in x]
        assert any(torch.allclose(got, w) for w in want)
    assert (moved != x).flatten(1).any(1).sum() >= 3  # a permutation may leave an image with itself
    permuted = augmentation.add_noise(x, scales={"toward": 1.0}, generator=rng(2))
    assert torch.allclose(permuted.sum(0), x.sum(0))  # it only permutes them


def test_blocks_are_constant_on_squares():
    x, sides = torch.full((2, 1, 8, 8), 0.5), set()
    for seed in range(12):
        n = noise_of({"blocks": 0.1}, x=x, seed=seed)
        side = max(s for s in (1, 2, 4)
                   if torch.equal(n, n[..., ::s, ::s].repeat_interleave(s, 2).repeat_interleave(s, 3)))
        sides.add(side)
        assert torch.allclose(n.abs(), torch.tensor(0.1))
    assert sides == {1, 2, 4}


def test_lowpass_noise_is_bilinear_and_reaches_its_scale():
    """Between grid points second differences along a row vanish: 3/4, 7/8 or 15/16 of them, of white noise
    none."""
    x, kinked = torch.full((8, 3, 33, 33), 0.5), set()
    for seed in range(12):
        n = noise_of({"lowpass": 0.1}, x=x, seed=seed)
        assert torch.allclose(n.abs().amax((1, 2, 3)), torch.tensor(0.1), atol=1e-6)
        kinked.add(round(31 * (n.diff(n=2).abs() > 1e-6).float().mean().item()))
    assert kinked == {1, 3, 7}  # inner points of grids of 3, 5 and 9
    assert (noise_of({"uniform": 0.1}, x=x).diff(n=2).abs() < 1e-6).float().mean() < 0.01


def test_a_mixture_draws_one_kind_for_each_image():
    x = torch.full((200, 1, 6, 6), 0.5)
    n = noise_of({"sign": 0.2, "uniform": 0.1, "blocks": 0.05}, x=x)
    largest = n.abs().amax((1, 2, 3))
    sign, blocks = (torch.isclose(largest, torch.tensor(v)) for v in (0.2, 0.05))
    assert (torch.allclose(n[sign].abs(), torch.tensor(0.2))
            and torch.allclose(n[blocks].abs(), torch.tensor(0.05)))
    assert (largest[~sign & ~blocks] < 0.1).all()
    assert all(45 <= int(some.sum()) <= 90 for some in (sign, blocks, ~sign & ~blocks))


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.04, 0), (0.3, 3), (1.0, 10)])
def test_a_fraction_of_the_batch_stays_clean(fraction, count):
    x = torch.full((10, 1, 4, 4), 0.5)
    touched = noise_of({"sign": 0.1}, x=x, clean=fraction).flatten(1).any(1)
    assert touched.tolist() == [False] * count + [True] * (10 - count)


# --- mixing -------------------------------------------------------------------------------------------------

def test_cutmix_pastes_one_box():
    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16).clone()
    mixed, partner, own = augmentation.cutmix(x, generator=rng())
    for i in range(8):
        foreign = mixed[i, 0] != i
        rows, columns = foreign.any(1), foreign.any(0)
        assert torch.equal(foreign, rows[:, None] & columns[None])  # a rectangle, or nothing
        assert len(mixed[i].unique()) <= 2
        assert (~foreign).float().mean() == pytest.approx(own[i].item(), abs=1e-6) or partner[i] == i
        assert set(mixed[i].unique().tolist()) <= {i, partner[i].item()}
    assert not torch.equal(mixed, x)


def test_mixup_is_the_weighted_sum_of_two_images():
    x = torch.rand(6, 3, 4, 4, generator=rng(1))
    (mixed, partner, own), draw = augmentation.mixup(x, generator=rng()), rng()
    weight, other = torch.rand((6, 1, 1, 1), generator=draw), torch.randperm(6, generator=draw)
    for i in range(6):
        assert torch.allclose(mixed[i], weight[i] * x[i] + (1 - weight[i]) * x[other[i]], atol=1e-6)
    assert torch.equal(partner, other) and torch.equal(own, weight.flatten())
    assert mixed.min() >= 0 and mixed.max() <= 1 and not torch.equal(mixed, x)


@pytest.mark.parametrize("way", [augmentation.cutmix, augmentation.mixup])
def test_soft_labels_are_what_the_same_mixing_makes_of_images_of_one_hot_labels(way):
    """An image that is 1 in the channel of its class and 0 in the others: the mean of its mix over the pixels
    is the share of each class."""
    labels = torch.tensor([0, 2, 1, 2, 0])
    x = torch.nn.functional.one_hot(labels, 4).float()[:, :, None, None].expand(-1, -1, 6, 5).clone()
    mixed = way(x, generator=rng(3))
    found = augmentation.soft_labels(mixed, labels, num_classes=4)
    assert torch.allclose(found, mixed.x.mean((2, 3)), atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(5)) and (found > 0).sum() > 5


# --- hard augmentation --------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (3, 3, 32, 32), (8, 3, 12, 9)])
def test_hard_augmentation_repeats_and_stays_in_range(shape):
    x = torch.rand(shape, generator=rng())
    a, b = (augmentation.augment(x, "hard", rng(1)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == x.shape and a.dtype == x.dtype and a.min() >= 0 and a.max() <= 1
    assert not torch.equal(a, x)


def test_crop_shift_equals_the_slow_loop():
    x, draws = torch.rand(40, 2, 16, 13, generator=rng()) + 0.01, torch.rand(6, 40, generator=rng(1))
    got, lost_rows = augmentation.crop_shift(x, draws), set()
    for i in range(40):
        u = draws[:, i].tolist()
        lines = int(u[0] * (1 + int(augmentation.SHIFT * 13)))
        rows = int(u[1] * (lines + 1))
        columns = lines - rows
        top, row = (int(v * (rows + 1)) for v in u[2:4])
        left, column = (int(v * (columns + 1)) for v in u[4:])
        high, wide, want = 16 - rows, 13 - columns, torch.zeros(2, 16, 13)
        want[:, row:row + high, column:column + wide] = x[i, :, top:top + high, left:left + wide]
        assert torch.equal(got[i], want)
        lost_rows.add(rows)
    assert lost_rows == {0, 1, 2, 3, 4}


def vision_change(image, which, strength, sign, along):
    """The same change by torchvision, for one image (C, H, W)."""
    between = [low + (high - low) * strength
               for low, high in (*augmentation.BLENDS, augmentation.SHEAR, augmentation.DEGREES)]
    direction = 1 if sign else -1
    if which < 4:
        changes = (vision.adjust_saturation, vision.adjust_brightness, vision.adjust_contrast,
                   vision.adjust_sharpness)
        return changes[which](image, between[which])
    if which == 4:
        return vision.autocontrast(image)
    if which == 6:
        return vision.rotate(image, direction * between[5], InterpolationMode.NEAREST)
    degrees = direction * math.degrees(math.atan(between[4]))
    shear = [degrees, 0.0] if along == "x" else [0.0, degrees]
    return vision.affine(image, 0.0, [0, 0], 1.0, shear, InterpolationMode.NEAREST)


@pytest.mark.parametrize("which", range(7))
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 20, 12)])
def test_changes_are_those_of_torchvision(which, shape):
    """Oracle: the published augmentation's own library. Nearest pixels may differ where a position lies
    between two."""
    for strength in (0.1, 0.9):
        # what is left of 0.2 and 0.6 is below a half
        for first_bit, along in ((0.2, "x"), (0.4, "y"), (0.6, "x"), (0.8, "y")):
            image = torch.rand(shape, generator=rng(which)) * 0.8 + 0.1
            draws = torch.tensor([[(which + 0.5) / 7], [strength], [first_bit]])
            got = augmentation.change(image[None], draws)[0]
            options = [vision_change(image, which, strength, sign, along) for sign in (False, True)]
            agreement = [(torch.isclose(got, want, atol=1e-5)).float().mean().item() for want in options]
            assert max(agreement) > (0.98 if which > 4 else 0.9999)
            if which > 4 and strength > 0.5:  # a degree moves no pixel of so small an image
                assert min(agreement) < 0.9 and not torch.equal(got, image)


def test_erasing_blackens_one_box_of_the_drawn_size():
    x, draws = torch.ones(60, 2, 32, 24), torch.rand(5, 60, generator=rng())
    got = augmentation.erase(x, draws)
    for i in range(60):
        gone = got[i, 0] == 0
        rows, columns = gone.any(1), gone.any(0)
        assert torch.equal(got[i, 0], got[i, 1]) and torch.equal(gone, rows[:, None] & columns[None])
        if draws[0, i] >= 0.5:
            assert not gone.any()
            continue
        area, aspect = 0.02 + 0.31 * draws[1, i].item(), 3.3 ** (2 * draws[2, i].item() - 1)
        assert abs(int(rows.sum()) - 32 * min(1, math.sqrt(area * aspect))) <= 1
        assert abs(int(columns.sum()) - 24 * min(1, math.sqrt(area / aspect))) <= 1


@pytest.mark.parametrize("batch", [1, 3, 300])
def test_augment_is_a_padded_crop_and_flip(batch):
    """Oracle: the slow loop over all 81 crops x 2 flips; each image must be one of them."""
    x = torch.rand(batch, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    out = augmentation.augment(x, "crop-flip", torch.Generator().manual_seed(1))
    assert torch.equal(out, augmentation.augment(x, "crop-flip", torch.Generator().manual_seed(1)))
    padded, seen = np.pad(x.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4))), set()
    for image, result in zip(padded, out.numpy(), strict=True):
        matches = {(top, left, flip) for top in range(9) for left in range(9) for flip in (1, -1)
                   if np.array_equal(image[:, top:top + 6, left:left + 5][:, :, ::flip], result)}
        assert matches
        seen |= matches
    if batch == 300:
        tops, lefts, flips = (set(column) for column in zip(*seen, strict=True))
        assert tops == lefts == set(range(9)) and flips == {1, -1}


def test_augment_none_and_unknown():
    x = torch.rand(2, 1, 4, 4)
    assert augmentation.augment(x, "none", torch.Generator()) is x
    with pytest.raises(InputError, match="Unknown augmentation 'flip', expected one of none, crop-flip"):
        augmentation.augment(x, "flip", torch.Generator())
