"""Whether a training stands on figures that it can survive: looked at on its first batch, before the first
step.

docs/numerics.md has every such situation with what happens there.
"""
import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pwoa_cli.errors import InputError
from pwoa_cli.machine.generators import own_draws
from pwoa_cli.networks import layers
from pwoa_cli.training import inputs, objective
from pwoa_cli.training.recipe import shipped
from pwoa_cli.training.state import Plan

LARGEST = 1e15  # of activations: sums of their squares still fit float32, which ends at 3.4e38


def check(plan: Plan, student: nn.Module, *, where: str) -> None:
    """The first batch gives teacher and student in training figures up to LARGEST, and finite loss terms; the
    networks stay as they are.

    Args: where: the model's name in errors. Raises: InputError naming who gives what.
    """
    recipe, batch = plan.recipe, inputs.batch(plan, 0)
    if len(batch.x) < 2 and (recipe.lambda_x or recipe.lambda_y):
        raise InputError("lambda_x and lambda_y compare images with each other, and there is one training "
                         "image.", hint="Leave them out: --set lambda_x=0 --set lambda_y=0")
    twin = copy.deepcopy(student).train()
    with own_draws(), torch.no_grad():
        for who, model in (("the teacher", plan.teacher.eval()), ("the network in training", twin)):
            with layers.capture(model, plan.hidden) as hidden:
                logits = model(batch.x)
            _check_size([logits, *hidden], f"{where}: {who}")
    terms = objective.terms(recipe, student=twin, teacher=plan.teacher, hidden=plan.hidden, batch=batch,
                            num_classes=plan.num_classes)
    if bad := [name for name, value in terms.items() if not math.isfinite(value.item())]:
        raise InputError(f"{where}: the loss's {' and '.join(bad)} on the first batch is not finite.",
                         hint="See what each weighs, and leave it out with --set: "
                              + (f"pwoa recipe show {recipe.name}" if recipe.name in shipped()
                                 else "the recipe's own file"))


def _check_size(figures: Sequence[Tensor], who: str) -> None:
    """Logits, then hidden layers."""
    for what, figure in zip(("logits", *["hidden layers"] * len(figures)), figures, strict=False):
        largest = figure.detach().float().abs().max().item()  # NaN where there is one
        if not largest <= LARGEST:
            raise InputError(f"{who} gives {what} of {largest:.3g} on training images, expected at most "
                             f"{LARGEST:g}: losses of such figures are not finite.",
                             hint="Most often images are not scaled as the network wants them: --normalize "
                                  "NAME, or --mean A,B,C --std A,B,C")


def notes(plan: Plan) -> list[str]:
    """What is odd about the training images without being an error: classes that none of them is of, a single
    one, a batch of equal images."""
    found, (x, _) = [], inputs.images(plan, 0)
    absent = sorted(set(range(plan.num_classes)) - set(plan.split.labels.unique().tolist()))
    if absent:
        few = ", ".join(map(str, absent[:9])) + ", ..." * (len(absent) > 9)
        found.append(f"no training image is of class {few}: the student learns of {len(absent)} of "
                     f"{plan.num_classes} classes from the teacher's answers alone")
    if len(plan.split) == 1:
        found.append("there is one training image: HSIC, which compares images, is left out")
    if len(x) > 1 and torch.equal(x, x[:1].expand_as(x)):
        found.append("all images of the first batch are equal: nothing tells them apart but noise")
    return found
