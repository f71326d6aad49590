"""From a file of somebody else's making to a plain {name: tensor}, without running anything that is in it.

.pt, .pth (zip and legacy format, saved from any device) and .safetensors (dense, or sparse as pwoa writes it); wrapped in
an envelope or not; with prefixes of wrappers or not. weights_only is always on.
"""
import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pwoa_cli import sparse_file
from pwoa_cli.errors import InputError

ENVELOPES = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema", "last", "best")
SETTINGS = ("args", "config", "opt", "hparams", "hyper_parameters")  # where training scripts keep what they were called with
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "1.")
HINT = "A checkpoint is what torch.save(model.state_dict(), 'model.pt') writes, or a .safetensors file."


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, envelopes and wrapper prefixes removed, and what else the file says (numbers, texts, args).

    Raises: InputError, one sentence each, for what is missing, no checkpoint, truncated, ambiguous, or needs more than
    tensors (naming the globals it wants); for NaN or infinite weights (naming the tensor).
    """
    path = Path(path)
    content, metadata = _read(path)
    state, extra = _open_envelopes(content, str(path))
    state = _finite(_strip(state), str(path))
    return state, metadata | extra


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    if not path.exists():
        raise InputError(f"{path}: there is no such file.", hint="A URL must be downloaded first." if "://" in str(path) else "Check the path of the checkpoint.")
    if not path.is_file():
        raise InputError(f"{path} is not a file{', it is a folder' if path.is_dir() else ''}.", hint="Name the checkpoint itself, such as model.pt.")
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"{path} is empty.", hint="Download or copy it again.")
    if head.lstrip()[:1] == b"<":
        raise InputError(f"{path} is an HTML page, not a checkpoint.", hint="Download the raw file, not the page about it.")
    if path.suffix == ".safetensors" or (len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size):
        return sparse_file.load(path), sparse_file.load_metadata(path)
    return _read_pickle(path), {}


def _read_pickle(path: Path) -> Mapping[str, Any]:
    """torch.load with weights_only; argparse.Namespace (settings that older code saved along) is data and is let in."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything; the cause is kept
        wanted = _unsafe_globals(path) or re.findall(r"nsupported (?:global: )?GLOBAL (\S+)", str(error))  # the latter: legacy files
        if wanted:
            raise InputError(f"{path} holds more than tensors: it would run {', '.join(wanted[:4])} to be read; nothing was run.",
                             hint="Save its tensors alone where you trust it: torch.save(model.state_dict(), 'model.pt').") from error
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
    return head.startswith((b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"))  # zip, and the legacy format's magic number


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return sorted(g for g in torch.serialization.get_unsafe_globals_in_checkpoint(path) if g != "argparse.Namespace")
    except Exception:  # not a zip file, or a broken one: then its globals are not what is wrong with it
        return []


def _open_envelopes(content: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The innermost mapping of tensors, and what lay beside it on the way."""
    extra: dict[str, Any] = {}
    while True:
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = [k for k in ENVELOPES if isinstance(content.get(k), Mapping) and content[k]]
        extra |= {str(k): v for k, v in content.items() if k in SETTINGS or not isinstance(v, Tensor | Mapping)}
        if {"last", "best"} <= set(inner):
            raise InputError(f"{where} holds two models, 'last' and 'best'.", hint="Save the one that you want: torch.save(checkpoint['best'], 'model.pt').")
        if inner and len(tensors) < 2:  # an epoch or a step beside the model may be a tensor too
            content = content[inner[0]]
            continue
        if not any(t.is_floating_point() and t.ndim >= 1 for t in tensors.values()):
            shown = ", ".join(str(k) for k in list(content)[:6]) or "nothing"
            raise InputError(f"{where} holds no weights; it has: {shown}.", hint=HINT)
        return tensors, extra


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrapper prefixes as long as one is shared by every key; what MadryLab's attacker doubles is dropped first."""
    doubles = tuple(p + "attacker." for p in ("module.", "")) if any("attacker." in k for k in state) else ()
    state = {k: t for k, t in state.items() if not doubles or not k.startswith(doubles)}
    while True:
        normal = {k for k in state if _normalisation(k)}
        prefix = next((p for p in PREFIXES if len(state) > len(normal) and all(k.startswith(p) for k in state if k not in normal)), None)
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
        bad = tensor.numel() - int(torch.isfinite(tensor).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise InputError(f"{where}: {name} has {bad} NaN or infinite values of {tensor.numel()}.", hint="The checkpoint is damaged or its training diverged; take another epoch.")
    return state


def threat_of(extra: Mapping[str, Any]) -> tuple[str, float] | None:
    """(norm, eps) if the file's own settings name them (eps, epsilon, norm, also inside args); None otherwise."""
    settings: dict[str, Any] = {}
    for key, value in extra.items():
        settings |= vars(value) if isinstance(value, argparse.Namespace) else value if isinstance(value, Mapping) else {key: value}
    eps = next((settings[k] for k in ("eps", "epsilon") if k in settings), None)
    try:
        eps = float(eps)
    except (TypeError, ValueError):
        return None
    norm = str(settings.get("norm", "linf")).lower().replace("l_", "l")
    norm = {"inf": "linf", "2": "l2"}.get(norm, norm)
    eps = eps / 255 if eps > 1 and norm == "linf" else eps  # the common spelling 8 for 8/255; an L2 ball may be larger than 1
    return (norm, eps) if norm in ("linf", "l2") and 1e-5 < eps < float("inf") else None  # 1e-8 is Adam's eps


def json_field(metadata: Mapping[str, Any], key: str) -> Any:
    """A metadata string as the JSON value that it holds; None where it is missing. Raises: InputError if it is not JSON."""
    if key not in metadata:
        return None
    try:
        return json.loads(metadata[key])
    except (TypeError, ValueError):
        raise InputError(f"metadata field {key!r} is not JSON: {str(metadata[key])[:60]!r}.", hint="The file was changed after pwoa wrote it; prune again.") from None
