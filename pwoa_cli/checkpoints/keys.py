"""The names in a state dict: what wrappers put into them, tensors that are no layer's, two networks side by
side.

Everything that is taken apart here goes by rule and is said; a network of the user's own whose names are
those of the file gets them as they are (model.py).
"""
import os
import re
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from pwoa_cli.checkpoints.normalisation import HOLDERS, NAMES
from pwoa_cli.errors import InputError

State = Mapping[str, Tensor]
PREFIXES = ("module.", "model.", "net.", "1.")
# of torch.compile, FSDP, activation checkpointing, fairscale, Fabric and Lightning, Opacus: no layer's names
WORDS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module", "_forward_module",
         "_original_module", "_module")
# of data parallelism around a part; deeper inside it is a layer's name (timm's iformer)
INSIDE = "module"
OUTERMOST = re.compile(rf"((module|model|_orig_mod)\.)*[^.]+(?=\.{INSIDE}\.)")
FLAT = ("_flat_param", "_fsdp_flat_param", "flat_param_0")
COUNT = "n_averaged"  # AveragedModel's
# last names: of thop in every module, of AveragedModel and of ema-pytorch
COUNTERS = ("total_ops", "total_params", COUNT, "num_updates", "initted", "global_step", "epoch")
# first names of what is trained or counted beside a network: losses, metrics, attacks, optimisers
BESIDE = re.compile(r"((train|val|valid|test|ce|kl|center|adv|aux)(ing|idation)?_?)?"
                    r"(criterion|loss|metric|acc|accuracy|confmat|centers?|attack|attacker|adversary"
                    r"|optimi[sz]er|scheduler|lr_scheduler)(s|es)?(_?(fn|func|function|module))?[0-9]*")
# side by side in one state dict these are whole models, not layers of one
SIDES = ("student", "teacher", "model", "net", "ema", "model_ema", "ema_model", "swa_model", "online_model",
         "encoder_q", "encoder_k", "netG", "netD", "generator", "discriminator")
AVERAGES = {"ema", "swa", "avg", "average", "averaged", "shadow"}
FOLLOWERS = {"target", "momentum"}  # of net: target_net, of online: target; also names of other things
# layers around a network that normalise; the first of a Sequential, or behind a resize
NORMALISERS = (*HOLDERS, "normalize_layer", "norm_layer", "data_norm", "input_norm", "preprocessing",
               "preprocessor", "transform", "input_transform", "0", "1")
PAIRS = (*NAMES, ("new_mean", "new_std"), ("_mean", "_std"))
KINDS = {name: kind for names in PAIRS for kind, name in zip(("mean", "std"), names, strict=True)}


def cleaned(state: State, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """(the tensors of one network under the names that it has by itself, what was undone, for people).

    A prefix is removed if every key has it; one that is not in PREFIXES must have layers of several names in
    it. Raises: InputError where two networks lie side by side and neither is the other's average; where FSDP
    left its parameters flat.
    """
    if flat := next((k for k in state if k.rpartition(".")[2].startswith(FLAT)), None):
        raise InputError(f"{where}: {flat} is a flat parameter of FSDP, many layers in one tensor.",
                         hint="Save it whole: FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT), or "
                              "get_model_state_dict with full_state_dict=True.")
    state, words = _without_words(state)
    averages = {k.split(".")[-2] for k in state if k.endswith(f".{COUNT}")}
    removed, dropped = "", list[str]()
    while True:
        state, left_out = _without_bookkeeping(state)
        dropped += left_out
        weights = [k for k in state if not normalisation_of(k)]
        prefix = next((p for p in PREFIXES if weights and all(k.startswith(p) for k in weights)),
                      None) or _shared(weights)
        if prefix is None:
            break
        state = {k.removeprefix(prefix): t for k, t in state.items()}
        removed += prefix
    state, beside = _one_of_two(state, averages, where)
    undone = [f"prefix {removed}"] * bool(removed) + words + dropped
    if beside:  # the one that is taken may be wrapped in turn
        state, more = cleaned(state, where)
        beside += more
    return dict(state), [*undone, *beside]


def _without_words(state: State) -> tuple[State, list[str]]:
    """Without the names that wrappers put anywhere into a key, as long as no two keys become one."""
    parents = {at[0] for at in map(OUTERMOST.match, state) if at}
    wrapped = {parent for parent in parents if _is_parallel(state, parent)}
    renamed, seen = {}, dict[str, None]()
    for key, tensor in state.items():
        parts, kept = key.split("."), list[str]()
        for i, part in enumerate(parts):
            own = part in WORDS or part == INSIDE and i and ".".join(parts[:i]) in wrapped
            if own and i < len(parts) - 1:
                seen[part] = None
            else:
                kept.append(part)
        renamed[".".join(kept)] = tensor
    if not seen or len(renamed) < len(state):
        return state, []
    return renamed, [f"{' and '.join(seen)} in keys"]


def _is_parallel(state: State, parent: str) -> bool:
    """Whether all below a name but counters is below `module`, and more than one tensor's layer: data
    parallelism, AveragedModel."""
    inner = f"{parent}.{INSIDE}."
    below = [k for k, t in state.items() if k.startswith(parent + ".") and not _is_counter(k, t)]
    return all(k.startswith(inner) and "." in k.removeprefix(inner) for k in below)


def _without_bookkeeping(state: State) -> tuple[State, list[str]]:
    """Without counters and what lies beside a network, if a network remains."""
    dropped = [k for k, t in state.items() if _is_counter(k, t)
               or "." in k and BESIDE.fullmatch(k.partition(".")[0])]
    kept = {k: t for k, t in state.items() if k not in set(dropped)}
    if not dropped or not any(t.ndim > 1 for t in kept.values()):
        return state, []
    parts = [(k.partition(".")[0], k.rpartition(".")[2], _is_counter(k, state[k])) for k in dropped]
    names = list(dict.fromkeys(f"{start}.*" if not counter else end if start == end else f"*.{end}"
                               for start, end, counter in parts))
    shown = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
    return kept, [f"dropped {len(dropped)} tensor{'s' * (len(dropped) > 1)} that are no layer's: {shown}"]


def _is_counter(key: str, tensor: Tensor) -> bool:
    """Whether it counts something: of a known name, or a whole number by itself that is no layer's."""
    alone = "." not in key and tensor.ndim == 0 and not tensor.is_floating_point()
    return alone or key.rpartition(".")[2] in COUNTERS and tensor.numel() <= 1


def _one_of_two(state: State, averages: Collection[str], where: str) -> tuple[State, list[str]]:
    """The network whose average lies beside it, with the normalisation that both share; all where there is
    but one. Args: averages: names that are known to be of one."""
    shared = _shared_normalisation(state)
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key not in shared:
            side, _, rest = key.partition(".")
            sides.setdefault(side, {})[rest] = tensor
    if len(sides) < 2:
        return state, []
    averaged = [n for n in sides if n in averages or _is_average(n, beside=sides.keys() - {n})]
    plain = [n for n in sides if n not in averaged]
    bare = {k: t for k, t in state.items() if k not in shared and k.partition(".")[0] not in averaged}
    of_averages = [_shapes(sides[name]) for name in averaged]
    for taken, words in ((sides[plain[0]], f"{plain[0]}.*") if len(plain) == 1 else ({}, ""),
                         (bare, f"what does not begin with {' or '.join(averaged)}")):
        layers = sum(t.ndim > 1 and "." in k for k, t in taken.items()) > 1
        if layers and averaged and all(shapes == _shapes(taken) for shapes in of_averages):
            others = " and ".join(f"{name}.*" for name in averaged)
            return shared | taken, [
                f"{words} of the file; beside it lies {others}, an average of the same network, which is "
                f"not used (--entry {averaged[0]} takes it)"]
    if set(sides) <= set(SIDES):
        names = sorted(sides, key=SIDES.index)
        raise InputError(f"{where} holds {len(sides)} models side by side: the keys begin with "
                         f"{', '.join(names)}.",
                         hint=f"Say which: --entry {names[0]}")
    return state, []


def _is_average(name: str, *, beside: Collection[str]) -> bool:
    """Whether a name says that it is an average: ema_net, netEMA; target_net where net lies beside it."""
    words = words_of(name)
    followed = words - FOLLOWERS
    return bool(words & AVERAGES) or words != followed and any(
        words_of(other) == followed if followed else "online" in words_of(other) for other in beside)


def words_of(name: str) -> set[str]:
    """The words of a name, in small letters: ema and net of ema_net, netEMA, ema2_net."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def _shapes(side: State) -> set[tuple[str, tuple[int, ...]]]:
    """The names and shapes of a network's tensors, without its normalisation."""
    return {(k, tuple(t.shape)) for k, t in side.items() if not normalisation_of(k)}


def normalisation_around(state: State, part: str) -> dict[str, Tensor]:
    """The normalisation that lies beside a part of a state dict (model, or module.model) and is of no other
    part, the nearest; without the names around it."""
    while part:
        part = part.rpartition(".")[0]
        outer = f"{part}." * bool(part)
        if found := _shared_normalisation({k.removeprefix(outer): t for k, t in state.items()
                                           if k.startswith(outer)}):
            return found
    return {}


def _shared_normalisation(state: State) -> dict[str, Tensor]:
    """The normalisation that does not lie in one of the parts that have weights."""
    parts = {k.partition(".")[0] for k in state if not normalisation_of(k)}
    return {k: t for k, t in state.items() if normalisation_of(k) and k.partition(".")[0] not in parts}


def _shared(keys: Sequence[str]) -> str | None:
    """The names that every key begins with, if layers of at least two names lie below them: an unknown
    wrapper's."""
    shared = os.path.commonprefix([k.split(".") for k in keys])
    prefix = "".join(name + "." for name in shared)
    return prefix if shared and all(k.startswith(prefix) and "." in k.removeprefix(prefix)
                                    for k in keys) else None


def normalisation_of(key: str) -> str | None:
    """"mean" or "std" for the key of a normalisation buffer (mu, 0.mean, normalize.std, normalizer.new_mean,
    ...), else None."""
    parts = key.split(".")
    while parts[0] in ("module", "model", "_orig_mod") and len(parts) > 1:
        parts = parts[1:]
    if len(parts) > 2 or len(parts) == 2 and parts[0] not in NORMALISERS:
        return None
    return KINDS.get(parts[-1])
