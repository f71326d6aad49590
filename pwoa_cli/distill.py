"""What the student learns from the teacher on natural images, and how the images are varied without any gradient.

    alpha T^2 KL(softmax(t/T) || softmax(s/T))   logits (Hinton et al. 2015; Jian et al. 2022, eq. 5)
    sum_j |z_j - z_j^T|^2 / |z_j^T|^2            hidden layers, relative to the teacher's power (FitNets, Romero et al. 2015)

Noise and mixed images show the teacher's behaviour around and between images. No input is moved along a gradient:
none of this is an adversarial example.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NOISES = ("none", "sign", "blocks", "uniform", "gaussian")


def kl(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float, reduction: str = "batchmean") -> Tensor:
    """KL(softmax(teacher/T) || softmax(student/T)) of logits (B, C); multiply by alpha T^2 for the loss.

    Args: reduction: "batchmean" (mean over the batch) or "mean" (over batch and classes, as the paper's code does,
        which is 1/C of the former).
    """
    log_student = F.log_softmax(student_BC.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_BC.float() / temperature, dim=1)
    total = F.kl_div(log_student, log_teacher, log_target=True, reduction="sum")
    return total / (student_BC.numel() if reduction == "mean" else len(student_BC))


class _RelativeError(torch.autograd.Function):
    """|z - t|^2 / |t|^2. Written out because hidden layers are large: mse_loss and its backward pass over them seven times."""

    @staticmethod
    def forward(ctx, z: Tensor, t: Tensor) -> Tensor:
        difference = z - t
        power = _square_norm(t).clamp_min(1e-12 * t.numel())  # a silent layer has no power
        ctx.save_for_backward(difference, power)
        return _square_norm(difference) / power

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        difference, power = ctx.saved_tensors
        return difference * (2 * grad / power), None


def _square_norm(t: Tensor) -> Tensor:
    """Sum of squares, in one pass and without a copy of a channels_last tensor."""
    if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last):
        t = t.permute(0, 2, 3, 1)
    flat = t.reshape(-1)
    return torch.dot(flat, flat)


def hidden_error(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """sum_j |z_j - z_j^T|^2 / |z_j^T|^2 over hidden layers of equal shapes (B, ...): scalar >= 0, in float32 or wider."""
    wide = [z if z.dtype == torch.float64 else z.float() for z in student]
    return torch.stack([_RelativeError.apply(z, t.to(z.dtype)) for z, t in zip(wide, teacher, strict=True)]).sum()


def add_noise(x: Tensor, *, kind: str, scale: float, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) in [0,1] with random noise, clipped to [0,1].

    Args: kind: "none"; "sign": every pixel +scale or -scale; "blocks": the same on square blocks of
            pixels, their side drawn per batch from 1, 2, 4 (perturbations that matter are smooth); "uniform": U(-scale, scale); "gaussian": standard
        deviation drawn per image from U(0, scale). scale: >= 0, unit of x.
    Raises: ValueError for another kind.
    """
    if kind == "none" or scale == 0:
        return x
    if kind == "sign":
        noise = torch.randint(0, 2, x.shape, generator=generator, device=x.device).mul(2).sub(1) * scale
    elif kind == "blocks":
        side = 2 ** int(torch.randint(0, 3, (), generator=generator, device=x.device))
        coarse = torch.randint(0, 2, (*x.shape[:2], *(-(-n // side) for n in x.shape[2:])), generator=generator, device=x.device)
        fine = coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., : x.shape[2], : x.shape[3]]
        noise = (fine * 2 - 1) * scale
    elif kind == "uniform":
        noise = (torch.rand(x.shape, generator=generator, device=x.device) * 2 - 1) * scale
    elif kind == "gaussian":
        deviation = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device) * scale
        noise = torch.randn(x.shape, generator=generator, device=x.device) * deviation
    else:
        raise ValueError(f"noise {kind!r}, expected one of {NOISES}")
    return (x + noise).clamp(0, 1)


def cutmix(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Every image (B, C, H, W) with one box of its own from another image of the batch (Yun et al. 2019).

    The box's area fraction is 1 - lambda, lambda ~ U(0, 1); labels are not needed, the teacher is asked about the mix.
    """
    batch, _, height, width = x.shape
    draw = torch.rand((3, batch), generator=generator, device=x.device)
    side = (1 - draw[0]).sqrt()
    inside = [((torch.arange(size, device=x.device) + 0.5)[None] - centre[:, None] * size).abs() < side[:, None] * size / 2
              for size, centre in ((height, draw[1]), (width, draw[2]))]
    box = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    other = torch.randperm(batch, generator=generator, device=x.device)
    return torch.where(box, x[other], x)
