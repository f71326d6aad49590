"""The words that a pruned file carries; own_words.py reads them."""
import json
from dataclasses import asdict

from pwoa_cli.checkpoints import slim
from pwoa_cli.checkpoints.model import Loaded
from pwoa_cli.checkpoints.protocol import published


def to_metadata(loaded: Loaded) -> dict[str, str]:
    """What a pruned file must say for `load_model` to build the same model again: strings by name."""
    framing = published(loaded)
    return {"arch": loaded.arch, "arch_options": json.dumps(loaded.arch_options),
            "num_classes": str(loaded.num_classes),
            "input_shape": json.dumps(loaded.input_shape), "default_size": json.dumps(loaded.default_size),
            "mean": json.dumps(loaded.mean), "std": json.dumps(loaded.std),
            **({"framing": json.dumps(asdict(framing))} if framing else {}),
            **({slim.MARK: loaded.extra[slim.MARK]} if slim.is_slim(loaded.extra, loaded.source) else {})}
