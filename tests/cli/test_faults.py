"""Whatever ends a command is one sentence and an exit code: other people's code that raises or calls
sys.exit, the operating system's errors by their number, and faults of ours."""
import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli_world import PACKAGE, PRUNE, TINY

from pwoa_cli.attacks import plugins
from pwoa_cli.cli import faults
from pwoa_cli.errors import InputError, PwoaError, is_out_of_memory, of_system
from pwoa_cli.workflows import prune_job

OWN = """\
import sys
from pwoa_cli.networks.families.small import LeNet
class Odd(BaseException): pass
class Net(LeNet):
    left = {left}
    def forward(self, x):
        Net.left -= 1
        if Net.left < 0:
            {fault}
        return super().forward(x)
def fn(): return Net(size=8, widths=(4, 8), hidden=16, num_classes=4)
"""
RAISES = {"sys.exit(0)": "SystemExit: 0", "sys.exit('bye')": "SystemExit: bye",
          "raise Odd('x\\ny')": "Odd: x", "raise GeneratorExit": "GeneratorExit",
          "{}['key']": "KeyError: 'key'", "raise EOFError('no input')": "EOFError: no input"}


@pytest.fixture
def own(request):
    def write(fault, *, left=0, top=""):
        Path("own.py").write_text(top + OWN.format(fault=fault, left=left))
    yield write
    sys.modules.pop("pwoa_user_arch", None)


@pytest.mark.parametrize("fault", RAISES)
@pytest.mark.parametrize("left", [0, 60])  # in the first pass, and in the middle of an attack
def test_a_forward_that_raises_is_a_sentence(here, pwoa, own, fault, left):
    own(fault, left=left)
    code, out, err = pwoa("eval", "model.pt", *TINY, "--attacks", "pgd-100", "--arch", "own.py:fn", "--quiet",
                          "--eps", "1e-6", "--out", "out")
    assert code == 2 and not out and "Traceback" not in err
    error, hint = err.splitlines()
    assert error.startswith("error: ") and RAISES[fault] in error and hint.startswith("hint: ")
    assert not Path("out").exists()


@pytest.mark.parametrize("fault", RAISES)
def test_a_file_that_raises_when_it_is_imported_is_a_sentence(here, pwoa, own, fault):
    own("pass", top=f"import sys\nclass Odd(BaseException): pass\n{fault}\n")
    code, out, err = pwoa("eval", "model.pt", *TINY, "--arch", "own.py:fn", "--quiet")
    assert code == 2 and not out and f"error: --arch own.py:fn: own.py raises {RAISES[fault]}." in err
    Path("own.py").write_text(f"import sys\nclass Odd(BaseException): pass\ndef fn():\n    {fault}\n")
    code, out, err = pwoa("eval", "model.pt", *TINY, "--arch", "own.py:fn", "--quiet")
    assert code == 2 and not out and f"error: --arch own.py:fn: fn raises {RAISES[fault]}." in err


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, KeyError, EOFError])
def test_a_plug_in_that_ends_the_program_is_a_sentence(here, pwoa, monkeypatch, kind):
    class Point:
        name, value, module, dist = "ending", "made:attack", "json", None

        def load(self):
            return ending

    def ending(*args, **options):
        raise kind(3)

    monkeypatch.setattr(plugins, "installed", lambda: {"ending": [Point()]})
    code, out, err = pwoa("eval", "model.pt", *TINY, "--attacks", "ending", "--quiet")
    assert code == 2 and not out
    assert f"error: Attack 'ending' of package made:attack raised {kind.__name__}: 3.\nhint: " in err

    def unloadable(self):
        raise kind(3)

    monkeypatch.setattr(Point, "load", unloadable)
    code, out, err = pwoa("eval", "model.pt", *TINY, "--attacks", "ending", "--quiet")
    assert code == 2 and not out and f"cannot be loaded from made:attack: {kind.__name__}: 3.\nhint: " in err


class Ending:
    def __reduce__(self):
        return sys.exit, (3,)


def test_a_pickle_that_ends_the_program_is_a_sentence(here, pwoa):
    Path("ends.pt").write_bytes(pickle.dumps({"state_dict": Ending()}))
    code, out, err = pwoa("eval", "ends.pt", *TINY, "--trust-pickle", "--quiet")
    assert code == 2 and not out and "error: " in err and "Traceback" not in err


def test_a_fault_of_ours_is_a_sentence_that_says_where(here, pwoa, monkeypatch):
    monkeypatch.setattr(prune_job, "check", None)  # a bug: it is called
    monkeypatch.setattr(prune_job, "read_recipe", None)
    code, out, err = pwoa(*PRUNE, "--quiet")
    assert code == 4 and not out
    error, hint = err.splitlines()
    assert error.startswith("error: pwoa itself broke: TypeError: 'NoneType' object is not callable "
                            "(workflows/prune_job.py, line ") and "in prepare, from cli/prune.py" in error
    assert hint.startswith("hint: Please report")


@pytest.mark.parametrize(("number", "kind", "hint"), [
    (errno.ENOSPC, PwoaError, "Free some space"), (errno.EDQUOT, PwoaError, "quota"),
    (errno.EFBIG, PwoaError, "ulimit -f"), (errno.EIO, PwoaError, "disk or network"),
    (errno.EMFILE, PwoaError, "ulimit -n"), (errno.ENAMETOOLONG, InputError, "shorter"),
    (errno.ENOMEM, PwoaError, "ulimit -v"),
    (errno.EACCES, InputError, "permissions"), (errno.EROFS, InputError, "only be read"),
    (errno.ENOENT, InputError, "Check the path"), (errno.ENOTDIR, InputError, "is a file and no folder"),
    (errno.ELOOP, InputError, "circle"), (errno.EXDEV, PwoaError, "Check the path")])
def test_the_number_of_a_system_s_error_decides(number, kind, hint):
    error = of_system(OSError(number, os.strerror(number), "a/b"))
    assert type(error) is kind and error.message == f"a/b: {os.strerror(number)}." and hint in error.hint


@pytest.mark.parametrize("error", [
    MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError("libc10.so: failed to map segment from shared object: Cannot allocate memory"),
    ImportError("libx.so: cannot allocate memory for the segment")], ids=str)
def test_too_little_memory_is_the_machine_s_fault(error):
    told = faults.of(error)
    assert type(told) is PwoaError and told.message.startswith("Out of memory: ") and told.hint
    assert ("ulimit -v" in told.hint) == isinstance(error, ImportError | OSError)


@pytest.mark.parametrize("error", [
    ImportError("libx.so: failed to map segment from shared object: Operation not permitted"),
    ImportError("libgomp.so.1: cannot allocate memory in static TLS block"), ValueError("out of memory")])
def test_what_only_sounds_like_it_is_not(error):
    assert not is_out_of_memory(error)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of addresses is Linux's")
def test_a_process_that_may_not_take_what_torch_needs_says_so(here):
    line = "ulimit -v 700000; exec \"$@\""
    made = subprocess.run(["sh", "-c", line, "sh", sys.executable, "-m", "pwoa_cli", *PRUNE],
                          env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "COLUMNS": "500"},
                          capture_output=True, text=True)
    error, hint = made.stderr.splitlines()[-2:]
    assert made.returncode == 4 and not made.stdout and "Traceback" not in made.stderr
    assert error.startswith("error: Out of memory: ") and hint.endswith("ulimit -v unlimited")


LONG = "x" * 300


@pytest.mark.parametrize("args", [
    ["eval", f"{LONG}.pt"], ["eval", "model.pt", *TINY, "--out", LONG], ["report", LONG], ["runs", LONG],
    ["eval", "model.pt", *TINY, "--save-samples", f"{LONG}.npz"], ["info", LONG],
    ["eval", "model.pt", *TINY, "--junit", f"{LONG}.xml", "--min", "clean=0"], ["prune", "--config", LONG],
    ["eval", "model.pt", "--eps", "0.5", "--data", f"{LONG}.npz"], ["recipe", "check", f"{LONG}.toml"],
    ["eval", "model.pt", *TINY, "--compare", f"{LONG}.pt"],
    ["eval", "model.pt", *TINY, "--arch", f"{LONG}.py:fn"],
    ["eval", "model.pt", "--eps", "0.5", "--data", "folder", "--class-map", LONG],
    [*PRUNE, "--recipe", f"{LONG}.toml"], [*PRUNE, "--out", LONG]], ids=lambda args: args[0])
def test_a_path_that_is_too_long_is_said_to_be_so(here, pwoa, args):
    Path("folder/test/a").mkdir(parents=True)
    code, out, err = pwoa(*args)
    error, hint = err.splitlines()[-2:]
    assert code == 2 and not out and error.startswith("error: ") and hint.startswith("hint: ")
    assert "space" not in hint and "permission" not in hint
