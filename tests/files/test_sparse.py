"""The sparse file: bit-equal round trips, whole or not at all, a reader made from docs/sparse-file.md."""
import json
import math
import os
import random
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.sparse_files import FLOATS, WORD, encodings, equal, small_state, stored, zeroed

from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files import sparse

# --- round trips ---------------------------------------------------------------

@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 0.99, 1.0])
def test_round_trip_is_bit_equal(tmp_path, dtype, sparsity):
    shapes = [(), (0,), (3, 0, 2), (1,), (7,), (64, 9), (16, 8, 3, 3), (5, 1, 999), (1,) * 70]
    state = {f"{i}.weight": zeroed(shape, sparsity, dtype=dtype, seed=i) for i, shape in enumerate(shapes)}
    size = sparse.save(state, tmp_path / "a.safetensors")
    loaded = sparse.load(tmp_path / "a.safetensors")
    assert size == os.path.getsize(tmp_path / "a.safetensors")
    assert list(loaded) == list(state)
    assert all(equal(loaded[key], tensor) for key, tensor in state.items())


def test_round_trip_of_random_states(tmp_path):
    rng = random.Random(0)
    for trial in range(60):
        state = {}
        for i in range(rng.randrange(6)):
            shape = [rng.randrange(1, 12) for _ in range(rng.randrange(5))]
            state[f"layer{rng.randrange(100)}.{i}"] = zeroed(shape, rng.random() ** 0.3,
                                                             dtype=rng.choice(FLOATS), seed=trial * 10 + i)
        sparse.save(state, tmp_path / "a", metadata={"trial": str(trial)})
        loaded = sparse.load(tmp_path / "a")
        assert list(loaded) == list(state)
        assert all(equal(loaded[key], tensor) for key, tensor in state.items())
        assert sparse.load_metadata(tmp_path / "a") == {"trial": str(trial)}


def test_each_encoding_is_chosen_where_it_is_smallest(tmp_path):
    state = {"dense": zeroed((100, 100), 0), "mask": zeroed((100, 100), 0.5), "rice": zeroed((100, 100), 0.9),
             "tiny": torch.zeros(4), "zero": torch.zeros(100, 100),
             "integers": torch.zeros(1000, dtype=torch.int64)}
    sparse.save(state, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"dense": "dense", "mask": "mask", "rice": "rice",
                                         "tiny": "dense", "zero": "rice", "integers": "dense"}


def test_the_chosen_encoding_gives_the_smallest_file(tmp_path, monkeypatch):
    """Oracle for the header estimate: every choice, written in full, within a few bytes."""
    for numel in (40, 80, 200, 1000):
        for sparsity in (0.2, 0.6, 0.9, 1.0):
            state = {"some.layer.weight": zeroed((numel,), sparsity)}
            monkeypatch.undo()
            chosen = sparse.save(state, tmp_path / "a")
            sizes = []
            for name, parts in sparse.PARTS.items():
                monkeypatch.setattr(sparse, "PARTS", {name: parts})  # no other to choose
                sizes.append(sparse.save(state, tmp_path / "b"))
                assert equal(sparse.load(tmp_path / "b")["some.layer.weight"], state["some.layer.weight"])
            assert chosen <= min(sizes) + 24, (numel, sparsity, chosen, sizes)


@pytest.mark.parametrize("ones", [[0], [2**22 - 1], [0, 2**22 - 1], [5, 6, 7], [2**21, 2**22 - 1], []])
def test_few_nonzeros_at_the_ends_of_a_large_tensor(tmp_path, ones):
    tensor = torch.zeros(2**22, dtype=torch.bfloat16)
    tensor[ones] = 1.5
    assert sparse.save({"w": tensor}, tmp_path / "a") < 600
    assert equal(sparse.load(tmp_path / "a")["w"], tensor)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9])
def test_special_values(tmp_path, dtype, sparsity):
    """-0.0 becomes +0.0 in every encoding; NaN (any payload), infinities and denormals keep their bits."""
    tensor = zeroed((4096,), sparsity, dtype=dtype)
    info = torch.finfo(dtype)
    special = [-0.0, 0.0, math.nan, math.inf, -math.inf, info.smallest_normal / 2, info.max, -0.0]
    tensor[:8] = torch.tensor(special, dtype=dtype)
    words = tensor.view(WORD[tensor.element_size()])
    words[8] = torch.full((), math.inf, dtype=dtype).view(words.dtype) + 1  # a signalling NaN
    words[9] = -1  # a negative NaN with all payload bits
    words[10] = 1  # the smallest denormal
    sparse.save({"w": tensor}, tmp_path / "a")
    loaded = sparse.load(tmp_path / "a")["w"]
    want = words.clone()
    want[[0, 7]] = 0
    assert torch.equal(loaded.view(words.dtype), want)


def test_views_are_stored_in_logical_order(tmp_path):
    base = zeroed((6, 8, 4, 4), 0.9)
    shared = zeroed((2048,), 0.9)
    state = {"transposed": base.transpose(0, 2), "step": base[::2, :, 1:3],
             "expanded": torch.ones(1).expand(5, 5),
             "channels_last": base.to(memory_format=torch.channels_last),
             "parameter": torch.nn.Parameter(base),
             "tied": shared, "tied again": shared, "half": shared[:1000],
             "imaginary": torch.complex(base, base).conj().imag}
    sparse.save(state, tmp_path / "a")
    loaded = sparse.load(tmp_path / "a")
    assert all(torch.equal(loaded[key], tensor) and loaded[key].is_contiguous()
               for key, tensor in state.items())
    assert not any(tensor.requires_grad for tensor in loaded.values())


def test_other_dtypes_stay_dense(tmp_path):
    state = {str(dtype): torch.zeros(300, dtype=dtype) for dtype in sparse.OTHERS}
    state |= {"bool": torch.arange(9) % 2 == 0, "int": torch.tensor(-3),
              "complex": torch.tensor([1 + 2j]).conj()}
    sparse.save(state, tmp_path / "a")
    loaded = sparse.load(tmp_path / "a")
    assert list(loaded) == list(state) and set(encodings(tmp_path / "a").values()) == {"dense"}
    assert all(loaded[key].dtype == t.dtype and loaded[key].tolist() == t.tolist()
               for key, t in state.items())


def test_odd_keys_and_order(tmp_path):
    keys = ["z", "a", "", "é.重み", 'quote"\\\n', "a.pwoa", "m" * 3000, "pwoa_values"]
    state = {key: zeroed((900,), 0.9, seed=i) for i, key in enumerate(keys)}
    sparse.save(state, tmp_path / "a", metadata={"": "", "é": "\u2028\x00\x7f"})
    assert list(sparse.load(tmp_path / "a")) == keys
    assert sparse.load_metadata(tmp_path / "a") == {"": "", "é": "\u2028\x00\x7f"}


def test_loaded_tensors_outlive_the_file(tmp_path):
    state = small_state()
    sparse.save(state, tmp_path / "a")
    loaded = sparse.load(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"")
    assert all(equal(loaded[key], tensor) for key, tensor in state.items())
    loaded["bias"].add_(1)  # writable


def test_equal_states_give_equal_bytes(tmp_path):
    for name in "ab":
        sparse.save(small_state(), tmp_path / name,
                    metadata={letter: letter for letter in random.sample("cdefghij", 8)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_plain_safetensors_reads_the_file_and_the_reverse(tmp_path):
    state = small_state()
    sparse.save(state, tmp_path / "a", metadata={"arch": "lenet"})
    arrays, index, metadata = stored(tmp_path / "a")
    assert metadata["arch"] == "lenet" and index["version"] == 1
    assert torch.equal(arrays["bias"], state["bias"]) and torch.equal(arrays["bn.count"], state["bn.count"])
    flat = state["linear.weight"].flatten()
    assert torch.equal(arrays["linear.weight.pwoa_values"], flat[flat != 0])
    safetensors.torch.save_file(state, tmp_path / "plain", metadata={"format": "pt"})
    loaded = sparse.load(tmp_path / "plain")
    assert loaded.keys() == state.keys() and all(equal(loaded[key], tensor) for key, tensor in state.items())
    assert sparse.load_metadata(tmp_path / "plain") == {"format": "pt"}
    safetensors.torch.save_file(state, tmp_path / "plain")
    assert sparse.load_metadata(tmp_path / "plain") == {}


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "sparse-file.md").read_text(encoding="utf-8")
    names = {"state": small_state()}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert (names["size"] == os.path.getsize("model.safetensors")
            and equal(names["state"]["bias"], torch.ones(5)))


# --- oracles ---------------------------------------------------------------

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
            unary, low = (one_bits(array(f"{key}.pwoa_gap_{part}")) for part in ("hi", "lo"))
            k = entry["k"]
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
    state = small_state() | {"double": zeroed((500,), 0.97, dtype=torch.float64, seed=4)}
    sparse.save(state, tmp_path / "a")
    assert set(encodings(tmp_path / "a").values()) == {"dense", "mask", "rice"}
    read = read_slowly(tmp_path / "a")
    assert list(read) == list(state)
    assert all(read[key] == tensor.flatten().view(torch.uint8).numpy().tobytes()
               for key, tensor in state.items())


def test_limit_is_the_closed_form():
    tensor = zeroed((40, 5), 0.8)
    nnz = int((tensor != 0).sum())
    want = math.ceil(nnz * 4 + math.log2(math.comb(200, nnz)) / 8 + 24 + 12)
    state = {"w": tensor, "i": torch.zeros(3, dtype=torch.int64), "b": torch.ones(3)}
    assert sparse.limit_bytes(state) == want
    assert sparse.limit_bytes({"w": torch.zeros(9), "e": torch.zeros(0), "s": torch.ones(())}) == 4
    almost = torch.ones(2**20, dtype=torch.bfloat16)
    almost[7] = 0  # naming the zero takes 2.5 bytes, more than it saves
    assert sparse.limit_bytes({"w": almost}) == sparse.dense_bytes({"w": almost}) == 2**21


@pytest.mark.parametrize(("sparsity", "rice_wins"), [(0.5, False), (0.9, True), (0.95, True), (0.99, True)])
def test_size_against_the_entropy_limit(tmp_path, sparsity, rice_wins):
    """The table of DESIGN.md section 4 at a tenth of ResNet-18's size; layers have the same proportions."""
    shapes = [(20, 3, 3, 3), *[(20, 20, 3, 3)] * 4, (40, 20, 3, 3), *[(40, 40, 3, 3)] * 3, (80, 40, 3, 3),
              *[(80, 80, 3, 3)] * 3,
              (160, 80, 3, 3), *[(160, 160, 3, 3)] * 3, (10, 160)]
    state = {f"layer{i}.weight": zeroed(shape, sparsity, seed=i) for i, shape in enumerate(shapes)}
    size = sparse.save(state, tmp_path / "a")
    limit, dense = sparse.limit_bytes(state), sparse.dense_bytes(state)
    nnz = sum(int((tensor != 0).sum()) for tensor in state.values())
    mask_bytes, csr_bytes = nnz * 4 + dense / 32, nnz * 8
    assert limit < size < limit * 1.02 + 400 * len(state)  # 400 bytes of header for a tensor
    assert size < csr_bytes and (size < mask_bytes * 0.9) == rice_wins
    arrays, _, _ = stored(tmp_path / "a")
    assert limit <= sum(array.numel() * array.element_size() for array in arrays.values()) < limit * 1.02


# --- dtype, metadata, wrong use ---------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_converts_floats_only(tmp_path, dtype):
    state = small_state() | {"tiny": torch.full((300,), 1e-42)}
    sparse.save(state, tmp_path / "a", dtype=dtype)
    loaded = sparse.load(tmp_path / "a")
    for key, tensor in state.items():
        assert equal(loaded[key], tensor.to(dtype) if tensor.is_floating_point() else tensor)
    assert state["bias"].dtype == torch.float32


def test_dtype_refuses_overflow_but_keeps_infinities(tmp_path):
    with pytest.raises(InputError, match="'w' has 2 finite values beyond the range of torch.float16, "
                                         "expected at most 65504"):
        sparse.save({"w": torch.tensor([1e5, -1e6, math.inf, math.nan])}, tmp_path / "a", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    sparse.save({"w": torch.tensor([math.inf, -math.inf])}, tmp_path / "a", dtype=torch.float16)
    assert sparse.load(tmp_path / "a")["w"].tolist() == [math.inf, -math.inf]
    with pytest.raises(InputError, match="cannot be stored as torch.int8, expected one of torch.float64"):
        sparse.save({"w": torch.ones(2)}, tmp_path / "b", dtype=torch.int8)


@pytest.mark.parametrize("key", ["w.pwoa_values", "w.pwoa_mask", ".pwoa_gap_hi", "w.pwoa_gap_lo",
                                 "__metadata__", "\ud800", 3])
def test_reserved_keys(tmp_path, key):
    with pytest.raises(InputError, match="tensor key .* cannot be stored, expected text"):
        sparse.save({key: torch.ones(2)}, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [
    [1.0], torch.ones(3).to_sparse(), torch.ones(3, device="meta"), torch.ones(2, dtype=torch.complex128)])
def test_values_that_are_no_plain_tensors(tmp_path, value):
    with pytest.raises(InputError, match="'w'.* expected a"):
        sparse.save({"w": value}, tmp_path / "a")


@pytest.mark.parametrize("metadata", [{"pwoa": "x"}, {"a": 1}, {1: "a"}, {"a": "\udfff"}])
def test_metadata_is_text(tmp_path, metadata):
    with pytest.raises(InputError, match="metadata entry .* expected text"):
        sparse.save({}, tmp_path / "a", metadata=metadata)


# --- whole or not at all ---------------------------------------------------------------

@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, error, where):
    sparse.save({"w": torch.ones(3)}, tmp_path / "a")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(PwoaError if isinstance(error, OSError) else error):
        sparse.save({"w": torch.zeros(3)}, tmp_path / "a")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert sparse.load(tmp_path / "a")["w"].tolist() == [1, 1, 1]


def test_save_replaces_follows_links_and_honours_umask(tmp_path):
    before = os.umask(0o027)
    try:
        sparse.save({"w": torch.ones(3)}, tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to("a")
    sparse.save({"w": torch.zeros(3)}, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and sparse.load(tmp_path / "a")["w"].tolist() == [0, 0, 0]


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing" / "a", tmp_path / "file" / "a", tmp_path / "pipe",
                 tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written .* expected a file in an existing, "
                                             "writable folder") as caught:
            sparse.save({"w": torch.ones(3)}, path)
        assert str(path) in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]
