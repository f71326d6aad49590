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
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from pwoa_cli import __version__, run
from pwoa_cli.console import Console
from pwoa_cli.errors import InputError, PwoaError

UsageError = typer.BadParameter.__base__  # of click, which typer carries inside itself since 0.27


class Interrupted(PwoaError):
    """Ctrl-C or SIGTERM; the message says what was kept."""

    exit_code = 130


class Command(TyperCommand):
    """Help as plain text, options under the headings of their `rich_help_panel`, all in one column."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """MODEL or [MODEL], without the braces of newer typers."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options by heading, in the order of the function's parameters."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            name, text = param.get_help_record(ctx)
            argument = param.param_type_name == "argument"
            heading = "Arguments" if argument else getattr(param, "rich_help_panel", None) or RUN
            groups.setdefault(heading, []).append((param.metavar if argument else name, text))
        width = max(len(name) for records in groups.values() for name, _ in records)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in records])


def _whole(flag: str, least: int) -> Callable[[Any], int]:
    """Parser of a whole number >= least. It raises InputError naming the flag."""
    def parse(text: Any) -> int:
        if not str(text).strip().isdecimal() or int(text) < least:
            raise InputError(f"{flag} {text} is not a whole number of at least {least}.",
                             hint=f"For example: {flag} {max(least, 100)}")
        return int(text)

    return parse


def _seconds(text: Any) -> float:
    """--max-seconds as a number above 0. Raises: InputError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"--max-seconds {text} is not a number above 0.", hint="Ten minutes: --max-seconds 600")
    return value


PRUNING, MODEL, DATA, RUN = "Pruning", "Model", "Data and attacks", "Run"


def _option(flag: str, heading: str, text: str, *, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(flag, rich_help_panel=heading, help=text, metavar=metavar, **more)


Sparsity = Annotated[str, _option("--sparsity", PRUNING, "Fraction of weights to zero, between 0 and 1.", metavar="S")]
Structure = Annotated[str, _option("--structure", PRUNING, "unstructured, filter or column.", metavar="KIND")]
RecipeName = Annotated[str, _option("--recipe", PRUNING, "default, paper, or a TOML file.", metavar="NAME|FILE")]
Settings = Annotated[Optional[list[str]], _option(
    "--set", PRUNING, "Override a field of the recipe, such as lr=1e-3 (repeatable).", metavar="FIELD=VALUE")]
Epochs = Annotated[Optional[str], _option(
    "--epochs", PRUNING, "Epochs of both phases together. Default: the recipe's.", metavar="E")]
Effort = Annotated[Optional[str], _option(
    "--effort", PRUNING, "quick, default or max: a fifth of the recipe's epochs, these, or five times as many. --epochs wins.",
    metavar="KIND")]
MixRatio = Annotated[Optional[str], _option(
    "--mix-ratio", PRUNING, "Partial access: attack this fraction of the training batches. Default: none.", metavar="R")]
TrainingBatch = Annotated[Optional[str], _option(
    "--batch-size", PRUNING, "Images in a training step. Default: the recipe's.", metavar="B")]
Arch = Annotated[Optional[str], _option(
    "--arch", MODEL, "Architecture, where the file does not tell.", metavar="NAME|FILE.py:FN")]
Teacher = Annotated[Optional[str], _option("--teacher", MODEL, "Another checkpoint with the same classes.", metavar="FILE")]
Compare = Annotated[Optional[str], typer.Option(
    "--compare", "--teacher", rich_help_panel=MODEL, metavar="FILE", help="Another checkpoint with the same classes, on the same samples.")]
Classes = Annotated[Optional[int], _option(
    "--num-classes", MODEL, "Classes of the model.", metavar="K", parser=_whole("--num-classes", 2))]
Normalize = Annotated[Optional[str], _option(
    "--normalize", MODEL, "Normalisation by name: none, imagenet, cifar10, cifar10-old, cifar100, svhn, half, mnist, "
    "fashion-mnist.", metavar="NAME")]
Mean = Annotated[Optional[str], _option("--mean", MODEL, "Or its mean, for inputs in [0,1].", metavar="A,B,C")]
Std = Annotated[Optional[str], _option("--std", MODEL, "And its deviation.", metavar="A,B,C")]
Entry = Annotated[Optional[str], _option(
    "--entry", MODEL, "Which of several models in the file, such as best.", metavar="NAME")]
Keep = Annotated[Optional[str], _option(
    "--keep", MODEL, "Fraction of weights that pruning scores in the file keep.", metavar="F")]
Trust = Annotated[bool, _option("--trust-pickle", MODEL, "Run code that the file holds, if it needs that to be read.")]
Data = Annotated[Optional[str], _option(
    "--data", DATA, "mnist, fashion-mnist, cifar10, cifar100, svhn, a folder or an .npz file. Default: the known one that fits.",
    metavar="NAME|PATH")]
InfoData = Annotated[Optional[str], _option(
    "--data", DATA, "Also try it on training images of mnist, cifar10, ..., a folder or an .npz file.", metavar="NAME|PATH")]
Norm = Annotated[Optional[str], _option("--norm", DATA, "Norm of the threat model.", metavar="linf|l2|l1")]
Eps = Annotated[Optional[str], _option(
    "--eps", DATA, "Its radius, such as 8/255 or 0.3, for inputs in [0,1]. Default: the file's, else the data set's convention.",
    metavar="E")]
ReportAttacks = Annotated[str, _option("--attacks", DATA, "Attacks of the report.", metavar="A,B")]
Attacks = Annotated[str, _option(
    "--attacks", DATA, "fgsm, pgd, pgd-K, cw, cw-K, apgd-ce, apgd-t, fab-t, square, aa, aa-fast, fmn, cw-l2, or a "
    "plug-in.", metavar="A,B")]
N = Annotated[int, _option("--n", DATA, "Test samples, stratified by class.", metavar="N", parser=_whole("--n", 1))]
PassBatch = Annotated[Optional[int], _option(
    "--batch-size", RUN, "Most images in one pass; results do not depend on it. Default: what fits into memory.", metavar="B",
    parser=_whole("--batch-size", 1))]
PerClass = Annotated[bool, _option("--per-class", DATA, "Also accuracy by class.")]
SaveSamples = Annotated[Optional[Path], _option(
    "--save-samples", RUN, "Flags, norms and adversarial inputs of every sample, for NumPy.", metavar="FILE.npz")]
MaxSeconds = Annotated[Optional[float], _option(
    "--max-seconds", RUN, "Stop the attacks after this time with what is known.", metavar="S", parser=_seconds)]
Resume = Annotated[bool, _option("--resume", RUN, "Go on from what an earlier run of this command finished.")]
Seed = Annotated[int, _option("--seed", RUN, "Seed of everything random.", metavar="N", parser=_whole("--seed", 0))]
Device = Annotated[str, _option("--device", RUN, "auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")]
RunFolder = Annotated[Optional[Path], _option("--out", RUN, "Run folder. Default: pwoa-runs/MODEL-S-TIME.", metavar="DIR")]
ReportFolder = Annotated[Optional[Path], _option(
    "--out", RUN, "Also write report.json, report.md and samples.npz here.", metavar="DIR")]
Json = Annotated[bool, _option("--json", RUN, "One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, _option("--quiet", RUN, "Only warnings, errors and the result.")]
DryRun = Annotated[bool, _option("--dry-run", RUN, "Check everything, say what would be done, do nothing.")]

GOES_ON = "What the attacks finished is kept: the same command with --resume goes on from there."


def _goes_on() -> str:
    """GOES_ON, if an evaluation has kept anything."""
    return GOES_ON if any(run.UNFINISHED.glob("*/*.npz")) else ""


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


@app.command(cls=Command, epilog="""\b
Examples:
  pwoa prune model.pt --sparsity 0.9
  pwoa prune model.pt --sparsity 0.9 --norm l2 --eps 0.5
  pwoa prune model.pt --sparsity 0.5 --structure filter""")
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: .pt, .pth or .safetensors, timm:NAME or hf-hub:ID.")],
    sparsity: Sparsity, structure: Structure = "unstructured", recipe: RecipeName = "default", settings: Settings = None,
    epochs: Epochs = None, effort: Effort = None, mix_ratio: MixRatio = None,
    batch_size: TrainingBatch = None,
    arch: Arch = None, teacher: Teacher = None, num_classes: Classes = None, normalize: Normalize = None, mean: Mean = None,
    std: Std = None, entry: Entry = None, keep: Keep = None, trust_pickle: Trust = False,
    data: Data = None, norm: Norm = None, eps: Eps = None, attacks: ReportAttacks = "fgsm,pgd-10,pgd-20,cw", n: N = 1000,
    seed: Seed = 0, device: Device = "auto", out: RunFolder = None, json: Json = False, quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Prune a model and report what it cost."""
    wanted, created = parse_sparsity(sparsity), datetime.now()
    overrides = _overrides(settings, epochs=epochs, effort=effort, mix_ratio=mix_ratio, batch_size=batch_size)
    console = Console(json=json, quiet=quiet)
    with _run_folder(console, out, model=model, sparsity=wanted, created=created) as folder:
        console.say("loading torch")
        from pwoa_cli import prune as workflow
        from pwoa_cli import show

        job = workflow.prepare(workflow.Request(
            _source(model, arch, num_classes, normalize, mean, std, entry, keep, trust_pickle), wanted, structure=structure,
            recipe=recipe, overrides=overrides, teacher=_teacher(teacher, trust_pickle), data=data, norm=norm, eps=eps, attacks=attacks, n=n, seed=seed,
            device=device), say=console.say)
        if dry_run:
            guess = workflow.time_to_fit(job)
            console.result(f"Everything checked; a run would write {folder}.\n{guess}", {
                "dry_run": True, "out": str(folder), "steps": guess.steps, "seconds": guess.seconds,
                "seconds_per_step": guess.seconds_per_step})
            return
        with console.progress() as progress:
            result = workflow.execute(job, folder, say=console.say, progress=progress.update, created=created)
    console.result(show.markdown(result), result, table=lambda: show.table(result))
    console.say(f"wrote {folder}\nnext: pwoa eval {f'{folder} ' if out else ''}--attacks pgd,cw,aa")


@app.command("eval", cls=Command, epilog="""\b
Examples:
  pwoa eval --attacks pgd,cw,aa
  pwoa eval model.pt --attacks fgsm,pgd,cw,aa --n 1000
  pwoa eval pruned.safetensors --compare model.pt --json
  pwoa eval --attacks aa --max-seconds 600 --resume""")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help=(
        "Checkpoint, pruned file or run folder. Default: the newest run. A run is shown beside its teacher."))] = "",
    arch: Arch = None, compare: Compare = None, num_classes: Classes = None, normalize: Normalize = None, mean: Mean = None,
    std: Std = None, entry: Entry = None, keep: Keep = None, trust_pickle: Trust = False,
    data: Data = None, norm: Norm = None, eps: Eps = None, attacks: Attacks = "fgsm,pgd,cw", n: N = 1000, per_class: PerClass = False,
    batch_size: PassBatch = None, seed: Seed = 0, device: Device = "auto", max_seconds: MaxSeconds = None, resume: Resume = False,
    save_samples: SaveSamples = None, out: ReportFolder = None, json: Json = False, quiet: Quiet = False, dry_run: DryRun = False,
) -> None:
    """Measure accuracy under attack."""
    console = Console(json=json, quiet=quiet)
    run.check_file(save_samples, flag="--save-samples", ending=".npz")
    with _run_folder(console, out, model=model, goes_on=_goes_on, again=resume) if out else _no_folder(_goes_on) as folder:
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
        with console.progress() as progress:
            outcome = assess.execute(job, progress=progress.update, say=console.say)
        assess.keep(outcome, job, folder=folder, saved=save_samples)
    for finding in outcome.result["findings"]:
        if finding["unreliable"]:
            console.warn(f"unreliable: {' and '.join(finding['models'])}{': ' * bool(finding['models'])}{finding['text']}")
    console.result(show.markdown(outcome.result), outcome.result, table=lambda: show.table(outcome.result))
    for written in filter(None, (folder, save_samples)):
        console.say(f"wrote {written}")


@app.command(cls=Command, epilog="""\b
Examples:
  pwoa info model.pt
  pwoa info pruned.safetensors --json
  pwoa info model.pt --normalize none""")
def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: .pt, .pth or .safetensors, timm:NAME or hf-hub:ID.")],
    arch: Arch = None, num_classes: Classes = None, normalize: Normalize = None, mean: Mean = None, std: Std = None,
    entry: Entry = None, keep: Keep = None, trust_pickle: Trust = False, data: InfoData = None, json: Json = False,
    quiet: Quiet = False,
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


def parse_sparsity(text: str) -> float:
    """Fraction in (0, 1) from text. Raises: InputError, with what was meant where that can be guessed."""
    example = "Nine weights in ten: --sparsity 0.9"
    try:
        value = float(text.strip().removesuffix("%").replace(",", "."))
    except ValueError:
        raise InputError(f"--sparsity {text} is not a number.", hint=example) from None
    percent = text.strip().endswith("%") or value > 1
    if percent and 0 < value < 100 or "," in text and 0 < value < 1:
        meant = f"{value / 100 if percent else value:g}"
        raise InputError(f"--sparsity {text} is not a number between 0 and 1. Did you mean {meant}?", hint=f"--sparsity {meant}")
    if not 0 < value < 1:
        raise InputError(f"--sparsity {text} is not between 0 and 1 (0: nothing to prune, 1: nothing left).", hint=example)
    return value


def _overrides(settings: list[str] | None, **direct: Any) -> dict[str, Any]:
    """Fields of the recipe from --set FIELD=VALUE and from options of their own, which win."""
    values: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting} is not FIELD=VALUE.", hint="For example: --set lr=1e-3")
        values[key.strip()] = value.strip()
    return values | {key: value for key, value in direct.items() if value is not None}


def _source(model: str, arch: str | None, num_classes: int | None, normalize: str | None, mean: str | None, std: str | None,
            entry: str | None, keep: str | None, trust_pickle: bool) -> Any:
    from pwoa_cli.checkpoint import Source
    from pwoa_cli.normalisation import of_user, parse_numbers

    mean_values, std_values = of_user(normalize, parse_numbers(mean, flag="--mean"), parse_numbers(std, flag="--std"))
    return Source(model, arch=arch, num_classes=num_classes, mean=mean_values, std=std_values, entry=entry,
                  keep=_fraction(keep), trust_pickle=trust_pickle)


def _teacher(path: str | None, trust_pickle: bool) -> Any:
    from pwoa_cli.checkpoint import Source

    return Source(path, trust_pickle=trust_pickle) if path is not None else None


def _fraction(text: str | None) -> float | None:
    """--keep as a number in (0, 1]. Raises: InputError."""
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = 0.0
    if value is not None and not 0 < value <= 1:
        raise InputError(f"--keep {text} is not a number above 0 and up to 1.", hint="A tenth of the weights: --keep 0.1")
    return value


@contextmanager
def _run_folder(console: Console, out: Path | None, *, model: str, sparsity: float = 0.0,
                created: datetime | None = None, goes_on: Callable[[], str] = str, again: bool = False) -> Iterator[Path]:
    """The run folder while the block runs, tried before torch is loaded; if the block fails, what is kept is said.

    Args: goes_on: what more there is to say when it is interrupted. again: as in run.create.
    """
    with run.opened(out, model_name=Path(model).stem, sparsity=sparsity, now=created or datetime.now(), again=again) as folder:
        try:
            yield folder
        except (KeyboardInterrupt, PwoaError) as error:
            kept = _kept(folder)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"interrupted; {kept} {goes_on()}".rstrip()) from None
            if any(folder.iterdir()):
                console.warn(f"stopped; {kept}")
            raise


def _kept(folder: Path) -> str:
    """What a run that did not finish leaves, in a sentence or two."""
    names = sorted(p.name for p in folder.iterdir())
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
