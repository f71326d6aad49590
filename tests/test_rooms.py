"""The house: rooms import what they say and only downwards, files are short, docs/architecture.md tells what
is there."""
import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli_world import PACKAGE

DOCS = Path(__file__).parents[1] / "docs" / "architecture.md"
MODULES = sorted(PACKAGE.rglob("*.py"))
LINES = 400
ROOMS = {path.parent.name: " ".join(ast.get_docstring(ast.parse(path.read_text())).split())
         for path in PACKAGE.glob("*/__init__.py")}
HALL = {"errors", "progress", "version"}  # modules that every room may import; the package itself is ""


def allowed(room):
    """Rooms that a room may import, as its docstring says: "It may import attacks and data.", or every room
    but one."""
    sentence = ROOMS[room].partition("It may import ")[2].partition(".")[0]
    assert sentence, f"{room} does not say what it may import"
    named = ROOMS.keys() & set(re.findall(r"\w+", sentence))
    return ROOMS.keys() - named - {room} if sentence.startswith("every room") else named


def imported(path):
    """Modules of the package that a file imports anywhere, named from its root."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("pwoa_cli."):
            base = node.module.split(".")[1:]
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield full if is_module(full) else ".".join(base)
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names
                        if alias.name.split(".")[0] == "pwoa_cli")
        else:
            assert not getattr(node, "level", 0), f"{path} imports relatively"


def is_module(name):
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_what_its_docstring_says(room):
    for path in (PACKAGE / room).rglob("*.py"):
        rooms = {name.split(".")[0] for name in imported(path)} - {room, *HALL}
        beyond = rooms - allowed(room) - ({""} if "every room" in ROOMS[room] else set())
        assert not beyond, f"{module_name(path)} imports from {', '.join(sorted(beyond))}"


def test_imports_point_downwards_only():
    """Neither what modules import, those for type checkers included, nor what rooms may import goes in a
    circle."""
    paths = {module_name(path): path for path in MODULES}
    assert all(other in paths for path in paths.values() for other in imported(path))
    for graph in ({name: set(imported(path)) for name, path in paths.items()},
                  {room: allowed(room) for room in ROOMS}):
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_module_lives_in_a_room():
    there = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert there == {*ROOMS, *HALL, "__init__", "__main__"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)) and len(text.splitlines()) <= LINES


def test_help_does_not_load_torch():
    code = ("import sys, pwoa_cli.cli.main as m; sys.argv = ['pwoa', 'prune', '--help']\ntry: m.main()\n"
            "except SystemExit: pass\nprint('torch' in sys.modules, 'rich' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("False False")


def test_the_page_on_the_architecture_names_what_is_there():
    text = DOCS.read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py):(\w+)", text)
    assert len(named) > 30
    for file, name in named:
        source = PACKAGE / file if (PACKAGE / file).exists() else PACKAGE / "networks" / file
        assert re.search(rf"^(def|class) {name}\b|^{name}\b.* = ", source.read_text(), re.M), f"{file}:{name}"
    rows = dict(re.findall(r"^\| \w* ?\| `(\w+)/` \|(.*)\|$", text, re.M))
    assert rows.keys() == ROOMS.keys()
    for folder, held in rows.items():
        there = {path.stem for path in (PACKAGE / folder).rglob("*")}
        assert set(re.findall(r"`(\w+)/?`", held)) <= there, folder
