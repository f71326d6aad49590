"""`pwoa export`: parse -> request -> workflow -> show."""
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.gates import GateOptions, close
from pwoa_cli.cli.run_folder import NOTHING, no_folder
from pwoa_cli.errors import UNASKED, InputError

EXPORT, CARD = "Export", "Card"
GOES_ON = "The same command with --resume goes on."
OF_ATTACKS = ("--norm", "--eps", "--attacks", "--samples")
EXAMPLES = """\b
Examples:
  pwoa export RUN --format dense
  pwoa export RUN --format slim
  pwoa export pruned.safetensors --format onnx
  pwoa export RUN --format onnx --dtype int8 --max-drop worst=1
  pwoa export RUN --card DIR --license mit"""

Models = Annotated[list[str], typer.Argument(
    metavar="MODEL", help="Checkpoint, pruned file or run folder. For --card: a run, more runs of its "
                          "teacher, evaluations of them.")]
Format = Annotated[str | None, typer.Option(
    "--format", rich_help_panel=EXPORT, metavar="KIND",
    help="sparse (pwoa's file), slim (silent channels removed, so faster), dense (a state dict that "
         "load_state_dict takes) or onnx.")]
Out = Annotated[Path | None, typer.Option(
    "--out", rich_help_panel=EXPORT, metavar="FILE",
    help="A new file. Default: MODEL-FORMAT with its ending, here.")]
Dtype = Annotated[str, typer.Option(
    "--dtype", rich_help_panel=EXPORT, metavar="NAME",
    help="fp32; sparse also bf16, fp16, int8; dense bf16, fp16; onnx int8. Where it is not fp32, both models "
         "are attacked.")]
Prefix = Annotated[str, typer.Option(
    "--prefix", rich_help_panel=EXPORT, metavar="TEXT", help="Before each name in a dense file, as module.")]
Like = Annotated[str | None, typer.Option(
    "--like", rich_help_panel=EXPORT, metavar="FILE|none",
    help="Checkpoint whose envelope and names a dense file gets. Default: the one a run was made from.")]
NoMeasure = Annotated[bool, typer.Option(
    "--no-measure", rich_help_panel=EXPORT, help="Do not attack the models where values were rounded.")]


@dataclass(frozen=True)
class CardOptions:
    """A folder to publish, and what no report says."""

    card: Annotated[Path | None, typer.Option(
        "--card", rich_help_panel=CARD, metavar="DIR",
        help="Instead of a file: a folder for model hubs, with model, model card, reports and entries for "
             "RobustBench and the Adversarial Pruning Benchmark.")] = None
    name: Annotated[str | None, typer.Option(
        "--name", rich_help_panel=CARD, metavar="TEXT", help="Title of the model, or of its paper.")] = None
    authors: Annotated[str | None, typer.Option(
        "--authors", rich_help_panel=CARD, metavar="TEXT", help="For RobustBench: Ada Lovelace, Alan Turing.")
    ] = None
    link: Annotated[str | None, typer.Option(
        "--link", rich_help_panel=CARD, metavar="URL", help="To the paper or the code.")] = None
    license: Annotated[str | None, typer.Option(
        "--license", rich_help_panel=CARD, metavar="ID",
        help="Of the model: mit, apache-2.0, ... Default: unknown.")] = None
    additional_data: Annotated[str | None, typer.Option(
        "--additional-data", rich_help_panel=CARD, metavar="yes|no",
        help="Whether the teacher saw more than its data set's training images.")] = None

    def given(self) -> list[str]:
        """Those of them that were typed, but for --card."""
        return [f"--{item.name.replace('_', '-')}" for item in fields(self)
                if item.name != "card" and getattr(self, item.name) is not None]


@options.with_groups
def export(
    *, context: typer.Context, models: Models, format: Format = None, card: CardOptions,
    out: Out = None, dtype: Dtype = "fp32", prefix: Prefix = "", like: Like = None,
    source: options.SourceOptions, data: options.Data = None,
    pictures: options.DataOptions, norm: options.Norm = None, eps: options.Eps = None,
    attacks: options.Attacks = "fgsm,pgd,cw", n: options.N = 1000, no_measure: NoMeasure = False,
    gate: GateOptions, seed: options.Seed = 0, resume: options.Resume = False, json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model in a form that others read."""
    console = Console(json=json, quiet=quiet)
    if card.card is not None:
        _card(models, card, card.card, console, typed=_typed(context))
        return
    model, gates = _one(models, format, card), gate.parsed()
    jobs: list[Any] = []

    def kept() -> str:
        return f"{jobs[0].out} is whole, but was not tried to the end. {GOES_ON}" \
            if jobs and jobs[0].out.exists() else NOTHING

    with no_folder(kept):
        console.say("loading torch")
        from pwoa_cli.reports import tables
        from pwoa_cli.workflows import export as workflow

        request = workflow.Request(
            source.of(model), str(format), out, dtype=dtype, prefix=prefix, like=like, data=data,
            choices=pictures.choices(), norm=norm, eps=eps, attacks=attacks, n=n, seed=seed,
            measure=not no_measure, resume=resume, gates=gates, strict=gate.strict)
        unused = [flag for flag in _typed(context) if flag in OF_ATTACKS
                  and not (flag == "--samples" and request.integers)]
        if unused and request.idle:
            console.say(f"{' and '.join(unused)}: not used, as nothing is attacked ({request.idle})")
        job = workflow.prepare(request, say=console.say)
        jobs.append(job)
        with console.progress() as progress:
            outcome = workflow.execute(job, progress=progress.update, say=console.say)
    found = outcome.result
    made = found.get("evaluation")
    lines = "\n".join(f"{label}: {text}" for label, text in workflow.facts(found))
    text = f"{lines}\n\n{tables.markdown(made)}" if made else lines
    if console.result(text, found):
        outcome.forget()
    console.say(f"wrote {job.out}")
    if made:
        close(console, gate, made, text=text, name=model, short=tables.falls_short(made))


def _one(models: Sequence[str], format: str | None, card: CardOptions) -> str:
    """The model of a file. Raises: InputError where words are of a card, or none says what is wanted."""
    if format is None:
        raise InputError("pwoa export was not told what to write.",
                         hint="For example: --format dense, or a folder to publish: --card DIR")
    if card.given():
        raise InputError(f"{' and '.join(card.given())}: of a card alone.",
                         hint="Leave it away, or add: --card DIR")
    if len(models) > 1:
        raise InputError(f"--format writes one model, and {len(models)} are named.", hint="Name one of them.")
    return models[0]


def _typed(context: typer.Context) -> list[str]:
    """The options that were typed, by their flags."""
    return [p.opts[0] for p in context.command.params if options.is_typed(context, str(p.name))]


def _card(models: Sequence[str], options: CardOptions, out: Path, console: Console, *,
          typed: Sequence[str]) -> None:
    """Write a card, say what it lacks and what measures that."""
    known = {"models", "--card", "--json", "--quiet", *options.given()}
    if others := [flag for flag in typed if flag not in known]:
        raise InputError(f"--card takes its figures from reports: {' and '.join(others)} are of other "
                         "exports.", hint="Leave it away.")
    if options.additional_data not in (None, "yes", "no"):
        raise InputError(f"--additional-data {options.additional_data} is neither yes nor no.",
                         hint="--additional-data no")
    with no_folder():
        console.say("reading reports")
        from pwoa_cli.reports.leaderboards import Told
        from pwoa_cli.workflows import card as workflow

        more = None if options.additional_data is None else options.additional_data == "yes"
        told = Told(options.name, options.authors, options.link, options.license, more)
        job = workflow.prepare(workflow.Request(models, out, told), say=console.say)
        found = workflow.execute(job)
    console.result("\n".join(f"{label}: {text}" for label, text in workflow.facts(found)), found)
    console.say(f"wrote {out}")
    for command in found["next"]:
        console.say(f"next: {command}")
    if not found["figures"]:  # all in doubt
        raise typer.Exit(UNASKED)
