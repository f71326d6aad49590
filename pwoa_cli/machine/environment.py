"""Versions and machine, as far as results depend on them."""
import logging
import os
import platform
import sys
from importlib import metadata
from typing import Any

import torch

from pwoa_cli.version import __version__

_LOG = logging.getLogger(__name__)


def environment(*, device: str, seed: int) -> dict[str, Any]:
    """Versions and machine of this process, as far as results depend on them: no host name, no user, no
    paths."""
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "unknown"

    return {"python": platform.python_version(), "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "timm": version("timm"), "pwoa": __version__, "platform": platform.platform(),
            "cpu_count": cpu_count(), "device": device, "device_name": _device_name(device),
            "threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
            "seed": seed}


def log(*, device: str) -> None:
    """Versions and machine for --verbose."""
    found = environment(device=device, seed=0)
    del found["seed"]
    _LOG.debug(", ".join(f"{name} {value}" for name, value in found.items()))


def cpu_count() -> int:
    """CPUs that this process may use (in a container fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.machine()
