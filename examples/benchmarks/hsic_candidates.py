"""What the HSIC bottleneck costs, and for less: milliseconds that each way adds to a training step, and how
far its gradient is from the exact one.

    .venv/bin/python examples/benchmarks/hsic_candidates.py MODEL --data mnist --norm linf --eps 0.3 \\
        --sparsity 0.97

The plan is that of `pwoa prune`'s default recipe, on one thread. After --warm steps of its training, without
HSIC, the student stands still while windows of 8 batches go by. Of each window the gradient of lambda_x sum
nHSIC(x, z) - lambda_y sum nHSIC(y, z) with respect to the student's parameters, mean over the window, is held
against the exact one in float64 of the same 8 batches: |g - exact| / |exact|, and the cosine. So ways that
leave steps out are compared with those that do a little in each. Where a way can begin at any step, all are
tried.

Milliseconds are those of the terms and of their backward pass down to the hidden layers, from where the
gradient of the layers' own matching goes on in any case; of the process's own time, as other jobs may be on
the machine; in turns, warmed up; quartiles over the windows' batches. Ways are scaled to what they stand for
(a quarter of the rows counts four times).
"""
import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.losses import hsic
from pwoa_cli.machine.memory import keep_freed_memory
from pwoa_cli.networks.layers import capture
from pwoa_cli.training import inputs, loop
from pwoa_cli.training.objective import Batch
from pwoa_cli.training.state import Plan, State
from pwoa_cli.workflows import prune
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_request import Request

WINDOW = 8
LAMBDA_X, LAMBDA_Y = 1e-3, 4e-3
Terms = Callable[[Batch, list[Tensor]], list[Tensor]]  # one for each hidden layer


def exact(batch: Batch, hidden: list[Tensor], *, sigma: float, classes: int) -> list[Tensor]:
    """lambda_x nHSIC(x, z_j) - lambda_y nHSIC(y, z_j) of every layer, at the hidden layers' precision."""
    labels = batch.labels if batch.soft is None else batch.soft
    of_x, of_y = hsic.bottleneck(batch.x.to(hidden[0].dtype), labels, hidden, num_classes=classes,
                                 sigma=sigma)
    return list(LAMBDA_X * of_x - LAMBDA_Y * of_y)


# --- ways that change the terms ---------------------------------------------------------------

def fewer_rows(terms: Terms, part: int) -> Terms:
    """Of the first 1 / part of the images, times part."""
    def found(batch: Batch, hidden: list[Tensor]) -> list[Tensor]:
        few = len(batch.x) // part
        cut = Batch(batch.x[:few], batch.clean[:few], batch.labels[:few],
                    None if batch.soft is None else batch.soft[:few])
        return [part * term for term in terms(cut, [z[:few] for z in hidden])]
    return found


def pooled(terms: Terms, side: int) -> Terms:
    """Of maps averaged to side x side, where they are larger."""
    def small(z: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(z, side) if z.ndim == 4 and z.shape[2] > side else z
    return lambda batch, hidden: terms(batch, [small(z) for z in hidden])


def some_features(terms: Terms, part: int) -> Terms:
    """Of 1 / part of each layer's features, other ones in each step."""
    def few(z: Tensor) -> Tensor:
        flat = hsic.flatten(z)
        return flat[:, torch.randint(flat.shape[1], (max(1, flat.shape[1] // part),))]
    return lambda batch, hidden: terms(batch, [few(z) for z in hidden])


def projected(terms: Terms, count: int) -> Terms:
    """Of `count` random directions, which keep distances on average (Johnson & Lindenstrauss 1984)."""
    def few(z: Tensor) -> Tensor:
        flat = hsic.flatten(z)
        return flat @ torch.randn(flat.shape[1], count, dtype=flat.dtype) / math.sqrt(flat.shape[1])
    return lambda batch, hidden: terms(batch, [few(z) for z in hidden])


def fourier(count: int, *, sigma: float, classes: int) -> Terms:
    """Gaussian kernels of hidden layers from `count` random waves (Rahimi & Recht 2007)."""
    def kernel(z: Tensor) -> Tensor:
        flat = hsic.flatten(z)
        scale = sigma * math.sqrt(flat.shape[1])
        waves = flat @ torch.randn(flat.shape[1], count, dtype=flat.dtype) / scale
        waves = math.sqrt(2 / count) * torch.cos(waves + 2 * math.pi * torch.rand(count, dtype=flat.dtype))
        return waves @ waves.T

    def found(batch: Batch, hidden: list[Tensor]) -> list[Tensor]:
        labels = batch.labels if batch.soft is None else batch.soft
        with torch.no_grad():
            fixed = hsic.resolvent(torch.stack([hsic.gaussian_kernel(batch.x, sigma=sigma),
                                                hsic.linear_kernel(labels, num_classes=classes)]))
        layers = hsic.resolvent(torch.stack([kernel(z) for z in hidden]))
        return list(LAMBDA_X * hsic.nhsic(layers, fixed[0]) - LAMBDA_Y * hsic.nhsic(layers, fixed[1]))
    return found


# --- what is measured ---------------------------------------------------------------

@dataclass
class Row:
    """milliseconds: of a step that has the terms; of_steps: the part of the steps that does; errors, cosines:
    of each window and beginning."""

    name: str
    milliseconds: list[float] = field(default_factory=list)
    of_steps: float = 1.0
    errors: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def compare(self, found: Tensor, want: Tensor) -> None:
        """Note a window's gradient beside the exact one, both (P,)."""
        found, want = found.detach().double(), want.detach()
        self.errors.append(float((found - want).norm() / want.norm()))
        self.cosines.append(float(F.cosine_similarity(found, want, dim=0)))


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """Of all parameters in one vector (P,); the graph stays."""
    parts = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True,
                                materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def measure(plan: Plan, state: State, *, windows: int) -> list[Row]:
    """A row for each way, the exact one first."""
    options = {"sigma": plan.recipe.sigma, "classes": plan.num_classes}

    def terms(batch: Batch, hidden: list[Tensor]) -> list[Tensor]:
        return exact(batch, hidden, **options)

    ways = {"half of the rows": fewer_rows(terms, 2), "a quarter of the rows": fewer_rows(terms, 4),
            "maps pooled to 4 x 4": pooled(terms, 4), "an eighth of the features": some_features(terms, 8),
            "projected to 32": projected(terms, 32), "64 random waves": fourier(64, **options)}
    rows = {name: Row(name) for name in ("exact", *ways)}
    later = {f"exact, every {k} steps": Row(f"exact, every {k} steps", of_steps=1 / k) for k in (2, 4, 8)}
    single = Row("exact, one layer a step", of_steps=1 / len(plan.hidden))
    student, wide = copy.deepcopy(state.student).train(), copy.deepcopy(state.student).double().train()
    for window in range(windows):
        by_layer, others, want = [], {name: [] for name in ways}, []
        for number in range(WINDOW):
            batch = inputs.batch(plan, state.step + WINDOW * window + number)
            want.append(gradient(torch.stack(terms(*_seen(wide, plan, batch, torch.double))).sum(), wide))
            seen = _seen(student, plan, batch, torch.float)
            by_layer.append(torch.stack([gradient(term, student) for term in terms(*seen)]))
            for name, way in ways.items():
                others[name].append(gradient(torch.stack(way(*seen)).sum(), student))
            for name, way in {"exact": terms, **ways}.items():
                rows[name].milliseconds.append(_milliseconds(way, *seen))
        mean, found = torch.stack(want).mean(0), torch.stack(by_layer)  # found (WINDOW, M, P)
        rows["exact"].compare(found.sum(1).mean(0), mean)
        for name, gradients in others.items():
            rows[name].compare(torch.stack(gradients).mean(0), mean)
        for k, row in zip((2, 4, 8), later.values(), strict=True):
            for first in range(k):
                row.compare(k * found[first::k].sum(1).sum(0) / WINDOW, mean)
        layers = found.shape[1]
        for first in range(layers):
            turns = [found[number, (first + number) % layers] for number in range(WINDOW)]
            single.compare(layers * torch.stack(turns).mean(0), mean)
    for row in (*later.values(), single):
        row.milliseconds = rows["exact"].milliseconds
    return [rows.pop("exact"), *later.values(), single, *rows.values()]


def _seen(model: nn.Module, plan: Plan, batch: Batch, dtype: torch.dtype) -> tuple[Batch, list[Tensor]]:
    with capture(model, plan.hidden) as hidden:
        model(batch.x.to(dtype))
    return batch, list(hidden)


def _milliseconds(way: Terms, batch: Batch, hidden: Sequence[Tensor]) -> float:
    """Of this thread, forwards and backwards to the hidden layers."""
    leaves = [z.detach().requires_grad_() for z in hidden]
    start = time.process_time()
    torch.autograd.grad(torch.stack(way(batch, leaves)).sum(), leaves)
    return 1e3 * (time.process_time() - start)


def warmed(plan: Plan, student: nn.Module, count: int) -> tuple[State, list[float]]:
    """The state after `count` training steps without HSIC, and the milliseconds of those after the third."""
    state, found = loop.begin(plan, student), []
    for _ in range(count):
        start = time.process_time()
        state, _ = loop.step(plan, state)
        found.append(1e3 * (time.process_time() - start))
    return state, found[3:]


def table(rows: Sequence[Row], step: float) -> str:
    """Markdown. Args: step: milliseconds without HSIC."""
    lines = ["| way | ms a step | quartiles | of a step | error | cosine |", "|---" * 6 + "|"]
    for row in rows:
        q1, median, q3 = (row.of_steps * q for q in statistics.quantiles(row.milliseconds[1:], n=4))
        lines.append(f"| {row.name} | {median:.1f} | {q1:.1f} .. {q3:.1f} | {100 * median / step:.1f}% | "
                     f"{statistics.median(row.errors):.3g} | {statistics.median(row.cosines):.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--warm", type=int, default=50, help="steps of training before the first window")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    fields = {"lambda_x": "0", "lambda_y": "0"} | dict(text.split("=", 1) for text in args.set)
    job = prepare(Request(Source(args.model), sparsity=args.sparsity, data=args.data, norm=args.norm,
                          eps=args.eps,
                          attacks="fgsm", n=100, overrides=fields), say=lambda text: None)
    plan, student = prune._copies(job)
    state, step = warmed(plan, student, args.warm)
    q1, median, q3 = statistics.quantiles(step, n=4)
    print(f"{len(plan.hidden)} hidden layers, batches of {plan.recipe.batch_size}, torch "
          f"{torch.__version__}; a step without HSIC {median:.1f} ms ({q1:.1f} .. {q3:.1f})\n", flush=True)
    print(table(measure(plan, state, windows=args.windows), median))


if __name__ == "__main__":
    main()
