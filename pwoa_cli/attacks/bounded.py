"""Passes of at most so many samples through a model, counted and timed; how many fit into memory is measured.

x inputs (B,C,H,W) in [0,1], z logits (B,K).
"""
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pwoa_cli.machine.memory import free_bytes

# of the free memory that passes may take: the rest is for what an attack keeps, and for other processes
SHARE = 0.5


class OutOfTime(BaseException):
    """The deadline of a `Meter` has passed. Not an Exception: attacks of others may catch these."""


@dataclass
class Meter:
    """Samples that went through a model forwards and backwards; `beat` is called at each pass.

    deadline: of time.monotonic(); the first pass after it raises OutOfTime.
    """

    deadline: float | None = None
    forwards: int = 0
    backwards: int = 0
    beat: Callable[[], None] = lambda: None

    def forward(self, samples: int) -> None:
        """Count a pass. Raises: OutOfTime."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime
        self.forwards += samples
        self.beat()

    def backward(self, samples: int) -> None:
        """Count a pass back to the inputs."""
        self.backwards += samples


class Bounded(nn.Module):
    """The model with at most `batch_size` samples in one pass; float32 in, float32 logits out; `meter`
    counts.

    With gradients the activations of a part are computed again in the backward pass, so memory stays that of
    one part.
    """

    def __init__(self, model: nn.Module, batch_size: int, meter: Meter | None = None):
        super().__init__()
        self.model, self.batch_size, self.meter = model, batch_size, meter or Meter()
        self.copies: dict[tuple[str, int], Bounded | None] = {}  # by name and batch size
        self.training = False

    def copied(self, name: str, make: Callable[[nn.Module], nn.Module | None]) -> "Bounded | None":
        """A copy of the model behind the same bound and meter, made once: this one where `make` gives the
        model itself, None where it gives none."""
        key = name, self.batch_size
        if key not in self.copies:
            made = make(self.model)
            self.copies[key] = (self if made is self.model else
                                None if made is None else Bounded(made, self.batch_size, self.meter))
        return self.copies[key]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,K). Raises: OutOfTime."""
        self.meter.forward(len(x))
        differentiable = torch.is_grad_enabled() and x.requires_grad
        if len(x) <= self.batch_size:
            logits = self.model(x).float()
        elif differentiable:
            logits = torch.cat([checkpoint(self.model, part, use_reentrant=False, preserve_rng_state=False)
                                for part in x.split(self.batch_size)]).float()
        else:
            logits = torch.cat([self.model(part) for part in x.split(self.batch_size)]).float()
        if differentiable and logits.requires_grad:
            logits.register_hook(lambda _: self.meter.backward(len(x)))
        return logits


def fitting_batch(model: nn.Module, x: Tensor, *, most: int) -> int:
    """The largest of most, most / 2, most / 4, ..., 1 whose activations take SHARE of the free memory or
    less.

    Two samples are passed, and what autograd keeps for them is added up; the answer does not depend on the
    speed of the machine. Args: x: (B,C,H,W), the first two are used.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = sum(p.nbytes for p in model.parameters())
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(x[:2].clone().requires_grad_())
    each = max(1, sum(kept.values()) - weights + out.nbytes + x[:2].nbytes) / min(2, len(x))
    size, room = most, SHARE * free_bytes(x.device)
    # twice: the backward pass holds gradients beside the activations
    while size > 1 and 2 * each * size > room:
        size = (size + 1) // 2
    return size
