"""Parametrised weights as plain ones: what the checkpoint's own layers would compute in eval mode, once.

torch.nn.utils.prune           weight = weight_orig * weight_mask, or weight * weight_mask, weight * mask
weight_norm                    weight = g v / |v|, the norm over all dimensions in which g has size 1
spectral_norm                  weight = W / sigma, sigma = u' W v with W as a matrix (eval: u, v as saved)
parametrizations.weight.*      the same three in the newer form
popup_scores                   weight * [|score| among the k n largest of the layer]
k_score                        as that, with a rate of its own a layer: k_l = sigmoid(k_score) (1 - a k) + a k

popup_scores: Sehwag et al. 2020 (HYDRA), Ramanujan et al. 2020; k_score: Zhao and Wressnegger 2023 (HARP). k
fraction of weights kept, n weights of a layer, a = 0.1 HARP's lower bound of a layer's rate over k.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pwoa_cli.checkpoints.settings import mappings
from pwoa_cli.errors import InputError

ALPHA = 0.1  # HARP's default of --alpha: a layer keeps at least alpha * k
SCORES = (".popup_scores", ".scores")  # HYDRA and HARP; hidden-networks
KEPT = ("k", "keep")  # what training scripts call the fraction that stays
SHOW = "Save plain weights, in its own code; what this file holds: pwoa info FILE"
State = dict[str, Tensor]


class Misfit(InputError):
    """Parts of a parametrised weight that do not belong together."""


def fold(state: Mapping[str, Tensor], extra: Mapping[str, Any], *,
         density: float | None = None) -> tuple[State, tuple[str, ...]]:
    """(state with plain weights, a note with figures for each kind of parametrisation that was folded).

    Args: state: tensors by name. extra: what else the file says (args.k). density: fraction of weights that
    popup_scores keep, 1: all; None: from the file. Raises: InputError for a formula or a rate that is not
    known, or shapes that do not fit.
    """
    if density is not None and not 0 < density <= 1:
        raise InputError(f"--keep {density:g} is no fraction of weights, expected above 0 and at most 1.",
                         hint="--keep 0.1 for a network of which 90% were pruned; --keep 1 if none were.")
    state, notes = dict(state), []
    for one in (_fold_parametrizations, _fold_spectral, _fold_weight_norm, _fold_masks):
        state, note = one(state)
        notes += note
    state, note = _fold_scores(state, extra, density)
    if density is not None and not note:
        notes.append("--keep: no effect, the file has no scores")
    return state, (*notes, *note)


def _said(what: str, folded: Mapping[str, Tensor]) -> list[str]:
    zeros, total = sum(int((t == 0).sum()) for t in folded.values()), sum(t.numel() for t in folded.values())
    figures = f"{len(folded)} tensors, {100 * zeros / max(total, 1):.1f}% of {total} weights are zero"
    return [f"folded: {what} of {figures}"] if folded else []


def _replaced(state: State, folded: State, used: set[str]) -> State:
    """The state with the folded tensors in the place of the first part of each."""
    names = {part: name for name in folded for part in (name, *_parts(name)) if part in used}
    result: State = {}
    for key, tensor in state.items():
        if key not in used:
            result[key] = tensor
        elif names.get(key) in folded:
            result.setdefault(names[key], folded[names[key]])
    return result | folded


def _parts(name: str) -> tuple[str, ...]:
    head, _, tail = name.rpartition(".")
    new = f"{head}.parametrizations.{tail}" if head else f"parametrizations.{tail}"
    return tuple(name + end for end in ("_orig", "_g", "_v", "_u", "_mask")) + tuple(
        f"{new}.{part}" for part in ("original", "original0", "original1"))


def _same_shape(key: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise Misfit(f"{key} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}.",
                     hint=SHOW)


def _is_mask(mask: Tensor, weight: Tensor) -> bool:
    return mask.shape == weight.shape and bool(((mask == 0) | (mask == 1)).all())


# --- masks and norms ---------------------------------------------------------------

def _fold_masks(state: State) -> tuple[State, list[str]]:
    folded: State = {}
    used: set[str] = set()
    for key, mask in state.items():
        name = key.removesuffix("_mask") if key.endswith("_mask") else key.removesuffix("mask") + "weight"
        whole = next((k for k in (name + "_orig", name) if k in state), None)
        if (not key.endswith(("_mask", ".mask")) or whole is None
            or not whole.endswith(("weight", "bias", "_orig"))):
            continue
        if key.endswith(".mask") and not _is_mask(mask, state[whole]):
            continue  # a mask of another kind, such as attention's
        _same_shape(key, mask, state[whole])
        product = state[whole] * mask.to(state[whole].dtype)
        folded[name] = torch.where(mask == 0, torch.zeros_like(product), product)  # a removed inf is no NaN
        used |= {key, whole}
    lost = next((k for k in state if k.endswith(("weight_orig", "bias_orig")) and k not in used), None)
    if lost:
        raise Misfit(f"{lost} has no {lost.removesuffix('_orig')}_mask beside it, as "
                     "torch.nn.utils.prune saves.", hint=SHOW)
    return _replaced(state, folded, used), _said("masks (torch.nn.utils.prune)", folded)


def _fold_weight_norm(state: State) -> tuple[State, list[str]]:
    folded: State = {}
    used: set[str] = set()
    for key in state:
        name = key.removesuffix("_g")
        if key.endswith("weight_g") and name + "_v" in state:
            folded[name] = _normed(key, state[key], state[name + "_v"])
            used |= {key, name + "_v"}
    return _replaced(state, folded, used), _said("weight_norm", folded)


def _normed(key: str, g: Tensor, v: Tensor) -> Tensor:
    """g v / |v|; the norm over the dimensions in which g has size 1, over all for a g without dimensions."""
    if g.ndim and (g.ndim != v.ndim or any(n not in (1, m) for n, m in zip(g.shape, v.shape, strict=True))):
        raise Misfit(f"{key} has shape {tuple(g.shape)}, which is no norm of {tuple(v.shape)}.",
                     hint=SHOW)
    over = [i for i in range(v.ndim) if not g.ndim or g.shape[i] == 1]
    return (v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=True).reshape(g.shape)) if over else v
            * (g / v.abs()))


def _fold_spectral(state: State) -> tuple[State, list[str]]:
    folded: State = {}
    used: set[str] = set()
    for key in state:
        name = key.removesuffix("_u")
        parts = [name + end for end in ("_orig", "_u", "_v")]
        if key.endswith("weight_u") and parts[0] in state:
            if parts[2] not in state:
                raise InputError(f"{key}: a spectral norm without {parts[2]}, as PyTorch before 1.0 saved "
                                 "it, is not known.",
                                 hint="Load it in its own code and save model.state_dict() after "
                                      "remove_spectral_norm.")
            folded[name] = _spectral(key, *(state[part] for part in parts))
            used |= set(parts)
    return _replaced(state, folded, used), _said("spectral_norm", folded)


def _spectral(key: str, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """W / (u' W v), W the weight as a matrix of u's rows: the first dimension, of transposed convolutions the
    second."""
    rows = 0 if weight.shape[0] == u.numel() else 1
    if weight.ndim < 2 or weight.shape[rows] != u.numel() or weight.numel() != u.numel() * v.numel():
        raise Misfit(f"{key}: u and v have {u.numel()} and {v.numel()} values, not "
                     f"{tuple(weight.shape)}.",
                     hint=SHOW)
    matrix = weight.movedim(rows, 0).flatten(1)
    return weight / torch.dot(u.flatten(), torch.mv(matrix, v.flatten()))


def _fold_parametrizations(state: State) -> tuple[State, list[str]]:
    """parametrizations.NAME.original (or original0, original1) with NAME.0.*, NAME.1.*, ... as tensors of
    each formula."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        found = re.fullmatch(r"(|.*\.)parametrizations\.([^.]+)\.(.+)", key)
        if found:
            groups.setdefault(found[1] + found[2], {})[found[3]] = tensor
    folded = {name: _computed(name, parts) for name, parts in groups.items()}
    used = {k for k in state if re.match(r"(|.*\.)parametrizations\.", k)}
    return _replaced(state, folded, used), _said("parametrizations", folded)


def _computed(name: str, parts: Mapping[str, Tensor]) -> Tensor:
    rest = {k: t for k, t in parts.items() if not k.startswith("original")}
    if set(parts) == {"original0", "original1"}:
        return _normed(name, parts["original0"], parts["original1"])
    result = parts.get("original")
    steps = sorted({k.partition(".")[0] for k in rest}, key=lambda n: (len(n), n))
    for number, step in enumerate(steps):
        own = {k.partition(".")[2]: t for k, t in rest.items() if k.partition(".")[0] == step}
        if result is None or step != str(number):
            break
        if set(own) == {"_u", "_v"}:
            result = _spectral(name, result, own["_u"], own["_v"])
        elif set(own) == {"mask"} and _is_mask(own["mask"], result):
            result = result * own["mask"].to(result.dtype)
        else:
            break
    else:
        if result is not None and steps:
            return result
    raise InputError(f"{name} is parametrised by {', '.join(sorted(parts))}: the formula is not in the file.",
                     hint="In its own code: torch.nn.utils.parametrize.remove_parametrizations(layer, "
                          "'weight'); save again.")


# --- scores ---------------------------------------------------------------

def _fold_scores(state: State, extra: Mapping[str, Any], density: float | None) -> tuple[State, list[str]]:
    """popup_scores (with k_score: HARP) as zeros in the weights, and removed; scores that nothing uses are
    removed and said."""
    scores = {key: key.rpartition(".")[0] for key in state if key.endswith(SCORES)}
    scores = {key: layer for key, layer in scores.items() if layer + ".weight" in state}
    rates = {key.rpartition(".")[0]: key for key in state if key.endswith(".k_score")}
    if not scores:
        bare = [f"dropped: k_score of {len(rates)} layers; there are no popup_scores, so the weights are "
                "pruned already"]
        return {k: t for k, t in state.items() if not k.endswith(".k_score")}, bare if rates else []
    rest = {k: t for k, t in state.items() if k not in scores and not k.endswith(".k_score")}
    keep, source = _kept(state, scores, rates, extra, density)
    alpha = _number(extra, ("alpha",))
    folded = {}
    for key, layer in scores.items():
        weight, score = state[layer + ".weight"], state[key]
        rate: float | Tensor = keep
        if layer in rates and keep < 1:
            rate = harp_rate(state[rates[layer]], keep=keep, alpha=ALPHA if alpha is None else alpha)
        folded[layer + ".weight"] = weight * _mask(key, score, weight, rate)
    what = f"{'HARP' if rates else 'HYDRA'} popup_scores (keep {keep:g}, {source})"
    return rest | folded, _said(what, folded)


def harp_rate(k_score: Tensor, *, keep: float, alpha: float = ALPHA) -> Tensor:
    """The fraction that a layer keeps: sigmoid(k_score) (1 - alpha keep) + alpha keep, in float32 as HARP
    computes it."""
    least = keep * alpha
    return torch.sigmoid(k_score.float().reshape(())) * (1 - least) + least


def score_mask(scores: Tensor, rate: float | Tensor) -> Tensor:
    """1 for all but the int((1 - rate) n) smallest |scores| of the n in a layer, ties by index: the first go
    first.

    In the arithmetic of `rate`: a float counts in double precision as HYDRA does, a float32 tensor as HARP
    does.
    """
    order = scores.abs().flatten().sort(stable=True).indices
    mask = torch.ones(scores.numel(), device=scores.device)
    mask[order[: int((1 - rate) * scores.numel())]] = 0
    return mask.view(scores.shape)


def _channel_mask(scores: Tensor, rate: float | Tensor) -> Tensor:
    """HARP's channel pruning, scores (1, C, 1, 1) or (1, C): the round(rate C) input channels of largest
    |score| stay."""
    kept = int(torch.round(torch.as_tensor(rate) * scores.shape[1]))
    order = scores.abs().flatten().sort(descending=True, stable=True).indices
    return torch.zeros(scores.numel()).index_fill(0, order[:kept], 1).view(scores.shape)


def _mask(key: str, scores: Tensor, weight: Tensor, rate: float | Tensor) -> Tensor:
    if scores.shape == weight.shape:
        return score_mask(scores, rate).to(weight.dtype)
    if weight.ndim > 1 and scores.shape == (1, weight.shape[1], *(1 for _ in weight.shape[2:])):
        return _channel_mask(scores, rate).to(weight.dtype)
    raise Misfit(f"{key} has shape {tuple(scores.shape)}, expected that of its weight, "
                 f"{tuple(weight.shape)}.", hint=SHOW)


def _kept(state: State, scores: Mapping[str, str], rates: Mapping[str, str], extra: Mapping[str, Any],
          density: float | None) -> tuple[float, str]:
    """(k, where it is from): --keep, the file's settings, or HARP's pretraining, which leaves every k_score
    at 1."""
    if density is not None:
        return density, "--keep"
    keep = _number(extra, KEPT)
    if keep is not None and 0 < keep <= 1:
        return keep, "the file's settings"
    if rates and all(bool((state[key] == 1).all()) for key in rates.values()):
        return 1.0, "every k_score is 1, as pretraining leaves it"
    near = _target(state, rates) if len(rates) == len(scores) else None
    hint = (f"Its k_score add up to about {near:.2g}: --keep {near:.2g}" if near else
            "Say it: --keep 0.1 for a network of which 90% were pruned, --keep 1 if none were (pretraining "
            "saves scores too).")
    raise InputError(f"popup_scores of {len(scores)} layers say which weights stay; how many is not in the "
                     "file.", hint=hint)


def _target(state: State, rates: Mapping[str, str]) -> float | None:
    """HARP's k if its target is reached: sum n_l k_l = k n gives k = S / (n - a (n - S)) with S = sum n_l
    sigmoid(k_score_l)."""
    sizes = {layer: state[layer + ".weight"].numel() for layer in rates}
    share = sum(sizes[layer] * float(torch.sigmoid(state[key].float()).mean())
                for layer, key in rates.items())
    total = sum(sizes.values())
    keep = share / (total - ALPHA * (total - share))
    return keep if 0 < keep <= 1 else None


def _number(extra: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    """A number of the settings that lie beside the weights, at the top or one level below (args, config)."""
    places = sorted(mappings(extra), key=lambda place: len(place[0]))  # outer ones first
    values = (place.get(name) for way, place in places if len(way) < 2 for name in names)
    return next((float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)), None)
