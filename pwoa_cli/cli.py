"""The command line: parse -> request -> workflow -> show. The one place that turns errors into exit codes.

0 done, 1 a gate failed or a run broke, 2 wrong use or input, 130 interrupted. torch is imported inside the commands, so
that --help answers at once.
"""
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from pwoa_cli import __version__
from pwoa_cli.errors import InputError, PwoaError

app = typer.Typer(name="pwoa", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Compress adversarially robust image classifiers without generating adversarial examples.")

Data = Annotated[Optional[str], typer.Option("--data", metavar="NAME|PATH", help="mnist, fashion-mnist, cifar10, cifar100, svhn, a folder or an .npz file. Default: the known one that fits.")]
Arch = Annotated[Optional[str], typer.Option("--arch", metavar="NAME|FILE.py:FN", help="Architecture, where the file does not tell.")]
Teacher = Annotated[Optional[str], typer.Option("--teacher", metavar="FILE", help="Another checkpoint with the same classes.")]
Classes = Annotated[Optional[int], typer.Option("--num-classes", metavar="K", help="Classes of the model.")]
Mean = Annotated[Optional[str], typer.Option("--mean", metavar="A,B,C", help="Normalisation mean of inputs in [0,1].")]
Std = Annotated[Optional[str], typer.Option("--std", metavar="A,B,C", help="Normalisation deviation.")]
Norm = Annotated[Optional[str], typer.Option("--norm", metavar="linf|l2", help="Norm of the threat model.")]
Eps = Annotated[Optional[str], typer.Option("--eps", metavar="E", help="Radius, such as 8/255 or 0.3, for inputs in [0,1].")]
N = Annotated[int, typer.Option("--n", min=1, help="Test samples, stratified by class.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only warnings, errors and the result.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, do nothing.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"pwoa {__version__}")
        raise typer.Exit


@app.command(epilog="""\b
Examples:
  pwoa prune model.pt --sparsity 0.9
  pwoa prune model.pt --sparsity 0.95 --data cifar10 --eps 8/255 --epochs 10
  pwoa prune model.pt --sparsity 0.5 --structure filter --recipe paper --set lr=1e-3""")
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: .pt, .pth or .safetensors.")],
    sparsity: Annotated[str, typer.Option("--sparsity", metavar="S", help="Fraction of weights to zero, between 0 and 1.")],
    structure: Annotated[str, typer.Option("--structure", metavar="KIND", help="unstructured, filter or column.")] = "unstructured",
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME|FILE", help="default, paper, or a TOML file.")] = "default",
    settings: Annotated[Optional[list[str]], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe (repeatable).")] = None,
    epochs: Annotated[Optional[float], typer.Option("--epochs", metavar="E", help="Epochs of both phases together.")] = None,
    batch_size: Annotated[Optional[int], typer.Option("--batch-size", metavar="B", help="Images in a training step.")] = None,
    data: Data = None, arch: Arch = None, teacher: Teacher = None, num_classes: Classes = None, mean: Mean = None, std: Std = None,
    norm: Norm = None, eps: Eps = None,
    attacks: Annotated[str, typer.Option("--attacks", metavar="A,B", help="Attacks of the report.")] = "fgsm,pgd-10,pgd-20,cw",
    n: N = 1000, seed: Seed = 0, device: Device = "auto",
    out: Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="Run folder. Default: pwoa-runs/MODEL-S-TIME.")] = None,
    json: Json = False, quiet: Quiet = False, dry_run: DryRun = False,
) -> None:
    """Prune a robust model and write a sparse file and a robustness report."""
    from pwoa_cli.console import Console

    wanted = parse_sparsity(sparsity)
    overrides = _overrides(settings, epochs=epochs, batch_size=batch_size)
    console = Console(json=json, quiet=quiet)
    console.say("loading torch")
    from pwoa_cli import prune as workflow
    from pwoa_cli import report, run
    from pwoa_cli.config import read_recipe
    from pwoa_cli.structure import STRUCTURES

    if structure not in STRUCTURES:
        raise InputError(f"--structure {structure!r}, expected one of {', '.join(STRUCTURES)}.", hint="For example: --structure filter")
    read_recipe(recipe, overrides=overrides)
    created = datetime.now()
    request = workflow.Request(
        _source(model, arch, num_classes, mean, std), wanted, structure=structure, recipe=recipe, overrides=overrides, teacher=teacher,
        data=data, norm=norm, eps=eps, attacks=attacks, n=n, seed=seed, device=device, out=out)
    job = workflow.prepare(request, say=console.say)
    folder = run.create(out, model_name=Path(model).stem, sparsity=wanted, now=created)
    if dry_run:
        run.discard_empty(folder)
        console.result(f"Everything checked; a run would write {folder}.", {"dry_run": True, "out": str(folder), "steps": job.plan.steps})
        return
    try:
        with console.progress() as progress:
            result = workflow.execute(job, folder, say=console.say, progress=progress.update, created=created)
    except (KeyboardInterrupt, PwoaError) as error:
        kept = sorted(p.name for p in folder.iterdir())
        console.warn(f"{'interrupted' if isinstance(error, KeyboardInterrupt) else 'stopped'}; kept in {folder}: {', '.join(kept) or 'nothing'}."
                     + ("" if "model.safetensors" in kept else " No pruned model was written."))
        if "model.safetensors" in kept:
            console.warn(f"the pruned model is whole; measure it: pwoa eval {folder / 'model.safetensors'}")
        run.discard_empty(folder)
        raise
    console.result(report.markdown(result), result, table=report.table(result))
    console.say(f"wrote {folder}\nnext: pwoa eval --attacks pgd,cw,aa")


@app.command("eval", epilog="""\b
Examples:
  pwoa eval --attacks pgd,cw,aa
  pwoa eval model.pt --attacks fgsm,pgd,cw,aa --n 1000
  pwoa eval pruned.safetensors --teacher model.pt --attacks pgd-40-s0.01 --json""")
def evaluate(
    model: Annotated[Optional[str], typer.Argument(metavar="[MODEL]", help="Checkpoint or pruned file. Default: the newest run, beside its teacher.")] = None,
    attacks: Annotated[str, typer.Option("--attacks", metavar="A,B", help="fgsm, pgd, pgd-K, cw, cw-K, apgd-ce, apgd-t, fab-t, square, aa, aa-fast.")] = "fgsm,pgd,cw",
    data: Data = None, arch: Arch = None, teacher: Teacher = None, num_classes: Classes = None, mean: Mean = None, std: Std = None,
    norm: Norm = None, eps: Eps = None, n: N = 1000,
    batch_size: Annotated[Optional[int], typer.Option("--batch-size", metavar="B", help="Most images in one pass.")] = None,
    seed: Seed = 0, device: Device = "auto",
    out: Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="Also write report.json and report.md here.")] = None,
    json: Json = False, quiet: Quiet = False, dry_run: DryRun = False,
) -> None:
    """Measure accuracy under attack of one model, or of the newest pruned one beside its teacher."""
    from pwoa_cli.console import Console

    console = Console(json=json, quiet=quiet)
    console.say("loading torch")
    from pwoa_cli import assess, report, run

    source = None if model is None else _source(model, arch, num_classes, mean, std)
    size = {} if batch_size is None else {"batch_size": batch_size}
    job = assess.prepare(assess.Request(source, attacks=attacks, teacher=teacher, data=data, norm=norm, eps=eps, n=n, seed=seed, device=device, **size),
                         say=console.say)
    folder = run.create(out, model_name="eval", sparsity=0, now=datetime.now()) if out else None
    if dry_run:
        if folder:
            run.discard_empty(folder)
        console.result("Everything checked; nothing was attacked.", {"dry_run": True})
        return
    with console.progress() as progress:
        result = assess.execute(job, progress=progress.update)
    if folder:
        run.write_text_atomic(folder / "report.md", report.markdown(result))
        run.write_json(folder / "report.json", result)
        console.say(f"wrote {folder}")
    console.result(report.markdown(result), result, table=report.table(result))


def parse_sparsity(text: str) -> float:
    """Fraction in (0, 1) from text. Raises: InputError, with what was meant where that can be guessed."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"--sparsity {text!r} is not a number.", hint="Nine weights in ten: --sparsity 0.9") from None
    if 1 < value < 100:
        raise InputError(f"--sparsity {text} is not between 0 and 1. Did you mean {value / 100:g}?", hint=f"--sparsity {value / 100:g}")
    if not 0 < value < 1:
        raise InputError(f"--sparsity {text} is not between 0 and 1 (0: nothing to prune, 1: nothing left).", hint="Nine weights in ten: --sparsity 0.9")
    return value


def _overrides(settings: list[str] | None, **direct: Any) -> dict[str, Any]:
    values: dict[str, Any] = {key: value for key, value in direct.items() if value is not None}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting!r} is not FIELD=VALUE.", hint="For example: --set lr=1e-3")
        values[key.strip()] = value.strip()
    return values


def _source(model: str, arch: str | None, num_classes: int | None, mean: str | None, std: str | None) -> Any:
    from pwoa_cli.subject import Source, parse_numbers

    return Source(model, arch=arch, num_classes=num_classes, mean=parse_numbers(mean, flag="--mean"), std=parse_numbers(std, flag="--std"))


def main() -> None:
    """Entry point of `pwoa`: run, and turn what went wrong into a sentence and an exit code."""
    try:
        app()
    except PwoaError as error:
        from pwoa_cli.console import Console

        Console().error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of a pipe has gone; what it wanted, it has
        sys.stdout = None
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
