"""Which networks of timm and torchvision have these keys and shapes: read from an index that lies beside this
file.

It takes milliseconds, imports neither library and builds nothing. The signature of a state dict is the sum of
h(key, shape) over its tensors, mod 2^64, with h the first 8 bytes of BLAKE2b. As it is a sum, a few tensors
are exchanged by subtraction: those of the head (their shapes depend on the number of classes) and of the stem
(input channels) are counted with a 0 where that number stands, so one entry fits any number of either.
`signatures_build` writes the index.
"""
import gzip
import hashlib
import importlib.metadata
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pwoa_cli.errors import PwoaError

INDEX = Path(__file__).with_name("signatures.json.gz")
FORMAT = 1
REBUILD = "Install pwoa-cli again, or build the index: python -m pwoa_cli.checkpoints.signatures_build"
MAX_PREFIX = 8  # levels of a prefix that is looked for
BINS = 16  # values of a sketch, one byte each: the estimate of an overlap p is off by sqrt(p (1-p) / 16)
# multipliers: odd, else arbitrary
_ODD = np.frombuffer(hashlib.shake_128(b"pwoa").digest(8 * BINS), "<u8") | np.uint64(1)
Shapes = Mapping[str, tuple[int, ...]]
# key, axis, factor: shape[axis] is factor times the number of classes (or of channels)
Sized = tuple[str, int, int]


@dataclass(frozen=True)
class Match:
    """Names of networks that compute the same function, best first: "torchvision:resnet50", "timm:resnet50".

    tells: what tells them from the other matches, "" if there are none. input_size: (H, W) of the images that
    the library made the first one for. options: what it is built with beside the number of classes and
    channels.
    """

    names: tuple[str, ...]
    tells: str
    input_size: tuple[int, int] | None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """All networks that have the keys and shapes of a state dict.

    matches: one for each function. prefix: what stands before all keys and is no part of the networks' keys,
    such as "backbone.". in_channels: None if no tensor shows it. note: of another version of the library than
    the index, else "".
    """

    matches: tuple[Match, ...]
    prefix: str
    num_classes: int
    in_channels: int | None
    note: str


@dataclass(frozen=True)
class Row:
    """One signature: tensors counts them, ends numbers their head and stem in `Index.ends`, sketch is of the
    others."""

    signature: int
    tensors: int
    ends: int
    sketch: bytes
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class Index:
    """versions of the libraries, None: not installed; ends: (head, stem) pairs that occur, stem () where the
    channels are fixed; rows."""

    versions: dict[str, str | None]
    ends: tuple[tuple[tuple[Sized, ...], tuple[Sized, ...]], ...]
    rows: tuple[Row, ...]

    @cached_property
    def by_signature(self) -> dict[tuple[int, int, int], Row]:
        """(signature, tensors, ends) -> row."""
        return {(row.signature, row.tensors, row.ends): row for row in self.rows}

    @cached_property
    def counts(self) -> set[int]:
        """Numbers of tensors that occur: for any other nothing has to be hashed."""
        return {row.tensors for row in self.rows}

    @cached_property
    def sketches(self) -> np.ndarray:
        """(rows, BINS) uint8."""
        return np.frombuffer(b"".join(row.sketch for row in self.rows), np.uint8).reshape(-1, BINS)


def lookup(state: Mapping[str, Tensor | Sequence[int]]) -> Answer | None:
    """The networks of timm and torchvision with these keys and shapes, for any number of classes; None if
    there is none.

    Args: state: tensors, or their shapes, by name; num_batches_tracked may be there or not.
    Raises: PwoaError if the index cannot be read.
    """
    index, shapes = load_index(), shapes_of(state)
    if len(shapes) not in index.counts:
        return None
    for prefix in prefixes(shapes):
        inner = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
        hashes = {key: tensor_hash(key, shape) for key, shape in inner.items()}
        total = sum(hashes.values())
        for number, (head, stem) in enumerate(index.ends):
            classes, channels = count(head, inner), count(stem, inner)
            if classes is None or stem and channels is None:
                continue
            exchanged = sum(h - hashes[key] for key, h in neutral(head + stem, inner).items())
            row = index.by_signature.get(((total + exchanged) % 2**64, len(inner), number))
            matches = row and _with_channels(row.matches, channels)
            if matches:
                return Answer(matches, prefix, classes, channels, _note(index, matches))
    return None


def near(state: Mapping[str, Tensor | Sequence[int]]) -> list[tuple[str, float]]:
    """The names, three at most, whose networks share most tensors (key and shape) with a state dict, and the
    share of both, about, in 0..1.

    Estimated by comparing sketches (Broder 1997, min-wise hashing): nothing below a half is worth telling,
    and is left out.
    """
    index, shapes = load_index(), shapes_of(state)
    best: dict[str, float] = {}
    if not 1 <= len(shapes) <= 2 * max(index.counts):  # no network can share half of so many
        return []
    for prefix in prefixes(shapes):
        made = sketch([tensor_hash(key.removeprefix(prefix), shape) for key, shape in shapes.items()])
        equal = (index.sketches == np.frombuffer(made, np.uint8)).mean(1)
        for number in np.flatnonzero(equal >= 0.5):
            name = index.rows[number].matches[0].names[0]
            best[name] = max(best.get(name, 0), float(equal[number]))
    return sorted(best.items(), key=lambda item: (-item[1], item[0]))[:3]


def tensor_hash(key: str, shape: Sequence[int]) -> int:
    """64 bits for a key and a shape, the same on every machine."""
    # a pickle may hold any text
    text = f"{key}\0{','.join(map(str, shape))}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def sketch(hashes: Sequence[int]) -> bytes:
    """BINS bytes: of a_i h mod 2^64 the least over all hashes, its 8 bits after the leading ones that all
    minima share."""
    mixed = np.array(hashes, np.uint64)[:, None] * _ODD
    return (mixed.min(0) >> np.uint64(20)).astype(np.uint8).tobytes()


def shapes_of(state: Mapping[str, Tensor | Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, without the counters of batch norms, which older files lack."""
    return {str(key): tuple(getattr(value, "shape", value)) for key, value in state.items()
            if not str(key).endswith("num_batches_tracked")}


def prefixes(keys: Collection[str]) -> Iterator[str]:
    """"", then "a.", "a.b.", ... as far as all keys share it."""
    first, last = min(keys, default=""), max(keys, default="")  # what these two share, all do
    parts, prefix = first.split(".")[:-1], ""
    yield prefix
    for part in parts[:MAX_PREFIX]:
        prefix += part + "."
        if not last.startswith(prefix):
            return
        yield prefix


def count(ends: Sequence[Sized], shapes: Shapes) -> int | None:
    """The number of classes (or channels) on which these tensors agree; None if one is missing or says
    something else."""
    found = set()
    for key, axis, factor in ends:
        shape = shapes.get(key, ())
        size = shape[axis] if axis < len(shape) else 0
        found.add(size // factor if size and size % factor == 0 else None)
    return found.pop() if len(found) == 1 else None


def neutral(ends: Sequence[Sized], shapes: Shapes) -> dict[str, int]:
    """The hashes of these tensors with a 0 in place of the sizes that differ from model to model."""
    changed: dict[str, list[int]] = {}
    for key, axis, _ in ends:
        changed.setdefault(key, list(shapes[key]))[axis] = 0
    return {key: tensor_hash(key, shape) for key, shape in changed.items()}


def _with_channels(matches: Sequence[Match], channels: int | None) -> tuple[Match, ...]:
    """The matches that can be built for so many channels: torchvision's networks take three."""
    if channels in (None, 3):
        return tuple(matches)
    kept = ((match, tuple(name for name in match.names if name.startswith("timm:"))) for match in matches)
    return tuple(Match(names, match.tells, match.input_size, match.options) for match, names in kept if names)


def _note(index: Index, matches: Sequence[Match]) -> str:
    """Which library is installed in another version than the index knows, for those that the matches come
    from."""
    libraries = dict.fromkeys(name.partition(":")[0] for match in matches for name in match.names)
    installed = {library: installed_version(library) for library in libraries}
    return "; ".join(f"the index is of {library} {index.versions[library]}, {version or 'none'} is installed"
                     for library, version in installed.items() if version != index.versions[library])


def installed_version(library: str) -> str | None:
    """Its version without the build (0.29.2 of 0.29.2+cpu), from its package's metadata; None if it is not
    installed."""
    try:
        return importlib.metadata.version(library).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the file ---------------------------------------------------------------

def load_index(path: Path = INDEX) -> Index:
    """The index, read once. Raises: PwoaError if it is missing, damaged or of another format."""
    return _read(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=2)
def _read(path: Path, changed: int) -> Index:
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        ends = tuple((_sized(head), _sized(stem)) for head, stem in content["ends"])
        index = Index(dict(content["versions"]), ends, tuple(_row(row) for row in content["rows"]))
        if not all(len(row.sketch) == BINS and row.ends < len(ends) and row.matches for row in index.rows):
            raise ValueError("a row is not complete")
        return index
    # of a changed file
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PwoaError(f"The index of architectures {path.name} is damaged: {error}.",
                        hint=REBUILD) from error


def _sized(end: Sequence[Sequence[Any]]) -> tuple[Sized, ...]:
    return tuple((key, axis, factor) for key, axis, factor in end)


def _row(fields: Sequence[Any]) -> Row:
    signature, tensors, ends, sketched, matches = fields
    return Row(int(signature, 16), tensors, ends, bytes.fromhex(sketched),
               tuple(Match(tuple(names), tells, size and tuple(size), options)
                     for names, size, tells, options in matches))


def dump(index: Index) -> bytes:
    """The bytes of an index file: JSON, a row a line, compressed; the same for the same content."""
    ordered = sorted(index.rows, key=lambda row: (row.matches[0].names, row.signature))
    rows = [[f"{row.signature:016x}", row.tensors, row.ends, row.sketch.hex(),
             [[match.names, match.input_size, match.tells, match.options] for match in row.matches]]
             for row in ordered]
    lines = [f'{{"format": {FORMAT}, "versions": {json.dumps(index.versions, sort_keys=True)},',
             f'"ends": {json.dumps(index.ends)},', '"rows": [', ",\n".join(json.dumps(row) for row in rows),
             "]}\n"]
    return gzip.compress("\n".join(lines).encode(), 9, mtime=0)
