"""Hints on what is typed: options, attacks, threats, gates, recipes by name, folders."""

from pathlib import Path

from helpers.cli_world import PRUNE, TINY
from helpers.situations import DRY, EVAL, followed, left_out, prints, typed, without

OPTIONS = "cli/options.py:"
typed(OPTIONS + "parse: Ten", [*EVAL, "--max-seconds", "soon"])
typed("workflows/search.py:fraction: Nine", [*DRY[:3], "much", *DRY[4:]])
typed(OPTIONS + "overrides", [*DRY, "--set", "lr"])
left_out(OPTIONS + "fraction", ["info", "model.pt", "--keep", "2"], "--keep")
typed(OPTIONS + "fraction", ["info", "model.pt", "--keep", "2"])
typed(OPTIONS + "choices: --logits", [*EVAL, "--logits", "some"])
typed("machine/devices.py:device_named", [*EVAL, "--device", "cuda:7"])
left_out("machine/devices.py:device_named", [*EVAL, "--device", "cuda:7"], "--device")
typed("data/samples.py:stratified", [*EVAL, "--samples", "65"])
typed("workflows/prune_job.py:_structure: For", [*DRY, "--structure", "filters"])
typed("training/compilation.py:check", [*DRY, "--compile", "maybe"])
typed(
    "workflows/setup.py:_threat", ["eval", "model.pt", "--data", "tiny.npz", "--n", "20", "--attacks", "fgsm"]
)
typed("evaluation/security_curve.py:radii", [*EVAL, "--curve", "0.1,,0.2", "--dry-run"])
typed("workflows/evaluate.py:_radii", [*EVAL[:-1], "clean", "--curve", "0.1", "--dry-run"])
typed("attacks/__init__.py:parse: One", [*EVAL[:-1], "fgsm,,pgd"], "--attacks pgd,cw,aa", "--attacks pgd,cw")


@prints(
    "attacks/__init__.py:parse: Known",
    "attacks/__init__.py:_resolve",
    "attacks/threat.py:parse_norm",
    "attacks/__init__.py:check_norm",
)
def one_of_those_that_are_known(tool):
    for words, flag, example in (
        ([*EVAL[:-1], ""], "--attacks", "pgd"),
        ([*EVAL[:-1], "pgf"], "--attacks", "pgd"),
        ([*EVAL, "--norm", "l3"], "--norm", "linf"),
        ([*EVAL[:-1], "cw-l2", "--norm", "l1"], "--attacks", "pgd"),
    ):
        names = tool.refused(*words).partition(": ")[2].split(", ")
        assert example in names
        tool.works(*without(words, flag), flag, example, "--dry-run")


@prints("attacks/__init__.py:_fmn", "attacks/__init__.py:_iterative", "attacks/threat.py:parse_eps")
def an_example_of_what_is_typed(tool):
    for words, flag, examples in (
        ([*EVAL[:-1], "fmn-0"], "--attacks", ["fmn", "fmn-200"]),
        ([*EVAL[:-1], "pgd-0"], "--attacks", ["pgd-40", "pgd-40-r5", "pgd-40-s0.01"]),
        *(([*EVAL, "--eps", eps], "--eps", ["8/255", "0.03"]) for eps in ("big", "0", "80")),
    ):
        hint = tool.refused(*words)
        for example in examples:
            assert example in hint
            tool.works(*without(words, flag), flag, example, "--dry-run")


@prints("cli/main.py:_help", "cli/main.py:main: See")
def help_of_the_command(tool):
    for words in (["help", "prun"], ["prun"], ["prune"], ["eval", "--nonsense"]):
        hint = tool.refused(*words)
        assert tool.works(*hint.removeprefix("See pwoa ").split()).startswith("Usage: pwoa")


@prints("cli/recipe.py:recipe: pwoa recipe list", "cli/recipe.py:recipe: pwoa recipe {}")
def recipes_by_command(tool):
    for words in (["shew"], ["list", "default"], ["show"], ["check"]):
        hint = tool.refused("recipe", *words)
        tool.works(*hint.split()[1:])


@prints(
    "reports/gates.py:parse: For example: {}",
    "reports/gates.py:parse: For example: {} {}={}",
    "reports/gates.py:parse: {}",
    "reports/gates.py:resolved: Ask",
    "reports/gates.py:resolved: Name",
)
def gates(tool):
    for words in (
        ["--min", "much"],
        ["--max-drop", "fgsm"],
        ["--min", "fgsm=45"],
        ["--min", "fgsm=-1"],
        ["--min", "fgsm=101"],
        ["--max-drop", "fgsm=200"],
    ):
        again = followed([*EVAL, *words], tool.refused(*EVAL, *words))
        tool.works(*again, *["--compare", "model.pt"] * (words[0] == "--max-drop"))
    assert "--attacks pgd,cw,aa" in tool.refused(*EVAL, "--min", "pgd=0.1")
    tool.works(*EVAL[:-1], "pgd", "--min", "pgd=0.1")
    assert "--compare FILE, or evaluate a run" in tool.refused(*EVAL, "--max-drop", "fgsm=1")
    tool.works(*EVAL, "--max-drop", "fgsm=1", "--compare", "model.pt")
    tool.works("eval", "--n", "20", "--attacks", "fgsm", "--max-drop", "fgsm=1")


@prints(
    "files/run_folder.py:create",
    "files/run_folder.py:_named: Name a folder",
    "files/run_folder.py:_named: Name a new",
    "files/run_folder.py:check_free: Free",
)
def folders_for_a_run(tool):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    for out in ("model.pt/x", "model.pt", "full"):
        assert "--out DIR" in tool.refused(*PRUNE, "--out", out)
    tool.works(*DRY, "--out", "new")
    tool.works(*DRY)
    tool.patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    assert "another disk: --out DIR" in tool.refused(*PRUNE)
    tool.patch.undo()


@prints("files/run_folder.py:check_file: For", "files/run_folder.py:check_file: Name")
def files_of_an_evaluation(tool):
    for flag, name in (("--save-samples", "x.txt"), ("--junit", "x.txt")):
        words = [*EVAL, "--min", "fgsm=0", flag, name]
        tool.works(*followed(words, tool.refused(*words)))
        assert "write to" in tool.refused(*words[:-1], f"absent/x{'.npz' if 'save' in flag else '.xml'}")


@prints("files/run_folder.py:newest: Make", "reports/runs.py:listed", "files/plain.py:read_json: Make")
def no_run_yet(tool):
    for words in (["eval", "--attacks", "fgsm"], ["runs", "absent"], ["report", "absent"]):
        if words[0] == "eval":
            Path("pwoa-runs").rename("old")
        hint = tool.refused(*words)
        tool.works(*hint.split("pwoa ")[1].split(), *TINY, "--dry-run")


@prints("files/run_folder.py:newest: Name")
def runs_that_are_no_folder(tool):
    Path("pwoa-runs").rename("old")
    Path("pwoa-runs").write_text("")
    assert "pwoa eval MODEL" in tool.refused("eval", "--attacks", "fgsm")
    tool.works(*EVAL)
