"""Some samples of a split: stratified by class, the same ones for everyone who asks with a seed."""
from dataclasses import dataclass

import torch
from torch import Tensor

from pwoa_cli.data.dataset import Dataset, Split
from pwoa_cli.errors import InputError


@dataclass(frozen=True, eq=False)
class View:
    """Some samples of a split, read a part at a time: `view[rows]` is float32 in [0, 1] (b, C, H, W).

    index: (n,) int64, which samples of the split, in this order.
    """

    split: Split
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return self.split.batch(self.index[rows.cpu() if isinstance(rows, Tensor) else rows])[0]

    @property
    def labels(self) -> Tensor:
        """Labels (n,) int64."""
        return self.split.labels[self.index.to(self.split.labels.device)]


def stratified(labels: Tensor, n: int, *, seed: int) -> Tensor:
    """Indices (n,) int64 on the CPU of n samples, each class within 1 of its share (largest remainders; which
    of equal ones get one more is drawn by the seed).

    In an order that the seed draws, so that any first part of them is a fair sample too, whatever the order
    of the file.
    Args: labels: (N,) int64 >= 0. n: 1..N. Raises: InputError if n is outside.
    """
    labels = labels.cpu()
    total = len(labels)
    if not 1 <= n <= total:
        raise InputError(f"{n} samples were asked for, but the data has {total}: expected 1..{total}.",
                         hint=f"--samples {total}")
    counts, quota = _quotas(labels, n, seed=seed)
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    rank = torch.arange(total) - (counts.cumsum(0) - counts)[labels[by_class]]  # position within its class
    chosen = by_class[rank < quota[labels[by_class]]].sort().values
    return chosen[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def _quotas(labels: Tensor, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """How many samples (K,) each class has, and how many of n are drawn of it."""
    counts = torch.bincount(labels)
    quota, remainder = n * counts // len(labels), n * counts % len(labels)
    drawn = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    drawn = drawn[remainder[drawn].argsort(descending=True, stable=True)]
    quota[drawn[:n - int(quota.sum())]] += 1
    return counts, quota


def without_samples(labels: Tensor, n: int, *, seed: int) -> int:
    """How many of the classes that are there have none of the n samples."""
    counts, quota = _quotas(labels.cpu(), n, seed=seed)
    return int(((counts > 0) & (quota == 0)).sum())


def samples(dataset: Dataset, n: int, *, seed: int) -> View:
    """The same n stratified test samples for everyone who asks with this seed, read when they are needed."""
    return View(dataset.test, stratified(dataset.test.labels, n, seed=seed))
