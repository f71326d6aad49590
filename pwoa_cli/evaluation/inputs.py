"""What an evaluation asks of its inputs, labels, threat and logits before it spends a pass; x (n,C,H,W),
labels (n,)."""
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pwoa_cli.attacks import Attack
from pwoa_cli.attacks.threat import parse_eps, parse_norm
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.results import Finding
from pwoa_cli.machine.generators import own_draws

PASS = 2  # samples at once, where nothing is known of the memory yet


class Images(Protocol):
    """Inputs (n,C,H,W) float in [0,1], a tensor or anything that reads them a part at a time."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | Tensor) -> Tensor: ...


def check_inputs(inputs: Images, labels: Tensor, batch_size: int | None) -> None:
    head = inputs[:1]
    if head.dim() != 4 or not head.is_floating_point() or not len(inputs):
        raise InputError(f"Inputs are {head.dtype} of shape {(len(inputs), *head.shape[1:])}, expected float "
                         "(n,C,H,W) with n > 0.")
    if labels.shape != (len(inputs),) or labels.is_floating_point():
        raise InputError(f"Labels are {labels.dtype} of shape {tuple(labels.shape)}, expected integers "
                         f"({len(inputs)},).")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"The batch size is {batch_size}, expected at least 1.")
    check_range(head)  # before the first pass, and each block before its own


def check_range(x: Tensor) -> None:
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise InputError(f"Inputs span [{low:g}, {high:g}], expected [0, 1].",
                         hint="Divide bytes by 255; normalisation belongs inside the model (--mean, --std).")


def check_threat(norm: str | None, eps: float | None) -> tuple[str, float]:
    if norm is None or eps is None:
        raise InputError("Attacks need a threat model: norm and eps are not given.",
                         hint="For example --norm linf --eps 8/255")
    known = parse_norm(norm)
    return known, parse_eps(eps, norm=known)


def check_logits(logits: Tensor, labels: Tensor, chosen: Sequence[Attack]) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(f"The model answers with shape {tuple(logits.shape)}, expected (batch, classes) "
                         "with 2 classes or more.")
    classes, low, high = logits.shape[1], int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"Labels span {low}..{high}, but the model has {classes} classes "
                         f"(0..{classes - 1}).",
                         hint="Check that --data fits the model.")
    needy = [a for a in chosen if a.min_classes > classes]
    rest = dict.fromkeys([*(a.name for a in chosen if a not in needy), "apgd-ce", "fab-t", "square"])
    if needy:
        raise InputError(f"{needy[0].name} needs at least {needy[0].min_classes} classes, the model has "
                         f"{classes}.",
                         hint=f"Use --attacks {','.join(rest)} instead.")


class OnCopies(nn.Module):
    """A network that gets a copy of its inputs in every pass, as it changes them in place."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.clone())


def left_as_they_were(model: nn.Module, x: Tensor) -> tuple[nn.Module, list[Finding]]:
    """The model, behind `OnCopies` and with a finding where it writes into its inputs x (B,C,H,W).

    Distances would be measured from what the network left, and go beyond eps; gradients could not be asked
    for. Two passes at most, on copies; torch's generators are left as they were. Args: model: in eval mode.
    """
    given = x.clone()
    with torch.no_grad(), own_draws():
        for part in given.split(PASS):
            model(part)
    changed = int((given != x).flatten(1).any(1).sum())
    if not changed:
        return model, []
    return OnCopies(model), [Finding(
        "changes-inputs",
        f"the model changes its inputs in place ({changed} of {len(x)} tried); it is given copies here, as "
        "distances would be measured from changed images.", False)]
