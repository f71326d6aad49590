"""Pretrained weights by name through timm: `timm:NAME` and `hf-hub:ID`, downloaded once into the Hugging Face
cache. Both libraries are imported for such a name alone: every file passes here."""
import logging
import math
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor

from pwoa_cli.data.pictures import Framing, read_framing
from pwoa_cli.errors import InputError
from pwoa_cli.files.hashes import state_sha256
from pwoa_cli.machine.silence import unlogged

HOUSES = ("timm:", "hf-hub:", "hf_hub:")
PLAIN = (bool, int, float)  # options that a pruned file may carry: nothing that could name a file


@dataclass(frozen=True)
class Pretrained:
    """What timm gives: weights, the name and options that build the same network, and its own description of
    the inputs. framing: None where that describes none that is known."""

    state: dict[str, Tensor]
    arch: str
    options: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    framing: Framing | None
    sha256: str


class _TimmModel(Protocol):
    """What is asked of a network that timm made."""

    num_classes: int

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def is_name(path: str) -> bool:
    """Whether a model is named by a library's name and not by a file."""
    return path.startswith(HOUSES)


def pretrained(source: str) -> Pretrained:
    """Weights from the cache or the net. Raises: InputError for an unknown name, no weights, or no
    connection."""
    net = _create(source)
    config = net.pretrained_cfg
    asked = {k: v for k, v in getattr(net, "_model_args", {}).items()
             if k not in ("pretrained_cfg", "cache_dir", "pretrained")}
    options = asked | {"num_classes": int(net.num_classes)}
    odd = [k for k, v in options.items() if not isinstance(v, PLAIN)]
    if odd:
        listed = ", ".join(f"{k}={options[k]!r}" for k in odd)
        raise InputError(f"{source} is built with {listed}, which a pruned file cannot carry.",
                         hint="Build it yourself: --arch file.py:fn with a checkpoint of its weights.")
    state = net.state_dict()
    return Pretrained(state, f"timm:{config['architecture']}", options, tuple(config["mean"]),
                      tuple(config["std"]),
                      tuple(config["input_size"][1:]), framing(config, source), state_sha256(state))


def framing(config: Mapping[str, Any], source: str) -> Framing | None:
    """How pictures are framed by timm's description of weights; None where it describes no way that is
    known."""
    crop = float(config.get("crop_pct") or 0.875)
    size = list(config["input_size"][1:])
    return read_framing({"size": size, "scaled": [math.floor(side / crop) for side in size],
                         "interpolation": config.get("interpolation") or "bicubic",
                         "squashed": config.get("crop_mode") == "squash",
                         "by": f"as published: timm on {source}"})


def _is_cut_off() -> bool:
    """Whether the hub's host cannot be reached, which the hub's library tries for 50 s to find out. Not asked
    where a proxy is named, as names of hosts are then its business."""
    from huggingface_hub import constants

    if getproxies():
        return False
    host = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((host.hostname, host.port or 443), timeout=5):
            return False
    except OSError:
        return True


@contextmanager
def _cache_alone() -> Iterator[None]:
    """Without the network: what is in the hub's cache is found, the rest refused at once."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _create(source: str) -> _TimmModel:
    import timm

    house, _, name = source.partition(":")
    if house == "timm" and not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:3] if name else []
        raise InputError(f"{source} is no model of timm {timm.__version__}.",
                         hint=f"Did you mean timm:{', timm:'.join(near)}?" if near
                         else "See timm.list_models(pretrained=True).")
    try:
        # no log of every retry: what went wrong is said below, in one sentence
        with unlogged(logging.WARNING), _cache_alone() if _is_cut_off() else nullcontext():
            # timm annotates any Module; each of its models has these attributes
            return timm.create_model(  # type: ignore[return-value]
                name if house == "timm" else f"hf-hub:{name}", pretrained=True)
    except Exception as error:  # of the net, of the cache, of the file, each library with classes of its own
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"{source}: its weights could not be had: {why}.",
                         hint="Check the name and the connection, or name a checkpoint file that you have."
                         ) from error
