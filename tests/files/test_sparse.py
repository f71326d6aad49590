"""The sparse file: bit-equal round trips, whole or not at all, a reader made from docs/sparse-file.md."""
import json
import math
import os
import random
import stat
import struct
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.sparse_files import FLOATS, WORD, encodings, equal, opened, small_state, zeroed
from safetensors import safe_open

from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files import packed, sparse

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
    assert encodings(tmp_path / "a") == {"dense": "", "mask": "mask", "rice": "rice", "tiny": "mask",
                                         "zero": "rice", "integers": ""}


def test_the_chosen_encoding_gives_the_smallest_file(tmp_path, monkeypatch):
    """Oracle for the choice: every encoding, written in full, within a few bytes."""
    for numel in (40, 80, 200, 1000):
        for sparsity in (0.2, 0.6, 0.9, 1.0):
            state = {"some.layer.weight": zeroed((numel,), sparsity)}
            monkeypatch.undo()
            chosen = sparse.save(state, tmp_path / "a")
            sizes = []
            for name in ("", "mask", "rice"):
                monkeypatch.setattr(packed, "min", lambda *_, name=name, **__: name, raising=False)
                sizes.append(sparse.save(state, tmp_path / "b"))
                assert encodings(tmp_path / "b") == {"some.layer.weight": name}
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
    assert list(loaded) == list(state) and set(encodings(tmp_path / "a").values()) == {""}
    assert all(loaded[key].dtype == t.dtype and loaded[key].tolist() == t.tolist()
               for key, t in state.items())


def test_odd_keys_and_order(tmp_path):
    keys = ["z", "a", "", "é.重み", 'quote"\\\n', "a.pwoa_mask", "m" * 3000, "pwoa", "__metadata__"]
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


def test_any_safetensors_reader_opens_it_and_the_reverse(tmp_path):
    state = small_state()
    sparse.save(state, tmp_path / "a", metadata={"arch": "lenet"})
    with safe_open(tmp_path / "a", framework="np") as file:
        assert list(file.keys()) == ["pwoa"]
        assert file.metadata() == {"arch": "lenet", "pwoa": '{"version": 2}'}
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
    """A reader made from docs/sparse-file.md alone: plain Python, one bit at a time."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    begin, end = header["pwoa"]["data_offsets"]
    blob = data[start + begin:start + end]
    assert zlib.crc32(blob[4:]) == int.from_bytes(blob[:4], "little")
    length = int.from_bytes(blob[4:8], "little")
    index, rest = json.loads(zlib.decompress(blob[8:8 + length], -15)), blob[8 + length:]
    streams = []
    for size in index["streams"]:
        part, rest = rest[:abs(size)], rest[abs(size):]
        streams.append(list(zlib.decompress(part, -15) if size < 0 else part))
    mask, hi, lo, scale, *values = streams
    widths = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    words = {}
    for row in index["tensors"]:
        stored = row[1].partition(":")[2] or row[1]
        if stored not in words:
            words[stored] = [values.pop(0) for _ in range(widths.get(stored, 1))]

    def ones(raw):
        return [byte >> i & 1 for byte in raw for i in range(8)]

    def take(stream, count):
        part = stream[:count]
        del stream[:count]
        return part

    def element(stored, size):
        if stored not in widths:
            return bytes(take(words[stored][0], size))
        rotated = sum(take(plane, 1)[0] << 8 * i for i, plane in enumerate(words[stored]))
        return (rotated >> 1 | (rotated & 1) << 8 * size - 1).to_bytes(size, "little")

    tensors = {}
    for name, dtype, shape, *code in index["tensors"]:
        numel, scaled = math.prod(shape), dtype.endswith(":I8")
        size = 1 if scaled else torch.empty(0, dtype=packed.DTYPES[dtype]).element_size()
        positions = range(numel)
        if code and code[0] == "mask":
            positions = [i for i, bit in enumerate(ones(take(mask, -(-numel // 8)))) if bit]
        elif code:
            _, nnz, k, length = code
            unary, low = ones(take(hi, length)), ones(take(lo, -(-nnz * k // 8)))
            positions, position, at = [], -1, 0
            for i in range(nnz):
                quotient = unary.index(1, at) - at
                at += quotient + 1
                position += (quotient << k) + sum(low[i * k + j] << j for j in range(k)) + 1
                positions.append(position)
        dense = bytearray(numel * size)
        for position in positions:
            dense[position * size:(position + 1) * size] = element(
                "I8" if scaled else dtype, size)
        if scaled:
            scales = [struct.unpack("<f", bytes([0, 0, *take(scale, 2)]))[0] for _ in range(shape[0])]
            whole = struct.unpack(f"{numel}b", bytes(dense))
            dense = struct.pack(f"<{numel}f", *(q * scales[i // (numel // shape[0])]
                                                for i, q in enumerate(whole)))
        tensors[name] = bytes(dense)
    assert not any(streams[:4]) and not any(any(parts) for parts in words.values()) and not rest
    return tensors


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_an_independent_reader_agrees(tmp_path, dtype):
    state = small_state() | {"double": zeroed((500,), 0.97, dtype=torch.float64, seed=4)}
    sparse.save(state, tmp_path / "a", dtype=dtype)
    assert set(encodings(tmp_path / "a").values()) == {"", "mask", "rice"}
    read, loaded = read_slowly(tmp_path / "a"), sparse.load(tmp_path / "a")
    assert list(read) == list(state)
    for key, tensor in loaded.items():
        raw = torch.frombuffer(bytearray(read[key]), dtype=torch.uint8)
        if dtype == torch.int8 and tensor.ndim > 1:
            raw = raw.view(torch.float32).to(tensor.dtype).view(torch.uint8)
        assert torch.equal(raw, tensor.flatten().view(torch.uint8))


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
    assert size < limit * {0.5: 1.005, 0.9: 1.01, 0.95: 1.015, 0.99: 1.03}[sparsity]
    assert size < csr_bytes and size < mask_bytes * (0.9 if rice_wins else 1)
    index, streams, _ = opened(tmp_path / "a")
    positions = sum(map(len, streams[:3]))
    assert positions < (limit - nnz * 4) * (1.09 if sparsity == 0.5 else 1.03)


def test_exponents_cost_what_their_entropy_is(tmp_path):
    """Shannon's bound for symbols drawn one by one; the planes of the mantissa stay as they are."""
    w = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    w[w.abs() < 1.6] = 0  # a tenth is left
    sparse.save({"w": w}, tmp_path / "a")
    index, streams, _ = opened(tmp_path / "a")
    kept = w[w != 0]
    exponents = (kept.view(torch.int32) >> 23 & 255).bincount().double() / len(kept)
    entropy = float(-(exponents[exponents > 0] * exponents[exponents > 0].log2()).sum())
    *mantissa, top = streams[4:]
    assert all(0.95 < len(plane) / len(kept) <= 1 for plane in mantissa)
    assert entropy < 1 and len(top) * 8 / len(kept) < 1.35 * entropy + 0.1


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
    with pytest.raises(InputError, match="cannot be stored as torch.int16, expected one of torch.float64"):
        sparse.save({"w": torch.ones(2)}, tmp_path / "b", dtype=torch.int16)
    for value in (math.inf, math.nan):
        with pytest.raises(InputError, match="'w' has values that are not finite, which int8 cannot hold"):
            sparse.save({"w": torch.tensor([[1.0, value]])}, tmp_path / "b", dtype=torch.int8)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 1.0])
def test_int8_is_within_half_a_step_of_each_channel(tmp_path, dtype, sparsity):
    """Oracle: the nearest of 255 levels, whose largest is the channel's largest magnitude to 2^-8."""
    sizes = torch.logspace(-6, 3, 16).to(dtype)[:, None, None, None]
    w = zeroed((16, 8, 3, 3), sparsity, dtype=dtype) * sizes
    state = {"w": w, "bias": torch.randn(16), "n": torch.tensor(3)}
    sparse.save(state, tmp_path / "a", dtype=torch.int8)
    loaded = sparse.load(tmp_path / "a")
    assert loaded["w"].dtype == dtype and equal(loaded["bias"], state["bias"]) and loaded["n"] == 3
    step = w.double().flatten(1).abs().amax(1) / 127 * (1 + 2**-7)
    error = (loaded["w"].double() - w.double()).flatten(1).abs().amax(1)
    assert (error <= step * (0.5 + 127 * torch.finfo(dtype).eps) + 1e-7).all()  # 1e-7: of float16's denormals
    assert (loaded["w"][w == 0] == 0).all()
    sparse.save(loaded, tmp_path / "b", dtype=torch.int8)  # once more changes next to nothing
    assert (sparse.load(tmp_path / "b")["w"].double() - loaded["w"].double()).flatten(1).abs().amax(1).le(
        step * (0.5 + 127 * torch.finfo(dtype).eps) + 1e-7).all()


@pytest.mark.parametrize("key", ["\ud800", 3])
def test_keys_that_are_no_text(tmp_path, key):
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
