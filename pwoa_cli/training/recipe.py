"""Recipes: every number of a pruning run, read from TOML files shipped with the package or written by the
user.

A recipe file holds fields of `Recipe` at its top, and tables with the fields that differ: [network.KIND],
[kept.KIND] and [images.KIND] for what the network, its sparsity and its images are (kinds.py), [data.NAME]
for a data set by name. What is nearer to the user wins: default of the field < file < its [network.KIND] <
its [kept.KIND] < its [images.KIND] < its [data.NAME] < command line.
"""
import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from pwoa_cli.errors import InputError, reading
from pwoa_cli.losses.distill import HIDDEN_LOSSES
from pwoa_cli.pruning.allocation import ALLOCATIONS
from pwoa_cli.pruning.criteria import CRITERIA
from pwoa_cli.training.augmentation import AUGMENTS, NOISES
from pwoa_cli.training.kinds import IMAGES, KEPT, NETWORKS, Kinds

CHOICES = {
    "method": ("ramp", "admm"), "optimizer": ("adam", "sgd"),
    "schedule": ("constant", "cosine", "warm-cosine", "admm"),
    "finetune_schedule": ("constant", "cosine", "warm-cosine"),
    "kl_reduction": ("batchmean", "mean"), "hidden_loss": HIDDEN_LOSSES,
    "start": ("dense", "obs"), "precision": ("float32", "bf16", "auto"),
    "effort": ("quick", "default", "max"), "bn_inputs": ("varied", "clean"),
    "batch_norm": ("train", "freeze"), "augment": ("auto", *AUGMENTS),
}
# the tables [KIND.NAME] of a recipe file, the nearer to the user the later: what NAME may be, (): anything,
# and one for an example
TABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "network": (NETWORKS, "plain"), "kept": (KEPT, "many"), "images": (IMAGES, "flat"), "data": ((), "mnist")}


def choices() -> dict[str, tuple[str, ...]]:
    """What the fields of words may be; tables are read when it is asked, so that what was added counts."""
    return {"allocation": (*ALLOCATIONS, "auto"), "criterion": tuple(CRITERIA)} | CHOICES


EFFORT = {"quick": 0.2, "default": 1.0, "max": 5.0}  # the recipe's epochs are multiplied by this


@dataclass(frozen=True)
class Recipe:
    """One pruning recipe. Fields are those of the TOML files; see docs/recipes.md for each one's source.

    sparsify phase: the dense copy becomes sparse ("ramp": magnitude pruning along a cubic schedule; "admm":
    the paper). finetune phase: masks fixed, the loss stays the same.
    """

    name: str = "default"
    method: str = "ramp"
    criterion: str = "magnitude"  # what a weight is worth: one of pruning.criteria
    # "auto": global for single weights where it starves no layer, else lamp
    allocation: str = "lamp"
    epochs: float = 4.0  # sparsify and finetune together
    effort: str = "default"  # a fifth of the epochs, the epochs, or five times the epochs
    # epochs grow with difficulty: times max(1/2, log10(1 / (1 - sparsity)))^stretch; 1 doubles them at 99%
    stretch: float = 0.0
    sparsify: float = 0.5  # fraction of the epochs in the sparsify phase
    batch_size: int = 128
    # of the products in training; "auto": bf16 where the device has instructions for it
    precision: str = "float32"
    optimizer: str = "adam"
    lr: float = 1e-3
    finetune_lr: float = 0.0  # 0: the schedule of the sparsify phase runs on over both phases
    schedule: str = "warm-cosine"
    finetune_schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 0.0  # largest norm of the whole gradient; 0: no limit
    alpha: float = 1.0
    temperature: float = 4.0
    kl_reduction: str = "batchmean"
    clean_weight: float = 0.0  # KL on the same images without noise, relative to that with noise
    logit_weight: float = 0.0  # squared error of the logits
    neighbour_weight: float = 0.0  # squared error of the change of logits that the noise makes
    hidden_weight: float = 0.0  # matching of hidden layers
    hidden_loss: str = "relative"
    explain_weight: float = 0.0  # matching of class activation maps
    hidden: str = "auto"  # which layers: "auto", "inner" or comma-separated patterns of module names
    lambda_x: float = 0.0
    lambda_y: float = 0.0
    sigma: float = 5.0
    hsic_every: int = 1  # steps from one with HSIC terms, so many times as heavy, to the next
    noise: str = "none"
    noise_scale: float = 1.0  # of all kinds but gaussian, in units of eps
    gaussian_scale: float = 0.0  # of gaussian noise: its largest deviation, in units of pixels in 0..1
    noise_clean: float = 0.0  # fraction of a batch that gets no noise
    cutmix: float = 0.0  # probability that a batch is mixed by boxes
    mixup: float = 0.0  # probability that it is mixed by weights instead
    augment: str = "auto"  # "auto": what the data set calls for
    batch_norm: str = "train"
    mask_updates: int = 40  # times that the ramp moves the masks
    start: str = "dense"  # "obs": all masks in the first step by layerwise reconstruction (obs.py)
    # fraction of the kept weights that a mask move replaces by pruned ones of large gradient
    regrow: float = 0.0
    # fraction of the batches that are attacked: the only adversarial examples that there can be
    mix_ratio: float = 0.0
    ema: float = 0.0  # decay of the average of the weights over the second phase, which is then saved
    bn_reestimate: int = 0  # batches over which batch-norm statistics are taken again at the end
    bn_inputs: str = "varied"  # those batches: as in training, or the images as they are
    rho: float = 0.01
    rho_growth: float = 1.35
    rho_max: float = 1.0
    admm_every: int = 3  # epochs between z/u updates


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    files = resources.files("pwoa_cli.training").joinpath("recipes").iterdir()
    return sorted(p.name.removesuffix(".toml") for p in files if p.name.endswith(".toml"))


def text_of(name_or_file: str) -> str:
    """The TOML text of a recipe of the package or of a file. Raises: InputError if there is none."""
    if name_or_file in shipped():
        return resources.files("pwoa_cli.training").joinpath("recipes", name_or_file + ".toml").read_text()
    if Path(name_or_file).is_file():
        return Path(name_or_file).read_text(encoding="utf-8", errors="replace")
    raise InputError(f"recipe {name_or_file!r} is neither shipped nor a file.",
                     hint=f"Shipped recipes: {', '.join(shipped())}; or give the path of a TOML file.")


def first_line(name: str) -> str:
    """What a shipped recipe says of itself in its first line."""
    return text_of(name).splitlines()[0].lstrip("# ")


def noise_scales(recipe: Recipe, *, eps: float) -> dict[str, float]:
    """{kind of noise: its size in units of pixels in 0..1}, {} without noise."""
    return {kind: recipe.gaussian_scale if kind == "gaussian" else recipe.noise_scale * eps
            for kind in recipe.noise.split("+") if kind != "none"}


def without_hsic(recipe: Recipe) -> Recipe:
    """The recipe without the bottleneck's terms."""
    return replace(recipe, lambda_x=0.0, lambda_y=0.0, hsic_every=1)


def read_recipe(name_or_file: str, *, data: str | None = None, kinds: Kinds | None = None,
                overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe for a data set name and kinds of network and images, with `overrides` (field: value or text)
    on top.

    Args: data: None while it is not known: then each field is judged by itself only, as the data's table may
    change others. kinds: None: no table of kinds is taken.
    Raises: InputError for an unknown recipe, field, type or choice, naming the file and the field.
    """
    with reading(name_or_file, "a TOML file", hint="See a shipped one: pwoa recipe show default"):
        table = tomllib.loads(text_of(name_or_file))
    named = (kinds._asdict() if kinds else {}) | {"data": data}
    nearer = [_tables(table, kind, name_or_file).get(named.get(kind) or "", {}) for kind in TABLES]
    values = {"name": Path(name_or_file).stem} | table
    for fields_of_it in nearer:
        values |= fields_of_it
    recipe = _with(Recipe(), values, where=name_or_file)
    overrides = dict(overrides or {})
    if "epochs" in overrides:  # somebody who names the epochs means just these
        overrides.setdefault("stretch", 0)
    recipe = _yielding(recipe, _with(recipe, overrides, where="command line"), overrides)
    if data is not None:
        where = f"{name_or_file} with the command line" if overrides else name_or_file
        _check_asked_scales(recipe, overrides, where)
        check(recipe, where=where)
    return replace(recipe, effort="default") if "epochs" in overrides else recipe


def _tables(table: dict[str, Any], kind: str, where: str) -> dict[str, dict[str, Any]]:
    """The tables [kind.NAME] of a recipe file, taken out of it."""
    found, (names, example) = table.pop(kind, {}), TABLES[kind]
    if not isinstance(found, dict) or not all(isinstance(t, dict) for t in found.values()):
        raise InputError(f"{where}: {kind} is not a table of tables.",
                         hint=f"Fields that differ stand under a heading such as [{kind}.{example}]")
    if unknown := [name for name in found if names and name not in names]:
        raise InputError(f"{where}: [{kind}.{unknown[0][:60]}], expected one of {', '.join(names)}.",
                         hint=f"For example: [{kind}.{example}]")
    for name, fields_of_it in found.items():
        _with(Recipe(), fields_of_it, where=f"{where}: [{kind}.{name[:60]}]")
    return found


def _yielding(file: Recipe, recipe: Recipe, asked: Mapping[str, Any]) -> Recipe:
    """The recipe without what its file sets and what is asked on the command line leaves no place for."""
    return replace(recipe, **{need.field: need.off for need in _NEEDS
                              if need.field not in asked and need.met(file) and not need.met(recipe)})


def _with(recipe: Recipe, values: Mapping[str, Any], *, where: str) -> Recipe:
    types = get_type_hints(Recipe)
    clean = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key[:60], types, n=1)
            raise InputError(f"{where}: no recipe field {key!r:.60}.",
                             hint=f"Did you mean {near[0]!r}?" if near else f"Fields: {', '.join(types)}.")
        clean[key] = _convert(key, value, types[key], where)
    recipe = replace(recipe, **clean)
    _check_fields(recipe, where)
    return recipe


def _convert(key: str, value: Any, kind: type, where: str) -> Any:
    try:
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{where}: {key} = {value!r:.60}, expected a {kind.__name__}.",
                         hint=f"For example: {key} = {getattr(Recipe, key)!r}") from None


def check(recipe: Recipe, *, where: str = "recipe") -> Recipe:
    """The recipe itself, or InputError naming the first field that is out of range or would do nothing."""
    _check_fields(recipe, where)
    if recipe.cutmix + recipe.mixup > 1:
        raise InputError(f"{where}: cutmix {recipe.cutmix}, mixup {recipe.mixup}; expected at most 1 "
                         "together (a batch is mixed in one way).",
                         hint="For example: cutmix = 0.5, mixup = 0.5")
    if "gaussian" in noise_scales(recipe, eps=1) and not recipe.gaussian_scale:
        raise InputError(f"{where}: noise = {recipe.noise!r}, but noise_scale is in units of eps: "
                         "gaussian_scale must say the largest deviation, in units of pixels in 0..1.",
                         hint="For example: gaussian_scale = 0.1")
    if not any(getattr(recipe, name) for name in _TEACHING):
        raise InputError(f"{where}: {', '.join(_TEACHING)} are 0: there is nothing to learn from the "
                         "teacher.",
                         hint="For example: alpha = 1")
    for need in _NEEDS:
        value = getattr(recipe, need.field)
        if value != need.off and not need.met(recipe):
            raise InputError(f"{where}: {need.field} = {value!r} {need.missing}.",
                             hint=f"For example: {need.example}; or {need.field} = {need.off!r}")
    return recipe


_TEACHING = ("alpha", "logit_weight", "neighbour_weight", "hidden_weight", "explain_weight", "lambda_x")
_AT_MOST_1 = ("sparsify", "noise_clean", "cutmix", "mixup", "mix_ratio")
_BELOW_1 = ("regrow", "ema")
_DIVISORS = ("temperature", "sigma")  # squared
LARGEST = 1e9  # of any number: alpha T^2 KL, rho/2 |w|^2 and exp(-d / (2 sigma^2)) stay within float32


class _Need(NamedTuple):
    """What a field needs: off: the value at which it asks for nothing; missing: the sentence where `met` does
    not hold."""

    field: str
    off: Any
    met: Callable[[Recipe], bool]
    missing: str
    example: str


def _noisy(recipe: Recipe) -> bool:
    return recipe.noise_clean < 1 and any(noise_scales(recipe, eps=1).values())


_COMPARED = ("compares images with their noisy copies, but there is no noise",
             "noise = 'blocks', noise_scale = 1, noise_clean = 0")
_OF_RAMP = ("belongs to method = 'ramp'", "method = 'ramp'")
_NEEDS = (
    _Need("clean_weight", 0, _noisy, *_COMPARED),
    _Need("neighbour_weight", 0, _noisy, *_COMPARED),
    _Need("clean_weight", 0, lambda r: r.alpha > 0, "is relative to alpha, which is 0", "alpha = 1"),
    _Need("noise_clean", 0, lambda r: r.noise != "none", "leaves images without noise, but there is none",
          "noise = 'blocks'"),
    _Need("hsic_every", 1, lambda r: r.lambda_x > 0 or r.lambda_y > 0,
          "says which steps have HSIC terms, but lambda_x and lambda_y are 0", "lambda_x = 1e-3"),
    _Need("bn_inputs", "varied", lambda r: r.bn_reestimate > 0,
          "names the images of bn_reestimate, which is 0", "bn_reestimate = 100"),
    _Need("ema", 0, lambda r: r.sparsify < 1, "averages over the second phase, but sparsify = 1 leaves none",
          "sparsify = 0.5"),
    _Need("start", "dense", lambda r: r.method == "ramp", *_OF_RAMP),
    _Need("regrow", 0, lambda r: r.method == "ramp", *_OF_RAMP),
    _Need("regrow", 0, lambda r: r.start == "dense" and r.mask_updates > 1,
          "replaces weights at later mask moves, but the masks move once "
          "only", "start = 'dense', mask_updates = 40"))


def _check_fields(recipe: Recipe, where: str) -> None:
    """Each field by itself."""
    for key, words in choices().items():
        if getattr(recipe, key) not in words:
            raise InputError(f"{where}: {key} = {getattr(recipe, key)!r:.60}, expected one of "
                             f"{', '.join(words)}.",
                             hint=f"For example: {key} = {words[0]!r}")
    positive = ("epochs", "batch_size", "lr", "temperature", "sigma", "mask_updates", "rho", "rho_growth",
                "rho_max", "admm_every", "hsic_every")
    for f in fields(Recipe):
        value = getattr(recipe, f.name)
        if isinstance(value, str):
            continue
        least = 1 / LARGEST if f.name in _DIVISORS else 0
        if not least <= value <= LARGEST or (f.name in positive and value == 0):
            limit = f" and at most {LARGEST:g}" if value > LARGEST else ""
            bound = f"above {least:g}" if f.name in positive and not least else f"of at least {least:g}"
            raise InputError(f"{where}: {f.name} = {value!s:.40}, expected a number {bound}{limit}.",
                             hint=f"For example: {f.name} = {f.default}")
        if (f.name in _AT_MOST_1 and value > 1) or (f.name in _BELOW_1 and value >= 1):
            flag = " (--mix-ratio 0)" if f.name == "mix_ratio" else ""
            raise InputError(f"{where}: {f.name} = {value}, expected a number "
                             f"{'below' if f.name in _BELOW_1 else 'at most'} 1.",
                             hint=f"For example: {f.name} = {f.default:g}{flag}")
    if recipe.batch_size < 2:
        raise InputError(f"{where}: batch_size {recipe.batch_size}, expected at least 2.",
                         hint="For example: batch_size = 128")
    kinds = recipe.noise.split("+")
    if recipe.noise != "none" and (set(kinds) - set(NOISES) or len(set(kinds)) < len(kinds)):
        raise InputError(f"{where}: noise = {recipe.noise!r:.60}, expected none, one of {', '.join(NOISES)}, "
                         "or several of them joined by +.",
                         hint="For example: noise = 'blocks+gaussian', gaussian_scale = 0.1")


def _check_asked_scales(recipe: Recipe, overrides: Mapping[str, Any], where: str) -> None:
    """A scale that somebody sets is that of a kind of noise that there is (recipe files may hold both)."""
    kinds = noise_scales(recipe, eps=1)
    for name, there, lacks, other in (
            ("gaussian_scale", "gaussian" in kinds, " has no gaussian",
             "noise_scale is the size of the others"),
            ("noise_scale", kinds.keys() - {"gaussian"}, " has only gaussian",
             "gaussian_scale is its size, in pixels of 0..1")):
        if name in overrides and getattr(recipe, name) and not there:
            raise InputError(f"{where}: {name} = {getattr(recipe, name)}, but noise = "
                             f"{recipe.noise!r}{lacks if kinds else ''}.",
                             hint=f"{other}." if kinds
                             else "For example: noise = 'blocks' (noise_scale), 'gaussian' (gaussian_scale).")
