"""How pictures were framed for the published figure of named weights: timm's description, torchvision's
transforms of its weights."""
import math
import re
from pathlib import Path
from typing import Any

from pwoa_cli.checkpoints import hub
from pwoa_cli.checkpoints.model import Loaded
from pwoa_cli.data.pictures import Framing, standard

_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")  # torchvision's files end in the start of their SHA-256


def framing_of(loaded: Loaded) -> Framing | None:
    """The framing of an image folder's pictures for a model: as published where its weights have a name, else
    the usual one for the size that it takes; None where no size is known.

    A pruned file is framed as the weights that it was pruned from.
    """
    source, sha256 = loaded.source, loaded.sha256
    if isinstance(loaded.extra.get("source"), str):
        source, sha256 = loaded.extra["source"], str(loaded.extra.get("source_sha256", ""))
    named = _of_timm(source) if hub.is_name(source) else None
    if named is None and loaded.input_shape is None:
        named = _of_torchvision(sha256)
    if named is not None:
        return named
    if loaded.default_size is None:
        return None
    by = "the size that the network takes" if loaded.input_shape else f"the size of {loaded.arch}"
    return standard(loaded.default_size, by=by)


def is_published(loaded: Loaded, framing: Framing | None) -> bool:
    """Whether a framing is that of named weights, and no guess."""
    return framing is not None and framing.by.startswith("as published")


def _of_timm(source: str) -> Framing | None:
    config = _timm_config(source)
    if config is None:
        return None
    crop = float(config.get("crop_pct") or 0.875)
    height, width = config["input_size"][1:]
    interpolation = config.get("interpolation") or "bicubic"
    return Framing((height, width), (math.floor(height / crop), math.floor(width / crop)), interpolation,
                   squashed=config.get("crop_mode") == "squash", by=f"as published: timm on {source}")


def _timm_config(source: str) -> dict[str, Any] | None:
    """timm's description of weights that are in its lists or in the cache; None if there is none."""
    import timm

    house, _, name = source.partition(":")
    if house == "timm":
        config = timm.models.get_pretrained_cfg(name)
        return None if config is None else config.to_dict()
    try:
        return dict(timm.models.load_model_config_from_hf(name)[0])
    except Exception:  # noqa: BLE001 - of the net, of the cache, each library with classes of its own
        return None


def _of_torchvision(sha256: str) -> Framing | None:
    """Of a file whose contents are those of one of torchvision's weights."""
    from torchvision import models

    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            found = _HASH.search(weights.url)
            if found and sha256.startswith(found[1]):
                made = weights.transforms()
                crop, shorter = made.crop_size[0], made.resize_size[0]
                return Framing((crop, crop), (shorter, shorter), made.interpolation.value,
                               by=f"as published: torchvision on {Path(weights.url).name}")
    return None
