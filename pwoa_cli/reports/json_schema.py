"""The contract of report.json as a JSON Schema (draft 2020-12), made of the tables that `schema.validate`
checks; `pwoa report --schema` prints it, docs/report.schema.json is it."""
from typing import Any

from pwoa_cli.reports import schema

TITLES = {"sparsity": "a run of `pwoa prune`", "reference": "`pwoa eval` of several models",
          "results": "`pwoa eval` of one model", "teacher": "`pwoa eval` of a model beside another"}
WORDS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
# tables that stand in several places, by the names under which they stand once
SHARED: dict[str, Any] = {"scores": schema.SCORES, "drops": schema.DROPS} | {
    name: schema.COMMON[name] for name in ("data", "environment", "findings?", "gates?")}
DEFINED = "$defs"

# By field, or by "field above.field" where one name means two things
DESCRIPTIONS = {
    "schema_version": "2; readers refuse a number that they do not know",
    "created": "start of the run, ISO 8601 with the zone",
    "threat": "what the attacks may do",
    "norm": "linf, l2 or l1; null where nothing was attacked",
    "eps": "radius in that norm, for inputs in [0,1]; null where nothing was attacked",
    "seconds": "wall clock seconds, by phase or attack (\"HEADING ATTACK\" where there are several models)",
    "environment": "what it was measured with",
    "python": "version", "torch": "version", "pwoa": "version", "platform": "operating system",
    "cpu_count": "processors of the machine", "device": "cpu, cuda, ... as resolved",
    "threads": "of torch on the CPU", "environment.seed": "of everything random",
    "data": "the test samples, and how they were read",
    "data.name": "data set", "data.n": "test samples, stratified by class", "data.seed": "of their choice",
    "where": "path, ~ for the home folder", "argument": "--data, as typed or inferred",
    "data.shape": "channels, height, width as the model takes them, pixels",
    "images": "their size and framing in words", "inferred": "what was inferred, sentences",
    "settled_on": "the images on which the reading of the model was settled",
    "data.classes": "numbers of classes", "classes.model": "of the model",
    "in_test_images": "that the test images have", "class_numbers": "those of --logits data",
    "search": "of --max-loss: how the sparsity was found, on training images held out",
    "max_loss": "points of worst-case accuracy that may be lost", "attack": "whose accuracy was judged",
    "held_out": "training images that judged", "unreachable": "sparsities that the structure does not allow",
    "stages": "sparsities in the order in which they were tried",
    "stages.sparsity": "fraction of zeros", "stages.steps": "of its training",
    "stages.epochs": "of its training", "stages.why": "of the verdict", "stages.accepted": "the verdict",
    "stages.points": "lost in percentage points, teacher minus pruned",
    "choices": "what the user, or labelled images, decided of the reading",
    "image_size": "height and width to which pictures are scaled", "class_map": "--class-map",
    "class_order": "--class-order", "labels_from": "--labels-from", "logits": "--logits",
    "entry": "--entry", "keep": "--keep",
    "notes": "all that a reader of the figures must know, sentences",
    "findings": "what may be wrong with the figures",
    "check": "its id", "unreliable": "whether the figures must not be believed",
    "findings.text": "a sentence",
    "findings.models": "headings of the models that it is of; empty: of the one model",
    "attacks": "those asked for, by their resolved names",
    "gates": "verdicts on --min and --max-drop", "gate": "as typed", "passed": "whether the limit is kept",
    "gates.text": "a sentence with the figure",
    "gates.model": "heading of the model, where there are several",
    "unfinished": "by heading and attack: what time did not suffice for; no figure of the model",
    "unfinished.n": "samples done", "of": "samples asked for",
    "classes": "scores by heading, attack and class number",
    "model": "the one that was pruned or measured", "models": "by heading, in the order of the columns",
    "source": "path or name as typed", "sha256": "of the file, hexadecimal", "arch": "architecture by name",
    "arch_options": "its parameters", "num_classes": "classes",
    "file_sha256": "of model.safetensors of this run", "model.teacher": "path or name of the teacher's file",
    "teacher_sha256": "of that file", "reading": "which of several models in the file it was, and so on",
    "headings": "what people read above teacher and student",
    "results": "by attack: clean, the attacks, \"worst case\" over all",
    "teacher": "scores of what the model is compared with, by attack",
    "student": "scores of the model that was pruned or named, by attack",
    "scores": "by attack: clean, the attacks, \"worst case\" over all",
    "drop": "by attack: what the model loses against the other; empty where there is none",
    "reference": "heading of the model against which drops are; null: each against its own, or none",
    "accuracy": "fraction that stays right, 0 to 1", "n": "samples", "ci95": "95% interval, low and high",
    "attacked": "samples given to the attack", "broken": "of these", "forwards": "samples through the model",
    "backwards": "samples back through it", "parts": "samples broken, by component",
    "curve": "[radius, accuracy] at ten radii",
    ".curve": "of --curve: accuracy over eps, 0 (clean) first, the threat's own among them",
    "curve.findings": "what makes the point unreliable; of the threat's own eps they are the report's",
    "curve.eps": "radius in the threat's norm",
    "curve.scores": "over all attacks together, by heading; none of a model that is not finished there",
    "points": "percentage points of accuracy lost", "lost": "samples right only before",
    "won": "samples right only after", "p": "McNemar's exact test, 0 to 1",
    "models.sparsity": "fraction of weights that are zero, 0 to 1",
    "file_bytes": "bytes of the pruned file", "models.macs": "multiplications with nonzero weights, an image",
    "sparsity": "zeros among the weights that count", "target": "fraction of zeros wanted, 0 to 1",
    "achieved": "fraction of zeros reached, 0 to 1", "nonzero": "weights that are not zero",
    "total": "weights", "structure": "which weights go together", "layers": "each pruned tensor",
    "layers.name": "of the tensor", "layers.shape": "of the tensor",
    "size": "on disk", "dense_bytes": "bytes of the weights stored densely",
    "limit_bytes": "bytes of the entropy limit", "target_bytes": "bytes that the file was to have at most",
    "macs": "multiplications for one image", "dense": "with all weights",
    "macs.nonzero": "with nonzero weights",
    "recipe": "the recipe's fields, all of them", "recipe.name": "default, paper, or a file",
    "trained": "what became of them", "trained.epochs": "of all phases", "trained.steps": "of all phases",
    "hsic_share": "norm of the HSIC terms' gradient over that of the whole loss's, median over training",
    "command": "what was typed, by option",
}


def json_schema() -> dict[str, Any]:
    """The schema as a plain dictionary; fields beyond it are welcome."""
    *forms, (_, last) = schema.FORMS.items()
    rule = _titled("teacher", last)
    for field, form in reversed(forms):
        rule = {"if": {"required": [field]}, "then": _titled(field, form), "else": rule}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "report.json of pwoa",
            "description": f"schema_version {schema.SCHEMA_VERSION}. Fields beyond it are welcome.",
            "type": "object", **rule, DEFINED: {name.rstrip("?"): _of(table, (DEFINED, name.rstrip("?")))
                                              for name, table in SHARED.items()}}


def _titled(field: str, form: dict[str, Any]) -> dict[str, Any]:
    made = _of(form, ())
    made["properties"]["schema_version"]["const"] = schema.SCHEMA_VERSION
    return {"title": TITLES[field], **made}


def _of(table: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """One table, list or type as JSON Schema, with what its field means."""
    own_definition = path[:1] == (DEFINED,) and len(path) == 2
    about = {} if not path or path[-1] == "*" or own_definition else {"description": describe(path)}
    name = next((name.rstrip("?") for name, shared in SHARED.items() if shared is table), None)
    if name and not own_definition:
        return about | {"$ref": f"#/{DEFINED}/{name}"}
    if isinstance(table, dict):
        return about | _object(table, path)
    if isinstance(table, list):
        ends = {"minItems": 2, "maxItems": 2} if path[-1] in schema.PAIRS else {}
        return about | {"type": "array", "items": _of(table[0], (*path, "*"))} | ends
    ends = {"minimum": 0, "maximum": 1} if path[-1] in schema.FRACTIONS else {}
    return about | _type(table) | ends


def _object(table: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    if "*" in table:
        return {"type": "object", "additionalProperties": _of(table["*"], (*path, "*"))}
    fields = {name.removesuffix("?"): _of(inner, (*path, name.removesuffix("?")))
              for name, inner in table.items()}
    return {"type": "object", "required": [name for name in table if not name.endswith("?")],
            "properties": fields}


def _type(kind: Any) -> dict[str, Any]:
    if kind is schema.ANY:
        return {}
    words = list(dict.fromkeys(WORDS[one] for one in (kind if isinstance(kind, tuple) else (kind,))))
    if "number" in words and "integer" in words:
        words.remove("integer")  # each is a number
    return {"type": words if len(words) > 1 else words[0]}


def describe(path: tuple[str, ...]) -> str:
    """What the last field of a path means. Raises: KeyError for one without a description."""
    *above, field = [name for name in path if name != "*"]
    return DESCRIPTIONS.get(f"{above[-1] if above else ''}.{field}") or DESCRIPTIONS[field]
