"""Situations in which the tool prints its hints, and what comes of following them.

`SITUATIONS` holds them by the hints that they print, named as tests/helpers/hints.py names them, or by how
such a name begins. A situation gets a `Tool`: it makes the hint be printed, and follows it.
"""

import re
import shlex
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.cli_world import PACKAGE, PRUNE, TINY
from pwoa_cli.errors import PwoaError

EVAL = ["eval", "model.pt", *TINY, "--attacks", "fgsm"]
DRY = [*PRUNE, "--dry-run"]
ALONE = ("--trust-pickle", "--resume", "--strict")  # options without a value


class Situation(NamedTuple):
    """hints: what it prints; act: makes it so, and follows."""

    hints: tuple[str, ...]
    act: Callable[["Tool"], None]


SITUATIONS: list[Situation] = []


def prints(*names):
    """The decorated function is a situation that prints these hints."""

    def noted(act):
        SITUATIONS.append(Situation(names, act))
        return act

    return noted


def typed(name, words, said="", instead="", code=2):
    """A command that prints a hint; with its options, or of them `said`, for which `instead` stands, it
    works."""
    SITUATIONS.append(Situation((name,), lambda tool: tool.follow(words, said, instead, code=code)))


def left_out(name, words, *flags):
    """A command that prints a hint to leave options out, which then works."""

    def act(tool):
        tool.refused(*words)
        tool.works(*without(words, *flags))

    SITUATIONS.append(Situation((name,), act))


class Tool:
    """The command line in a folder, and every hint that was given since: (place, function, text)."""

    def __init__(self, run, here, patch):
        self.run, self.here, self.patch, self.given = run, here, patch, []
        made = PwoaError.__init__

        def noted(error, message, *, hint=""):
            made(error, message, hint=hint)
            for frame in traceback.extract_stack()[:-1]:  # a hint may be handed down
                if Path(frame.filename).is_relative_to(PACKAGE):
                    self.given.append((str(Path(frame.filename).relative_to(PACKAGE)), frame.name, hint))

        patch.setattr(PwoaError, "__init__", noted)

    def refused(self, *words, code=2):
        """The hint that the command ends with."""
        got, _, err = self.run(*words)
        assert got == code and "\nhint: " in f"\n{err}", err
        hint = err.partition("hint: ")[2].rstrip("\n")
        assert any(text and _same(text, hint) for _, _, text in self.given), hint
        return hint

    def works(self, *words):
        """The command does what it is for: 1: a gate that is one; 3: near chance, of a network so small."""
        code, out, err = self.run(*words)
        assert code in (0, 1, 3), (words, err)
        return out

    def fails_otherwise(self, *words, than):
        """The command gets past what `than` says."""
        code, _, err = self.run(*words)
        assert code in (0, 1, 2, 3) and than not in err, (words, err)

    def follow(self, words, said="", instead="", *, code=2):
        """The command is refused, and works with what its hint says, `instead` in the place of `said`."""
        hint = self.refused(*words, code=code)
        assert said in hint, hint
        self.works(*followed(words, instead or said or hint))

    def raised(self, call, *args, **options):
        """The hint of an error that a function raises."""
        with pytest.raises(PwoaError) as caught:
            call(*args, **options)
        return caught.value.hint


def _same(text, shown):
    return " ".join(text.split()) == " ".join(shown.split())


def followed(words, hint):
    """The command with the options that its hint names, in the place of what was said of them before."""
    kept = list(words)
    for flag, value in re.findall(r"(--[a-z-]+)(?: ('[^']*'|[^\s,;)]+))?", hint.partition(". Or")[0]):
        if flag == "--set":
            field = value.partition("=")[0]
            kept = _without(kept, flag, field) if f"{flag} {field}" in " ".join(kept) else kept
        elif flag in kept:
            kept = without(kept, flag)
        kept += [flag] if flag in ALONE else [flag, *shlex.split(value)]
    return kept


def without(words, *flags):
    """The command without options and their values."""
    for flag in flags:
        words = _without(list(words), flag, "")
    return words


def _without(words, flag, start):
    at = next(
        i
        for i, word in enumerate(words)
        if word == flag and (not start or words[i + 1].partition("=")[0].strip() == start)
    )
    return words[:at] + words[at + (1 if flag in ALONE else 2) :]


def in_files(text, *, name="net.py"):
    """A Python file with `text`, its name with fn."""
    Path(name).write_text(text)
    return f"{name}:fn"


LENET = """from pwoa_cli.networks.families.small import LeNet


def fn(num_classes=4):
    return LeNet(size=8, widths=(4, 8), hidden=16, num_classes=num_classes)
"""
