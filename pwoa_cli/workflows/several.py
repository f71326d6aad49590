"""Several models for one table: each read as it would be alone, all for the same images and the same threat,
the teacher that their runs share once."""
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pwoa_cli.checkpoints import hub
from pwoa_cli.checkpoints.model import Loaded, Source
from pwoa_cli.data.choices import Choices
from pwoa_cli.errors import InputError
from pwoa_cli.files.plain import dumps
from pwoa_cli.progress import Say
from pwoa_cli.reports.numbers import radius
from pwoa_cli.reports.several import headings
from pwoa_cli.workflows import finished_run
from pwoa_cli.workflows.finished_run import FinishedRun, claimed
from pwoa_cli.workflows.setup import Subject, data_fields, open_subject, open_teacher

TEACHER, COMPARED = "teacher", "compared"  # headings of the reference
FIT = ("Measure them apart, or name what decides: --image-size N, --class-order text, --data with the "
       "classes of all.")
# fields of a report's data in which the images and classes of two models may differ
IMAGES = ("shape", "images", "classes", "class_numbers")


@dataclass(frozen=True)
class Asked:
    """What the user says of all models; None: to be found. norm, eps: as typed. compare: the model with which
    all are compared."""

    data: str | None
    choices: Choices
    norm: str | None
    eps: str | None
    compare: Source | None
    trust_pickle: bool
    device: torch.device
    attacked: bool = True


@dataclass(frozen=True)
class Several:
    """What is measured. loaded: by heading, the reference first if there is one. subject: the images and the
    threat of all. known: what the runs' reports say of their models. notes: what a reader must know."""

    loaded: Mapping[str, Loaded]
    subject: Subject
    reference: str | None
    known: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]


def open_several(sources: Sequence[Source], asked: Asked, *, say: Say) -> Several:
    """Find and check all models. Raises: InputError that names what the models do not agree on, and the
    option that decides."""
    for source in (*sources, *([asked.compare] if asked.compare else [])):
        if not hub.is_name(source.path) and not Path(source.path).exists():
            raise InputError(f"{source.path}: there is no such file.",
                             hint="Check the path of the checkpoint.")
    names = headings([source.path for source in sources], taken=(TEACHER, COMPARED))
    runs = {name: finished_run.read(Path(source.path), say=say)
            for name, source in zip(names, sources, strict=True) if Path(source.path).is_dir()}
    files = {name: replace(source, path=runs[name].model) if name in runs else source
             for name, source in zip(names, sources, strict=True)}
    subjects = _subjects(files, runs, _of_runs(runs, asked), say=say)
    subject = _with_threat(subjects, runs, asked, say=say)
    reference, first, notes = _reference(subjects, runs, asked, say=say)
    loaded = _without({name: one.loaded for name, one in subjects.items()},
                      first[reference] if reference else None, notes)
    for note in notes:
        say(note)
    known = {name: {"sparsity": run.report["sparsity"]["achieved"],
                    "file_bytes": run.report["size"]["file_bytes"]} for name, run in runs.items()}
    return Several(first | loaded, subject, reference, known, notes)


# --- data and threat -------------------------------------------------------------------------

def _of_runs(runs: Mapping[str, FinishedRun], asked: Asked) -> Asked:
    """With data and threat of the runs, where the user does not say. Raises: InputError where they differ."""
    if not runs:
        return asked
    first = next(iter(runs.values()))
    if not asked.data:
        said = {name: asked.choices.over(run.choices) for name, run in runs.items()}
        _agree({name: ((_place(run.data), _images(run.report["data"], said[name].said())),
                       run.data + _words(said[name].said())) for name, run in runs.items()},
               what="are of different data", hint=f"One for all of them: --data {shlex.quote(first.data)}")
        asked = replace(asked, data=first.data, choices=next(iter(said.values())))
    threats = {name: run.threat(asked.norm, asked.eps) for name, run in runs.items()}
    norm, eps = _one_threat(threats)
    return replace(asked, norm=norm or asked.norm, eps=eps or asked.eps)


def _place(data: str) -> str:
    """A data set's path by where it leads, as runs may have been started in different folders."""
    path = Path(data)
    return str(path.resolve()) if path.exists() else data


def _one_threat(said: Mapping[str, tuple[str | None, str | None]]) -> tuple[str | None, str | None]:
    """What all say who know a norm and its eps. Raises: InputError where they differ."""
    known = {name: (norm, eps) for name, (norm, eps) in said.items() if norm and eps}
    shown = {name: (norm, eps if "/" in eps else radius(float(eps))) for name, (norm, eps) in known.items()}
    norm, eps = next(iter(shown.values()), ("", ""))
    _agree({name: (pair, f"{pair[0]}, eps {pair[1]}") for name, pair in shown.items()},
           what="are for different threats", hint=f"One for all of them: --norm {norm} --eps {eps}")
    return next(iter(known.values()), (None, None))


def _agree(said: Mapping[str, tuple[Hashable, str]], *, what: str, hint: str) -> None:
    """Raises: InputError that names who says what, where the keys of {name: (key, its words)} differ."""
    groups: dict[Hashable, list[str]] = {}
    for name, (key, _) in said.items():
        groups.setdefault(key, []).append(name)
    if len(groups) > 1:
        told = "; ".join(f"{' and '.join(names)}: {said[names[0]][1]}" for names in groups.values())
        raise InputError(f"These models {what}: {told}.", hint=hint)


def _subjects(files: Mapping[str, Source], runs: Mapping[str, FinishedRun], asked: Asked, *,
              say: Say) -> dict[str, Subject]:
    """Each model as it is read alone, on the first one's data. Raises: InputError if one takes other images
    or classes."""
    found: dict[str, Subject] = {}
    for name, source in files.items():
        subject = open_subject(source, data=asked.data, choices=asked.choices, norm=asked.norm, eps=asked.eps,
                               device=asked.device, say=say, attacked=asked.attacked,
                               near_chance="possible" if name in runs else "of pruned")
        found[name] = subject
        first = next(iter(found.values()))
        _agree({who: (_images(data_fields(one, n=0, seed=0), _choices(one)), _shown(one))
                for who, one in found.items()},
               what="take different images or classes", hint=FIT)
        found[name] = replace(subject, dataset=first.dataset)  # the same, and kept in memory once
        asked = replace(asked, data=asked.data or subject.dataset.name, norm=subject.norm,
                        eps=None if subject.eps is None else repr(subject.eps))
    return found


def _with_threat(subjects: Mapping[str, Subject], runs: Mapping[str, FinishedRun], asked: Asked, *,
                 say: Say) -> Subject:
    """The first subject with the threat that files and runs name. Raises: InputError where they differ."""
    first = next(iter(subjects.values()))
    said = {name: runs[name].threat(asked.norm, asked.eps) if name in runs else
            claimed(one.loaded.threat, asked.norm, asked.eps) if one.loaded.threat else (None, None)
            for name, one in subjects.items()}
    norm, eps = _one_threat(said)
    if not norm or not eps:
        return first
    radius_said = first.threat[1] if asked.eps else float(eps)
    if (norm, radius_said) != (first.norm, first.eps):
        who = " and ".join(name for name, pair in said.items() if all(pair))
        say(f"threat model: {norm}, eps {radius(radius_said)} ({who}; --norm and --eps change it)")
    return replace(first, norm=norm, eps=radius_said)


def _images(data: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """What is the same where two models take the same images and classes; a size that was chosen is in their
    shape."""
    more = {key: value for key, value in choices.items() if key != "image_size"}
    return dumps({key: data.get(key) for key in IMAGES} | more)


def _choices(subject: Subject) -> dict[str, Any]:
    return subject.choices.said() | dict(subject.dataset.taken)


def _words(choices: Mapping[str, Any]) -> str:
    return "".join(f", {key} {value}" for key, value in choices.items())


def _shown(subject: Subject) -> str:
    dataset = subject.dataset
    return (f"{dataset.shape[0]} channel{'s' * (dataset.shape[0] != 1)} of {dataset.size_words()}, "
            f"{dataset.num_classes} classes{_words(_choices(subject))}")


# --- the reference, and networks that are there twice ------------------------------------------------

def _reference(subjects: Mapping[str, Subject], runs: Mapping[str, FinishedRun], asked: Asked, *,
               say: Say) -> tuple[str | None, dict[str, Loaded], list[str]]:
    """Its heading, it by its heading, and what is to be said of it: what the user names, else the teacher
    that all runs share."""
    first = next(iter(subjects.values()))
    if asked.compare is not None:
        return COMPARED, {COMPARED: open_teacher(asked.compare, first, device=asked.device, say=say,
                                                 flag="--compare")}, []
    told = "; ".join(f"{name}: {run.teacher}" for name, run in runs.items())
    more = "so there are no drops (--compare FILE names a model with which all are compared)."
    if not runs:
        return None, {}, [f"No model is the reference, {more}"]
    if not _is_shared(subjects, runs):
        return None, {}, [f"The runs have different teachers ({told}), {more}"]
    # the very file that was pruned is read as its run read it
    name = next((name for name, run in runs.items() if run.is_source), next(iter(runs)))
    path = _teacher_path(runs)
    if path is None:
        why, _ = finished_run.no_teacher(runs[name]) or ("is not there any more", "")
        return None, {}, [f"The runs' teacher {why}, {more}"]
    source = Source(path, trust_pickle=asked.trust_pickle)
    if runs[name].is_source:
        source = as_read(replace(source, entry=runs[name].reading.get("entry"),
                                 keep=runs[name].reading.get("keep")), subjects[name].loaded)
    teacher = open_teacher(source, subjects[name], device=asked.device, say=say, flag="--compare")
    files = [name for name in subjects if name not in runs]
    also = f", with which {' and '.join(files)} {'are' if len(files) > 1 else 'is'} compared too"
    return TEACHER, {TEACHER: teacher}, [f"teacher: {path}, of {' and '.join(runs)}{also * bool(files)}."]


def as_read(teacher: Source, like: Loaded) -> Source:
    """The file that a model was pruned from, to be read as it was then."""
    return replace(teacher, arch=like.arch, options=like.arch_options, mean=like.mean or (),
                   std=like.std or ())


def _is_shared(subjects: Mapping[str, Subject], runs: Mapping[str, FinishedRun]) -> bool:
    """Whether the runs have one teacher: the same file, read in the same way by those that pruned it."""
    readings = {repr((sorted(run.reading.items()), _reading(subjects[name].loaded)))
                for name, run in runs.items() if run.is_source}
    return len({run.teacher_sha256 for run in runs.values()}) == 1 and len(readings) <= 1


def _teacher_path(runs: Mapping[str, FinishedRun]) -> str | None:
    """Where one of the runs still finds the teacher that they share, None if its file is gone. Raises:
    InputError if only other files are there."""
    refused: InputError | None = None
    for run in runs.values():
        try:
            if source := finished_run.teacher_source(run):
                return source.path
        except InputError as error:
            refused = error
    if refused:
        raise refused
    return None


def _reading(loaded: Loaded) -> tuple[object, ...]:
    return loaded.arch, sorted(loaded.arch_options.items()), loaded.mean, loaded.std


def _network(loaded: Loaded) -> str:
    """What is the same of the same network: its file, and how that was read."""
    return repr((loaded.sha256, loaded.unwrapped, _reading(loaded)))


def _without(loaded: Mapping[str, Loaded], reference: Loaded | None, notes: list[str]) -> dict[str, Loaded]:
    """Without the models that are the reference itself, which stands in the table once; said, as is what is
    there twice."""
    same = [name for name, one in loaded.items() if reference and _network(one) == _network(reference)]
    if same and len(same) < len(loaded):
        notes.append(f"{' and '.join(same)} is the reference itself, and stands in the table once.")
        loaded = {name: one for name, one in loaded.items() if name not in same}
    groups: dict[str, list[str]] = {}
    for name, one in loaded.items():
        groups.setdefault(_network(one), []).append(name)
    notes += [f"{' and '.join(names)} are the same network: the same file by SHA-256, read in the same way."
              for names in groups.values() if len(names) > 1]
    return dict(loaded)
