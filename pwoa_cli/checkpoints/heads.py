"""Networks that are known but for their head: without one (self-supervised), with another (fine-tuned), or
under a wrapper's two names, such as backbone. and head.

The body is completed with a head of the shapes that a known network has, and identified as ever.
"""
import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pwoa_cli.checkpoints import signatures
from pwoa_cli.networks import families

State = Mapping[str, Tensor]
# how a last layer's name begins
HEADS = ("fc", "linear", "head", "heads", "classifier", "last_linear", "output", "logits", "classif")
CLASSES = 10  # of a head that is not in the file
FEW = 4  # matrices that a head may have
OURS = ("fc", "linear", "logits", "classifier", "output")


@dataclass(frozen=True)
class Body:
    """A known network without its last layer.

    arch, options: of the whole network. own: its last layer's name. inside: the prefix of its keys in the
    file, "" or such as "backbone.". head: the tensors of the file that are not the body's.
    """

    arch: str
    options: Mapping[str, Any]
    own: str
    inside: str
    head: State = field(repr=False)

    def words(self) -> str:
        """For people: torchvision:resnet18 but for its head, fc.1 (512 -> 5)."""
        layers = [f"{key.removesuffix('.weight')} ({t.shape[1]} -> {t.shape[0]})"
                  for key, t in self.head.items() if t.ndim == 2 and key.endswith(".weight")]
        head = f"but for its head, {', '.join(layers)}" if layers else f"without its head {self.own}"
        return f"{self.arch} {head}" + f", under {self.inside.rstrip('.')}" * bool(self.inside)

    def hint(self) -> str | None:
        """What to write, and how to name it; None where there is no `code`."""
        code = self.code()
        if code is None:
            return None
        trained = "" if self.head else " Its answers mean nothing before a head is trained."
        lines = "\n".join(f"    {line}".rstrip() for line in code.splitlines())
        return f"Write a file net.py, and name it: --arch net.py:fn.{trained}\n\n{lines}"

    def code(self) -> str | None:
        """A file whose fn() makes the network, for --arch FILE.py:fn; None where its head is not a chain of
        linear layers under one name."""
        tops = {key.partition(".")[0] for key in self.head}
        if len(tops) > 1 or not self.inside and tops - {self.own.partition(".")[0]}:
            return None
        top = next(iter(tops), "")
        made = self._head(top)
        house, _, name = self.arch.rpartition(":")
        imports = {"torchvision": "import torchvision", "timm": "import timm"}.get(
            house, "from pwoa_cli.networks.families import make")
        options = {k: v for k, v in self.options.items() if k != "num_classes"}
        words = ", ".join([repr(name)] * (house == "timm") + [f"{k}={v!r}" for k, v in options.items()])
        calls = {"torchvision": f"torchvision.models.{name}({words})", "timm": f"timm.create_model({words})"}
        net = calls.get(house, f"make({self.arch!r}, {options!r})")
        within = self.inside.rstrip(".")
        if made is None or not all(_is_name(part) for part in (within, top) if part):
            return None
        at = "net" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in self.own.split("."))
        parts = f"{within}=net" + f", {top}={made}" * bool(top)
        body = ["", "def fn():", f"    net = {net}", f"    {at} = {'nn.Identity()' if within else made}",
                f"    return {f'nn.Sequential(OrderedDict({parts}))' if within else 'net'}"]
        ordered = any("OrderedDict" in line for line in body)
        return "\n".join([*["from collections import OrderedDict"] * ordered, "from torch import nn", imports,
                          *body])

    def _head(self, top: str) -> str | None:
        """The expression that makes the head; None where it is no chain of linear layers."""
        start = f"{top if self.inside else self.own}."
        if not all(key.startswith(start) for key in self.head):
            return None
        return _chain({key.removeprefix(start): t for key, t in self.head.items()})


def body_of(state: State) -> Body | None:
    """The known network that a state dict is but for its head; None where there is none."""
    for inside, body, head in _splits(state):
        widths = dict.fromkeys(_widths(body))
        tops = {key.partition(".")[0] for key in head} if not inside else set()
        for own in (name for name in _last_layers() if not tops or name.partition(".")[0] in tops):
            for width in widths:
                rows = next((t.shape[0] for t in reversed(list(head.values())) if t.ndim == 2), CLASSES)
                whole = dict(body) | {f"{own}.weight": torch.empty(rows, width, device="meta"),
                                      f"{own}.bias": torch.empty(rows, device="meta")}
                if found := _identified(whole):
                    return Body(*found, own, inside, head)
    return None


def _identified(state: State) -> tuple[str, dict[str, Any]] | None:
    if guess := families.identify(state):
        return guess.arch, guess.options
    answer = signatures.lookup(state)
    if answer is None or answer.prefix:
        return None
    match = answer.matches[0]
    channels = {} if answer.in_channels in (None, 3) else {"in_chans": answer.in_channels}
    return match.names[0], match.options | channels


def _splits(state: State) -> Iterator[tuple[str, State, State]]:
    """(prefix, body, head) in each way that a file may be divided."""
    tops = dict.fromkeys(key.partition(".")[0] + "." for key in state if "." in key)
    for inside in ("", *tops):
        mine = {k.removeprefix(inside): t for k, t in state.items() if k.startswith(inside)}
        rest = {k: t for k, t in state.items() if not k.startswith(inside)}
        body = {k: t for k, t in mine.items() if k.partition(".")[0] not in HEADS}
        head = rest or {k: t for k, t in mine.items() if k not in body}
        for kept, other in ((body, head), (mine, rest)):
            if len(kept) + len(other) == len(state) and _matrices(kept) > FEW >= _matrices(other):
                yield inside, kept, other


def _matrices(state: State) -> int:
    return sum(t.ndim > 1 for t in state.values())


def _widths(body: State) -> list[int]:
    """What the last layers give: of the last vector and of the last matrix."""
    last = [next((t.shape[0] for t in reversed(list(body.values())) if t.ndim in dims and t.numel() > 1), 0)
            for dims in ((1,), (2, 4))]
    return [width for width in last if width]


def _last_layers() -> list[str]:
    """Names of last layers with weight and bias, ours first."""
    known = {head[0][0].removesuffix(".weight") for head, _ in signatures.load_index().ends if len(head) == 2}
    return [*OURS, *sorted(known - set(OURS))]


def _chain(tensors: State) -> str | None:
    """nn.Linear(512, 5), or nn.Sequential of such in the places that the numbers say; ReLU between two, which
    is a guess."""
    if set(tensors) <= {"weight", "bias"} and "weight" in tensors and tensors["weight"].ndim == 2:
        outside, inside = tensors["weight"].shape
        return f"nn.Linear({inside}, {outside}{'' if 'bias' in tensors else ', bias=False'})"
    if not tensors:
        return "nn.Identity()"
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        parts.setdefault(name, {})[rest] = tensor
    if len(parts) == 1 and not (name := next(iter(parts))).isdigit():
        inner = _chain(parts[name])
        return f"nn.Sequential(OrderedDict({name}={inner}))" if inner and _is_name(name) else None
    if not all(re.fullmatch(r"\d|1\d", name) for name in parts):
        return None
    return _numbered({int(name): _chain(part) for name, part in parts.items()})


def _numbered(made: Mapping[int, str | None]) -> str | None:
    if not all(made.values()):
        return None
    layers: list[str] = []
    for number in range(max(made) + 1):
        before = [n for n in made if n < number]
        layers.append(made.get(number) or ("nn.ReLU()" if before and number == max(before) + 1
                                           else "nn.Identity()"))
    return f"nn.Sequential({', '.join(layers)})"


def _is_name(text: str) -> bool:
    """Whether text from a file may stand in code that a user copies."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)
