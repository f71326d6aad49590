"""Files that are no checkpoint, each named by what it is."""
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoint_files import refused, refused_with, written

from pwoa_cli.checkpoints.state_dict import read_state_dict

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"),
    (b"<!DOCTYPE html><html>", "is an HTML page, not"), (b"\n <HTML lang=en>", "is an HTML page"),
    (b"\xef\xbb\xbf <!-- a\ncomment -->\n<!-- --> <html>", "is an HTML page"),
    (b"<head><title>x</title>", "is an HTML page (x)"),
    (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>",
     "(Google Drive - Virus scan warning)"),
    (b"<?xml version", "is an XML document"), (b"<Error><Code>AccessDenied</Code>", "is an XML document"),
    (b'{"error": "Repository not found"}', "is JSON text (Repository not found)"),
    (b' {\n "message": 404}', "JSON text (404)"),
    (b'[{"a": 1}]', "is JSON text"), (b'{"half": ', "is JSON text"), (b"{}", "is JSON text"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134217\n",
     "Git LFS pointer to a file of 134217 bytes"),
    (b"\x1f\x8b\x08\0\0\0", "gzip archive"), (b"BZh91AY", "bzip2"),
    (b"\xfd7zXZ\0", "xz archive"), (b"Rar!\x1a", "RAR"),
    (b"\x89HDF\r\n\x1a\n\0", "HDF5 file, as Keras"), (b"\x93NUMPY\1\0", "NumPy array"), (b"GGUF\3\0", "GGUF"),
    (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0", "ONNX model"), (b"\x1c\0\0\0TFL3\x14", "TensorFlow Lite"),
    (b"\x89PNG\r\n", "picture"), (b"%PDF-1.4", "PDF"), (b"x" * 257 + b"ustar\0", "tar archive"),
    (b"PK\5\6" + bytes(18), "zip archive without files"),
    (b"hello world\n" * 10, "is not a checkpoint"), (b".", "is not a checkpoint"),
    (b"N.", "a pickle that torch.save did not write"),
    (b"import torch\nfrom torch import nn\n", "is not a checkpoint"),
    (bytes(range(7, 256)) * 20, "is not a checkpoint")])
def test_files_that_are_no_checkpoint(content, said):
    assert said in refused(written(content))


@pytest.mark.parametrize(("suffix", "said"), [
    (".onnx", "ONNX"), (".pb", "TensorFlow"), (".h5", "HDF5"), (".tflite", "Lite")])
def test_models_of_other_frameworks_by_their_suffix(suffix, said):
    Path("m" + suffix).write_bytes(b"\x08\x01 no magic number")
    message, hint = refused_with("m" + suffix)
    assert said in message and "torch.save(model.state_dict()" in hint


@pytest.mark.parametrize(("names", "said"), [
    (("a.npy", "b.npy"), "NumPy .npz"),
    (("model/model.pth", "README"), "a zip archive with model/model.pth in it"),
    (("a.txt",), "a zip archive of 1 files"), (("config.json", "model.weights.h5"), "Keras"),
    (("m/archive_format", "m/models/model.json"), "torch.export")])
def test_zips_that_torch_did_not_write(names, said):
    with zipfile.ZipFile("m.pt", "w") as archive:
        for name in names:
            archive.writestr(name, "x" * 1000)
    assert said in refused("m.pt")


def test_torchscript_is_named_with_what_to_do():
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "m.pt")
    for trust in (False, True):
        message, hint = refused_with("m.pt", trust_pickle=trust)
        assert "TorchScript archive" in message and "torch.jit.load" in hint


def test_safetensors_whose_first_byte_is_that_of_a_page():
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(ord("<"))
    file = written(len(header).to_bytes(8, "little") + header + np.ones(2, "<f4").tobytes())
    assert Path(file).read_bytes()[:1] == b"<" and read_state_dict(file)[0]["w"].tolist() == [1, 1]


def test_broken_safetensors(tmp_path):
    for content in (b"\xff" * 20, b"<html>"):
        Path("m.safetensors").write_bytes(content)
        assert refused("m.safetensors")
