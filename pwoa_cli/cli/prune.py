"""`pwoa prune`: parse -> request -> workflow -> show."""
import shlex
from datetime import datetime

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.gates import GateOptions, tell
from pwoa_cli.cli.replay import Config, expected, said
from pwoa_cli.cli.run_folder import opened
from pwoa_cli.errors import GATE, UNASKED
from pwoa_cli.files.run_folder import model_of

EXAMPLES = """\b
Examples:
  pwoa prune model.pt --sparsity 0.9
  pwoa prune model.pt --sparsity 0.9 --norm l2 --eps 0.5
  pwoa prune model.pt --channels 0.5 --structure channel
  pwoa prune model.pt --sparsity 0.9 --max-drop worst=2"""


@options.with_groups
def prune(
    *, context: typer.Context, model: options.Model, sparsity: options.Sparsity = None,
    channels: options.Channels = None, structure: options.Structure = "unstructured",
    recipe: options.RecipeName = "default", settings: options.Settings = None, epochs: options.Epochs = None,
    effort: options.Effort = None, mix_ratio: options.MixRatio = None,
    batch_size: options.TrainingBatch = None,
    source: options.SourceOptions, teacher: options.Teacher = None,
    data: options.Data = None, pictures: options.DataOptions,
    norm: options.Norm = None, eps: options.Eps = None,
    attacks: options.ReportAttacks = "fgsm,pgd-10,pgd-20,cw", n: options.N = 1000,
    gate: GateOptions, seed: options.Seed = 0, device: options.Device = "auto", config: Config = None,
    out: options.RunFolder = None,
    json: options.Json = False,
    quiet: options.Quiet = False, dry_run: options.DryRun = False,
) -> None:
    """Prune a model and report what it cost."""
    (wanted, share), created = options.budget(sparsity, channels), datetime.now()
    overrides = options.overrides(settings, epochs=epochs, effort=effort, mix_ratio=mix_ratio,
                                  batch_size=batch_size)
    gates, console = gate.parsed(), Console(json=json, quiet=quiet)
    with opened(console, out, model=model, sparsity=wanted, created=created) as folder:
        console.say("loading torch")
        from pwoa_cli.reports import tables
        from pwoa_cli.workflows import prune as workflow
        from pwoa_cli.workflows.prune_job import Request, prepare

        job = prepare(Request(
            source.of(model_of(model)), wanted, structure=structure, recipe=recipe, overrides=overrides,
            teacher=source.of_teacher(teacher), data=data, choices=pictures.choices(),
            norm=norm, eps=eps, attacks=attacks, n=n, seed=seed, device=device, gates=gates,
            strict=gate.strict, command=said(context), sha256=expected(context, config),
            channels=share), say=console.say)
        if dry_run:
            guess = workflow.time_to_fit(job)
            console.result(f"Everything checked; a run would write {folder}.\n{guess}", {
                "dry_run": True, "out": str(folder), "steps": guess.steps, "seconds": guess.seconds,
                "seconds_per_step": guess.seconds_per_step,
                "seconds_per_million_weights_and_image": guess.seconds_per_step / guess.work})
            return
        with console.progress() as progress:
            result = workflow.execute(job, folder, say=console.say, progress=progress.update, created=created)
    where = {"run": {"folder": str(folder), "model": str(folder / "model.safetensors")}}
    console.result(tables.markdown(result), result | where, table=lambda: tables.table(result))
    run = f"{shlex.quote(str(folder))} " if out else ""  # else the newest
    own = f"--arch {shlex.quote(source.arch)} " if source.arch and ".py" in source.arch else ""
    console.say(f"wrote {folder}\nnext: pwoa eval {run}{own}--attacks pgd,cw,aa")
    if not tell(console, gate, result, name=folder.name):
        raise typer.Exit(GATE)
    if tables.only_guesses(result) or tables.falls_short(result):
        raise typer.Exit(UNASKED)
