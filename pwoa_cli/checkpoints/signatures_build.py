"""Builds the index of `signatures`: python -m pwoa_cli.checkpoints.signatures_build (20 minutes on one core).

Every network of timm and torchvision is made without memory (device meta), once for 1009 classes and 3
channels and once for 7 and 5: what differs is its head and its stem. Networks of equal keys and shapes get
the same random weights and images: those that answer alike become names of one match; of the others it is
said what modules and settings tell them apart.
"""
import gc
import math
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pwoa_cli.checkpoints import signatures
from pwoa_cli.checkpoints.signatures import Index, Match, Row, Sized
from pwoa_cli.networks.build import build

CLASSES, CHANNELS = (1009, 7), (3, 5)  # coprime, so that a differing size tells which of the two it follows
LARGEST = 350e6  # parameters; of larger networks only modules and settings are compared
# largest difference of logits, in their deviations: measured exactly 0 for the same network, 0.1 or more for
# others
EQUAL = 2e-4
# a second way of building that leaves other keys: their auxiliary classifiers are dropped after training
VARIANTS = {"torchvision:googlenet": {"aux_logits": False}, "torchvision:inception_v3": {"aux_logits": False}}
# how a network is written, not what it computes
CONTAINERS = ("Sequential", "ModuleList", "ModuleDict", "Identity")
Say = Callable[[str], None]
Answer = TypeVar("Answer")  # what networks are compared by: logits, or modules and settings


@dataclass(frozen=True)
class Candidate:
    """A network by name, what it takes to build it, and what its state dict shows; fixed: made for images of
    one size."""

    name: str
    options: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    head: tuple[Sized, ...]
    stem: tuple[Sized, ...]
    input_size: tuple[int, int] | None
    fixed: bool
    parameters: int


def main() -> None:
    """Write the index beside the package's modules."""
    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    index = build_index(names(), say=say)
    content = signatures.dump(index)
    signatures.INDEX.write_bytes(content)
    say(f"wrote {signatures.INDEX.name}: {len(index.rows)} signatures, {len(content)} bytes")


def names() -> list[str]:
    """All classifiers of both libraries, as library:name."""
    import timm
    import torchvision

    return [f"torchvision:{name}" for name in torchvision.models.list_models(torchvision.models)] + [
        f"timm:{name}" for name in timm.list_models()]


def build_index(chosen: Iterable[str], *, say: Say) -> Index:
    """The index of these networks; those without a classifier are left out."""
    groups: dict[tuple, list[Candidate]] = defaultdict(list)
    for name in chosen:
        for options in ({}, VARIANTS[name]) if name in VARIANTS else ({},):
            candidate = describe(name, options)
            if candidate.head:
                groups[_group(candidate)].append(candidate)
            else:
                say(f"{name} has no classifier")
    say(f"{sum(map(len, groups.values()))} networks, {len(groups)} signatures")
    ends = sorted({_ends(group) for group in groups.values()})
    rows = tuple(_row(group, ends.index(_ends(group)), say=say) for group in groups.values())
    versions = {library: signatures.installed_version(library) for library in ("timm", "torchvision")}
    return Index(versions, tuple(ends), rows)


# --- one network ---------------------------------------------------------------

def describe(name: str, options: dict[str, Any]) -> Candidate:
    """A network's shapes for 1009 classes and 3 channels, and which of them follow those two numbers."""
    made = [without_memory(name, options | {"num_classes": k}
                           | ({"in_chans": c} if name.startswith("timm:") else {}))
            for k, c in zip(CLASSES, CHANNELS, strict=True)]
    shapes, other = (signatures.shapes_of(net.state_dict()) for net in made)
    head, stem = [], []
    for key, shape in shapes.items():
        for axis, (a, b) in enumerate(zip(shape, other[key], strict=True)):
            if a != b and a * CLASSES[1] == b * CLASSES[0]:
                head.append((key, axis, a // CLASSES[0]))
            elif a != b and a * CHANNELS[1] == b * CHANNELS[0]:
                stem.append((key, axis, a // CHANNELS[0]))
            elif a != b:
                raise ValueError(f"{name}: {key} is {shape} or {other[key]}, which follows neither classes "
                                 "nor channels")
    config = getattr(made[0], "default_cfg", {})
    size = tuple(config["input_size"][1:]) if config.get("input_size") else _torchvision_size(name)
    return Candidate(name, options, shapes, tuple(head), tuple(stem), size,
                     bool(config.get("fixed_input_size")),
                     sum(p.numel() for p in made[0].parameters()))


def without_memory(name: str, options: dict[str, Any]) -> nn.Module:
    """A network with shapes but no values, where it can be made so (torchvision's RegNets cannot)."""
    with warnings.catch_warnings(action="ignore"):
        try:
            with torch.device("meta"):
                return build(name, options)
        except NotImplementedError:  # reads a value while it is made
            return build(name, options)


def _torchvision_size(name: str) -> tuple[int, int] | None:
    import torchvision

    house, _, model = name.partition(":")
    weights = torchvision.models.get_model_weights(model) if house == "torchvision" else ()
    crop = [weight.transforms().crop_size[0] for weight in weights][-1:]  # the last weights are the newest
    return (crop[0], crop[0]) if crop else None


# --- networks of equal keys and shapes ---------------------------------------------------------------

def _group(candidate: Candidate) -> tuple:
    """Equal for networks that have equal keys and shapes for the same number of classes, and 3 channels."""
    return tuple(sorted(candidate.shapes.items())), candidate.head


def _ends(group: Sequence[Candidate]) -> tuple[tuple[Sized, ...], tuple[Sized, ...]]:
    """Head and stem; torchvision's networks take their stem from their twins in timm."""
    stems = {candidate.stem for candidate in group if candidate.name.startswith("timm:")}
    if len(stems) > 1:
        raise ValueError(f"{', '.join(c.name for c in group)} have the same tensors but not the same stem")
    return group[0].head, stems.pop() if stems else ()


def _row(group: Sequence[Candidate], number: int, *, say: Say) -> Row:
    head, stem = _ends(group)
    shapes = group[0].shapes
    hashes = {key: signatures.tensor_hash(key, shape) for key, shape in shapes.items()}
    signature = sum((hashes | signatures.neutral(head + stem, shapes)).values()) % 2**64
    return Row(signature, len(shapes), number, signatures.sketch(list(hashes.values())),
               _matches(group, say=say))


def _matches(group: Sequence[Candidate], *, say: Say) -> tuple[Match, ...]:
    ordered = sorted(group, key=_preference)
    alike = _alike(ordered, say=say) if len(ordered) > 1 else [ordered]
    # one library's way of writing
    shown = [next((c for c in same if c.name.startswith("timm:")), same[0]) for same in alike]
    texts = tells(shown) if len(alike) > 1 else [""]
    return tuple(Match(tuple(c.name for c in same if c.options == same[0].options), text, same[0].input_size,
                       same[0].options)
                 for same, text in zip(alike, texts, strict=True))


def _preference(candidate: Candidate) -> tuple:
    """Best first: built without options, of torchvision (it is faster to import), the shortest name."""
    return (bool(candidate.options), not candidate.name.startswith("torchvision:"), len(candidate.name),
            candidate.name)


def _alike(group: Sequence[Candidate], *, say: Say) -> list[list[Candidate]]:
    """The group in classes of networks that compute the same function."""
    if max(candidate.parameters for candidate in group) > LARGEST:
        return _joined(group, [traits(_net(c, meta=True)) for c in group], lambda a, b: float(a != b),
                       remark="(not run)", say=say)
    return _joined(group, list(_answers(group)), distance, remark="", say=say)


def _joined(group: Sequence[Candidate], answers: Sequence[Answer], off: Callable[[Answer, Answer], float], *,
            remark: str, say: Say) -> list[list[Candidate]]:
    """The group in classes whose answers are at most EQUAL off from that of the first one in each."""
    found: list[tuple[list[Candidate], Answer]] = []
    for candidate, answer in zip(group, answers, strict=True):
        distances = [off(answer, first) for _, first in found]
        same = next((members for (members, _), d in zip(found, distances, strict=True) if d <= EQUAL), None)
        if same is None:
            found.append(([candidate], answer))
        else:
            same.append(candidate)
        say(f"{candidate.name}: {'first' if not distances else ' '.join(f'{d:.1e}' for d in distances)} "
            f"{remark}")
    return [members for members, _ in found]


def _net(candidate: Candidate, *, meta: bool = False) -> nn.Module:
    options = candidate.options | {"num_classes": CLASSES[1]}
    with warnings.catch_warnings(action="ignore"):
        return (without_memory(candidate.name, options) if meta else build(candidate.name, options)).eval()


def _answers(group: Sequence[Candidate]) -> Iterable[list[Tensor | None]]:
    """For each network, under the same weights: its logits (2, K) on images of every size; None for a size
    that it refuses."""
    fixed = {c.input_size for c in group if c.fixed and c.input_size}
    sizes = sorted(fixed) or [(96, 96), (129, 129), (96, 160)]  # even and odd: paddings differ
    state: dict[str, Tensor] = {}
    for candidate in group:
        net = _net(candidate)
        state = state or random_state(net)
        net.load_state_dict(state)
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            answers = [_logits(net, size) for size in sizes]
        if all(answer is None for answer in answers):
            raise ValueError(f"{candidate.name} takes images of none of the sizes {sizes}")
        yield answers
        del net
        gc.collect()


def _logits(net: nn.Module, size: tuple[int, int]) -> Tensor | None:
    x = torch.randn(2, CHANNELS[0], *size, generator=torch.Generator().manual_seed(size[0]))
    try:
        return net(x)
    except (RuntimeError, AssertionError, ValueError):  # what networks raise for a size that is not theirs
        return None


def random_state(net: nn.Module) -> dict[str, Tensor]:
    """Weights under which images matter: gains near 1, small biases, positive variances; tables of indices
    stay as they are."""
    generator = torch.Generator().manual_seed(0)
    learned = dict(net.named_parameters())
    state = {}
    for key, tensor in net.state_dict().items():
        last = key.rpartition(".")[-1]
        noise = torch.randn(tensor.shape, generator=generator)
        if last == "running_var" or key in learned and tensor.ndim <= 1 and "bias" not in last:
            state[key] = 1 + 0.5 * noise.tanh()
        elif last == "running_mean" or key in learned and tensor.ndim <= 1:
            state[key] = 0.1 * noise
        elif key in learned:
            fan_in = tensor.numel() // tensor.shape[0] if tensor.shape[0] > 1 else 4
            # the latter: many filters in a row
            state[key] = noise * max(fan_in ** -0.5, float(tensor.std(correction=0)))
        else:
            state[key] = tensor
    return state


def distance(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> float:
    """The largest difference of logits (2, K) on the sizes that both take, in deviations between the two
    images.

    Infinite if there is no such size. Raises: ValueError if the logits do not depend on the image, as then
    nothing is shown.
    """
    worst = []
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:
            continue
        spread = float((b[0] - b[1]).abs().mean())
        if not math.isfinite(spread) or spread < 1e-4 * float(b.abs().mean()):
            raise ValueError(f"logits differ by {spread} between two images, {float(b.abs().mean())} is "
                             "their size")
        worst.append(float((a - b).abs().max()) / spread)
    return max(worst, default=math.inf)


# --- what tells them apart ---------------------------------------------------------------

def tells(group: Sequence[Candidate]) -> list[str]:
    """For each network what it has and another has not: modules, else settings of modules; and the size of
    its images."""
    found = [traits(_net(candidate, meta=True)) for candidate in group]
    sizes = [candidate.input_size for candidate in group]
    texts = [_modules(counts, found) for counts in found]
    texts = texts if len(set(texts)) == len(texts) else _settings(found)
    images = [f"for {size[0]}x{size[1]} images" if size and len(set(sizes)) == len(sizes) else ""
              for size in sizes]
    return [", ".join(part for part in both if part) for both in zip(texts, images, strict=True)]


def traits(net: nn.Module) -> Counter[tuple[str, str, str]]:
    """How often each (type of module, "", "") and each (type, setting, value) occurs, such as ("Conv2d",
    "stride", "(2, 2)")."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for module in net.modules():
        kind = type(module).__name__
        counts[kind, "", ""] += 1
        counts.update((kind, name, str(tuple(value) if isinstance(value, list | tuple) else value))
                      for name, value in vars(module).items() if name[0] != "_" and _plain(value))
    return counts


def _plain(value: object) -> bool:
    return (isinstance(value, bool | int | float | str) or isinstance(value, tuple | list)
            and all(map(_plain, value)))


def _modules(counts: Counter, all_counts: Sequence[Counter]) -> str:
    """"4 AvgPool2d, no BlurPool2d": types that another network lacks, or has fewer of, and two that only
    others have."""
    kinds = {kind for each in all_counts for kind, setting, _ in each if not setting} - set(CONTAINERS)
    lacked = {kind for kind in kinds if not all(each[kind, "", ""] for each in all_counts)}
    most = {kind for kind in kinds
            if all(each is counts or each[kind, "", ""] < counts[kind, "", ""] for each in all_counts)}
    own = sorted((k for k in lacked | most if counts[k, "", ""]),
                 key=lambda k: (k not in lacked, -counts[k, "", ""], k))
    absent = sorted(kind for kind in lacked if not counts[kind, "", ""])
    return ", ".join([f"{counts[kind, '', '']} {kind}" for kind in own[:3]]
                     + [f"no {kind}" for kind in absent[:2]])


def _settings(all_counts: Sequence[Counter]) -> list[str]:
    """The settings that tell all of them apart: those with most values, words before sizes before other
    numbers."""
    values: dict[str, list[Counter[str]]] = {}
    for number, counts in enumerate(all_counts):
        for (_, setting, value), n in counts.items():
            if setting and len({each[_, setting, value] for each in all_counts}) > 1:
                values.setdefault(setting, [Counter() for _ in all_counts])[number][value] += n
    lists = {setting: [" and ".join(sorted(v for v, n in c.items() if n == max(c.values()))) for c in each]
             for setting, each in values.items()}
    words = {setting for setting, each in lists.items() if all(value[:1].isalpha() for value in each)}
    texts = [""] * len(all_counts)
    while lists and len(set(texts)) < len(texts):
        best = min(lists, key=lambda s: (-len(set(zip(texts, lists[s], strict=True))), s not in words,
                                         not s.endswith("size"),
                                         -sum(values[s][0].values()), s))
        longer = [", ".join(filter(None, (text, f"{best}={value}")))
                  for text, value in zip(texts, lists.pop(best), strict=True)]
        if len(set(longer)) == len(set(texts)):
            break
        texts = longer
    return texts


if __name__ == "__main__":
    main()
