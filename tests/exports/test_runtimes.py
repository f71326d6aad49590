"""Ways to run a model: what is called compiled is."""
from functools import partial

import torch
from helpers.small_models import lenet

from pwoa_cli.exports import runtimes


def test_every_model_and_batch_size_runs_compiled(monkeypatch):
    """torch.compile gives up after eight in a process and runs the rest as it is, without a word."""
    runs = []

    def backend(graph, example):
        number = len(example[0])  # any: one compilation each
        return lambda *args: (runs.append(number), graph(*args))[1]

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    calls = [runtimes.compiled(lenet(num_classes=classes).eval(), torch.rand(batch, 1, 8, 8))
             for classes in range(4, 10) for batch in (2, 3)]
    runs.clear()
    with torch.no_grad():
        for call in calls:
            call()
    torch._dynamo.reset()
    assert len(runs) == len(calls)
