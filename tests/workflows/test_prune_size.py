"""As many zeros as bring the file to so many bytes."""
import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import refused, request, run_in

import pwoa_cli
from pwoa_cli.files import sparse
from pwoa_cli.reports import tables, verdict
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_size import MARGIN, file_metadata


@pytest.fixture(scope="module")
def wide(world):
    """A network whose file is weights and not names."""
    small.save(small.learn(small.lenet(widths=(16, 32), hidden=64)), world / "wide.pt")
    return "wide.pt"


@pytest.mark.parametrize("structure", ["unstructured", "filter", "channel", "block:4x1"])
def test_the_file_is_as_large_as_was_asked_for(tmp_path, wide, structure):
    made, said = run_in(tmp_path / "run", wide, target_bytes=12_000, sparsity=0.0, structure=structure)
    size = (tmp_path / "run/model.safetensors").stat().st_size
    assert made["size"]["target_bytes"] == 12_000 and made["size"]["file_bytes"] == size
    assert 0.8 * 12_000 < size <= 12_000
    assert not verdict.is_short(made)
    assert "sparsity: " in said and "% for a file of at most 12.0 kB, of which 4% are kept free" in said
    assert ", within the 12.0 kB that were asked for" in tables.markdown(made)


def test_a_file_that_is_larger_is_said(tmp_path, wide):
    made, _ = run_in(tmp_path / "run", wide, sparsity=0.5)
    made["size"] |= {"target_bytes": made["size"]["file_bytes"] - 1}
    assert verdict.is_short(made) and "more than the " in tables.markdown(made)
    made["size"]["target_bytes"] += 1
    assert not verdict.is_short(made)


def test_no_lower_sparsity_would_do(wide):
    """By the slow way: the file of every sparsity, in steps of a thousandth."""
    job = prepare(request(wide, target_bytes=14_000, sparsity=0.0), say=lambda _: None)
    model, sizes = pwoa_cli.load(wide), {}
    state = {name: t.detach().clone() for name, t in model.net.state_dict().items()}
    for thousandths in range(500, 1000):
        cut = dict(state)
        for name in ("conv1.weight", "conv2.weight", "linear1.weight", "linear2.weight"):
            w = state[name].flatten()
            gone = w.abs().argsort(stable=True)[:round(thousandths / 1000 * len(w))]
            cut[name] = w.index_fill(0, gone, 0.0).view(state[name].shape)
        sizes[thousandths / 1000] = sparse.size_bytes(cut)
    metadata = file_metadata(job.subject, recipe="default", seed=0)
    names = sparse.size_bytes(state, metadata=metadata) - sparse.size_bytes(state)
    least = min(s for s, size in sizes.items() if size + names <= (1 - MARGIN) * 14_000)
    assert job.request.sparsity == pytest.approx(least, abs=0.002)


@pytest.mark.parametrize(("asked", "sentence"), [
    ({"target_bytes": 10**6}, "lenet.pt fits into 1.0 MB as it is: its file has "),
    ({"target_bytes": 10}, "lenet.pt does not fit into 10 B: with "),
    ({"target_bytes": 3000, "structure": "n:m"}, "how many of how many neighbours stay is said by --nm")])
def test_sizes_that_cannot_be_had(asked, sentence):
    assert sentence in refused("lenet.pt", sparsity=0.0, **asked)


def test_the_size_is_the_one_that_is_written(tmp_path, wide):
    state = {name: t.detach() for name, t in pwoa_cli.load(wide).net.state_dict().items()}
    written = sparse.save(state, tmp_path / "x.safetensors", metadata={"data": "grey"})
    assert sparse.size_bytes(state, metadata={"data": "grey"}) == written
    assert torch.equal(sparse.load(tmp_path / "x.safetensors")["conv1.weight"], state["conv1.weight"])
