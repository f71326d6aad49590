"""Wrong use, a broken machine, signals, terminals: a sentence, an exit code, nothing half done."""
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import pytest
from cli_world import PACKAGE, PRUNE, TINY, here, pwoa, start, world  # noqa: F401 (fixtures)

from pwoa_cli import assess, prune, run, sparse_file
from pwoa_cli.errors import PwoaError


# --- wrong use ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("args", "message", "hint"), [
    (["prune"], "Missing argument 'MODEL'", "See pwoa prune --help"),
    (["prune", "model.pt"], "Missing option '--sparsity'", "See pwoa prune --help"),
    (["prune", "model.pt", "--sparsty", "0.9"], "--sparsty", "--help"),
    (["prune", "model.pt", "other.pt", "--sparsity", "0.9"], "other.pt", "See pwoa prune --help"),
    (["prun", "model.pt"], "No such command 'prun'", "See pwoa --help"),
    (["--nonsense"], "--nonsense", "See pwoa --help"),
    ([*PRUNE, "--n", "0"], "--n 0 is not a whole number of at least 1", "--n 100"),
    ([*PRUNE, "--n", "abc"], "--n abc is not a whole number", "--n 100"),
    ([*PRUNE, "--n", "1.5"], "--n 1.5 is not a whole number", "--n 100"),
    ([*PRUNE, "--seed", "-1"], "--seed -1 is not a whole number of at least 0", "--seed"),
    (["eval", "model.pt", "--batch-size", "0"], "--batch-size 0 is not a whole number of at least 1", "--batch-size"),
    (["eval", "model.pt", "--num-classes", "1"], "--num-classes 1 is not a whole number of at least 2", "--num-classes"),
    ([*PRUNE, "--epochs", "x"], "epochs = 'x'", "epochs = 4"),
    ([*PRUNE, "--epochs", "0"], "epochs = 0", "epochs = 4"),
    ([*PRUNE, "--batch-size", "1"], "batch_size 1", ""),
    ([*PRUNE, "--set", "lr"], "--set lr is not FIELD=VALUE", "--set lr=1e-3"),
    ([*PRUNE, "--set", "lrr=1"], "no recipe field 'lrr'", "'lr'"),
    ([*PRUNE, "--recipe", "papr"], "'papr' is neither shipped nor a file", "default, paper"),
    ([*PRUNE, "--structure", "filtr"], "--structure filtr is none of unstructured, filter, column", "--structure filter"),
    ([*PRUNE, "--device", "gpu"], "--device gpu is not on this machine", "--device auto"),
    ([*PRUNE, "--device", "cpu:1x"], "--device cpu:1x is not on this machine", "--device auto"),
    ([*PRUNE, "--norm", "l3"], "Unknown norm 'l3'", "linf, l2"),
    ([*PRUNE, "--eps", "8", "--norm", "linf"], "Did you mean 8/255?", "8/255"),
    ([*PRUNE, "--eps", "big"], "eps 'big' is not a number", "8/255"),
    ([*PRUNE, "--mean", "a", "--std", "1"], "--mean a is not a list of numbers", "--mean 0.491"),
    ([*PRUNE, "--attacks", "fgms"], "Unknown attack 'fgms'. Did you mean fgsm?", "Known: fgsm"),
    (["eval", "model.pt", *TINY, "--attacks", "pdg"], "Unknown attack 'pdg'. Did you mean pgd?", "Known: fgsm"),
    ([*PRUNE, "--out", "model.pt"], "output folder model.pt is a file", "--out DIR"),
    ([*PRUNE, "--out", "/proc/pwoa"], "output folder /proc/pwoa cannot be written", "--out DIR"),
    (["eval", "model.pt", *TINY, "--out", "model.pt/x"], "output folder model.pt/x cannot be written", "--out DIR"),
    (["eval", ".", *TINY], ". is no finished run: a folder without model.safetensors and report.json.", "the checkpoint itself"),
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


@pytest.mark.parametrize(("text", "message"), [
    ("0", "nothing to prune"), ("1", "nothing left"), ("-0.1", "is not between 0 and 1"), ("90", "Did you mean 0.9?"),
    ("90%", "Did you mean 0.9?"), ("0,9", "Did you mean 0.9?"), ("abc", "abc is not a number"), ("", "is not a number"),
    ("nan", "is not between 0 and 1"), ("inf", "is not between 0 and 1"), ("100", "is not between 0 and 1"),
    ("1e-9", "less than one weight"), ("0.9999", "a weight must stay in each of 4 layers")])
def test_wrong_sparsity(here, pwoa, text, message):
    code, out, err = pwoa(*PRUNE, "--sparsity", text, "--quiet")
    assert code == 2 and not out and message in err and err.count("\n") == 2
    assert not re.search(r"hint: .*--sparsity (90|abc|1)\b", err)


def test_no_run_yet(tmp_path, monkeypatch, pwoa):
    monkeypatch.chdir(tmp_path)
    code, _, err = pwoa("eval", "--quiet")
    assert code == 2
    assert err == "error: no finished run under pwoa-runs (nothing there).\nhint: Make one: pwoa prune model.pt --sparsity 0.9\n"


# --- what breaks ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("error", "code", "message"), [
    (OSError(28, "No space left on device", "disk/file"), 1, "error: disk/file: No space left on device."),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "error: Out of memory: CUDA out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: Out of memory: "),
    (MemoryError(), 1, "error: Out of memory"),
    (PwoaError("The loss is not finite.", hint="Lower it."), 1, "error: The loss is not finite.\nhint: Lower it.\n")])
def test_what_a_machine_can_do_wrong_is_a_sentence(here, pwoa, monkeypatch, error, code, message):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(prune, "prepare", fails)
    got, out, err = pwoa(*PRUNE, "--quiet")
    assert got == code and not out and message in err and "hint: " in err and "Traceback" not in err


def test_a_bug_keeps_its_traceback(here, pwoa, monkeypatch):
    monkeypatch.setattr(prune, "prepare", lambda *args, **options: [][1])
    with pytest.raises(IndexError):
        pwoa(*PRUNE)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (PwoaError("The loss is not finite."), 1)])
def test_what_is_kept_is_said(here, pwoa, monkeypatch, error, code):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(assess, "measure", fails)  # after the model was saved
    got, out, err = pwoa(*PRUNE, "--out", "late")
    assert got == code and not out
    assert ("kept in late: config.toml, metrics.jsonl, model.safetensors.\n"
            "The pruned model is whole; measure it: pwoa eval late/model.safetensors\n") in err
    monkeypatch.setattr(sparse_file, "save", fails)
    got, out, err = pwoa(*PRUNE, "--out", "early")
    assert got == code and "kept in early: config.toml, metrics.jsonl. No pruned model was written." in err
    assert sorted(p.name for p in Path("early").iterdir()) == ["config.toml", "metrics.jsonl"]
    monkeypatch.setattr(prune, "prepare", fails)
    got, out, err = pwoa(*PRUNE, "--out", "never")
    assert got == code and not Path("never").exists() and (code != 130 or "interrupted; nothing was written." in err)


def test_a_run_without_a_report_is_not_the_newest(here, pwoa, monkeypatch):
    finished = run.newest()
    monkeypatch.setattr(assess, "write", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert pwoa(*PRUNE)[0] == 130
    assert run.newest() == finished


def test_ctrl_c_while_pruning(here):
    process = start(*PRUNE, "--epochs", "10000", "--out", "stopped")
    log = Path("stopped/metrics.jsonl")
    _wait(process, lambda: log.exists() and log.stat().st_size)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and not out and "Traceback" not in err
    assert err.endswith("interrupted; kept in stopped: config.toml, metrics.jsonl. No pruned model was written.\n")
    assert sorted(p.name for p in Path("stopped").iterdir()) == ["config.toml", "metrics.jsonl"]
    assert tomllib.loads(Path("stopped/config.toml").read_text())["steps"] == 160_000
    assert run.read_metrics(log)[0]["phase"] == "sparsify" and log.read_text().endswith("}\n")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_evaluating(here, stop):
    process = start("eval", "model.pt", *TINY, "--eps", "1e-6", "--attacks", "pgd-1000000", "--out", "stopped")
    while "evaluate" not in (line := process.stderr.readline()):
        assert line
    _wait(process, lambda: False, seconds=0.3)  # into the attack
    process.send_signal(stop)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and not out and "Traceback" not in err
    assert err.endswith("interrupted; nothing was written.\n") and not Path("stopped").exists()
    assert not Path("pwoa-runs/.eval").exists()  # nothing was finished


def _wait(process, happens, *, seconds=30.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until and not happens():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_reader_that_goes_away_is_no_failure(here):
    read, write = os.pipe()
    os.close(read)
    process = start("eval", "model.pt", *TINY, "--attacks", "fgsm", stdout=write)
    os.close(write)
    assert "Traceback" not in process.communicate(timeout=60)[1] and process.returncode == 0


def test_on_a_terminal_of_60_columns(here):
    raw = _in_terminal(textwrap.dedent("""
        import sys
        from pwoa_cli import cli
        sys.argv = ["pwoa", *sys.argv[1:]]
        cli.main()"""), PRUNE, columns=60)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw).replace("\r", "\n")
    assert max(map(len, text.split("\n"))) <= 60
    for content in ("model.pt pruned to 90% sparsity", "teacher", "pruned", "drop", "fgsm", "90 of 900 nonzero, in 4 layers",
                    "next: pwoa eval --attacks pgd,cw,aa"):
        assert content in text
    assert "\x1b[" in raw


def _in_terminal(code, args, *, columns):
    """What a program shows on a pseudo-terminal."""
    import fcntl
    import pty
    import struct
    import termios

    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI", "NO_COLOR")}
    environment |= {"TERM": "xterm", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)}
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:  # the terminal has closed
        pass
    os.close(main)
    assert process.wait(timeout=30) == 0, shown.decode()
    return shown.decode()
