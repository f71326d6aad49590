"""The memory layout that a training runs in: channels_last where the networks take it."""
import copy

import torch
from torch import Tensor, nn

from pwoa_cli.errors import InputError
from pwoa_cli.machine import signals
from pwoa_cli.machine.generators import own_draws
from pwoa_cli.networks.build import raised
from pwoa_cli.training import inputs
from pwoa_cli.training.state import Plan

FEW = 2  # images; all of a batch where two are refused, as by norms over parts of a batch
LAYOUTS = (torch.channels_last, torch.contiguous_format)  # the first is 1.5 times as fast on a CPU


def fastest(plan: Plan, student: nn.Module, *, where: str) -> torch.memory_format:
    """The first of LAYOUTS in which the student goes forwards and backwards in training mode and the teacher
    forwards, on images of the first step: `.view` on a feature map refuses channels_last, and so do 3D
    convolutions. The networks stay as they are.

    Args: where: the model's name in errors. Raises: InputError if the networks fail in every layout.
    """
    x = inputs.batch(plan, 0).x
    for some in (x[:FEW], x):
        for layout in LAYOUTS:
            try:
                _pass(plan, student, some, layout)
            except Exception as error:  # a user's forward may raise anything
                signals.let_through(error)
                why = raised(error)
            else:
                return layout
    raise InputError(f"{where} cannot be trained on images {tuple(x.shape[1:])}: in training mode it raises "
                     f"{why}.",
                     hint="It runs in eval mode: let --arch file.py:fn return a network that runs forwards "
                          "and backwards after net.train() too.")


def _pass(plan: Plan, student: nn.Module, x: Tensor, layout: torch.memory_format) -> None:
    twin = copy.deepcopy(student).to(memory_format=layout).train()
    teacher = copy.deepcopy(plan.teacher).to(memory_format=layout).eval()
    with own_draws(), torch.enable_grad():
        twin(x).sum().backward()
    with torch.no_grad():
        teacher(x)
