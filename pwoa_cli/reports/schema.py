"""What a run or an evaluation found, as one dictionary (report.json).

    report       build():      threat, data, teacher, student, drop, seconds, environment, notes
                               + model, sparsity, size, macs, recipe
    evaluation   build_eval(): the first row; for one model alone `results` in place of teacher, student, drop
    several      build_several(): the first row, with scores and drop of each model in `models` in their place

A score is {accuracy in 0..1, n, ci95: [low, high]} (Wilson); a drop is {points, ci95} in percentage points,
teacher minus pruned. `tables` makes Markdown of it. Nothing here needs torch.
"""
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pwoa_cli.errors import InputError
from pwoa_cli.files import run_folder
from pwoa_cli.files.plain import plain, read_json

SCHEMA_VERSION = 2
READS = (1, SCHEMA_VERSION)  # 1: a list of names under `unfinished`, which runs do not have
NUMBER, TEXT = (int, float), (str, type(None))
LARGEST = 10**18  # of any number: what people are shown is worked out in floats
ANY = object
# What `validate` checks and `json_schema` publishes: {field: type, [type of items] or table}; "*": any name;
# "name?": may be left out
SCORE = {"accuracy": NUMBER, "n": int, "ci95": [NUMBER], "attacked?": int, "broken?": int, "forwards?": int,
         "backwards?": int, "parts?": {"*": int}, "curve?": [[NUMBER]]}
SCORES = {"*": SCORE}
DROPS = {"*": {"points": NUMBER, "ci95": [NUMBER], "lost?": int, "won?": int, "p?": NUMBER}}
CHOICES = {"image_size?": [int], "class_map?": TEXT, "class_order?": TEXT, "labels_from?": int,
           "logits?": TEXT}
COMMON = {
    "schema_version": int,
    "threat": {"norm": str, "eps": NUMBER},
    "seconds": {"*": NUMBER},
    "environment": {"python": str, "torch": str, "pwoa": str, "platform": str, "cpu_count": int,
                    "device": str,
                    "threads": int, "seed": int},
    "data": {"name": str, "n": int, "seed?": int, "where?": str, "argument?": TEXT, "shape?": [int],
             "images?": str, "inferred?": [str], "settled_on?": str,
             "classes?": {"model": int, "in_test_images": int}, "class_numbers?": [int],
             "choices?": CHOICES},
    "notes": [str],
    "findings?": [{"check": str, "unreliable": bool, "text": str, "models": [str]}],
    "attacks?": [str], "headings?": [str],
    "gates?": [{"gate": str, "passed": bool, "text": str, "model?": str}],
}
# None: clean accuracy only
EVALUATION = COMMON | {"threat": {"norm": (str, type(None)), "eps": (int, float, type(None))},
                       "unfinished": {"*": {"*": {"n": int, "of": int}}},
                       "classes?": {"*": {"*": {"*": SCORE}}},
                       "curve?": [{"eps": NUMBER, "scores": SCORES, "findings?": COMMON["findings?"]}]}
MODEL = {"source": str, "sha256": str, "arch": str, "inferred?": [str]}
SINGLE = EVALUATION | {"model": {"source": str}, "models?": {"*": MODEL}}
ONE = SINGLE | {"results": SCORES}
TWO = SINGLE | {"teacher": SCORES, "student": SCORES, "drop": DROPS}
SEVERAL = EVALUATION | {
    "reference": (str, type(None)),  # None: there is no model that all are compared with
    "models": {"*": MODEL | {"scores": SCORES, "drop": DROPS, "sparsity?": NUMBER, "file_bytes?": int,
                             "macs?": int, "created?": str}},
}
SCHEMA = COMMON | {
    "created": str,
    "model": MODEL | {"num_classes": int, "arch_options?": {"*": ANY}, "file_sha256?": TEXT, "teacher?": str,
                      "teacher_sha256?": TEXT, "reading?": {"entry?": TEXT, "keep?": NUMBER}},
    "sparsity": {"target": NUMBER, "achieved": NUMBER, "nonzero": int, "total": int, "structure": str,
                 "layers": [{"name": str, "shape": [int], "nonzero": int, "total": int}]},
    "size": {"dense_bytes": int, "file_bytes": int, "limit_bytes": NUMBER, "target_bytes?": int},
    "macs": {"dense": int, "nonzero": int},
    "teacher": SCORES, "student": SCORES, "drop": DROPS,
    "recipe": {"name": str, "trained?": {"epochs": NUMBER, "steps": int, "hsic_share?": NUMBER}},
    "command?": {"*": ANY},
    # of `pwoa prune --max-loss`: how the sparsity was found, on training images held out
    "search?": {"max_loss": NUMBER, "attack": str, "held_out": int, "unreachable": [NUMBER],
                "stages": [{"sparsity": NUMBER, "steps": int, "epochs": NUMBER, "points": NUMBER,
                            "ci95": [NUMBER], "accepted": bool, "why": str}]},
}
# which of them a report is, by the first of these fields that it has
FORMS: dict[str, dict[str, Any]] = {"sparsity": SCHEMA, "reference": SEVERAL, "results": ONE, "teacher": TWO}
FRACTIONS = ("accuracy", "achieved", "target")  # 0 to 1, wherever they stand
PAIRS = ("ci95", "headings", "image_size")  # two each, wherever they stand

# --- building and checking ---------------------------------------------------------------

def build(*, created: datetime, model: Mapping[str, Any], norm: str, eps: float, target: float,
          structure: str,
          layers: Sequence[Mapping[str, Any]], size: Mapping[str, int], macs: Mapping[str, int],
          teacher: Mapping[str, Mapping], student: Mapping[str, Mapping], seconds: Mapping[str, float],
          environment: Mapping[str, Any], recipe: Mapping[str, Any], data: Mapping[str, Any],
          drop: Mapping[str, Mapping], notes: Sequence[str] = (),
          findings: Sequence[Mapping[str, Any]] = (), attacks: Sequence[str] = (),
          command: Mapping[str, Any] | None = None,
          search: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The report.json of a pruning run, checked by `validate`.

    Args: created: start of the run. model: source, sha256, arch, num_classes. target: wanted sparsity.
    layers: name, shape, nonzero, total of every pruned tensor; the sums are taken here. size: dense_bytes,
    file_bytes, limit_bytes, and target_bytes where it was asked for. macs: dense, nonzero. teacher, student:
    {attack: score}. seconds: {phase: s}. recipe: name and fields. data: name, where, n, seed. drop: paired
    differences by attack. findings: what may be wrong with the figures (check, unreliable, text, models);
    the sentences are among the notes. attacks: those asked for. command: what was typed. search: how the
    sparsity was found.
    """
    total, nonzero = sum(layer["total"] for layer in layers), sum(layer["nonzero"] for layer in layers)
    return validate(plain({
        "schema_version": SCHEMA_VERSION, "created": created.astimezone().isoformat(), "model": model,
        "threat": {"norm": norm, "eps": eps},
        "sparsity": {"target": target, "achieved": 1 - nonzero / max(1, total), "nonzero": nonzero,
                     "total": total,
                     "structure": structure, "layers": layers},
        "size": size, "macs": macs, "teacher": teacher, "student": student,
        "drop": drop, "seconds": seconds, "environment": environment,
        "recipe": recipe, "data": data, "notes": notes, "findings": findings, "attacks": list(attacks),
        "command": dict(command or {})} | ({} if search is None else {"search": search})))


def build_eval(*, norm: str | None, eps: float | None, results: Mapping[str, Mapping],
               seconds: Mapping[str, float],
               environment: Mapping[str, Any], data: Mapping[str, Any],
               teacher: Mapping[str, Mapping] | None = None,
               drop: Mapping[str, Mapping] | None = None, model: str = "", notes: Sequence[str] = (),
               findings: Sequence[Mapping[str, Any]] = (), headings: Sequence[str] = ("teacher", "pruned"),
               classes: Mapping[str, Mapping] | None = None, models: Mapping[str, Mapping] | None = None,
               attacks: Sequence[str] = (), curve: Sequence[Mapping[str, Any]] | None = None,
               unfinished: Mapping[str, Mapping[str, Mapping]] | None = None) -> dict[str, Any]:
    """The JSON object of `pwoa eval`: `results` of one model, or `teacher`, `student` and `drop` where a
    teacher and the drop against it are given.

    Args: results: {attack: score} of the model that was named. norm, eps: None where nothing was attacked.
    model: its path. headings: what people read above the two. classes: {model: {attack: {class: score}}}.
    models: {heading: {"source", "sha256", "arch", "inferred"}} of each. attacks: those asked for; unfinished:
    {heading: {attack that time did not suffice for: {"n": samples done, "of": samples asked for, ...}}}:
    figures that stand nowhere else. curve: points of --curve, {"eps", "scores": {heading: score}}. The
    others as in `build`.
    """
    if teacher is None:
        scores: dict[str, Any] = {"results": results}
    else:
        scores = {"teacher": teacher, "student": results, "drop": drop, "headings": list(headings)}
    more = {"models": models or {}, "attacks": list(attacks),
            "unfinished": unfinished or {}} | _given(classes=classes, curve=curve)
    evaluation = plain({"schema_version": SCHEMA_VERSION, "model": {"source": model},
                        "threat": {"norm": norm, "eps": eps},
                        **scores, "seconds": seconds, "environment": environment, "data": data,
                        "notes": notes,
                        "findings": findings, **more})
    return check(evaluation, ONE if teacher is None else TWO, "evaluation")


def build_several(*, models: Mapping[str, Mapping], reference: str | None, norm: str, eps: float,
                  seconds: Mapping[str, float], environment: Mapping[str, Any], data: Mapping[str, Any],
                  notes: Sequence[str] = (), findings: Sequence[Mapping[str, Any]] = (),
                  classes: Mapping[str, Mapping] | None = None, attacks: Sequence[str] = (),
                  curve: Sequence[Mapping[str, Any]] | None = None,
                  unfinished: Mapping[str, Mapping[str, Mapping]] | None = None) -> dict[str, Any]:
    """The JSON object of several models on the same samples; `several.view` shows one of them as `build_eval`
    would.

    Args: models: {heading: {source, sha256, arch, scores, drop, ...}}, the reference first; drop is {} of the
    reference, and of all without one. reference: the heading of the model that the others are compared with.
    The others as in `build_eval`.
    """
    made = plain({"schema_version": SCHEMA_VERSION, "threat": {"norm": norm, "eps": eps},
                  "reference": reference, "models": models, "seconds": seconds, "environment": environment,
                  "data": data, "notes": notes, "findings": findings, "attacks": list(attacks),
                  "unfinished": unfinished or {}} | _given(classes=classes, curve=curve))
    return check(made, SEVERAL, "evaluation")


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def validate(report: Mapping[str, Any], *, where: str = "report.json") -> dict[str, Any]:
    """The report itself if it has every field of the contract in its type and range; fields beyond it are
    welcome.

    Raises: InputError naming the first field that is missing or wrong.
    """
    version = report.get("schema_version", SCHEMA_VERSION)
    if version not in READS:
        known = " and ".join(map(str, READS))
        raise InputError(f"{where}: schema_version {version}, this pwoa reads {known}.",
                         hint="Use the pwoa that wrote it, or prune again.")
    return check(report, SCHEMA, where)


def read(path: Path) -> dict[str, Any]:
    """The report.json of a run or an evaluation, or of its folder, checked. Raises: InputError for a file
    that is none, and for a run that was stopped before there was one."""
    if path.is_dir():
        path, folder = path / "report.json", path
        if not path.exists() and run_folder.is_unfinished(folder):
            run_folder.check_finished(folder)
    report = read_json(path)
    if not isinstance(report, dict):
        raise InputError(f"{path} holds no report.", hint="Name a run's folder, or its report.json.")
    if "sparsity" in report:
        return validate(report, where=str(path))
    form = next((form for field, form in FORMS.items() if field in report), None)
    if form is None:
        raise InputError(f"{path} holds no report: it has no results.",
                         hint="Name a run's folder, or its report.json.")
    return check(report, form, str(path))


def check(report: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    if report.get("schema_version") == 1:  # its optional fields were others
        schema = _required(schema)
    for problem in _problems(report, schema, ""):
        raise InputError(f"{where}: {problem}.",
                         hint="Another tool may have written it; prune again to get a new one.")
    return dict(report)


def _required(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _required(inner) for name, inner in schema.items() if not name.endswith("?")}
    return [_required(schema[0])] if isinstance(schema, list) else schema


def _problems(value: Any, schema: Any, path: str) -> Iterator[str]:
    """Sentences on where `value` departs from a schema: {field: schema} ("*": any name, "name?": may be left
    out), [schema of items], type(s)."""
    kind = dict if isinstance(schema, dict) else list if isinstance(schema, list) else schema
    if not isinstance(value, kind) or isinstance(value, bool) and kind not in (bool, ANY):
        expected = ("number" if kind is NUMBER
                    else " or ".join(t.__name__ for t in (kind if isinstance(kind, tuple) else (kind,))))
        yield f"{path or 'the report'} is {value!r:.40}, expected {expected}"
    elif kind is list:
        for index, item in enumerate(value):
            yield from _problems(item, schema[0], f"{path}[{index}]")
    elif kind is dict and isinstance(value, dict):
        yield from _wrong_fields(value, schema, path)
    yield from _out_of_range(value, path)


def _wrong_fields(value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    known = dict.fromkeys(value, schema["*"]) if "*" in schema else schema
    for name, inner in known.items():
        field = name if "*" in schema else name.removesuffix("?")
        where = f"{path}.{field}" if path else field
        if field in value:
            yield from _problems(value[field], inner, where)
        elif field == name:
            yield f"{where} is missing"


def _out_of_range(value: Any, path: str) -> Iterator[str]:
    field = path.rpartition(".")[2]
    if field in FRACTIONS and isinstance(value, NUMBER) and not 0 <= value <= 1:
        yield f"{path} is {value}, expected 0 to 1"
    if isinstance(value, NUMBER) and not -LARGEST < value < LARGEST:
        yield f"{path} is {str(value)[:20]}, expected a number below {LARGEST:.0e}"
    if field in PAIRS and isinstance(value, list) and len(value) != 2:
        yield f"{path} has {len(value)} {'names' if field == 'headings' else 'numbers'}, expected 2"
