"""Several searches at a time, each as if it were alone; their passes through the model go in one batch.

pyautoattack's components draw for the batch that they get, and Square moves one window over all of it: blocks
of samples in one call would mix. Here each block has a search and a thread of its own, of which one runs at a
time, with torch's generators as they were when it last ran. A search that asks the model waits until the
others ask too, or are done; then one pass forwards, or one backwards, answers all of them.
"""
import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pwoa_cli.machine.generators import put_back, states

Search = Callable[[nn.Module], Tensor]


class _Stopped(BaseException):
    """Raised in the searches where another one, or a pass, has failed."""


def together(model: nn.Module, searches: Sequence[Search]) -> list[Tensor]:
    """What each search returns for a model that it may ask for logits (B,K) and their gradients.

    A gradient is asked for by `torch.autograd.grad(loss, [x])` or `loss.backward()` right after the pass of
    x. Raises: what a pass or a search raises; then no search goes on.
    """
    if len(searches) == 1:
        return [searches[0](model)]
    copies: dict[str, nn.Module | None] = {}
    threads, outside = [_Thread(search, model, copies) for search in searches], states()
    try:
        while any(not thread.over for thread in threads):
            for thread in threads:
                thread.go_on()
            _answer([thread for thread in threads if not thread.over])
    finally:
        for thread in threads:
            thread.stop()
        put_back(outside)  # a signal may have come while one of them ran
    return [thread.answer for thread in threads]


def _answer(waiting: Sequence["_Thread"]) -> None:
    """Passes for what they ask: of each model one forwards with a graph and one without, and one backwards
    for each graph."""
    def key(thread: _Thread) -> tuple[str, int]:
        return thread.kind, id(thread.model)

    for (kind, _), threads in groupby(sorted(waiting, key=key), key=key):
        asking = list(threads)
        sizes = [len(thread.asked) for thread in asking]
        if kind == "backwards":
            for thread, gradient in zip(asking, _backwards(asking), strict=True):
                thread.given = gradient
            continue
        x = torch.cat([thread.asked for thread in asking]).requires_grad_(kind == "graph")
        with torch.set_grad_enabled(kind == "graph"):
            logits = asking[0].model(x)
        for thread, part, rows in zip(asking, logits.detach().split(sizes), _ranges(sizes), strict=True):
            thread.given, thread.graph = part.clone(), (x, logits, rows) if kind == "graph" else None


def _ranges(sizes: Sequence[int]) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _backwards(asking: Sequence["_Thread"]) -> list[Tensor]:
    """Gradients for the inputs of each; those of one graph in one pass."""
    found: dict[int, Tensor] = {}
    for thread in asking:
        x, logits, _ = thread.graph
        if id(logits) not in found:
            weights = torch.zeros_like(logits)
            for other in asking:
                if other.graph[1] is logits:
                    weights[other.graph[2]] = other.asked
            found[id(logits)] = torch.autograd.grad(logits, x, weights)[0]
    return [found[id(thread.graph[1])][thread.graph[2]].clone() for thread in asking]


class _Thread:
    """A search on its thread. kind: of what it asks `model`: "plain", "graph" (of inputs) or "backwards" (of
    the gradient for its last logits); given: the answer; last: inputs and logits of the last pass with a
    graph."""

    def __init__(self, search: Search, model: nn.Module, copies: dict[str, nn.Module | None]):
        self.search, self.model, self.copies = search, model, copies
        self.over, self.error = False, None  # type: bool, BaseException | None
        self.last = torch.empty(0), torch.empty(0)
        self.kind, self.asked, self.given, self.answer = "", torch.empty(0), torch.empty(0), torch.empty(0)
        self.graph: Any = None
        self.stopped, self.states = False, states()
        self.mine, self.theirs = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def go_on(self) -> None:
        """Let it run until it asks or is over. Raises: what it raises."""
        if self.over:
            return
        outside = states()
        put_back(self.states)
        if self.thread.ident is None:
            self.thread.start()
        self.mine.release()
        self.theirs.acquire()
        self.states = states()
        put_back(outside)
        if self.error:
            raise self.error

    def stop(self) -> None:
        """End it, wherever it is."""
        self.stopped = True
        if self.thread.ident is not None:
            self.mine.release()
            self.thread.join()

    def ask(self, kind: str, what: Tensor) -> Tensor:
        """On its own thread: an answer by the next pass."""
        self.kind, self.asked = kind, what
        self.theirs.release()
        self._wait()
        return self.given

    def _wait(self) -> None:
        self.mine.acquire()
        if self.stopped:
            raise _Stopped

    def _run(self) -> None:
        try:
            self._wait()
            with _Gradients(self):
                self.answer = self.search(Asked(self, self.model))
        except _Stopped:
            pass
        except BaseException as error:  # raised again where it is waited for
            self.error = error
        self.over = True
        self.theirs.release()


class Asked(nn.Module):
    """A model as a search on a thread sees it."""

    def __init__(self, thread: _Thread, model: nn.Module):
        super().__init__()
        self.thread, self.whole = thread, (model,)  # in a tuple: its weights are not this module's

    def copied(self, name: str, make: Callable[[nn.Module], nn.Module | None]) -> "Asked | None":
        """A copy to ask in its place, made once for all searches; None where `make` gives none."""
        if name not in self.thread.copies:
            self.thread.copies[name] = make(self.whole[0])
        copy = self.thread.copies[name]
        return None if copy is None else Asked(self.thread, copy)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,K); with a graph they are a leaf of their own."""
        self.thread.model = self.whole[0]
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.thread.ask("plain", x.detach())
        logits = self.thread.ask("graph", x.detach()).requires_grad_()
        self.thread.last = x, logits
        return logits


class _Gradients(TorchFunctionMode):
    """Gradients of a loss for the inputs of the last pass: through the logits here, through the model by a
    pass of all."""

    def __init__(self, thread: _Thread):
        super().__init__()
        self.thread = thread

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch.overrides asks for."""
        x, logits = self.thread.last
        if func is torch.autograd.grad and args[1][0] is x:
            return (self._gradient(args[0], logits),)
        if func is Tensor.backward and x.requires_grad:
            x.grad = self._gradient(args[0], logits)
            return None
        return func(*args, **kwargs or {})

    def _gradient(self, loss: Tensor, logits: Tensor) -> Tensor:
        return self.thread.ask("backwards", torch.autograd.grad(loss, logits)[0])
