"""One way to read a checkpoint, tried on labelled images: how often it is right, what its batch norms say."""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pwoa_cli.checkpoints.batch_norms import Statistics, first_misfit
from pwoa_cli.checkpoints.model import Loaded
from pwoa_cli.data import datasets
from pwoa_cli.data.dataset import drawn
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.checks import gives_probabilities
from pwoa_cli.evaluation.intervals import near_chance
from pwoa_cli.machine import signals
from pwoa_cli.machine.memory import keep_freed_memory
from pwoa_cli.networks.build import parts, raised
from pwoa_cli.progress import Patience

PROBE = 500  # training images that tell whether model and data belong together
PIXELS = 100 * 224 * 224  # of the images in one pass: a ResNet-18 keeps half a gigabyte of them
FAR = 5.0  # standard deviations above chance that a model must be


@dataclass(frozen=True)
class Reading:
    """One way to read a file. words: what it supposes. hits: (n,) bool, on which images it is right. misfit:
    of its batch norms' statistics, first: of the first one's (batch_norms.py), None without batch norms.
    attacked: (n,) bool, which images hold under attack, where nothing else told. tried: each other way, where
    none was better. undecided: why it may be compared but not used. losses: (n,), as `tempered` gives them,
    of a reading tried on more than PROBE. logits (n, K), labels (n,) and statistics are what `run` goes on
    from."""

    words: str
    loaded: Loaded
    hits: Tensor
    misfit: float | None
    first: float | None = None
    attacked: Tensor | None = None
    tried: str = ""
    undecided: InputError | None = None
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    labels: Tensor = field(default_factory=lambda: torch.empty(0))
    statistics: Statistics | None = None

    @property
    def accuracy(self) -> float:
        """In 0..1."""
        return self.hits.double().mean().item()

    def figures(self, *, of: int = 0) -> str:
        """For people: normalisation cifar10 84.2% (misfit 0.0002, all layers 0.024). Args: of: images that
        others saw; where these are fewer, that is said: 90.0% of 20."""
        fit = "" if self.misfit is None or self.first is None else (
            f" (misfit {self.first:.2g}, all layers {self.misfit:.2g})")
        held = "" if self.attacked is None else (
            f" ({100 * self.attacked.double().mean().item():.1f}% under attack)")
        few = f" of {len(self.hits)}" if len(self.hits) < of else ""
        return f"{self.words} {100 * self.accuracy:.1f}%{few}{fit}{held}"


def run(words: str, loaded: Loaded, dataset: datasets.Dataset, *, images: int = PROBE, what: str = "",
        patience: Patience | None = None, after: Reading | None = None) -> Reading:
    """A reading tried on so many training images (test images where there are no others), `drawn` from all.

    Args: what: the model's name in errors; default: its source. after: the same reading on fewer of them,
    which are not shown again. Raises: InputError if the classes differ, the model cannot take the images, or
    does not return finite logits.
    """
    what, classes = what or loaded.source, loaded.num_classes
    if classes != dataset.num_classes:
        raise InputError(f"{what} has {classes} classes, the data set {dataset.name} has "
                         f"{dataset.num_classes}.",
                         hint="Name the data that it was trained on (--data), or the classes that it really "
                              "has (--num-classes).")
    keep_freed_memory()  # half of the time of trying large images was the kernel's
    probe, index = dataset.probe, drawn(len(dataset.probe), images)
    if after and len(after.hits) >= len(index):
        return after
    shown = [(after.logits, after.labels)] if after else []
    with (after and after.statistics or Statistics(loaded.model)) as statistics:
        for part in passes(index[len(after.hits) if after else 0:], dataset):
            x, y = probe.batch(part)
            with _taking(what, dataset):
                logits = loaded.model(x)
            _check_logits(logits, (len(x), classes), what)
            shown.append((logits, y))
            if patience:
                patience.say(f"trying {words}: {sum(len(y) for _, y in shown)} of {len(index)} images")
    logits, labels = map(torch.cat, zip(*shown, strict=True))
    with _taking(what, dataset):
        first = after.first if after else first_misfit(loaded.model, (
            probe.batch(part)[0] for part in passes(drawn(len(probe), PROBE), dataset)))
    return Reading(words, loaded, (logits.argmax(1) == labels).cpu(), statistics.misfit(), first,
                   losses=tempered(logits, labels).cpu() if images > PROBE else torch.empty(0),
                   logits=logits, labels=labels, statistics=statistics)


def passes(index: Tensor, dataset: datasets.Dataset, *, attacked: bool = False) -> tuple[Tensor, ...]:
    """The indices in parts for one pass each: of 100 images, fewer of large ones whose activations would fill
    the memory, and fewer again where gradients keep them all."""
    pixels = max(1, dataset.shape[1] * dataset.shape[2])
    return index.split(max(1, min(100, PIXELS // (pixels * (4 if attacked else 1)))))


@contextmanager
def _taking(what: str, dataset: datasets.Dataset) -> Iterator[None]:
    """Raises: InputError for whatever a network raises in the block, but for want of memory."""
    try:
        with torch.no_grad():
            yield
    except InputError:  # of a picture
        raise
    except Exception as error:  # what networks raise for a wrong size, and users' own for anything
        signals.let_through(error)
        raise InputError(f"{what} cannot take images {tuple(dataset.shape)} of {dataset.name}: "
                         f"{raised(error)}.",
                         hint="Name the data that it was trained on (--data), or its architecture: --arch "
                              "NAME, or --arch file.py:fn for a network that takes a batch of images alone."
                         ) from error


def _check_logits(logits: object, expected: tuple[int, int], what: str) -> None:
    if not isinstance(logits, Tensor) or logits.shape != expected:
        several = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts(logits))
        kind = f"a {type(logits).__name__}{several and f' of {several}'}"
        got = tuple(logits.shape) if isinstance(logits, Tensor) else kind
        raise InputError(f"{what} returns {got} for {expected[0]} images, expected logits {expected}.",
                         hint="Wrap it in a module that returns the logits: --arch file.py:fn")
    if not logits.isfinite().all():
        raise InputError(f"{what} returns NaN or infinite logits.",
                         hint="Check its weights and its normalisation (--normalize, or --mean and --std).")


def outputs(loaded: Loaded, x: Tensor) -> list[str]:
    """What there is to say of what the network returns on images x (B, C, H, W): which of several,
    log-probabilities, ...

    Returns: sentences; none for plain logits.
    """
    with torch.no_grad():
        out = loaded.model.whole(x)
    logits = loaded.model.logits(out, len(x))
    several = [f"{name} {tuple(part.shape)}" for name, part in parts(out)]
    which = next((name for name, part in parts(out) if part is logits or part.shape == logits.shape), "")
    notes = [f"forward returns {', '.join(several)}; {which} is taken as the logits"] if several else []
    total = logits.exp().sum(1)
    if torch.allclose(total, torch.ones_like(total), atol=1e-4):
        notes.append("forward returns log-probabilities; they serve as logits, their softmax is the same")
    elif gives_probabilities(logits):
        notes.append("warning: forward returns probabilities, not logits: gradients vanish in its softmax, "
                     "so attacks on it flatter; wrap the network without its softmax: --arch file.py:fn")
    return notes


def is_near_chance(reading: Reading, classes: int) -> bool:
    """Whether a model is no better than guessing, within FAR standard deviations."""
    return near_chance(int(reading.hits.sum()), len(reading.hits), classes, deviations=FAR)


def tempered(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, (B,), at the temperature that suits the logits (B, K) best (Guo et al.
    2017): robust networks are less sure than they could be, and another reading must not gain by scale.
    Not below 1/2, where those that are always right have no loss at all."""
    losses = [F.cross_entropy(logits.double() / t, labels, reduction="none")
              for t in torch.logspace(-0.3, 1.5, 19).tolist()]
    return min(losses, key=lambda loss: loss.mean().item())
