"""`pwoa eval` that was killed or stopped by the clock goes on from what was finished."""
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers import small_models as small
from helpers.cli_world import start
from helpers.processes import wait

from pwoa_cli.attacks import gradient
from pwoa_cli.attacks.bounded import OutOfTime
from pwoa_cli.evaluation import sample_file
from pwoa_cli.files import plain
from pwoa_cli.reports import write

SLOW = ["eval", "model.pt", "--data", "large.npz", "--eps", "0.08", "--n", "500", "--attacks",
        "pgd-40-r3,cw-30,apgd-ce"]
KEPT = Path("pwoa-runs/.eval")


def units():
    return len(list(KEPT.glob("*/*.npz")))


def known(made):
    """What must not depend on an interruption: everything but the time and the machine."""
    return {key: value for key, value in made.items() if key not in ("seconds", "environment")}


@pytest.fixture
def endless(monkeypatch):
    """pgd-100000 comes to the end of --max-seconds at once: no test waits for a clock."""
    pgd = gradient.pgd

    def run(*args, steps=20, **options):
        if steps == 100000:
            raise OutOfTime
        return pgd(*args, steps=steps, **options)

    monkeypatch.setattr(gradient, "pgd", run)


@pytest.fixture
def large(here):
    small.write_npz("large.npz", n=2400)
    return here


def test_kill_9_and_resume_gives_equal_flags(large, pwoa):
    code, out, err = pwoa(*SLOW, "--json", "--save-samples", "whole.npz")
    assert code == 0, err
    assert not KEPT.exists()  # it is finished: nothing to go on from
    process = start(*SLOW, "--json", "--save-samples", "resumed.npz")
    until = time.monotonic() + 60
    while units() < 2 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    left = units()
    assert process.returncode == -signal.SIGKILL and 2 <= left < 9 and not Path("resumed.npz").exists()
    code, again, err = pwoa(*SLOW, "--json", "--save-samples", "resumed.npz", "--resume")
    assert code == 0 and f"{left} finished parts of an earlier run were taken over" in err
    assert known(json.loads(again)) == known(json.loads(out)) and not KEPT.exists()
    whole, resumed = sample_file.read(Path("whole.npz")), sample_file.read(Path("resumed.npz"))
    assert whole.keys() == resumed.keys() and all(whole[key].tobytes() == resumed[key].tobytes()
                                                  for key in whole)


def test_what_was_kept_is_neither_lost_nor_mixed_up(large, endless, pwoa):
    head = SLOW[:-1]
    assert "nothing to resume" in pwoa(*head, "fgsm", "--resume", "--max-seconds", "600")[2]
    code, out, err = pwoa(*head, "fgsm,pgd-100000", "--eps", "1e-6", "--max-seconds", "600", "--json")
    made = json.loads(out)
    assert code == 3 and units() == 1 and made["results"].keys() == {"clean"}
    assert ("unfinished: stopped after 600 s: fgsm is done with 200 of 500 samples, pgd-100000 is done with "
            "0 of 500 samples, so there is no worst case. The same command with --resume goes on."
            ) in made["notes"]
    part = made["unfinished"]["model"]
    assert part["fgsm"]["n"] == 200 and part["pgd-100000"] == {"n": 0, "of": 500}
    _, _, err = pwoa(*head, "fgsm", "--eps", "2e-6", "--resume")
    assert "nothing to resume" in err and units() == 1  # another threat: other flags
    _, out, err = pwoa(*head, "fgsm,pgd-100000", "--eps", "1e-6", "--max-seconds", "1e-9")
    assert ("warning: finished parts of this very evaluation are there" in err
            and "--resume goes on from them" in err and units() == 1)
    assert "Nothing was finished that --resume could go on from: give it more time." in out
    pwoa(*head, "pgd-1", "--eps", "1e-6")
    assert units() == 1  # a quick look with another attack costs nobody his work
    code, out, err = pwoa(*head, "fgsm", "--eps", "1e-6", "--resume", "--json")
    assert code == 0 and "1 finished part of an earlier run was taken over" in err and not KEPT.exists()
    assert (json.loads(out)["results"] == json.loads(pwoa(*head, "fgsm", "--eps", "1e-6",
                                                          "--json")[1])["results"])


def test_what_is_unfinished_is_no_figure_in_any_form(large, endless, pwoa):
    args = [*SLOW[:-1], "fgsm,pgd-100000", "--eps", "1e-6", "--max-seconds", "600"]
    code, out, _ = pwoa(*args, "--out", "made")
    assert code == 3 and "clean 100.0%, unfinished: fgsm, pgd-100000.\n" in out and "worst case |" not in out
    assert ("| fgsm | unfinished, 200 of 500 |\n| pgd-100000 | unfinished, 0 of 500 |\n" in out
            and out == Path("made/report.md").read_text())
    made = json.loads(Path("made/report.json").read_text())
    assert made["results"].keys() == {"clean"} and made["unfinished"]["model"]["fgsm"]["of"] == 500


def test_resume_into_the_same_report_folder(large, endless, pwoa):
    args = [*SLOW[:-1], "fgsm,pgd-100000", "--eps", "1e-6", "--out", "made", "--max-seconds", "600"]
    assert pwoa(*args)[0] == 3 and units() == 1
    code, _, err = pwoa(*args)
    assert code == 2 and "exists and is not empty" in err
    code, out, err = pwoa(*args, "--resume")
    assert code == 3 and "1 finished part" in err and Path("made/report.json").is_file()


NET = """
import torch
from torch import nn
from pwoa_cli.networks.families.small import LeNet

class Scaled(LeNet):
    def forward(self, x):
        return super().forward({change})

def make():
    return Scaled(size=8, widths=(4, 8), hidden=16, num_classes=4)
"""


def test_an_edited_network_is_not_resumed_with_the_old_ones_flags(large, endless, pwoa):
    Path("net.py").write_text(NET.format(change="x"))
    args = ["eval", "model.pt", "--arch", "net.py:make", *SLOW[2:-1], "fgsm,pgd-100000", "--eps", "1e-6",
            "--max-seconds", "600", "--resume"]
    assert pwoa(*args)[0] == 3 and units() == 1
    Path("net.py").write_text(NET.format(change="x * 1.0001"))
    code, _, err = pwoa(*args)
    assert code == 3 and "nothing to resume" in err and "taken over" not in err


def test_two_models_that_time_did_not_suffice_for_are_not_compared(large, endless, pwoa):
    args = ["eval", "model.pt", "--compare", "model.pt", *SLOW[2:-1], "fgsm,pgd-100000", "--eps", "1e-6",
            "--max-seconds", "600"]
    code, out, _ = pwoa(*args, "--json")
    made = json.loads(out)
    assert code == 3 and made["drop"].keys() == made["student"].keys() == {"clean"}
    assert {who: {name: part["n"] for name, part in left.items()} for who, left in made["unfinished"].items()
            } == {"compared": {"fgsm": 200, "pgd-100000": 0}, "model": {"fgsm": 200, "pgd-100000": 0}}
    assert made["attacks"] == ["fgsm", "pgd-100000"]
    assert (made["models"]["compared"]["sha256"] == made["models"]["model"]["sha256"]
            and made["models"]["compared"]["source"] == "model.pt")
    assert "compared unfinished fgsm+pgd-100000" in made["seconds"]


def test_two_evaluations_at_once_in_one_folder(large, pwoa):
    first = start(*SLOW, "--json")
    second = start(*SLOW[:-1], "fgsm", "--json")
    for process in (first, second):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and json.loads(out)["results"], err
    assert not KEPT.exists()


def test_parts_that_another_evaluation_is_making_are_not_touched(large, endless, pwoa):
    """Without --resume it makes do without keeping anything, and says so; with it, it would have to wait."""
    first = start(*SLOW[:-1], "fgsm,fmn-100000")  # PGD would come to its end: its iterates repeat
    wait(first, units)
    code, out, err = pwoa(*SLOW[:-1], "fgsm", "--json")
    assert code == 0 and json.loads(out)["results"] and units() == 1
    assert "warning: what is finished cannot be kept" in err and f"process {first.pid} on " in err
    code, out, err = pwoa(*SLOW[:-1], "fgsm", "--resume")
    assert code == 2 and not out and f"being written by process {first.pid} on " in err and units() == 1
    first.kill()
    first.communicate()
    code, _, err = pwoa(*SLOW[:-1], "fgsm", "--resume")
    assert code == 0 and "1 finished part of an earlier run was taken over" in err and not KEPT.exists()


def test_a_report_folder_has_one_writer(large, endless, pwoa):
    args = [*SLOW[:-1], "fgsm,fmn-100000", "--out", "made"]
    first = start(*args)
    wait(first, units)
    prune = ["prune", "model.pt", "--sparsity", "0.9", *SLOW[2:6], "--out", "made"]
    for command in (args, [*args, "--resume"], prune):
        code, out, err = pwoa(*command)
        assert code == 2 and not out and f"output folder made is being written by process {first.pid}" in err
    first.kill()
    first.communicate()
    assert pwoa(*SLOW[:-1], "fgsm", "--out", "made")[0] == 0
    assert sorted(path.name for path in Path("made").iterdir()) == ["report.json", "report.md", "samples.npz"]


@pytest.mark.parametrize("name", ["report.md", "report.json"])
def test_a_kill_while_the_report_is_written(large, pwoa, monkeypatch, name):
    """What is half there is no folder of somebody else's: --resume writes it whole."""
    args = [*SLOW[:-1], "fgsm", "--out", "made"]
    with monkeypatch.context() as patch:
        def killed(path, text):
            if path.name == name:
                (path.parent / ".pwoa-0123456789ab.tmp").write_text(text[:10])
                shutil.copytree("made", "left")
                raise KeyboardInterrupt
            real(path, text)

        real = plain.write_text_atomic
        for module in (plain, write):
            patch.setattr(module, "write_text_atomic", killed)
        assert pwoa(*args)[0] == 130
    shutil.rmtree("made")
    shutil.move("left", "made")
    assert ".pwoa.lock" in os.listdir("made") and "report.json" not in os.listdir("made")
    code, _, err = pwoa(*args, "--resume")
    assert code == 0, err
    assert sorted(os.listdir("made")) == ["report.json", "report.md", "samples.npz"]


def test_of_two_models_nothing_to_resume_is_said_once_and_only_where_it_is_true(large, endless, pwoa):
    """Parts of one model are there and of the other not: something is resumed."""
    head = [*SLOW[:-1], "fgsm,pgd-100000", "--eps", "1e-6"]
    assert pwoa(*head, "--max-seconds", "600")[0] == 3 and units() == 1
    shutil.copy("model.pt", "other.pt")
    two = [head[0], "other.pt", *head[2:], "--compare", "model.pt", "--resume", "--max-seconds", "600"]
    _, _, err = pwoa(*two)
    assert "nothing to resume" not in err and "1 finished part of an earlier run was taken over" in err
    _, _, err = pwoa(*two, "--seed", "5")
    assert err.count("nothing to resume") == 1 and "taken over" not in err
