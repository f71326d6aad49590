"""What a run or an evaluation found, as one dictionary (report.json), as Markdown and as a terminal table.

    report       build():      threat, data, teacher, student, drop, seconds, environment, notes
                               + model, sparsity, size, macs, recipe
    evaluation   build_eval(): the first row, with `results` in place of teacher, student and drop for one model alone

A score is {accuracy in 0..1, n, ci95: [low, high]} (Wilson); a drop is {points, ci95} in percentage points, teacher
minus pruned. markdown() and table() take either dictionary and show what is in it. Nothing here needs torch but
environment().
"""
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pwoa_cli.errors import InputError
from pwoa_cli.run import plain

SCHEMA_VERSION = 1
NUMBER = (int, float)
SCORES = {"*": {"accuracy": NUMBER, "n": int, "ci95": [NUMBER]}}
DROPS = {"*": {"points": NUMBER, "ci95": [NUMBER]}}
COMMON = {
    "schema_version": int,
    "threat": {"norm": str, "eps": NUMBER},
    "seconds": {"*": NUMBER},
    "environment": {"python": str, "torch": str, "pwoa": str, "platform": str, "cpu_count": int, "device": str,
                    "threads": int, "seed": int},
    "data": {"name": str, "n": int},
    "notes": [str],
}
EVALUATION = COMMON | {"threat": {"norm": (str, type(None)), "eps": (int, float, type(None))}}  # None: clean accuracy only
SCHEMA = COMMON | {
    "created": str,
    "model": {"source": str, "sha256": str, "arch": str, "num_classes": int},
    "sparsity": {"target": NUMBER, "achieved": NUMBER, "nonzero": int, "total": int, "structure": str,
                 "layers": [{"name": str, "shape": [int], "nonzero": int, "total": int}]},
    "size": {"dense_bytes": int, "file_bytes": int, "limit_bytes": NUMBER},
    "macs": {"dense": int, "nonzero": int},
    "teacher": SCORES, "student": SCORES, "drop": DROPS,
    "recipe": {"name": str},
}


# --- the numbers, each kind in one form -----------------------------------------------------------------------------

def percent_of_weights(sparsity: float) -> str:
    """A sparsity in percent, two decimals or as many as keep it below 100: 0.9 -> 90, 0.9975 -> 99.75, 0.999996 -> 99.9996."""
    digits = next((d for d in range(2, 9) if f"{100 * sparsity:.{d}f}" != f"{100:.{d}f}"), 2)
    return f"{100 * sparsity:.{digits}f}".rstrip("0").rstrip(".")


def size(count: float) -> str:
    """A number of bytes in decimal units: 132040 -> 132.0 kB."""
    return f"{count:.0f} B" if count < 1000 else scaled(count, ("kB", "MB", "GB", "TB"))


def scaled(count: float, units: Sequence[str] = ("k", "M", "G", "T")) -> str:
    """A large number in thousands, millions and so on: 2293000 -> 2.3 M (below 1000: as it is)."""
    if count < 1000:
        return f"{count:.0f}"
    power = next((p for p in range(1, len(units)) if count < 999.95 * 1000**p), len(units))
    return f"{count / 1000**power:.1f} {units[power - 1]}"


def ratio(a: float, b: float) -> str:
    """a / b with three digits that count: 10.8, 1.01, 120; "-" for b = 0."""
    if not b:
        return "-"
    value = a / b
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """A time for people: 3.2s, 43s, 1m 44s, 12m, 2h 05m; "?" when it is not known."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 60}m" if whole < 3600 else f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def radius(eps: float) -> str:
    """An eps as people write it: 0.3, 8/255, 0.031."""
    short = f"{eps:.10g}"
    if len(short) > 5 and abs(eps * 255 - round(eps * 255)) < 1e-4 and round(eps * 255):
        return f"{round(eps * 255)}/255"
    return short if len(short) <= 6 else f"{eps:.4g}"


def with_interval(entry: Mapping[str, Any] | None) -> str:
    """A score in percent or a drop in points with its 95% interval: 93.2 [91.5, 94.6]; "-" for None."""
    if entry is None:
        return "-"
    scale, value = (1, entry["points"]) if "points" in entry else (100, entry["accuracy"])
    low, high = entry["ci95"]
    return f"{scale * value:z.1f} [{scale * low:z.1f}, {scale * high:z.1f}]"  # z: no -0.0


def visible(text: str) -> str:
    """Control characters and broken Unicode as escapes (line breaks and tabs stay): names come from files and users."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


# --- building and checking -------------------------------------------------------------------------------------------

def build(*, created: datetime, model: Mapping[str, Any], norm: str, eps: float, target: float, structure: str,
          layers: Sequence[Mapping[str, Any]], size: Mapping[str, int], macs: Mapping[str, int],
          teacher: Mapping[str, Mapping], student: Mapping[str, Mapping], seconds: Mapping[str, float],
          environment: Mapping[str, Any], recipe: Mapping[str, Any], data: Mapping[str, Any],
          drop: Mapping[str, Mapping] | None = None, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The report.json of a pruning run, checked by `validate`.

    Args: created: start of the run. model: source, sha256, arch, num_classes. target: wanted sparsity. layers: name,
    shape, nonzero, total of every pruned tensor; the sums are taken here. size: dense_bytes, file_bytes, limit_bytes.
    macs: dense, nonzero. teacher, student: {attack: score}. seconds: {phase: s}. recipe: name and fields. data: name,
    where, n, seed. drop: paired differences where they are known, else `drops(teacher, student)`.
    """
    total, nonzero = sum(layer["total"] for layer in layers), sum(layer["nonzero"] for layer in layers)
    return validate(plain({
        "schema_version": SCHEMA_VERSION, "created": created.astimezone().isoformat(), "model": model,
        "threat": {"norm": norm, "eps": eps},
        "sparsity": {"target": target, "achieved": 1 - nonzero / max(1, total), "nonzero": nonzero, "total": total,
                     "structure": structure, "layers": layers},
        "size": size, "macs": macs, "teacher": teacher, "student": student,
        "drop": drops(teacher, student) if drop is None else drop, "seconds": seconds, "environment": environment,
        "recipe": recipe, "data": data, "notes": notes}))


def build_eval(*, norm: str | None, eps: float | None, results: Mapping[str, Mapping], seconds: Mapping[str, float],
               environment: Mapping[str, Any], data: Mapping[str, Any], teacher: Mapping[str, Mapping] | None = None,
               drop: Mapping[str, Mapping] | None = None, model: str = "", notes: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object of `pwoa eval`: `results` of one model, or `teacher`, `student` and `drop` where a teacher is given.

    Args: results: {attack: score} of the model that was named. norm, eps: None where nothing was attacked. model: its
    path. The others as in `build`.
    """
    if teacher is None:
        scores = {"results": results}
    else:
        scores = {"teacher": teacher, "student": results, "drop": drops(teacher, results) if drop is None else drop}
    evaluation = plain({"schema_version": SCHEMA_VERSION, "model": {"source": model}, "threat": {"norm": norm, "eps": eps},
                        **scores, "seconds": seconds, "environment": environment, "data": data, "notes": notes})
    shown = {name: DROPS if name == "drop" else SCORES for name in scores}
    return _check(evaluation, EVALUATION | shown, "evaluation")


def drops(teacher: Mapping[str, Mapping], student: Mapping[str, Mapping]) -> dict[str, dict[str, Any]]:
    """Percentage points lost in every attack that both have, with Newcombe's (1998, method 10) 95% interval.

    d = t - s, low = d - sqrt((t - t_low)^2 + (s_high - s)^2), high = d + sqrt((t_high - t)^2 + (s - s_low)^2) from the
    Wilson intervals. It treats the two as independent: wider than a paired interval on the same samples.
    """
    lost = {}
    for name in (n for n in teacher if n in student):
        t, (t_low, t_high) = teacher[name]["accuracy"], teacher[name]["ci95"]
        s, (s_low, s_high) = student[name]["accuracy"], student[name]["ci95"]
        ci95 = [t - s - math.hypot(t - t_low, s_high - s), t - s + math.hypot(t_high - t, s - s_low)]
        lost[name] = in_points(t - s, ci95)
    return lost


def in_points(drop: float, ci95: Sequence[float]) -> dict[str, Any]:
    """The entry {points, ci95} in percentage points, of a drop and its interval as fractions in -1..1."""
    return {"points": 100 * drop, "ci95": [100 * bound for bound in ci95]}


def validate(report: Mapping[str, Any], *, where: str = "report.json") -> dict[str, Any]:
    """The report itself if it has every field of the contract in its type and range; fields beyond it are welcome.

    Raises: InputError naming the first field that is missing or wrong.
    """
    version = report.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise InputError(f"{where}: schema_version {version}, this pwoa reads {SCHEMA_VERSION}.",
                         hint="Use the pwoa that wrote it, or prune again.")
    return _check(report, SCHEMA, where)


def _check(report: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    for problem in _problems(report, schema, ""):
        raise InputError(f"{where}: {problem}.", hint="Another tool may have written it; prune again to get a new one.")
    return dict(report)


def _problems(value: Any, schema: Any, path: str) -> Iterator[str]:
    """Sentences on where `value` departs from a schema: {field: schema} ("*": any name), [schema of items], type(s)."""
    kind = dict if isinstance(schema, dict) else list if isinstance(schema, list) else schema
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = "number" if kind is NUMBER else " or ".join(t.__name__ for t in (kind if isinstance(kind, tuple) else (kind,)))
        yield f"{path or 'the report'} is {value!r:.40}, expected {expected}"
    elif kind is list:
        for index, item in enumerate(value):
            yield from _problems(item, schema[0], f"{path}[{index}]")
    elif kind is dict:
        for name in (value if "*" in schema else schema):
            inner = f"{path}.{name}" if path else name
            if name in value:
                yield from _problems(value[name], schema.get("*", schema.get(name)), inner)
            else:
                yield f"{inner} is missing"
    yield from _out_of_range(value, path)


def _out_of_range(value: Any, path: str) -> Iterator[str]:
    field = path.rpartition(".")[2]
    if field in ("accuracy", "achieved", "target") and isinstance(value, NUMBER) and not 0 <= value <= 1:
        yield f"{path} is {value}, expected 0 to 1"
    if field == "ci95" and isinstance(value, list) and len(value) != 2:
        yield f"{path} has {len(value)} numbers, expected 2"


def environment(*, device: str, seed: int) -> dict[str, Any]:
    """Versions and machine of this process, as far as results depend on them: no host name, no user, no paths."""
    from importlib import metadata

    import torch

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "unknown"

    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision"),
            "timm": version("timm"), "pwoa": version("pwoa-cli"), "platform": platform.platform(),
            "cpu_count": cpu_count(), "device": device, "device_name": _device_name(device),
            "threads": torch.get_num_threads(), "seed": seed}


def cpu_count() -> int:
    """CPUs that this process may use (in a container fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return platform.machine()


# --- showing ---------------------------------------------------------------------------------------------------------

def columns(report: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping]]:
    """Heading and scores of each column: accuracy of one model, or teacher, pruned and drop."""
    if "results" in report:
        return {"accuracy": report["results"]}
    return {"teacher": report["teacher"], "pruned": report["student"], "drop": report["drop"]}


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for clean and every attack: its name as given, then a cell "93.2 [91.5, 94.6]" for each of `columns`."""
    scores = columns(report)
    names = dict.fromkeys(name for column in scores.values() for name in column)
    return [(name, *(with_interval(column.get(name)) for column in scores.values())) for name in names]


def headline(report: Mapping[str, Any]) -> str:
    """What this is about, in a line."""
    path = report["model"]["source"]
    in_run = os.path.basename(path) == "model.safetensors"  # the same name in every run: the folder's says more
    source = os.path.basename(os.path.dirname(path) if in_run else path) or os.path.basename(path) or "Model"
    if "sparsity" in report:
        return f"{source} pruned to {percent_of_weights(report['sparsity']['achieved'])}% sparsity"
    return f"{source} under attack"


def summary(report: Mapping[str, Any]) -> str:
    """Clean and worst accuracy and the file's size, in a sentence."""
    pruned = list(columns(report).values())[:2]  # teacher and pruned, or one model
    worst = min((name for name in pruned[-1] if name != "clean"), key=lambda name: pruned[-1][name]["accuracy"], default=None)
    parts = [f"{name} {' -> '.join(_short(column.get(name)) for column in pruned)}%"
             for name in ("clean", worst) if name in pruned[-1]]
    if len(parts) == 2:
        parts[1] += " (lowest)"
    if "size" in report:
        parts.append(f"file {ratio(report['size']['dense_bytes'], report['size']['file_bytes'])} times smaller")
    return ", ".join(parts) + "."


def _short(score: Mapping[str, Any] | None) -> str:
    return with_interval(score).split()[0]


def caption(report: Mapping[str, Any]) -> str:
    """How to read the table: unit, interval, n, data set, threat."""
    scores = list(columns(report).values())[:2][-1]
    counts = Counter(score["n"] for score in scores.values())
    common = counts.most_common(1)[0][0] if counts else 0
    others = ", ".join(f"{name}: {score['n']}" for name, score in scores.items() if score["n"] != common)
    drop = "; drop in points" if "drop" in report else ""
    norm, eps = report["threat"]["norm"], report["threat"]["eps"]
    threat = "" if eps is None else f"; attacks within {norm} eps {radius(eps)}"
    return (f"Accuracy in % [Wilson 95% interval]{drop}. n = {common}{f' ({others})' if others else ''} "
            f"test samples of {report['data']['name']}{threat}.")


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it cost and what it gave, as (label, sentence)."""
    lines = _pruning_facts(report) if "sparsity" in report else []
    times = report["seconds"]
    if times:
        phases = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in times.items())
        lines.append(("time", phases + (f"; together {duration(sum(times.values()))}" if len(times) > 1 else "")))
    where = report["environment"]
    threads = f"{where['threads']} thread{'s' if where['threads'] != 1 else ''}"
    return [*lines, ("machine", f"{where['device']}, {threads}, torch {where['torch']}, seed {where['seed']}")]


def _pruning_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    sparsity, file, macs = report["sparsity"], report["size"], report["macs"]
    return [
        ("sparsity", f"{percent_of_weights(sparsity['target'])}% wanted, {percent_of_weights(sparsity['achieved'])}% reached "
                     f"({sparsity['structure']}, recipe {report['recipe']['name']})"),
        ("weights", f"{sparsity['nonzero']:,} of {sparsity['total']:,} nonzero, in {len(sparsity['layers'])} layers"),
        ("file", f"{size(file['file_bytes'])}: {ratio(file['dense_bytes'], file['file_bytes'])} times smaller than dense "
                 f"({size(file['dense_bytes'])}), {ratio(file['file_bytes'], file['limit_bytes'])} times the entropy limit "
                 f"({size(file['limit_bytes'])})"),
        ("MACs", f"{scaled(macs['dense'])} dense -> {scaled(macs['nonzero'])} with nonzero weights "
                 "(saves time only with sparse kernels)"),
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """A report or an evaluation as one Markdown document."""
    lines = [f"# {inline(headline(report))}", "", inline(summary(report)), ""]
    lines += markdown_table(["", *columns(report)], rows(report)) + ["", inline(caption(report)), ""]
    lines += [f"- {label}: {inline(text)}" for label, text in facts(report)]
    lines += [f"- note: {inline(note)}" for note in report["notes"]]
    if "sparsity" in report:
        layers = [(layer["name"], "x".join(map(str, layer["shape"])), f"{layer['nonzero']:,}", f"{layer['total']:,}",
                   percent_of_weights(1 - layer["nonzero"] / max(1, layer["total"]))) for layer in report["sparsity"]["layers"]]
        lines += ["", "## Layers", "", *markdown_table(["layer", "shape", "nonzero", "total", "sparsity %"], layers)]
    return "\n".join(lines) + "\n"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column holds names, the others figures."""
    rule = "|".join(["---"] + ["---:"] * (len(head) - 1))
    lines = ["| " + " | ".join(inline(cell) for cell in row) + " |" for row in [head, *body]]
    return [lines[0], f"|{rule}|", *lines[1:]]


def inline(text: str) -> str:
    """No line break and no cell border out of a name."""
    return " ".join(visible(text).split()).replace("|", "\\|")


def table(report: Mapping[str, Any]) -> Any:
    """A report or an evaluation for a terminal: a rich renderable that holds at 60 columns (layers are in report.md)."""
    from rich.console import Group
    from rich.table import Table

    scores = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    scores.add_column("")
    for heading in columns(report):
        scores.add_column(heading, justify="right", no_wrap=True)
    for name, *cells in rows(report):
        stacked = [cell.replace(" ", "\n", 1) if len(cells) > 1 else cell for cell in cells]  # interval below, to fit
        scores.add_row(text_cell(name), *map(text_cell, stacked))
    costs = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    costs.add_column(no_wrap=True)
    costs.add_column(overflow="fold")
    for label, sentence in [*facts(report), *(("note", note) for note in report["notes"])]:
        costs.add_row(label, text_cell(sentence))
    return Group(text_cell(headline(report), "bold"), text_cell(summary(report)), "", scores, "",
                 text_cell(caption(report), "dim"), "", costs)


def text_cell(content: str, style: str = "") -> Any:
    """Content as it is: rich must not read markup such as [x] in a file name."""
    from rich.text import Text

    return Text(visible(content), style=style, overflow="fold")
