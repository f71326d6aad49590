"""A model card: the README.md of a pruned model, with the metadata that model hubs read at its top.

The metadata is huggingface_hub's own (ModelCardData, EvalResult), so that it is what the hub's library reads
again. Texts of others stand in it as text: YAML's by its writer, Markdown's by `escapes`.
"""
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pwoa_cli.evaluation.words import WORST
from pwoa_cli.reports import escapes, numbers
from pwoa_cli.reports.leaderboards import Measurement, Model, Told
from pwoa_cli.version import __version__

MODEL, README = "model.safetensors", "README.md"
# the hub's identifiers of data sets
HUB_DATA = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist",
            "cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "svhn": "ufldl-stanford/svhn"}
# identifiers of licences that models are mostly under; the hub calls others "other", and takes their names
LICENSES = ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
            "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0",
            "isc", "unlicense", "openrail", "other", "unknown")


# --- metadata -------------------------------------------------------------------------------------

def metadata(model: Model, told: Told) -> str:
    """The YAML between the two lines --- of README.md, without them."""
    from huggingface_hub import EvalResult, ModelCardData

    data = model.report["data"]["name"]
    known = HUB_DATA.get(data) if model.report["data"].get("argument") in (None, data) else None
    results = [EvalResult(
        task_type="image-classification", dataset_type=known or _slug(data), dataset_name=_line(data),
        dataset_split="test", metric_type="accuracy", metric_value=score["accuracy"],
        metric_name=_line(metric(name)), metric_args=_args(model, name, score, source))
        for name, (score, source) in model.figures().items()]
    return ModelCardData(
        **_license(told.license), library_name="pwoa", pipeline_tag="image-classification",
        base_model=_hub_name(str(_teacher(model))), datasets=[known] if known else None,
        tags=["adversarial-robustness", "pruning", "sparsity", "pytorch"], metrics=["accuracy"],
        model_name=_line(told.name or model.name), eval_results=results or None).to_yaml()


def metric(name: str) -> str:
    """What an accuracy is called: clean, or robust against an attack."""
    return "clean accuracy" if name == "clean" else f"robust accuracy ({name})"


def _args(model: Model, name: str, score: Mapping[str, Any], source: Measurement) -> dict[str, Any]:
    """What an accuracy depends on: samples, and under attack the threat."""
    found: dict[str, Any] = {"samples": score["n"], "seed": source.seed, "ci95": list(score["ci95"])}
    if name == "clean":
        return found
    attack = name if name != WORST else _line(", ".join(attacks(source)))
    threat = model.report["threat"]
    return {"attack": attack, "norm": _line(threat["norm"]), "eps": threat["eps"]} | found


def attacks(source: Measurement) -> list[str]:
    """The attacks of a measurement that are finished."""
    return [name for name in source.scores if name not in ("clean", WORST)]


def _license(text: str | None) -> dict[str, Any]:
    """The hub's fields: one of its identifiers, or "other" with a name."""
    if text is None:
        return {"license": "unknown"}
    plain = text.strip().lower()
    return {"license": plain} if plain in LICENSES else {"license": "other", "license_name": _line(text)}


def _hub_name(source: str) -> str | None:
    """The hub's name of a teacher that is from there."""
    found = re.fullmatch(r"hf[-_]hub:([\w.-]+/[\w.-]+)", source)
    return found[1] if found else None


def _teacher(model: Model) -> Any:
    return model.report["model"].get("teacher", model.report["model"]["source"])


def _line(text: str) -> str:
    """Text of others on one line, without control characters."""
    return " ".join(escapes.visible(str(text)).split())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", str(text).lower()).strip("-.") or "custom"


# --- the page -------------------------------------------------------------------------------------

def readme(model: Model, told: Told, *, sha256: str, size_bytes: int, notes: Sequence[str]) -> str:
    """README.md: metadata and page. Args: sha256, size_bytes: of the model's file. notes: what it lacks."""
    sections = {"Accuracy": _figures(model), "Threat model": _threat(model),
                "How it was made": [*_made(model), *_who(told)],
                "Files": _files(sha256, size_bytes), "Use": _use(model),
                "Licence": [f"- {_md(told.license)}" if told.license else
                            "- TO BE FILLED IN: the licence was not said."],
                "Notes": [f"- {_md(sentence)}" for sentence in notes]}
    page = "\n\n".join("\n".join([f"## {title}", "", *lines]) for title, lines in sections.items() if lines)
    title = f"# {_md(told.name or model.name)}"
    return f"---\n{metadata(model, told)}\n---\n\n{title}\n\n{_lead(model)}\n\n{page}\n"


def _who(told: Told) -> list[str]:
    said = {"authors": told.authors, "link": told.link}
    return [f"- {word}: {_md(text)}" for word, text in said.items() if text]


def _md(text: Any) -> str:
    return escapes.markdown(str(text))


def _within(model: Model) -> str:
    threat = model.report["threat"]
    return f"{_md(threat['norm'])} eps {numbers.radius(threat['eps'])}"


def _lead(model: Model) -> str:
    return (f"{_md(model.architecture)} for images of {_md(model.report['data']['name'])}, robust within "
            f"{_within(model)}: {model.percent}% of the weights of a robust network are zero "
            f"({_md(model.report['sparsity']['structure'])}). Pruned with pwoa.")


def _figures(model: Model) -> list[str]:
    """A table of the figures; or why there is none."""
    if model.doubts:
        doubts = [f"- {_md(doubt)}" for doubt in model.doubts]
        return ["No figure is given, as they must not be believed:", "", *doubts]
    rows = [f"| {_md(name)} | {numbers.with_interval(score)} | {score['n']} | {_md(_of(name, source))} |"
            for name, (score, source) in model.figures().items()]
    return ["| attack | accuracy % [Wilson 95% interval] | test images | of |", "|---|---:|---:|---|", *rows,
            *([""] if model.caveats else []), *(f"- {_md(caveat)}" for caveat in model.caveats)]


def _of(name: str, source: Measurement) -> str:
    return f"{source.where}: over {', '.join(attacks(source))}" if name == WORST else source.where


def _threat(model: Model) -> list[str]:
    data = model.report["data"]
    return [f"- perturbations within {_within(model)} of inputs in [0,1]; the attacker knows the weights",
            f"- images: {_md(data['name'])}, test set" + (f", {_md(data['images'])} pixels"
                                                          if data.get("images") else ""),
            "- a figure is an upper bound: another attack may find more"]


def _made(model: Model) -> list[str]:
    report = model.report
    recipe, zeros, environment = report["recipe"], report["sparsity"], report["environment"]
    words = ("method", "criterion", "allocation", "epochs", "effort")
    fields = [f"{word} {_md(recipe[word])}" for word in words if word in recipe]
    source = str(_teacher(model))
    teacher = source if _hub_name(source) else PurePath(source).name  # no folders of this machine
    own = report["model"].get("teacher_sha256", report["model"]["sha256"])
    return [f"- data: training images of {_md(report['data']['name'])}",
            f"- teacher: {_md(teacher)}, SHA-256 {_md(own)}",
            f"- recipe: {_md(recipe['name'])} ({', '.join(fields)}), seed {environment['seed']}",
            f"- weights: {zeros['nonzero']:,} of {zeros['total']:,} are not zero; "
            f"{numbers.size(report['size']['dense_bytes'])} as dense float32",
            *(["- no adversarial example was trained on"] if recipe.get("mix_ratio") == 0 else []),
            f"- with pwoa {_md(environment['pwoa'])}, torch {_md(environment['torch'])}, on "
            f"{_md(environment['device'])}; the card with pwoa {__version__}"]


def _files(sha256: str, size_bytes: int) -> list[str]:
    return [f"- {MODEL}: {numbers.size(size_bytes)}, pwoa's sparse format; SHA-256 {sha256}",
            "- report.json, report.md: what pwoa prune measured; evaluations/: what pwoa eval did",
            "- robustbench.json, pruning-benchmark.json, distances/: entries for leaderboards",
            "- SHA256SUMS: of all of them (sha256sum -c SHA256SUMS)"]


def _use(model: Model) -> list[str]:
    """How it is loaded; a network of the user's own code needs that again."""
    own = ', arch="FILE.py:FUNCTION"' if ".py" in model.report["model"]["arch"] else ""
    return ["```python", "import pwoa_cli", "",
            f'model = pwoa_cli.load("{MODEL}"{own})  # images in [0,1] -> logits', "```"]
