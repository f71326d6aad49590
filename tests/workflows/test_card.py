"""A card folder is recognised by its own checksums, and distances are those of the report beside them."""
import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import report_samples

from pwoa_cli.errors import InputError
from pwoa_cli.reports.leaderboards import Model
from pwoa_cli.workflows import card

EPS = 0.3
ARRAYS = {  # wrong when clean; broken within eps, beyond it by rounding; found outside; never found
    "m/correct/clean": np.array([False, True, True, True, True]),
    "m/correct/fmn": np.array([False, False, False, True, True]),
    "m/distance/fmn": np.array([np.nan, 0.1, 0.3000001, 0.4, np.nan], dtype=np.float32)}
SCORE = {"accuracy": 0.4, "n": 5}


def taken(arrays=None, score=SCORE):
    return card.distances(ARRAYS if arrays is None else arrays, "m", "fmn", eps=EPS, score=score)


def test_distances_are_zero_where_wrong_and_infinite_where_none_was_found():
    found = taken()
    assert found[0] == 0 and found[2] == EPS and found[4] == math.inf
    assert found[1] == pytest.approx(0.1) and found[3] == pytest.approx(0.4)
    assert sum(size > EPS for size in found) / len(found) == SCORE["accuracy"], "as the benchmark counts"


@pytest.mark.parametrize("arrays", [
    {}, ARRAYS | {"m/correct/clean": np.array(["a"] * 5)}, ARRAYS | {"m/distance/fmn": np.zeros(3)},
    ARRAYS | {"m/distance/fmn": np.array(["a"] * 5)}, ARRAYS | {"m/distance/fmn": np.zeros((2, 3))},
    {"m/correct/clean": np.ones(0, bool), "m/correct/fmn": np.ones(0, bool), "m/distance/fmn": np.zeros(0)}])
def test_arrays_of_something_else_are_no_distances(arrays):
    assert taken(arrays) is None


@pytest.mark.parametrize("score", [{"accuracy": 0.6, "n": 5}, {"accuracy": 0.4, "n": 10}])
def test_distances_of_another_evaluation_are_not_taken(score):
    assert taken(score=score) is None


def test_two_runs_of_one_key_are_refused():
    def run(name, achieved):
        found = report_samples.report(data=report_samples.DATA | {"name": "cifar10"})
        found["model"] |= {"arch": "cifar-resnet", "arch_options": {"blocks": [2, 2, 2, 2]}}
        found["sparsity"]["achieved"] = achieved
        return Model(name, name, found, ())

    card.check_files([run("a", 0.9), run("b", 0.95)])
    with pytest.raises(InputError, match="a and c would both be AP_KEY_R18_CIFAR10_US_90.pickle") as caught:
        card.check_files([run("a", 0.9), run("b", 0.95), run("c", 0.903)])
    assert caught.value.hint == "Name one run of each sparsity."


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder with the files of a card."""
    monkeypatch.chdir(tmp_path)
    folder = Path("card")
    (folder / "evaluations").mkdir(parents=True)
    for name in (*sorted(card.ALWAYS - {card.SUMS}), "evaluations/1.json"):
        (folder / name).write_text(name)
    (folder / card.SUMS).write_text(card.sums(folder))
    return folder


def test_sums_are_what_sha256sum_reads(made):
    lines = (made / card.SUMS).read_text().splitlines()
    want = hashlib.sha256(b"README.md").hexdigest()
    assert f"{want}  README.md" in lines and len(lines) == len(card.ALWAYS) and lines[1].endswith("1.json")
    assert card.is_card(made)


def _changed(folder):
    (folder / "README.md").write_text("with a licence that the user filled in")


def _more(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")


def _less(folder):
    (folder / "evaluations" / "1.json").unlink()


def _pipe(folder):
    os.mkfifo(folder / "pipe")


def _odd_name(folder):
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("")


@pytest.mark.parametrize("act", [_changed, _more, _less, _pipe, _odd_name])
def test_a_folder_that_differs_from_what_was_written_is_no_card(made, act):
    act(made)
    assert not card.is_card(made)
