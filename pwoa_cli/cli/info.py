"""`pwoa info`: parse -> source -> workflow -> show."""

import shlex

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.run_folder import no_folder
from pwoa_cli.files.run_folder import model_of

EXAMPLES = """\b
Examples:
  pwoa info model.pt
  pwoa info pruned.safetensors --json
  pwoa info model.pt --normalize none"""


@options.with_groups
def info(
    *, model: options.Model, source: options.SourceOptions, data: options.InfoData = None,
    pictures: options.DataOptions,
    json: options.Json = False,
    quiet: options.Quiet = False, verbose: options.Verbose = False,
) -> None:
    """Say what a checkpoint is."""
    console = Console(json=json, quiet=quiet, verbose=verbose)
    console.say("loading torch")
    from pwoa_cli.reports import checkpoint
    from pwoa_cli.workflows import info as workflow

    with no_folder():
        found = workflow.describe(source.of(model_of(model)), data=data, choices=pictures.choices(),
                                  say=console.say)
    console.result(checkpoint.markdown(found), found, table=lambda: checkpoint.table(found))
    if found["arch"] is not None and not found["pruned"]:
        on = f" --data {shlex.quote(data)}" if data else ""
        console.say(f"next: pwoa prune {shlex.quote(model)} --sparsity 0.9{options.typed(source)}{on}"
                    f"{options.typed(pictures)}")
