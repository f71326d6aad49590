"""Hints: every option that a sentence names exists, and every hint of the source is printed in a situation
that follows it."""

import ast
import re

import pytest
import typer
from helpers.cli_world import PACKAGE
from helpers.hints import hints, named
from helpers.situations import Tool
from helpers.situations.all import SITUATIONS

from pwoa_cli.cli import main

ELSEWHERE = {"--include"}  # of git lfs
PROGRAM = typer.main.get_command(main.app)
OPTIONS = (
    {name for command in PROGRAM.commands.values() for p in command.params for name in p.opts}
    | {name for p in PROGRAM.params for name in p.opts}
    | {"--help"}
    | ELSEWHERE
)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_every_option_and_command_that_a_sentence_names_exists(path):
    tree = ast.parse(path.read_text())
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    flags = {flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert flags <= OPTIONS, flags - OPTIONS
    commands = {
        name for text in texts for name in re.findall(r"(?:: |^|See )pwoa ([a-z]+) (?=-|MODEL|model)", text)
    }
    assert commands <= PROGRAM.commands.keys()


def test_every_hint_has_a_situation():
    covered = {hint for situation in SITUATIONS for name in situation.hints for hint in named(name)}
    assert not [str(hint) for hint in hints() if hint not in covered]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.hints[0].partition(": ")[0])
def test_a_hint_is_printed_and_followed(here, pwoa, monkeypatch, situation):
    monkeypatch.setenv("COLUMNS", "2000")
    tool = Tool(lambda *words: _wide(pwoa, monkeypatch, words), here, monkeypatch)
    situation.act(tool)
    for name in situation.hints:
        (hint,) = named(name)
        assert any(hint.is_of(*given) for given in tool.given), (name, tool.given)


def _wide(pwoa, patch, words):
    patch.setenv("COLUMNS", "2000")
    return pwoa(*words)
