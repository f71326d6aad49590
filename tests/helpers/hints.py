"""Every hint of the package, read from its source, and which of them a run printed.

A hint is named PLACE:FUNCTION: TEXT, such as "cli/options.py:_seconds: Ten minutes: --max-seconds 600"; what
is filled in stands as {} there. Names of constants, of functions that return a hint and of variables of the
same function are followed to their texts, and both sides of a condition are hints of their own.
"""

import ast
import importlib
import operator
import re
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import NamedTuple

from helpers.cli_world import PACKAGE

FILLED = "{}"
# what can be followed to the letter: an option, a command, code, a field of a recipe, one of several names
CONCRETE = re.compile(
    r"--[a-z]|\bpwoa [a-z{]|\w\(|\bpython \{|[\w\]}] = |\[.+\]|\.py\b|=\w|"
    r"For example|Did you mean|Known:|Fields:|There are|It has:|In \{\}:|\.npz\b"
)


@dataclass(frozen=True)
class Hint:
    """place: the file, from the package's root; function: the innermost that holds it; text: with {} for what
    is filled in."""

    place: str
    function: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}:{self.function}: {self.text}"

    @property
    def concrete(self) -> bool:
        """Whether it can be followed to the letter."""
        return self.text == FILLED or bool(CONCRETE.search(self.text))

    def is_of(self, place: str, function: str, text: str) -> bool:
        """Whether an error that was raised there with this text had this hint."""
        pattern = ".*".join(map(re.escape, self.text.split(FILLED)))
        return (place, function) == (self.place, self.function) and bool(re.fullmatch(pattern, text, re.S))


@cache
def hints() -> tuple[Hint, ...]:
    """Every hint of the package, each once, in the order of files and lines."""
    found: dict[Hint, None] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place, tree = path.relative_to(PACKAGE), ast.parse(path.read_text(encoding="utf-8"))
        for function, value in _given(tree):
            scope = _Scope(
                importlib.import_module(".".join(["pwoa_cli", *place.with_suffix("").parts])), tree, function
            )
            found |= dict.fromkeys(
                Hint(str(place), function.name, text) for text in _texts(value, scope) if text
            )
    return tuple(found)


class _Scope(NamedTuple):
    """Where an expression stands."""

    module: ModuleType
    tree: ast.Module
    function: ast.FunctionDef


def _given(tree):
    """(innermost function, expression) of each hint=... in a file."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:  # outer ones first
        inner = [f for f in ast.walk(function) if isinstance(f, ast.FunctionDef) and f is not function]
        theirs = {part for f in inner for part in ast.walk(f)}
        yield from (
            (function, node.value)
            for node in ast.walk(function)
            if isinstance(node, ast.keyword)
            and node.arg == "hint"
            and node not in theirs
            and function.name != "__init__"
            and not _is_handed_on(node.value)
        )


def _is_handed_on(value):
    """Of an error that is raised again: the hint was found where it was made."""
    return ast.unparse(value).removeprefix("one_line(").startswith("error.hint")


def _texts(value, scope):
    """What an expression may say."""
    if isinstance(value, ast.IfExp):
        return [*_texts(value.body, scope), *_texts(value.orelse, scope)]
    if isinstance(value, ast.BoolOp):
        return [text for part in value.values for text in _texts(part, scope)]
    if isinstance(value, ast.Constant):
        return [value.value]
    if isinstance(value, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else FILLED for part in value.values)]
    found = [text for part in _meant(value, scope) for text in _texts(part, scope)]
    return found or [FILLED]


def _meant(value, scope):
    """The expressions that a name or a call of a function of the same file stands for."""
    if isinstance(value, ast.Call):
        makers = [
            f for f in scope.tree.body if isinstance(f, ast.FunctionDef) and ast.unparse(value.func) == f.name
        ]
        return [node.value for f in makers for node in ast.walk(f) if isinstance(node, ast.Return)]
    given = [
        node.value
        for node in ast.walk(scope.function)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == ast.unparse(value)
    ]
    arguments = scope.function.args
    given += [
        default
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default and one.arg == ast.unparse(value)
    ]
    text = (
        operator.attrgetter(ast.unparse(value))(scope.module)
        if not given and _is_there(value, scope)
        else None
    )
    return [*given, *([ast.Constant(text)] if isinstance(text, str) else [])]


def _is_there(value, scope):
    """Whether it is a name of the module, or an attribute of one."""
    first, *more = ast.unparse(value).split(".")
    return isinstance(value, ast.Name | ast.Attribute) and hasattr(scope.module, first)


def named(name):
    """The hint of this name, or the hints whose names begin so."""
    exact = [hint for hint in hints() if str(hint) == name]
    found = exact or [hint for hint in hints() if str(hint).startswith(name)]
    assert len(found) == 1, (name, [str(hint) for hint in found])
    return found
