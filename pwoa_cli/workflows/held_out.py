"""Training images that nothing is trained on: pruned models are chosen by them, so that the test images stay
unseen."""
from dataclasses import replace

import torch

from pwoa_cli.data.samples import View, stratified
from pwoa_cli.errors import InputError
from pwoa_cli.progress import Say
from pwoa_cli.workflows.setup import Subject

PARTS = 5  # at most one of so many parts: the others are what the student learns from


def divided(subject: Subject, *, asked: int | None, default: int, seed: int,
            say: Say) -> tuple[Subject, View]:
    """The subject without the training images that are held out, and these, stratified and drawn by seed.

    Args: asked: how many, as typed; None: `default`, or a fifth where that is less. Raises: InputError if so
    many cannot be spared, or are too few to judge by.
    """
    dataset, train = subject.dataset, subject.dataset.train
    most, classes = len(train) // PARTS, dataset.num_classes
    if most < classes:
        raise InputError(f"{dataset.name} has {len(train)} training images: the fifth of them that can be "
                         f"held out is less than one for each of {classes} classes.",
                         hint="Name the sparsity in place of --max-loss: --sparsity 0.9")
    count = min(default, most) if asked is None else asked
    if not classes <= count <= most:
        raise InputError(f"--held-out {count} of the {len(train):,} training images of {dataset.name}, "
                         f"expected {classes} (one a class) to {most:,} (a fifth).",
                         hint=f"--held-out {min(most, max(classes, 1000))}")
    index = stratified(train.labels, count, seed=seed)
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[index] = False
    say(f"{count:,} of {len(train):,} training images are held out to judge by")
    left = replace(dataset, train=train.part(rest.nonzero().flatten()))
    return replace(subject, dataset=left), View(train.part(index), torch.arange(count))
