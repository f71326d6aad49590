"""The loss of a recipe on one batch: forward passes of teacher and student, the terms that it asks for, their
weights.

    alpha T^2 (KL(x + n) + clean_weight KL(x)) + logit_weight logits + neighbour_weight reaction to n
        + hidden_weight hidden layers + explain_weight class maps + lambda_x nHSIC(x, z) - lambda_y nHSIC(y,
        z)

A term of weight 0 is not computed. The formulas are those of `distill` and `hsic`; docs/recipes.md has the
sources.
"""
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pwoa_cli.errors import InputError
from pwoa_cli.losses import distill, hsic
from pwoa_cli.machine.generators import own_draws
from pwoa_cli.networks.layers import capture
from pwoa_cli.training.recipe import Recipe

BOTTLENECK = ("hsic_x", "hsic_y")  # terms of HSIC


class Batch(NamedTuple):
    """x: images (B, C, H, W) that both models see; clean: the same without noise; labels: (B,) int64; soft:
    of mixed images, which no label describes, how much of each is of each class, (B, K), else None."""

    x: Tensor
    clean: Tensor
    labels: Tensor
    soft: Tensor | None = None


class _Seen(NamedTuple):
    """What a model made of B images, or of those and their clean copies (2B): logits, hidden layers, class
    maps."""

    logits: Tensor
    hidden: list[Tensor]
    maps: Tensor | None


def weights(recipe: Recipe) -> dict[str, float]:
    """{term: its factor in the loss}; "admm" is the splitting's penalty."""
    answers = recipe.alpha * recipe.temperature**2
    return {"kl": answers, "clean": answers * recipe.clean_weight, "logit": recipe.logit_weight,
            "neighbour": recipe.neighbour_weight, "hidden": recipe.hidden_weight,
            "explain": recipe.explain_weight,
            "hsic_x": recipe.lambda_x, "hsic_y": -recipe.lambda_y, "admm": 1.0}


def at_step(recipe: Recipe, now: int) -> Recipe:
    """The recipe as it counts in step `now`: HSIC in every hsic_every-th step with so many times its weight,
    and not in the others. Its gradient is the same on average over the batches, at a fraction of the time."""
    if recipe.hsic_every == 1:
        return recipe
    factor = 0 if now % recipe.hsic_every else recipe.hsic_every
    return replace(recipe, lambda_x=factor * recipe.lambda_x, lambda_y=factor * recipe.lambda_y)


def terms(recipe: Recipe, *, student: nn.Module, teacher: nn.Module, hidden: Sequence[str], batch: Batch,
          num_classes: int) -> dict[str, Tensor]:
    """Loss terms before their weights, scalars, differentiable in the student.

    Clean copies, where a term wants them, go through the models together with the noisy images: batch norm
    then takes its statistics from both, so that a difference of logits is the noise's doing alone. Dropout
    would give each copy a mask of its own: `prune` refuses neighbour_weight there. Class maps are those of
    the noisy images alone.
    Args: hidden: names of the layers whose outputs count, in both models.
    """
    labels = batch.labels if batch.soft is None else batch.soft
    with heard(recipe, student=student, teacher=teacher, hidden=hidden) as ears:
        return of_passes(recipe, student=student, teacher=teacher, ears=ears, x=images(recipe, batch),
                         labels=labels, num_classes=num_classes)


class Ears(NamedTuple):
    """Hidden layers of teacher and student in their last pass, as `capture` fills them."""

    told: list[Tensor]
    made: list[Tensor]


@contextmanager
def heard(recipe: Recipe, *, student: nn.Module, teacher: nn.Module, hidden: Sequence[str]) -> Iterator[Ears]:
    """Inside the block the layers that a recipe's terms want are listened to."""
    matched = recipe.hidden_weight or recipe.explain_weight
    wanted = matched or recipe.lambda_x or recipe.lambda_y
    with (_rooted(teacher, hidden if recipe.explain_weight else ()),
          capture(teacher, hidden if matched else ()) as told,
          capture(student, hidden if wanted else ()) as made):
        yield Ears(told, made)


def images(recipe: Recipe, batch: Batch) -> Tensor:
    """What goes through both models: (B, C, H, W), or with the clean copies behind (2B, C, H, W)."""
    copies = (recipe.alpha and recipe.clean_weight) or recipe.neighbour_weight
    return torch.cat([batch.x, batch.clean]) if copies else batch.x


def of_passes(recipe: Recipe, *, student: nn.Module, teacher: nn.Module, ears: Ears, x: Tensor,
              labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """`terms` of `images` x, with layers that are listened to already. labels: (B,) int64, or soft (B, K)."""
    count = len(labels)
    told = _ask_teacher(teacher, x, ears.told, mapped=count if recipe.explain_weight else 0,
                        bf16=recipe.precision == "bf16")
    made = _ask_student(recipe, student, x, ears.made, told, mapped=count)
    z = [layer[:count] for layer in made.hidden] if len(x) > count else made.hidden
    found = _answers(recipe, made.logits, told.logits, count)
    if recipe.hidden_weight:
        _check_heard(len(z), len(told.hidden))
        found["hidden"] = distill.hidden_error(z, [layer[:count] for layer in told.hidden],
                                               kind=recipe.hidden_loss)
    if made.maps is not None and told.maps is not None:  # where explain_weight asks for them
        found["explain"] = distill.map_error(made.maps, told.maps)
    bottleneck = {"hsic_x": recipe.lambda_x, "hsic_y": recipe.lambda_y}
    if any(bottleneck.values()):
        sums = hsic.bottleneck(x[:count], labels, z, num_classes=num_classes, sigma=recipe.sigma)
        found |= {name: value.sum() for (name, weight), value in zip(bottleneck.items(), sums, strict=True)
                  if weight}
    return found


def _check_heard(made: int, told: int) -> None:
    """Raises: InputError if student and teacher gave another number of hidden layers."""
    if made != told:
        raise InputError(f"{made} of {told} hidden layers ran in a training step: the network skips blocks "
                         "at random, and a layer that did not run cannot be matched.",
                         hint="--set hidden_weight=0")


def of_constant(recipe: Recipe, *, teacher: nn.Module, hidden: Sequence[str], batch: Batch) -> float:
    """The loss of a student that answers every image alike, as well as that can be done: with the mean of the
    teacher's softened answers and of its hidden layers over the batch. A student above it knows nothing.

    Class maps and HSIC are left out, and terms of further images.
    """
    with capture(teacher, hidden if recipe.hidden_weight else ()) as outputs:
        told = _ask_teacher(teacher, batch.x, outputs, mapped=0, bf16=recipe.precision == "bf16")
    soft = recipe.temperature
    answer = soft * (told.logits / soft).softmax(1).mean(0, keepdim=True).clamp_min(1e-30).log()
    few = replace(recipe, clean_weight=0.0, neighbour_weight=0.0)
    found = _answers(few, answer.expand_as(told.logits), told.logits, len(batch.x))
    if recipe.hidden_weight:
        means = [z.mean(0, keepdim=True).expand_as(z) for z in told.hidden]
        found["hidden"] = distill.hidden_error(means, told.hidden, kind=recipe.hidden_loss)
    factor = weights(recipe)
    return sum(factor[name] * value.item() for name, value in found.items())


def random_in_training(model: nn.Module, x: Tensor) -> bool:
    """Whether answers differ from one pass in training mode to the next on the same images, whatever is at
    work there."""
    # its batch norms' statistics move, which answers in training do not see
    twin = copy.deepcopy(model).train()
    with torch.no_grad(), own_draws():
        torch.manual_seed(0)
        return not torch.allclose(twin(x), twin(x), rtol=1e-4, atol=1e-5)


def _answers(recipe: Recipe, student_BC: Tensor, teacher_BC: Tensor, count: int) -> dict[str, Tensor]:
    """Terms of the logits: of the first `count` images, and of their clean copies behind them."""
    s, t, s_clean, t_clean = student_BC[:count], teacher_BC[:count], student_BC[count:], teacher_BC[count:]
    kl = partial(distill.kl, temperature=recipe.temperature, reduction=recipe.kl_reduction)
    found = {"kl": kl(s, t)} if recipe.alpha else {}
    if recipe.alpha and recipe.clean_weight:
        found["clean"] = kl(s_clean, t_clean)
    if recipe.logit_weight:
        found["logit"] = distill.logit_error(s, t)
    if recipe.neighbour_weight:
        found["neighbour"] = distill.logit_error(s - s_clean, t - t_clean)
    return found


def _ask_teacher(teacher: nn.Module, x: Tensor, outputs: list[Tensor], *, mapped: int, bf16: bool) -> _Seen:
    """Constants: nothing of the teacher's graph survives. outputs: where its layers are heard. mapped: of so
    many images, the first ones, also the maps of the classes that it predicts."""
    with torch.set_grad_enabled(mapped > 0):
        with _precision(x, bf16):
            logits = teacher(x)
        logits, hidden = logits.float(), list(outputs)
    maps = _maps(logits, hidden, logits, mapped, differentiable=False) if mapped else None
    return _Seen(logits.detach(), [z.detach().float() for z in hidden],
                 None if maps is None else maps.detach().float())


def _ask_student(recipe: Recipe, student: nn.Module, x: Tensor, outputs: list[Tensor], told: _Seen, *,
                 mapped: int) -> _Seen:
    """Logits, the hidden layers that are heard in outputs, and of the first `mapped` images maps of the
    teacher's classes."""
    with _precision(x, recipe.precision == "bf16"):
        logits = student(x)
    logits, z = logits.float(), list(outputs)
    maps = _maps(logits, z, told.logits, mapped, differentiable=True) if recipe.explain_weight else None
    # losses need more digits
    return _Seen(logits, [layer.float() for layer in z], None if maps is None else maps.float())


def _precision(x: Tensor, bf16: bool) -> torch.autocast:
    """Inside, convolutions and products are made in bfloat16 if asked for; weights, batch norms and losses
    stay float32."""
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16)


def _maps(logits: Tensor, hidden: Sequence[Tensor], told: Tensor, count: int, *,
          differentiable: bool) -> Tensor:
    """Class maps (count, P) of the first images, of the classes that `told` has as largest, in the last layer
    with positions."""
    return distill.class_map(logits[:count], _last_map(hidden), told[:count].argmax(1),
                             differentiable=differentiable)[:count]


def _last_map(hidden: Sequence[Tensor]) -> Tensor:
    """The last hidden layer that has more than one position; of a network without any the last one."""
    return next((z for z in reversed(hidden) if distill.positions(z) > 1), hidden[-1])


@contextmanager
def _rooted(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside the block gradients reach the named modules' outputs even where all of the model's parameters
    are frozen."""
    def root(_module: nn.Module, _args: object, output: Tensor) -> Tensor | None:
        # the next layer may write on it
        return None if output.requires_grad else output.detach().requires_grad_().clone()

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(root) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
