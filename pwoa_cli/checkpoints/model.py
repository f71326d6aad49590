"""A checkpoint as a ready model: read -> name the architecture -> build -> load -> normalise, with the
evidence said.

What keys and shapes cannot tell is the user's to say (`Source`), and wins over what the file says.
"""
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.checkpoints import architecture, hub, slim
from pwoa_cli.checkpoints.architecture import Architecture, is_file, is_own
from pwoa_cli.checkpoints.filling import aligned, check_fits, fill, make_plain, shaped
from pwoa_cli.checkpoints.keys import normalisation_of
from pwoa_cli.checkpoints.normalisation import Normalisation, Values, decide, stated
from pwoa_cli.checkpoints.own_words import SPARE, own_words
from pwoa_cli.checkpoints.shards import checkpoint_sha256
from pwoa_cli.checkpoints.state_dict import check_one_normalisation, read_state_dict, take_normalisation
from pwoa_cli.checkpoints.training_threat import threat_of
from pwoa_cli.errors import InputError, PwoaError, cause, one_line
from pwoa_cli.machine.memory import check_room
from pwoa_cli.networks.build import SIZES, Normalized, build, give_memory, parts, tried

WORDS = "the pruned file's own words"
SHOWN = 4  # of the readings that the keys allow as well


@dataclass(frozen=True)
class Source:
    """A model and what the user said about it; None: to be inferred.

    path: a file, or timm:NAME, hf-hub:ID. options: all of those of arch, as a pruned file has them. mean,
    std: (): inputs are taken as they are. entry: which of several models of a file. keep: the fraction of
    weights that pruning scores in the file keep. trust_pickle: may run code of the file.
    """

    path: str
    arch: str | None = None
    options: Mapping[str, Any] | None = None
    num_classes: int | None = None
    mean: Values | None = None
    std: Values | None = None
    entry: str | None = None
    keep: float | None = None
    trust_pickle: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model with its origin. build(arch, arch_options) and the state dict of model.net give the model
    again.

    model: takes (B, C, H, W) in [0,1], eval mode, on the CPU. input_shape: (C, H, W), or None where the file
    does not tell. default_size: (H, W) for images that come in any size: input_shape's, else what the
    library's model is made for. threat: (norm, eps) if the file names it. others: options that its keys allow
    as well. unwrapped: what was removed around the weights, and other choices of the reader. settled: how
    what was open was decided on labelled images, "" where it was not. notes: all that was inferred, and from
    what. extra: what else the file says (settings, a pruned file's metadata).
    """

    model: Normalized
    arch: str
    arch_options: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, int, int] | None
    default_size: tuple[int, int] | None
    normalisation: Normalisation
    threat: tuple[str, float] | None
    evidence: str
    others: tuple[dict[str, Any], ...]
    unwrapped: tuple[str, ...]
    source: str
    sha256: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    settled: str = ""

    @property
    def mean(self) -> Values | None:
        """By channel; None: inputs are taken as they are."""
        return self.normalisation.mean or None

    @property
    def std(self) -> Values | None:
        """By channel; None: inputs are taken as they are."""
        return self.normalisation.std or None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was inferred, and from what, a line each."""
        choice = f" with {self.chosen()}" if self.chosen() else ""
        opened = [f"others with the same keys: {said(self.changed(other))}" for other in self.others]
        if len(opened) > SHOWN:
            opened[SHOWN:] = [f"and {len(opened) - SHOWN} more with the same keys"]
        return (*self.unwrapped, f"architecture: {self.arch}{choice} from {self.evidence}", *opened,
                f"normalisation: {self.normalisation.words()}", *([self.settled] if self.settled else []))

    def changed(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """What one of `others` changes in the options that were taken."""
        return {key: value for key, value in other.items() if self.arch_options[key] != value}

    def chosen(self) -> str:
        """The options that were taken where the keys allow others, for people."""
        open_keys = dict.fromkeys(key for other in self.others for key in other)
        return said({key: self.arch_options[key] for key in open_keys if self.arch_options[key] != []})


def said(options: Mapping[str, Any]) -> str:
    """Options for people: activation=silu, padded=false."""
    return ", ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in options.items())


def load_model(source: Source | str | Path) -> Loaded:
    """Read a checkpoint (.pt, .pth, .safetensors, pruned or not; timm:NAME, hf-hub:ID) and build its model.

    Raises: InputError naming the tensor, got and expected.
    """
    source = source if isinstance(source, Source) else Source(str(source))
    return _from_hub(source) if hub.is_name(source.path) else _from_file(source)


def _from_file(source: Source) -> Loaded:
    if source.arch and is_file(source.arch):  # a network of the user's may want weights as they are stored
        for cleared in (True, False):  # and have names that are wrappers' elsewhere
            with suppress(InputError):
                return _read(source, folded=False, cleared=cleared)
    return _read(source, folded=True)


def _read(source: Source, *, folded: bool, cleared: bool = True) -> Loaded:
    """Args: folded: whether parametrised weights of the file are made plain before the network sees them.
    cleared: whether wrappers' names and tensors that are no layer's are taken out."""
    where = source.path
    raw, extra, unwrapped = read_state_dict(where, entry=source.entry, keep=source.keep,
                                            trust_pickle=source.trust_pickle, folded=folded, cleared=cleared)
    state, *inside = take_normalisation(raw)
    if "arch_options" in extra:
        extra = extra | own_words(extra, raw, where)
        inside = [extra["mean"] or (), extra["std"] or ()]
    found = _architecture(state, extra, source)
    slimmed = slim.is_slim(extra, where) and found.evidence == WORDS
    if slimmed:
        # one of ours takes no memory until its sizes are known
        with torch.device("meta") if is_own(found.arch) else nullcontext():
            net = _build_for(found, where)
    else:
        found, net = _of_own_size(found, state, where)
    plain = make_plain(net, where) if folded and is_file(found.arch) else ()
    # the network has the normalisation in it
    itself = len(state) < len(raw) and set(aligned(raw, net)) <= set(net.state_dict())
    state = raw if itself else state
    if slimmed:
        slim.fit(net, state, where)
    fill(net, aligned(state, net), f"{where} as {found.arch}")
    if slimmed and not is_file(found.arch):
        slim.check_runs(net, _images(found), found.options.get("num_classes"), where)
    plain = plain if folded else make_plain(net, where)
    if itself:  # some keep mean and std as parameters: nobody trains or prunes those
        for name, parameter in net.named_parameters():
            if normalisation_of(name):
                parameter.requires_grad_(False)
    if not itself and source.mean is None and "arch_options" not in extra:
        unwrapped += check_one_normalisation(raw, where)
    normalisation = Normalisation((), (), "network") if itself and source.mean is None else decide(
        source.mean, source.std, inside=inside, channels=_channels(found), where=where)
    if normalisation.said_by == "nobody":
        beside, sentence = stated(extra, _channels(found))
        normalisation = beside or normalisation
        unwrapped += (sentence,) * bool(sentence)
    return _loaded(net, found, state, normalisation, source, checkpoint_sha256(where),
                   unwrapped=unwrapped + _said_plain(plain) + (slim.SAID,) * slimmed, extra=extra)


def _images(found: Architecture) -> list[tuple[int, ...]]:
    """(C, H, W) of images of which the network takes one."""
    sizes = [found.made_for] if found.made_for else SIZES
    return [found.input_shape] if found.input_shape else [(_channels(found) or 3, *size) for size in sizes]


def _said_plain(names: Sequence[str]) -> tuple[str, ...]:
    shown = f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}"
    return (f"parametrised in the network, made plain as they are multiplied in eval mode: {shown}",
            ) if names else ()


def _from_hub(source: Source) -> Loaded:
    if source.arch and source.options is None or source.entry or source.keep is not None:
        raise InputError(f"{source.path} says itself what it is; --arch, --entry and --keep are for files.",
                         hint="Leave them out.")
    made = hub.pretrained(source.path)
    found = Architecture(made.arch, made.options, None, f"timm's description of {source.path}",
                         made_for=made.size)
    net = _build_for(found, source.path)
    fill(net, made.state, source.path)
    normalisation = decide(source.mean, source.std, inside=(made.mean, made.std), channels=_channels(found),
                           where=source.path)
    if normalisation.said_by == "file":
        normalisation = replace(normalisation, said_by="library")
    return _loaded(net, found, made.state, normalisation, source, made.sha256,
                   extra={"framing": made.framing})


def _loaded(net: nn.Module, found: Architecture, state: Mapping[str, Tensor], normalisation: Normalisation,
            source: Source,
            sha256: str, *, unwrapped: tuple[str, ...] = (),
            extra: Mapping[str, Any] | None = None) -> Loaded:
    if is_file(found.arch) and "num_classes" not in found.options:
        found = replace(found, options=found.options | {"num_classes": _answers(net, state)})
    classes = int(found.options.get("num_classes") or architecture.classes(state))
    if source.num_classes not in (None, classes):
        head = architecture.head(state, classes)
        got = tuple(state[head].shape) if head else (classes,)
        raise InputError(f"{source.path}: {head or 'the last layer'} has shape {got}, --num-classes "
                         f"{source.num_classes} expects {(source.num_classes, *got[1:])}.",
                         hint=f"Leave it out, or: --num-classes {classes}")
    model = Normalized(net, normalisation.mean, normalisation.std, num_classes=classes).eval()
    return Loaded(model, found.arch, found.options, classes, found.input_shape, found.default_size,
                  normalisation,
                  threat_of(extra or {}), found.evidence, found.others, unwrapped, source.path, sha256,
                  extra or {})


def answer(net: nn.Module, state: Mapping[str, Tensor], *, channels: int | None,
           sizes: Sequence[tuple[int, int]] = SIZES) -> tuple[Tensor, Any] | str:
    """(two images that a network takes, what it returns for them), or why it takes none.

    Args: channels: of its images; None: by the first convolution in its state, else 3 or 1. sizes: (H, W) to
    try.
    """
    stem = next((t.shape[1] for k, t in state.items() if t.ndim == 4 and k.endswith("weight")), 3)
    made: tuple[Tensor, Any] | str = ""
    for count in (channels,) if channels else dict.fromkeys((stem, 3, 1)):
        made = tried(net, channels=count, sizes=sizes)
        if not isinstance(made, str):
            break
    return made


def _answers(net: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Classes of a user's network: columns of what it returns for images that it takes, else by the last
    matrix in the file."""
    guess, made = architecture.classes(state), answer(net.eval(), state, channels=None)
    if isinstance(made, str):
        return guess
    out = made[1]
    columns = [part.shape[1] for _, part in ([("", out)] if isinstance(out, Tensor) else parts(out))
               if part.ndim == 2]
    return guess if guess in columns or not columns else columns[0]


def _channels(found: Architecture) -> int | None:
    if found.input_shape:
        return found.input_shape[0]
    return None if is_file(found.arch) else found.options.get("in_chans", found.options.get("in_channels", 3))


def read_as(loaded: Loaded, *, options: Mapping[str, Any] | None = None,
            normalisation: Normalisation | None = None) -> Loaded:
    """The same weights under other options of the same keys (one of `others`) or another normalisation.

    The weights are shared, so that a large network can be tried in many ways.
    """
    merged = loaded.arch_options | dict(options or {})
    net = loaded.model.net
    if options:
        with torch.device("meta"):
            net = build(loaded.arch, merged)
        net.load_state_dict(loaded.model.net.state_dict(), assign=True)
    normalisation = normalisation or loaded.normalisation
    before = {key: loaded.arch_options[key] for key in options or {}}
    others = tuple(before if other == options else other for other in loaded.others)
    shape = loaded.input_shape and (loaded.input_shape[0],
                                    *[merged.get("size", side) for side in loaded.input_shape[1:]])
    device = next((p.device for p in loaded.model.parameters()), torch.device("cpu"))
    model = Normalized(net, normalisation.mean, normalisation.std,
                       num_classes=loaded.num_classes).eval().to(device)
    return replace(loaded, model=model, arch_options=merged, input_shape=shape,
                   default_size=shape[1:] if shape else loaded.default_size, normalisation=normalisation,
                   others=others)


def _architecture(state: dict[str, Tensor], extra: Mapping[str, Any], source: Source) -> Architecture:
    """From --arch, from a pruned file's own words, or from keys and shapes."""
    where, arch = source.path, source.arch
    if arch and source.options is not None:
        return Architecture(arch, dict(source.options), None, "the model that was pruned from it")
    if "arch_options" in extra and (arch is None or arch == extra["arch"] or is_file(arch)):
        name = arch or extra["arch"]
        if arch is None and is_file(name):
            raise InputError(f"{where} was built by {name}, and a file's code is not run because the file "
                             "names it.",
                             hint=f"If you trust it: --arch {shlex.quote(name)}")
        return Architecture(name, extra["arch_options"], extra["input_shape"], WORDS,
                            made_for=extra["default_size"])
    if arch is not None:
        return architecture.of_user(arch, state, num_classes=source.num_classes)
    found = architecture.identify(state, where=where)
    if found is None:
        raise architecture.unknown(state, where=where)
    return found


def _of_own_size(found: Architecture, state: Mapping[str, Tensor],
                 where: str) -> tuple[Architecture, nn.Module]:
    """(the architecture, its network); one of a user's file with as many classes as its function makes by
    itself, or else as the last matrix in the file has rows."""
    if is_own(found.arch):
        return found, _own(found, state, where)
    if not is_file(found.arch):
        _check_room(found, state, where)
    if not is_file(found.arch) or found.options:
        return found, _build_for(found, where)
    guessed = replace(found, options=found.options | {"num_classes": architecture.classes(state)})
    with suppress(InputError):  # it may ask for num_classes
        net = _build_for(found, where)
        if shaped(net, state):
            return found, net
    return guessed, _build_for(guessed, where)


def _own(found: Architecture, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """A network of ours, all zeros: nothing is drawn that the file says. Raises: InputError as
    `_check_sizes`."""
    with torch.device("meta"):
        net = _build_for(found, where)
    _check_sizes(net, found, state, where)
    give_memory(net)
    return net


def _check_room(found: Architecture, state: Mapping[str, Tensor], where: str) -> None:
    """A library's network is made without memory first (on the meta device). One that cannot be made so is
    for `_build_for`. Raises: InputError as `_check_sizes`."""
    try:
        with torch.device("meta"):
            net = build(found.arch, found.options)
    except PwoaError:
        raise
    except Exception:
        return
    _check_sizes(net, found, state, where)


def _check_sizes(net: nn.Module, found: Architecture, state: Mapping[str, Tensor], where: str) -> None:
    """A network that is far larger than the file, or than memory, gets none. Raises: InputError that names
    the first tensor that does not fit, or the bytes."""
    own = net.state_dict()
    if sum(t.numel() for t in own.values()) > 2 * sum(t.numel() for t in state.values()) + SPARE:
        check_fits(net, aligned(state, net), f"{where} as {found.arch}")
    check_room(sum(t.nbytes for t in own.values()), f"{where}: {found.arch}")


def _build_for(found: Architecture, where: str) -> nn.Module:
    """The network of an architecture, with random weights."""
    try:
        return build(found.arch, found.options)
    except PwoaError:
        raise
    except Exception as error:  # options from a file may be anything
        raise InputError(one_line(f"{where}: {found.arch[:60]} cannot be built with "
                                  f"{said(found.options)[:300]}: {type(error).__name__} {cause(error)}."),
                         hint="Name another architecture: --arch NAME or --arch file.py:fn") from error
