"""What a model is made of, found by running it: prunable weights, hidden layers, the batch norm behind each
filter."""
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_cli.networks.build import WRAPPED, public_name

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
               nn.Softplus,
               nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid)
LISTS = (nn.ParameterList, nn.ParameterDict)
PRUNABLE = (nn.modules.conv._ConvNd, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own weights by name: `weight` of a convolution or linear layer, the three projections of
    attention, and of a layer of somebody's own class every matrix or larger (at least 2 x 2: no gains, tokens
    or constants by channel)."""
    if isinstance(module, PRUNABLE):
        return {"weight": module.weight} if isinstance(module.weight, nn.Parameter) else {}
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.MultiheadAttention):
        return {name: p for name, p in own.items() if name.endswith("proj_weight")}
    if (type(module).__module__.startswith(("torch.", "torchvision.", "timm."))
        and not isinstance(module, LISTS)):
        return {}
    return {name: p for name, p in own.items() if p.ndim >= 2 and min(p.shape[:2]) > 1
            and p.is_floating_point()}


def prunable(model: nn.Module, live: set[str] | None) -> dict[str, nn.Parameter]:
    """Weights of all modules (`weights_of`) by parameter name, in forward definition order, tied ones once,
    dead ones left out.

    Args: live: names of the parameters that reach the logits; None: all.
    """
    weights = {id(p) for m in model.modules() for p in weights_of(m).values()}
    return {name: p for name, p in model.named_parameters() if id(p) in weights
            and (live is None or name in live)}


def zeros_of(weights: Mapping[str, Tensor]) -> float:
    """Fraction of zeros, in [0, 1]; of no weights 0."""
    total = sum(w.numel() for w in weights.values())
    return (total - sum(int(w.count_nonzero()) for w in weights.values())) / max(1, total)


def uncounted(model: nn.Module, live: set[str], counted: Collection[str]) -> dict[str, nn.Parameter]:
    """Live parameters of two or more dimensions that are not `counted`: recurrent layers, embeddings, tokens.
    Args: live, counted: names of parameters."""
    return {name: p for name, p in model.named_parameters()
            if name in live and name not in counted and p.ndim >= 2 and min(p.shape[:2]) > 1}


def rows(model: nn.Module) -> dict[str, str]:
    """{weight: its bias, "" for none} of all that is a matrix of filters or neurons: convolutions, linear
    layers, and the joint projection of attention (of separate ones a bias holds three)."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, str] = {}
    for m in model.modules():
        if isinstance(m, PRUNABLE) and isinstance(m.weight, nn.Parameter):
            found.setdefault(names[id(m.weight)], names.get(id(m.bias), ""))
        elif isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None:
            found[names[id(m.in_proj_weight)]] = names.get(id(m.in_proj_bias), "")
    return found


def transposed(model: nn.Module) -> dict[str, int]:
    """{weight: groups} of the transposed convolutions, whose filters are dimension 1 of (in, out/groups,
    ...)."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(m.weight)]: m.groups for m in model.modules()
            if isinstance(m, nn.modules.conv._ConvTransposeNd) and id(m.weight) in names}


def live_parameters(model: nn.Module, x: Tensor) -> set[str]:
    """Names of the parameters whose gradient reaches the logits, on images x (B, C, H, W); grads are left
    untouched.

    A parameter that forward never uses (the second `sub_block1` of WideResNets from TRADES-like code) is not
    among them.
    """
    named = dict(model.named_parameters())
    with _gradients(model):
        grads = torch.autograd.grad(model(x).sum(), list(named.values()), allow_unused=True)
    return {name for name, g in zip(named, grads, strict=True) if g is not None}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, passes are those of eval mode."""
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():  # one by one: a frozen batch norm stays frozen
            module.training = was


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    """Inside, passes are those of eval mode, with gradients for every parameter."""
    trained = {p: p.requires_grad for p in model.parameters()}
    try:
        with _evaluating(model), torch.enable_grad():
            for p in trained:
                p.requires_grad_(True)
            yield
    finally:
        for p, was in trained.items():
            p.requires_grad_(was)


@contextmanager
def capture(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Inside the block, every forward pass of `model` refills the yielded list with the outputs of the named
    modules, in the order of the pass; a module that runs twice gives two."""
    outputs: list[Tensor] = []
    modules = dict(model.named_modules())

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        outputs.append(output)

    handles = [model.register_forward_pre_hook(lambda *_: outputs.clear())]
    handles += [modules[name].register_forward_hook(keep) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def hidden_layers(model: nn.Module, x: Tensor, patterns: str = "auto") -> list[str]:
    """Names of the modules whose outputs count as hidden layers z_1 .. z_M, found by running x (B, C, H, W).

    "auto": the blocks (innermost modules, inside an nn.Sequential or nn.ModuleList, of a class of their own
    that hold two or more prunable layers); a model without blocks: its activation modules before the last
    prunable layer; a model without those: its prunable layers but the last. "inner": with the blocks also the
    batch norms inside them (but one whose output the block returns, its sum written over it). Else
    comma-separated patterns of module names (layer?.0).
    Raises: ValueError if nothing in the pass matches.
    """
    runs = _runs(model, x)
    order, outputs = [name for name, _ in runs], dict(runs)
    if patterns not in ("auto", "inner"):
        asked = [p.strip() for p in patterns.split(",")]
        found = [n for n in order if any(fnmatchcase(name, p) for p in asked for name in (n, public_name(n)))]
    else:
        modules = dict(model.named_modules())
        weighted = _weighted(order, modules)
        before_logits = order[: order.index(weighted[-1])] if weighted else order
        wanted = {b for b in _blocks(model) if b in outputs}
        if patterns == "inner":
            norms = [n for n in order if isinstance(modules[n], nn.modules.batchnorm._BatchNorm)]
            wanted |= {n for b in wanted for n in norms if n.startswith(b + ".")
                       and outputs[n] is not outputs[b]}
        found = ([n for n in order if n in wanted]
                 or [n for n in before_logits if isinstance(modules[n], ACTIVATIONS)] or weighted[:-1])
    if not found:
        ran = [public_name(n) for n in order if n != WRAPPED]
        raise ValueError(f"no hidden layer matches {patterns!r}; modules that run: "
                         f"{', '.join(ran[:8] + ['...'] * (len(ran) > 8))}")
    return list(dict.fromkeys(found))


def logit_layers(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the weighted modules from which the logits on x (B, C, H, W) come with no other in between:
    their rows are the classes. A network may have several, which it adds up, and others that run later for
    another answer."""
    modules, ends = dict(model.named_modules()), dict[Any, str]()

    def ended(name: str, out: object) -> None:
        ends.update({t.grad_fn: name for t in _tensors(out) if t.grad_fn is not None})

    handles = [modules[name].register_forward_hook(lambda _m, _a, out, name=name: ended(name, out))
               for name in _weighted(list(modules), modules)]
    try:
        with _gradients(model):
            logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    todo, seen, found = [logits.grad_fn], set(), dict[str, None]()
    while todo:
        node = todo.pop()
        if node in ends:
            found[ends[node]] = None
        elif node is not None and node not in seen:
            seen.add(node)
            todo += [inner for inner, _ in node.next_functions]
    return [name for name in modules if name in found]


def _tensors(out: object) -> Iterator[Tensor]:
    """A module's outputs."""
    for value in out if isinstance(out, list | tuple) else (out,):
        if isinstance(value, Tensor):
            yield value


def _weighted(order: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Of the modules that ran those with weights and no such module inside: a network with a matrix of its
    own, such as positions, ends last and is no layer."""
    found = [n for n in order if weights_of(modules[n])]
    return [n for n in found if not any(other.startswith(n + ".") for other in found)]


def _blocks(model: nn.Module) -> list[str]:
    blocks = []
    for name, parent in model.named_modules():
        if isinstance(parent, (nn.Sequential, nn.ModuleList)):
            for child_name, child in parent.named_children():
                own_class = not type(child).__module__.startswith("torch.nn")
                if own_class and sum(bool(weights_of(m)) for m in child.modules()) >= 2:
                    blocks.append(f"{name}.{child_name}".lstrip("."))
    return [b for b in blocks if not any(other.startswith(b + ".") for other in blocks)]


def _runs(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
    """(name, output) of the modules that return one tensor (B, ...) in a forward pass, in the order in which
    they finish."""
    runs: list[tuple[str, Tensor]] = []

    def ran(name: str, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim >= 2 and len(out) == len(x):
            runs.append((name, out))

    handles = [m.register_forward_hook(lambda _m, _a, out, name=name: ran(name, out))
               for name, m in model.named_modules() if name]
    _forward(model, x, handles)
    return runs


def norms(model: nn.Module, x: Tensor) -> dict[str, tuple[str, ...]]:
    """{weighted module: norms of each channel (batch and instance norms) that read its very output} by module
    name: what makes a zero filter speak again. A layer that runs twice may have two."""
    producer: dict[int, tuple[str, Tensor, int]] = {}
    found: dict[str, tuple[str, ...]] = {}

    def produced(name: str) -> Callable[..., None]:
        # the tensor is kept, so its id is its own
        return lambda _m, _a, out: producer.__setitem__(id(out), (name, out, out._version))

    def consumed(name: str, args: tuple[Tensor, ...]) -> None:
        source, _, version = producer.get(id(args[0]), ("", None, 0)) if args else ("", None, 0)
        if source and args[0]._version == version:  # else something was added to it in place
            found[source] = tuple(dict.fromkeys((*found.get(source, ()), name)))

    handles = []
    for name, m in model.named_modules():
        if isinstance(m, PRUNABLE):
            handles.append(m.register_forward_hook(produced(name)))
        elif isinstance(m, NORMS):
            handles.append(m.register_forward_pre_hook(lambda _m, args, name=name: consumed(name, args)))
    _forward(model, x, handles)
    return found


def _forward(model: nn.Module, x: Tensor, handles: list) -> None:
    """A pass in eval mode that calls every module: torch's fast path of attention goes around its layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _evaluating(model), torch.no_grad():
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


def macs(model: nn.Module, x: Tensor) -> dict[str, int]:
    """{"dense": ..., "nonzero": ...} multiply-accumulates of convolutions, linear layers and attention's
    projections for one image: of all weights, and of the nonzero ones alone."""
    uses = _all_uses(model, x)
    return {"dense": sum(weight.numel() * times for weight, times in uses),
            "nonzero": sum(int(weight.count_nonzero()) * times for weight, times in uses)}


def macs_by_weight(model: nn.Module, x: Tensor) -> dict[str, int]:
    """{parameter: multiply-accumulates of all its entries, zeros too, for one image}: the parts of `macs`."""
    memory = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
    found: dict[str, int] = {}
    for weight, times in _all_uses(model, x):
        name = memory.get(weight.untyped_storage().data_ptr(), "")  # "": of what is computed from parameters
        found[name] = found.get(name, 0) + weight.numel() * times
    return found


def _all_uses(model: nn.Module, x: Tensor) -> list[tuple[Tensor, int]]:
    uses: list[tuple[Tensor, int]] = []
    handles = [m.register_forward_hook(
                   lambda m, args, named, out: uses.extend(_uses(m, [*args, *named.values()], out)),
                   with_kwargs=True)
               for m in model.modules() if isinstance(m, (*PRUNABLE, nn.MultiheadAttention))]
    _forward(model, x[:1], handles)
    return uses


def _uses(m: nn.Module, args: list, out: Any) -> list[tuple[Tensor, int]]:
    """(weight, how often each of its entries is multiplied) in a pass of one image: a first dimension of
    windows counts too."""
    if isinstance(m, nn.MultiheadAttention):
        tokens = [t.numel() // t.shape[-1] for t in args[:3]]  # of query, key and value
        split: list[Any] = [m.q_proj_weight, m.k_proj_weight, m.v_proj_weight]
        parts = split if m.in_proj_weight is None else m.in_proj_weight.chunk(3)
        return [*zip(parts, tokens, strict=True), (m.out_proj.weight, tokens[0])]
    assert isinstance(m.weight, Tensor)  # of a layer of PRUNABLE
    if isinstance(m, nn.modules.conv._ConvTransposeNd):
        return [(m.weight, args[0].numel() // len(m.weight))]  # every input goes into every filter
    return [(m.weight, out.numel() // len(m.weight))]


def same_hidden(student: nn.Module, teacher: nn.Module, hidden: tuple[str, ...], x: Tensor) -> bool:
    """Whether hidden layers can be matched: of the same names and shapes in both models."""
    shapes = []
    for model in (student, teacher):
        names = dict(model.named_modules())
        with torch.no_grad(), capture(model, [n for n in hidden if n in names]) as outputs:
            model(x)
            shapes.append([tuple(z.shape) for z in outputs])
    return shapes[0] == shapes[1]


def companions(model: nn.Module, x: Tensor) -> dict[str, tuple[str, ...]]:
    """{weight: parameters (out,) that would still speak when its filter is zero}: biases, and the scale and
    shift of norms, of every layer that has the weight."""
    after = norms(model, x)
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, tuple[str, ...]] = {w: (bias,) if bias else () for w, bias in rows(model).items()}
    for name, m in model.named_modules():
        if isinstance(m, PRUNABLE) and id(m.weight) in names:
            readers = [model.get_submodule(norm) for norm in after.get(name, ())]
            speaking = [m.bias, *(p for norm in readers for p in (norm.weight, norm.bias))]
            weight = names[id(m.weight)]
            mine = (names[id(p)] for p in speaking if id(p) in names)
            found[weight] = tuple(dict.fromkeys((*found[weight], *mine)))
    return found
