"""The main path of `pwoa doctor`: what this machine has, and whether attacks and files do here what they
should."""
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pwoa_cli.data import datasets
from pwoa_cli.errors import PwoaError
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.files import run_folder, sparse
from pwoa_cli.files.folders import temporary_folder
from pwoa_cli.machine.devices import device_named, multiplies_bf16
from pwoa_cli.machine.environment import environment
from pwoa_cli.machine.seeds import generator
from pwoa_cli.progress import Say
from pwoa_cli.workflows.setup import short_path

EXACT, BOUNDS = ("fgsm", "pgd-20", "cw", "apgd-ce"), ("square",)
SAMPLES, SIDE, EPS = 32, 8, 0.0025
LEAST_FREE = 1e9  # bytes of disk


def examine(*, say: Say = lambda text: None) -> dict[str, Any]:
    """environment, data sets found, and checks: [{"name", "ok", "text"}]; no value of an environment variable
    and no path outside the home folder's short form is told."""
    device = str(device_named("auto"))
    places = {name: datasets.locate(name) for name in datasets.KNOWN}
    found = {name: short_path(str(where)) for name, where in places.items() if where}
    checks = []
    for name, check in (("attacks", _attacks), ("sparse file", _file), ("output folder", _folder),
                        ("device", _device)):
        say(f"checking {name}")
        checks.append(_checked(name, check))
    return {"environment": environment(device=device, seed=0), "data": found, "checks": checks}


def _checked(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "text": check()}
    except (PwoaError, OSError, RuntimeError, ImportError) as error:
        said = error.message if isinstance(error, PwoaError) else f"{type(error).__name__}: {error}"
        return {"name": name, "ok": False, "text": said}


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise PwoaError(otherwise)


def _attacks() -> str:
    """A linear network of two classes: within eps (linf) it falls exactly where its margin is at most
    eps |w_0 - w_1|_1, as no pixel is near 0 or 1."""
    draw = generator(0, "doctor")
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 2)).eval()
    with torch.no_grad():
        weight, bias = net.parameters()
        weight.copy_(torch.randn(weight.shape, generator=draw))
        bias.copy_(-0.5 * weight.sum(1))  # a grey image lies between the classes
        x = 0.5 + 0.04 * torch.randn(SAMPLES, 3, SIDE, SIDE, generator=draw).clamp(-2, 2)
        logits = net(x)
        holds = (logits[:, 0] - logits[:, 1]).abs() > EPS * (weight[0] - weight[1]).abs().sum()
    results = evaluate(net, x, logits.argmax(1), attacks=",".join((*EXACT, *BOUNDS)), norm="linf", eps=EPS)
    for name in EXACT:
        wrong = int((results[name].correct != holds).sum())
        _require(not wrong, f"{name} is wrong on {wrong} of {SAMPLES} samples of a linear network")
    for name in BOUNDS:
        _require(bool((results[name].correct | ~holds).all()), f"{name} broke what cannot be broken")
    return (f"{', '.join(EXACT)} find the exact worst case of a linear network ({int(holds.sum())} of "
            f"{SAMPLES} hold), {', '.join(BOUNDS)} no more than it")


def _file() -> str:
    draw = generator(0, "doctor")
    state = {f"{density}.weight": torch.randn(50, 40, generator=draw)
             * (torch.rand(50, 40, generator=draw) < density) for density in (0.01, 0.1, 0.9)}
    with temporary_folder() as folder:
        size = sparse.save(state, folder / "model.safetensors")
        again = sparse.load(folder / "model.safetensors")
    _require(all(torch.equal(again[name], tensor) for name, tensor in state.items()),
             "it does not come back as it was")
    return f"written and read again bit-equal ({size:,} bytes)"


def _folder() -> str:
    root = run_folder.ROOT if run_folder.ROOT.is_dir() else Path()
    with tempfile.TemporaryFile(dir=root):
        free = shutil.disk_usage(root).free
    _require(free > LEAST_FREE, f"{free / 1e9:.1f} GB free, runs need {LEAST_FREE / 1e9:.0f}")
    return f"{root / ''}: can be written, {free / 1e9:.0f} GB free"


def _device() -> str:
    device = device_named("auto")
    x = torch.randn(64, 64, device=device)
    _require(bool((x @ x).isfinite().all()), f"{device} multiplies wrongly")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    told = {True: "has instructions for bf16", False: "has none for bf16", None: "does not tell of bf16"}
    return (f"{device} multiplies and {told[multiplies_bf16(device)]}; {torch.get_num_threads()} threads"
            + f", {pages / 2**30:.0f} GiB of memory" * bool(pages))


def markdown(found: dict[str, Any]) -> str:
    """The findings for people."""
    versions = ", ".join(f"{name} {found['environment'][name]}" for name in
                         ("pwoa", "python", "torch", "torchvision", "timm"))
    sets = ", ".join(f"{name} ({where})" for name, where in found["data"].items()) or "none on this machine"
    lines = [f"- versions: {versions}", f"- platform: {found['environment']['platform']}", f"- data: {sets}"]
    lines += [f"- {check['name']}: {'' if check['ok'] else 'FAILED: '}{check['text']}"
              for check in found["checks"]]
    return "\n".join(["# pwoa doctor", "", *lines]) + "\n"
