"""A report and what lies with it in its folder: evaluations of the same model, the training log, times,
samples.

    RUN/report.json  RUN/metrics.jsonl    pwoa prune
    RUN/NAME/report.json, samples.npz     pwoa eval RUN --out RUN/NAME --save-samples RUN/NAME/samples.npz
    RUN/bench.json                        pwoa bench RUN --json > RUN/bench.json
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pwoa_cli.errors import InputError
from pwoa_cli.files import run_folder
from pwoa_cli.files.metrics import read_metrics
from pwoa_cli.files.plain import read_json
from pwoa_cli.reports import schema

Read = TypeVar("Read")
BENCH_FILE, SAMPLES_FILE = "bench.json", "samples.npz"
AGAIN = "Make it again: pwoa bench RUN --json > RUN/bench.json"
_SPREAD = {"median": schema.NUMBER, "low": schema.NUMBER, "high": schema.NUMBER}
BENCH = {"models": {"*": {"source": str, "file_bytes": (int, type(None))}}, "conclusion": str,
         "environment": {"device": str, "threads": int, "torch": str},
         "rows": [{"runtime": str, "batch": int, "milliseconds": {"*": _SPREAD}, "times_as_fast?": _SPREAD}]}


@dataclass(frozen=True)
class Dossier:
    """folder: where the report lies. evaluations: those of the same model, by the names of their folders.
    metrics: lines of the training log. bench: the object of `pwoa bench`. left: sentences on what is there
    and was not used."""

    folder: Path
    report: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    bench: Mapping[str, Any] | None = None
    left: list[str] = field(default_factory=list)

    @property
    def reports(self) -> dict[Path, Mapping[str, Any]]:
        """All reports by their folders: evaluations, then the report itself."""
        own = {self.folder: self.report}
        return {self.folder / name: one for name, one in self.evaluations.items()} | own


def opened(path: Path) -> Dossier:
    """What is at a run's or evaluation's folder, or its report.json. Raises: InputError where there is no
    report; what lies beside it and is damaged or of another model is left out, with a sentence."""
    folder = path if path.is_dir() else path.parent
    report, left = schema.read(path), list[str]()
    run, log, bench = "sparsity" in report, folder / run_folder.METRICS, folder / BENCH_FILE
    return Dossier(folder, report, _evaluations(folder, report, left) if run else {},
                   tried(lambda: read_metrics(log), left) or [] if log.exists() else [],
                   tried(lambda: _bench(bench, report), left) if run and bench.exists() else None, left)


def tried(read: Callable[[], Read], left: list[str]) -> Read | None:
    """What can be read; None where it cannot, and why among the sentences `left`."""
    try:
        return read()
    except InputError as error:
        left.append(f"{error.message} {error.hint}".rstrip())
        return None


def _evaluations(folder: Path, report: Mapping[str, Any], left: list[str]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*/report.json")):
        other = tried(partial(schema.read, path), left)
        if other is None:
            continue
        shas = {model["sha256"] for model in other.get("models", {}).values()}
        if "sparsity" in other or report["model"].get("file_sha256") not in shas:
            left.append(f"{path} is of another model.")
        else:
            found[path.parent.name] = other
    return found


def _bench(path: Path, report: Mapping[str, Any]) -> Mapping[str, Any]:
    made = schema.check(read_json(path, hint=AGAIN), BENCH, str(path))
    first: Mapping[str, Any] = next(iter(made["models"].values()), {})
    if first.get("file_bytes") != report["size"]["file_bytes"]:
        raise InputError(f"{path} is of another file: {first.get('file_bytes')} bytes, this model has "
                         f"{report['size']['file_bytes']}.",
                         hint=AGAIN)
    return made
