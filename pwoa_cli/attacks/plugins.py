"""Attacks of other packages: entry points of the group pwoa.attacks, name -> (model, inputs, labels, *, norm,
eps, generator).

A plug-in is looked for only when its name is asked for. Its answers are checked, so that a fault is told with
the name of its package and never becomes a figure.
"""
import hashlib
import importlib.util
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from pwoa_cli.attacks.autoattack import drawn_seed
from pwoa_cli.attacks.base import distance, slack
from pwoa_cli.errors import InputError, is_out_of_memory
from pwoa_cli.machine.generators import own_draws

GROUP = "pwoa.attacks"


def installed() -> dict[str, list[EntryPoint]]:
    """{name in lower case: entry points of that name} of the installed packages; more than one is a clash."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name.lower(), []).append(point)
    return found


def load(name: str, points: list[EntryPoint]) -> partial[Tensor]:
    """The checked function behind a name. Raises: InputError if two packages claim it, or it cannot be
    imported or called."""
    if len(points) > 1:
        raise InputError(f"Attack {name!r} is defined by {' and '.join(sorted(map(_package, points)))}.",
                         hint="Uninstall all but one of them.")
    where = f"Attack {name!r} of package {_package(points[0])}"
    try:
        function = points[0].load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever foreign code raises while it is imported, sys.exit included
        raise InputError(f"{where} cannot be loaded from {points[0].value}: {_told(error)}.",
                         hint="Install the package again, or leave the attack out.") from error
    if not callable(function):
        raise InputError(f"{where} is {type(function).__name__} {points[0].value}, expected a function.",
                         hint=_CONTRACT)
    return partial(_checked, function, where)


_CONTRACT = "It takes (model, inputs, labels, *, norm, eps, generator) and returns adversarial inputs."


def _checked(function: Callable[..., Tensor], where: str, model: nn.Module, inputs: Tensor, labels: Tensor, *,
             eps: float,
             norm: str, generator: Generator) -> Tensor:
    """The plug-in's answer, on copies of the inputs and labels and with torch's generators seeded from ours.

    Raises: InputError if it raises, changes the model (which is as before then), or its answer has another
    shape or dtype, is not finite, or leaves [0,1] or the ball.
    """
    seed = drawn_seed(generator)
    before = _Snapshot(model)
    try:
        with own_draws():
            torch.manual_seed(seed)  # a plug-in that ignores the generator is still the same in every run
            adv = function(model, inputs.clone(), labels.clone(), norm=norm, eps=eps, generator=generator)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever foreign code raises, sys.exit included
        ours = type(error).__module__.partition(".")[0] == __package__.partition(".")[0]  # time ran out
        if ours or is_out_of_memory(error):
            raise
        raise InputError(f"{where} raised {_told(error)}.",
                         hint="Report it to that package, or leave the attack out.") from error
    finally:
        changed = before.restore()
    if changed:
        raise InputError(f"{where} changed the model: {changed}.",
                         hint="An attack leaves weights, buffers and modes as they are; report it to that "
                              "package, or leave the attack out.")
    if fault := _fault(adv, inputs, eps=eps, norm=norm):
        raise InputError(f"{where} {fault}.", hint=_CONTRACT)
    return adv.detach()


class _Snapshot:
    """A model's weights, buffers and modes, to tell whether an attack left them as they were."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.tensors = {name: (tensor, tensor.detach().clone(), tensor.requires_grad)
                        for name, tensor in _tensors(model).items()}
        self.modes = {name: (module, module.training) for name, module in model.named_modules()}

    @torch.no_grad()
    def restore(self) -> str:
        """Put back what changed; what that is: "2 of 8 weights and buffers (conv1.weight, ...)", "" for
        nothing."""
        now, said = _tensors(self.model), []
        moved = [name for name, (tensor, value, _) in self.tensors.items()
                 if now.get(name) is not tensor or not _same(tensor, value)]
        for name, (tensor, value, wanted) in self.tensors.items():
            if name in moved:
                tensor.data = value
                _put(self.model, name, tensor)
            tensor.requires_grad_(wanted)
        for name in [name for name in now if name not in self.tensors]:
            moved.append(name)
            _put(self.model, name, None)
        if moved:
            said.append(f"{len(moved)} of {len(self.tensors)} weights and buffers ({_few(moved)})")
        switched = [name for name, (module, mode) in self.modes.items() if module.training != mode]
        if switched:
            said.append(f"train or eval mode of {len(switched)} of {len(self.modes)} modules "
                        f"({_few([name or 'the model itself' for name in switched])})")
        for module, mode in self.modes.values():
            module.training = mode
        return " and ".join(said)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal bit for bit: a NaN is itself, 0 is not -0."""
    return (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device) and torch.equal(
        *(t.detach().contiguous().flatten().view(torch.uint8) for t in (one, other)))


def _put(model: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Make `tensor` the one of that name; None takes it away."""
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    for table in (module._parameters, module._buffers):
        if own in table:
            if tensor is None:
                del table[own]
            else:
                table[own] = tensor  # type: ignore[assignment]
            return
    if tensor is not None:
        setattr(module, own, tensor)


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if names[2:] else "")


def _fault(adv: object, inputs: Tensor, *, eps: float, norm: str) -> str:
    """What is wrong with an answer, "" if nothing is."""
    if not isinstance(adv, Tensor):
        return f"returned {type(adv).__name__}, expected a tensor of shape {tuple(inputs.shape)}"
    if adv.shape != inputs.shape or adv.dtype != inputs.dtype:
        return f"returned {adv.dtype} {tuple(adv.shape)}, expected {inputs.dtype} {tuple(inputs.shape)}"
    if bad := int((~adv.isfinite()).flatten(1).any(1).sum()):
        return f"returned NaN or infinite pixels for {bad} of {len(adv)} inputs"
    low, high = float(adv.min()), float(adv.max())
    if low < 0 or high > 1:
        return f"returned pixels in [{low:g}, {high:g}], expected [0, 1]"
    size = float(distance(adv - inputs, norm).max())
    outside = size > eps + slack(inputs, eps=eps, norm=norm)
    return f"left the ball: {norm} distance {size:.6g}, expected at most eps {eps:.6g}" if outside else ""


def _told(error: BaseException) -> str:
    """Type and first line of the message: "ValueError: no such norm"."""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0].rstrip('.')}" if lines else "")


def version(points: list[EntryPoint]) -> str:
    """What tells one release of a plug-in from another: package and version, entry point, SHA-256 of its
    modules."""
    top = importlib.util.find_spec(points[0].module.partition(".")[0])
    folders = [Path(folder) for folder in top.submodule_search_locations or ()] if top else []
    alone = [Path(top.origin)] if top and top.origin else []
    files = sorted(file for folder in folders for file in folder.rglob("*.py")) or alone
    sources = b"".join(file.read_bytes() for file in files if file.is_file())
    return f"{_package(points[0])} {points[0].value} {hashlib.sha256(sources).hexdigest()}"


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
