"""Pruning in blocks and so many of every few neighbours, from the request to the file."""
import pytest
from helpers.workflow_calls import FAST, refused, request, run_in

import pwoa_cli
from pwoa_cli.errors import PwoaError
from pwoa_cli.workflows import prune
from pwoa_cli.workflows.prune_job import prepare


@pytest.mark.parametrize(("nm", "stay", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("1:2", 1, 2)])
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_of_so_many_neighbours_so_many_stay_in_the_file(tmp_path, nm, stay, of, recipe):
    made, said = run_in(tmp_path / "run", "lenet.pt", nm=nm, sparsity=0.0, recipe=recipe)
    counted = {row["name"]: row for row in made["sparsity"]["layers"]}
    assert set(counted) == {"conv2.weight", "linear1.weight", "linear2.weight"}  # one input: no neighbours
    assert made["sparsity"]["structure"] == nm and made["sparsity"]["target"] == 1 - stay / of
    assert made["sparsity"]["achieved"] == made["sparsity"]["target"] and made["recipe"]["regrow"] == 0
    left_out = f"conv1.weight (4% of the weights) cannot be cut into {nm}: such weights stay as they are"
    assert left_out in said and left_out in " ".join(made["notes"])
    state = pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")
    for name in counted:
        w = state[name]
        blocks = w.view(len(w), -1, of, w[0, 0].numel())
        assert ((blocks != 0).sum(2) == stay).all()
    assert state["conv1.weight"].all()


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (2, 4)])
def test_whole_blocks_go(tmp_path, rows, columns):
    made, _ = run_in(tmp_path / "run", "lenet.pt", structure=f"block:{rows}x{columns}", sparsity=0.5)
    assert made["sparsity"]["structure"] == f"block:{rows}x{columns}"
    assert abs(made["sparsity"]["achieved"] - 0.5) < 0.01
    state = pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")
    for row in made["sparsity"]["layers"]:
        matrix = state[row["name"]].flatten(1)
        left = matrix.to_sparse_bsr((rows, columns)).values()
        assert (left != 0).all() and left.numel() == row["nonzero"]


@pytest.mark.parametrize(("asked", "sentence"), [
    ({"nm": "2:4", "structure": "filter"}, "--nm is a structure of its own; --structure is filter."),
    ({"structure": "n:m"}, "--structure n:m: how many of how many neighbours stay is said by --nm."),
    ({"structure": "2:4"}, "--structure 2:4: how many of how many neighbours stay is said by --nm."),
    ({"structure": "block:0x4"}, "block:0x4 is none of unstructured, filter, column, channel, block:RxC."),
    ({"nm": "1:64"}, "lenet.pt has no weights that could be pruned: conv1.weight, conv2.weight, "
                     "linear1.weight, ... (100% of the weights) cannot be cut into 1:64: such weights stay"),
    ({"structure": "block:3x1"}, "cannot be cut into block:3x1"),
    ({"nm": "2:4", "overrides": FAST | {"allocation": "lamp"}},
     "allocation = 'lamp' chooses what each layer loses; with --nm 2:4 all lose the same"),
    ({"nm": "2:4", "overrides": FAST | {"regrow": "0.3"}}, "regrow would bring back more than 2:4 lets stay"),
    ({"nm": "2:4", "overrides": FAST | {"start": "obs"}}, "start = 'obs' reconstructs around single weights"),
])
def test_what_does_not_go(asked, sentence):
    assert sentence in refused(**{"model": "lenet.pt"} | asked)


def test_a_model_with_more_zeros_already(tmp_path):
    run_in(tmp_path / "run", "lenet.pt", nm="1:4", sparsity=0.0)
    text = refused(model=str(tmp_path / "run/model.safetensors"), nm="2:4")
    assert "is pruned already: 75% of its weights are zero, 50% were asked for." in text


def test_a_file_with_a_block_too_full_is_not_saved(tmp_path, monkeypatch):
    """The check before saving can fail."""
    job = prepare(request("lenet.pt", nm="2:4"), say=lambda _: None)
    student = job.subject.model
    with pytest.raises(PwoaError, match=r"More than 2:4 weights stay in a block of .*nothing was saved"):
        prune._check_zeros(job, student)
