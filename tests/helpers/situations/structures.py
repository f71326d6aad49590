"""Hints on blocks, on so many of every few neighbours, and on the size of the file."""

from helpers.cli_world import PRUNE
from helpers.situations import DRY, left_out, prints, typed, without

JOB = "workflows/prune_job.py:"
NM = ["prune", "model.pt", "--nm", "2:4", *PRUNE[4:]]
typed("workflows/search.py:neighbours", [*NM[:3], "4:2", *NM[4:], "--dry-run"])
left_out(JOB + "_structure: Leave", [*NM, "--structure", "filter", "--dry-run"], "--structure")
typed(JOB + "_check_structure: --set allocation", [*NM, "--set", "allocation=lamp", "--dry-run"])
typed(JOB + "_check_structure: --set regrow", [*NM, "--set", "regrow=0.3", "--dry-run"])
typed("workflows/prune_weights.py:_nothing: --structure unstructured", [*DRY, "--structure", "block:3x1"])
typed("workflows/prune_weights.py:counted: --structure unstructured", [*DRY, "--structure", "block:1x9"])


@prints(JOB + "_structure: In the place")
def neighbours_that_are_named_as_a_structure(tool):
    for kind in ("n:m", "2:4"):
        hint = tool.refused(*DRY, "--structure", kind)
        instead = hint.partition("place of --structure and --sparsity: ")[2]
        tool.works(*without(DRY, "--sparsity"), *instead.split())


@prints(JOB + "_check_sparsity: Ask for more: {}")
def fewer_zeros_than_there_are(tool):
    tool.works(*NM, "--out", "first")
    first = ["prune", "first", "--nm", "3:4", *NM[4:], "--dry-run"]
    hint = tool.refused(*first)
    assert hint == "Ask for more: --nm 1:4, or --sparsity 0.8"
    for more in hint.partition(": ")[2].split(", or "):
        tool.works(*without(first, "--nm"), *more.split())


SIZE = ["prune", "model.pt", "--target-bytes", "3000", *PRUNE[4:], "--dry-run"]
typed("workflows/search.py:size_bytes", [*SIZE[:3], "much", *SIZE[4:]], "--target-bytes 500k",
      "--target-bytes 3000")
typed("workflows/prune_size.py:sparsity_for: --target-bytes", [*SIZE[:3], "50", *SIZE[4:]])


@prints("workflows/prune_size.py:sparsity_for: As it is")
def a_file_that_is_small_already(tool):
    hint = tool.refused(*SIZE[:3], "1MB", *SIZE[4:])
    tool.works(*hint.partition("pwoa ")[2].split())
