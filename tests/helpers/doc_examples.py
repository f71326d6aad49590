"""The code blocks of README and docs/: commands and Python, each with the place where it stands.

A block is indented by four spaces or fenced. What begins like a command is one, with the lines that it goes
on over; other lines of a block are what a command printed, files, or formulas.
"""
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "examples/plugin/README.md")),
         *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?P<tool>pwoa|python|pip|make|git) ")
SYNTAX = re.compile(r"\[[-A-Za-z]|[a-z]\|[a-z]|\.\.\.")  # [options], sparse|slim, MODEL...: not to be typed
PYTHON = re.compile(r"(?:import|from) \w")


class Example(NamedTuple):
    """page: from the root; line: of the page; tool: pwoa, python, ...; text: all that is typed."""

    page: str
    line: int
    tool: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


class Block(NamedTuple):
    """page, line: where its first line stands; text: without the indentation."""

    page: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page."""
    found, now, first, fenced = [], [], 0, False
    for number, line in enumerate([*page.read_text(encoding="utf-8").splitlines(), ""], start=1):
        if fence := line.startswith("```"):
            fenced = not fenced
        code = line if fenced else line[4:] if line.startswith("    ") else "" if not line and now else None
        if code is not None and not fence and (line or not _ends(page, number, fenced)):
            first = first if now else number
            now.append(code)
        elif now:
            found.append(Block(str(page.relative_to(ROOT)), first, "\n".join(now).strip("\n") + "\n"))
            now = []
    return found


def _ends(page: Path, number: int, fenced: bool) -> bool:
    """Whether an empty line ends an indented block: what follows is not indented."""
    rest = page.read_text(encoding="utf-8").splitlines()[number:]
    following = next((line for line in rest if line), "")
    return not fenced and not following.startswith("    ")


def is_python(block: Block) -> bool:
    return PYTHON.match(block.text) is not None


def commands(page: Path) -> list[Example]:
    """What a reader is told to type, in the order of the page; comments are left out."""
    found = []
    for block in blocks(page):
        lines = iter(enumerate(block.text.splitlines(), start=block.line))
        for number, line in lines:
            match = COMMAND.match(line)
            text = line
            while match and text.rstrip().endswith("\\"):
                text = text.rstrip().removesuffix("\\") + next(lines)[1].strip()
            if match:
                found.append(Example(block.page, number, match["tool"], re.sub(r"\s+# .*", "", text).strip()))
    return found


def named(page: Path) -> list[Example]:
    """Commands inside sentences: `pwoa eval --dry-run`, without those that are only the name of one."""
    text = page.read_text(encoding="utf-8")
    return [Example(str(page.relative_to(ROOT)), text.count("\n", 0, match.start()) + 1, "pwoa", match[1])
            for match in re.finditer(r"`(pwoa [a-z]+ [^`]+)`", text)]
