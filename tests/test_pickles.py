"""Files made to harm: what they claim is compared before memory is taken, what they name is neither imported nor called."""
import argparse
import collections
import io
import pathlib
import pickle
import resource
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from pwoa_cli import pickles, rehearsal
from pwoa_cli.checkpoint_file import read_state_dict
from pwoa_cli.errors import InputError

STATE = {"a.weight": torch.arange(16.0).reshape(4, 4), "b.weight": torch.ones(2, 4)}
SHAPE = b"K\x04K\x04\x86"  # (4, 4) in a pickle
HUGE = b"\x8a\x05\x00\x00\x00\x00\x10"  # 2**36


class Net(nn.Linear):
    """A network whose class can be imported from here."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(content, new=True):
    torch.save(content, "m.pt", _use_new_zipfile_serialization=new)
    return Path("m.pt").read_bytes()


def refused(content=None, path="m.pt", **options):
    """The message; while it is found, no more than 1 GiB of address space is taken."""
    if content is not None:
        Path(path).write_bytes(content)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, hard))
    try:
        with pytest.raises(InputError) as caught:
            read_state_dict(path, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert caught.value.hint and path in caught.value.message and "\n" not in caught.value.message
    assert "alloc" not in caught.value.message, "found before memory was taken"
    return caught.value.message


def rezipped(content, edit, *, compression=zipfile.ZIP_STORED):
    """A torch file with its records changed: edit(name, bytes) -> bytes, or None to leave it out."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w", compression) as new:
        for name in old.namelist():
            changed = edit(name, old.read(name))
            if changed is not None:
                new.writestr(name, changed)
    return result.getvalue()


def in_pickle(content, old, new):
    """The torch file of either format with its pickle changed."""
    if not content.startswith(b"PK"):
        assert old in content
        return content.replace(old, new)
    return rezipped(content, lambda name, part: part.replace(old, new) if name.endswith("data.pkl") else part)


# --- sizes -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("new", [True, False])
def test_tensor_larger_than_its_storage(new):
    message = refused(in_pickle(save(STATE, new), SHAPE, HUGE + b"K\x04\x86"))
    assert "needs" in message and "its storage has 64" in message


@pytest.mark.parametrize("new", [True, False])
def test_storage_larger_than_the_file(new):
    whole = save(STATE, new)
    message = refused(in_pickle(whole, b"K\x10" if new else b"K\x10N", HUGE + (b"" if new else b"N")))
    assert "claim 274877906944" in message or "take 274877906" in message


@pytest.mark.parametrize("new", [True, False])
def test_expanded_tensor_of_huge_size(new):
    save({"w.weight": torch.ones(1).expand(2**33)}, new)
    assert "would take 34359738368 bytes of memory" in refused()


@pytest.mark.parametrize("new", [True, False])
def test_many_huge_views_of_a_small_storage(new):
    save({f"w{i}.weight": torch.ones(1).expand(2**24) for i in range(9)}, new)
    assert f"would take {9 * 2**26} bytes" in refused()


@pytest.mark.parametrize("new", [True, False])
def test_expanded_and_shared_tensors_of_usual_size_are_read(new):
    shared = torch.rand(3, 4)
    save({"a.weight": shared, "b.weight": shared, "c.weight": shared.t(), "d": torch.ones(1).expand(100), "e": torch.ones(0, 3),
          "f": torch.rand(10)[2:5]}, new)
    state = read_state_dict("m.pt")[0]
    assert torch.equal(state["c.weight"], shared.t()) and state["d"].tolist() == [1.0] * 100 and state["e"].shape == (0, 3)
    assert state["f"].shape == (3,)


def test_negative_strides_and_offsets():
    for old, new in ((b"K\x04K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86"), (b"QK\x00K\x04", b"QJ\xff\xff\xff\xffK\x04")):
        assert "has no storage that fits" in refused(in_pickle(save(STATE), old, new))


def test_zip_bombs(monkeypatch):
    monkeypatch.setattr(pickles, "SMALLEST_BOUND", 2**20)
    bomb = rezipped(save(STATE), lambda n, part: bytes(2**22) if n.endswith("data/0") else part, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**16 and "its zip entries claim 4194" in refused(bomb)


def test_compressed_entries_of_usual_size_are_read():
    Path("m.pt").write_bytes(rezipped(save(STATE), lambda name, part: part, compression=zipfile.ZIP_DEFLATED))
    assert torch.equal(read_state_dict("m.pt")[0]["a.weight"], STATE["a.weight"])


def test_zip_entries_that_overlap_or_repeat():
    whole = bytearray(save(STATE))
    entry = whole.index(b"m/data/0", whole.index(b"PK\1\2")) - 46
    whole[entry + 20:entry + 28] = (2**31).to_bytes(4, "little") * 2
    assert "its zip entries claim 2147" in refused(bytes(whole))
    twice = io.BytesIO(save(STATE))
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("m/data/0", bytes(64))
    assert "same name" in refused(twice.getvalue())


def test_record_that_is_missing():
    assert "storage 0 has no bytes, its tensors claim 64" in refused(
        rezipped(save(STATE), lambda name, part: None if name.endswith("data/0") else part))


@pytest.mark.parametrize("new", [True, False])
def test_truncated_anywhere(new):
    whole = save({"w.weight": torch.rand(30, 10), "args": argparse.Namespace(eps=0.3)}, new)
    for kept in range(1, len(whole), len(whole) // 25 + 1):
        message = refused(whole[:kept])
        assert "broken or truncated" in message or (kept < 32 and "is not a checkpoint" in message), (kept, message)


def test_truncated_safetensors():
    whole = safetensors.torch.save(STATE)
    for kept in range(1, len(whole), len(whole) // 22 + 1):
        for name in ("m.safetensors", "m.pt"):
            Path(name).write_bytes(whole[:kept])
            assert refused(path=name)


@pytest.mark.parametrize(("old", "new"), [
    (b'"shape":[4,4]', b'"shape":[4,5]'), (b'"shape":[4,4]', b'"shape":[9,9]'),
    (b'"data_offsets":[0,64]', b'"data_offsets":[0,99]'),
    (b'"data_offsets":[0,64]', b'"data_offsets":[9,64]'), (b'"data_offsets":[64,96]', b'"data_offsets":[0,32]'),
    (b'"F32"', b'"F99"'), (b'"shape":[4,4]', b'"shape":[4,]'), (b'"shape":[4,4]', b'"shape":4   ')])
def test_safetensors_header_that_lies(old, new):
    whole = safetensors.torch.save(STATE)
    assert old in whole
    length = int.from_bytes(whole[:8], "little") + len(new) - len(old)
    Path("m.safetensors").write_bytes(length.to_bytes(8, "little") + whole[8:].replace(old, new, 1))
    assert refused(path="m.safetensors")


def test_safetensors_header_longer_than_the_file():
    for claim in (2**40, 2**63, 10**8):
        content = claim.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    '
        assert f"header claims {claim} bytes" in refused(content)
        assert refused(content, path="m.safetensors")


def test_big_endian_file_by_hand_is_read_right():
    def swap(name, part):
        swapped = np.frombuffer(part, "<f4").astype(">f4").tobytes() if "/data/" in name else part
        return b"big" if name.endswith("byteorder") else swapped

    Path("m.pt").write_bytes(rezipped(save(STATE), swap))
    state = read_state_dict("m.pt")[0]
    assert all(torch.equal(state[key], tensor) for key, tensor in STATE.items())
    assert "byte order is b'middle'" in refused(rezipped(save(STATE), lambda n, p: b"middle" if n.endswith("byteorder") else p))


def test_pickle_that_grows(monkeypatch):
    monkeypatch.setattr(rehearsal, "PICKLE_BYTES", 2000)
    grown = b"\x80\x02N" + b"0N" * 2000 + b"."
    assert "is not a checkpoint" in refused(grown)
    assert "more than 2000 bytes" in refused(rezipped(save(STATE), lambda n, part: grown if n.endswith("data.pkl") else part))
    memo = in_pickle(save(STATE), b"q\x00", b"r\xff\xff\xff\xff")  # a memo of 32 GiB for who keeps it in an array
    Path("m.pt").write_bytes(memo)
    assert set(read_state_dict("m.pt")[0]) == set(STATE)


@pytest.mark.parametrize("call", [(bytearray, 2**40), (torch.FloatTensor, 2**40), (np.zeros, 2**40), (torch.zeros, 2**40),
                                  (torch.UntypedStorage, 2**40)])
def test_calls_that_take_memory_are_not_made(call):
    class Taker:
        def __reduce__(self):
            return call[0], (call[1],)

    for new in (True, False):
        save(STATE | {"x": Taker()}, new)
        assert "would run" in refused()


# --- data beside tensors -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("new", [True, False])
def test_plain_data_is_read(new):
    data = {"args": argparse.Namespace(eps=0.3, folder=pathlib.PurePosixPath("a/b")), "log": [1, 2.0, None, "x", (True,)],
            "steps": collections.Counter([3, 3]), "names": {1, 2}, "z": 1j, "raw": bytearray(b"ab"), "size": torch.Size([1, 2]),
            "device": torch.device("cuda:0"), "dtype": torch.float16, "big": 2**70}
    save({"net": STATE} | data, new)
    state, extra, _ = read_state_dict("m.pt")
    assert set(state) == set(STATE) and extra == {k: v for k, v in data.items() if k != "steps"}, "a Counter is a mapping"


ARRAYS = [np.arange(5.0), np.zeros((2, 0, 3), "f4"), np.array([[1, 2], [3, 4]], ">i8"), np.array(True), np.ones(3, "f2"),
          np.arange(6).reshape(2, 3).T, np.array([1 + 2j])]


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_of_numbers_are_read(new, array):
    whole = save({"net": STATE, "best_acc": array}, new)
    names = [b"numpy._core.multiarray", b"numpy.core.multiarray"]
    for content in (whole, in_pickle(whole, names[0] + b"\n", names[1] + b"\n")):
        Path("m.pt").write_bytes(content)
        read = read_state_dict("m.pt")[1]["best_acc"]
        assert isinstance(read, np.ndarray) and np.array_equal(read, array) and read.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("array", [np.array([1, "a"], dtype=object), np.zeros(2, "f4,O"), np.zeros(2, "f4,i4"), np.array(["ab"]),
                                   np.array(["2020-01-01"], "M8[D]"), np.zeros(2, "V8"), np.ma.masked_array([1, 2])], ids=str)
@pytest.mark.parametrize("new", [True, False])
def test_other_arrays_are_not(new, array):
    save({"net": STATE, "log": array}, new)
    assert "would run" in refused()


def test_arrays_that_lie():
    whole = save({"net": STATE, "log": np.arange(5.0)})
    assert "NumPy array of float64 (4,) has 40 bytes" in refused(in_pickle(whole, b"K\x01K\x05\x85", b"K\x01K\x04\x85"))
    assert "numpy.ndarray of another make" in refused(in_pickle(whole, b"K\x00\x85", HUGE + b"\x85"))
    for code in (b"O8", b"V8", b"S8"):
        assert "numpy.dtype" in refused(in_pickle(whole, b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00" + code))
    flags = in_pickle(whole, b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft")
    assert "numpy.dtype('f8')" in refused(flags), "flags of objects on a dtype of numbers"


# --- trust -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("new", [True, False])
@pytest.mark.filterwarnings("ignore")  # of modules saved whole
def test_whole_module_needs_trust_and_gives_its_state_dict(new):
    net = Net(4, 2)
    for content, way in ((net, ()), (nn.DataParallel(net), ("prefix module.",)), ({"model": net, "epoch": 3}, ("model",))):
        save(content, new)
        message = refused()
        assert "nothing was run" in message and "Net" in message
        with pytest.raises(InputError, match="more than tensors") as caught:
            read_state_dict("m.pt")
        assert "--trust-pickle" in caught.value.hint
        state, _, notes = read_state_dict("m.pt", trust_pickle=True)
        assert torch.equal(state["weight"], net.weight) and all(f"unwrapped: {w}" in notes for w in way)
        assert notes[0].startswith("warning: read with its own code, as --trust-pickle says: ") and "Net" in notes[0]


def test_names_in_a_file_cannot_forge_what_a_terminal_shows():
    evil = "x\n\x1b[2Jerror: all is well"
    for content in ({evil: 3}, {evil + ".weight": torch.full((2, 2), float("nan"))}, {evil: STATE, evil + "2": STATE}):
        save(content)
        assert "\x1b" not in refused()
    save({evil: STATE})
    assert read_state_dict("m.pt")[2] == ("unwrapped: x??[2Jerror: all is well",)


def test_torch_file_with_the_suffix_of_another_format():
    Path("m.safetensors").write_bytes(save(STATE))
    assert set(read_state_dict("m.safetensors")[0]) == set(STATE)


def test_what_a_trusted_file_prints_goes_to_the_human(capsys):
    class Talker:
        def __reduce__(self):
            return print, ("hello",)

    save(STATE | {"x": Talker()})
    read_state_dict("m.pt", trust_pickle=True)
    assert capsys.readouterr() == ("", "hello\n")


def test_trust_is_not_used_where_nothing_needs_it():
    save(STATE)
    assert read_state_dict("m.pt", trust_pickle=True)[2] == ()


def test_class_that_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.ModuleType("mine"))
    sys.modules["mine"].Net = type("Net", (nn.Linear,), {"__module__": "mine"})
    save(sys.modules["mine"].Net(2, 2))
    del sys.modules["mine"]
    assert "mine.Net" in refused()
    assert "needs code that cannot be imported here: No module named 'mine'" in refused(trust_pickle=True)
    with pytest.raises(InputError) as caught:
        read_state_dict("m.pt", trust_pickle=True)
    assert "PYTHONPATH" in caught.value.hint
    script = in_pickle(Path("m.pt").read_bytes(), b"cmine\n", b"c__main__\n")
    assert "cannot be imported here: Can't get attribute 'Net'" in refused(script, trust_pickle=True)


def test_plain_pickles():
    Path("m.pt").write_bytes(pickle.dumps({"w.weight": torch.ones(2, 2)}))
    assert "torch.storage._load_from_bytes" in refused()
    assert read_state_dict("m.pt", trust_pickle=True)[0]["w.weight"].tolist() == [[1, 1], [1, 1]]
    Path("m.pt").write_bytes(pickle.dumps({"w.weight": [1.0]}))
    assert "a pickle that torch.save did not write" in refused()


def test_protocols_that_torch_does_not_read_safely():
    torch.save(STATE, "m.pt", pickle_protocol=4)
    assert "pickled by a protocol that torch does not read safely" in refused()


def test_what_only_runs_when_it_is_read_is_not_run_by_a_refusal():
    class Bomb:
        def __reduce__(self):
            return exec, ("open('ran', 'w')",)

    for new in (True, False):
        save({"w.weight": torch.ones(2, 2), "x": Bomb()}, new)
        assert "builtins.exec" in refused() and not Path("ran").exists()
    assert read_state_dict("m.pt", trust_pickle=True)[0].keys() == {"w.weight"} and Path("ran").exists()
