"""Commands that make a report again, or what it lacks, from what it says."""
import math
import shlex
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from pwoa_cli.reports.numbers import radius

CHOICES = ("image_size", "class_map", "class_order", "labels_from", "logits")  # of how data is read
SHARES = (0.25, 0.5, 0.75, 1, 1.25, 1.5)  # of the threat's eps: a curve to begin with


def again(report: Mapping[str, Any], folder: Path, *, run: Mapping[str, Any] | None = None) -> str:
    """What prunes, or measures, the same again. Options on how the model is read are not in an evaluation's
    report. Args: run: the report of the run that an evaluation lies in, whose teacher and data are taken."""
    if "sparsity" in report:
        return words("pwoa", "prune", "--config", str(folder / "config.toml"))
    typed = _eval(report) if run is None else (
        "pwoa", "eval", str(folder.parent), *_given(_not_of_run(report["data"], run["data"])),
        *_options(report))
    points = [_typed(point["eps"]) for point in report.get("curve", [])]
    return words(*typed, *(("--curve", ",".join(points)) if points else ()))


def curve_and_samples(report: Mapping[str, Any], folder: Path) -> str:
    """What measures the curve and keeps adversarial images, in a folder inside that of a run."""
    run, eps = "sparsity" in report, report["threat"]["eps"] or 8 / 255
    most = 1.0 if report["threat"]["norm"] == "linf" else float("inf")
    radii = ",".join(_typed(share * eps) for share in SHARES if share * eps <= most)
    names = (f"eval-{number}" if number > 1 else "eval" for number in range(1, 1000))
    parent = folder if run else folder.parent
    out = next(parent / name for name in names if not (parent / name).exists())
    typed = ("pwoa", "eval", str(folder), "--attacks", "pgd,cw") if run else _eval(report)
    return words(*typed, "--curve", radii, "--out", str(out), "--save-samples", str(out / "samples.npz"))


def bench(folder: Path) -> str:
    """What keeps times beside a run."""
    return f"{words('pwoa', 'bench', str(folder))} --json > {shlex.quote(str(folder / 'bench.json'))}"


def _eval(report: Mapping[str, Any]) -> tuple[str, ...]:
    data, reference = report["data"], report.get("reference")
    sources = {who: model["source"] for who, model in report.get("models", {}).items()}
    if "results" in report:
        sources = dict(list(sources.items())[-1:]) or {"": report["model"]["source"]}
    elif "teacher" in report:
        reference = next(iter(sources), None)
    named = [source for who, source in sources.items() if who != reference]
    return ("pwoa", "eval", *named, *_given({"--compare": sources.get(reference)} | _data(data)),
            *_options(report))


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Where the images are and how they were read."""
    choices = data.get("choices", {})
    found = {name: choices[name] for name in CHOICES if name in choices}
    if "image_size" in found:
        found["image_size"] = "x".join(map(str, found["image_size"]))
    found["data"] = data.get("where") or data["name"]
    return {f"--{name.replace('_', '-')}": said for name, said in found.items()}


def _not_of_run(data: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """What of `_data` must be typed beside a run's own: with --data nothing of how that was read holds."""
    said, known = _data(data), _data(run)
    if said["--data"] != known["--data"]:
        return said
    return {flag: value for flag, value in said.items() if known.get(flag) != value}


def _typed(eps: float) -> str:
    """An eps as it is typed: as people write it, where that is the same number."""
    short = radius(eps)
    return short if math.isclose(Fraction(short), eps, rel_tol=1e-6) else repr(eps)


def _options(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Threat, attacks and samples."""
    data, threat = report["data"], report["threat"]
    return _given({"--norm": threat["norm"], "--eps": _typed(threat["eps"]) if threat["eps"] else None,
                   "--attacks": ",".join(report.get("attacks", [])) or "clean", "--samples": data["n"],
                   "--seed": data.get("seed")})


def _given(options: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(word for option, value in options.items() if value is not None
                 for word in (option, str(value)))


def words(*typed: str) -> str:
    """A command as it is typed into a shell, which reads ~ for the home folder."""
    return " ".join("~/" + shlex.quote(word[2:]) if word.startswith("~/") else shlex.quote(word)
                    for word in typed)
