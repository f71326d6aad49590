"""Torch's global generators, read and put back.

`torch.random.fork_rng` without devices starts CUDA, which a run on the CPU leaves alone.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

States = list[tuple[Callable[[Tensor], None], Tensor]]  # how each is set, and its state


def states() -> States:
    """Of the CPU's generator and of those of the devices in use."""
    found: States = [(torch.set_rng_state, torch.get_rng_state())]
    if torch.cuda.is_initialized():
        found += [(partial(torch.cuda.set_rng_state, device=k), state)
                  for k, state in enumerate(torch.cuda.get_rng_state_all())]
    if torch.backends.mps.is_available():
        found.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
    return found


def put_back(before: States) -> None:
    """Each generator is as it was."""
    for put, state in before:
        put(state)


def drawn_since(before: States) -> bool:
    """Whether a number was drawn from one of them."""
    return any(not torch.equal(old, new) for (_, old), (_, new) in zip(before, states(), strict=False))


@contextmanager
def own_draws() -> Iterator[States]:
    """What is drawn inside changes no number that is drawn afterwards; gives the states before it."""
    before = states()
    try:
        yield before
    finally:
        put_back(before)
