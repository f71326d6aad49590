"""What is kept of an unfinished evaluation: whole files of the same samples, and the key of their folder."""
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.problems import linear, right_on

import pwoa_cli
from pwoa_cli.attacks import parse
from pwoa_cli.evaluation import units
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.units import Unfinished, Unit, key


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, 0.98])
def test_a_unit_that_was_cut_short_is_made_again(tmp_path, cut):
    kept = Unfinished(tmp_path, reuse=True)
    rows = torch.arange(3)
    unit = Unit(rows, torch.tensor([True, False, True]), torch.tensor([0.1, torch.nan, 0.2]), 1, 2, 30, 40,
                0.5, torch.rand(2, 1, 2, 2))
    kept.put("aa.square.0", unit)
    read = kept.get("aa.square.0", rows, inputs=True)
    assert (torch.equal(read.inputs, unit.inputs) and torch.equal(read.broken, unit.broken)
            and read.seconds == 0.5)
    assert (read.outside, read.nonfinite, read.forwards, read.backwards) == (1, 2, 30, 40)
    path = next(tmp_path.glob("*.npz"))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut if isinstance(cut, int) else int(cut * len(whole))])
    assert kept.get("aa.square.0", rows, inputs=True) is None


@pytest.mark.parametrize("field", list(units._ARRAYS | units._INPUTS))
@pytest.mark.parametrize("other", [np.float16(3), np.array("x"), np.zeros((1, 2), bool), b"no array", None])
def test_a_unit_whose_fields_are_of_another_type_is_made_again(tmp_path, field, other):
    kept, rows = Unfinished(tmp_path, reuse=True), torch.arange(3)
    kept.put("aa", Unit(rows, torch.ones(3).bool(), torch.ones(3), 1, 2, 30, 40, 0.5, torch.rand(3, 1, 2, 2)))
    path = next(tmp_path.glob("*.npz"))
    arrays = dict(np.load(path).items())
    if other is None:
        del arrays[field]
    elif not isinstance(other, bytes):
        arrays[field] = other
    np.savez(path, **arrays)
    if isinstance(other, bytes):
        with zipfile.ZipFile(path) as old:
            parts = {name: other if name == f"{field}.npy" else old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as new:
            for name, part in parts.items():
                new.writestr(name, part)
    assert kept.get("aa", rows, inputs=True) is None and kept.taken == 0


def test_units_of_other_samples_or_without_inputs_are_not_taken(tmp_path):
    kept = Unfinished(tmp_path, reuse=True)
    kept.put("fgsm.fgsm.0", Unit(torch.arange(2), torch.ones(2).bool(), torch.ones(2), 0, 0, 1, 1, 0.1))
    assert kept.get("fgsm.fgsm.0", torch.arange(2), inputs=False) is not None
    assert kept.get("fgsm.fgsm.0", torch.arange(3), inputs=False) is None
    assert kept.get("fgsm.fgsm.0", torch.arange(2), inputs=True) is None
    assert kept.get("fgsm.fgsm.1", torch.arange(2), inputs=False) is None
    assert Unfinished(tmp_path, reuse=False).get("fgsm.fgsm.0", torch.arange(2), inputs=False) is None
    other = Unfinished(tmp_path, reuse=True)
    other.put("aa.square.0", Unit(torch.arange(2), torch.ones(2).bool(), torch.ones(2), 0, 0, 1, 1, 0.1))
    kept.clear()
    # another attack's work is not lost
    assert [path.name for path in tmp_path.iterdir()] == ["aa.square.0.npz"]
    other.clear()
    assert not tmp_path.exists()


def test_units_of_other_rows_do_not_replace_each_other(tmp_path):
    """aa alone, then pgd and aa: what was kept of the first stays until its own attack is over."""
    model, x, y = right_on(60)
    options = {"norm": "linf", "eps": 0.05, "unfinished": lambda _: Unfinished(tmp_path, reuse=True)}
    short = replace(parse("apgd-ce")[0], run=partial(parse("apgd-ce")[0].run, steps=3))
    evaluate(model, x, y, attacks=[short], **options)
    first = {path.name for path in tmp_path.iterdir()}
    evaluate(model, x, y, attacks=[parse("fgsm")[0], short], **options)
    assert first < {path.name for path in tmp_path.iterdir()} and len(list(tmp_path.glob("apgd-ce.*"))) == 2
    over = Unfinished(tmp_path, reuse=True)
    evaluate(model, x, y, attacks=[short], norm="linf", eps=0.05, unfinished=lambda _: over)
    over.clear()
    assert over.taken == 1 and [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["fgsm"]


def test_names_of_plug_ins_do_not_share_a_file(tmp_path):
    kept = Unfinished(tmp_path / "new" / "folder", reuse=True)
    unit = Unit(torch.arange(1), torch.ones(1).bool(), torch.ones(1), 0, 0, 1, 1, 0.1)
    assert [kept.put(f"{name}.{name}.0", unit) for name in ("a_b", "a b", "a/b", "../c")] == ["", "", "", ""]
    assert len(list(kept.folder.glob("*.npz"))) == 4


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in Unfinished(tmp_path / "file" / "eval", reuse=True).fault()


# --- the key ---------------------------------------------------------------


def test_the_key_is_of_all_that_flags_depend_on():
    one, other = linear(seed=0), linear(seed=1)
    keys = [key(one, "a", 0.1), key(one, "a", 0.2), key(one, "b", 0.1), key(other, "a", 0.1)]
    assert len(set(keys)) == 4 and keys[0] == key(linear(seed=0), "a", 0.1)


def test_modules_beside_a_network_of_ones_own_are_part_of_the_key(tmp_path, monkeypatch):
    (tmp_path / "made_net.py").write_text("import made_helper\n")
    (tmp_path / "made_helper.py").write_text("LEVELS = 4\n")
    (tmp_path / "not_imported.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    import made_net  # noqa: F401

    before = units.of_folder(tmp_path / "made_net.py")
    (tmp_path / "not_imported.py").write_text("x = 1\n")
    assert units.of_folder(tmp_path / "made_net.py") == before
    (tmp_path / "made_helper.py").write_text("LEVELS = 2\n")
    assert units.of_folder(tmp_path / "made_net.py") != before


def test_the_code_is_part_of_the_key(monkeypatch):
    before = units.code()
    units.code.cache_clear()
    assert units.code() == before and len(before) == 64
    monkeypatch.setattr(units, "LIBRARIES", ("torch",))
    units.code.cache_clear()
    assert units.code() != before
    units.code.cache_clear()


PACKAGE = Path(pwoa_cli.__file__).parent
MOVES_NO_FLAG = {  # modules that an evaluation loads and `units.code` leaves out, and why they may change
    "version.py": "names the version",
    "__init__.py": "opens files for others",
    "errors.py": "sentences",
    "evaluation/__init__.py": "no code",
    "evaluation/checks.py": "speaks of the model; leaves it, and torch's generators, as they were",
    "evaluation/gradients.py": "speaks of the model, runs Square on a count and a seed of its own; which "
                               "attacks cannot be run is in what the model predicts",
    "evaluation/intervals.py": "statistics of flags",
    "evaluation/shares.py": "says how much is done",
    "evaluation/result_checks.py": "speaks of flags",
    "evaluation/results.py": "adds flags up",
    "evaluation/rounding.py": "how far answers differ, for checks",
    "evaluation/words.py": "sentences",
    "files/__init__.py": "no code",
    "files/arrays.py": "how a unit is read, whole or not at all",
    "files/atomic.py": "how a unit is written, whole or not at all",
    "files/locks.py": "who may write units",
    "files/hashes.py": "makes the key: another hash is another key",
    "files/plain.py": "JSON and TOML, which no unit is",
    "files/run_folder.py": "where units lie",
    "progress.py": "types of callbacks",
    "machine/__init__.py": "no code",
    "machine/memory.py": "how many samples fit in a pass, on which no flag depends",
    "machine/signals.py": "what ends a process",
}


def hashed(module):
    """Whether MOVES_FLAGS names a module, told by its path in the package, or a room that it is in."""
    return any(module == part or module.startswith(f"{part}/") for part in units.MOVES_FLAGS)


def fresh(script, *args, home=PACKAGE.parent):
    """Lines that a Python process of its own prints, with the package of `home`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(home),
                                "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script, *args], cwd=home, env=environment, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_loaded_module_is_hashed_or_known_to_move_no_flag():
    loaded = fresh("import sys, pwoa_cli.evaluation.evaluate\n"
                   "for name, module in sys.modules.items():\n"
                   "    if name.split('.')[0] == 'pwoa_cli': print(module.__file__)")
    modules = {Path(file).resolve().relative_to(PACKAGE.resolve()).as_posix() for file in loaded}
    assert {module for module in modules if not hashed(module)} == set(MOVES_NO_FLAG)
    assert all(MOVES_NO_FLAG.values()) and "evaluation/evaluate.py" in modules


EDITS = """
import sys
from pathlib import Path
from pwoa_cli.evaluation import units

def code():
    units.code.cache_clear()
    return units.code()

package, before = Path(sys.argv[1]), code()
assert Path(units.__file__).is_relative_to(package)
for path in sorted(package.rglob("*.py")):
    text = path.read_bytes()
    path.write_bytes(text + b"# another sentence")
    if code() != before:
        print(path.relative_to(package).as_posix())
    path.write_bytes(text)
assert code() == before
(package / "attacks/another.py").write_text("")
assert code() != before
"""


def test_an_edit_moves_the_code_where_a_flag_depends_on_it_alone(tmp_path):
    copied = shutil.copytree(PACKAGE, tmp_path / "pwoa_cli", ignore=shutil.ignore_patterns("__pycache__"))
    moved = set(fresh(EDITS, str(copied), home=tmp_path))
    assert moved == {path for file in copied.rglob("*.py") if file.name != "another.py"
                     and hashed(path := file.relative_to(copied).as_posix())}
    assert {"attacks/__init__.py", "attacks/gradient.py", "attacks/square.py", "networks/build.py",
            "networks/families/resnet.py", "evaluation/evaluate.py", "evaluation/units.py",
            "machine/seeds.py"} <= moved
    speaking = {"cli/console.py", "reports/tables.py", "evaluation/checks.py", "workflows/evaluate.py"}
    assert not moved & speaking and all((copied / path).is_file() for path in speaking)
