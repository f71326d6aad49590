"""What a file is if it is no checkpoint, by its first bytes: a web page, a pointer, an archive, another
framework's model.

`refuse_others` looks at the file's start, `zip_kind` at the names inside a zip. Nothing is unpacked and
nothing is run.
"""
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pwoa_cli.errors import InputError

AGAIN = "Download or copy it again."
RAW = "Download the raw file, not the page about it."
EXPORT = "Save the weights from the PyTorch model itself: torch.save(model.state_dict(), 'model.pt')."
UNPACK = "Unpack it first, and name the checkpoint that was in it."
TEXT = 4096  # bytes from the start that are looked at
STARTS = (  # magic number, what it is, what to do
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write", EXPORT),
    (b"\x93NUMPY", "a NumPy array", EXPORT), (b"GGUF", "a GGUF file, which llama.cpp reads", EXPORT),
    (b"\x1f\x8b", "a gzip archive", UNPACK), (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK), (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK), (b"%PDF", "a PDF document", RAW), (b"\x89PNG", "a picture", RAW),
    (b"\xff\xd8\xff", "a picture", RAW), (b"\x7fELF", "a program", AGAIN))
SUFFIXES = {".onnx": "an ONNX model", ".pb": "a TensorFlow model", ".tflite": "a TensorFlow Lite model",
            ".keras": "a Keras model", ".h5": "an HDF5 file, as Keras and TensorFlow write",
            ".mlmodel": "a Core ML model"}
MODELS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar", ".pkl")


def refuse_others(path: Path, head: bytes) -> None:
    """Say what a file is whose first bytes (TEXT of them) are no torch file's, pickle's or safetensors'.

    Returns for everything that it does not know. Raises: InputError, one sentence and what to do.
    """
    text = re.sub(rb"^(\xef\xbb\xbf)?(\s|<!--(?s:.*?)-->)*", b"", head)
    refuse = _pointer(path, head) or _markup(text) or _json(text)
    refuse = refuse or next(((what, hint) for magic, what, hint in STARTS if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        refuse = ("a tar archive (or a checkpoint of PyTorch 0.1)", UNPACK)
    elif head[4:8] == b"TFL3":
        refuse = (SUFFIXES[".tflite"], EXPORT)
    elif re.match(rb"\x08[\x01-\x20](\x12|:|B|\x1a)", head):  # protobuf: IR version; producer or graph
        refuse = (SUFFIXES[".onnx"], EXPORT)
    elif not head.startswith((b"PK", b"\x80")) and path.suffix.lower() in SUFFIXES:
        refuse = refuse or (SUFFIXES[path.suffix.lower()], EXPORT)
    if refuse:
        raise InputError(f"{path} is {refuse[0]}, not a checkpoint.", hint=refuse[1])


def _pointer(path: Path, head: bytes) -> tuple[str, str] | None:
    if not head.startswith(b"version https://git-lfs"):
        return None
    size = re.search(rb"\nsize (\d{1,15})", head)
    target = f" to a file of {int(size[1])} bytes" if size else ""
    name = shlex.quote(path.name)
    return f"a Git LFS pointer{target}", f"Get the file itself: git lfs pull --include {name}"


def _markup(text: bytes) -> tuple[str, str] | None:
    if re.match(rb"<(!doctype html|html|head|body|title|meta|script)\b", text, re.IGNORECASE):
        title = re.search(rb"<title[^>]*>\s*([^<]{1,60})", text, re.IGNORECASE)
        words = " ".join(title[1].decode("utf-8", "replace").split()) if title else ""
        return f"an HTML page{f' ({words})' if words.isprintable() and words else ''}", RAW
    return ("an XML document, such as a server's error", RAW) if re.match(rb"<[?!\w]", text) else None


def _json(text: bytes) -> tuple[str, str] | None:
    if not re.match(rb'(\{\s*("|\})|\[)[\x09\x0a\x0d\x20-\x7e\x80-\xff]*\Z', text):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return "JSON text", AGAIN
    fields = content if isinstance(content, dict) else {}
    said = next((str(fields[k]) for k in ("error", "message", "detail") if k in fields), "")
    said = " ".join(said.split())[:60]
    return f"JSON text{f' ({said})' if said.isprintable() and said else ''}", AGAIN


def zip_kind(names: Sequence[str]) -> tuple[str, str] | None:
    """(what a zip is, what to do) by the names in it; None for what torch.save writes."""
    inside = [name.partition("/")[2] for name in names]
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return "a TorchScript archive (torch.jit.save)", \
            "Save its weights: torch.save(torch.jit.load('scripted.pt').state_dict(), 'new.pt')"
    if "data.pkl" in inside:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return ("a NumPy .npz archive",
                "Save the arrays as tensors: torch.save({name: torch.from_numpy(a) for name, a in "
                "numpy.load('weights.npz').items()}, 'new.pt')")
    if any(name.endswith((".weights.h5", "keras_metadata.pb", "saved_model.pb")) for name in names):
        return SUFFIXES[".keras"], EXPORT
    if any(name.endswith("archive_format") for name in names):
        return ("a torch.export archive",
                "Save its weights: torch.save(torch.export.load('model.pt2').state_dict, 'new.pt')")
    model = next((name for name in names if name.lower().endswith(MODELS)), None)
    what = f"with {model[-40:]} in it" if model else f"of {len(names)} files" if names else "without files"
    return f"a zip archive {what}", UNPACK
