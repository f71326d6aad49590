"""`pwoa prune`: parse -> request -> workflow -> show."""
import shlex
from dataclasses import asdict
from datetime import datetime
from functools import partial

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.gates import GateOptions, close
from pwoa_cli.cli.replay import Config, Unfinished, expected, only, said
from pwoa_cli.cli.run_folder import opened
from pwoa_cli.files.run_folder import model_of
from pwoa_cli.workflows.search import goal

EXAMPLES = """\b
Examples:
  pwoa prune model.pt --sparsity 0.9
  pwoa prune model.pt --sparsity 0.9 --norm l2 --eps 0.5
  pwoa prune model.pt --channels 0.5
  pwoa prune model.pt --sparsity 0.9 --max-drop worst=2
  pwoa prune model.pt --max-loss 1.0"""


@options.with_groups
def prune(
    *, context: typer.Context, model: options.Model, sparsity: options.Sparsity = None,
    max_loss: options.MaxLoss = None, held_out: options.HeldOut = None, channels: options.Channels = None,
    macs: options.Macs = None, nm: options.Neighbours = None,
    target_bytes: options.TargetBytes = None, structure: options.Structure = None,
    recipe: options.RecipeName = "default", settings: options.Settings = None, epochs: options.Epochs = None,
    effort: options.Effort = None, mix_ratio: options.MixRatio = None,
    batch_size: options.TrainingBatch = None,
    source: options.SourceOptions, teacher: options.Teacher = None,
    data: options.Data = None, pictures: options.DataOptions,
    norm: options.Norm = None, eps: options.Eps = None,
    attacks: options.ReportAttacks = "fgsm,pgd-10,pgd-20,cw", n: options.N = 1000,
    gate: GateOptions, seed: options.Seed = 0, device: options.Device = "auto",
    compile: options.Compile = "auto",
    deterministic: options.Deterministic = False, config: Config = None,
    resume: Unfinished = False, checkpoint_every: options.CheckpointEvery = 60,
    out: options.RunFolder = None,
    json: options.Json = False,
    quiet: options.Quiet = False, verbose: options.Verbose = False, dry_run: options.DryRun = False,
) -> None:
    """Prune a model and report what it cost."""
    sparsity, max_loss, *others, structure = only(
        context, ("sparsity",), ("max_loss", "held_out"), ("channels",), ("macs",), ("nm",),
        ("target_bytes",), structured=("channels", "macs", "nm"))
    wanted = goal(sparsity, None if max_loss is None else options.parse_points(max_loss), *others)
    created = datetime.now()
    overrides = options.overrides(settings, epochs=epochs, effort=effort, mix_ratio=mix_ratio,
                                  batch_size=batch_size)
    gates, console = gate.parsed(), Console(json=json, quiet=quiet, verbose=verbose)
    with opened(console, out, model=model, sparsity=str(wanted), created=created, run=True) as folder:
        console.say("loading torch")
        from pwoa_cli.machine import determinism
        from pwoa_cli.reports import tables, terminal, verdict
        from pwoa_cli.workflows import prune as workflow
        from pwoa_cli.workflows.prune_job import prepare
        from pwoa_cli.workflows.prune_request import Request, epochs_said

        if deterministic:
            determinism.fix()
        job = prepare(Request(
            source.of(model_of(model)), **asdict(wanted), structure=structure or "", recipe=recipe,
            overrides=overrides, teacher=source.of_teacher(teacher), data=data, choices=pictures.choices(),
            norm=norm, eps=eps, attacks=attacks, n=n, seed=seed, device=device, gates=gates,
            strict=gate.strict, command=said(context), sha256=expected(context, config), compile=compile),
            say=console.say)
        if dry_run:
            workflow.check_room(job, folder)
            guess = workflow.estimate(job, say=console.say)
            console.result(f"Everything checked; a run would write {folder}.\n"
                           f"{epochs_said(job.request, job.plan)}\n{guess.pop('text')}",
                           {"dry_run": True, "out": str(folder), "epochs": job.plan.epochs} | guess)
            return
        with console.progress() as progress:
            result = workflow.execute(job, folder, say=console.say, progress=progress.update, created=created,
                                      checkpoint_every=checkpoint_every)
        where = {"run": {"folder": str(folder), "model": str(folder / "model.safetensors")}}
        show = partial(console.result, tables.markdown(result), result | where,
                       table=lambda: terminal.one(result))
        try:
            workflow.keep(folder, result)
        except Exception:  # a full disk must not cost the figures
            show()
            raise
        show()
    run = f"{shlex.quote(str(folder))} " if out else ""  # else the newest
    own = f"--arch {shlex.quote(source.arch)} " if source.arch and ".py" in source.arch else ""
    console.say(f"wrote {folder}\nnext: pwoa eval {run}{own}--attacks pgd,cw,aa")
    close(console, gate, result, text=tables.markdown(result), name=folder.name,
          short=verdict.is_short(result))
