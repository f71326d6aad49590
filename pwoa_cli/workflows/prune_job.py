"""A request to prune with everything found, checked and decided, before any epoch and any file."""
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pwoa_cli import attacks
from pwoa_cli.checkpoints.model import Loaded
from pwoa_cli.data import datasets
from pwoa_cli.data.samples import samples
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.checks import COMPANY
from pwoa_cli.machine import seeds
from pwoa_cli.machine.devices import device_named, multiplies_bf16
from pwoa_cli.machine.environment import log as log_environment
from pwoa_cli.networks import layers
from pwoa_cli.progress import Say
from pwoa_cli.pruning import allocation
from pwoa_cli.pruning.criteria import magnitude
from pwoa_cli.pruning.groups import STRUCTURES, Groups, by_block, scores_by_layer, single, structure_of
from pwoa_cli.pruning.neighbours import stay_of
from pwoa_cli.reports import numbers
from pwoa_cli.reports.gates import resolved
from pwoa_cli.training import compilation, footing, layout, objective
from pwoa_cli.training.kinds import Kinds, kinds_of
from pwoa_cli.training.recipe import Recipe, check, read_recipe, without_hsic
from pwoa_cli.training.state import Plan, plan_steps
from pwoa_cli.workflows.held_out import divided
from pwoa_cli.workflows.prune_request import Job, Request, matches_layers, sentences
from pwoa_cli.workflows.prune_size import MARGIN, file_metadata, sparsity_for
from pwoa_cli.workflows.prune_weights import (
    above,
    check_products,
    check_steady,
    counted,
    groups_of,
)
from pwoa_cli.workflows.search import SHARE, up_to
from pwoa_cli.workflows.setup import Subject, check_training, open_subject, open_teacher

NM = "n:m"  # the structure of --nm, if it is named
_OF_HIDDEN = ("hidden_weight", "explain_weight", "lambda_x", "lambda_y")


def prepare(request: Request, *, say: Say,
            change_data: Callable[[datasets.Dataset], datasets.Dataset] | None = None) -> Job:
    """Load, infer and check everything that a run needs, before its first epoch and its first file.

    Args: change_data: applied to the data set that was found (benchmarks hold training images out with it).
    Raises: InputError for anything that would fail later.
    """
    seconds: dict[str, float] = {}
    asked, request = request, _checked(request)
    if not asked.structure and request.of != "weights":
        say(f"structure: {request.structure} ({request.flag} is of whole channels)")
    device = device_named(request.device)
    log_environment(device=str(device))
    with timed(seconds, "load"):
        subject = open_subject(request.source, data=request.data, choices=request.choices,
                               norm=request.norm, eps=request.eps, device=device, say=say)
        check_training(subject.dataset)
        if request.sha256 not in (None, subject.loaded.sha256):
            raise InputError(f"{request.source.path} is not the file that --config is of: its SHA-256 "
                             "differs.",
                             hint="Fetch that file again, or name another: pwoa prune MODEL --config FILE")
        if change_data:
            subject = replace(subject, dataset=change_data(subject.dataset))
        held_out = None
        if request.max_loss is not None:
            if request.max_loss < 1:  # it may be meant as a fraction
                say(f"--max-loss {request.max_loss:g} is in points: 1 image in {100 / request.max_loss:,.0f}")
            subject, held_out = divided(subject, asked=request.held_out, default=request.n,
                                        seed=request.seed, say=say)
        attacks.check_norm(attacks.parse(request.attacks), subject.threat[0])
        x = samples(subject.dataset, request.n, seed=request.seed)  # also: n fits the data
        teacher = (open_teacher(request.teacher, subject, device=device, say=say) if request.teacher
                   else subject.loaded)
        where = request.source.path
        say("trying the network forwards and backwards")
        check_steady(subject.model, x[:COMPANY], where=where)
        found = counted(subject.model, x[:2], request.structure, where=where)
        weights = found.weights
        if structure_of(request.structure).couples:
            say("finding which channels go together")
        groups = groups_of(subject.model, x[:2], weights, request.structure, where=where)
        macs = layers.macs_by_weight(subject.model, x[:1]) if request.macs else {}
        request = _of_size(_of_whole(request, weights, groups, macs), subject, weights, groups, say=say)
        total = sum(w.numel() for w in weights.values())
        kept = 0 if request.max_loss is not None else round((1 - request.sparsity) * total)
        kinds = kinds_of(subject.model, subject.dataset.train, kept=kept)
        make = partial(_plan, subject=subject, teacher=teacher, weights=weights, groups=groups, macs=macs,
                       x=x[:2], device=device, kinds=kinds)
        if request.max_loss is not None:
            request = _first(request, layers.zeros_of(weights), make)
        plan = make(request)
        memory = layout.fastest(plan, subject.model, where=where)
        footing.check(plan, subject.model, where=where)
    job = Job(request, subject, teacher, plan, device, found, memory, seconds, held_out,
              compilation.pays(request.compile, device, plan.steps))
    for sentence in sentences(job, kinds):
        say(sentence)
    return job


def _checked(request: Request) -> Request:
    """The request with its gates and structure resolved. Raises: InputError for what is wrong whatever the
    model and the data are."""
    seeds.check(request.seed)
    compilation.check(request.compile)
    request = replace(request, gates=resolved(request.gates, attacks.typed(request.attacks), compared=True))
    request = replace(request, structure=_structure(request))
    structure = structure_of(request.structure)
    if structure.sparsity is not None:
        request = replace(request, sparsity=structure.sparsity)
    if request.of != "weights" and not structure.couples:
        raise InputError(f"{request.flag} is for whole channels; --structure is {request.structure}.",
                         hint=f"Leave --structure out. Or say the fraction of weights: --sparsity "
                              f"{request.share:g}")
    read_recipe(request.recipe, overrides=request.overrides)
    return request


def _structure(request: Request) -> str:
    """The structure that is asked for, by the name that `structure_of` knows. Raises: InputError."""
    kind = request.structure
    if request.nm is not None:
        if kind not in ("", NM):
            raise InputError(f"--nm is a structure of its own; --structure is {kind}.",
                             hint=f"Leave one of them out: --nm {request.nm}")
        return request.nm
    if not kind:
        return "unstructured" if request.of == "weights" else "channel"
    if kind == NM or re.fullmatch(r"\d+:\d+", kind, re.ASCII):
        raise InputError(f"--structure {kind}: how many of how many neighbours stay is said by --nm.",
                         hint="In the place of --structure and --sparsity: --nm 2:4")
    try:
        structure_of(kind)
    except ValueError:
        raise InputError(f"--structure {kind} is none of {', '.join(STRUCTURES)}, block:RxC.",
                         hint="For example: --structure filter") from None
    return kind


def at_sparsity(job: Job, sparsity: float) -> Job:
    """The job for another sparsity of the same weights. Raises: InputError if it cannot be reached."""
    request = replace(job.request, sparsity=sparsity)
    kinds = kinds_of(job.subject.model, job.subject.dataset.train, kept=0)
    x = samples(job.subject.dataset, request.n, seed=request.seed)[:2]
    plan = _plan(request, job.subject, job.teacher, job.counted.weights, job.plan.groups, job.plan.macs, x,
                 job.device, kinds)
    return replace(job, request=request, plan=plan)


def _first(request: Request, begun: float, make: Callable[[Request], Plan]) -> Request:
    """For the first sparsity of a search that can be reached. Raises: InputError, that of the very first, if
    none can."""
    refused: InputError | None = None
    for sparsity in up_to(begun, 0.0):
        asked = replace(request, sparsity=sparsity)
        try:
            make(asked)
        except InputError as error:
            refused = refused or error
        else:
            return asked
    assert refused is not None
    raise refused


def _settled(recipe: Recipe, request: Request, weights: Mapping[str, Tensor], groups: Mapping[str, Groups],
             device: torch.device) -> Recipe:
    """The recipe without "auto": what it means for these weights, their groups and on this device. Where
    groups fall silent, or blocks of neighbours lose as many each, it regrows nothing, and of the latter every
    layer loses as many; unless another is asked for on the command line, where `_check_structure` says why it
    cannot be. Of multiplications every set of channels loses the same fraction
    (docs/export.md has the figures), unless another allocation is asked for there.

    Global scores compare sums over groups, which grow with their size: of filters they leave small layers a
    single one. Of single weights they starve the layers whose scale is small.
    """
    precision = "bf16" if multiplies_bf16(device) else "float32"
    shares = "global" if single(groups) and _spares(weights, groups, request.sparsity) else "lamp"
    recipe = replace(recipe, precision=precision if recipe.precision == "auto" else recipe.precision,
                     allocation=shares if recipe.allocation == "auto" else recipe.allocation)
    alike = by_block(groups)
    if (request.of == "macs" or alike) and "allocation" not in request.overrides:
        recipe = replace(recipe, allocation="uniform")
    still = alike or structure_of(request.structure).silences
    return replace(recipe, regrow=0.0) if still and "regrow" not in request.overrides else recipe


def _spares(weights: Mapping[str, Tensor], groups: Mapping[str, Groups], sparsity: float) -> bool:
    """Whether global magnitude leaves every layer more than twice the least that any layer keeps: weights
    move, and with them what it leaves."""
    with suppress(ValueError):  # a sparsity that cannot be had is refused by `_check_reachable`
        lost = allocation.quotas(groups, scores_by_layer(groups, magnitude(weights)), sparsity,
                                 method="global")
        least = allocation.least_kept(groups, sum(lost.values()))
        return all(group.count - lost[layer] > 2 * least[layer] for layer, group in groups.items())
    return False


def _of_whole(request: Request, weights: Mapping[str, Tensor], groups: Mapping[str, Groups],
              macs: Mapping[str, int]) -> Request:
    """The request with the sparsity of weights that --channels or --macs comes to. Raises: InputError for
    fewer than one channel, or more than may go."""
    if request.of == "weights":
        return request
    flag, share, what = request.flag, request.share, "channels" if request.channels else "multiplications"
    count = sum(group.count for group in groups.values())
    lost = allocation.quotas(groups, scores_by_layer(groups, magnitude(weights)), share, method="uniform",
                             of=request.of, macs=macs)
    if not sum(lost.values()):
        total = count if request.channels else sum(macs.values())
        raise InputError(f"{flag} {share:g} of the {total:,} {what} of {request.source.path} is less than "
                         "one channel.", hint=f"Half of them: {flag} 0.5")
    most = allocation.gone(groups, lost, of=request.of, macs=macs)
    if most < share - max(0.01, 1 / count):
        raise InputError(f"{request.source.path}: {100 * share:g}% of its {what} cannot go, as a channel "
                         f"must stay in each of {len(groups)} coupled sets: at most {100 * most:.3g}%.",
                         hint=f"{flag} {int(100 * most) / 100:g}")
    return replace(request, sparsity=allocation.gone(groups, lost))


def _of_size(request: Request, subject: Subject, weights: Mapping[str, Tensor],
             groups: Mapping[str, Groups], *, say: Say) -> Request:
    """The request with the sparsity that --target-bytes comes to. Raises: InputError for none."""
    if request.target_bytes is None:
        return request
    state = {name: t.detach() for name, t in subject.model.net.state_dict().items()}
    sparsity = sparsity_for(
        request.target_bytes, state, {name: w.detach() for name, w in weights.items()}, groups,
        metadata=file_metadata(subject, recipe=request.recipe, seed=request.seed), where=request.source.path)
    say(f"sparsity: {numbers.percent_of_weights(sparsity)}% for a file of at most "
        f"{numbers.size(request.target_bytes)}, of which {100 * MARGIN:g}% are kept free")
    return replace(request, sparsity=sparsity)


def _plan(request: Request, subject: Subject, teacher: Loaded, weights: Mapping[str, nn.Parameter],
          groups: Mapping[str, Groups], macs: Mapping[str, int], x: Tensor, device: torch.device,
          kinds: Kinds) -> Plan:
    """Everything decided that stays the same during the run."""
    recipe = read_recipe(request.recipe, data=subject.dataset.name, kinds=kinds,
                         overrides=request.overrides)
    where, beside = request.source.path, layers.companions(subject.model, x)
    recipe = _settled(recipe, request, weights, groups, device)
    _check_sparsity(weights, request)
    _check_structure(recipe, request.structure, groups)
    if request.max_loss is not None and recipe.method == "admm":
        way = "--set method=ramp" if "method" in request.overrides else "--recipe default"
        raise InputError("--max-loss grows the sparsity of a student by stages; method = 'admm' chooses its "
                         "weights anew, from dense ones, at the end of its first phase.",
                         hint=f"{way}, or name the sparsity: --sparsity 0.9")
    _check_reachable(weights, groups, macs, request, recipe)
    check_products(subject.model, x, groups, request.structure, where=where)
    if len(subject.dataset.train) == 1 and not {"lambda_x", "lambda_y"} & request.overrides.keys():
        recipe = without_hsic(recipe)  # its kernels compare images; if asked for, the first batch refuses
    recipe, hidden = _with_hidden(recipe, request, subject.model, x)
    if (matches_layers(recipe) and teacher is not subject.loaded
        and not layers.same_hidden(subject.model, teacher.model, hidden, x)):
        if asked := [name for name in ("hidden_weight", "explain_weight") if name in request.overrides]:
            raise InputError("Hidden layers of the model and of --teacher differ, so they cannot be matched.",
                             hint="Distil from the logits alone: "
                                  f"{' '.join(f'--set {name}=0' for name in asked)}")
        recipe = check(replace(recipe, hidden_weight=0.0, explain_weight=0.0),
                       where="recipe for this --teacher")
    if recipe.neighbour_weight and objective.random_in_training(subject.model, x):
        raise InputError(f"neighbour_weight = {recipe.neighbour_weight:g} compares answers to an image and "
                         "to its noisy copy, but the model answers at random in training (dropout): nothing "
                         "would be the noise's doing alone.",
                         hint="--set neighbour_weight=0")
    spent = recipe if request.max_loss is None else replace(recipe, epochs=SHARE * recipe.epochs)
    per_epoch, sparsify_steps, steps = plan_steps(spent, len(subject.dataset.train), request.sparsity)
    return Plan(
        recipe=recipe, teacher=teacher.model, hidden=hidden, groups=groups,
        normed=frozenset(name for name, found in beside.items() if found),
        sparsity=request.share, budget=request.of, macs=macs,
        num_classes=subject.loaded.num_classes, eps=subject.threat[1], norm=subject.threat[0],
        split=subject.dataset.train,
        augment=subject.dataset.augment if recipe.augment == "auto" else recipe.augment,
        seed=request.seed, steps_per_epoch=per_epoch, sparsify_steps=sparsify_steps, steps=steps)


def _with_hidden(recipe: Recipe, request: Request, model: nn.Module,
                 x: Tensor) -> tuple[Recipe, tuple[str, ...]]:
    """The hidden layers that the recipe names. Of a network that has none, () and the recipe without their
    terms, unless the command line asks for them."""
    try:
        return recipe, tuple(layers.hidden_layers(model, x, recipe.hidden))
    except ValueError as error:
        asked = [name for name in _OF_HIDDEN if float(request.overrides.get(name, 0))]  # it may be text
        if recipe.hidden != "auto" or asked:
            raise InputError(f"{request.source.path}: {error}.",
                             hint="--set hidden=auto, inner or another pattern of module names"
                             if recipe.hidden != "auto"
                             else " ".join(f"--set {name}=0" for name in asked)) from None
    without = without_hsic(replace(recipe, hidden_weight=0.0, explain_weight=0.0))
    return check(without, where="recipe for a network without hidden layers"), ()


def _check_sparsity(weights: Mapping[str, Tensor], request: Request) -> None:
    """At least one weight goes, and the model has fewer zeros than are wanted."""
    where, sparsity, zeros = request.source.path, request.sparsity, layers.zeros_of(weights)
    total = sum(w.numel() for w in weights.values())
    if not round(sparsity * total):
        raise InputError(f"--sparsity {sparsity:g} of the {total:,} weights of {where} is less than one "
                         "weight.",
                         hint="Nine weights in ten: --sparsity 0.9")
    if zeros > sparsity:
        nm = stay_of(request.nm or "")
        more = (f"--nm 1:{nm[1]}, or --sparsity {above(zeros)}" if nm and zeros < 1 - 1 / nm[1]
                else f"--sparsity {above(zeros)}" if request.of == "weights"
                else f"{request.flag} {above(request.share)}")
        raise InputError(f"{where} is pruned already: {numbers.percent_of_weights(zeros)}% of its weights "
                         f"are zero, {numbers.percent_of_weights(sparsity)}% were asked for.",
                         hint=f"Ask for more: {more}")


def _check_structure(recipe: Recipe, kind: str, groups: Mapping[str, Groups]) -> None:
    """Options of the recipe that belong to some structures only."""
    if recipe.start == "obs" and not single(groups):
        raise InputError(f"start = 'obs' reconstructs around single weights; the structure is {kind}.",
                         hint="--set start=dense")
    alike = by_block(groups)
    if alike and recipe.allocation != "uniform":
        raise InputError(f"allocation = {recipe.allocation!r} chooses what each layer loses; with --nm "
                         f"{kind} all lose the same.", hint="--set allocation=uniform")
    # weight, scale and shift are zero together: no gradient says what it is worth
    if recipe.regrow and (alike or structure_of(kind).silences):
        why = (f"would bring back more than {kind} lets stay" if alike
               else f"cannot bring whole {kind}s back: a silent {kind} has no gradient")
        raise InputError(f"regrow {why}.", hint="--set regrow=0")


def _check_reachable(weights: Mapping[str, Tensor], groups: Mapping[str, Groups], macs: Mapping[str, int],
                     request: Request, recipe: Recipe) -> None:
    """The groups of the structure come within a point of the wanted sparsity while every layer keeps one."""
    where, kind, wanted = request.source.path, request.structure, request.sparsity
    try:
        method = "uniform" if recipe.allocation == "sensitivity" else recipe.allocation  # measured later
        lost = allocation.quotas(groups, scores_by_layer(groups, magnitude(weights)), request.share,
                                 method=method, of=request.of, macs=macs)
    except ValueError as error:
        raise InputError(f"{where}: {error}.", hint="A lower --sparsity.") from None
    most = allocation.gone(groups, lost)
    if most < wanted - 0.01 and request.of == "weights":
        whole = f"blocks of {kind[6:]}" if kind.startswith("block:") else f"{kind}s"
        raise InputError(f"{where}: {100 * wanted:g}% cannot be reached with whole {whole}, as one must stay "
                         f"in each of {len(weights)} layers: at most {numbers.percent_of_weights(most)}%.",
                         hint=f"--sparsity {int(100 * most) / 100:g}")


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """The seconds of the block, by the name of its phase."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start
