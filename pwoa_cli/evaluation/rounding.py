"""How far two answers (B,K) of one network differ, and how far rounding alone may carry them."""
import torch
from torch import Tensor

# of the largest logit: float32 in another order of summation stays below 1e-5, deep networks included
ROUNDING = 1e-3
# steps of a coarse dtype (bf16 2^-7, fp16 2^-10) that sums in another order may differ by
COARSE_ROUNDING = 8
COARSE_DTYPES = (torch.bfloat16, torch.float16)


def gap(one: Tensor, other: Tensor) -> float:
    """max |z - z'| / max |z'|; a NaN differs from a number, and not from a NaN."""
    one, other = (torch.nan_to_num(z.float()) for z in (one, other))
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def rounding(logits: Tensor) -> float:
    """How far logits may differ, of the largest, before it is no rounding: for their precision; TF32 on CUDA
    has fp16's."""
    return max(ROUNDING, COARSE_ROUNDING * torch.finfo(_working(logits)).eps)


def unit(logits: Tensor) -> float:
    """The relative step from one number to the next in the precision of the logits, TF32's on CUDA."""
    return torch.finfo(_working(logits)).eps


def precision(logits: Tensor) -> torch.dtype:
    """The dtype of the logits; the coarse one whose numbers they are, if a model computes in it and returns
    float32.

    Whole numbers prove nothing.
    """
    for dtype in COARSE_DTYPES:
        if logits.dtype == dtype or (torch.equal(logits.to(dtype).to(logits.dtype), logits)
                                     and bool((logits != logits.round()).any())):
            return dtype
    return logits.dtype


def _working(logits: Tensor) -> torch.dtype:
    dtype = precision(logits)
    return torch.float16 if dtype == torch.float32 and logits.device.type == "cuda" else dtype
