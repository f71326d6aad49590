"""Devices: by the name that a user gives, and what they can do."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pwoa_cli.errors import InputError


def multiplies_bf16(device: torch.device) -> bool | None:
    """Whether the device has instructions for products in bfloat16; None where torch does not tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # as in older torch
        return None
    able = torch.cpu.get_capabilities()
    told = [able[name] for name in ("avx512_bf16", "amx_bf16", "bf16") if name in able]
    return any(told) if told else None


def device_named(text: str) -> torch.device:
    """The torch device of --device: auto (cuda, else mps, else cpu) or a name. Raises: InputError if it is
    not here."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = [*cuda, *["mps"] * torch.backends.mps.is_available(), "cpu"]
    if text == "auto":
        return torch.device(here[0].split(":")[0])
    if text not in (*here, "cuda" if "cuda:0" in here else "cpu"):
        raise InputError(f"--device {text} is not on this machine, which has {', '.join(here)}.",
                         hint="Leave it out, or: --device auto")
    return torch.device(text)


@contextmanager
def plain_float32() -> Iterator[None]:
    """Plain float32 inside: no TensorFloat-32 products on a GPU, no autocast of the caller's."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
