"""Hook of mkdocs: files of the repository outside docs/ that pages link to go into the site beside the pages.

A link ../examples/api.py of docs/python.md is right in the repository; in the site the file lies at
examples/api.py. It needs no address of a host. Pages lie in docs/ itself, so one level up is the repository.
"""
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")
INSIDE = re.compile(r"\]\(docs/")  # of CHANGELOG.md, which lies at the repository's root and at the site's


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to. Raises nothing: a link to what is not there stays, and mkdocs warns of it."""
    root = Path(config.config_file_path).parent
    linked = {name for page in files.documentation_pages() for name in OUTSIDE.findall(page.content_string)}
    for name in sorted(linked | {"CHANGELOG.md"}):
        if (root / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """../NAME and docs/NAME as they are in the site."""
    return INSIDE.sub("](", OUTSIDE.sub(r"](\1", markdown))
