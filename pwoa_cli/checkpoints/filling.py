"""A network filled with the tensors of a file: under the network's own keys, as its own load_state_dict
judges, and with plain weights in the place of parametrised ones."""
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from pwoa_cli.checkpoints import signatures
from pwoa_cli.checkpoints.heads import body_of
from pwoa_cli.checkpoints.signatures import prefixes
from pwoa_cli.errors import InputError
from pwoa_cli.networks import families
from pwoa_cli.networks.build import raised

WAYS = ("Name the architecture that the weights were trained with: --arch NAME or --arch file.py:fn, or the "
        "number of classes: --num-classes K")
COUNTER = "num_batches_tracked"  # of batch norm, which older files lack
SHOWN = 80  # characters of a name


def aligned(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The state under the network's own keys: without a prefix of all that is not the network's, or with one
    that is and was taken for a wrapper's."""
    own = net.state_dict()
    for prefix in prefixes(state):
        inner = {k.removeprefix(prefix): t for k, t in state.items()}
        if set(inner) <= set(own):
            return inner
    lost = next((k for k in state if k not in own), "")
    prefix = next((k.removesuffix(lost) for k in own if lost and k.endswith("." + lost)), "")
    renamed = {k if k in own else prefix + k: t for k, t in state.items()}
    return renamed if set(renamed) <= set(own) else dict(state)


def shaped(net: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors that both have are of the same shapes."""
    own = net.state_dict()
    return not any(_differ(own[k], t) for k, t in aligned(state, net).items() if k in own)


def fill(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict as the network's own load_state_dict takes it; counters of batch norm may be missing.

    Raises: InputError that names the first tensor, got and expected, and counts what is missing and too many.
    """
    try:
        net.load_state_dict(dict(state))
    except Exception as error:  # a user's network may have a load_state_dict of its own
        check_fits(net, state, where)
        _load_without_counters(net, state, where, error)


def _load_without_counters(net: nn.Module, state: Mapping[str, Tensor], where: str, error: Exception) -> None:
    lacks = any(k.endswith(COUNTER) and k not in state for k in net.state_dict())
    try:
        if not lacks:
            raise error
        net.load_state_dict(dict(state), strict=False)
    except Exception as again:
        raise InputError(f"{where}: its load_state_dict raises {raised(again)}.",
                         hint="The network that wrote the file loads it: --arch file.py:fn") from again


def check_fits(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Raises: InputError that names the first tensor whose shape differs, and what is missing or too many."""
    own = net.state_dict()
    differ = [k for k in own if k in state and _differ(own[k], state[k])]
    missing = [k for k in own if k not in state and not k.endswith(COUNTER)]
    unexpected = [k for k in state if k not in own]
    parts = [f"{k} has shape {tuple(state[k].shape)}, expected {tuple(own[k].shape)}" for k in differ[:1]]
    parts += [f"{len(differ) - 1} more shapes differ"] if len(differ) > 1 else []
    parts += [f"{len(keys)} tensors {word} ({_few(keys)})"
              for word, keys in (("missing", missing), ("too many", unexpected)) if keys]
    if parts:
        said, of_head = _but_for_head(state)
        raise InputError(f"{where}: {'; '.join(parts)}; {len(own)} tensors expected{said}.",
                         hint=of_head or WAYS)


def _few(names: Sequence[str]) -> str:
    """The first names, shortened: those of a damaged file fill a page."""
    return ", ".join([name if len(name) <= SHOWN else f"{name[:SHOWN]}..." for name in names[:3]]
                     + ["..."] * (len(names) > 3))


def _but_for_head(state: Mapping[str, Tensor]) -> tuple[str, str | None]:
    """(what a state dict is but for its head, the file to write) where that is all that keeps it from being
    known; ("", None)."""
    if families.identify(state) or signatures.lookup(state):
        return "", None
    body = body_of(state)
    hint = body.hint() if body else None
    return (f"; it is {body.words()}", hint) if body and hint else ("", None)


def _differ(own: Tensor, tensor: Tensor) -> bool:
    """Whether shapes differ; a lazy parameter takes any."""
    return not is_lazy(own) and own.shape != tensor.shape


# --- parametrised weights ---------------------------------------------------------------

def make_plain(net: nn.Module, where: str) -> tuple[str, ...]:
    """Put in the place of each parametrised tensor (weight_norm, spectral_norm, orthogonal, masks, in torch's
    old and new form), in place, what the layer multiplies in eval mode: that is what pruning works on.

    Returns: their names. Raises: InputError naming the tensor whose parametrisation cannot be removed.
    """
    net.eval()  # a spectral norm moves its vectors in training
    names = []
    for prefix, module in list(net.named_modules()):
        for name in _parametrised(module):
            full = f"{prefix}.{name}".lstrip(".")
            try:
                _remove(module, name)
            except Exception as error:  # the user's own formula
                raise InputError(f"{where}: {full} is parametrised and cannot be made plain: "
                                 f"{raised(error)}.",
                                 hint="Let the function of --arch file.py:fn return the network with plain "
                                      "weights.") from error
            names.append(full)
    return tuple(names)


def _hooks(module: nn.Module) -> dict[str, object]:
    """What computes a tensor before each pass, in torch's older form, by the tensor's name."""
    found: dict[str, object] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            found[hook.name] = hook
        elif isinstance(hook, prune.BasePruningMethod):
            found[hook._tensor_name] = hook
    return found


def _parametrised(module: nn.Module) -> list[str]:
    new = list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore
    return [*new, *_hooks(module)]


def _remove(module: nn.Module, name: str) -> None:
    hook = _hooks(module).get(name)
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, name)
        # torch 2 wraps these hooks, and so does not find them
        for key, wrapped in list(module._load_state_dict_pre_hooks.items()):
            if isinstance(getattr(wrapped, "hook", wrapped), SpectralNormLoadStateDictPreHook):
                del module._load_state_dict_pre_hooks[key]
    elif isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, name)
    else:
        parametrize.remove_parametrizations(module, name)
        tensor = getattr(module, name)
        if not isinstance(tensor, nn.Parameter):  # of frozen parts torch leaves a tensor that no file keeps
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
