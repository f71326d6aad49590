"""Workflows called as the command line calls them, in a folder with trained networks and data for them."""
from datetime import datetime

import pytest

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.errors import InputError
from pwoa_cli.workflows import info, prune
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_request import Request

FAST = {"epochs": "2", "batch_size": "32"}


def request(model="lenet.pt", *, sparsity=0.7, **options):
    of_source = options.keys() & {"arch", "num_classes", "mean", "std", "entry"}
    source = Source(model, **{k: options.pop(k) for k in of_source})
    fields = {"data": "colour.npz" if model == "resnet.pt" else "grey.npz", "eps": "0.1", "n": 20,
              "attacks": "fgsm"}
    fields |= {"overrides": FAST}
    if "teacher" in options:
        options["teacher"] = Source(str(options["teacher"]))
    return Request(source, sparsity=sparsity, **fields | options)


def run_in(folder, *args, **options):
    """(report, what was said) of a run; its files are in the folder."""
    said = []
    folder.mkdir()
    job = prepare(request(*args, **options), say=said.append)
    made = prune.execute(job, folder, say=said.append, progress=lambda *_: None, created=datetime(2026, 1, 2))
    prune.keep(folder, made)
    return made, "\n".join(said)


def refused(*args, **options):
    """The error that a request gives before any work."""
    with pytest.raises(InputError) as caught:
        prepare(request(*args, **options), say=lambda text: None)
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value.message


def described(path, **options):
    return info.describe(Source(str(path), **options), say=lambda text: None)
