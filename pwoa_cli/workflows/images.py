"""A data set read for a model: size, channels and classes as it takes them; what is open there is tried on
labelled images, and said. Without data: the images that it takes."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pwoa_cli.checkpoints.architecture import is_file
from pwoa_cli.checkpoints.model import Loaded, answer
from pwoa_cli.checkpoints.protocol import framing_of, is_published
from pwoa_cli.checkpoints.reading import PROBE, Reading
from pwoa_cli.checkpoints.readings import check_decided, provisional
from pwoa_cli.checkpoints.witnesses import is_clearly_better
from pwoa_cli.data import datasets
from pwoa_cli.data.choices import Choices
from pwoa_cli.data.dataset import Dataset
from pwoa_cli.data.pictures import CROPS_FROM, sides, standard
from pwoa_cli.errors import InputError
from pwoa_cli.machine import signals
from pwoa_cli.networks.build import SIZES, Normalized
from pwoa_cli.networks.some_classes import SomeClasses
from pwoa_cli.progress import Say


def ways(loaded: Loaded, data: str, choices: Choices, *, device: torch.device, say: Say) -> list[Dataset]:
    """The data set in each size of images that is possible for the model, the likeliest first. Pictures are
    not decoded yet.

    Raises: InputError as `datasets.load`.
    """
    framing = framing_of(loaded)
    if choices.image_size:
        framing = standard(choices.image_size, by="--image-size")

    def load(channels: int | None) -> Dataset:
        return datasets.load(data, device=device, framing=framing, channels=channels,
                             classes=loaded.num_classes, choices=choices, say=say)

    channels = _channels(loaded, _sizes(loaded))
    dataset = load(channels)
    if channels is None:
        taken = _channels(loaded, [dataset.shape[1:]], first=dataset.shape[0])
        dataset = dataset if taken in (None, dataset.shape[0]) else load(taken)
    own = dataset.own_size
    if (own is None or own == dataset.shape[1:] or choices.image_size or loaded.input_shape
            or is_published(framing)):
        return [dataset]
    as_it_is = dataset.unframed(own)
    # pictures larger than a library's size are made to be cropped; of other sizes nobody would scale them
    crops = min(dataset.shape[1:]) >= CROPS_FROM and own > dataset.shape[1:]
    return [dataset, as_it_is] if crops else [as_it_is, dataset]


def _channels(loaded: Loaded, sizes: Sequence[tuple[int, int]], *, first: int | None = None) -> int | None:
    """Channels of the images that a network takes; of a user's network it is tried. None: not known."""
    known = _known_channels(loaded)
    if known or not is_file(loaded.arch):
        return known or 3
    state = loaded.model.net.state_dict()
    stem = next((t.shape[1] for key, t in state.items() if t.ndim == 4 and key.endswith("weight")), 3)
    guesses = dict.fromkeys([*([first] if first else []), stem, 3, 1])
    return next((count for count in guesses for size in sizes if _takes(loaded, (count, *size))), None)


def _known_channels(loaded: Loaded) -> int | None:
    """Those that its file says; None: it does not."""
    if loaded.input_shape:
        return loaded.input_shape[0]
    return loaded.arch_options.get("in_channels", loaded.arch_options.get("in_chans"))


def two_images(loaded: Loaded, size: tuple[int, int] | None = None) -> tuple[Tensor, Any] | str:
    """(two images (2, C, H, W) that a model takes, what it returns for them), or why it takes none: of the
    size that is asked for, or that its file says, or of the first of SIZES."""
    return answer(loaded.model, loaded.model.state_dict(), channels=_known_channels(loaded),
                  sizes=_sizes(loaded, size))


def _sizes(loaded: Loaded, size: tuple[int, int] | None = None) -> Sequence[tuple[int, int]]:
    likely = size or loaded.default_size
    return [likely] if likely else SIZES


def image_shape(loaded: Loaded, *, size: tuple[int, int] | None = None, hint: str) -> tuple[int, ...]:
    """(C, H, W) of `two_images`. Raises: InputError with the hint, and why, if it takes none."""
    made = two_images(loaded, size)
    if isinstance(made, str):
        tried = ", ".join("x".join(map(str, dict.fromkeys(sides))) for sides in _sizes(loaded, size))
        raise InputError(f"{loaded.source} takes no images of {tried} pixels: {made}.", hint=hint)
    return tuple(made[0].shape[1:])


def _takes(loaded: Loaded, shape: tuple[int, int, int]) -> bool:
    device = next((p.device for p in loaded.model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            loaded.model.net(torch.zeros(2, *shape, device=device))
    except Exception as error:  # of a wrong size, or whatever a user's own code raises
        signals.let_through(error)
        return False
    return True


def settled(loaded: Loaded, possible: Sequence[Dataset], *, say: Say) -> tuple[Dataset, Reading]:
    """The size of images and the order of classes with which the model is clearly more often right than with
    the likeliest, and the reading of the model that is.

    Raises: InputError as `settle`, of the likeliest, if none can be read; Undecided if it is not known how
    the file is to be read with what is chosen.
    """
    found: list[tuple[Dataset, Reading]] = []
    refused: InputError | None = None
    for dataset in possible:
        if len(possible) > 1:
            say(f"trying images of {dataset.size_words()}")
        dataset = dataset.probed(PROBE, say=say)
        try:
            found.append((dataset, provisional(loaded, dataset, say=say)))
        except InputError as error:
            refused = refused or error
    if not found:
        assert refused is not None
        raise refused
    dataset, reading = _best(found)
    check_decided(reading)
    if len(found) > 1:
        dataset = _noted(dataset, found, lambda other: f"images of {sides(other.shape[1:])}",
                         flag=" (--image-size decides)", taken={"image_size": dataset.shape[1:]})
    return _ordered(loaded, dataset, reading, say=say)


def of_some_classes(loaded: Loaded, dataset: Dataset) -> Loaded:
    """The model that decides among the classes of the test images only.

    Raises: InputError if it lacks one of them.
    """
    if dataset.present[-1] >= loaded.num_classes:
        raise InputError(f"{loaded.source} has {loaded.num_classes} classes, the data set {dataset.name} has "
                         f"class {dataset.present[-1]}.", hint="Leave --logits out.")
    some = SomeClasses(loaded.model, dataset.present, all_classes=loaded.num_classes)
    model = Normalized(some, num_classes=len(dataset.present)).eval()
    device = next((p.device for p in loaded.model.parameters()), torch.device("cpu"))
    return replace(loaded, model=model.to(device), num_classes=len(dataset.present))


def _ordered(loaded: Loaded, dataset: Dataset, reading: Reading, *, say: Say) -> tuple[Dataset, Reading]:
    """With the classes in the other order that folders named by numbers allow, if that is clearly better."""
    if dataset.reordered is None:
        return dataset, reading
    other = dataset.in_other_order()
    words = {id(dataset): "folders in the order of text", id(other): "in the order of number"}
    found = [(dataset, reading)]
    try:
        found.append((other, provisional(reading.loaded, other, say=say)))
    except InputError:
        return dataset, reading
    best, chosen = _best(found)
    check_decided(chosen)
    order = "number" if best is other else "text"
    return _noted(best, found, lambda one: words[id(one)], flag=" (--class-order decides)",
                  taken={"class_order": order}), chosen


def _best(found: Sequence[tuple[Dataset, Reading]]) -> tuple[Dataset, Reading]:
    """The first, unless another one is clearly better."""
    best = found[0]
    for dataset, reading in found[1:]:
        if is_clearly_better(reading.hits, best[1].hits):
            best = dataset, reading
    return best


def _noted(chosen: Dataset, found: Sequence[tuple[Dataset, Reading]], words: Callable[[Dataset], str], *,
           flag: str, taken: Mapping[str, Any]) -> Dataset:
    """The one that was chosen, with each one's accuracy among its notes, and what chooses it again."""
    figures = [f"{words(dataset)} {100 * reading.accuracy:.1f}%" for dataset, reading in found]
    listed = "; ".join(figures)
    return replace(chosen, taken=dict(chosen.taken) | dict(taken), notes=(*chosen.notes,
                                  f"taken: {words(chosen)}{flag}; right on {chosen.probe_name}: {listed}"))


