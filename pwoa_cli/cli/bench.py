"""`pwoa bench`: parse -> request -> workflow -> show."""
from typing import Annotated

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.run_folder import no_folder
from pwoa_cli.errors import UNASKED, InputError
from pwoa_cli.files.run_folder import model_of

BENCH = "Bench"
EXAMPLES = """\b
Examples:
  pwoa bench RUN
  pwoa bench pruned.safetensors --against model.pt
  pwoa bench model.pt --runtimes eager,onnx --seconds 2"""

Against = Annotated[str | None, typer.Option(
    "--against", rich_help_panel=BENCH, metavar="FILE",
    help="Another checkpoint or run. Default: for a sparse model, the same network without zeros.")]
Batches = Annotated[str, typer.Option(
    "--batch", rich_help_panel=BENCH, metavar="A,B", help="Images in a call.")]
Threads = Annotated[int, typer.Option("--threads", rich_help_panel=BENCH, metavar="N", help="Of the CPU.")]
Seconds = Annotated[float, typer.Option(
    "--seconds", rich_help_panel=BENCH, metavar="S", help="For the rounds of each batch size.")]
Runtimes = Annotated[str | None, typer.Option(
    "--runtimes", rich_help_panel=BENCH, metavar="A,B",
    help="eager, channels-last, compile, bf16, onnx, onnx-int8, openvino, 2:4. Default: those that are "
         "here.")]
Size = Annotated[str | None, typer.Option(
    "--image-size", rich_help_panel=BENCH, metavar="N|HxW",
    help="Pixels of a side. Default: what the file says, else tried.")]


@options.with_groups
def bench(
    *, model: options.Model, against: Against = None, batch: Batches = "1,128", threads: Threads = 1,
    seconds: Seconds = 10.0, runtimes: Runtimes = None, size: Size = None,
    source: options.SourceOptions, device: options.Device = "auto", json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how fast a model is here."""
    console, sizes = Console(json=json, quiet=quiet), batch.split(",")
    if not all(size.strip().isascii() and size.strip().isdecimal() and int(size) for size in sizes):
        raise InputError(f"--batch {batch} is no list of whole numbers above 0.", hint="--batch 1,128")
    if threads < 1 or not seconds > 0:
        raise InputError("--threads and --seconds are numbers above 0.", hint="--threads 1 --seconds 10")
    pixels = options.parse_size(size)
    with no_folder():
        console.say("loading torch")
        from pwoa_cli.workflows import bench as workflow

        request = workflow.Request(
            source.of(model_of(model)), source.of_teacher(against), tuple(map(int, sizes)), threads, seconds,
            tuple(name.strip() for name in runtimes.split(",")) if runtimes else (), device,
            pixels)
        with console.progress() as progress:
            found = workflow.bench(request, progress=progress.update, say=console.say)
    console.result(workflow.markdown(found), found)
    if not found["rows"]:  # every runtime was left out
        raise typer.Exit(UNASKED)
