"""Pickles that lie about sizes, or call what takes memory: found out without doing it."""
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.torch_files import HUGE, STATE, in_pickle, refused, rezipped, save

from pwoa_cli.checkpoints import pickle_rehearsal
from pwoa_cli.checkpoints.state_dict import read_state_dict

pytestmark = pytest.mark.usefixtures("folder")

SHAPE = b"K\x04K\x04\x86"  # (4, 4) in a pickle


# --- sizes ---------------------------------------------------------------

@pytest.mark.parametrize("new", [True, False])
def test_tensor_larger_than_its_storage(new):
    message = refused(in_pickle(save(STATE, new), SHAPE, HUGE + b"K\x04\x86"))
    assert "needs" in message and "its storage has 64" in message


def test_negative_strides_and_offsets():
    for old, new in ((b"K\x04K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86"),
                     (b"QK\x00K\x04", b"QJ\xff\xff\xff\xffK\x04")):
        assert "has no storage that fits" in refused(in_pickle(save(STATE), old, new))


def test_pickle_that_grows(monkeypatch):
    monkeypatch.setattr(pickle_rehearsal, "PICKLE_BYTES", 2000)
    grown = b"\x80\x02N" + b"0N" * 2000 + b"."
    assert "is not a checkpoint" in refused(grown)
    assert "more than 2000 bytes" in refused(
        rezipped(save(STATE), lambda n, part: grown if n.endswith("data.pkl") else part))
    memo = in_pickle(save(STATE), b"q\x00", b"r\xff\xff\xff\xff")  # of 32 GiB for who keeps it in an array
    Path("m.pt").write_bytes(memo)
    assert set(read_state_dict("m.pt")[0]) == set(STATE)


@pytest.mark.parametrize("call", [(bytearray, 2**40), (torch.FloatTensor, 2**40), (np.zeros, 2**40),
                                  (torch.zeros, 2**40), (torch.UntypedStorage, 2**40)])
def test_calls_that_take_memory_are_not_made(call):
    class Taker:
        def __reduce__(self):
            return call[0], (call[1],)

    for new in (True, False):
        save(STATE | {"x": Taker()}, new)
        assert "would run" in refused()


# --- arrays ---------------------------------------------------------------

ARRAYS = [np.arange(5.0), np.zeros((2, 0, 3), "f4"), np.array([[1, 2], [3, 4]], ">i8"), np.array(True),
          np.ones(3, "f2"), np.arange(6).reshape(2, 3).T, np.array([1 + 2j])]


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_of_numbers_are_read(new, array):
    whole = save({"net": STATE, "best_acc": array}, new)
    own = np.zeros(0).__reduce__()[0].__module__.encode()  # numpy 2 has renamed it
    other, = {b"numpy._core.multiarray", b"numpy.core.multiarray"} - {own}
    for content in (whole, in_pickle(whole, own + b"\n", other + b"\n")):
        Path("m.pt").write_bytes(content)
        read = read_state_dict("m.pt")[1]["best_acc"]
        assert isinstance(read, np.ndarray) and np.array_equal(read, array)
        assert read.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("array", [np.array([1, "a"], dtype=object), np.zeros(2, "f4,O"),
                                   np.zeros(2, "f4,i4"), np.array(["ab"]), np.array(["2020-01-01"], "M8[D]"),
                                   np.zeros(2, "V8"), np.ma.masked_array([1, 2])], ids=str)
@pytest.mark.parametrize("new", [True, False])
def test_other_arrays_are_not(new, array):
    save({"net": STATE, "log": array}, new)
    assert "would run" in refused()


def test_arrays_that_lie():
    whole = save({"net": STATE, "log": np.arange(5.0)})
    assert "NumPy array of float64 (4,) has 40 bytes" in refused(
        in_pickle(whole, b"K\x01K\x05\x85", b"K\x01K\x04\x85"))
    assert "numpy.ndarray of another make" in refused(in_pickle(whole, b"K\x00\x85", HUGE + b"\x85"))
    for code in (b"O8", b"V8", b"S8"):
        assert "numpy.dtype" in refused(in_pickle(whole, b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00" + code))
    flags = in_pickle(whole, b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t",
                      b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft")
    assert "numpy.dtype('f8')" in refused(flags), "flags of objects on a dtype of numbers"
