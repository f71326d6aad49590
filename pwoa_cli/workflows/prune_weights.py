"""Which weights of a model a structure counts, and whether zeros in them are zeros in what the network
multiplies: found and refused before the first step."""
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import checks
from pwoa_cli.networks import channels, layers, products
from pwoa_cli.networks.build import public_name, public_names
from pwoa_cli.pruning.groups import Coupled, Groups, masks, structure_of
from pwoa_cli.reports.numbers import percent_of_weights

SHOWN = 3


@dataclass(frozen=True)
class Counted:
    """weights: those that count, by name. dead: entries of those that never reach the logits. left_out:
    {name: entries} of other matrices that do, but for the layer of the logits. unfit: those of them that
    cannot be cut into the groups of `kind`."""

    weights: Mapping[str, nn.Parameter]
    dead: int
    left_out: Mapping[str, int]
    unfit: Set[str]
    kind: str

    def sentence(self) -> str:
        """What is not counted, for people: "" where nothing is."""
        total = sum(w.numel() for w in self.weights.values()) + sum(self.left_out.values())
        others = {name: n for name, n in self.left_out.items() if name not in self.unfit}
        unfit = {name: n for name, n in self.left_out.items() if name in self.unfit}
        stay = (f"{_some(unfit, total)} cannot be cut into {self.kind}: such weights stay as they are and do "
                "not count for sparsity.") if unfit else ""
        return " ".join(filter(None, [stay, not_counted(others, total - sum(others.values()))]))


def not_counted(left_out: Mapping[str, int], counted: int) -> str:
    """The sentence on parameters that are neither pruned nor counted though they are as large as weights; ""
    for none. Args: left_out: {name: entries}. counted: all the others."""
    if not left_out:
        return ""
    return (f"{_some(left_out, counted + sum(left_out.values()))} of layers that pwoa does not prune do not "
            "count for sparsity.")


def _some(entries: Mapping[str, int], total: int) -> str:
    """Names, and which part of `total` weights they are."""
    names = public_names(entries)
    return (f"{', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)} "
            f"({percent_of_weights(sum(entries.values()) / total)}% of the weights)")


def counted(model: nn.Module, x: Tensor, kind: str, *, where: str) -> Counted:
    """What a kind of structure counts, on images x (B, C, H, W).

    Raises: InputError if that is nothing, or less than half of the weights; where: the model's name there.
    """
    structure, live, rows = structure_of(kind), layers.live_parameters(model, x), layers.rows(model)
    reached, everything = layers.prunable(model, live), layers.prunable(model, None)
    dead = sum(w.numel() for w in everything.values()) - sum(w.numel() for w in reached.values())
    weights = {name: w for name, w in reached.items() if w.requires_grad  # the author's frozen ones stay
               and (not structure.of_layers or name in rows)}
    logits = {f"{name}.weight" for name in layers.logit_layers(model, x)} if structure.keeps_logits else set()
    last = [weights.pop(name) for name in logits & weights.keys()]
    for name in _strange(model, x, {name: w for name, w in weights.items() if name not in rows}):
        weights.pop(name)
    fits, transposed = structure.fits, layers.transposed(model)
    unfit = {name: weights.pop(name) for name, w in list(weights.items())
             if fits and (name in transposed or not fits(tuple(w.shape)))}
    others = unfit | {name: p for name, p in layers.uncounted(model, live, weights).items()
                      if name not in logits}
    found = Counted(weights, dead, {name: p.numel() for name, p in others.items()}, set(unfit), kind)
    if not weights:
        raise _nothing(found, bool(last), where)
    total = sum(w.numel() for w in weights.values())
    if sum(p.numel() for p in others.values() if p.requires_grad) > total:
        asked = f"--nm {kind}" if structure.sparsity is not None else f"--structure {kind}"
        raise InputError(f"{where}: {asked} reaches {total:,} weights alone: {found.sentence()}",
                         hint=_ways(kind))
    return found


def groups_of(model: nn.Module, x: Tensor, weights: Mapping[str, Tensor], kind: str, *,
              where: str) -> dict[str, Groups]:
    """The groups of a structure by layer, on images x (B, C, H, W). Raises: InputError, with the layer, where
    channels are coupled in a way that lets none be removed."""
    structure = structure_of(kind)
    coupled = _coupled(model, x, kind, where) if structure.couples else {}
    coupled = {key: members for key, members in coupled.items()  # a frozen weight keeps its channels
               if all(name in weights or model.get_parameter(name).ndim == 1 for name in members)}
    groups = structure.groups(weights, layers.companions(model, x), layers.transposed(model), coupled)
    if not groups:
        raise InputError(f"{where} has no channels that could be removed: its layers give the logits or "
                         "share their channels with those that do.", hint="--structure unstructured")
    return groups


def _coupled(model: nn.Module, x: Tensor, kind: str, where: str) -> Coupled:
    try:
        sets, others = channels.found(model, x, whole=True)
    except ValueError as error:
        raise InputError(f"{where}: --structure {kind} does not fit this network: {error}.",
                         hint="--structure filter") from error
    for name, why in others.items():
        raise InputError(f"{where}: --structure {kind} does not fit this network: the channels of "
                         f"{public_name(name)}: {why}.", hint="--structure filter")
    return channels.coupled(model, sets)


def _nothing(found: Counted, has_last: bool, where: str) -> InputError:
    kind = found.kind
    if has_last and not found.left_out:
        return InputError(f"{where} has no weights that could be pruned ({kind}): its one layer gives the "
                          "logits, and its rows are the classes.",
                          hint="--structure unstructured")
    if found.unfit:
        return InputError(f"{where} has no weights that could be pruned: {found.sentence()}",
                          hint=_ways(kind))
    names = ", ".join(public_names(found.left_out)[:SHOWN])
    return InputError(f"{where} has no weights that could be pruned ({kind}){names and ': ' + names}"
                      f"{' are of other layers' if names else ''}.", hint=_ways(kind))


def _ways(kind: str) -> str:
    if structure_of(kind).fits:
        return "--structure unstructured"
    if structure_of(kind).of_layers:
        return ("Whole filters, columns and channels are those of convolutions and linear layers: "
                "--structure unstructured")
    return ("pwoa prunes nn.Linear, nn.Conv*, nn.MultiheadAttention, and matrices of your own classes that "
            "are factors of products: write the layer so, and name it with --arch file.py:fn")


def _strange(model: nn.Module, x: Tensor, own: Mapping[str, Tensor]) -> list[str]:
    """Of the matrices of users' own classes those that are no factors: positions that are added, gates."""
    if not own:
        return []
    known = products.factors(model, x)
    tried = {name: _half(w.numel()).view(w.shape).to(w.device) for name, w in own.items() if name in known}
    return [*(name for name in own if name not in known), *products.astray(model, x, tried)]


def _half(count: int) -> Tensor:
    """Flags (count,), half of them False, drawn once and for all."""
    flags = torch.ones(count, dtype=torch.bool)
    flags[torch.randperm(count, generator=torch.Generator().manual_seed(0))[:count // 2]] = False
    return flags


def check_products(model: nn.Module, x: Tensor, groups: Mapping[str, Groups], kind: str, *,
                   where: str) -> None:
    """Zeros of these groups are zeros of what the network multiplies. Raises: InputError naming the
    weight."""
    device = next(model.parameters()).device
    flags = {layer: _half(group.count).to(device) for layer, group in groups.items()}
    lost = products.astray(model, x, masks(groups, flags))
    if lost:
        names = ", ".join(map(public_name, lost[:SHOWN])) + ", ..." * (len(lost) > SHOWN)
        raise InputError(f"{where}: zeros in {names} are no zeros in what the network multiplies: it "
                         "computes that from the stored weights, as weight standardisation and binary layers "
                         f"do ({kind}).",
                         hint="Let --arch file.py:fn return layers with plain weights, or try --structure "
                              f"{'unstructured' if kind == 'filter' else 'filter'}, whose zeros may stay.")


def check_steady(model: nn.Module, x: Tensor, *, where: str) -> None:
    """Passes in eval mode give the same answers and leave the model as it is. Raises: InputError."""
    before = {name: b.clone() for name, b in model.named_buffers()}
    finding = checks.of_randomness(model, x)
    moved = [name for name, b in model.named_buffers() if not torch.equal(b, before[name])]
    if moved:
        raise InputError(f"{where}: {', '.join(public_names(moved)[:SHOWN])} change with every pass in eval "
                         "mode, so what is saved would not be what was measured.",
                         hint="Let --arch file.py:fn return a network that keeps its buffers after "
                              "net.eval(): for fake quantisation, "
                              "net.apply(torch.ao.quantization.disable_observer)")
    if finding:
        raise InputError(f"{where} is random in eval mode: {finding.text.partition(';')[0]}.",
                         hint="Let its randomness end with net.eval(), as F.dropout(x, "
                              "training=self.training) does.")


def above(share: float) -> str:
    """A fraction half way from `share` in [0, 1) to 1, in the fewest digits that tell it from both."""
    half = (1 + share) / 2
    return next(text for digits in range(1, 18) if share < float(text := f"{half:.{digits}g}") < 1)
