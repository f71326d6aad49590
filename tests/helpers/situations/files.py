"""Hints on checkpoint files: what they hold, which of several models in one, other people's formats."""

import json
import pickle
import sys
import tarfile
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from helpers import small_models as small
from helpers.situations import LENET, in_files, prints
from pwoa_cli.files import sparse

AT = "checkpoints/state_dict.py:"
INFO = ["info", "m.pt"]


def weights():
    return torch.load("model.pt", weights_only=True)


def run_code(line, **names):
    """What a hint's line of Python does, where its names are these."""
    exec(line, {"torch": torch, "numpy": np, **names})  # noqa: S102 (the package's own words)


def code_in(hint):
    """The line of Python that a hint says."""
    return (
        "torch.save"
        + hint.partition("torch.save")[2].partition("Or ")[0].rstrip(". ").partition(", and name")[0]
    )


@prints(AT + "_chosen: Say which: --entry {}", AT + "_asked", AT + "_side", "checkpoints/keys.py:_one_of_two")
def which_of_several_models(tool):
    tensors = weights()
    torch.save({"best": tensors, "last": tensors}, "m.pt")
    tool.follow(INFO)
    tool.follow([*INFO, "--entry", "first"])
    torch.save({"net of mine": tensors, "other net": tensors}, "m.pt")
    tool.follow(INFO)
    tool.follow([*INFO, "--entry", "first"])
    torch.save({"best": tensors, "last": {f"module.{k}": t for k, t in tensors.items()}}, "m.pt")
    tool.follow(INFO)
    torch.save({f"{who}.{k}": t for who in ("student", "teacher") for k, t in tensors.items()}, "m.pt")
    tool.follow(INFO)
    tool.refused("info", "model.pt", "--entry", "first")
    tool.works("info", "model.pt")


@prints(
    AT + "read_state_dict: Download",
    AT + "read_state_dict: Check",
    AT + "_read_file: Name",
    AT + "_read_file: Download",
)
def paths_that_are_no_file(tool):
    assert "curl -L -o model.pt 'https://a.b/it.pt?x=1&y'; " in tool.refused(
        "info", "https://a.b/it.pt?x=1&y"
    )
    tool.refused("info", "absent.pt")
    Path("it").mkdir()
    assert tool.refused("info", "it").endswith(" model.pt")
    Path("m.pt").write_bytes(b"")
    tool.refused(*INFO)
    tool.works("info", "model.pt")


@prints(
    AT + "_read_file: Save them",
    AT + "_read_file: A checkpoint",
    AT + "_open_envelopes",
    "checkpoints/pickles.py:read: A checkpoint",
)
def what_a_checkpoint_is(tool):
    model = small.sparse_lenet()
    for content in (list(weights().values()), 3.0, {"epoch": 3}):
        torch.save(content, "m.pt")
        run_code(
            "torch.save(model.state_dict(), 'm.pt')"
            if "torch.save(model.state_dict(), 'model.pt')" in tool.refused(*INFO)
            else "",
            model=model,
        )
        tool.works(*INFO)
    for content in (b"hello world\n" * 10, pickle.dumps({"a": 1}, protocol=2)):
        Path("m.pt").write_bytes(content)
        assert "torch.save(model.state_dict(), 'model.pt')" in tool.refused(*INFO)


@prints(
    "checkpoints/pickles.py:read: If you trust",
    "checkpoints/pickles.py:_read_trusted: Run",
    "checkpoints/pickles.py:_read_trusted: Save",
)
def code_in_a_file(tool):
    model = small.sparse_lenet()
    for name in ("mine", "__main__"):
        with tool.patch.context() as patch:
            patch.setitem(sys.modules, "mine", types.ModuleType("mine"))
            own = type("Own", (type(model),), {"__module__": "mine"})
            sys.modules["mine"].Own = own
            torch.save(_as(model, own), "m.pt")
        content = Path("m.pt").read_bytes().replace(b"cmine\n", f"c{name}\n".encode().ljust(0))
        Path("m.pt").write_bytes(content) if name == "mine" else _renamed("m.pt", name)
        hint = tool.refused(*INFO)
        run_code(code_in(hint), model=model)
        tool.works("info", "new.pt")
        hint = tool.refused(*INFO, "--trust-pickle")
        run_code(code_in(hint), model=model)
        again = ["--arch", in_files(LENET, name="script.py")] * ("--arch script.py:fn" in hint)
        tool.works("info", "new.pt", *again)
        if "PYTHONPATH=FOLDER" in hint:
            Path("there").mkdir()
            Path("there/mine.py").write_text(LENET + "\n\nclass Own(LeNet):\n    pass\n")
            tool.patch.syspath_prepend("there")
            tool.works(*INFO, "--trust-pickle")


def _as(model, kind):
    made = kind(size=8, widths=(4, 8), hidden=16, num_classes=4)
    made.load_state_dict(model.state_dict())
    return made


def _renamed(path, module):
    """The torch file with its class in another module."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name).replace(b"cmine\n", f"c{module}\n".encode()) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, part in parts.items():
            new.writestr(name, part)


@prints("checkpoints/pickles.py:_read_plain: Save it again")
def a_newer_protocol(tool):
    torch.save(weights(), "old.pt", pickle_protocol=4)
    run_code(code_in(tool.refused("info", "old.pt")))
    tool.works("info", "new.pt")


@prints(
    "checkpoints/pickles.py:read: Download",
    "checkpoints/pickles.py:_read_plain: Download",
    AT + "_read: Download",
    "checkpoints/shards.py:index_of",
    "checkpoints/shards.py:files_of: Download",
    "checkpoints/shards.py:files_of: Name",
    "checkpoints/shards.py:files_of: Put",
)
def files_that_are_cut_or_lack_a_part(tool):
    Path("m.pt").write_bytes(Path("model.pt").read_bytes()[:-100])
    tool.refused(*INFO)
    with tool.patch.context() as patch:
        patch.setattr("torch.load", raises(RuntimeError("cut")))
        tool.refused("info", "model.pt")
    tensors, parts = weights(), ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
    index, half = Path("m.safetensors.index.json"), len(tensors) // 2
    for part, keys in zip(parts, (list(tensors)[:half], list(tensors)[half:]), strict=True):
        sparse.save({key: tensors[key] for key in keys}, Path(part))
    assert index.name in tool.refused("info", parts[0])
    where = {key: parts[0] for key in tensors}
    for content in (
        {},
        {"weight_map": {"a": "x.index.json"}},
        {"weight_map": where},
        {"weight_map": where | {"x": "c"}},
    ):
        index.write_text(json.dumps(content))
        tool.refused("info", index)
    index.write_text(json.dumps({"weight_map": {key: parts[i >= half] for i, key in enumerate(tensors)}}))
    tool.works("info", index)
    tool.works("info", parts[0])


def raises(error):
    def call(*args, **options):
        raise error

    return call


@prints("checkpoints/pickles.py:_rehearse_zip")
def archives_that_torch_did_not_make(tool):
    model = small.sparse_lenet()
    x = torch.zeros(2, 1, 8, 8)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(model, x), "scripted.pt")
        torch.export.save(torch.export.export(model, (x,)), "model.pt2")
        for name in ("scripted.pt", "model.pt2"):
            run_code(code_in(tool.refused("info", name)))
            tool.works("info", "new.pt")
    np.savez("weights.npz", **{k: t.numpy() for k, t in weights().items()})
    run_code(code_in(tool.refused("info", "weights.npz")))
    tool.works("info", "new.pt")
    with zipfile.ZipFile("m.pt", "w") as archive:
        archive.write("model.pt")
    assert tool.refused(*INFO).startswith("Unpack it first")
    with zipfile.ZipFile("m.pt") as archive:
        archive.extractall("unpacked")
    tool.works("info", "unpacked/model.pt")


@prints("checkpoints/foreign_files.py:refuse_others")
def files_of_others(tool):
    with tarfile.open("m.pt", "w") as archive:
        archive.add("model.pt")
    assert tool.refused(*INFO).startswith("Unpack it first")
    with tarfile.open("m.pt") as archive:
        archive.extractall("unpacked", filter="data")
    tool.works("info", "unpacked/model.pt")
    for content, said in (
        (b"\x93NUMPY\1\0", "torch.save(model.state_dict(), 'model.pt')"),
        (b"<!doctype html><html>", "raw file"),
        (b'{"error": "none"}', "Download"),
        (b"version https://git-lfs\nsize 9", "git lfs pull --include 'my m.pt'"),
    ):
        Path("my m.pt").write_bytes(content)
        assert said in tool.refused("info", "my m.pt")
