"""Recipes: every number of a pruning run, read from TOML files shipped with the package or written by the user.

A recipe file holds fields of `Recipe` at its top, and tables [data.NAME] with the fields that differ for a data set.
What is nearer to the user wins: default of the field < file < its [data.NAME] < command line.
"""
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from pwoa_cli.errors import InputError

CHOICES = {
    "method": ("ramp", "admm"), "allocation": ("uniform", "erk", "lamp", "global", "sensitivity"), "optimizer": ("adam", "sgd"),
    "schedule": ("constant", "cosine", "warm-cosine", "admm"), "finetune_schedule": ("constant", "cosine", "warm-cosine"),
    "kl_reduction": ("batchmean", "mean"), "hidden_loss": ("relative", "channels", "attention", "cka"),
    "start": ("dense", "obs"), "precision": ("float32", "bf16"), "effort": ("quick", "default", "max"), "bn_inputs": ("varied", "clean"),
    "batch_norm": ("train", "freeze"), "augment": ("auto", "none", "crop-flip", "hard"),
}
NOISES = ("sign", "blocks", "lowpass", "toward", "uniform", "gaussian")  # or "none", or several, joined by "+"

EFFORT = {"quick": 0.2, "default": 1.0, "max": 5.0}  # the recipe's epochs are multiplied by this


@dataclass(frozen=True)
class Recipe:
    """One pruning recipe. Fields are those of the TOML files; see docs/recipes.md for each one's source.

    sparsify phase: the dense copy becomes sparse ("ramp": magnitude pruning along a cubic schedule; "admm": the paper).
    finetune phase: masks fixed, the loss stays the same.
    """

    name: str = "default"
    method: str = "ramp"
    allocation: str = "lamp"
    epochs: float = 4.0  # sparsify and finetune together
    effort: str = "default"  # a fifth of the epochs, the epochs, or five times the epochs
    stretch: float = 0.0  # epochs grow with difficulty: times max(1, log10(1 / (1 - sparsity)))^stretch; 1 doubles them at 99%
    sparsify: float = 0.5  # fraction of the epochs in the sparsify phase
    batch_size: int = 128
    precision: str = "float32"  # of the products in training
    optimizer: str = "adam"
    lr: float = 1e-3
    finetune_lr: float = 0.0  # 0: the schedule of the sparsify phase runs on over both phases
    schedule: str = "warm-cosine"
    finetune_schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 0.0
    alpha: float = 1.0
    temperature: float = 4.0
    kl_reduction: str = "batchmean"
    clean_weight: float = 0.0  # KL on the same images without noise, relative to that with noise
    logit_weight: float = 0.0  # squared error of the logits
    neighbour_weight: float = 0.0  # squared error of the change of logits that the noise makes
    hidden_weight: float = 0.0  # matching of hidden layers
    hidden_loss: str = "relative"
    explain_weight: float = 0.0  # matching of class activation maps
    hidden: str = "auto"  # which layers: "auto" or comma-separated patterns of module names
    lambda_x: float = 0.0
    lambda_y: float = 0.0
    sigma: float = 5.0
    noise: str = "none"
    noise_scale: float = 1.0  # in units of eps; of pixels in 0..1 for gaussian noise where gaussian_scale is 0
    gaussian_scale: float = 0.0  # in units of pixels in 0..1, the size of gaussian noise among other kinds
    noise_clean: float = 0.0  # fraction of a batch that gets no noise
    cutmix: float = 0.0  # probability that a batch is mixed by boxes
    mixup: float = 0.0  # probability that it is mixed by weights instead
    augment: str = "auto"  # "auto": what the data set calls for
    batch_norm: str = "train"
    mask_updates: int = 40  # times that the ramp moves the masks
    start: str = "dense"  # "obs": all masks in the first step by layerwise reconstruction (obs.py)
    regrow: float = 0.0  # fraction of the kept weights that a mask move replaces by pruned ones of large gradient
    mix_ratio: float = 0.0  # fraction of the batches that are attacked: the only adversarial examples that there can be
    ema: float = 0.0  # decay of the average of the weights over the second phase, which is then saved
    bn_reestimate: int = 0  # batches over which batch-norm statistics are taken again at the end
    bn_inputs: str = "varied"  # those batches: as in training, or the images as they are
    rho: float = 0.01
    rho_growth: float = 1.35
    rho_max: float = 1.0
    admm_every: int = 3  # epochs between z/u updates


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(p.name.removesuffix(".toml") for p in resources.files("pwoa_cli").joinpath("recipes").iterdir() if p.name.endswith(".toml"))


def read_recipe(name_or_file: str, *, data: str = "", overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe for a data set name, with `overrides` (field: value or text) on top.

    Raises: InputError for an unknown recipe, field, type or choice, naming the file and the field.
    """
    path = Path(name_or_file)
    if name_or_file in shipped():
        text = resources.files("pwoa_cli").joinpath("recipes", name_or_file + ".toml").read_text()
    elif path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
    else:
        raise InputError(f"recipe {name_or_file!r} is neither shipped nor a file.",
                         hint=f"Shipped recipes: {', '.join(shipped())}; or give the path of a TOML file.")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name_or_file} is not a TOML file: {error}.",
                         hint="See the shipped ones: pwoa prune --help, docs/recipes.md.") from None
    per_data = table.pop("data", {})
    if not isinstance(per_data, dict) or not all(isinstance(t, dict) for t in per_data.values()):
        raise InputError(f"{name_or_file}: data is not a table of tables.",
                         hint="Fields that differ for a data set stand under [data.mnist].")
    values = {"name": path.stem} | table | per_data.get(data, {})
    recipe = _with(Recipe(), values, where=name_or_file)
    overrides = dict(overrides or {})
    if "epochs" in overrides:  # somebody who names the epochs means just these
        overrides.setdefault("stretch", 0)
    recipe = _with(recipe, overrides, where="command line")
    return replace(recipe, effort="default") if "epochs" in overrides else recipe


def _with(recipe: Recipe, values: Mapping[str, Any], *, where: str) -> Recipe:
    types = {f.name: f.type for f in fields(Recipe)}
    clean = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            raise InputError(f"{where}: no recipe field {key!r}.",
                             hint=f"Did you mean {near[0]!r}?" if near else f"Fields: {', '.join(types)}.")
        clean[key] = _convert(key, value, types[key], where)
    return check(replace(recipe, **clean), where=where)


def _convert(key: str, value: Any, kind: type, where: str) -> Any:
    try:
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{where}: {key} = {value!r}, expected a {kind.__name__}.",
                         hint=f"For example: {key} = {getattr(Recipe, key)!r}.") from None


def check(recipe: Recipe, *, where: str = "recipe") -> Recipe:
    """The recipe itself, or InputError naming the first field that is out of range."""
    for key, choices in CHOICES.items():
        if getattr(recipe, key) not in choices:
            raise InputError(f"{where}: {key} = {getattr(recipe, key)!r}, expected one of {', '.join(choices)}.",
                             hint=f"For example: {key} = {choices[0]!r}.")
    positive = ("epochs", "batch_size", "lr", "temperature", "sigma", "mask_updates", "rho", "rho_growth", "rho_max", "admm_every")
    for f in fields(Recipe):
        value = getattr(recipe, f.name)
        if isinstance(value, str):
            continue
        if not 0 <= value < float("inf") or (f.name in positive and value == 0):
            raise InputError(f"{where}: {f.name} = {value}, expected a number {'above' if f.name in positive else 'of at least'} 0.",
                             hint=f"For example: {f.name} = {f.default}.")
    if recipe.batch_size < 2 or recipe.sparsify > 1:
        raise InputError(f"{where}: batch_size {recipe.batch_size}, sparsify {recipe.sparsify}; expected at least 2, at most 1.",
                         hint="Correct that field.")
    _check_inputs(recipe, where)
    _check_schedule(recipe, where)
    return recipe


def _check_inputs(recipe: Recipe, where: str) -> None:
    """Noise that exists, probabilities that are some, and noise where a term asks about it."""
    kinds = recipe.noise.split("+")
    if recipe.noise != "none" and (set(kinds) - set(NOISES) or len(set(kinds)) < len(kinds)):
        raise InputError(f"{where}: noise = {recipe.noise!r}, expected none, one of {', '.join(NOISES)}, or several of them joined by +.",
                         hint="For example: noise = 'blocks+gaussian', gaussian_scale = 0.1.")
    if "gaussian" in kinds and len(kinds) > 1 and not recipe.gaussian_scale:
        raise InputError(f"{where}: noise = {recipe.noise!r}, but noise_scale is in units of eps: gaussian_scale must say the largest "
                         "deviation, in units of pixels in 0..1.", hint="For example: gaussian_scale = 0.1.")
    if recipe.noise_clean > 1 or recipe.cutmix + recipe.mixup > 1:
        raise InputError(f"{where}: noise_clean {recipe.noise_clean}, cutmix {recipe.cutmix}, mixup {recipe.mixup}; expected at most 1, "
                         "and cutmix + mixup at most 1 (a batch is mixed in one way).", hint="For example: cutmix = 0.5, mixup = 0.5.")
    for name in ("clean_weight", "neighbour_weight"):
        silent = recipe.noise == "none" or recipe.noise_clean == 1 or not (recipe.noise_scale or recipe.gaussian_scale)
        if getattr(recipe, name) and silent:
            raise InputError(f"{where}: {name} = {getattr(recipe, name)} compares images with their noisy copies, but there is no noise.",
                             hint=f"For example: noise = 'blocks', noise_clean = 0; or {name} = 0.")


def _check_schedule(recipe: Recipe, where: str) -> None:
    """Fractions are below 1, and what happens at mask moves meets a ramp that moves."""
    for name, most in (("mix_ratio", "at most 1"), ("regrow", "below 1"), ("ema", "below 1")):
        value = getattr(recipe, name)
        if value > 1 or (value == 1 and most == "below 1"):
            raise InputError(f"{where}: {name} = {value}, expected a number {most}.", hint=f"To leave it out: {name} = 0.")
    if recipe.method == "admm" and (recipe.start == "obs" or recipe.regrow):
        raise InputError(f"{where}: start = {recipe.start!r}, regrow = {recipe.regrow}; both belong to method = 'ramp', not to 'admm'.",
                         hint="For example: method = 'ramp'.")
    if recipe.regrow and (recipe.start == "obs" or recipe.mask_updates == 1):
        raise InputError(f"{where}: regrow = {recipe.regrow}, but the masks move once only (start = {recipe.start!r}, "
                         f"mask_updates = {recipe.mask_updates}).", hint="For example: start = 'dense', mask_updates = 40; or regrow = 0.")
