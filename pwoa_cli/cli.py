"""The command line: parse -> request -> workflow -> show. The one place that turns errors into exit codes.

0 done, 1 a gate failed or a run broke, 2 wrong use or input, 130 interrupted. torch is imported inside the commands, so
that --help answers at once.
"""
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pwoa_cli import __version__, run
from pwoa_cli import options as opt
from pwoa_cli.console import Console
from pwoa_cli.errors import InputError, PwoaError

UsageError = typer.BadParameter.__base__  # of click, which typer carries inside itself since 0.27


class Interrupted(PwoaError):
    """Ctrl-C or SIGTERM; the message says what was kept."""

    exit_code = 130


GOES_ON = "What the attacks finished is kept: the same command with --resume goes on from there."

app = typer.Typer(name="pwoa", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]})


@app.callback(invoke_without_command=True, epilog="""\b
Examples:
  pwoa info model.pt
  pwoa prune model.pt --sparsity 0.9
  pwoa eval --attacks pgd,cw,aa
  pwoa prune --help""")
def _main(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compress adversarially robust image classifiers without generating adversarial examples."""
    if version:
        print(f"pwoa {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@app.command(cls=opt.Command, epilog="""\b
Examples:
  pwoa prune model.pt --sparsity 0.9
  pwoa prune model.pt --sparsity 0.9 --norm l2 --eps 0.5
  pwoa prune model.pt --sparsity 0.5 --structure filter""")
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: .pt, .pth or .safetensors, timm:NAME or hf-hub:ID.")],
    sparsity: opt.Sparsity, structure: opt.Structure = "unstructured", recipe: opt.RecipeName = "default", settings: opt.Settings = None,
    epochs: opt.Epochs = None, effort: opt.Effort = None, mix_ratio: opt.MixRatio = None,
    batch_size: opt.TrainingBatch = None,
    arch: opt.Arch = None, teacher: opt.Teacher = None, num_classes: opt.Classes = None,
    normalize: opt.Normalize = None, mean: opt.Mean = None,
    std: opt.Std = None, entry: opt.Entry = None, keep: opt.Keep = None, trust_pickle: opt.Trust = False,
    data: opt.Data = None, norm: opt.Norm = None, eps: opt.Eps = None, attacks: opt.ReportAttacks = "fgsm,pgd-10,pgd-20,cw",
    n: opt.N = 1000,
    seed: opt.Seed = 0, device: opt.Device = "auto", out: opt.RunFolder = None, json: opt.Json = False, quiet: opt.Quiet = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Prune a model and report what it cost."""
    wanted, created = opt.parse_sparsity(sparsity), datetime.now()
    overrides = opt.overrides(settings, epochs=epochs, effort=effort, mix_ratio=mix_ratio, batch_size=batch_size)
    console = Console(json=json, quiet=quiet)
    with _run_folder(console, out, model=model, sparsity=wanted, created=created) as folder:
        console.say("loading torch")
        from pwoa_cli import prune as workflow
        from pwoa_cli import show

        job = workflow.prepare(workflow.Request(
            _source(model, arch, num_classes, normalize, mean, std, entry, keep, trust_pickle), wanted, structure=structure,
            recipe=recipe, overrides=overrides, teacher=_teacher(teacher, trust_pickle), data=data, norm=norm, eps=eps,
            attacks=attacks, n=n, seed=seed,
            device=device), say=console.say)
        if dry_run:
            guess = workflow.time_to_fit(job)
            console.result(f"Everything checked; a run would write {folder}.\n{guess}", {
                "dry_run": True, "out": str(folder), "steps": guess.steps, "seconds": guess.seconds,
                "seconds_per_step": guess.seconds_per_step,
                "seconds_per_million_weights_and_image": guess.seconds_per_step / guess.work})
            return
        with console.progress() as progress:
            result = workflow.execute(job, folder, say=console.say, progress=progress.update, created=created)
    console.result(show.markdown(result), result, table=lambda: show.table(result))
    own = f"--arch {arch} " if arch and ".py" in arch else ""
    console.say(f"wrote {folder}\nnext: pwoa eval {f'{folder} ' if out else ''}{own}--attacks pgd,cw,aa")


@app.command("eval", cls=opt.Command, epilog="""\b
Examples:
  pwoa eval --attacks pgd,cw,aa
  pwoa eval model.pt --attacks fgsm,pgd,cw,aa --n 1000
  pwoa eval pruned.safetensors --compare model.pt --json
  pwoa eval --attacks aa --max-seconds 600 --resume""")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help=(
        "Checkpoint, pruned file or run folder. Default: the newest run. A run is shown beside its teacher."))] = "",
    arch: opt.Arch = None, compare: opt.Compare = None, num_classes: opt.Classes = None,
    normalize: opt.Normalize = None, mean: opt.Mean = None,
    std: opt.Std = None, entry: opt.Entry = None, keep: opt.Keep = None, trust_pickle: opt.Trust = False,
    data: opt.Data = None, norm: opt.Norm = None, eps: opt.Eps = None, attacks: opt.Attacks = "fgsm,pgd,cw",
    n: opt.N = 1000, per_class: opt.PerClass = False,
    batch_size: opt.PassBatch = None, seed: opt.Seed = 0, device: opt.Device = "auto",
    max_seconds: opt.MaxSeconds = None, resume: opt.Resume = False,
    save_samples: opt.SaveSamples = None, out: opt.ReportFolder = None, json: opt.Json = False, quiet: opt.Quiet = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Measure accuracy under attack."""
    console = Console(json=json, quiet=quiet)
    run.check_file(save_samples, flag="--save-samples", ending=".npz")
    jobs: list[Any] = []

    def goes_on() -> str:
        return GOES_ON if any(kept.made + kept.taken for job in jobs for kept in job.kept) else ""

    with _run_folder(console, out, model=model, goes_on=goes_on, again=resume) if out else _no_folder(goes_on) as folder:
        console.say("loading torch")
        from pwoa_cli import assess, show

        job = assess.prepare(assess.Request(
            _source(model, arch, num_classes, normalize, mean, std, entry, keep, trust_pickle),
            teacher=_teacher(compare, trust_pickle), data=data, norm=norm, eps=eps, attacks=attacks, n=n, seed=seed, batch_size=batch_size,
            device=device, max_seconds=max_seconds, resume=resume, per_class=per_class, keep_inputs=save_samples is not None),
            say=console.say)
        if dry_run:
            console.result("Everything checked; nothing was attacked.", {"dry_run": True, "out": str(out) if out else None})
            return
        jobs.append(job)
        with console.progress() as progress:
            outcome = assess.execute(job, progress=progress.update, say=console.say)
        for note in outcome.result["notes"]:
            if note.startswith("unreliable: "):
                console.warn(note)
        console.result(show.markdown(outcome.result), outcome.result, table=lambda: show.table(outcome.result))
        assess.keep(outcome, job, folder=folder, saved=save_samples)  # last: a full disk must not cost the figures
    for written in filter(None, (folder, save_samples)):
        console.say(f"wrote {written}")


@app.command(cls=opt.Command, epilog="""\b
Examples:
  pwoa info model.pt
  pwoa info pruned.safetensors --json
  pwoa info model.pt --normalize none""")
def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: .pt, .pth or .safetensors, timm:NAME or hf-hub:ID.")],
    arch: opt.Arch = None, num_classes: opt.Classes = None, normalize: opt.Normalize = None, mean: opt.Mean = None, std: opt.Std = None,
    entry: opt.Entry = None, keep: opt.Keep = None, trust_pickle: opt.Trust = False, data: opt.InfoData = None, json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Say what a checkpoint is."""
    console = Console(json=json, quiet=quiet)
    from pwoa_cli import info as workflow

    with _no_folder():
        found = workflow.describe(_source(model, arch, num_classes, normalize, mean, std, entry, keep, trust_pickle), data=data,
                                  say=console.say)
    console.result(workflow.markdown(found), found, table=lambda: workflow.table(found))
    if found["arch"] is not None and not found["pruned"]:
        console.say(f"next: pwoa prune {model} --sparsity 0.9")


def _source(model: str, arch: str | None, num_classes: int | None, normalize: str | None, mean: str | None, std: str | None,
            entry: str | None, keep: str | None, trust_pickle: bool) -> Any:
    from pwoa_cli.checkpoint import Source
    from pwoa_cli.normalisation import of_user, parse_numbers

    mean_values, std_values = of_user(normalize, parse_numbers(mean, flag="--mean"), parse_numbers(std, flag="--std"))
    return Source(model, arch=arch, num_classes=num_classes, mean=mean_values, std=std_values, entry=entry,
                  keep=opt.fraction(keep), trust_pickle=trust_pickle)


def _teacher(path: str | None, trust_pickle: bool) -> Any:
    from pwoa_cli.checkpoint import Source

    return Source(path, trust_pickle=trust_pickle) if path is not None else None


@contextmanager
def _run_folder(console: Console, out: Path | None, *, model: str, sparsity: float = 0.0,
                created: datetime | None = None, goes_on: Callable[[], str] = str, again: bool = False) -> Iterator[Path]:
    """The run folder while the block runs, tried before torch is loaded; if the block fails, what is kept is said.

    Args: goes_on: what more there is to say when it is interrupted. again: as in run.create.
    """
    with run.opened(out, model_name=Path(model).stem, sparsity=sparsity, now=created or datetime.now(), again=again) as folder:
        before = {path.name for path in folder.iterdir()}
        try:
            yield folder
        except (KeyboardInterrupt, PwoaError) as error:
            kept = _kept(folder, before)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"interrupted; {kept} {goes_on()}".rstrip()) from None
            if {path.name for path in folder.iterdir()} - before:
                console.warn(f"stopped; {kept}")
            raise


def _kept(folder: Path, before: set[str]) -> str:
    """What a run that did not finish leaves besides what was there before, in a sentence or two."""
    names = sorted({p.name for p in folder.iterdir()} - before)
    if not names:
        return "nothing was written."
    kept = f"kept in {folder}: {', '.join(names)}."
    if "model.safetensors" in names:
        return f"{kept}\nThe pruned model is whole; measure it: pwoa eval {folder / 'model.safetensors'}"
    return f"{kept} No pruned model was written." if "config.toml" in names else kept


@contextmanager
def _no_folder(goes_on: Callable[[], str] = str) -> Iterator[None]:
    try:
        yield None
    except KeyboardInterrupt:
        more = goes_on()
        raise Interrupted(f"interrupted; {f'no report was written. {more}' if more else 'nothing was written.'}") from None


def entry() -> None:
    """Entry point of the installed `pwoa`: `main`, started and ended faster.

    Importing torch makes a million objects that live until the end: collecting garbage among them costs 0.2 s on the
    way in, and taking them apart 0.4 s on the way out.
    """
    gc.set_threshold(100_000, 20, 100)
    try:
        main()
    except SystemExit as stop:
        with suppress(OSError, ValueError):  # a reader of a pipe that has gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else int(stop.code is not None))


def main() -> None:
    """Run the command line, and turn what went wrong into a sentence and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` and CI time limits end a run as Ctrl-C does
    try:
        sys.exit(app(prog_name="pwoa", standalone_mode=False))
    except Interrupted as stop:
        Console().say(stop.message)
        sys.exit(stop.exit_code)
    except PwoaError as error:
        _fail(error)
    except UsageError as error:
        _fail(InputError(error.format_message(), hint=f"See {error.ctx.command_path if error.ctx else 'pwoa'} --help"))
    except OSError as error:
        _fail(PwoaError(f"{error.filename or 'A file'}: {error.strerror or error}.",
                        hint="Free disk space and permissions are the usual causes."))
    except (MemoryError, RuntimeError) as error:
        from pwoa_cli.cpu import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail(PwoaError(f"Out of memory: {str(error).splitlines()[0] if str(error) else 'on the CPU'}",
                        hint="A smaller --batch-size, or another --device."))


def _fail(error: PwoaError) -> None:
    Console().error(error)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    entry()
