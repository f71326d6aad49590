"""What the project needs from others: declared with a lower bound and a reason, nothing used that is not."""
import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.cli_world import PACKAGE

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
NAMES = {"PIL": "pillow"}  # of packages that are not called as they are imported
OPTIONAL = {"onnxruntime", "openvino", "matplotlib", "jinja2"}  # of extras, and of nobody's
MODULES = sorted(PACKAGE.rglob("*.py"))


def printed(script):
    return subprocess.run([sys.executable, ROOT / ".ci" / script], capture_output=True, text=True,
                          check=True).stdout


def bounds():
    """{package: lowest version} as `make oldest` installs them."""
    return dict(line.split("==") for line in printed("bounds.py").splitlines())


def core():
    lines = PROJECT.partition("dependencies = [")[2].partition("\n]")[0]
    return re.findall(r'^    "([\w-]+)[>=]', lines, re.M)


def imported(path):
    """First names of what a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_what_the_package_imports_is_declared_and_the_reverse():
    """A package that only comes along with another may go when that one's next release drops it."""
    known = {*sys.stdlib_module_names, "pwoa_cli", *OPTIONAL}
    found = {name for path in MODULES for name in imported(path)} - known
    assert {NAMES.get(name, name).replace("_", "-") for name in found} == set(core())


def test_a_wheel_holds_every_file_of_the_package():
    patterns = tomllib.loads(PROJECT)["tool"]["setuptools"]["package-data"]["pwoa_cli"]
    there = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*")
             if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there == {path.relative_to(PACKAGE) for one in patterns for path in PACKAGE.glob(one)}


def test_every_dependency_has_one_lower_bound_and_a_reason():
    declared = re.findall(r'^(?:    |\w+ = \[)"([\w-]+)[>=]=[\d.]+"(.*)$',
                          PROJECT.partition("\ndependencies")[2], re.M)
    assert {name for name, _ in declared} == bounds().keys() and core()
    assert not [name for name, rest in declared if not re.fullmatch(r",?\]? +# \S.*", rest)]
    assert OPTIONAL & bounds().keys() == OPTIONAL - {"openvino"}


@pytest.mark.parametrize("line", ["torch", "torch<3", "torch>=2.6,<3", "torch>=2.5"])
def test_a_requirement_without_one_lower_bound_is_refused(line, tmp_path):
    """The last one is of a package that has another bound already."""
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "bounds.py"
    script.write_text((ROOT / ".ci" / "bounds.py").read_text())
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "p"\ndependencies = ["torch>=2.6"]\n'
        f'optional-dependencies = {{ test = ["{line}"] }}\n')
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode and repr(line) in done.stderr


def test_the_page_of_licences_names_the_core_in_bold():
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \*\*([\w-]+)\*\* \| .", page, re.M) == sorted(core())


def test_the_page_of_licences_is_what_its_script_writes():
    """But for the versions' own wording: here, the packages and their order."""
    made = printed("licences.py")
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    assert made.partition("\n| package")[0] == page.partition("\n| package")[0]
    assert set(core()) <= set(re.findall(r"^\| \**([\w-]+)", made, re.M))


def test_security_says_what_runs_code():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for word in ("--trust-pickle", "--arch file.py:fn", "--config", "pwoa.attacks"):
        assert word in page
    assert all((ROOT / path).is_file() for path in re.findall(r"\]\(([\w./]+)\)", page))
