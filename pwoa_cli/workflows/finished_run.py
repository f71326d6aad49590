"""A finished run of `pwoa prune` as `pwoa eval` takes it: its model, teacher, data and threat, from its
report."""
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwoa_cli.checkpoints import hub
from pwoa_cli.checkpoints.model import Source
from pwoa_cli.checkpoints.shards import checkpoint_sha256
from pwoa_cli.data import datasets
from pwoa_cli.data.choices import Choices, of_report
from pwoa_cli.errors import InputError
from pwoa_cli.files import run_folder
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.files.plain import read_json
from pwoa_cli.progress import Say
from pwoa_cli.reports import schema

Threat = tuple[str | None, str | None]  # norm and eps as typed; None: nobody says


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder and its report, which is of the model in it."""

    folder: Path
    report: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Its pruned model's file."""
        return str(self.folder / "model.safetensors")

    @property
    def teacher(self) -> str:
        """Path or name of its teacher, where it is now: a run may have been moved with what is beside it."""
        model = self.report["model"]
        return run_folder.beside(model.get("teacher", model["source"]), self.folder)

    @property
    def teacher_sha256(self) -> str:
        """Of the teacher's file, as it was then."""
        return self.report["model"].get("teacher_sha256", self.report["model"]["sha256"])

    @property
    def is_source(self) -> bool:
        """Whether the teacher is the very file that was pruned, which is read as it was then: --arch, --mean,
        --std, --entry and --keep included."""
        return self.report["model"].get("teacher_sha256") == self.report["model"]["sha256"]

    @property
    def reading(self) -> Mapping[str, Any]:
        """Which of several models in the teacher's file it was, and other choices of its reader."""
        return self.report["model"].get("reading", {}) if self.is_source else {}

    @property
    def data(self) -> str:
        """--data of the run, where it is now. Raises: InputError if it is a file or folder that has gone."""
        name = self.report["data"].get("argument", self.report["data"]["name"])
        folder, last = os.path.split(name)
        if datasets.known_name(name):
            return name
        # a path, or DIR/NAME for the data set NAME that a folder holds
        for path, inside in ((name, ""), (folder, last))[:2 if datasets.known_name(last) else 1]:
            where = run_folder.beside(path, self.folder)
            if os.path.exists(os.path.expanduser(where)):
                return os.path.join(where, inside) if inside else where
        raise InputError(f"{name}, the data of {self.folder}, is not there any more.",
                         hint="Name it: --data FILE, a folder or a known data set.")

    @property
    def choices(self) -> Choices:
        """How its data was read."""
        return of_report(self.report["data"].get("choices", {}))

    def threat(self, norm: str | None, eps: str | None) -> Threat:
        """What of norm and eps the user does not say, from the report."""
        made = self.report["threat"]
        return claimed((made["norm"], made["eps"]), norm, eps)


def claimed(threat: tuple[str, float], norm: str | None, eps: str | None) -> Threat:
    """A threat that a file or report names, where the user does not say another."""
    norm = norm or threat[0]
    return norm, eps or (repr(threat[1]) if norm == threat[0] else None)


def read(folder: Path, *, say: Say) -> FinishedRun:
    """The run in a folder. Raises: InputError if it is not finished, or of two runs."""
    run_folder.check_finished(folder)
    report = schema.validate(read_json(folder / "report.json"), where=str(folder / "report.json"))
    say(f"run: {folder}")
    if report["model"].get("file_sha256") not in (None, file_sha256(folder / "model.safetensors")):
        raise InputError(f"{folder} is of two runs: its model.safetensors is not the one that its "
                         "report.json is of.",
                         hint=f"Measure the file by itself: {run_folder.measure_command(folder)}")
    return FinishedRun(folder, report)


def teacher_source(run: FinishedRun) -> Source | None:
    """The teacher of a run; None if it is not to be had (`no_teacher` says why). Raises: InputError if it is
    another file now."""
    path = run.teacher
    if no_teacher(run):
        return None
    if checkpoint_sha256(path) != run.teacher_sha256:
        raise InputError(f"{path} is not the file that the run was distilled from: its SHA-256 differs.",
                         hint="Name the teacher: --compare FILE")
    return Source(path, entry=run.reading.get("entry"), keep=run.reading.get("keep"))


def no_teacher(run: FinishedRun) -> tuple[str, str] | None:
    """(why a run's teacher is not taken, the option that names one); None where its file is there. A report
    may come from anybody: nothing is fetched from a hub because it says so."""
    path = run.teacher
    if hub.is_name(path):
        return f"is {path}, which may have to be downloaded", f"--compare {shlex.quote(path)} names it"
    return None if Path(path).is_file() else (f"{path} is not there any more", "--compare FILE names one")
