"""The index that is shipped against one that is built of the installed libraries."""
import pytest
import torch
from helpers.library_shapes import SHARED, shapes

from pwoa_cli.checkpoints import signatures, signatures_build
from pwoa_cli.checkpoints.signatures import lookup


def test_the_index_is_what_the_installed_libraries_give():
    resnet50, shipped = shapes("torchvision:resnet50"), signatures.load_index()
    made = signatures_build.build_index(["timm:regnetx_002", "torchvision:alexnet", *SHARED],
                                        say=lambda line: None)
    if made.versions != shipped.versions:  # rows may differ then, and the answer says so
        assert "the index is of" in lookup(resnet50).note
        return
    assert lookup(resnet50).note == "" and len(made.rows) == 4
    for row in made.rows:
        number = shipped.ends.index(made.ends[row.ends])
        twin = shipped.by_signature[row.signature, row.tensors, number]
        assert (twin.matches, twin.sketch) == (row.matches, row.sketch)


def test_every_name_is_in_the_index_once_and_matches_say_what_tells_them_apart():
    index = signatures.load_index()
    entries = [(name, *match.options) for row in index.rows for match in row.matches for name in match.names]
    assert len(entries) == len(set(entries))
    assert all(len({match.tells for match in row.matches}) == len(row.matches) for row in index.rows)
    if index.versions == {library: signatures.installed_version(library) for library in index.versions}:
        left_out = set(signatures_build.names()) - {name for name, *_ in entries}
        assert len(left_out) < 10
        assert all(name.endswith("_enc") for name in left_out)  # encoders, without a classifier


def test_distance_is_in_deviations_and_refuses_what_shows_nothing():
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # the two images differ by 2
    assert signatures_build.distance([a, None], [a, a]) == 0
    assert signatures_build.distance([a + torch.tensor([[0.0, 0.0], [0.0, 1.0]])], [a]) == pytest.approx(0.5)
    assert signatures_build.distance([a, None], [None, a]) == float("inf")
    with pytest.raises(ValueError, match="differ by 0"):
        signatures_build.distance([a[[0, 0]]], [a[[0, 0]]])
    with pytest.raises(ValueError, match="nan"):
        signatures_build.distance([a], [a * float("nan")])
