"""docs/licences.md: what `pip install .` brings, and under which licences, as the packages state them."""
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from bounds import core
from packaging.requirements import Requirement

HEAD = """# Licences of the dependencies

pwoa is under the [MIT licence](../LICENSE) and ships none of these packages: `pip install` fetches them.
The table holds the core (`pip install .`) and all that it needs in turn, on x86-64 Linux with Python 3.11,
as the packages' own metadata state it; what pyproject.toml names is bold. A CPU build of torch comes
without the CUDA libraries, which are proprietary. Made by `make licences`; `tests/test_supply.py` holds it
to pyproject.toml.

| package | licence |
|---|---|
"""


def licence(package: Distribution) -> str:
    """SPDX expression, else classifiers, else the first line of the licence field."""
    data = package.metadata
    if data.get("License-Expression"):
        return data["License-Expression"]
    classes = [text.split(" :: ") for text in data.get_all("Classifier", [])]
    named = [words[-1] for words in classes if words[0] == "License" and words[-1] != "OSI Approved"]
    return ", ".join(named) or (data.get("License") or "not stated").strip().splitlines()[0]


def needed(name: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """What a package needs here, and its extras that are asked for."""
    found = [Requirement(line) for line in distribution(name).requires or ()]
    return [one for one in found
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))]


def key(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """{name: installed package} of what is asked for and all that it needs, however far away."""
    found: dict[str, Distribution] = {}
    waiting, seen = [Requirement(line) for line in requirements], set()
    while waiting:
        one = waiting.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        with suppress(PackageNotFoundError):  # one of another platform
            found[key(one.name)] = distribution(one.name)
            waiting += needed(one.name, one.extras)
    return found


if __name__ == "__main__":
    own = {key(Requirement(line).name) for line in core()}
    print(HEAD + "\n".join(f"| {f'**{name}**' if name in own else name} | {licence(package)} |"
                           for name, package in sorted(closure(core()).items())))
