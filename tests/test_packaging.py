"""What `pip install` brings: wheel and sdist of this checkout, and the command out of the wheel alone."""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
import yaml
from helpers import small_models as small
from helpers.cli_world import BUDGET, PACKAGE, TINY

import pwoa_cli

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])('.')"
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
VERSION = pwoa_cli.__version__


def built(kind, source):
    """The one file that setuptools makes of a source tree, offline and with what is installed here."""
    subprocess.run([sys.executable, "-c", BUILD, kind], cwd=source, check=True, capture_output=True)
    (made,) = source.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[kind])
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What packages are made of, beside a test; away from the checkout, whose build/ may hold old files."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, folder / "pwoa_cli", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_one.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def wheel(source):
    return built("wheel", source)


@pytest.fixture(scope="module")
def sdist(source):
    return built("sdist", source)


def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    package = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    info = f"pwoa_cli-{VERSION}.dist-info/"
    assert {name for name in names(wheel) if not name.startswith(info)} == package
    assert {"pwoa_cli/py.typed", "pwoa_cli/training/recipes/paper.toml",
            "pwoa_cli/checkpoints/signatures.json.gz"} <= package
    assert f"{info}licenses/LICENSE" in names(wheel)


def test_the_wheel_says_what_it_is(wheel):
    info = BytesParser().parsebytes(
        zipfile.ZipFile(wheel).read(f"pwoa_cli-{VERSION}.dist-info/METADATA"))
    assert (info["Name"], info["Version"], info["License-Expression"]) == ("pwoa-cli", VERSION, "MIT")
    assert info["Requires-Python"] == ">=3.11" and "Typing :: Typed" in info.get_all("Classifier")
    assert set(info.get_all("Provides-Extra")) == {"test", "bench", "onnx", "docs", "report"}
    assert info.get_payload().startswith("# pwoa\n")


def test_the_sdist_makes_the_same_wheel_and_brings_the_changes_but_no_tests(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (inside,) = tmp_path.iterdir()
    assert all((inside / name).is_file() for name in SOURCES) and not (inside / "tests").exists()
    assert names(built("wheel", inside)) == names(wheel)


def test_the_version_stands_once_and_is_said_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert citation["version"] == newest[1] == VERSION
    assert f'"{VERSION}"' not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["preferred-citation"]["doi"] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Python of an environment that has the wheel, and what it needs from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
                    "--disable-pip-version-check", wheel], check=True, env=alone())
    # A path in a .pth file is searched last, and .pth files there, as of an editable pwoa, are not read.
    (place,) = folder.glob("lib/python*/site-packages")
    (place / "theirs.pth").write_text(sysconfig.get_path("purelib"))
    return python


def alone():
    """The environment of a user who has no checkout on the path."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def test_out_of_the_wheel_alone_the_command_checks_itself_and_prunes(environment, tmp_path):
    small.save(small.sparse_lenet(), tmp_path / "model.pt")
    small.write_npz(tmp_path / "tiny.npz")

    def run(*words):
        done = subprocess.run([environment.parent / "pwoa", *words], cwd=tmp_path, env=alone(),
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run([environment, "-c", "import pwoa_cli; print(pwoa_cli.__file__)"], cwd=tmp_path,
                           env=alone(), capture_output=True, text=True, check=True).stdout
    assert Path(where).is_relative_to(environment.parents[1])
    assert run("--version") == f"pwoa {VERSION}\n"
    assert f"- versions: pwoa {VERSION}, " in run("doctor")
    out = run("prune", "model.pt", "--sparsity", "0.9", *TINY, *BUDGET, "--out", "run")
    assert "90 of 900 nonzero" in out and (tmp_path / "run/model.safetensors").is_file()
