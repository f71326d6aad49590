"""How pictures were framed for the published figure of named weights: timm's description, torchvision's
transforms of its weights."""
import re
from pathlib import Path

from pwoa_cli.checkpoints import hub
from pwoa_cli.checkpoints.model import Loaded
from pwoa_cli.data.pictures import Framing, standard

_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")  # torchvision's files end in the start of their SHA-256


def framing_of(loaded: Loaded) -> Framing | None:
    """The framing of an image folder's pictures for a model: as published where its weights have a name, else
    the usual one for the size that it takes; None where no size is known."""
    named = published(loaded)
    if named is not None or loaded.default_size is None:
        return named
    by = "the size that the network takes" if loaded.input_shape else f"the size of {loaded.arch}"
    source, _ = _origin(loaded)
    if hub.is_name(source):
        by += f"; how pictures were framed for {source} is not known"
    return standard(loaded.default_size, by=by)


def published(loaded: Loaded) -> Framing | None:
    """The framing that the hub or a pruned file says, else that of the weights' name or contents; None where
    none is known.

    A pruned file is framed as the weights that it was pruned from. It may come from anybody: nothing is
    fetched from a hub because it names an address there.
    """
    if isinstance(loaded.extra.get("framing"), Framing):
        return loaded.extra["framing"]
    source, sha256 = _origin(loaded)
    named = _of_timm(source) if source.startswith("timm:") else None
    return _of_torchvision(sha256) if named is None and loaded.input_shape is None else named


def _origin(loaded: Loaded) -> tuple[str, str]:
    """(source, SHA-256) of the weights, of a pruned file those that it says it was pruned from."""
    if isinstance(loaded.extra.get("source"), str):
        return loaded.extra["source"], str(loaded.extra.get("source_sha256", ""))
    return loaded.source, loaded.sha256


def is_published(framing: Framing | None) -> bool:
    """Whether a framing is that of named weights, and no guess."""
    return framing is not None and framing.by.startswith("as published")


def _of_timm(source: str) -> Framing | None:
    """Of weights that are in timm's lists."""
    import timm

    config = timm.models.get_pretrained_cfg(source.removeprefix("timm:"))
    return None if config is None else hub.framing(config.to_dict(), source)


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
