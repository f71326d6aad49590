"""Networks by name, and the one shape that all models have here: `Normalized` puts the normalisation inside,
so that each takes (B, C, H, W) in [0,1] and returns logits (B, K)."""
import contextlib
import difflib
import importlib.util
import inspect
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.errors import InputError, is_out_of_memory
from pwoa_cli.networks import families

# of images, tried in turn where nothing tells
SIZES = tuple((side, side) for side in (32, 28, 224, 64, 96, 16, 8))


WRAPPED = "net"  # the attribute of `Normalized` that holds a user's network: what all names in it begin with


class Normalized(nn.Module):
    """net((x - mean) / std) for x (B, C, H, W) in [0,1]; net(x) if mean is empty. Its state dict is that of
    `net`, prefixed.

    Args: num_classes: K of the logits; a network that returns several things, such as (features, logits),
    gives the first that is a (B, K) tensor. None: what it returns is taken as it is.
    """

    net: nn.Module
    mean: Tensor | None
    std: Tensor | None

    def __init__(self, net: nn.Module, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, *,
                 num_classes: int | None = None):
        super().__init__()
        self.net = net
        self.num_classes = num_classes
        for name, values in (("mean", mean), ("std", std)):
            by_channel = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) if values else None
            self.register_buffer(name, by_channel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.whole(x)
        if not isinstance(out, Mapping | tuple | list):
            return out  # as torch.export and torch.fx see it: no Python that reads a size
        return self.logits(out, x.shape[0])

    def whole(self, x: Tensor) -> Any:
        """All that the network returns."""
        if self.mean is None:
            return self.net(x)
        assert self.std is not None  # they come together
        return self.net((x - self.mean) / self.std)

    def logits(self, out: Any, batch: int) -> Any:
        """The logits (batch, K) in what the network returns; all of it if they are not found there."""
        if isinstance(out, Tensor) or self.num_classes is None:
            return out
        return next((part for _, part in parts(out) if part.shape == (batch, self.num_classes)), out)


def public_name(name: str) -> str:
    """The name of a module or parameter as the user's checkpoint has it, without our wrapper's prefix."""
    return name.removeprefix(WRAPPED + ".")


def public_names(names: Iterable[str]) -> list[str]:
    """Names as the user's checkpoint has them."""
    return [public_name(name) for name in names]


def parts(out: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a forward pass that returns several, in order, with what names each: 0, 1 or logits."""
    named = (out.items() if isinstance(out, Mapping) else enumerate(out) if isinstance(out, (tuple, list))
             else ())
    return [(str(name), part) for name, part in named if isinstance(part, Tensor)]


def tried(net: nn.Module, *, channels: int,
          sizes: Sequence[tuple[int, int]] = SIZES) -> tuple[Tensor, Any] | str:
    """(images (2, channels, H, W) of the first of `sizes` that a network takes, what it returns for them); or
    why it takes none."""
    why, device = "it takes no images", next((p.device for p in net.parameters()), torch.device("cpu"))
    large: Exception | None = None  # for which memory ran out, at a size that is a guess
    for size in sizes:
        x = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            with torch.no_grad():
                return x, net(x)
        except Exception as error:  # of a wrong size, or anything in a user's forward
            why, large = raised(error), error if is_out_of_memory(error) else large
    if large is not None:
        raise large
    return why


def raised(error: BaseException) -> str:
    """What other people's code raised, in one line: torch's words, else with the kind, KeyError: 'out'."""
    words = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    kind = type(error).__name__
    return words if words and type(error) is RuntimeError else f"{kind}: {words}".rstrip(": ")


def is_file(arch: str) -> bool:
    """Whether an architecture is a function of a user's file, file.py:fn."""
    return ".py:" in arch or arch.endswith(".py")


def build(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """A bare network by name, with random weights: ours, timm:NAME, torchvision:NAME, a bare name of either,
    or file.py:fn.

    Raises: InputError for an unknown name (did you mean), a file or function that is not there or returns no
    module.
    """
    if is_file(arch):
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            return _from_file(arch, options)
    if arch in families.MEMBERS:
        return families.make(arch, options)
    import torchvision

    house, _, name = arch.rpartition(":")
    ours = torchvision.models.list_models(torchvision.models) if house in ("", "torchvision") else []
    # seconds to import: only where it may be meant
    timm = importlib.import_module("timm") if house in ("", "timm") else None
    if timm and timm.is_model(name):
        return timm.create_model(name, pretrained=False, **options)
    if name in ours:
        extra = {"init_weights": False} if name.startswith(("googlenet", "inception", "densenet0")) else {}
        return torchvision.models.get_model(name, weights=None, **extra, **options)
    known = dict.fromkeys([*families.MEMBERS, *(timm.list_models() if timm else []), *ours])
    near = difflib.get_close_matches(name, known, n=3)
    raise InputError(f"--arch {arch!r} is no architecture of pwoa, timm or torchvision.",
                     hint=f"Did you mean {', '.join(near)}?" if near else
                     f"Ours are of the families {', '.join(families.FAMILIES)}; only they take options "
                     "(FAMILY:option=value); or your own: --arch file.py:fn")


def give_memory(net: nn.Module) -> None:
    """Zeros, in place, for what was built without memory, as nn.Module.to_empty, which takes half a second to
    wake up."""
    for module in net.modules():
        for name, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if t.is_meta:
                zeros = torch.zeros(t.shape, dtype=t.dtype)
                setattr(module, name, nn.Parameter(zeros, t.requires_grad) if isinstance(t, nn.Parameter)
                        else zeros)


def _from_file(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """The module that function fn of file.py returns; it is given the options that its signature has."""
    file, _, function = arch.rpartition(":") if ".py:" in arch else (arch, "", "")
    if not function:
        raise InputError(f"--arch {arch} names a file and no function in it.",
                         hint=f"--arch {shlex.quote(file + ':fn')}, where fn() returns the network.")
    if not os.path.isfile(file):  # Path.is_file raises for a name that is too long
        raise InputError(f"--arch {arch}: there is no file {file}.",
                         hint="--arch path/to/file.py:fn, where fn() returns the network.")
    module = _run_file(arch, Path(file))
    make = getattr(module, function, None)
    if not callable(make):
        names = [n for n, v in vars(module).items() if callable(v)
                 and getattr(v, "__module__", "") == module.__name__]
        near = difflib.get_close_matches(function, names, n=1)
        raise InputError(f"--arch {arch}: {file} has no function {function!r}.",
                         hint=f"Did you mean {near[0]}?" if near
                         else f"It has: {', '.join(names[:8]) or 'none'}.")
    takes = inspect.signature(make).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    try:
        net = make(**{k: v for k, v in options.items() if anything or k in takes})
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code, again
        raise InputError(f"--arch {arch}: {function} raises {raised(error)}.",
                         hint="It is called with num_classes, if it takes it, and nothing else.") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"--arch {arch}: {function} returns a {type(net).__name__}, expected a "
                         "torch.nn.Module.",
                         hint="Return the network, not its weights.")
    return net


def _run_file(arch: str, file: Path) -> ModuleType:
    """Import a Python file as `python FILE` would: what lies beside it can be imported too."""
    spec = importlib.util.spec_from_file_location("pwoa_user_arch", file)
    if spec is None or spec.loader is None:
        raise InputError(f"--arch {arch}: {file} is no Python file.", hint="Its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code may raise anything, and call sys.exit
        raise InputError(f"--arch {arch}: {file} raises {raised(error)}.",
                         hint=f"It must import by itself: python {shlex.quote(str(file))}") from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module
