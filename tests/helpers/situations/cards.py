"""Hints on folders to publish."""

from pathlib import Path

from helpers.cli_world import PRUNE, TINY
from helpers.situations import left_out, prints, typed, without
from pwoa_cli.workflows import card as workflow

CLI, AT = "cli/export.py:", "workflows/card.py:"

typed(CLI + "_one: For", ["export", "model.pt"], "--format dense, or a folder to publish: --card DIR",
      "--format dense")
left_out(CLI + "_one: Leave", ["export", "model.pt", "--format", "dense", "--license", "mit"], "--license")


def _run():
    return str(next(Path("pwoa-runs").glob("model-*")))


@prints(CLI + "_one: Name")
def two_models_for_one_file(tool):
    words = ["export", "model.pt", "pruned.safetensors", "--format", "dense"]
    tool.refused(*words)
    tool.works(*words[:2], *words[3:])


@prints(CLI + "_card: Leave", CLI + "_card: --additional-data")
def options_that_a_card_has_not(tool):
    words = ["export", _run(), "--card", "card"]
    tool.refused(*words, "--eps", "0.1")
    tool.works(*words)
    tool.follow([*words, "--additional-data", "perhaps"], "--additional-data no")


@prints(AT + "prepare", AT + "_evaluations")
def what_is_no_run_of_a_card(tool):
    tool.works("eval", "model.pt", *TINY, "--attacks", "fgsm", "--out", "other")
    assert tool.refused("export", "other", "--card", "card").startswith("Name a run's folder")
    assert tool.refused("export", _run(), "other", "--card", "card").startswith("Leave it away")
    tool.works("export", _run(), "--card", "card")


@prints(AT + "_check_out")
def folders_that_hold_something_else(tool):
    for out in ("model.pt", ".", "pwoa-runs"):
        hint = tool.refused("export", _run(), "--card", out)
        tool.works("export", _run(), *hint.partition(": ")[2].replace("DIR", f"card-{len(out)}").split())


@prints(AT + "check_files")
def two_runs_of_one_sparsity(tool):
    names = ["a b", "a,b"]  # one file name without what is no letter
    for name in names:
        tool.works(*PRUNE, "--out", name)
    tool.refused("export", *names, "--card", "card")
    tool.works("export", names[0], "--card", "card")


@prints(AT + "_check_together")
def runs_of_other_conditions(tool):
    tool.works(*without(PRUNE, "--eps"), "--eps", "0.25", "--out", "closer")
    hint = tool.refused("export", _run(), "closer", "--card", "card")
    assert hint.endswith("pwoa export RUN --card DIR")
    for number, run in enumerate((_run(), "closer")):
        tool.works("export", run, "--card", str(number))


@prints(AT + "execute: Name", AT + "execute: Type", "files/atomic.py:whole_folder")
def cards_that_cannot_be_written(tool):
    words = ["export", _run(), "--card", "model.pt/card"]
    assert tool.refused(*words) == workflow.OUT_CARD
    tool.works(*words[:-1], "card")
    with tool.patch.context() as patch:
        patch.setattr(workflow, "file_sha256", lambda path: "0" * 64)
        patch.setattr(workflow, "_check_out", lambda out: None)
        assert tool.refused(*words[:-1], "again") == "Type the command again."
    assert not Path("again").exists()
    tool.works(*words[:-1], "again")
