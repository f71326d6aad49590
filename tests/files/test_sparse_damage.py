"""Sparse files that are damaged or lie: each is one sentence, and none takes memory beyond its size."""
import json
import os
import random
import tracemalloc

import numpy as np
import pytest
import torch
from helpers.sparse_files import (
    assert_refused,
    encodings,
    equal,
    framed,
    opened,
    rewrite,
    small_state,
    written,
    zeroed,
)

from pwoa_cli.errors import InputError
from pwoa_cli.files import packed, sparse


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "model.safetensors"
    assert_refused(path, "does not exist")
    assert_refused(tmp_path, "is not a file")
    torch.save({"w": torch.ones(2)}, path)
    assert_refused(path, "looks like a PyTorch checkpoint")
    for content, word in ((b"", "is empty"), (b"<!DOCTYPE html><html>not found</html>", "web page"),
                          (b"\n <html>", "web page"),
                          (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
                          (b"\x80\x02}q", "pickle"),
                          (b"\xff" * 100, "has 100 bytes"), (b"\0" * 8, "has 8 bytes"),
                          (b"hello", "has 5 bytes")):
        path.write_bytes(content)
        assert_refused(path, word)
        with pytest.raises(InputError):
            sparse.load_metadata(path)


def test_every_truncation_of_a_small_file(tmp_path):
    state = {"w": zeroed((3000,), 0.98), "m": zeroed((400,), 0.5), "b": torch.ones(2)}
    sparse.save(state, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"w": "rice", "m": "mask", "b": ""}
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(data + b"\0")
    assert_refused(tmp_path / "b")
    for length in reversed(range(len(data))):
        os.truncate(tmp_path / "b", length)
        assert_refused(tmp_path / "b")


def test_truncations_of_a_bigger_file(tmp_path):
    sparse.save({f"{i}": zeroed((100, 100), 0.9, seed=i) for i in range(10)}, tmp_path / "a")
    data, rng = (tmp_path / "a").read_bytes(), random.Random(0)
    for _ in range(200):
        (tmp_path / "b").write_bytes(data[:rng.randrange(len(data))])
        assert_refused(tmp_path / "b")


def test_every_flipped_bit_of_the_blob_is_found(tmp_path):
    sparse.save(small_state(), tmp_path / "a", metadata={"arch": "lenet"})
    data, rng = (tmp_path / "a").read_bytes(), random.Random(0)
    end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 20))):
            broken[rng.randrange(end, len(data))] ^= 1 << rng.randrange(8)
        if broken != data:
            (tmp_path / "b").write_bytes(broken)
            assert_refused(tmp_path / "b", "the checksum of its")


@pytest.mark.parametrize("part", ["header", "index", "streams"])
def test_bits_that_a_forger_flips_are_refused_or_load(tmp_path, monkeypatch, part):
    """With a checksum that fits: never another exception, a crash or memory beyond the bound (1 MiB here)."""
    monkeypatch.setattr(sparse, "SMALLEST_BOUND", 2**20)
    monkeypatch.setattr(sparse, "EXPANSION", 8)
    sparse.save(small_state(), tmp_path / "a")
    data, rng = (tmp_path / "a").read_bytes(), random.Random(0)
    index, streams, metadata = opened(tmp_path / "a")
    text, end = json.dumps(index).encode(), 8 + int.from_bytes(data[:8], "little")
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(250):
            held = tracemalloc.get_traced_memory()[0]  # garbage of the loads before among it
            tracemalloc.reset_peak()
            raw = bytearray({"header": data[:end], "index": text, "streams": b"".join(streams)}[part])
            for _ in range(rng.choice((1, 1, 1, 2, 20))):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            if part == "header":
                (tmp_path / "b").write_bytes(bytes(raw) + data[end:])
            else:
                blob = framed(bytes(raw), streams) if part == "index" else framed(index, [bytes(raw)])
                written(tmp_path / "b", blob, metadata)
            try:
                sparse.load(tmp_path / "b")
            except InputError as error:
                refused += 1
                assert error.hint
            assert tracemalloc.get_traced_memory()[1] - held < 2**22
    finally:
        tracemalloc.stop()
    assert refused > (30 if part == "streams" else 150)


def row(key, place, value):
    def edit(rows, index, streams):
        if place is None:
            rows[key][:] = value
        else:
            rows[key][place] = value
    return edit


def stream(place, change, *, deflate=False):
    def edit(rows, index, streams):
        streams[place] = bytes(change(bytearray(streams[place])))
        index["streams"][place] = len(streams[place]) * (-1 if deflate else 1)
    return edit


def bits(value, at):
    def change(data):
        data[at] = bytes([value]) * len(data[at]) if isinstance(at, slice) else value
        return data
    return change


MASK, HI, LO, SCALE, FLAT, TOP = 0, 1, 2, 3, 4, 7  # streams: the last two are planes of F32
LIES = {
    "no tensors": (lambda r, i, s: i.pop("tensors"), "expected lists of tensors and streams"),
    "tensors type": (lambda r, i, s: i.update(tensors={}), "expected lists of tensors and streams"),
    "more fields": (lambda r, i, s: i.update(module="os"), "expected lists of tensors and streams"),
    "row type": (lambda r, i, s: i["tensors"].append(3), "a row of the index is 3"),
    "row short": (row("w", None, ["w", "F32"]), "expected [name, dtype, shape]"),
    "name type": (row("w", 0, 1), "expected [name, dtype, shape]"),
    "name twice": (row("m", 0, "w"), "'w' is named twice"),
    "row missing": (lambda r, i, s: i["tensors"].pop(0), "bytes, expected"),
    "row invented": (lambda r, i, s: i["tensors"].append(["x", "F32", [3]]), "bytes, expected"),
    "encoding": (row("w", 3, "zstd"), "is encoded as ['zstd'"),
    "encoding type": (row("w", 3, ["rice"]), "is encoded as"),
    "encoding of integers": (row("n", None, ["n", "I64", [], "mask", 1]), "for a float"),
    "numbers": (row("w", None, ["w", "F32", [100, 50], "rice", 100, 5]), "is encoded as"),
    "number type": (row("w", 4, "100"), "is encoded as"),
    "number bool": (row("w", 4, True), "is encoded as"),
    "number negative": (row("w", 4, -1), "is encoded as"),
    "shape more": (row("w", 2, [2**40]), "bytes of memory, expected at most"),
    "shape past 2^63": (row("w", 2, [2**64]), "has shape"),
    "shape product past 2^63": (row("w", 2, [2**62, 2**62]), "has shape"),
    "shape negative": (row("w", 2, [-100, -50]), "has shape"),
    "shape float": (row("w", 2, [5000.0]), "has shape"),
    "shape type": (row("w", 2, "5000"), "expected [name, dtype, shape]"),
    "shape bool": (row("w", 2, [True, 5000]), "has shape"),
    "dtype": (row("w", 1, "F16"), "streams"),
    "dtype unknown": (row("w", 1, "I3"), "has dtype 'I3'"),
    "dtype scaled integer": (row("w", 1, "I32:I8"), "has dtype 'I32:I8'"),
    "dtype scaled vector": (row("m", 1, "F32:I8"), "expected two dimensions or more"),
    "nnz more": (row("w", 4, 101), "bytes, expected"),
    "nnz past numel": (row("w", 4, 5001), "has nnz 5001 and k"),
    "k more": (row("w", 5, 60), "bytes, expected"),
    "k huge": (row("w", 5, 10**15), "and k 1000000000000000, expected at most"),
    "hi bytes": (row("w", 6, 3), "bytes, expected"),
    "streams fewer": (lambda r, i, s: (i["streams"].pop(), s.pop()), "streams have"),
    "stream length": (lambda r, i, s: i["streams"].__setitem__(HI, i["streams"][HI] - 1), "streams have"),
    "stream length type": (lambda r, i, s: i["streams"].__setitem__(HI, 2.0), "lengths of streams"),
    "stream length huge": (lambda r, i, s: i["streams"].__setitem__(HI, 2**63), "lengths of streams"),
    "stream cut": (stream(FLAT, lambda d: d[:-1]), "a stream has"),
    "stream longer": (stream(FLAT, lambda d: d + b"1"), "a stream has"),
    "not deflated": (stream(FLAT, lambda d: b"\xff" * len(d), deflate=True), "cannot be inflated"),
    "bomb": (stream(TOP, lambda d: packed.streams.deflated(bytes(10**6)), deflate=True), "without its end"),
    "inflates to less": (stream(TOP, lambda d: packed.streams.deflated(bytes(9)), deflate=True),
                         "inflates to 9 bytes"),
    "after the end": (stream(TOP, lambda d: packed.streams.deflated(bytes(9)) + b"1", deflate=True),
                      "and its end"),
    "hi cut": (lambda r, i, s: (row("w", 6, r["w"][6] - 1)(r, i, s), stream(HI, lambda d: d[:-1])(r, i, s)),
               "gap_hi ends"),
    "hi longer": (lambda r, i, s: (row("w", 6, r["w"][6] + 1)(r, i, s),
                                   stream(HI, lambda d: d + b"\0")(r, i, s)), "gap_hi has"),
    "lo padding": (stream(LO, bits(0xFF, -1)), "gap_lo has ones after its last gap"),
    "gaps run past": (stream(LO, bits(0xFF, slice(0, -1))), "run past the end, to position"),
    "mask bits more": (stream(MASK, bits(0xFF, slice(0, 9))), "the mask has"),
    "mask bits less": (stream(MASK, bits(0, slice(0, 9))), "the mask has"),
    "mask padding": (stream(MASK, bits(0x80, -1)), "of them after its end"),
    "value zero": (lambda r, i, s: [
        stream(place, lambda d: bits(0, 3)(bytearray(packed.streams.inflated(d, most=303))))(r, i, s)
        for place in range(FLAT, TOP + 1)], "1 of the 100 values are zero"),
    "boolean": (stream(-1, bits(2, 0)), "a boolean is stored as 2, expected 0 or 1"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    edit, words = LIES[lie]
    w, m = torch.zeros(100, 50), torch.zeros(401)
    w.view(-1)[torch.randperm(4999, generator=torch.Generator().manual_seed(0))[:100]] = 1.0
    m[torch.randperm(400, generator=torch.Generator().manual_seed(1))[:200]] = 2.0
    state = {"w": w, "m": m, "b": torch.ones(3), "n": torch.tensor(1), "t": torch.tensor([True])}
    sparse.save(state, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"w": "rice", "m": "mask", "b": "", "n": "", "t": ""}
    rewrite(tmp_path / "a", edit)
    assert_refused(tmp_path / "a", words)


@pytest.mark.parametrize("index", [b"", b"{", b"[]", b"1", b"null", b'"x"', b"[" * 100000, b"9" * 5000,
                                   b'{"tensors": [', b"\x00", b"\xff", bytes(2**24 + 1)])
def test_an_index_that_is_none(tmp_path, index):
    written(tmp_path / "a", framed(index, []), {"pwoa": '{"version":2}'})
    assert_refused(tmp_path / "a", "the index")


@pytest.mark.parametrize("blob", [b"", b"1234567", b"\0" * 8, framed({}, [])[:9]])
def test_a_blob_that_is_none(tmp_path, blob):
    written(tmp_path / "a", blob, {"pwoa": '{"version":2}'})
    assert_refused(tmp_path / "a", "the checksum of its" if blob != bytes(8) else "")


@pytest.mark.parametrize("options", [{"dtype": np.int8}, {"name": "x"}])
def test_an_array_that_is_none(tmp_path, options):
    written(tmp_path / "a", framed({}, []), {"pwoa": '{"version":2}'}, **options)
    assert_refused(tmp_path / "a")


def test_an_index_that_is_too_large_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "MAX_INDEX", 100)
    with pytest.raises(InputError, match="cannot be stored: the index has .* expected at most 100"):
        sparse.save({"w" * 100: torch.ones(1)}, tmp_path / "a")
    assert not list(tmp_path.iterdir())


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
    monkeypatch.setattr(sparse, "SMALLEST_BOUND", 2**16)
    monkeypatch.setattr(sparse, "EXPANSION", 64)
    tensor = torch.zeros(2**18)
    sparse.save({"w": tensor}, tmp_path / "a")
    assert encodings(tmp_path / "a") == {"w": "mask"} and equal(sparse.load(tmp_path / "a")["w"], tensor)
    with pytest.raises(InputError, match="would take 1048576 bytes of memory, expected at most 9.") as caught:
        sparse.load(tmp_path / "a", max_bytes=9)
    assert "max_bytes=1048576" in caught.value.hint
    monkeypatch.setattr(sparse, "EXPANSION", 10**6)
    sparse.save({"w": tensor}, tmp_path / "a")
    monkeypatch.setattr(sparse, "EXPANSION", 64)
    assert encodings(tmp_path / "a") == {"w": "rice"}
    assert_refused(tmp_path / "a", "1048576 bytes of memory")
    assert equal(sparse.load(tmp_path / "a", max_bytes=2**20)["w"], tensor)
