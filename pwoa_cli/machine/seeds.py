"""Every random number: a pure function of the seed and its use, the same on every machine and in every
Python.

Three texts are hashed, as published figures and tests rest on each of them.
"""
import hashlib
from typing import Any, Literal

import torch
from torch import Tensor

from pwoa_cli.errors import InputError

SEEDS = 10**18  # how many there are: each fits into 64 bits, signed or not, wherever it is stored


def check(seed: int) -> None:
    """Raises: InputError if a seed is not one of 0 .. SEEDS - 1."""
    if not 0 <= seed < SEEDS:
        got = "a negative number" if seed < 0 else f"a number of {seed.bit_length()} bits"
        raise InputError(f"The seed is {got}, not a whole number of at least 0 and at most 18 digits.",
                         hint="For example: --seed 0")


def generator(seed: int, *use: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one use, told by its name and numbers."""
    return torch.Generator(device).manual_seed(number(seed, *use))


def number(seed: int, *use: Any) -> int:
    """63 bits for one use, told by its name and numbers."""
    return _first_bytes(repr((seed, *use)), "big") >> 1


def block_seed(seed: int, name: str, block: int) -> int:
    """63 bits for an attack, told by its name, on a block of samples."""
    return _first_bytes(f"{seed}|{name}|{block}", "big") >> 1


def epoch_order(n: int, *, seed: int, epoch: int) -> Tensor:
    """Permutation of 0..n-1, (n,) int64 on the CPU."""
    drawn = _first_bytes(f"order {seed} {epoch}", "little")  # seed + epoch would repeat orders between seeds
    return torch.randperm(n, generator=torch.Generator().manual_seed(drawn))


def _first_bytes(text: str, order: Literal["big", "little"]) -> int:
    """The first 8 bytes of the text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], order)
