"""Arrays of .npz files: equal to NumPy's own, and refused before they take memory."""
import io
import zipfile

import numpy as np
import pytest

from pwoa_cli.errors import InputError
from pwoa_cli.files.arrays import read_arrays
from pwoa_cli.machine import memory

ARRAYS = {"a": np.arange(6).reshape(2, 3), "b": np.array(["x", "", "yz"]), "c": np.float32(1.5),
          "d": np.ones((0, 3)), "e": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
          "f": np.array([True, False]), "g": np.array([1j])}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    found, names = read_arrays(tmp_path / "a.npz")
    assert names == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype
    assert list(read_arrays(tmp_path / "a.npz", ("c", "none"))[0]) == ["c"]


def npz(path, name, content, *, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


def npy(shape, *, dtype="|u1", values=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + values


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a", b"text", "magic string"), ("a.npy", b"", "EOF"),
    ("a.npy", npy((2**40,)), "its shape .* takes 1099511627776"),
    ("a.npy", npy((-3,), values=b"abc"), "takes -3"),
    ("a.npy", npy((2,), dtype="|O", values=bytes(16)), "dtype object"),
    ("a.npy", npy((2**50,), dtype="|S0"), "expected numbers or text"),
    ("a.npy", npy((2,), values=b"abc"), "has 3 bytes"),
    ("a.npy", npy((2,), dtype="<U1", values=b"a\0\0\0\0\0\x11\0"), "holds text with 1114112"),
    ("a.npy", npy((1,), dtype=">U1", values=b"\x01\0\0\0"), "holds text with 16777216"),
    ("a.npy", b"\x93NUMPY\x09\0" + bytes(99), "version")])
def test_what_is_no_array_is_refused(tmp_path, name, content, said):
    with pytest.raises((ValueError, EOFError), match=said):
        read_arrays(npz(tmp_path / "a.npz", name, content))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    bomb = npy((2**26,), values=bytes(2**26))
    path = npz(tmp_path / "a.npz", "a.npy", bomb, method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    monkeypatch.setattr(memory, "_said", 2**20)
    with pytest.raises(InputError, match=r"a.npz: its arrays would take 0.0671 GB of memory, expected"):
        read_arrays(path)
