"""The main path of `pwoa export RUN --card DIR`: read the runs, and the evaluations of them -> take what are
plain figures -> write model, card, reports and leaderboard entries as one folder, whole or not at all."""
import os
import pickle
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import sample_file
from pwoa_cli.files import run_folder
from pwoa_cli.files.folders import whole_folder
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.files.plain import dumps
from pwoa_cli.progress import Say
from pwoa_cli.reports import card, collection, leaderboards, schema, several, tables
from pwoa_cli.reports.leaderboards import Measurement, Model, Told
from pwoa_cli.workflows import finished_run
from pwoa_cli.workflows.finished_run import FinishedRun

SUMS = "SHA256SUMS"
ALWAYS = {card.README, card.MODEL, SUMS, "report.json", "robustbench.json"}  # in every card
OUT_CARD = "Name a new folder: --card DIR"
INSIDE = "eval"  # folders in a run's where its evaluations are looked for: eval, eval-2, ...


@dataclass(frozen=True)
class Request:
    """What the user asked for. paths: runs, the first of which is the card's, and evaluations of them. out:
    the card's folder. told: what no report says."""

    paths: Sequence[str]
    out: Path
    told: Told = field(default_factory=Told)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's folder, its report, and what that is called in the card."""

    folder: Path
    report: Mapping[str, Any]
    label: str


@dataclass(frozen=True)
class Job:
    """A request with everything read and checked."""

    request: Request
    models: Sequence[Model]
    evaluations: Sequence[Evaluation]


# --- setting up -----------------------------------------------------------------------------------

def prepare(request: Request, *, say: Say) -> Job:
    """Read and check everything before anything is written. Raises: InputError."""
    _check_out(request.out)
    folders = list({folder.resolve(): folder for folder in map(_folder, request.paths)}.values())
    runs = [finished_run.read(folder, say=say) for folder in folders if _is_run(folder)]
    if not runs:
        raise InputError(f"{request.paths[0]} is no run: a card tells how a model was made, as the report of "
                         "a run says it.", hint="Name a run's folder, before evaluations of it.")
    _check_together(runs)
    evaluations = _evaluations(runs, [folder for folder in folders if not _is_run(folder)], say=say)
    names = several.headings([str(run.folder) for run in runs])
    models = [_model(name, run, evaluations, say=say) for name, run in zip(names, runs, strict=True)]
    check_files(models)
    say("the reports in the card name folders of this machine: look at them before you publish it")
    return Job(request, models, evaluations)


def _folder(path: str) -> Path:
    """The folder that a path names: of a run or an evaluation, or the one of its report or model."""
    found = Path(path)
    return found.parent if found.name in ("report.json", card.MODEL) and found.is_file() else found


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's, finished or not: an evaluation's holds no model."""
    return (folder / run_folder.CONFIG).exists() or (folder / card.MODEL).exists()


def _check_out(out: Path) -> None:
    """Raises: InputError unless a card can be put there: nothing, an empty folder, or a card as written."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"card folder {out} is a file.", hint=OUT_CARD)
    if Path.cwd().is_relative_to(out.resolve()):
        raise InputError(f"card folder {out} is, or holds, the folder that you are in.",
                         hint=OUT_CARD)
    if any(out.iterdir()) and not is_card(out):
        raise InputError(f"card folder {out} holds something else, or a card that was changed since; nothing "
                         "in it was touched.", hint=OUT_CARD)


def is_card(folder: Path) -> bool:
    """Whether a folder is a card just as it was written: its SHA256SUMS are of all that is in it."""
    if not all((folder / name).is_file() for name in ALWAYS):
        return False
    if not all(path.is_file() or path.is_dir() for path in folder.rglob("*")):
        return False  # a pipe would never end
    return (folder / SUMS).read_bytes() == sums(folder).encode("utf-8", "surrogateescape")


def sums(folder: Path) -> str:
    """What `sha256sum` says of the files in a folder, but for SHA256SUMS, sorted by name."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                   if not path.is_dir() and path != folder / SUMS)
    return "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)


def _check_together(runs: Sequence[FinishedRun]) -> None:
    """Raises: InputError if several runs are not of one teacher, threat, data and structure."""
    def what(run: FinishedRun) -> dict[str, Any]:
        kind = {"teacher": run.teacher_sha256, "structure": run.report["sparsity"]["structure"]}
        return kind | _conditions(run.report)

    first = what(runs[0])
    for run in runs[1:]:
        if other := [key for key, value in what(run).items() if value != first.get(key)]:
            raise InputError(f"{run.folder} differs from {runs[0].folder} in {', '.join(other)}: one card is "
                             "of one teacher, pruned to several sparsities.",
                             hint="Give each a card of its own: pwoa export RUN --card DIR")


def check_files(models: Sequence[Model]) -> None:
    """Raises: InputError if two models' distances would be one file: runs of the same sparsity."""
    owners: dict[str, str] = {}
    for model in models:
        file = leaderboards.distances_file(model)
        if owners.setdefault(file, model.name) != model.name:
            raise InputError(f"{owners[file]} and {model.name} would both be {Path(file).name} of the "
                             "benchmark.", hint="Name one run of each sparsity.")


def _conditions(report: Mapping[str, Any]) -> dict[str, Any]:
    """What figures of one card have in common: threat and data, whatever the samples."""
    return {key: value for key, value in collection.conditions(report).items() if key not in ("n", "seed")}


def _evaluations(runs: Sequence[FinishedRun], named: Sequence[Path], *, say: Say) -> list[Evaluation]:
    """Those that were named and those in the folders of the runs, which measured one of them.

    Raises: InputError for one that was named and did not.
    """
    inside = [folder for run in runs for folder in sorted(run.folder.glob(f"{INSIDE}*"))
              if (folder / "report.json").is_file()]
    found: list[Evaluation] = []
    for folder in {path.resolve(): path for path in [*inside, *named]}.values():
        one = Evaluation(folder, schema.read(folder / "report.json"), f"evaluations/{len(found) + 1}.json")
        reasons = [_not_of(run, one.report) for run in runs]
        if not all(reasons):
            found.append(one)
            say(f"evaluation: {folder}")
        elif folder in named:
            raise InputError(f"{folder} cannot be in the card: {'; '.join(dict.fromkeys(reasons))}.",
                             hint="Leave it away, or name the run that it measured.")
        else:
            say(f"warning: {folder} is left out: {'; '.join(dict.fromkeys(reasons))}")
    return found


def _not_of(run: FinishedRun, report: Mapping[str, Any]) -> str:
    """Why an evaluation's figures are not this run's; "" where they are."""
    if _who(run, report) is None:
        return "it is of another model"
    mine, other = _conditions(run.report), _conditions(report)
    differs = [key for key in mine | other if mine.get(key) != other.get(key)]
    return f"it differs from the run in {', '.join(differs)}" if differs else ""


def _who(run: FinishedRun, report: Mapping[str, Any]) -> str | None:
    """What the run's model is called in an evaluation's report; None if it is not there."""
    sha256 = run.report["model"].get("file_sha256")
    return next((who for who, model in report.get("models", {}).items()
                 if sha256 is not None and model["sha256"] == sha256), None)


# --- what was measured ----------------------------------------------------------------------------

def _model(name: str, run: FinishedRun, evaluations: Sequence[Evaluation], *, say: Say) -> Model:
    """A run with the figures of its own report and of evaluations."""
    sources = {"report.json": (run.report, list(tables.scores(run.report))[-1])}
    sources |= {one.label: (one.report, str(_who(run, one.report))) for one in evaluations
                if not _not_of(run, one.report)}
    made = Model(
        name, str(run.folder), run.report,
        [Measurement(label, who, _scores(report, who), report["data"].get("seed"))
         for label, (report, who) in sources.items()],
        doubts=_said(sources, unreliable=True), caveats=_said(sources, unreliable=False),
        unfinished=[f"{label}: {attack} is unfinished, {part['n']} of {part['of']} samples."
                    for label, (report, who) in sources.items()
                    for attack, part in report.get("unfinished", {}).get(who, {}).items()])
    return _with_distances(made, {one.label: one.folder for one in evaluations}, say=say)


def _scores(report: Mapping[str, Any], who: str) -> Mapping[str, Any]:
    """The finished scores of a model, by what it is called in the report."""
    columns = tables.scores(report)
    named = report.get("models") or columns
    return dict(zip(named, columns.values(), strict=False)).get(who, {})


def _said(sources: Mapping[str, tuple[Mapping[str, Any], str]], *, unreliable: bool) -> list[str]:
    """What reports say of a model, each sentence once: why figures must not be believed, or the rest."""
    return list(dict.fromkeys(
        finding["text"] for report, who in sources.values() for finding in report.get("findings", [])
        if finding["unreliable"] == unreliable and (not finding["models"] or who in finding["models"])))


def _with_distances(model: Model, folders: Mapping[str, Path], *, say: Say) -> Model:
    """With the distances of its minimum-norm attack, if the evaluation that measured it kept them."""
    name = model.fmn
    source = model.measured(name) if name else None
    if name is None or source is None or source.where not in folders:
        return model
    path = folders[source.where] / "samples.npz"
    if not path.is_file():
        return model
    found = distances(sample_file.read(path), source.who, name, eps=model.report["threat"]["eps"],
                      score=source.scores[name])
    if found is None:
        say(f"warning: {path} is not of the report beside it: no distances are taken")
    return replace(model, distances=found)


def distances(arrays: Mapping[str, np.ndarray], who: str, attack: str, *, eps: float,
              score: Mapping[str, Any]) -> list[float] | None:
    """Smallest perturbations of the samples: 0 where the model is wrong without one, infinite where none was
    found; what counts as broken at eps lies within it.

    Returns: (n,) floats, of which the share above eps is the accuracy of `score`; None where it is not.
    """
    try:
        clean, correct = (arrays[f"{who}/correct/{name}"].astype(float) > 0 for name in ("clean", attack))
        size = arrays[f"{who}/distance/{attack}"].astype(np.float64)
        size = np.where(np.isnan(size), np.inf, size)
        size = np.where(clean, np.where(correct, size, np.minimum(size, eps)), 0.0)
    except (KeyError, ValueError, TypeError):  # arrays of other names, shapes or types
        return None
    if size.shape != (score["n"],) or not len(size):
        return None
    return size.tolist() if abs(float((size > eps).mean()) - score["accuracy"]) < 1e-9 else None


# --- writing --------------------------------------------------------------------------------------

def execute(job: Job) -> dict[str, Any]:
    """Write the card. Returns: the JSON object of `pwoa export --card`."""
    model, told = job.models[0], job.request.told
    notes = leaderboards.notes(job.models, told)
    with whole_folder(job.request.out, hint=OUT_CARD) as folder:
        _copy(job, folder)
        copied, sha256 = folder / card.MODEL, file_sha256(folder / card.MODEL)
        if sha256 != model.report["model"].get("file_sha256", sha256):
            raise InputError(f"{model.folder} changed while it was read.", hint="Type the command again.")
        _put(folder / card.README, card.readme(model, told, sha256=sha256, notes=notes,
                                               size_bytes=copied.stat().st_size))
        _put(folder / "robustbench.json", dumps(leaderboards.robustbench(model, told), indent=2) + "\n")
        _put(folder / "pruning-benchmark.json", dumps(leaderboards.benchmark(job.models), indent=2) + "\n")
        _put(folder / SUMS, sums(folder))
        files = {name: digest for digest, name in map(str.split, sums(folder).splitlines())}
        _check_out(job.request.out)  # what came meanwhile is not replaced either
    figures = {name: {"accuracy": score["accuracy"], "n": score["n"], "of": source.where}
               for name, (score, source) in model.figures().items()}
    return {"card": str(job.request.out), "model_sha256": sha256, "figures": figures,
            "notes": notes, "next": commands(job.models), "files": files}


def _copy(job: Job, folder: Path) -> None:
    """The model, its reports, those of evaluations, and distances as the benchmark reads them."""
    for name in (card.MODEL, "report.json", "report.md"):
        if (source := Path(job.models[0].folder) / name).is_file():
            shutil.copyfile(source, folder / name)
    for one in job.evaluations:
        (folder / one.label).parent.mkdir(exist_ok=True)
        shutil.copyfile(one.folder / "report.json", folder / one.label)
    for model in job.models:
        if model.distances is not None:
            path = folder / leaderboards.distances_file(model)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(pickle.dumps(list(model.distances), protocol=2))


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


# --- saying ---------------------------------------------------------------------------------------

def commands(models: Sequence[Model]) -> list[str]:
    """What is typed to measure what the entries lack; then the card is written again."""
    found = []
    for model in models:
        if (left := leaderboards.lacks(model)) and not model.doubts:
            data = model.report["data"]
            count = leaderboards.ROBUSTBENCH.get(data["name"], data["n"])
            arch = model.report["model"]["arch"]
            own = f"--arch {shlex.quote(arch)} " if ".py" in arch else ""
            found.append(f"pwoa eval {shlex.quote(model.folder)} {own}--attacks {','.join(left)} --samples "
                         f"{count} --out {shlex.quote(str(_free(Path(model.folder))))}")
    return found


def _free(run: Path) -> Path:
    """A folder in the run's for another evaluation."""
    names = (run / (INSIDE if number == 1 else f"{INSIDE}-{number}") for number in range(1, 10_000))
    return next(path for path in names if not os.path.lexists(path))


def facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was written, as (label, sentence)."""
    figures = [f"{name} {100 * score['accuracy']:.1f}% of {score['n']}"
               for name, score in result["figures"].items()]
    return [("card", result["card"]), ("model", f"{card.MODEL}, SHA-256 {result['model_sha256']}"),
            ("figures", ", ".join(figures) or "none"),
            ("files", ", ".join(result["files"])),
            *(("note", sentence) for sentence in result["notes"])]
