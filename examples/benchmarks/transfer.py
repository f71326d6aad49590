"""Whose weakness it is: pruned models and their teacher under each other's attacks, and what several pruned
models share.

    .venv/bin/python examples/benchmarks/transfer.py TEACHER.pth RUN/model.safetensors RUN2/model.safetensors
    --data cifar10 --eps 4/255

The same n test images for all, PGD-20 (step eps/8, random start) climbing to its last iterate whether the
image is broken before or not, since what is broken at once says least to another model. One row for each
model, and for several a last one that averages their logits. Then for each pair how much of their errors is
the same: the cosine of (pruned - teacher), the mean over the images, of logits (their mean over classes off)
and of input gradients (of the margin between the teacher's first two answers).
"""
import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pwoa_cli.attacks import gradient
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.data.samples import samples
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.intervals import wilson
from pwoa_cli.workflows.setup import open_subject

HEAD = ("model", "clean", "own PGD-20", "the teacher's", "teacher on its", "KL", "gradients")


class Mean(nn.Module):
    """The mean of several models' logits."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in self.models]).mean(0)


def in_parts(function: Callable[..., Tensor], *tensors: Tensor, batch: int = 250) -> Tensor:
    """The function of tensors (N, ...), a batch of images at a time."""
    return torch.cat([function(*part) for part in zip(*(t.split(batch) for t in tensors), strict=True)])


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return in_parts(model, x)


def attacked(model: nn.Module, x: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int) -> Tensor:
    """Where PGD-20 on the model ends, (N, C, H, W)."""
    generator = Generator().manual_seed(seed)
    return in_parts(lambda x, y: gradient.pgd(model, x, y, eps=eps, norm=norm, generator=generator,
                                              every_step=True), x, labels)


def slopes(model: nn.Module, x: Tensor, pairs_N2: Tensor) -> Tensor:
    """Gradient in the input of the margin between two classes of each image, (N, D)."""
    def part(x: Tensor, pairs: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        two = model(x).gather(1, pairs)
        return torch.autograd.grad((two[:, 0] - two[:, 1]).sum(), x)[0].flatten(1)

    return in_parts(part, x, pairs_N2)


def cosine(one: Tensor, other: Tensor) -> float:
    """Mean over the rows of the cosine between rows of (N, D); 0 where one is all zeros."""
    return F.cosine_similarity(one, other, dim=1).mean().item()


def centred(z: Tensor) -> Tensor:
    return z - z.mean(1, keepdim=True)


def measured(teacher: nn.Module, models: dict[str, nn.Module], x: Tensor, labels: Tensor, *, eps: float,
             norm: str,
             seed: int) -> list[dict[str, Any]]:
    """One row {HEAD: figure} for the teacher, each model and the mean of several: right answers as counts, KL
    of the clean answers in nats, the cosine of the input gradients with the teacher's."""
    told = logits(teacher, x)
    pairs = told.topk(2, 1).indices
    weak = attacked(teacher, x, labels, eps=eps, norm=norm, seed=seed)
    reference = slopes(teacher, x, pairs)

    def right(model: nn.Module, images: Tensor) -> int:
        return int((logits(model, images).argmax(1) == labels).sum())

    rows = [dict(zip(HEAD, ("teacher", right(teacher, x), right(teacher, weak), "", "", 0.0, 1.0),
                     strict=True))]
    asked = models | ({"mean of their logits": Mean(list(models.values()))} if len(models) > 1 else {})
    for name, model in asked.items():
        own, said = attacked(model, x, labels, eps=eps, norm=norm, seed=seed), logits(model, x)
        divergence = F.kl_div(said.log_softmax(1), told.log_softmax(1), log_target=True,
                              reduction="batchmean").item()
        rows.append(dict(zip(HEAD, (name, right(model, x), right(model, own), right(model, weak),
                                    right(teacher, own), divergence,
                                    cosine(slopes(model, x, pairs), reference)), strict=True)))
    return rows


def shared(teacher: nn.Module, models: dict[str, nn.Module],
           x: Tensor) -> list[tuple[str, str, float, float]]:
    """For each pair of models the cosines of their errors: of logits, and of input gradients."""
    told = logits(teacher, x)
    pairs = told.topk(2, 1).indices
    reference = slopes(teacher, x, pairs)
    errors = {name: (centred(logits(model, x) - told), slopes(model, x, pairs) - reference)
              for name, model in models.items()}
    return [(one, other, *(cosine(a, b) for a, b in zip(errors[one], errors[other], strict=True)))
            for one, other in itertools.combinations(models, 2)]


def table(rows: Sequence[dict[str, Any]], n: int) -> str:
    """Markdown: counts as percent with 95% Wilson interval."""
    def cell(value: Any) -> str:
        if isinstance(value, int):
            low, high = wilson(value, n)
            return f"{100 * value / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        return f"{value:.3f}" if isinstance(value, float) else value

    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join(lines + [f"| {' | '.join(cell(row[key]) for key in HEAD)} |" for row in rows])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data")
    parser.add_argument("--norm")
    parser.add_argument("--eps")
    parser.add_argument("--samples", "--n", dest="n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        found = open_subject(Source(args.teacher), data=args.data, norm=args.norm, eps=args.eps,
                                     device=torch.device("cpu"), say=lambda text: None)
        models = {path: load_model(path).model.eval() for path in args.models}
    except InputError as error:
        parser.error(f"{error.message} {error.hint or ''}")
    teacher, images = found.model.eval(), samples(found.dataset, args.n, seed=args.seed)
    print(table(measured(teacher, models, images[:], images.labels, eps=found.eps, norm=found.norm,
                         seed=args.seed), args.n))
    for one, other, of_logits, of_gradients in shared(teacher, models, images[:]):
        print(f"errors of {one} and {other}: cosine {of_logits:.2f} of logits, {of_gradients:.2f} of input "
              "gradients")


if __name__ == "__main__":
    main()
