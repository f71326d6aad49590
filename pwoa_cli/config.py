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
    "method": ("ramp", "admm"), "allocation": ("uniform", "erk", "lamp", "global"), "optimizer": ("adam", "sgd"),
    "schedule": ("constant", "cosine", "warm-cosine", "admm"), "finetune_schedule": ("constant", "cosine", "warm-cosine"),
    "kl_reduction": ("batchmean", "mean"), "noise": ("none", "sign", "blocks", "uniform", "gaussian"),
    "batch_norm": ("train", "freeze"), "augment": ("auto", "none", "crop-flip"),
}


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
    stretch: float = 0.0  # epochs grow with difficulty: times max(1, log10(1 / (1 - sparsity)))^stretch; 1 doubles them at 99%
    sparsify: float = 0.5  # fraction of the epochs in the sparsify phase
    batch_size: int = 128
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
    hidden_weight: float = 0.0  # matching of hidden layers
    hidden: str = "auto"  # which layers: "auto" or comma-separated patterns of module names
    lambda_x: float = 0.0
    lambda_y: float = 0.0
    sigma: float = 5.0
    noise: str = "none"
    noise_scale: float = 1.0  # in units of eps for sign, blocks and uniform noise, of pixels in 0..1 for gaussian
    cutmix: float = 0.0  # probability that a batch is mixed
    augment: str = "auto"  # "auto": what the data set calls for
    batch_norm: str = "train"
    mask_updates: int = 40  # times that the ramp moves the masks
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
        raise InputError(f"recipe {name_or_file!r} is neither shipped nor a file.", hint=f"Shipped recipes: {', '.join(shipped())}; or give the path of a TOML file.")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name_or_file} is not a TOML file: {error}.", hint="See the shipped ones: pwoa prune --help, docs/recipes.md.") from None
    per_data = table.pop("data", {})
    if not isinstance(per_data, dict) or not all(isinstance(t, dict) for t in per_data.values()):
        raise InputError(f"{name_or_file}: data is not a table of tables.", hint="Fields that differ for a data set stand under [data.mnist].")
    values = {"name": path.stem} | table | per_data.get(data, {})
    recipe = _with(Recipe(), values, where=name_or_file)
    overrides = dict(overrides or {})
    if "epochs" in overrides:  # somebody who names the epochs means just these
        overrides.setdefault("stretch", 0)
    return _with(recipe, overrides, where="command line")


def _with(recipe: Recipe, values: Mapping[str, Any], *, where: str) -> Recipe:
    types = {f.name: f.type for f in fields(Recipe)}
    clean = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            raise InputError(f"{where}: no recipe field {key!r}.", hint=f"Did you mean {near[0]!r}?" if near else f"Fields: {', '.join(types)}.")
        clean[key] = _convert(key, value, types[key], where)
    return check(replace(recipe, **clean), where=where)


def _convert(key: str, value: Any, kind: type, where: str) -> Any:
    try:
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{where}: {key} = {value!r}, expected a {kind.__name__}.", hint=f"For example: {key} = {getattr(Recipe, key)!r}.") from None


def check(recipe: Recipe, *, where: str = "recipe") -> Recipe:
    """The recipe itself, or InputError naming the first field that is out of range."""
    for key, choices in CHOICES.items():
        if getattr(recipe, key) not in choices:
            raise InputError(f"{where}: {key} = {getattr(recipe, key)!r}, expected one of {', '.join(choices)}.", hint=f"For example: {key} = {choices[0]!r}.")
    positive = ("epochs", "batch_size", "lr", "temperature", "sigma", "mask_updates", "rho", "rho_growth", "rho_max", "admm_every")
    for f in fields(Recipe):
        value = getattr(recipe, f.name)
        if isinstance(value, str):
            continue
        if not 0 <= value < float("inf") or (f.name in positive and value == 0):
            raise InputError(f"{where}: {f.name} = {value}, expected a number {'above' if f.name in positive else 'of at least'} 0.", hint=f"For example: {f.name} = {f.default}.")
    if recipe.batch_size < 2 or recipe.sparsify > 1 or recipe.cutmix > 1:
        raise InputError(f"{where}: batch_size {recipe.batch_size}, sparsify {recipe.sparsify}, cutmix {recipe.cutmix}; expected at least 2, at most 1, at most 1.", hint="Correct that field.")
    return recipe
