"""`pwoa eval`: parse -> request -> workflow -> show."""
from typing import Annotated, Any

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.cli.gates import GateOptions, close
from pwoa_cli.cli.run_folder import NOTHING, no_folder, opened
from pwoa_cli.files import run_folder

GOES_ON = "What the attacks finished is kept: the same command with --resume goes on from there."


EXAMPLES = """\b
Examples:
  pwoa eval --attacks pgd,cw,aa
  pwoa eval model.pt --attacks pgd,cw,aa --samples 500
  pwoa eval pruned.safetensors --compare model.pt --json
  pwoa eval model.pt pruned.safetensors --attacks pgd
  pwoa eval --attacks aa --max-seconds 600 --resume"""


@options.with_groups
def evaluate(
    *, models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", show_default=False, help=(
        "Checkpoint, pruned file or run folder. Default: the newest run. A run is shown beside its "
        "teacher; several are measured on the same samples, in one table."))] = None,
    source: options.SourceOptions, compare: options.Compare = None,
    data: options.Data = None, pictures: options.DataOptions,
    logits: options.Logits = "all", norm: options.Norm = None, eps: options.Eps = None,
    attacks: options.Attacks = "fgsm,pgd,cw", curve: options.Curve = None,
    n: options.N = 1000, per_class: options.PerClass = False, gate: GateOptions,
    batch_size: options.PassBatch = None, seed: options.Seed = 0, device: options.Device = "auto",
    deterministic: options.Deterministic = False,
    max_seconds: options.MaxSeconds = None, resume: options.Resume = False,
    save_samples: options.SaveSamples = None,
    out: options.ReportFolder = None, json: options.Json = False,
    quiet: options.Quiet = False, verbose: options.Verbose = False, dry_run: options.DryRun = False,
) -> None:
    """Measure accuracy under attack."""
    model, *others = models or [""]
    gates, console = gate.parsed(), Console(json=json, quiet=quiet, verbose=verbose)
    jobs: list[Any] = []

    def goes_on() -> str:
        return GOES_ON if any(kept.made + kept.taken for job in jobs for kept in job.kept) else ""

    def without_folder() -> str:
        return f"no report was written. {goes_on()}" if goes_on() else NOTHING

    with opened(console, out, model=model, goes_on=goes_on,
                again=resume) if out else no_folder(without_folder) as folder:
        run_folder.check_file(save_samples, flag="--save-samples", ending=".npz")  # it may be in --out
        console.say("loading torch")
        from pwoa_cli.machine import determinism
        from pwoa_cli.reports import tables, terminal
        from pwoa_cli.workflows import evaluate as workflow

        if deterministic:
            determinism.fix()
        job = workflow.prepare(workflow.Request(
            source.of(model), others=[source.of(other) for other in others],
            teacher=source.of_teacher(compare), data=data,
            choices=pictures.choices(logits=logits), norm=norm, eps=eps, attacks=attacks, curve=curve,
            n=n, seed=seed, batch_size=batch_size, device=device, max_seconds=max_seconds, resume=resume,
            per_class=per_class, keep_inputs=save_samples is not None, gates=gates, strict=gate.strict),
            say=console.say)
        if dry_run:
            from pwoa_cli.workflows.attack_time import estimate

            guess = estimate(job, say=console.say)
            console.result(f"Everything checked; nothing was attacked.\n{guess}",
                           {"dry_run": True, "out": str(out) if out else None} | guess.to_json())
            return
        jobs.append(job)
        with console.progress() as progress:
            outcome = workflow.execute(job, progress=progress.update, say=console.say)
        for note in outcome.result["notes"]:
            if note.startswith("unreliable: "):
                console.warn(note)
        try:
            workflow.keep(outcome, folder=folder, saved=save_samples)
        finally:  # a full disk must not cost the figures
            shown = console.result(tables.markdown(outcome.result), outcome.result,
                                   table=lambda: terminal.one(outcome.result))
        if shown or folder:
            workflow.forget(outcome, job)
    for written in filter(None, (folder, save_samples)):
        console.say(f"wrote {written}")
    close(console, gate, outcome.result, text=tables.markdown(outcome.result),
          name=" ".join(models or ["newest run"]), short=tables.falls_short(outcome.result))
