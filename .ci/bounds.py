"""The lower bounds of pyproject.toml as exact versions, one a line: `make oldest` installs with them."""
import re
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def project() -> dict[str, Any]:
    """The table [project]."""
    return tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]


def core() -> list[str]:
    """What `pip install .` asks for, as it is written."""
    return project()["dependencies"]


def extras() -> list[str]:
    """What the extras ask for, as it is written, but for one another."""
    return [line for extra in project()["optional-dependencies"].values() for line in extra
            if not line.startswith(project()["name"] + "[")]


def pins() -> dict[str, str]:
    """{package: its lowest version}. Raises: ValueError for a requirement that is not NAME>=VERSION or
    NAME==VERSION, and for a package with two bounds."""
    found: dict[str, str] = {}
    for line in [*core(), *extras()]:
        parts = re.fullmatch(r"([\w.-]+)(?:>=|==)([\w.]+)", line)
        if parts is None or found.get(parts[1], parts[2]) != parts[2]:
            raise ValueError(f"{line!r}: expected one lower bound for each package, as in name>=1.2")
        found[parts[1]] = parts[2]
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in pins().items()))
