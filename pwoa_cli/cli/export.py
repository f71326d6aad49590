"""`pwoa export`: parse -> request -> workflow -> show."""
from pathlib import Path
from typing import Annotated

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.run_folder import no_folder
from pwoa_cli.errors import UNASKED

EXPORT = "Export"
EXAMPLES = """\b
Examples:
  pwoa export RUN --format dense
  pwoa export RUN --format slim
  pwoa export pruned.safetensors --format onnx
  pwoa export RUN --format sparse --dtype bf16"""

Format = Annotated[str, typer.Option(
    "--format", rich_help_panel=EXPORT, metavar="KIND",
    help="sparse (pwoa's file), slim (silent channels removed, so faster), dense (a state dict that "
         "load_state_dict takes) or onnx.")]
Out = Annotated[Path | None, typer.Option(
    "--out", rich_help_panel=EXPORT, metavar="FILE",
    help="A new file. Default: MODEL-FORMAT with its ending, here.")]
Dtype = Annotated[str, typer.Option(
    "--dtype", rich_help_panel=EXPORT, metavar="NAME",
    help="fp32, bf16, fp16 or int8 (sparse alone). Where it is not fp32, both models are attacked.")]
Prefix = Annotated[str, typer.Option(
    "--prefix", rich_help_panel=EXPORT, metavar="TEXT", help="Before each name in a dense file, as module.")]
Like = Annotated[str | None, typer.Option(
    "--like", rich_help_panel=EXPORT, metavar="FILE|none",
    help="Checkpoint whose envelope and names a dense file gets. Default: the one a run was made from.")]
NoMeasure = Annotated[bool, typer.Option(
    "--no-measure", rich_help_panel=EXPORT, help="Do not attack the models where values were rounded.")]


@options.with_groups
def export(
    *, model: options.Model, format: Format, out: Out = None, dtype: Dtype = "fp32", prefix: Prefix = "",
    like: Like = None, source: options.SourceOptions, data: options.Data = None,
    pictures: options.DataOptions, norm: options.Norm = None, eps: options.Eps = None,
    attacks: options.Attacks = "fgsm,pgd,cw", n: options.N = 1000, no_measure: NoMeasure = False,
    seed: options.Seed = 0, json: options.Json = False, quiet: options.Quiet = False,
) -> None:
    """Write a model in a form that others read."""
    console = Console(json=json, quiet=quiet)
    with no_folder():
        console.say("loading torch")
        from pwoa_cli.reports import tables
        from pwoa_cli.workflows import export as workflow

        job = workflow.prepare(workflow.Request(
            source.of(model), format, out, dtype=dtype, prefix=prefix, like=like, data=data,
            choices=pictures.choices(), norm=norm, eps=eps, attacks=attacks, n=n, seed=seed,
            measure=not no_measure), say=console.say)
        with console.progress() as progress:
            found = workflow.execute(job, progress=progress.update, say=console.say)
    made = found.get("evaluation")
    lines = "\n".join(f"{label}: {text}" for label, text in workflow.facts(found))
    text = f"{lines}\n\n{tables.markdown(made)}" if made else lines
    console.result(text, found)
    console.say(f"wrote {job.out}")
    if made and tables.falls_short(made):
        raise typer.Exit(UNASKED)
