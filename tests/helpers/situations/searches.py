"""Hints on the search for a sparsity (--max-loss), and on trainings that have no finite loss."""

from pathlib import Path

import numpy as np
import torch

from helpers import small_models as small
from helpers.cli_world import BUDGET, PRUNE, TINY
from helpers.situations import DRY, followed, left_out, prints, typed, without
from helpers.situations.files import raises, weights
from pwoa_cli.errors import InputError
from pwoa_cli.training import objective
from pwoa_cli.workflows import prune_search, search
from pwoa_cli.workflows.search import Stage

SEARCH = ["prune", "model.pt", "--max-loss", "70", *TINY, *BUDGET]
DRY_SEARCH = [*SEARCH, "--dry-run"]
POINTS, GOAL, HELD = "cli/options.py:parse_points: ", "workflows/search.py:goal: ", "workflows/held_out.py:"
FIND, FOOTING = "workflows/prune_search.py:", "training/footing.py:"

for wrong in ("much", "500%"):
    typed(POINTS + "One", [*without(DRY_SEARCH, "--max-loss"), "--max-loss", wrong])
for wrong in ("70%", "0,5"):
    typed(POINTS + "--max-loss", [*without(DRY_SEARCH, "--max-loss"), "--max-loss", wrong])
for wrong in ("0", "100", "nan"):
    typed(GOAL + "One image", [*without(DRY_SEARCH, "--max-loss"), "--max-loss", wrong])
left_out(GOAL + "Leave", [*DRY, "--held-out", "50"], "--held-out")
typed(HELD + "divided: --held-out", [*DRY_SEARCH, "--held-out", "200"])


@prints(GOAL + "See", GOAL + "One of")
def one_of_two_goals(tool):
    assert "--max-loss" in tool.works(*tool.refused("prune", "model.pt").removeprefix("See pwoa ").split())
    for sparsity in ("0.9", "0.99000001"):
        hint = tool.refused(*without(DRY_SEARCH, "--max-loss"), "--max-loss", "70", "--sparsity", sparsity)
        for one in hint.removeprefix("One of them: ").split(", or "):
            tool.works(*without(DRY_SEARCH, "--max-loss"), *one.split())


@prints(HELD + "divided: Name", "workflows/prune_job.py:_plan: {}")
def searches_that_cannot_begin(tool):
    small.write_npz("few.npz", n=16)
    for words in (
        [*without(DRY_SEARCH, "--data", "--n"), "--data", "few.npz", "--n", "4"],
        [*DRY_SEARCH, "--recipe", "paper"],
        [*DRY_SEARCH, "--set", "method=admm", "--set", "allocation=uniform"],
    ):
        hint = tool.refused(*words)
        *other, sparsity = hint.replace(": ", ", or ").split(", or ")
        tool.works(*without(words, "--max-loss"), *sparsity.split())
        if other[0].startswith("--"):
            tool.works(*followed(words, other[0]))


@prints(FIND + "_check_can_tell: Leave", FIND + "_check_can_tell: One", FIND + "_check_can_tell: {}")
def images_held_out_that_do_not_tell(tool):
    measure = prune_search.measure

    def without_figure(models, x, **options):
        made = measure(models, x, **options)
        for one in made.values():
            one.pop("pgd-2", None)
        return made

    tool.patch.setattr(search, "STAGES", 1)
    with tool.patch.context() as patch:
        patch.setattr(prune_search, "measure", without_figure)
        for asked in ("pgd-2,fgsm", "pgd-2"):
            tool.follow([*without(SEARCH, "--attacks"), "--attacks", asked])
    small.write_npz("more.npz", n=1000)
    for data, options in (("tiny.npz", 1), ("more.npz", 2)):
        words = [*without(SEARCH, "--max-loss"), "--max-loss", "0.5", "--data", data]
        found = tool.refused(*words).split(", or ")
        words = words if data == "tiny.npz" else [*words, "--max-loss", "2", "--eps", "0.001"]
        found = tool.refused(*words).split(", or ")
        assert len(found) == options
        for one in found:
            tool.fails_otherwise(*words, *one.split(), than="images held out, even a model")


def judged(points, interval, why=""):
    """In the place of prune_search._judged: every stage loses so much."""
    return lambda job, teacher, student: Stage(job.plan.sparsity, 1, 1.0, points, interval, False, why)


@prints(
    FIND + "_nothing: --structure",
    FIND + "_nothing: Longer stages: {}",
    FIND + "_nothing: Longer stages: {}{}",
    FIND + "_nothing: {}--max-loss {}",
)
def nothing_that_keeps_the_limit(tool):
    tool.patch.setattr(search, "STAGES", 1)
    words = [*SEARCH, "--structure", "filter"]
    with tool.patch.context() as patch:
        patch.setattr(prune_search, "at_sparsity", raises(InputError("cannot be reached.")))
        hint = tool.refused(*words)
    tool.works(*followed(words, hint))
    for stage, words in (
        (judged(9.0, (0.0, 20.0), "its gradients lie."), [*without(SEARCH, "--epochs"), "--effort", "quick"]),
        (judged(80.0, (70.0, 90.0)), SEARCH),
        (judged(90.0, (80.0, 99.7)), SEARCH),
        (judged(60.0, (50.0, 75.0)), SEARCH),
    ):
        with tool.patch.context() as patch:
            patch.setattr(prune_search, "_judged", stage)
            hint = tool.refused(*words).removeprefix("Longer stages: ")
        for one in hint.split(", or "):
            tool.works(*followed(words, one), "--dry-run")


@prints(FOOTING + "check: Leave", FOOTING + "check: {}", FOOTING + "_check_size")
def losses_that_are_not_finite(tool):
    with np.load("tiny.npz") as file:
        np.savez("one.npz", **{k: file[k][:1] if "train" in k else file[k] for k in file.files})
    words = [*without(PRUNE, "--data"), "--data", "one.npz"]
    tool.follow([*words, "--set", "lambda_x=0.1"])
    Path("mine.toml").write_text("lr = 1e-3\nepochs = 0.1\n")
    own = [*without(PRUNE, "--epochs"), "--recipe", "mine.toml"]
    with tool.patch.context() as patch:
        patch.setattr(objective, "terms", lambda *args, **options: {"hidden": torch.tensor(torch.inf)})
        hint = tool.refused(*PRUNE)
        assert tool.refused(*own).endswith("with --set: the recipe's own file")
    assert "hidden_weight" in tool.works(*hint.rpartition("pwoa ")[2].split())
    tool.works(*PRUNE, "--set", "hidden_weight=0", "--set", "explain_weight=0")
    torch.save({k: t * 1e5 if t.ndim > 1 else t for k, t in weights().items()}, "large.pt")
    assert "--normalize NAME, or --mean A,B,C --std A,B,C" in tool.refused("prune", "large.pt", *PRUNE[2:])
    for said in (["--normalize", "none"], ["--mean", "0", "--std", "1"]):
        tool.works(*PRUNE, *said)
