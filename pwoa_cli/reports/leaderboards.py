"""What is published of a pruned model's figures: which of them are plain figures, and the entries that
RobustBench and the Adversarial Pruning Benchmark (Piras et al. 2024) ask for.

A figure that is missing stays null: `notes` says which, in sentences. Nothing here needs torch.
"""
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pwoa_cli.evaluation.words import WORST
from pwoa_cli.reports import numbers

# RobustBench's data sets, and how many test images it takes
ROBUSTBENCH = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5000}
NORMS = ("linf", "l2")  # of its threats
FMN = re.compile(r"fmn(-\d+)?")
# the benchmark's words and its three sparsities of each structure, in percent
STRUCTURES = {"unstructured": ("weights", "US", (90, 95, 99)), "filter": ("filters", "S", (50, 75, 90)),
              "channel": ("channels", "S", (50, 75, 90))}
BENCHMARK_NETS = {"ResNet-18": "R18", "VGG-16": "V16"}
BENCHMARK_DATA = {"cifar10": "CIFAR10", "svhn": "SVHN"}
CLASSES = 4  # that AutoAttack needs at least
KEY = "AP_KEY"  # of a method: the benchmark gives it when its form is filled in


@dataclass(frozen=True)
class Told:
    """What only the authors know; None: not said."""

    name: str | None = None
    authors: str | None = None
    link: str | None = None
    license: str | None = None
    additional_data: bool | None = None


@dataclass(frozen=True)
class Measurement:
    """A report's figures of one model: `where` it lies, `who` the model is there, and its finished scores."""

    where: str
    who: str
    scores: Mapping[str, Mapping[str, Any]]
    seed: int | None


@dataclass(frozen=True)
class Model:
    """A run with all that was measured of its model under the run's threat, on its data.

    doubts: why no figure must be believed; caveats: what else reports say of it; unfinished: what time did
    not suffice for. distances: of the minimum-norm attack `fmn`, one a sample: 0 where it was wrong, infinite
    where nothing was found; None where no evaluation kept them.
    """

    name: str
    folder: str
    report: Mapping[str, Any]
    measurements: Sequence[Measurement]
    doubts: Sequence[str] = ()
    caveats: Sequence[str] = ()
    unfinished: Sequence[str] = ()
    distances: Sequence[float] | None = None

    def measured(self, attack: str) -> Measurement | None:
        """Where an attack was measured on the most samples, of several the lowest; None: nowhere."""
        having = [] if self.doubts else [m for m in self.measurements if attack in m.scores]
        return max(having, key=lambda m: (m.scores[attack]["n"], -m.scores[attack]["accuracy"]), default=None)

    def figures(self) -> dict[str, tuple[Mapping[str, Any], Measurement]]:
        """The score of each attack on the most samples, and where it is from: clean first, the worst case
        last, unless an attack that it does not know found worse; {} where they are in doubt."""
        names = dict.fromkeys(name for m in self.measurements for name in m.scores if name != WORST)
        found = {name: (m.scores[name], m) for name in names if (m := self.measured(name))}
        worst, lowest = self.measured(WORST), min((s["accuracy"] for s, _ in found.values()), default=1.0)
        if worst and worst.scores[WORST]["accuracy"] <= lowest:
            found[WORST] = worst.scores[WORST], worst
        return found

    @property
    def fmn(self) -> str | None:
        """The name of the minimum-norm attack that was measured: on the most samples, with the most steps."""
        found = {name: score["n"] for name, (score, _) in self.figures().items() if FMN.fullmatch(name)}
        return max(found, key=lambda name: (found[name], int(name.partition("-")[2] or 100)), default=None)

    @property
    def architecture(self) -> str:
        """As leaderboards call it: ResNet-18, WideResNet-28-10; a file of the user's by its name."""
        arch = str(self.report["model"]["arch"])
        with suppress(TypeError, ValueError, AttributeError, KeyError, IndexError):  # anybody's report
            return _architecture(arch, self.report["model"].get("arch_options", {}))
        return PurePath(arch).name

    @property
    def percent(self) -> str:
        """Its sparsity in percent: 90."""
        return numbers.percent_of_weights(self.report["sparsity"]["achieved"])


def _architecture(arch: str, options: Mapping[str, Any]) -> str:
    residual = {"cifar-resnet": "ResNet", "preact-resnet": "PreActResNet", "dm-preact-resnet": "PreActResNet"}
    if arch in residual:
        return f"{residual[arch]}-{(3 if options.get('bottleneck') else 2) * sum(options['blocks']) + 2}"
    if arch in ("wide-resnet", "dm-wide-resnet"):
        return f"WideResNet-{2 * sum(options['blocks']) + 4}-{options['widths'][0] // 16}"
    if arch == "cifar-vgg":
        return f"VGG-{sum(map(len, options['stages'])) + 3}"
    plain = re.fullmatch(r"resnet(\d+)", arch)
    return f"ResNet-{plain[1]}" if plain else PurePath(arch).name


def shown(score: Mapping[str, Any] | None) -> str | None:
    """An accuracy as both benchmarks write it: "83.40"; None for None."""
    return None if score is None else f"{100 * score['accuracy']:.2f}"


# --- RobustBench ----------------------------------------------------------------------------------

def robustbench(model: Model, told: Told) -> dict[str, Any]:
    """The entry of RobustBench's model_info; what is not known is None. Clean accuracy is of the samples that
    AutoAttack had."""
    attacked, of = model.measured("aa"), _main(model)
    return {"link": told.link, "name": told.name, "authors": told.authors,
            "additional_data": told.additional_data, "number_forward_passes": 1,
            "dataset": model.report["data"]["name"], "architecture": model.architecture,
            "eps": numbers.radius(model.report["threat"]["eps"]),
            "clean_acc": shown(of.scores.get("clean")) if of else None,
            "autoattack_acc": shown(attacked.scores["aa"]) if attacked else None,
            "footnote": f"Compressed model{_part(model, of)}"}


def _main(model: Model) -> Measurement | None:
    """Where AutoAttack was measured, and clean accuracy is taken from; else where that was."""
    return model.measured("aa") or model.measured("clean")


def _part(model: Model, of: Measurement | None) -> str:
    """That the figures are of a part of the test images, where they are or may be."""
    count = max((score["n"] for score in of.scores.values()), default=0) if of else 0
    whole = ROBUSTBENCH.get(model.report["data"]["name"])
    return f"; measured on {count} test images" if count and count != whole else ""


# --- the Adversarial Pruning Benchmark ------------------------------------------------------------

def benchmark(models: Sequence[Model]) -> dict[str, Any]:
    """What the benchmark's form asks for, of each sparsity."""
    return {"ap_key": None, "models": [_checkpoint(model) for model in models]}


def _checkpoint(model: Model) -> dict[str, Any]:
    figures, threat, name = model.figures(), model.report["threat"], model.fmn
    words = STRUCTURES.get(model.report["sparsity"]["structure"])
    clean = of.scores.get("clean") if (of := _main(model)) else None
    scores = {attack: score for attack, (score, _) in figures.items()} | {"clean": clean}
    found = {attack: {"accuracy": shown(score), "samples": score["n"]}
             for attack, score in scores.items() if score and attack in ("clean", "aa", name)}
    fmn = None if name is None else {"attack": name} | found[name] | _quantiles(model)
    return {"model_key": model_key(model), "architecture": model.architecture,
            "dataset": model.report["data"]["name"], "structure": words[0] if words else None,
            "sparsity": model.percent, "norm": threat["norm"], "eps": numbers.radius(threat["eps"]),
            "model_sha256": model.report["model"].get("file_sha256"),
            "clean": found.get("clean"), "autoattack": found.get("aa"), "fmn": fmn}


def _quantiles(model: Model) -> dict[str, Any]:
    """The median distance of the samples, an infinite one None, and the file of all."""
    if model.distances is None:
        return {"median_distance": None, "distances": None}
    return {"median_distance": statistics.median(model.distances), "distances": distances_file(model)}


def distances_file(model: Model) -> str:
    """Where a card keeps the distances of a model, as the benchmark calls the file: KEY.pickle."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", model.name).lstrip(".-") or "model"
    return f"distances/{model_key(model) or plain}.pickle"


def model_key(model: Model) -> str | None:
    """The benchmark's key of a checkpoint, AP_KEY_R18_CIFAR10_US_90; None for one that it does not take."""
    net, data = BENCHMARK_NETS.get(model.architecture), BENCHMARK_DATA.get(model.report["data"]["name"])
    _, short, sparsities = STRUCTURES.get(model.report["sparsity"]["structure"], ("", "", ()))
    fitting = [goal for goal in sparsities if abs(100 * model.report["sparsity"]["achieved"] - goal) < 0.5]
    return f"{KEY}_{net}_{data}_{short}_{fitting[0]}" if net and data and fitting else None


# --- what a reader, or the author, must know ---------------------------------------------------

def notes(models: Sequence[Model], told: Told) -> list[str]:
    """What the card or its entries lack, and what bounds their figures, a sentence each."""
    flags = {"--name": told.name, "--authors": told.authors, "--link": told.link,
             "--additional-data": told.additional_data}
    left = [flag for flag, value in flags.items() if value is None]
    return [*(["The licence is not said: --license mit, for example."] if told.license is None else []),
            *([f"robustbench.json: null where {', '.join(left)} would say it."] if left else []),
            *(sentence for model in models for sentence in _of_figures(model)),
            *_of_robustbench(models[0]), *_of_benchmark(models)]


def lacks(model: Model) -> list[str]:
    """Attacks whose figures, or distances, benchmarks ask for and nobody measured, though they can be."""
    can = model.report["model"]["num_classes"] >= CLASSES
    return [*(["aa"] if can and model.measured("aa") is None else []),
            *(["fmn"] if model.fmn is None or model.distances is None else [])]


def _of_figures(model: Model) -> list[str]:
    if model.doubts:
        return [f"{model.name}: no figure is given, as they must not be believed: {doubt}"
                for doubt in model.doubts]
    found = [f"{model.name}: {left}" for left in model.unfinished]
    words = {"aa": "AutoAttack (aa)", "fmn": "FMN with its distances (fmn)"}
    if left := lacks(model):
        found.append(f"{model.name}: nobody measured {' and '.join(words[one] for one in left)}.")
    if model.report["model"]["num_classes"] < CLASSES:
        found.append(f"{model.name}: AutoAttack needs {CLASSES} classes.")
    attacked = model.measured("aa")
    if attacked and (before := _before(attacked)):
        found.append(f"{model.name}: the figure of aa counts what {', '.join(before)} broke before it, so "
                     "AutoAttack alone may come out a little higher.")
    return found


def _before(attacked: Measurement) -> list[str]:
    """Cheaper attacks that had broken samples before AutoAttack came to them."""
    clean, score = attacked.scores.get("clean"), attacked.scores["aa"]
    if clean is None or score.get("attacked", 0) >= round(clean["accuracy"] * clean["n"]):
        return []
    return [name for name in attacked.scores if name not in ("clean", "aa", "strong", WORST)]


def _of_robustbench(model: Model) -> list[str]:
    data, norm = model.report["data"]["name"], model.report["threat"]["norm"]
    if data not in ROBUSTBENCH or norm not in NORMS:
        return [f"RobustBench takes {', '.join(ROBUSTBENCH)} by these names, {' and '.join(NORMS)}: this is "
                f"{data}, {norm}."]
    attacked = model.measured("aa")
    if attacked and attacked.scores["aa"]["n"] < ROBUSTBENCH[data]:
        return [f"RobustBench measures {ROBUSTBENCH[data]} test images, and this is of "
                f"{attacked.scores['aa']['n']}."]
    return []


def _of_benchmark(models: Sequence[Model]) -> list[str]:
    first = models[0]
    net, data = first.architecture, first.report["data"]["name"]
    structure = first.report["sparsity"]["structure"]
    if net not in BENCHMARK_NETS or data not in BENCHMARK_DATA or structure not in STRUCTURES:
        return ["The Adversarial Pruning Benchmark takes ResNet-18 and VGG-16 on cifar10 and svhn, pruned by "
                f"weights, filters or channels: this is {net} on {data}, {structure}."]
    goals = STRUCTURES[structure][2]
    keys = {model_key(model) for model in models} - {None}
    found = [f"pruning-benchmark.json: {KEY} stands for the key that the benchmark's form gives; its FMN is "
             "tuned for each model (HO-FMN), pwoa's is not."]
    if len(keys) < len(goals):
        found.append(f"The Adversarial Pruning Benchmark asks for {', '.join(map(str, goals))}% sparsity, "
                     f"and there is {', '.join(model.percent for model in models)}%: name a run of each.")
    if first.report["threat"]["norm"] != "linf" or numbers.radius(first.report["threat"]["eps"]) not in (
            "8/255", "0.031"):
        found.append("The Adversarial Pruning Benchmark measures within linf eps 8/255, and this is within "
                     f"{first.report['threat']['norm']} eps {numbers.radius(first.report['threat']['eps'])}.")
    return found
