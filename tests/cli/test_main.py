"""The command line as a program sees it: help whose examples run, streams, failures as sentences."""
import glob
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from helpers.cli_world import BUDGET, PACKAGE, PRUNE, TINY, start
from helpers.processes import in_terminal

import pwoa_cli
from pwoa_cli.cli import main
from pwoa_cli.errors import PwoaError
from pwoa_cli.workflows import prune_job

COMMANDS = (None, "prune", "eval", "info", "report", "runs", "doctor", "recipe")

# --- help ---------------------------------------------------------------

def test_help_imports_nothing_heavy():
    code = """if True:
        import sys
        sys.argv = ["pwoa", "prune", "--help"]
        from pwoa_cli.cli import main
        try:
            main.main()
        except SystemExit:
            pass
        print(sorted({"torch", "torchvision", "timm", "numpy", "rich", "xml", "huggingface_hub"}
                     & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent,
                          check=True)
    assert done.stderr.strip() == "[]" and done.stdout.startswith("Usage: ")


def examples(command):
    """Lines of the help's epilog; None: of `pwoa --help`."""
    commands = {c.name or c.callback.__name__: c for c in main.app.registered_commands}
    commands |= {None: main.app.registered_callback}
    return re.findall(r"^  (pwoa .*)$", commands[command].epilog, re.M)


@pytest.mark.parametrize("line",
                         [line for command in COMMANDS for line in examples(command)])
def test_every_example_of_the_help_runs(here, pwoa, line):
    # as a shell would
    words = [path for word in shlex.split(line)[1:] for path in sorted(glob.glob(word)) or [word]]
    if words[-1] != "--help":
        words += {"prune": [*TINY, *BUDGET[:4]], "eval": TINY}.get(words[0], [])
    if "--max-loss" in words:  # of 20 images a loss of a point cannot be told
        words += ["--max-loss", "70", "--attacks", "fgsm"]
    code, out, err = pwoa(*words)
    assert code == 0, err
    assert json.loads(out) if "--json" in words else out.startswith(("# ", "Usage", "| run |", "default: "))


def test_help_shows_the_examples_that_the_test_above_runs(pwoa):
    for command in COMMANDS:
        _, out, _ = pwoa(*([command] if command else []), "--help")
        assert (len(examples(command)) in (2, 3, 4, 5)
                and examples(command) == re.findall(r"^    (pwoa .*)$", out, re.M))


def test_version_and_no_command(pwoa):
    assert pwoa("--version") == (0, f"pwoa {pwoa_cli.__version__}\n", "")
    code, out, err = pwoa()
    assert code == 2 and not out and err.startswith("Usage: pwoa")


def test_version_and_help_are_commands_too(pwoa):
    assert pwoa("version") == pwoa("--version")
    for command in COMMANDS:
        named = [command] if command else []
        assert pwoa("help", *named) == pwoa(*named, "--help")
    code, out, err = pwoa("help", "prun")
    assert code == 2 and not out and err == "error: pwoa has no command 'prun'.\nhint: See pwoa --help\n"


@pytest.mark.parametrize("command", ["prune", "eval"])
def test_the_number_of_test_images_has_one_name_and_its_alias(pwoa, command):
    assert "--samples, --n N" in pwoa(command, "--help")[1]


@pytest.mark.parametrize(("typed", "completed"), [
    ("pwoa pr", "prune"), ("pwoa eval --sam", "--samples"), ("pwoa help do", "doctor"),
    ("pwoa info --verb", "--verbose")])
def test_completion(monkeypatch, typed, completed):
    for name, value in {"_PWOA_COMPLETE": "complete_bash", "COMP_WORDS": typed,
                        "COMP_CWORD": str(len(typed.split()) - 1)}.items():
        monkeypatch.setenv(name, value)
    out, err = start().communicate(timeout=60)
    assert out.split() == [completed] and not err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown_and_installed(tmp_path, monkeypatch, shell):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    shown = start("--show-completion", shell).communicate(timeout=60)[0]
    assert "_PWOA_COMPLETE=complete_" in shown
    process = start("--install-completion", shell)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not err and f"{shell} completion installed in {tmp_path}" in out
    assert any("PWOA_COMPLETE" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


# --- streams ---------------------------------------------------------------

@pytest.mark.parametrize("args", [
    ["eval", "model.pt", *TINY, "--attacks", "fgsm"], ["eval", "--n", "20", "--attacks", "fgsm"], PRUNE,
    [*PRUNE, "--dry-run"],
    ["eval", "model.pt", *TINY, "--dry-run"]])
def test_json_is_the_only_thing_on_stdout(here, pwoa, args):
    code, out, err = pwoa(*args, "--json")
    assert code == 0 and out.count("\n") == 1 and isinstance(json.loads(out), dict), err


# of this little pruned network: warnings stay
NEAR_CHANCE = "warning: unreliable: pruned: clean accuracy 30.0% is near chance (25.0%).\n"


def test_quiet_leaves_the_result_alone(here, pwoa):
    for args in (PRUNE, ["eval", "--n", "20", "--attacks", "fgsm"]):
        code, out, err = pwoa(*args, "--quiet")
        assert code == 0 and out.startswith("# ") and not err.replace(NEAR_CHANCE, "")


def test_a_reader_that_goes_away_is_no_failure(here):
    read, write = os.pipe()
    os.close(read)
    process = start("eval", "model.pt", *TINY, "--attacks", "fgsm", stdout=write)
    os.close(write)
    assert "Traceback" not in process.communicate(timeout=60)[1] and process.returncode == 0


def test_on_a_terminal_of_60_columns(here):
    raw = in_terminal(textwrap.dedent("""
        import sys
        from pwoa_cli.cli import main
        sys.argv = ["pwoa", *sys.argv[1:]]
        main.main()"""), PRUNE, columns=60)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw).replace("\r", "\n")
    assert max(map(len, text.split("\n"))) <= 60
    for content in ("model.pt pruned to 90% sparsity", "teacher", "pruned", "drop", "fgsm",
                    "90 of 900 nonzero, in 4 layers",
                    "next: pwoa eval --attacks pgd,cw,aa"):
        assert content in text
    assert "\x1b[" in raw


# --- what breaks ---------------------------------------------------------------

@pytest.mark.parametrize(("args", "message", "hint"), [
    (["prune"], "Missing argument 'MODEL'", "See pwoa prune --help"),
    (["prune", "model.pt"], "Missing option '--sparsity'", "See pwoa prune --help"),
    (["prune", "model.pt", "--sparsty", "0.9"], "--sparsty", "--help"),
    (["prune", "model.pt", "other.pt", "--sparsity", "0.9"], "other.pt", "See pwoa prune --help"),
    (["prun", "model.pt"], "No such command 'prun'", "See pwoa --help"),
    (["--nonsense"], "--nonsense", "See pwoa --help"),
    ([*PRUNE, "--n", "0"], "--samples 0 is not a whole number of at least 1", "--samples 100"),
    ([*PRUNE, "--n", "abc"], "--samples abc is not a whole number", "--samples 100"),
    ([*PRUNE, "--n", "1.5"], "--samples 1.5 is not a whole number", "--samples 100"),
    ([*PRUNE, "--seed", "-1"], "--seed -1 is not a whole number of at least 0", "--seed"),
    (["eval", "model.pt", "--batch-size", "0"], "--batch-size 0 is not a whole number of at least 1",
     "--batch-size"),
    (["eval", "model.pt", "--num-classes", "1"], "--num-classes 1 is not a whole number of at least 2",
     "--num-classes"),
    ([*PRUNE, "--epochs", "x"], "epochs = 'x'", "epochs = 4"),
    ([*PRUNE, "--epochs", "0"], "epochs = 0", "epochs = 4"),
    ([*PRUNE, "--batch-size", "1"], "batch_size 1", ""),
    ([*PRUNE, "--set", "lr"], "--set lr is not FIELD=VALUE", "--set lr=1e-3"),
    ([*PRUNE, "--set", "lrr=1"], "no recipe field 'lrr'", "'lr'"),
    ([*PRUNE, "--recipe", "papr"], "'papr' is neither shipped nor a file", "default, paper"),
    ([*PRUNE, "--structure", "filtr"], "--structure filtr is none of unstructured, filter, column",
     "--structure filter"),
    ([*PRUNE, "--device", "gpu"], "--device gpu is not on this machine", "--device auto"),
    ([*PRUNE, "--device", "cpu:1x"], "--device cpu:1x is not on this machine", "--device auto"),
    ([*PRUNE, "--norm", "l3"], "Unknown norm 'l3'", "linf, l2"),
    ([*PRUNE, "--eps", "8", "--norm", "linf"], "Did you mean 8/255?", "8/255"),
    ([*PRUNE, "--eps", "big"], "eps 'big' is not a number", "8/255"),
    ([*PRUNE, "--mean", "a", "--std", "1"], "--mean a is not a list of numbers", "--mean 0.491"),
    ([*PRUNE, "--attacks", "fgms"], "Unknown attack 'fgms'. Did you mean fgsm?", "Known: fgsm"),
    (["eval", "model.pt", *TINY, "--attacks", "pdg"], "Unknown attack 'pdg'. Did you mean pgd?",
     "Known: fgsm"),
    ([*PRUNE, "--out", "model.pt"], "output folder model.pt is a file", "--out DIR"),
    ([*PRUNE, "--out", "/proc/pwoa"], "output folder /proc/pwoa cannot be written", "--out DIR"),
    (["eval", "model.pt", *TINY, "--out", "model.pt/x"], "output folder model.pt/x cannot be written",
     "--out DIR"),
    (["eval", ".", *TINY], ". is no finished run: a folder without model.safetensors and report.json.",
     "the checkpoint itself"),
    (["eval", "absent.pt", *TINY], "absent.pt: there is no such file", "path"),
])
def test_wrong_use_is_a_sentence_and_a_hint(here, pwoa, args, message, hint):
    before = sorted(here.rglob("*"))
    code, out, err = pwoa(*args)
    assert code == 2 and not out
    lines = [line for line in err.splitlines() if line != "loading torch"]
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), err
    assert message in lines[0] and hint in lines[1]
    assert sorted(here.rglob("*")) == before  # nothing begun


@pytest.mark.parametrize(("error", "code", "message"), [
    (OSError(28, "No space left on device", "disk/file"), 4, "error: disk/file: No space left on device."),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 4,
     "error: Out of memory: CUDA out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "error: Out of memory: "),
    (MemoryError(), 4, "error: Out of memory"),
    (PwoaError("The loss is not finite.", hint="Lower it."), 4,
     "error: The loss is not finite.\nhint: Lower it.\n")])
def test_what_a_machine_can_do_wrong_is_a_sentence(here, pwoa, monkeypatch, error, code, message):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(prune_job, "prepare", fails)
    got, out, err = pwoa(*PRUNE, "--quiet")
    assert got == code and not out and message in err and "hint: " in err and "Traceback" not in err
