"""examples/benchmarks/page.py: the benchmarks it starts know their options, and a page keeps what it has."""
import importlib.util
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("page", ROOT / "examples/benchmarks/page.py")
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_benchmark_knows_what_it_is_started_with(device, monkeypatch):
    monkeypatch.setattr(page, "device_named", torch.device)
    args = Namespace(model="m.pt", data="mnist", eps="8/255", samples=3, seconds=1.0, device=device)
    found = dict(page.sections(args))
    assert len(found) == (8 if device == "cpu" else 4)
    for script, *words in found.values():
        text = (page.HERE / script).read_text()
        assert all(f'"{word}"' in text for word in words if word.startswith("--"))
    headings = re.findall("^## (.+)$", (ROOT / "docs/benchmarks.md").read_text(), re.M)
    assert found.keys() <= set(headings)


def test_a_page_keeps_what_it_has_and_names_what_failed(tmp_path, monkeypatch, capfd):
    (tmp_path / "good.py").write_text("print('| a |')\nprint('|---|')")
    (tmp_path / "bad.py").write_text("print('begun')\nraise SystemExit('no such thing')")
    monkeypatch.setattr(page, "HERE", tmp_path)
    monkeypatch.setattr(page, "sections", lambda args: iter([("One", ["good.py"]), ("Two", ["bad.py", "x y"]),
                                                             ("One more", ["good.py", args.eps])]))
    out = tmp_path / "out.md"
    monkeypatch.setattr(sys, "argv", ["page.py", "--out", str(out)])
    assert page.main() == 1
    said = Path(out).read_text()
    assert said.startswith("# Benchmarks of this machine\n") and " torch 2." in said.splitlines()[2]
    assert re.search(r"## One\n\n    \S+ \S+good.py\n\n\| a \|\n\|---\|\n\n\d+ s\.\n\n## Two", said)
    assert "bad.py 'x y'\n\nbegun\n\n**Failed** (1): no such thing\n" in said and "## One more" in said
    monkeypatch.setattr(sys, "argv", ["page.py", "--out", str(out), "--only", "more", "--eps", "0.1"])
    assert page.main() == 0 and "## One\n" not in out.read_text() and "good.py 0.1\n" in out.read_text()


def test_tables_stand_alone_or_what_follows_would_be_a_row(monkeypatch):
    assert page.spaced("said\n| a |\n|---|\nflags equal\n\n| b |\n") == (
        "said\n\n| a |\n|---|\n\nflags equal\n\n| b |")
    monkeypatch.setattr(page, "HERE", ROOT / "examples/benchmarks")
    words = page.head(Namespace(device="cpu", threads=1))
    assert str(Path.home()) not in words and "threads 2" not in words and not page.EXAMPLES.is_absolute()
