"""Format 1, which pwoa 0.1.0 wrote: read bit-equal for ever; what is damaged or lies is one sentence."""
import os
import random
import tracemalloc

import pytest
import safetensors.torch
import torch
from helpers.sparse_files import FLOATS, assert_refused, equal, small_state, zeroed
from helpers.sparse_v1 import encodings, rewrite, save

from pwoa_cli.errors import InputError
from pwoa_cli.files import sparse


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 0.99, 1.0])
def test_what_0_1_0_wrote_is_read_bit_equal(tmp_path, dtype, sparsity):
    shapes = [(), (0,), (3, 0, 2), (1,), (7,), (64, 9), (16, 8, 3, 3), (5, 1, 999)]
    state = {f"{i}.weight": zeroed(shape, sparsity, dtype=dtype, seed=i) for i, shape in enumerate(shapes)}
    save(state, tmp_path / "a", metadata={"arch": "lenet"})
    loaded = sparse.load(tmp_path / "a")
    assert list(loaded) == list(state)
    assert all(equal(loaded[key], tensor) for key, tensor in state.items())
    assert sparse.load_metadata(tmp_path / "a") == {"arch": "lenet"}


def test_every_truncation_of_a_small_file(tmp_path):
    state = {"w": zeroed((3000,), 0.98), "m": zeroed((400,), 0.5), "b": torch.ones(2)}
    save(state, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"w": "rice", "m": "mask", "b": "dense"}
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(data + b"\0")
    assert_refused(tmp_path / "b")
    for length in reversed(range(len(data))):
        os.truncate(tmp_path / "b", length)
        assert_refused(tmp_path / "b")


@pytest.mark.parametrize("region", ["header", "index", "arrays"])
def test_bit_flips_are_refused_or_load(tmp_path, monkeypatch, region):
    """Never another exception, a crash or memory beyond the bound (1 MiB here)."""
    monkeypatch.setattr(sparse, "SMALLEST_BOUND", 2**20)
    monkeypatch.setattr(sparse, "EXPANSION", 8)
    save(small_state(), tmp_path / "a")
    data, rng = (tmp_path / "a").read_bytes(), random.Random(0)
    end = 8 + int.from_bytes(data[:8], "little")
    start, stop = {"header": (0, end), "index": (data.index(b"pwoa"), data.index(b"}}}")),
                   "arrays": (end, len(data))}[region]
    refused, before = 0, {key: tuple(tensor.shape) for key, tensor in small_state().items()}
    tracemalloc.start()
    try:
        for _ in range(250):
            held = tracemalloc.get_traced_memory()[0]  # garbage of the loads before among it
            tracemalloc.reset_peak()
            broken = bytearray(data)
            for _ in range(rng.choice((1, 1, 1, 2, 20))):
                broken[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
            (tmp_path / "b").write_bytes(broken)
            try:
                loaded = sparse.load(tmp_path / "b")
                shapes = {key: tuple(tensor.shape) for key, tensor in loaded.items()}
                assert region != "arrays" or shapes == before
            except InputError as error:
                refused += 1
                assert error.hint
            assert tracemalloc.get_traced_memory()[1] - held < 2**22
    finally:
        tracemalloc.stop()
    assert refused > (30 if region == "arrays" else 150)


def set_entry(key, **fields):
    return lambda arrays, index, metadata: index["tensors"][key].update(fields)


def set_array(name, change):
    return lambda arrays, index, metadata: arrays.update({name: change(arrays[name])})


def set_bits(value, *, at):
    def change(array):
        array = array.clone()
        array[at] = value
        return array
    return change


def swap(a, b):
    def edit(arrays, index, metadata):
        arrays[a], arrays[b] = arrays[b], arrays[a]
    return edit


LIES = {
    "no index": (lambda a, i, m: m.pop("pwoa"), "belong to no tensor"),
    "version": (lambda a, i, m: i.update(version=3), "version is 3, expected 1 or 2"),
    "version type": (lambda a, i, m: i.update(version=True), "version is True, expected 1 or 2"),
    "no tensors": (lambda a, i, m: i.pop("tensors"), "index of tensors is 'None'"),
    "tensors type": (lambda a, i, m: i.update(tensors=[1]), "index of tensors is '[1]'"),
    "entry type": (lambda a, i, m: i["tensors"].update(w=3), "encoding 'None'"),
    "entry missing": (lambda a, i, m: i["tensors"].pop("w"), "arrays belong to no tensor"),
    "entry invented": (lambda a, i, m: i["tensors"].update(x={"encoding": "dense"}),
                       "arrays are missing, the first is 'x'"),
    "array missing": (lambda a, i, m: a.pop("w.pwoa_gap_lo"), "the first is 'w.pwoa_gap_lo'"),
    "array invented": (lambda a, i, m: a.update(x=torch.ones(1)), "the first is 'x'"),
    "encoding": (set_entry("w", encoding="zstd"), "encoding 'zstd', expected one of dense, mask, rice"),
    "encoding type": (set_entry("w", encoding=["rice"]), "expected one of dense, mask, rice"),
    "fields": (set_entry("w", module="os"), "is described by"),
    "dense fields": (set_entry("b", shape=[3]), "is described by"),
    "mask for rice": (lambda a, i, m: i["tensors"].update(w={**i["tensors"]["m"]}), "are missing"),
    "shape product": (set_entry("w", shape=[100, 40]), "tensor 'w'"),
    "shape huge": (set_entry("w", shape=[2**40]), "bytes of memory, expected at most"),
    "shape past 2^63": (set_entry("w", shape=[2**64]), "has shape"),
    "shape product past 2^63": (set_entry("w", shape=[2**62, 2**62]), "bytes of memory"),
    "shape negative": (set_entry("w", shape=[-100, -50]), "has shape"),
    "shape zero": (set_entry("w", shape=[0]), "has shape"),
    "shape float": (set_entry("w", shape=[5000.0]), "has shape"),
    "shape type": (set_entry("w", shape="5000"), "has shape"),
    "shape bool": (set_entry("w", shape=[True, 5000]), "has shape"),
    "shape dims": (set_entry("w", shape=[1] * 65), "has shape"),
    "dtype": (set_entry("w", dtype="F16"), "values is F32 [100], expected F16 [100]"),
    "dtype unknown": (set_entry("w", dtype="I32"), "has dtype 'I32', expected one of F64, F32, F16, BF16"),
    "dtype type": (set_entry("w", dtype={}), "has dtype"),
    "nnz more": (set_entry("w", nnz=101), "values is F32 [100], expected F32 [101]"),
    "nnz less": (set_entry("w", nnz=99), "values is F32 [100], expected F32 [99]"),
    "nnz past numel": (set_entry("w", nnz=5001), "has nnz 5001, expected at most 5000"),
    "nnz negative": (set_entry("w", nnz=-1), "has nnz -1"),
    "nnz type": (set_entry("w", nnz="100"), "has nnz 100"),
    "nnz of mask": (set_entry("m", nnz=199), "values is F32 [200], expected F32 [199]"),
    "k": (set_entry("w", k=4), "gap_lo has"),
    "k huge": (set_entry("w", k=10**15), "Rice parameter is 1000000000000000, expected 0..12"),
    "k past 2^63": (set_entry("w", k=10**30), "Rice parameter"),
    "k type": (set_entry("w", k=2.0), "Rice parameter"),
    "hi and lo swapped": (swap("w.pwoa_gap_hi", "w.pwoa_gap_lo"), "tensor 'w': gap_hi"),
    "values cut": (set_array("w.pwoa_values", lambda t: t[:-1].clone()),
                   "values is F32 [99], expected F32 [100]"),
    "values shape": (set_array("w.pwoa_values", lambda t: t.view(10, 10)), "values is F32 [10, 10]"),
    "value zero": (set_array("w.pwoa_values", set_bits(0.0, at=3)), "1 of the 100 values are zero"),
    "value -0.0": (set_array("w.pwoa_values", set_bits(-0.0, at=3)), "1 of the 100 values are zero"),
    "hi dtype": (set_array("w.pwoa_gap_hi", lambda t: t.view(torch.int8)), "gap_hi is I8"),
    "hi cut": (set_array("w.pwoa_gap_hi", lambda t: t[:-1].clone()), "gap_hi ends"),
    "hi longer": (set_array("w.pwoa_gap_hi", lambda t: torch.cat([t, t[:1] * 0])), "gap_hi has"),
    "hi much longer": (set_array("w.pwoa_gap_hi", lambda t: t.new_zeros(10**5)),
                       "gap_hi has 100000 bytes, expected at most"),
    "lo cut": (set_array("w.pwoa_gap_lo", lambda t: t[:-1].clone()), "gap_lo has"),
    "lo longer": (set_array("w.pwoa_gap_lo", lambda t: torch.cat([t, t[:1] * 0])), "gap_lo has"),
    "lo padding": (set_array("w.pwoa_gap_lo", set_bits(0xFF, at=-1)), "gap_lo has ones after its last gap"),
    "gaps run past": (set_array("w.pwoa_gap_lo", set_bits(0xFF, at=slice(0, -1))),
                      "run past the end, to position"),
    "quotients run past": (lambda a, i, m: (i["tensors"].update(w={**i["tensors"]["w"], "k": 12, "nnz": 1}),
                                            a.update({"w.pwoa_values": torch.ones(1),
                                                      "w.pwoa_gap_lo": torch.zeros(2).byte(),
                                                      "w.pwoa_gap_hi": torch.tensor([4]).byte()})),
                           "quotients sum to 2"),
    "mask bits more": (set_array("m.pwoa_mask", set_bits(0xFF, at=slice(0, 9))), "the mask has"),
    "mask bits less": (set_array("m.pwoa_mask", set_bits(0, at=slice(0, 9))), "the mask has"),
    "mask cut": (set_array("m.pwoa_mask", lambda t: t[:-1].clone()), "mask is U8 [50], expected U8 [51]"),
    "mask padding": (set_array("m.pwoa_mask", set_bits(0x80, at=-1)), "of them after its end"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    edit, words = LIES[lie]
    w, m = torch.zeros(100, 50), torch.zeros(401)
    w.view(-1)[torch.randperm(4999, generator=torch.Generator().manual_seed(0))[:100]] = 1.0
    m[torch.randperm(400, generator=torch.Generator().manual_seed(1))[:200]] = 2.0
    save({"w": w, "m": m, "b": torch.ones(3)}, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"w": "rice", "m": "mask", "b": "dense"}
    rewrite(tmp_path / "a", edit)
    assert_refused(tmp_path / "a", words)


@pytest.mark.parametrize("index", ["", "{", "[]", "1", "null", '"x"', "[" * 100000, "9" * 5000,
                                   '{"version": 1', "\x00"])
def test_an_index_that_is_no_object(tmp_path, index):
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "a", metadata={"pwoa": index})
    assert_refused(tmp_path / "a")
