"""From a file of somebody else's making to a plain {name: tensor}, without running anything that is in it.

.pt, .pth (zip and legacy format, saved from any device) and .safetensors (dense, or sparse as pwoa writes it); wrapped in
an envelope or not; with prefixes of wrappers or not. weights_only is always on.
"""
import argparse
import hashlib
import json
import os
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pwoa_cli import sparse_file
from pwoa_cli.errors import InputError

ENVELOPES = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema", "last", "best")
SETTINGS = ("args", "config", "opt", "hparams", "hyper_parameters")  # where training scripts keep what they were called with
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "1.")
# what weights_only does not know though it is data: settings that older code saved along, and NumPy's numbers (best_acc),
# under the names of NumPy 1 and 2. No dtypes of objects or records: a pickle may set their flags, and bytes pass for addresses.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
DATA = [argparse.Namespace, np.dtype, *_NUMBERS, *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]
HINT = "A checkpoint is what torch.save(model.state_dict(), 'model.pt') writes, or a .safetensors file."


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """(tensors by name, envelopes and wrapper prefixes removed; what else the file says; notes on a choice that was made).

    Raises: InputError, one sentence each, for what is missing, no checkpoint, truncated, ambiguous, or needs more than
    tensors (naming the globals it wants); for NaN or infinite weights (naming the tensor).
    """
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        url = re.match(r"\w+:/", str(path))
        raise InputError(f"{path}: there is no such file.",
                         hint="A URL must be downloaded first." if url else "Check the path of the checkpoint.")
    content, metadata = _read(Path(path))
    state, extra, notes = _open_envelopes(content, str(path))
    return _finite(_strip(state), str(path)), metadata | extra, notes


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path} is not a file{', it is a folder' if path.is_dir() else ''}.",
                         hint="Name the checkpoint itself, such as model.pt.")
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"{path} is empty.", hint="Download or copy it again.")
    counted = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size  # safetensors: header's size, header
    if not counted and re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        raise InputError(f"{path} is an HTML page, not a checkpoint.", hint="Download the raw file, not the page about it.")
    if counted or path.suffix == ".safetensors":
        return sparse_file.load(path), sparse_file.load_metadata(path)
    return _read_pickle(path), {}


def _read_pickle(path: Path) -> Mapping[str, Any]:
    """torch.load with weights_only, which lets in tensors, plain Python values and DATA."""
    try:
        with torch.serialization.safe_globals(DATA), warnings.catch_warnings(action="ignore"):  # of protocols and sparse tensors
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything; the cause is kept
        legacy = re.findall(r"nsupported (?:global: )?GLOBAL (\S+)", str(error))
        wanted = _unsafe_globals(path) or legacy or _pickled_globals(path)
        if wanted:
            raise InputError(f"{path} holds more than tensors: it would run {', '.join(wanted[:4])} to be read; nothing was run.",
                             hint="If you trust it, save its tensors: torch.save(model.state_dict(), 'new.pt')") from error
        if not _torch_made(path):
            raise InputError(f"{path} is not a checkpoint: neither a torch file nor safetensors.", hint=HINT) from error
        why = re.split(r"\. |\n", str(error))[0] or type(error).__name__
        raise InputError(f"{path} is broken or truncated: {why}.", hint="Download or copy it again.") from error
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, expected a state dict of tensors by name.", hint=HINT)
    return content


def _torch_made(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(32)
    return head.startswith((b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"))  # zip; the legacy format's number


def _unsafe_globals(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(DATA):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip file, or a broken one: then its globals are not what is wrong with it
        return []


def _pickled_globals(path: Path) -> list[str]:
    """What a whole file of one pickle, of any protocol, would call, read off without running it; nothing for other files."""
    texts, found = [], set()
    try:
        with open(path, "rb") as file:
            for code, argument, _ in pickletools.genops(file):
                if code.name in ("GLOBAL", "INST"):
                    found.add(argument.replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    found.add(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
    except Exception:  # no pickle, or a broken one
        return []
    return sorted(found - {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "_codecs.encode"})


def _holds_weights(content: object, depth: int = 4) -> bool:
    """Whether it is a mapping with tensors, or has one in an envelope; a pickle may hold itself, so the depth ends."""
    if not isinstance(content, Mapping) or depth < 0:
        return False
    return any(v.ndim >= 1 and v.is_floating_point() if isinstance(v, Tensor) else k in ENVELOPES and _holds_weights(v, depth - 1)
               for k, v in content.items())


def _open_envelopes(content: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """(the innermost mapping of tensors, what lay beside it on the way, which of several was taken)."""
    extra: dict[str, Any] = {}
    notes = []
    for _ in range(5):
        extra |= {str(k): v for k, v in content.items() if k in SETTINGS or not isinstance(v, Tensor | Mapping)}
        inner = [k for k in ENVELOPES if _holds_weights(content.get(k))]
        if {"last", "best"} <= set(inner):
            raise InputError(f"{where} holds two models, 'last' and 'best'.",
                             hint="Save the one that you want: torch.save(checkpoint['best'], 'model.pt').")
        if not inner:
            break
        if len(inner) > 1:
            notes.append(f"weights: {inner[0]!r} of the file; it also holds {', '.join(map(repr, inner[1:]))}, which is not used")
        content = content[inner[0]]
    if not _holds_weights(content):
        shown = ", ".join(str(k) for k in list(content)[:6]) or "nothing"
        raise InputError(f"{where} holds no weights; it has: {shown}.", hint=HINT)
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}, extra, tuple(notes)


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrapper prefixes as long as one is shared by every key; what MadryLab's attacker doubles is dropped first."""
    doubles = tuple(p + "attacker." for p in ("module.", "")) if any("attacker." in k for k in state) else ()
    state = {k: t for k, t in state.items() if not doubles or not k.startswith(doubles)}
    while True:
        weights = [k for k in state if not _normalisation(k)]
        prefix = next((p for p in PREFIXES if weights and all(k.startswith(p) for k in weights)), None)
        if prefix is None:
            return state
        state = {k.removeprefix(prefix): t for k, t in state.items()}


def _normalisation(key: str) -> str | None:
    """"mean" or "std" for the key of a normalisation buffer (mu, 0.mean, normalize.std, normalizer.new_mean, ...), else None."""
    parts = key.split(".")
    while parts[0] in ("module", "model", "_orig_mod") and len(parts) > 1:
        parts = parts[1:]
    names = {"mean": "mean", "mu": "mean", "new_mean": "mean", "std": "std", "sigma": "std", "new_std": "std"}
    holder = parts[:-1] in ([], ["0"], ["normalize"], ["normalizer"], ["norm"], ["preprocess"])
    return names.get(parts[-1]) if holder else None


def take_normalisation(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[float, ...] | None, tuple[float, ...] | None]:
    """(state without its normalisation buffers, mean, std by channel); None where the file has none."""
    found = {_normalisation(k): tuple(t.float().flatten().tolist()) for k, t in state.items() if _normalisation(k)}
    rest = {k: t for k, t in state.items() if not _normalisation(k)}
    return rest, found.get("mean"), found.get("std")


def _finite(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
            kind = "without values" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise InputError(f"{where}: {name} is {kind}, expected a dense tensor of numbers.",
                             hint="Save it dense: tensor.to_dense(), or tensor.dequantize().")
        bad = tensor.numel() - int(torch.isfinite(tensor).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise InputError(f"{where}: {name} has {bad} NaN or infinite values of {tensor.numel()}.",
                             hint="The checkpoint is damaged or its training diverged; take another epoch.")
    return state


def threat_of(extra: Mapping[str, Any]) -> tuple[str, float] | None:
    """(norm, eps) if the file's own settings name them (eps, epsilon, norm, also inside args); None otherwise."""
    settings: dict[str, Any] = {}
    for key, value in extra.items():
        value = vars(value) if isinstance(value, argparse.Namespace) else value
        settings |= value if isinstance(value, Mapping) else {key: value}
    eps = next((n for n in (_number(settings.get(k)) for k in ("eps", "epsilon")) if n is not None), None)
    if eps is None:
        return None
    norm = str(settings.get("norm", "linf")).lower().replace("l_", "l")
    norm = {"inf": "linf", "2": "l2"}.get(norm, norm)
    eps = eps / 255 if eps > 1 and norm == "linf" else eps  # the common spelling 8 for 8/255; an L2 ball may be larger than 1
    return (norm, eps) if norm in ("linf", "l2") and 1e-5 < eps < float("inf") else None  # 1e-8 is Adam's eps


def _number(value: object) -> float | None:
    """0.3, "0.3" or "8/255" as a number; None for anything else, such as True or several numbers."""
    if isinstance(value, bool | np.bool_):
        return None
    above, _, below = value.partition("/") if isinstance(value, str) else (value, "", "")
    try:
        return float(above) / float(below or 1)
    except (TypeError, ValueError, RuntimeError, ArithmeticError):
        return None


def json_field(metadata: Mapping[str, Any], key: str) -> Any:
    """A metadata string as the JSON value that it holds; None where it is missing. Raises: InputError if it is not JSON."""
    if key not in metadata:
        return None
    try:
        return json.loads(metadata[key])
    except (TypeError, ValueError):
        raise InputError(f"metadata field {key!r} is not JSON: {str(metadata[key])[:60]!r}.",
                         hint="The file was changed after pwoa wrote it; prune again.") from None
