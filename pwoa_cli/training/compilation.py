"""The loss of a step as one graph: the passes of teacher and student and every term, HSIC included, by
torch.compile.

Same terms, other rounding. A graph is made for steps with HSIC and one for those without; moves of the masks,
mixed batches and learning rates make none: weights of terms stay outside of it, and labels come as shares.
"""
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwoa_cli.errors import InputError
from pwoa_cli.machine import signals
from pwoa_cli.networks.build import raised
from pwoa_cli.progress import Say
from pwoa_cli.training import loop, objective
from pwoa_cli.training.recipe import Recipe
from pwoa_cli.training.state import Plan, State, optimizer_for

MODES = ("auto", "on", "off")
WORTH = 10_000  # steps: the minute that compiling takes is 6 ms of each
GRAPHS = 64  # in a process: each stage of a search may make two
# |g - g'| / |g| of the two ways to one gradient: bf16 rounds elsewhere in a graph, what is wrong is far off
APART = 0.2
BACKEND = "inductor"


class _Failed(Exception):
    """Why there is no graph."""


def check(mode: str) -> None:
    """Raises: InputError for what is none of MODES."""
    if mode not in MODES:
        raise InputError(f"--compile {mode:.40} is none of {', '.join(MODES)}.",
                         hint="Where it pays: --compile auto")


def pays(mode: str, device: torch.device, steps: int) -> bool:
    """Whether a training is compiled. Of "auto": on CUDA where it is long; on a CPU the graph was 1.6 to 8
    times as slow (docs/benchmarks.md). A number of steps, not a time, so that a run that is stopped goes on
    in the way that it was begun."""
    return mode == "on" or mode == "auto" and device.type == "cuda" and steps >= WORTH


class _Graph:
    """`objective.terms` of one teacher and one student, as a graph."""

    def __init__(self, ears: objective.Ears, unable: Say) -> None:
        self._ears, self._unable, self._whole = ears, unable, True
        # dropout draws as it does without
        self._graph = torch.compile(objective.of_passes, fullgraph=True, dynamic=False, backend=BACKEND,
                                    options={"fallback_random": True} if BACKEND == "inductor" else None)

    def terms(self, recipe: Recipe, *, student: nn.Module, teacher: nn.Module, hidden: Sequence[str],
              batch: objective.Batch, num_classes: int) -> dict[str, Tensor]:
        """As `objective.terms`; from where the graph fails on it is that, which is said."""
        if self._whole:
            try:  # a further graph would cost its minutes in silence; those of others are left alone
                with torch._dynamo.config.patch(error_on_recompile=True):
                    return self.exact(recipe, student=student, teacher=teacher, hidden=hidden, batch=batch,
                                      num_classes=num_classes)
            except Exception as error:  # of a compiler, of torch's tracer
                signals.let_through(error)
                self._whole = False
                self._unable(_sentence(_why(error)))
        return objective.terms(recipe, student=student, teacher=teacher, hidden=hidden, batch=batch,
                               num_classes=num_classes)

    def exact(self, recipe: Recipe, *, student: nn.Module, teacher: nn.Module, hidden: Sequence[str],
              batch: objective.Batch, num_classes: int) -> dict[str, Tensor]:
        """The same without a way out: raises whatever the making of the graph raises."""
        self._clear()  # other passes are heard as well, and a graph is made for empty lists
        asked = replace(recipe, lambda_x=float(recipe.lambda_x > 0), lambda_y=float(recipe.lambda_y > 0))
        soft = F.one_hot(batch.labels, num_classes).to(batch.x) if batch.soft is None else batch.soft
        found = self._graph(asked, student=student, teacher=teacher, ears=self._ears,
                            x=objective.images(recipe, batch).contiguous(), labels=soft,
                            num_classes=num_classes)
        self._clear()
        return found

    def _clear(self) -> None:
        for outputs in self._ears:
            outputs.clear()


@contextmanager
def compiled(plan: Plan, student: nn.Module, *, say: Say, unable: Say) -> Iterator[Plan]:
    """Inside the block a plan whose terms are compiled, tried on its first steps; the plan itself, with a
    sentence to `unable`, where that fails or gives another gradient. The student stays as it is."""
    say("compiling teacher, student and loss (torch.compile), which takes a minute or several")
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(
            recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS))
        try:
            other = replace(plan, terms=_tried(plan, student, stack, unable).terms)
        except _Failed as failed:
            unable(_sentence(str(failed)))
            stack.close()
            yield plan
            return
        say(f"compiled in {time.perf_counter() - start:.0f} s")
        yield other


def _why(error: Exception) -> str:
    if isinstance(error, torch._dynamo.exc.RecompileError):
        return "another graph would be needed in its middle"
    cause = getattr(error, "inner_exception", error)  # what torch's tracer caught of a compiler
    return raised(cause if isinstance(cause, Exception) else error)


def _sentence(why: str) -> str:
    return f"the training step is not compiled and runs as it is: {why}."


def _tried(plan: Plan, student: nn.Module, stack: ExitStack, unable: Say) -> _Graph:
    """A graph that gives the gradients of the first steps. Raises: _Failed."""
    if plan.recipe.explain_weight:
        raise _Failed("explain_weight takes gradients of gradients, of which torch.compile makes no graph")
    ears = stack.enter_context(objective.heard(plan.recipe, student=student, teacher=plan.teacher,
                                               hidden=plan.hidden))
    graph = _Graph(ears, unable)
    for now in range(1 if plan.recipe.hsic_every == 1 else 2):
        state = State(student, optimizer_for(plan.recipe, student, 0.0), {}, None, now)
        try:
            with _moved(student), warnings.catch_warnings(action="ignore"):
                want, found = (_flat(way, state) for way in (plan, replace(plan, terms=graph.exact)))
        except Exception as error:  # of a compiler, of torch's tracer
            signals.let_through(error)
            raise _Failed(_why(error)) from error
        if not (found - want).norm() <= APART * want.norm():
            raise _Failed("its gradient differs from that of the step as it is")
    return graph


@contextmanager
def _moved(student: nn.Module) -> Iterator[None]:
    """Inside the block the student is not its teacher: where it is, its gradient is rounding alone."""
    parameters = list(student.parameters())
    were = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.mul_(0.9)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, was in zip(parameters, were, strict=True):
                p.copy_(was)


def _flat(plan: Plan, state: State) -> Tensor:
    return torch.cat([slope.flatten().double() for slope in loop.gradients(plan, state).values()])
