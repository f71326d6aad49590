"""README and docs/: every command and every Python block runs, or is named here with its reason.

In seconds, on tiny networks and data of the names that the pages use (helpers/doc_world.py), with FEWER
added; `make docs-test` runs them as they stand, for minutes.
"""
import glob
import os
import re
import shlex

import pytest
import torch
import typer
from helpers import doc_examples as pages
from helpers import doc_world

from pwoa_cli.cli import main

LONG = bool(os.environ.get("PWOA_DOCS"))
COMMANDS = [one for page in pages.PAGES for one in pages.commands(page)]
# once, where it stands on several pages
PWOA = list({one.text: one for one in reversed(COMMANDS)
             if one.tool == "pwoa" and not pages.SYNTAX.search(one.text)}.values())[::-1]
BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page) if pages.is_python(block)]

PLACES = {"S": "0.5", "SEED": "1"}  # where a page leaves a figure open
# added so that a command is over in seconds, by what stands in it; the last of equal options wins
FEWER = {"pwoa prune": doc_world.FEW, "pwoa eval": doc_world.FEW[:2], "--dtype": doc_world.FEW[:2],
         "pwoa bench": ["--seconds", "0.2", "--runtimes", "eager"],
         "--max-loss": ["--max-loss", "70", "--attacks", "fgsm"],  # of few images a point cannot be told
         "prune examples/mnist_lenet_linf0.3.pt": ["--epochs", "0.01"]}
# however long it may take: these files have ten kilobytes
SMALLER = {"--target-bytes": ["--target-bytes", "8k"]}
SMALLER_IN_PYTHON = {"target_bytes=500_000": "target_bytes=8_000"}
BUNDLED = "examples/mnist_lenet_linf0.3.pt"  # is right on real digits alone, which lie beside it
FEWER_IN_PYTHON = {
    "max_loss=1.0": "max_loss=70, attacks='fgsm', samples=20, settings={'batch_size': 32}",
    '{"epochs": 4}': '{"epochs": 0.2}, samples=20',
    '"pgd,cw,aa", samples=200': '"pgd", samples=20',
    '"pgd,cw")': '"pgd", samples=20)',
}
OWN = ("--resume", "--config")  # takes the options of the run
# not run here, and why
ELSEWHERE = {
    "git clone ADDRESS": "needs the network; a clone is what CI begins with",
    "pip install ./examples/plugin": "tests/attacks/test_plugins.py loads it",
    "pip install .": "make wheel-test, and tests/test_packaging.py",
    "pip install 'pwoa-cli[report]'": "the tests have it; without it: tests/cli/test_report_html.py",
    "make ": "CI calls them, or a person; that there is such a target is tried here",
    "--attacks noise,pgd": "needs the plug-in installed: tests/attacks/test_plugins.py",
    "eval examples/cifar10_resnet18": "needs CIFAR-10; tests/examples/test_released.py loads the network",
    "examples/benchmarks/": "minutes to hours; that it has these options is tried here",
    'python -c "import torch"': "what a figure was compared with",
}
BIG = "--arch cifar-resnet18 "  # 11 million weights: in make docs-test, where it says what it would do
if not LONG:
    ELSEWHERE[BIG] = "make docs-test"


def elsewhere(example):
    """Why it is not run here, or an empty text."""
    return next((why for part, why in ELSEWHERE.items() if part in example.text), "")


def words(example):
    """What a shell would hand to pwoa."""
    typed = shlex.split(example.text.removeprefix(".venv/bin/"))[1:]
    typed = typed[:typed.index(">")] if ">" in typed else typed  # a test sees it as output
    typed = [path for word in typed for path in sorted(glob.glob(word)) or [PLACES.get(word, word)]]
    typed += [word for part, more in SMALLER.items() if part in example.text for word in more]
    if LONG or any(option in typed for option in OWN):
        return typed + (["--dry-run"] if BIG in example.text else [])
    return typed + [word for part, more in FEWER.items() if part in example.text for word in more]


def kind_of(text):
    """Which of the folders an example is at home in."""
    if BIG in text:
        return "big"
    return "colour" if re.search(r"cifar|resnet|r18|mine\.pt", text, re.I) else "digits"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """{kind: folder}, each filled when it is asked for."""
    folders = {}

    def of(kind):
        if kind not in folders:
            folder = tmp_path_factory.mktemp(kind)
            doc_world.made(folder, kind, many=LONG)
            folders[kind] = folder
        return folders[kind]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield of
    torch.set_num_threads(threads)


@pytest.fixture
def place(worlds, tmp_path, monkeypatch):
    """Go to a copy of the folder that an example is at home in."""

    def to(text):
        source = worlds(kind_of(text))
        doc_world.copied(source, tmp_path)
        doc_world.fitted(tmp_path, text)
        monkeypatch.chdir(tmp_path)
        if BUNDLED not in text:
            monkeypatch.setenv("PWOA_DATA", str(source / "data"))

    return to


@pytest.mark.parametrize("example", [one for one in PWOA if not elsewhere(one)], ids=str)
def test_every_command_of_the_pages_runs(place, pwoa, example):
    place(example.text)
    code, out, err = pwoa(*words(example))
    # on networks as tiny as these a gate may fail, and 90% may be too much
    judged = "--min" in example.text or "--max-drop" in example.text
    assert out and (code == 0 or code == 1 and judged or code == 3 and "near chance" in out), err


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_every_python_block_runs(place, block):
    place("cifar10")
    text = block.text
    for here, there in (SMALLER_IN_PYTHON | ({} if LONG else FEWER_IN_PYTHON)).items():
        text = text.replace(here, there)
    exec(compile(text, f"{block.page}:{block.line}", "exec"), {"state": {"w": torch.eye(3)}})


@pytest.mark.parametrize("part", ELSEWHERE)
def test_what_is_run_elsewhere_is_still_there(part):
    assert any(part in one.text for one in COMMANDS)


@pytest.mark.parametrize("example", [one for one in COMMANDS if one.tool != "pwoa"], ids=str)
def test_what_is_no_command_of_pwoa_is_named_with_its_reason_and_is_there(example):
    assert elsewhere(example)
    for target in shlex.split(example.text)[1:] if example.tool == "make" else ():
        assert re.search(rf"^{target}:", (pages.ROOT / "Makefile").read_text(), re.M)
    for script in re.findall(r"examples/benchmarks/\w+\.py", example.text):
        source = (pages.ROOT / script).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in re.findall(r"--[a-z-]+", example.text))


@pytest.mark.parametrize("example", [one for one in COMMANDS if one.tool == "pwoa"] + [
    one for page in pages.PAGES for one in pages.named(page)], ids=str)
def test_every_option_that_is_named_is_one_of_its_command(example):
    """Of syntax, and of commands inside sentences, too."""
    command = typer.main.get_command(main.app)
    typed = example.text.removeprefix(".venv/bin/").split()[1:]
    of = command.commands.get(typed[0])
    assert of, f"pwoa has no command {typed[0]}"
    there = {name for parameter in of.params for name in [*parameter.opts, *parameter.secondary_opts]}
    assert set(re.findall(r"(?<!\S)\[?(--?[a-z][a-z-]*)", " ".join(typed))) <= there | {"--help"}


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page):
    """mkdocs sees those inside docs/ alone; README and the changes stand outside."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]
