"""What a training step of `pwoa prune` asks of a device: kernels launched, stops at which the host waits for
an answer, milliseconds.

    OMP_NUM_THREADS=1 .venv/bin/python examples/benchmarks/train_step.py MODEL --data cifar10 --norm linf \\
        --eps 8/255 --sparsity 0.9

Counted on whatever device there is, after a first step, in plain steps: no move of the masks, no line of
metrics.jsonl. A launch is an operation below autograd that is no view; one over a list of tensors is one, as
it is a few kernels on a GPU and a loop on a CPU. A stop is an operation that needs a tensor's value on the
host. Draws of the host's own generators are stops only where the device is the host.
"""
import argparse
import statistics
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.machine.memory import keep_freed_memory
from pwoa_cli.training import averaging, inputs, loop
from pwoa_cli.training.state import Plan, State
from pwoa_cli.workflows import prune
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_request import Request

STOPS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item")
NO_LAUNCH = ("detach", "empty", "empty_like", "empty_strided", "_unsafe_view")
PARTS = ("batch", "forward and loss", "backward", "optimiser", "masks", "average", "other")


class Count(TorchDispatchMode):
    """launches and stops, by part of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.launches, self.stops = "other", Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in STOPS:
            self.stops[self.part] += 1
        elif not (func.is_view or func.namespace == "profiler" or name in NO_LAUNCH):
            self.launches[self.part] += 1
        return func(*args, **kwargs or {})

    def within(self, part: str, function: Any) -> Any:
        """The function, everything in which counts to a part."""
        def counted(*args: Any, **kwargs: Any) -> Any:
            outer, self.part = self.part, part
            try:
                return function(*args, **kwargs)
            finally:
                self.part = outer
        return counted


def counts(plan: Plan, state: State) -> tuple[State, Count]:
    """The state after one more step, and what that asked for."""
    count = Count()
    counted = replace(plan, terms=count.within("forward and loss", plan.terms))
    places = [("batch", inputs, "batch"), ("backward", torch.Tensor, "backward"),
              ("optimiser", type(state.optimizer), "step"), ("masks", loop, "hold"),
              ("average", averaging, "moved")]
    were = [getattr(owner, name) for _, owner, name in places]
    for part, owner, name in places:
        setattr(owner, name, count.within(part, getattr(owner, name)))
    try:
        with count:
            state, _ = loop.step(counted, state)
    finally:
        for (_, owner, name), was in zip(places, were, strict=True):
            setattr(owner, name, was)
    return state, count


def milliseconds(plan: Plan, state: State, steps: int) -> tuple[State, list[float]]:
    """Of each of so many steps."""
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        state, losses = loop.step(plan, state)
        losses["loss"].item()  # waits for the device
        found.append(1000 * (time.perf_counter() - start))
    return state, found


def table(count: Count, taken: list[float]) -> str:
    """Markdown, a row for each part of the step."""
    rows = [f"| {part} | {count.launches[part]} | {count.stops[part]} |" for part in PARTS]
    low, median, high = statistics.quantiles(taken, n=4)
    return "\n".join(["| part of the step | launches | stops |", "|---|---|---|", *rows,
                      f"| all | {count.launches.total()} | {count.stops.total()} |",
                      f"\n{median:.1f} ms a step ({low:.1f} .. {high:.1f})"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--structure", default="unstructured")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    job = prepare(Request(Source(args.model), sparsity=args.sparsity, structure=args.structure,
                          data=args.data,
                          norm=args.norm, eps=args.eps, n=10, device=args.device,
                          overrides=dict(item.split("=", 1) for item in args.set)), say=print)
    plan, student = prune._copies(job)
    state, _ = loop.step(plan, loop.begin(plan, student))
    state, count = counts(plan, state)
    state, taken = milliseconds(plan, state, args.steps)
    print(f"torch {torch.__version__}, {job.device}, {torch.get_num_threads()} thread(s), "
          f"{plan.recipe.precision}, {args.steps} steps of {plan.recipe.batch_size} images")
    print(table(count, taken))


if __name__ == "__main__":
    main()
