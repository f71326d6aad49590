"""Images varied at random: noise, mixing, hard augmentation. What the teacher says there is what the student
learns there.

No input is moved along a gradient: none of this is an adversarial example. Every draw comes from the
generator that is passed in.
Legend: B images, C channels, H and W height and width; values in [0, 1].
"""
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pwoa_cli.errors import InputError

AUGMENTS = ("none", "crop-flip", "hard")
CROP_PADDING = 4  # He et al. 2016, section 4.2, and everyone since
# Strengths of Li & Spratling 2023 (IDBH, the mild set) for 32 x 32 pixels; lengths as fractions of the side
SHIFT = 10 / 32
BLENDS = ((0.1, 1.9), (0.5, 1.9), (0.5, 1.9), (0.1, 1.9))  # colour, brightness, contrast, sharpness
SHEAR = (0.05, 0.15)
DEGREES = (1, 10)
ERASED = (0.02, 0.33)  # Zhong et al. 2020: area, and the box's aspect ratio up to
ERASED_ASPECT = 3.3


# --- noise ---------------------------------------------------------------

def _sign(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, x.shape, generator=generator, device=x.device).mul(2).sub(1) * scale


def _side(low: int, high: int, generator: torch.Generator) -> int:
    """2^low .. 2^(high - 1). Shapes depend on it, so the host would wait for a GPU: there it draws by itself,
    from the same seed."""
    here = generator.device.type == "cpu"
    host = generator if here else torch.Generator().manual_seed(generator.initial_seed())
    return 2 ** int(torch.randint(low, high, (), generator=host))


def _blocks(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    side = _side(0, 3, generator)
    coarse = torch.randint(0, 2, (*x.shape[:2], *(-(-n // side) for n in x.shape[2:])), generator=generator,
                           device=x.device)
    fine = coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., : x.shape[2], : x.shape[3]]
    return (fine * 2 - 1) * scale


def _lowpass(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    side = _side(2, 5, generator)
    points = [-(-(n - 1) // side) + 1 for n in x.shape[2:]]
    coarse = torch.randn((*x.shape[:2], *points), generator=generator, device=x.device)
    fine = F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=True)
    return fine * (scale / fine.abs().amax((1, 2, 3), keepdim=True))


def _toward(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    other = x[torch.randperm(len(x), generator=generator, device=x.device)]
    return (other - x).clamp(-scale, scale)


def _uniform(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(x.shape, generator=generator, device=x.device) * 2 - 1) * scale


def _gaussian(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    deviation = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device) * scale
    return torch.randn(x.shape, generator=generator, device=x.device) * deviation


_NOISES: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "sign": _sign, "blocks": _blocks, "lowpass": _lowpass, "toward": _toward, "uniform": _uniform,
    "gaussian": _gaussian}
NOISES = tuple(_NOISES)


def add_noise(x: Tensor, *, scales: Mapping[str, float], generator: torch.Generator,
              clean: float = 0.0) -> Tensor:
    """Images (B, C, H, W) with random noise, clipped to [0, 1].

    "sign": every value +scale or -scale; "blocks": the same on squares of 1, 2 or 4 pixels (perturbations
    that matter are smooth); "lowpass": normal values every 4, 8 or 16 pixels, bilinear between them, each
    image's largest one is scale; "toward": every value moves towards that of another image of the batch, by
    scale at most (changes that matter look like other images; no gradient is asked for them); "uniform":
    U(-scale, scale); "gaussian": standard deviation of each image from U(0, scale). The size of squares and
    grids is drawn per batch.
    Args: scales: {kind: scale >= 0 in units of x}; of several kinds each image draws one, {} adds nothing.
        clean: fraction of the batch that stays as it is, its first round(clean B) images (a batch is in
        random order already).
    Raises: KeyError for a kind that is not one of NOISES.
    """
    if not scales:
        return x
    noises = [_NOISES[kind](x, scale, generator) for kind, scale in scales.items()]
    noise = noises[0]
    if len(noises) > 1:
        kind = torch.randint(len(noises), (len(x), 1, 1, 1), generator=generator, device=x.device)
        for number, other in enumerate(noises[1:], 1):
            noise = torch.where(kind == number, other, noise)
    noisy = (x + noise).clamp(0, 1)
    return torch.cat([x[:round(clean * len(x))], noisy[round(clean * len(x)):]]) if clean else noisy


# --- mixing ---------------------------------------------------------------

class Mixed(NamedTuple):
    """x: images (B, C, H, W), each mixed with that of its partner (B,); own: the share (B,) that is its own,
    in [0, 1]."""

    x: Tensor
    partner: Tensor
    own: Tensor


def _inside(size: int, centre: Tensor, side: Tensor) -> Tensor:
    """(B, size): which pixels lie in an interval with centre (B,) and length (B,), both as fractions of
    `size`."""
    pixels = torch.arange(size, device=centre.device) + 0.5
    return (pixels[None] - centre[:, None] * size).abs() < side[:, None] * size / 2


def cutmix(x: Tensor, *, generator: torch.Generator) -> Mixed:
    """Every image (B, C, H, W) with one box of its own from another image of the batch (Yun et al. 2019).

    The box's area fraction is 1 - lambda, lambda ~ U(0, 1), less what lies outside the image; the share of
    each image is that of its pixels.
    """
    draw = torch.rand((3, len(x)), generator=generator, device=x.device)
    side = (1 - draw[0]).sqrt()
    rows, columns = _inside(x.shape[2], draw[1], side), _inside(x.shape[3], draw[2], side)
    box = rows[:, None, :, None] & columns[:, None, None, :]
    partner = torch.randperm(len(x), generator=generator, device=x.device)
    return Mixed(torch.where(box, x[partner], x), partner, 1 - box.to(x).mean((1, 2, 3)))


def mixup(x: Tensor, *, generator: torch.Generator) -> Mixed:
    """lambda x_i + (1 - lambda) x_j, images (B, C, H, W), each with a lambda ~ U(0, 1) and a partner j of its
    own.

    Zhang et al. 2018, with Beta(1, 1).
    """
    weight = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device)
    partner = torch.randperm(len(x), generator=generator, device=x.device)
    return Mixed(torch.lerp(x[partner], x, weight), partner, weight.flatten())


def soft_labels(mixed: Mixed, labels: Tensor, *, num_classes: int) -> Tensor:
    """(B, K): how much of each mixed image is of each of K classes, rows with sum 1. Args: labels: (B,) int64
    of the images before they were mixed."""
    one_hot = F.one_hot(labels, num_classes).to(mixed.own)
    return torch.lerp(one_hot[mixed.partner], one_hot, mixed.own[:, None])


# --- hard augmentation ---------------------------------------------------------------

def hard(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Flip, crop and shift, one change of colour or shape, random erasing: of each image (B, C, H, W) by
    itself.

    After Li & Spratling 2023 ("Data augmentation alone can improve adversarial training", IDBH), their mild
    set without histogram equalisation. Draws are made on the generator's device, so a CPU generator gives the
    same ones everywhere.
    """
    def draw(numbers: int) -> Tensor:
        return torch.rand((numbers, len(x)), generator=generator, device=generator.device).to(x.device)

    flip, = draw(1)
    x = torch.where(_spread(flip < 0.5), x.flip(3), x)
    return erase(change(crop_shift(x, draw(6)), draw(3)), draw(5))


def _spread(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def crop_shift(x: Tensor, draws: Tensor) -> Tensor:
    """Each image without up to SHIFT of its lines in all, rows and columns together, moved at random over
    black.

    Args: draws: (6, B) from U(0, 1): lines that go, those of them that are rows, then for rows and columns
        where the crop begins and where it is put.
    """
    lines = (draws[0] * (1 + int(SHIFT * min(x.shape[2:])))).floor()
    rows = (draws[1] * (lines + 1)).floor()
    row, column = (_moved(size, lost, *places) for size, lost, places in
                   zip(x.shape[2:], (rows, lines - rows), draws[2:].split(2), strict=True))
    batch, channel = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
    moved = x[_spread(batch), channel[None, :, None, None], row[0][:, None, :, None],
              column[0][:, None, None, :]]
    return moved * (row[1][:, None, :, None] & column[1][:, None, None, :])


def _moved(size: int, lost: Tensor, begin: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """For each line of the output (B, size): the line of the input it shows, and whether it shows one at
    all."""
    begin, place = ((u * (lost + 1)).floor()[:, None] for u in (begin, place))
    line = torch.arange(size, device=lost.device)[None] - place
    shown = (line >= 0) & (line < size - lost[:, None])
    return (line + begin).clamp(0, size - 1).long(), shown


def change(x: Tensor, draws: Tensor) -> Tensor:
    """Each image with one of: colour, brightness, contrast, sharpness, stretched contrast, a shear, a
    rotation.

    The first four are base + f (x - base), f from BLENDS, with the image in grey, black, its mean grey or
    blurred as base.
    Args: draws: (3, B) from U(0, 1): which, how strongly, sign or direction.
    """
    which, (strength, sign) = (draws[0] * 7).floor(), draws[1:]
    grey = _grey(x)
    bases = (grey, torch.zeros_like(grey), grey.mean((2, 3), keepdim=True), _blurred(x))
    out = x
    for number, (base, (low, high)) in enumerate(zip(bases, BLENDS, strict=True)):
        out = torch.where(_spread(which == number),
                          base + _spread(low + (high - low) * strength) * (x - base), out)
    least, most = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    # a flat channel stays
    stretched = torch.where(most > least, (x - least) / (most - least).clamp_min(1e-6), x)
    out = torch.where(_spread(which == 4), stretched, out)
    return torch.where(_spread(which >= 5), _warped(x, which == 5, strength, sign), out).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    """Luma (B, 1, H, W) of ITU-R BT.601 for three channels, else the mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor([0.2989, 0.587, 0.114], device=x.device, dtype=x.dtype)[:, None, None]
    return (x * weights).sum(1, keepdim=True)


def _blurred(x: Tensor) -> Tensor:
    """Weighted mean of 3 x 3 pixels, the middle one five times; the border stays."""
    blurred = x.clone()
    blurred[..., 1:-1, 1:-1] = (9 * F.avg_pool2d(x, 3, 1) + 4 * x[..., 1:-1, 1:-1]) / 13
    return blurred


def _warped(x: Tensor, shear: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Sheared along one axis where `shear`, else rotated about the centre; nearest pixel, black outside."""
    # what is left of the draw when its first bit is used
    half = torch.where(sign < 0.5, sign * 2, sign * 2 - 1)
    slope = (SHEAR[0] + (SHEAR[1] - SHEAR[0]) * strength) * torch.where(sign < 0.5, -1.0, 1.0)
    angle = ((DEGREES[0] + (DEGREES[1] - DEGREES[0]) * strength) * torch.where(sign < 0.5, -1.0, 1.0)
             * (math.pi / 180))
    # grids run from -1 to 1 on both axes: lengths differ by H / W
    one, aspect = torch.ones_like(slope), x.shape[2] / x.shape[3]
    along_x = torch.where(shear, slope * (half < 0.5), -angle.sin()) * aspect
    along_y = torch.where(shear, slope * (half >= 0.5), angle.sin()) / aspect
    diagonal = torch.where(shear, one, angle.cos())
    theta = torch.stack([diagonal, along_x, 0 * one, along_y, diagonal, 0 * one], 1).view(-1, 2, 3)
    theta = theta.to(x.dtype)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def erase(x: Tensor, draws: Tensor) -> Tensor:
    """Half of the images (B, C, H, W) with one black box (Zhong et al. 2020): area in ERASED, aspect up to
    ERASED_ASPECT.

    Args: draws: (5, B) from U(0, 1): whether, area, aspect, place by rows and by columns.
    """
    area = ERASED[0] + (ERASED[1] - ERASED[0]) * draws[1]
    aspect = torch.exp((2 * draws[2] - 1) * math.log(ERASED_ASPECT))
    sides = [(area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)]
    rows, columns = (_inside(size, side / 2 + place * (1 - side), side)
                     for size, side, place in zip(x.shape[2:], sides, draws[3:], strict=True))
    box = rows[:, None, :, None] & columns[:, None, None, :] & _spread(draws[0] < 0.5)
    return x.masked_fill(box, 0.0)


# --- the augmentation of a recipe ---------------------------------------------------------------

def augment(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Random crop after zero padding by 4 and horizontal flip of each image of a batch (B, C, H, W); "hard":
    `hard`; "none" returns x.

    The draws are made on the generator's device: a CPU generator gives the same ones wherever x is.
    Raises: InputError if `kind` is not one of AUGMENTS.
    """
    if kind not in AUGMENTS:
        raise InputError(f"Unknown augmentation {kind!r}, expected one of {', '.join(AUGMENTS)}.")
    if kind == "none":
        return x
    if kind == "hard":
        return hard(x, generator=generator)
    batch, _, height, width = x.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch,), generator=generator, device=generator.device).to(x.device)

    top, left, flip = draw(2 * CROP_PADDING + 1), draw(2 * CROP_PADDING + 1), draw(2).bool()
    padded = F.pad(x, [CROP_PADDING] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (B, C, 9, 9, H, W)
    crops = windows[torch.arange(batch, device=x.device), :, top, left]
    return torch.where(flip[:, None, None, None], crops.flip(3), crops)
