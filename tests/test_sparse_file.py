"""The sparse file: bit-equal round trips, an independent reader written from docs/sparse-file.md, and files that lie."""
import json
import math
import os
import random
import stat
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from pwoa_cli import rice, sparse_file
from pwoa_cli.errors import InputError

FLOATS = tuple(sparse_file.FLOATS)
WORD = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def bits(tensor):
    return tensor.contiguous().view(WORD[tensor.element_size()]) if tensor.dtype in FLOATS else tensor


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def sparse(shape, sparsity, *, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(shape, generator=generator) >= sparsity
    return torch.where(keep, torch.randn(shape, generator=generator) + 3, 0).to(dtype)


def small_state():
    return {"conv.weight": sparse((8, 4, 3, 3), 0.9), "linear.weight": sparse((60, 50), 0.95, seed=1),
            "half.weight": sparse((32, 64), 0.5, dtype=torch.bfloat16, seed=2), "bias": torch.ones(5),
            "bn.count": torch.tensor(7), "flag": torch.tensor([True, False])}


def stored(path):
    """Arrays, index and metadata of a file, as any safetensors reader sees them."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        return {key: file.get_tensor(key).clone() for key in file.keys()}, json.loads(metadata["pwoa"]), metadata


def rewrite(path, edit):
    """Change a valid file through edit(arrays, index, metadata), which may change them in place."""
    arrays, index, metadata = stored(path)
    edit(arrays, index, metadata)
    if "pwoa" in metadata:
        metadata["pwoa"] = json.dumps(index)
    safetensors.torch.save_file(arrays, path, metadata=metadata)


def encodings(path):
    return {key: entry["encoding"] for key, entry in stored(path)[1]["tensors"].items()}


def assert_refused(path, *words):
    with pytest.raises(InputError) as caught:
        sparse_file.load(path)
    message = caught.value.message
    assert str(path) in message and message.endswith(".") and "expected" in message and "\n" not in message, message
    assert caught.value.hint
    assert all(word in message for word in words), message


# ---- round trips


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 0.99, 1.0])
def test_round_trip_is_bit_equal(tmp_path, dtype, sparsity):
    shapes = [(), (0,), (3, 0, 2), (1,), (7,), (64, 9), (16, 8, 3, 3), (5, 1, 999), (1,) * 70]
    state = {f"{i}.weight": sparse(shape, sparsity, dtype=dtype, seed=i) for i, shape in enumerate(shapes)}
    size = sparse_file.save(state, tmp_path / "a.safetensors")
    loaded = sparse_file.load(tmp_path / "a.safetensors")
    assert size == os.path.getsize(tmp_path / "a.safetensors")
    assert list(loaded) == list(state)
    assert all(equal(loaded[key], tensor) for key, tensor in state.items())


def test_round_trip_of_random_states(tmp_path):
    rng = random.Random(0)
    for trial in range(60):
        state = {}
        for i in range(rng.randrange(6)):
            shape = [rng.randrange(1, 12) for _ in range(rng.randrange(5))]
            state[f"layer{rng.randrange(100)}.{i}"] = sparse(shape, rng.random() ** 0.3, dtype=rng.choice(FLOATS),
                                                                 seed=trial * 10 + i)
        sparse_file.save(state, tmp_path / "a", metadata={"trial": str(trial)})
        loaded = sparse_file.load(tmp_path / "a")
        assert list(loaded) == list(state) and all(equal(loaded[key], tensor) for key, tensor in state.items())
        assert sparse_file.load_metadata(tmp_path / "a") == {"trial": str(trial)}


def test_each_encoding_is_chosen_where_it_is_smallest(tmp_path):
    state = {"dense": sparse((100, 100), 0), "mask": sparse((100, 100), 0.5), "rice": sparse((100, 100), 0.9),
             "tiny": torch.zeros(4), "zero": torch.zeros(100, 100), "integers": torch.zeros(1000, dtype=torch.int64)}
    sparse_file.save(state, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"dense": "dense", "mask": "mask", "rice": "rice", "tiny": "dense", "zero": "rice",
                                         "integers": "dense"}


def test_the_chosen_encoding_gives_the_smallest_file(tmp_path, monkeypatch):
    """Oracle for the header estimate: every choice, written in full, within a few bytes."""
    for numel in (40, 80, 200, 1000):
        for sparsity in (0.2, 0.6, 0.9, 1.0):
            state = {"some.layer.weight": sparse((numel,), sparsity)}
            monkeypatch.undo()
            chosen = sparse_file.save(state, tmp_path / "a")
            sizes = []
            for name in sparse_file.PARTS:
                monkeypatch.setattr(sparse_file, "_header_bytes", lambda key, other, name=name: 0 if other == name else 10**6)
                sizes.append(sparse_file.save(state, tmp_path / "b"))
                assert equal(sparse_file.load(tmp_path / "b")["some.layer.weight"], state["some.layer.weight"])
            assert chosen <= min(sizes) + 24, (numel, sparsity, chosen, sizes)


@pytest.mark.parametrize("ones", [[0], [2**22 - 1], [0, 2**22 - 1], [5, 6, 7], [2**21, 2**22 - 1], []])
def test_few_nonzeros_at_the_ends_of_a_large_tensor(tmp_path, ones):
    tensor = torch.zeros(2**22, dtype=torch.bfloat16)
    tensor[ones] = 1.5
    assert sparse_file.save({"w": tensor}, tmp_path / "a") < 600
    assert equal(sparse_file.load(tmp_path / "a")["w"], tensor)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9])
def test_special_values(tmp_path, dtype, sparsity):
    """-0.0 becomes +0.0 in every encoding; NaN (any payload), infinities and denormals keep their bits."""
    tensor = sparse((4096,), sparsity, dtype=dtype)
    info = torch.finfo(dtype)
    tensor[:8] = torch.tensor([-0.0, 0.0, math.nan, math.inf, -math.inf, info.smallest_normal / 2, info.max, -0.0], dtype=dtype)
    words = tensor.view(WORD[tensor.element_size()])
    words[8] = torch.full((), math.inf, dtype=dtype).view(words.dtype) + 1  # a signalling NaN
    words[9] = -1  # a negative NaN with all payload bits
    words[10] = 1  # the smallest denormal
    sparse_file.save({"w": tensor}, tmp_path / "a")
    loaded = sparse_file.load(tmp_path / "a")["w"]
    want = words.clone()
    want[[0, 7]] = 0
    assert torch.equal(loaded.view(words.dtype), want)


def test_views_are_stored_in_logical_order(tmp_path):
    base = sparse((6, 8, 4, 4), 0.9)
    shared = sparse((2048,), 0.9)
    state = {"transposed": base.transpose(0, 2), "step": base[::2, :, 1:3], "expanded": torch.ones(1).expand(5, 5),
             "channels_last": base.to(memory_format=torch.channels_last), "parameter": torch.nn.Parameter(base),
             "tied": shared, "tied again": shared, "half": shared[:1000], "imaginary": torch.complex(base, base).conj().imag}
    sparse_file.save(state, tmp_path / "a")
    loaded = sparse_file.load(tmp_path / "a")
    assert all(torch.equal(loaded[key], tensor) and loaded[key].is_contiguous() for key, tensor in state.items())
    assert not any(tensor.requires_grad for tensor in loaded.values())


def test_other_dtypes_stay_dense(tmp_path):
    state = {str(dtype): torch.zeros(300, dtype=dtype) for dtype in sparse_file.OTHERS}
    state |= {"bool": torch.arange(9) % 2 == 0, "int": torch.tensor(-3), "complex": torch.tensor([1 + 2j]).conj()}
    sparse_file.save(state, tmp_path / "a")
    loaded = sparse_file.load(tmp_path / "a")
    assert list(loaded) == list(state) and set(encodings(tmp_path / "a").values()) == {"dense"}
    assert all(loaded[key].dtype == t.dtype and loaded[key].tolist() == t.tolist() for key, t in state.items())


def test_odd_keys_and_order(tmp_path):
    keys = ["z", "a", "", "é.重み", 'quote"\\\n', "a.pwoa", "m" * 3000, "pwoa_values"]
    state = {key: sparse((900,), 0.9, seed=i) for i, key in enumerate(keys)}
    sparse_file.save(state, tmp_path / "a", metadata={"": "", "é": "\u2028\x00\x7f"})
    assert list(sparse_file.load(tmp_path / "a")) == keys
    assert sparse_file.load_metadata(tmp_path / "a") == {"": "", "é": "\u2028\x00\x7f"}


def test_loaded_tensors_outlive_the_file(tmp_path):
    state = small_state()
    sparse_file.save(state, tmp_path / "a")
    loaded = sparse_file.load(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"")
    assert all(equal(loaded[key], tensor) for key, tensor in state.items())
    loaded["bias"].add_(1)  # writable


def test_equal_states_give_equal_bytes(tmp_path):
    for name in "ab":
        sparse_file.save(small_state(), tmp_path / name, metadata={letter: letter for letter in random.sample("cdefghij", 8)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_plain_safetensors_reads_the_file_and_the_reverse(tmp_path):
    state = small_state()
    sparse_file.save(state, tmp_path / "a", metadata={"arch": "lenet"})
    arrays, index, metadata = stored(tmp_path / "a")
    assert metadata["arch"] == "lenet" and index["version"] == 1
    assert torch.equal(arrays["bias"], state["bias"]) and torch.equal(arrays["bn.count"], state["bn.count"])
    flat = state["linear.weight"].flatten()
    assert torch.equal(arrays["linear.weight.pwoa_values"], flat[flat != 0])
    safetensors.torch.save_file(state, tmp_path / "plain", metadata={"format": "pt"})
    loaded = sparse_file.load(tmp_path / "plain")
    assert loaded.keys() == state.keys() and all(equal(loaded[key], tensor) for key, tensor in state.items())
    assert sparse_file.load_metadata(tmp_path / "plain") == {"format": "pt"}
    safetensors.torch.save_file(state, tmp_path / "plain")
    assert sparse_file.load_metadata(tmp_path / "plain") == {}


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "sparse-file.md").read_text(encoding="utf-8")
    names = {"state": small_state()}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["size"] == os.path.getsize("model.safetensors") and equal(names["state"]["bias"], torch.ones(5))


# ---- oracles


def read_slowly(path):
    """A reader made from docs/sparse-file.md alone: struct-free Python, one bit at a time."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])

    def array(name):
        begin, end = header[name]["data_offsets"]
        return data[start + begin:start + end]

    def one_bits(raw):
        return [byte >> i & 1 for byte in raw for i in range(8)]

    tensors = {}
    for key, entry in json.loads(header["__metadata__"]["pwoa"])["tensors"].items():
        if entry["encoding"] == "dense":
            tensors[key] = array(key)
            continue
        size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}[entry["dtype"]]
        values = array(key + ".pwoa_values")
        if entry["encoding"] == "mask":
            positions = [i for i, bit in enumerate(one_bits(array(key + ".pwoa_mask"))) if bit]
        else:
            unary, low, k = one_bits(array(key + ".pwoa_gap_hi")), one_bits(array(key + ".pwoa_gap_lo")), entry["k"]
            positions, position, at = [], -1, 0
            for i in range(entry["nnz"]):
                quotient = unary.index(1, at) - at
                at += quotient + 1
                remainder = sum(low[i * k + j] << j for j in range(k))
                position += (quotient << k) + remainder + 1
                positions.append(position)
        dense = bytearray(math.prod(entry["shape"]) * size)
        for i, position in enumerate(positions):
            dense[position * size:(position + 1) * size] = values[i * size:(i + 1) * size]
        tensors[key] = bytes(dense)
    return tensors


def test_an_independent_reader_agrees(tmp_path):
    state = small_state() | {"double": sparse((500,), 0.97, dtype=torch.float64, seed=4)}
    sparse_file.save(state, tmp_path / "a")
    assert set(encodings(tmp_path / "a").values()) == {"dense", "mask", "rice"}
    read = read_slowly(tmp_path / "a")
    assert list(read) == list(state)
    assert all(read[key] == tensor.flatten().view(torch.uint8).numpy().tobytes() for key, tensor in state.items())


def test_rice_code_of_a_worked_example():
    """Positions 0, 5, 6, 19 have gaps 0, 4, 0, 12; with k = 2 quotients 0, 1, 0, 3 and remainders 0: the example of the docs."""
    hi, lo = rice.encode(np.array([0, 5, 6, 19]), k=2)
    assert hi.tolist() == [0b10001101] and lo.tolist() == [0]
    hi, lo = rice.encode(np.array([1, 4]), k=1)  # gaps 1, 2: quotients 0, 1 and remainders 1, 0
    assert hi.tolist() == [0b101] and lo.tolist() == [0b01]


def test_best_k_is_best_and_every_k_round_trips():
    rng = np.random.default_rng(0)
    for density in (0.001, 0.01, 0.1, 0.5, 1.0):
        positions = np.flatnonzero(rng.random(5000) < density)
        best, size = rice.best_k(positions)
        gaps = np.diff(positions, prepend=-1) - 1
        bit_counts = [int(sum((gap >> k) + 1 + k for gap in gaps.tolist())) for k in range(13)]
        assert best == bit_counts.index(min(bit_counts))
        for k in range(13):
            hi, lo = rice.encode(positions, k=k)
            assert np.array_equal(rice.decode(hi, lo, nnz=len(positions), k=k, numel=5000), positions)
            assert len(hi) + len(lo) == rice.size_bytes(len(positions), quotients=int((gaps >> k).sum()), k=k)
            assert k != best or size == len(hi) + len(lo)


def test_limit_is_the_closed_form():
    tensor = sparse((40, 5), 0.8)
    nnz = int((tensor != 0).sum())
    want = math.ceil(nnz * 4 + math.log2(math.comb(200, nnz)) / 8 + 24 + 12)
    assert sparse_file.limit_bytes({"w": tensor, "i": torch.zeros(3, dtype=torch.int64), "b": torch.ones(3)}) == want
    assert sparse_file.limit_bytes({"w": torch.zeros(9), "e": torch.zeros(0), "s": torch.ones(())}) == 4
    almost = torch.ones(2**20, dtype=torch.bfloat16)
    almost[7] = 0  # naming the zero takes 2.5 bytes, more than it saves
    assert sparse_file.limit_bytes({"w": almost}) == sparse_file.dense_bytes({"w": almost}) == 2**21


@pytest.mark.parametrize(("sparsity", "rice_wins"), [(0.5, False), (0.9, True), (0.95, True), (0.99, True)])
def test_size_against_the_entropy_limit(tmp_path, sparsity, rice_wins):
    """The table of DESIGN.md section 4 at a tenth of ResNet-18's size, whose layers have the same proportions."""
    shapes = [(20, 3, 3, 3), *[(20, 20, 3, 3)] * 4, (40, 20, 3, 3), *[(40, 40, 3, 3)] * 3, (80, 40, 3, 3), *[(80, 80, 3, 3)] * 3,
              (160, 80, 3, 3), *[(160, 160, 3, 3)] * 3, (10, 160)]
    state = {f"layer{i}.weight": sparse(shape, sparsity, seed=i) for i, shape in enumerate(shapes)}
    size = sparse_file.save(state, tmp_path / "a")
    limit, dense = sparse_file.limit_bytes(state), sparse_file.dense_bytes(state)
    nnz = sum(int((tensor != 0).sum()) for tensor in state.values())
    mask_bytes, csr_bytes = nnz * 4 + dense / 32, nnz * 8
    assert limit < size < limit * 1.02 + 400 * len(state)  # 400 bytes of header for a tensor
    assert size < csr_bytes and (size < mask_bytes * 0.9) == rice_wins
    arrays, _, _ = stored(tmp_path / "a")
    assert limit <= sum(array.numel() * array.element_size() for array in arrays.values()) < limit * 1.02


# ---- dtype, metadata, wrong use


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_converts_floats_only(tmp_path, dtype):
    state = small_state() | {"tiny": torch.full((300,), 1e-42)}
    sparse_file.save(state, tmp_path / "a", dtype=dtype)
    loaded = sparse_file.load(tmp_path / "a")
    for key, tensor in state.items():
        assert equal(loaded[key], tensor.to(dtype) if tensor.is_floating_point() else tensor)
    assert state["bias"].dtype == torch.float32


def test_dtype_refuses_overflow_but_keeps_infinities(tmp_path):
    with pytest.raises(InputError, match="'w' has 2 finite values beyond the range of torch.float16, expected at most 65504"):
        sparse_file.save({"w": torch.tensor([1e5, -1e6, math.inf, math.nan])}, tmp_path / "a", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    sparse_file.save({"w": torch.tensor([math.inf, -math.inf])}, tmp_path / "a", dtype=torch.float16)
    assert sparse_file.load(tmp_path / "a")["w"].tolist() == [math.inf, -math.inf]
    with pytest.raises(InputError, match="cannot be stored as torch.int8, expected one of torch.float64"):
        sparse_file.save({"w": torch.ones(2)}, tmp_path / "b", dtype=torch.int8)


@pytest.mark.parametrize("key", ["w.pwoa_values", "w.pwoa_mask", ".pwoa_gap_hi", "w.pwoa_gap_lo", "__metadata__", "\ud800", 3])
def test_reserved_keys(tmp_path, key):
    with pytest.raises(InputError, match="tensor key .* cannot be stored, expected text"):
        sparse_file.save({key: torch.ones(2)}, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [
    [1.0], torch.ones(3).to_sparse(), torch.ones(3, device="meta"), torch.ones(2, dtype=torch.complex128)])
def test_values_that_are_no_plain_tensors(tmp_path, value):
    with pytest.raises(InputError, match="'w'.* expected a"):
        sparse_file.save({"w": value}, tmp_path / "a")


@pytest.mark.parametrize("metadata", [{"pwoa": "x"}, {"a": 1}, {1: "a"}, {"a": "\udfff"}])
def test_metadata_is_text(tmp_path, metadata):
    with pytest.raises(InputError, match="metadata entry .* expected text"):
        sparse_file.save({}, tmp_path / "a", metadata=metadata)


# ---- whole or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, error, where):
    sparse_file.save({"w": torch.ones(3)}, tmp_path / "a")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(InputError if isinstance(error, OSError) else error):
        sparse_file.save({"w": torch.zeros(3)}, tmp_path / "a")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert sparse_file.load(tmp_path / "a")["w"].tolist() == [1, 1, 1]


def test_save_replaces_follows_links_and_honours_umask(tmp_path):
    before = os.umask(0o027)
    try:
        sparse_file.save({"w": torch.ones(3)}, tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to("a")
    sparse_file.save({"w": torch.zeros(3)}, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and sparse_file.load(tmp_path / "a")["w"].tolist() == [0, 0, 0]


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing" / "a", tmp_path / "file" / "a", tmp_path / "pipe", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written .* expected a file in an existing, writable folder") as caught:
            sparse_file.save({"w": torch.ones(3)}, path)
        assert str(path) in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


# ---- files that are damaged or lie


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "model.safetensors"
    assert_refused(path, "does not exist")
    assert_refused(tmp_path, "is not a file")
    torch.save({"w": torch.ones(2)}, path)
    assert_refused(path, "looks like a PyTorch checkpoint")
    for content, word in ((b"", "is empty"), (b"<!DOCTYPE html><html>not found</html>", "web page"), (b"\n <html>", "web page"),
                          (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
                          (b"\x80\x02}q", "pickle"),
                          (b"\xff" * 100, "has 100 bytes"), (b"\0" * 8, "has 8 bytes"), (b"hello", "has 5 bytes")):
        path.write_bytes(content)
        assert_refused(path, word)
        with pytest.raises(InputError):
            sparse_file.load_metadata(path)


def test_every_truncation_of_a_small_file(tmp_path):
    state = {"w": sparse((3000,), 0.98), "m": sparse((400,), 0.5), "b": torch.ones(2)}
    sparse_file.save(state, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"w": "rice", "m": "mask", "b": "dense"}
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(data + b"\0")
    assert_refused(tmp_path / "b")
    for length in reversed(range(len(data))):
        os.truncate(tmp_path / "b", length)
        assert_refused(tmp_path / "b")


def test_truncations_of_a_bigger_file(tmp_path):
    sparse_file.save({f"{i}": sparse((100, 100), 0.9, seed=i) for i in range(10)}, tmp_path / "a")
    data, rng = (tmp_path / "a").read_bytes(), random.Random(0)
    for _ in range(200):
        (tmp_path / "b").write_bytes(data[:rng.randrange(len(data))])
        assert_refused(tmp_path / "b")


@pytest.mark.parametrize("region", ["header", "index", "arrays"])
def test_bit_flips_are_refused_or_load(tmp_path, monkeypatch, region):
    """Never another exception, a crash or memory beyond the bound (1 MiB here)."""
    monkeypatch.setattr(sparse_file, "SMALLEST_BOUND", 2**20)
    monkeypatch.setattr(sparse_file, "EXPANSION", 8)
    sparse_file.save(small_state(), tmp_path / "a")
    data, rng = (tmp_path / "a").read_bytes(), random.Random(0)
    end = 8 + int.from_bytes(data[:8], "little")
    start, stop = {"header": (0, end), "index": (data.index(b"pwoa"), data.index(b"}}}")), "arrays": (end, len(data))}[region]
    refused, before = 0, {key: tuple(tensor.shape) for key, tensor in small_state().items()}
    tracemalloc.start()
    try:
        for _ in range(250):
            broken = bytearray(data)
            for _ in range(rng.choice((1, 1, 1, 2, 20))):
                broken[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
            (tmp_path / "b").write_bytes(broken)
            try:
                loaded = sparse_file.load(tmp_path / "b")
                assert region != "arrays" or {key: tuple(tensor.shape) for key, tensor in loaded.items()} == before
            except InputError as error:
                refused += 1
                assert error.hint
        assert tracemalloc.get_traced_memory()[1] < 2**22
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
    "version": (lambda a, i, m: i.update(version=2), "version is 2, expected 1"),
    "version type": (lambda a, i, m: i.update(version=True), "version is True, expected 1"),
    "no tensors": (lambda a, i, m: i.pop("tensors"), "index of tensors is 'None'"),
    "tensors type": (lambda a, i, m: i.update(tensors=[1]), "index of tensors is '[1]'"),
    "entry type": (lambda a, i, m: i["tensors"].update(w=3), "encoding 'None'"),
    "entry missing": (lambda a, i, m: i["tensors"].pop("w"), "arrays belong to no tensor"),
    "entry invented": (lambda a, i, m: i["tensors"].update(x={"encoding": "dense"}), "arrays are missing, the first is 'x'"),
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
    "values cut": (set_array("w.pwoa_values", lambda t: t[:-1].clone()), "values is F32 [99], expected F32 [100]"),
    "values shape": (set_array("w.pwoa_values", lambda t: t.view(10, 10)), "values is F32 [10, 10]"),
    "value zero": (set_array("w.pwoa_values", set_bits(0.0, at=3)), "1 of the 100 values are zero"),
    "value -0.0": (set_array("w.pwoa_values", set_bits(-0.0, at=3)), "1 of the 100 values are zero"),
    "hi dtype": (set_array("w.pwoa_gap_hi", lambda t: t.view(torch.int8)), "gap_hi is I8"),
    "hi cut": (set_array("w.pwoa_gap_hi", lambda t: t[:-1].clone()), "gap_hi ends"),
    "hi longer": (set_array("w.pwoa_gap_hi", lambda t: torch.cat([t, t[:1] * 0])), "gap_hi has"),
    "hi much longer": (set_array("w.pwoa_gap_hi", lambda t: t.new_zeros(10**5)), "gap_hi has 100000 bytes, expected at most"),
    "lo cut": (set_array("w.pwoa_gap_lo", lambda t: t[:-1].clone()), "gap_lo has"),
    "lo longer": (set_array("w.pwoa_gap_lo", lambda t: torch.cat([t, t[:1] * 0])), "gap_lo has"),
    "lo padding": (set_array("w.pwoa_gap_lo", set_bits(0xFF, at=-1)), "gap_lo has ones after its last gap"),
    "gaps run past": (set_array("w.pwoa_gap_lo", set_bits(0xFF, at=slice(0, -1))), "run past the end, to position"),
    "quotients run past": (lambda a, i, m: (i["tensors"].update(w={**i["tensors"]["w"], "k": 12, "nnz": 1}),
                                            a.update({"w.pwoa_values": torch.ones(1), "w.pwoa_gap_lo": torch.zeros(2).byte(),
                                                      "w.pwoa_gap_hi": torch.tensor([4]).byte()})), "quotients sum to 2"),
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
    sparse_file.save({"w": w, "m": m, "b": torch.ones(3)}, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"w": "rice", "m": "mask", "b": "dense"}
    rewrite(tmp_path / "a", edit)
    assert_refused(tmp_path / "a", words)


@pytest.mark.parametrize("index", ["", "{", "[]", "1", "null", '"x"', "[" * 100000, "9" * 5000, '{"version": 1', "\x00"])
def test_an_index_that_is_no_object(tmp_path, index):
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "a", metadata={"pwoa": index})
    assert_refused(tmp_path / "a")


@pytest.mark.parametrize(("entry", "data"), [
    ({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}, b"1234"),
    ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, b"12345678"),
    ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, b"1234"),
    ({"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63]}, b"1234"),
    ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, b"1234"),
    ({"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}, b""),
    ({"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 4]}, b"1234"),
    ({"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}, b"123"),
    ({"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}, b"\x01\x02"),
    (3, b""), ({}, b"")])
def test_a_plain_header_that_lies(tmp_path, entry, data):
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert_refused(tmp_path / "a")


def test_zeros_beyond_the_bound_are_written_as_masks(tmp_path, monkeypatch):
    """A few bytes may not stand for any amount of memory; yet what save writes, load reads."""
    monkeypatch.setattr(sparse_file, "SMALLEST_BOUND", 2**16)
    monkeypatch.setattr(sparse_file, "EXPANSION", 64)
    tensor = torch.zeros(2**18)
    sparse_file.save({"w": tensor}, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"w": "mask"} and equal(sparse_file.load(tmp_path / "a")["w"], tensor)
    with pytest.raises(InputError, match="would take 1048576 bytes of memory, expected at most 9.") as caught:
        sparse_file.load(tmp_path / "a", max_bytes=9)
    assert "max_bytes=1048576" in caught.value.hint
    monkeypatch.setattr(sparse_file, "EXPANSION", 10**6)
    sparse_file.save({"w": tensor}, tmp_path / "a")
    monkeypatch.setattr(sparse_file, "EXPANSION", 64)
    assert encodings(tmp_path / "a") == {"w": "rice"}
    assert_refused(tmp_path / "a", "1048576 bytes of memory")
    assert equal(sparse_file.load(tmp_path / "a", max_bytes=2**20)["w"], tensor)
