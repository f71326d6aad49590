"""Hints: every option that a sentence names exists, and hints that name one are followed and work."""
import ast
import datetime
import re
import shlex

import numpy as np
import pytest
import torch
import typer
from helpers.cli_world import PACKAGE, PRUNE, TINY

from pwoa_cli.cli import main

ELSEWHERE = {"--include"}  # of git lfs
PROGRAM = typer.main.get_command(main.app)
OPTIONS = {name for command in PROGRAM.commands.values() for p in command.params for name in p.opts} | {
    name for p in PROGRAM.params for name in p.opts} | {"--help"} | ELSEWHERE


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_every_option_and_command_that_a_sentence_names_exists(path):
    tree = ast.parse(path.read_text())
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
             and isinstance(node.value, str)]
    named = {flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert named <= OPTIONS, named - OPTIONS
    commands = {name for text in texts
                for name in re.findall(r"(?:: |^|See )pwoa ([a-z]+) (?=-|MODEL|model)", text)}
    assert commands <= PROGRAM.commands.keys()


def followed(words, err):
    """The command with the options that its hint names, in place of what was said of them before."""
    hint, kept = err[err.index("hint: "):], list(words)
    for flag, value in re.findall(r"(--[a-z-]+)(?: ([^\s,;)]+))?", hint.partition(". Or")[0]):
        if flag in kept:
            del kept[kept.index(flag):kept.index(flag) + 2]
        is_flag = flag in ("--trust-pickle", "--resume", "--strict")
        kept += [flag] if is_flag else [flag, *shlex.split(value.rstrip("."))]
    return kept


def two_models(here):
    state = torch.load("model.pt", weights_only=True)
    torch.save({"best": state, "last": state}, "m.pt")
    return ["info", "m.pt"]


def students(here):
    state = torch.load("model.pt", weights_only=True)
    torch.save({f"{who}.{k}": t for who in ("student", "teacher") for k, t in state.items()}, "m.pt")
    return ["info", "m.pt"]


def whole(here):
    torch.save({"net": torch.load("model.pt", weights_only=True), "when": datetime.date(2020, 1, 1)}, "m.pt")
    return ["info", "m.pt"]


def from_one(here):
    with np.load("tiny.npz") as file:
        arrays = {name: file[name] + name.startswith("y_") for name in file.files}
    np.savez("one.npz", **arrays)
    return ["eval", "model.pt", "--data", "one.npz", "--eps", "0.5", "--n", "20", "--attacks", "fgsm"]


SITUATIONS = {
    "two epochs": two_models, "student and teacher": students, "code in the file": whole,
    "labels from 1": from_one,
    "percent": lambda here: [*PRUNE[:2], "--sparsity", "90", *PRUNE[4:]],
    "device": lambda here: ["eval", "model.pt", *TINY, "--attacks", "fgsm", "--device", "cuda:7"],
    "attack that is not asked for": lambda here: ["eval", "model.pt", *TINY, "--attacks", "fgsm", "--min",
                                                  "pgd=0.0"],
    "percent of a gate": lambda here: ["eval", "model.pt", *TINY, "--attacks", "fgsm", "--min", "fgsm=1.5"],
    "samples": lambda here: ["eval", "model.pt", *TINY[:4], "--attacks", "fgsm", "--samples", "65"],
    "structure": lambda here: [*PRUNE, "--structure", "filters"],
    "no eps": lambda here: ["eval", "model.pt", "--data", "tiny.npz", "--n", "20", "--attacks", "fgsm"]}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_hint_that_is_followed_works(here, pwoa, situation):
    words = SITUATIONS[situation](here)
    code, _, err = pwoa(*words)
    assert code == 2 and "hint: " in err, err
    again = followed(words, err)
    code, _, err = pwoa(*again)
    assert code in (0, 1, 3), (again, err)  # 1: a gate that is now one; 3: of a network so small, near chance
