"""The command line: parse -> request -> workflow -> show. The one place that turns errors into exit codes.

0 done, 1 a gate failed, 2 wrong use or input, 3 written but not what was asked for (unfinished, near chance,
an attack without gradient), 4 the run broke, 130 interrupted, by whatever signal. torch is imported inside
the commands, so that --help answers at once.
"""
import gc
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from pwoa_cli.cli import (
    bench,
    doctor,
    eval,
    export,
    faults,
    info,
    options,
    prune,
    recipe,
    report,
    runs,
    streams,
)
from pwoa_cli.cli.console import HEARTBEAT, Console
from pwoa_cli.cli.run_folder import Interrupted
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.machine import signals
from pwoa_cli.version import __version__

UsageError = typer.BadParameter.__base__  # of click, which typer carries inside itself since 0.27


app = typer.Typer(name="pwoa", add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]})


@app.callback(invoke_without_command=True, epilog="""\b
Examples:
  pwoa info model.pt
  pwoa prune model.pt --sparsity 0.9
  pwoa eval --attacks pgd,cw,aa
  pwoa prune --help""")
def _main(context: typer.Context,
          version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compress adversarially robust image classifiers without generating adversarial examples."""
    if version:
        print(f"pwoa {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


for _command, _name, _examples in ((prune.prune, "prune", prune.EXAMPLES),
                                   (eval.evaluate, "eval", eval.EXAMPLES),
                                   (info.info, "info", info.EXAMPLES),
                                   (export.export, "export", export.EXAMPLES),
                                   (bench.bench, "bench", bench.EXAMPLES),
                                   (report.report, "report", report.EXAMPLES),
                                   (runs.runs, "runs", runs.EXAMPLES),
                                   (recipe.recipe, "recipe", recipe.EXAMPLES),
                                   (doctor.doctor, "doctor", doctor.EXAMPLES)):
    app.command(_name, cls=options.Command, epilog=_examples)(_command)


@app.command("version", cls=options.Command)
def _version() -> None:
    """Print the version."""
    Console().result(f"pwoa {__version__}", {})


def _commands() -> list[str]:
    """Names of the commands, for completion."""
    return [str(command.name) for command in app.registered_commands]


@app.command("help", cls=options.Command)
def _help(context: typer.Context,
          command: Annotated[str, typer.Argument(metavar="COMMAND", show_default=False,
                                                 autocompletion=_commands)] = "") -> None:
    """Show the help of a command."""
    above = context.parent
    assert above is not None  # of the program itself
    found = above.command.get_command(above, command) if command else above.command  # type: ignore[attr-defined]
    if found is None:
        raise InputError(f"pwoa has no command {command!r}.", hint="See pwoa --help")
    with type(context)(found, info_name=command, parent=above) if command else above as shown:
        Console().result(shown.get_help(), {})


def entry() -> None:
    """Entry point of the installed `pwoa`: `main`, started and ended faster.

    Importing torch makes a million objects that live until the end: collecting garbage among them costs 0.2 s
    on the way in, and taking them apart 0.4 s on the way out.
    """
    gc.set_threshold(100_000, 20, 100)
    HEARTBEAT.start()
    try:
        main()
    except SystemExit as stop:
        with suppress(OSError, ValueError):  # a reader of a pipe that has gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
    except KeyboardInterrupt:  # one more, while the last one was spoken of
        os._exit(Interrupted.exit_code)


def main() -> None:
    """Run the command line, and turn what went wrong into a sentence and an exit code."""
    signals.listen()
    Console(verbose=False)
    streams.prepare()
    try:
        code = app(prog_name="pwoa", standalone_mode=False)
    except UsageError as error:  # type: ignore[misc]  # __base__ is a type of anything to mypy
        code = _told(InputError(error.format_message(),
                                hint=f"See {error.ctx.command_path if error.ctx else 'pwoa'} --help"))
    except typer.Abort:  # so click calls Ctrl-C
        code = _told(Interrupted("interrupted; nothing was written."))
    except SystemExit:
        raise  # of the completion of shells
    except BaseException as error:
        swallowed = signals.ended() and not isinstance(error, Interrupted)
        code = _told(Interrupted("interrupted.") if swallowed else faults.of(error))
    else:
        if signals.ended():  # by foreign code: what was shown since may be wrong
            code = _told(Interrupted("interrupted."))
    sys.exit(code)


def _told(error: PwoaError) -> int:
    """Say it, and return its exit code."""
    handled = sys.exc_info()[1]
    if handled is not error:
        error.__context__ = handled  # a sentence of ours for what the machine raised: --verbose shows both
    if isinstance(error, Interrupted):
        Console().say(error.message)
    else:
        Console().error(error)
    return error.exit_code
