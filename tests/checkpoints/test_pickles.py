"""Files made to harm: what they claim is compared before memory is taken, what they name is neither imported
nor called."""
import argparse
import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.torch_files import HUGE, STATE, in_pickle, refused, rezipped, save
from torch import nn
from torchvision.transforms import Normalize

from pwoa_cli.checkpoints import pickles
from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.checkpoints.training_threat import threat_of
from pwoa_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("folder")


# --- sizes ---------------------------------------------------------------

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
    save({"a.weight": shared, "b.weight": shared, "c.weight": shared.t(), "d": torch.ones(1).expand(100),
          "e": torch.ones(0, 3), "f": torch.rand(10)[2:5]}, new)
    state = read_state_dict("m.pt")[0]
    assert torch.equal(state["c.weight"], shared.t())
    assert state["d"].tolist() == [1.0] * 100 and state["e"].shape == (0, 3)
    assert state["f"].shape == (3,)


def test_zip_bombs(monkeypatch):
    monkeypatch.setattr(pickles, "SMALLEST_BOUND", 2**20)
    bomb = rezipped(save(STATE), lambda n, part: bytes(2**22) if n.endswith("data/0") else part,
                    compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**16 and "its zip entries claim 4194" in refused(bomb)


def test_compressed_entries_of_usual_size_are_read():
    Path("m.pt").write_bytes(rezipped(save(STATE), lambda name, part: part, compression=zipfile.ZIP_DEFLATED))
    assert torch.equal(read_state_dict("m.pt")[0]["a.weight"], STATE["a.weight"])


def test_zip_entries_that_overlap_or_repeat():
    whole = bytearray(save(STATE))
    entry = whole.index(b"m/data/0", whole.index(b"PK\1\2")) - 46
    whole[entry + 20:entry + 28] = (2**31).to_bytes(4, "little") * 2
    assert "bytes between m/data/0 and what follows it" in refused(bytes(whole))
    twice = io.BytesIO(save(STATE))
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("m/data/0", bytes(64))
    assert "same name" in refused(twice.getvalue())


@pytest.mark.parametrize("harm", [lambda m: m[:40] + m, lambda m: m + b"x", lambda m: m + m,
                                  lambda m: m.replace(b"m/version", b"m/DATA/0.")])
def test_what_other_readers_would_read_otherwise_is_refused(harm):
    assert "broken or truncated: " in refused(harm(save(STATE)))


def test_record_that_is_missing():
    assert "storage 0 has no bytes, its tensors claim 64" in refused(
        rezipped(save(STATE), lambda name, part: None if name.endswith("data/0") else part))


@pytest.mark.parametrize("new", [True, False])
def test_truncated_anywhere(new):
    whole = save({"w.weight": torch.rand(30, 10), "args": argparse.Namespace(eps=0.3)}, new)
    for kept in range(1, len(whole), len(whole) // 25 + 1):
        message = refused(whole[:kept])
        short = kept < 32 and "is not a checkpoint" in message
        assert "broken or truncated" in message or short, (kept, message)


def test_big_endian_file_by_hand_is_read_right():
    def swap(name, part):
        swapped = np.frombuffer(part, "<f4").astype(">f4").tobytes() if "/data/" in name else part
        return b"big" if name.endswith("byteorder") else swapped

    Path("m.pt").write_bytes(rezipped(save(STATE), swap))
    state = read_state_dict("m.pt")[0]
    assert all(torch.equal(state[key], tensor) for key, tensor in STATE.items())
    assert "byte order is b'middle'" in refused(
        rezipped(save(STATE), lambda n, p: b"middle" if n.endswith("byteorder") else p))


# --- data beside tensors ---------------------------------------------------------------

@pytest.mark.parametrize("new", [True, False])
def test_plain_data_is_read(new):
    data = {"args": argparse.Namespace(eps=0.3, folder=pathlib.PurePosixPath("a/b")),
            "log": [1, 2.0, None, "x", (True,)], "steps": collections.Counter([3, 3]), "names": {1, 2},
            "z": 1j, "raw": bytearray(b"ab"), "size": torch.Size([1, 2]), "device": torch.device("cuda:0"),
            "dtype": torch.float16, "big": 2**70}
    save({"net": STATE} | data, new)
    state, extra, _ = read_state_dict("m.pt")
    expected = {k: v for k, v in data.items() if k != "steps"}
    assert set(state) == set(STATE) and extra == expected, "a Counter is a mapping"


# --- trust ---------------------------------------------------------------

class Net(nn.Linear):
    """A network whose class can be imported from here."""


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.filterwarnings("ignore")  # of modules saved whole
def test_whole_module_needs_trust_and_gives_its_state_dict(new):
    net = Net(4, 2)
    for content, way in ((net, ()), (nn.DataParallel(net), ("prefix module.",)),
                         ({"model": net, "epoch": 3}, ("model",))):
        save(content, new)
        message = refused()
        assert "nothing was run" in message and "Net" in message
        with pytest.raises(InputError, match="more than tensors") as caught:
            read_state_dict("m.pt")
        assert "--trust-pickle" in caught.value.hint
        state, _, notes = read_state_dict("m.pt", trust_pickle=True)
        assert torch.equal(state["weight"], net.weight) and all(f"unwrapped: {w}" in notes for w in way)
        assert notes[0].startswith("warning: read with its own code, as --trust-pickle says: ")
        assert "Net" in notes[0]


class Wrapped(nn.Module):
    """Normalises by attributes of its own."""

    def __init__(self, net, mean, std):
        super().__init__()
        self.net, self.mean, self.std = net, mean, std


@pytest.mark.filterwarnings("ignore")  # of modules saved whole
@pytest.mark.parametrize("kind", [list, torch.tensor, np.array], ids=["list", "tensor", "array"])
def test_a_normalisation_that_no_state_dict_has_is_named(kind):
    """torchvision's Normalize in a whole Sequential was "normalisation: none in the file"."""
    mean, std = kind([0.5, 0.25, 0.125]), kind([0.25, 0.5, 0.75])
    said = ("are attributes, not tensors of the state dict, and are not taken: --mean 0.5,0.25,0.125 "
            "--std 0.25,0.5,0.75 takes them")
    inside = {"model": nn.Sequential(Normalize(mean, std), Net(4, 2))}
    for net, where in ((Wrapped(Net(4, 2), mean, std), "mean and std of Wrapped"),
                       (inside, "0.mean and std of Normalize")):
        save(net)
        assert f"warning: {where} {said}" in read_state_dict("m.pt", trust_pickle=True)[2]
    save({"model": nn.Sequential(nn.BatchNorm1d(4), Net(4, 2))})
    assert not any("attributes" in note for note in read_state_dict("m.pt", trust_pickle=True)[2])


def test_names_in_a_file_cannot_forge_what_a_terminal_shows():
    evil = "x\n\x1b[2Jerror: all is well"
    for content in ({evil: 3}, {evil + ".weight": torch.full((2, 2), float("nan"))},
                    {evil: STATE, evil + "2": STATE}):
        save(content)
        assert "\x1b" not in refused()
    save({evil: STATE})
    assert read_state_dict("m.pt")[2] == ("unwrapped: x??[2Jerror: all is well",)


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
    assert "of a class of the script that saved it (__main__): Can't get attribute 'Net'." in refused(
        script, trust_pickle=True)


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


def test_integers_of_which_python_makes_no_text():
    huge = 10**5000
    for content in ({huge: STATE}, {huge: 1, "w.weight": torch.ones(2, 2)},
                    STATE | {"norm": huge, "eps": 0.1}, [huge],
                    {"model": STATE, "args": {"norm": huge, "eps": huge}}):
        save(content)
        try:
            _, extra, _ = read_state_dict("m.pt")
            assert threat_of(extra) is None
        except InputError as error:
            assert "m.pt" in error.message and len(error.message) < 300
