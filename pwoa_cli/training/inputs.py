"""What a training step sees: the batch of its number, varied at random, attacked where the recipe asks.

Everything is a pure function of (seed, step).
"""
import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from pwoa_cli.attacks import gradient
from pwoa_cli.attacks.base import frozen
from pwoa_cli.machine.seeds import epoch_order, generator
from pwoa_cli.training import augmentation, objective
from pwoa_cli.training.recipe import noise_scales
from pwoa_cli.training.state import Plan

CALIBRATION = 512  # inputs on which layers are measured before the first step: each image twice
ATTACK_STEPS = 10


def calibration(plan: Plan) -> list[Tensor]:
    """Inputs to measure layers on, CALIBRATION in all: half as many images, each once as it is and once as in
    training."""
    batches = range(plan.steps, plan.steps + max(1, CALIBRATION // (2 * plan.recipe.batch_size)))
    return [x for step in batches for x in (images(plan, step)[0], batch(plan, step).x)]


@lru_cache(maxsize=2)
def _order(images: int, seed: int, epoch: int, home: torch.device) -> Tensor:
    return epoch_order(images, seed=seed, epoch=epoch).to(home)  # once an epoch: the host waits for it


def images(plan: Plan, now: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels (B,) of this step as they are in the data set."""
    epoch, batch = divmod(now, plan.steps_per_epoch)
    first, size = batch * plan.recipe.batch_size, plan.recipe.batch_size
    order = _order(len(plan.split), plan.seed, epoch, plan.split.home)
    return plan.split.batch(order[first:first + size])


def batch(plan: Plan, now: int) -> objective.Batch:
    """Batch of this step: images varied at random, with and without noise, and labels, soft ones where images
    are mixed."""
    recipe = plan.recipe
    x, y = images(plan, now)
    draw = generator(plan.seed, "inputs", now, device=x.device)
    x = augmentation.augment(x, plan.augment, draw)
    mixes = recipe.cutmix or recipe.mixup
    mix = torch.rand((), generator=generator(plan.seed, "mix", now)).item() if mixes else 1.0
    soft = None
    if mix < recipe.cutmix + recipe.mixup:
        way = augmentation.cutmix if mix < recipe.cutmix else augmentation.mixup
        mixed = way(x, generator=draw)
        x, soft = mixed.x, augmentation.soft_labels(mixed, y, num_classes=plan.num_classes)
    # of one pixel, so that sign noise is on the ball
    eps = plan.eps / {"linf": 1, "l2": math.sqrt(x[0].numel()), "l1": x[0].numel()}[plan.norm]
    noisy = augmentation.add_noise(x, scales=noise_scales(recipe, eps=eps), clean=recipe.noise_clean,
                                   generator=draw)
    return objective.Batch(noisy, x, y, soft)


def attacked(plan: Plan, student: nn.Module, batch: objective.Batch, now: int) -> objective.Batch:
    """The batch, or in a fraction mix_ratio of the steps its adversarial examples for the student: PGD of
    ATTACK_STEPS steps of eps/4 (Jian et al. 2022, sec. V-D) around the images without noise, to which no
    noise is added either: the ball is the threat model's. The label of a mixed image is what the teacher
    says."""
    if torch.rand((), generator=generator(plan.seed, "attack", now)).item() >= plan.recipe.mix_ratio:
        return batch
    with torch.no_grad():
        labels = batch.labels if batch.soft is None else plan.teacher(batch.clean).argmax(1)
    with frozen(student):
        found = gradient.pgd(student, batch.clean, labels, eps=plan.eps, norm=plan.norm, steps=ATTACK_STEPS,
                             step_size=plan.eps / 4, every_step=True,
                             generator=generator(plan.seed, "start", now))
    return batch._replace(x=found)
