"""The runs in a folder, a line each: model, sparsity, clean and worst case, size, date, state."""
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.words import WORST
from pwoa_cli.files import locks, run_folder
from pwoa_cli.files.metrics import read_metrics
from pwoa_cli.reports import numbers, schema, tables, terminal

HEAD = ("run", "model", "zeros", "clean", "worst case", "over", "file",
        "date", "state")


def listed(root: Path) -> list[dict[str, Any]]:
    """Every run under a folder, oldest first; of one that is not finished only folder and state are known.
    Folders of evaluations, which have a report alone, are none.

    Raises: InputError if the folder is none.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder of runs.", hint="Make one: pwoa prune model.pt --sparsity 0.9")
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
               and ((path / run_folder.CONFIG).exists() or not run_folder.lacking(path))]
    return sorted(map(_entry, folders), key=lambda entry: (entry["created"] or "", entry["folder"]))


def _entry(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"folder": str(folder), "model": None, "sparsity": None, "clean": None,
                             "worst_case": None, "attacks": None, "norm": None, "eps": None, "data": None,
                             "n": None, "file_bytes": None, "created": None}
    if run_folder.lacking(folder):
        return found | {"state": _share_done(folder)}
    try:
        report = schema.validate(schema.read(folder / "report.json"))
    except InputError as error:
        return found | {"state": f"broken: {error.message}"}
    doubt = any(f["unreliable"] for f in report.get("findings", []))
    state = "near chance" if tables.only_guesses(report) else "unreliable" if doubt else "finished"
    return {"folder": str(folder), "model": report["model"]["source"],
            "sparsity": report["sparsity"]["achieved"], "clean": _of(report, "clean"),
            "worst_case": _of(report, WORST),
            "attacks": [name for name in report["student"] if name not in ("clean", WORST)],
            **report["threat"], "data": report["data"]["name"], "n": report["data"]["n"],
            "file_bytes": report["size"]["file_bytes"], "created": report["created"], "state": state}


def _share_done(folder: Path) -> str:
    """"running, 43%" of a run that a process is at; "unfinished, 43%" of one that can go on; "unfinished" of
    one that would begin again. The share is that of the training, "trained" stands for all of it; a search,
    whose stages nobody can count before, is at "stage 3"."""
    running = bool(locks.owner(folder / run_folder.LOCK))
    if not running and not (folder / run_folder.STATE).exists():
        return "unfinished"
    config, last = run_folder.config(folder), {}
    with suppress(InputError):
        last = next(iter(read_metrics(folder / run_folder.METRICS)[-1:]), {})
    steps, done = config.get("steps"), last.get("step", 0)
    share = f"{100 * done // steps}%" if isinstance(steps, int) and 0 <= done < steps else "trained"
    if "max_loss" in config:
        share = f"stage {last.get('stage', 1)}"
    return f"{'running' if running else 'unfinished'}, {share}"


def _of(report: Mapping[str, Any], name: str) -> dict[str, float] | None:
    """Accuracy of teacher and pruned; of the only attack where there is no other worst case."""
    scores = report["student"]
    if name == WORST and name not in scores:
        name = next((attack for attack in scores if attack != "clean"), name)
    both = [report[who].get(name) for who in ("teacher", "student")]
    return None if None in both else {"teacher": both[0]["accuracy"], "pruned": both[1]["accuracy"]}


def rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Cells of HEAD."""
    def arrow(pair: Mapping[str, float] | None) -> str:
        return f"{100 * pair['teacher']:.1f} -> {100 * pair['pruned']:.1f}" if pair else "-"

    return [(Path(e["folder"]).name, Path(e["model"]).name if e["model"] else "-",
             f"{numbers.percent_of_weights(e['sparsity'])}%" if e["sparsity"] is not None else "-",
             arrow(e["clean"]), arrow(e["worst_case"]), _over(e),
             numbers.size(e["file_bytes"]) if e["file_bytes"] is not None else "-",
             (e["created"] or "-")[:16].replace("T", " "), e["state"]) for e in entries]


def _over(entry: Mapping[str, Any]) -> str:
    """What a run's figures are of; worst cases over different attacks are no comparison."""
    if not entry["attacks"]:
        return "-"
    return (f"{', '.join(entry['attacks'])} at {entry['norm']} {numbers.radius(entry['eps'])}, "
            f"{entry['n']} of {entry['data']}")


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """A table, or the sentence that there is none."""
    return "\n".join(tables.markdown_table(HEAD, rows(entries))) + "\n" if entries else "no run there\n"


def table(entries: Sequence[Mapping[str, Any]]) -> Any:
    """For a terminal: a block a run, as nine columns do not fit into 60."""
    shown = terminal.grid(show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for row in rows(entries):
        for label, cell in zip(HEAD, row, strict=True):
            shown.add_row(label, terminal.text_cell(cell, "bold" if label == "run" else ""))
        shown.add_row("", "")
    return shown if entries else terminal.text_cell("no run there")
