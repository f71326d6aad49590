"""How long an evaluation takes: against short versions whose times the test sets."""
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.odd_networks import NO_GRADIENT

from pwoa_cli.attacks import parse
from pwoa_cli.checkpoints.model import Source
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.workflows import attack_time
from pwoa_cli.workflows.evaluate import Request, prepare


def _job(names, *, arch=None, **more):
    return prepare(Request(Source("lenet.pt", arch=arch), attacks=names, data="grey.npz", eps="0.1", n=20,
                           **more), say=lambda text: None)


def _timed(monkeypatch, *, accuracy, **seconds):
    """Short versions that take so many seconds on the samples that are right, all of which are."""
    def found(model, inputs, labels, **options):
        kinds = {attack.name: attack.name.removeprefix("short ").replace(" ", "_")
                 for attack in options["attacks"]}
        n, scale = len(inputs), {name: seconds.get(kind, 1.0) for name, kind in kinds.items()}
        everything = torch.ones(n, dtype=torch.bool)
        one = {name: SimpleNamespace(seconds=n * s, attacked=everything, accuracy=accuracy)
               for name, s in scale.items()}
        return {"clean": SimpleNamespace(seconds=0.0, attacked=everything, accuracy=1.0)} | one

    monkeypatch.setattr(attack_time, "evaluate", found)


def test_time_is_cost_times_samples_times_the_time_of_a_pass(monkeypatch):
    """A pass takes 1/30 s with gradients; 1/10 s in APGD, which only the half that holds out goes through."""
    _timed(monkeypatch, accuracy=0.5, apgd=3.0)
    found = attack_time.estimate(_job("fgsm,pgd-5,apgd-ce"), say=lambda text: None)
    held = (found.samples * 0.5 + 1) / (found.samples + 2)
    assert found.seconds["fgsm"] == pytest.approx(3 * 20 / 30)
    assert found.seconds["pgd-5"] == pytest.approx(15 * 20 / 30)
    assert found.seconds["apgd-ce"] == pytest.approx(300 * 20 * held / 10)
    assert found.total == pytest.approx(sum(found.seconds.values()))


def test_the_parts_of_autoattack_are_timed_by_their_own_kind(monkeypatch):
    """Alone, its first part goes through all samples that are right, the others through what is left."""
    _timed(monkeypatch, accuracy=0.0, apgd=3.0, fab=8.0, square=30.0)
    found = attack_time.estimate(_job("aa"), say=lambda text: None)
    held, pass_seconds = 1 / (found.samples + 2), 0.1
    later = held * (2700 + 4000 + attack_time.LATER["square"] * 5000)
    assert found.seconds["aa"] == pytest.approx(20 * pass_seconds * (300 + later))


def test_long_pgd_takes_at_most_what_is_said_as_its_samples_leave_in_cycles(monkeypatch):
    _timed(monkeypatch, accuracy=0.5)
    found = attack_time.estimate(_job("pgd-100,pgd-1000,cw-200-r2,fgsm"), say=lambda text: None)
    assert found.to_json()["at_most"] == ["cw-200-r2", "pgd-1000"]
    assert "pgd-1000 at most about " in str(found) and "pgd-100 at most" not in str(found)
    sure = sum(found.seconds[name] for name in ("clean", "fgsm", "pgd-100"))
    sure += (found.seconds["pgd-1000"] + found.seconds["cw-200-r2"]) / 8
    assert found.to_json()["seconds_from"] == pytest.approx(sure / attack_time.SPREAD)


def test_the_parts_of_aa_mixed_are_timed_in_its_own_arithmetic_and_the_closing_one_in_float32(monkeypatch):
    _timed(monkeypatch, accuracy=0.0, apgd=3.0, mixed_apgd=1.5, mixed_fab=4.0, mixed_square=15.0)
    found = attack_time.estimate(_job("aa-mixed"), say=lambda text: None)
    held = 1 / (found.samples + 2)
    search = 0.05 * (300 + held * (2700 + 4000 + attack_time.LATER["mixed square"] * 4200))
    assert found.seconds["aa-mixed"] == pytest.approx(20 * (search + 0.1 * held * 675))


def test_both_models_count(monkeypatch):
    _timed(monkeypatch, accuracy=0.5)
    one, two = (attack_time.estimate(_job("pgd-5", teacher=teacher), say=lambda text: None)
                for teacher in (None, Source("lenet.pt")))
    assert two.seconds["pgd-5"] == pytest.approx(2 * one.seconds["pgd-5"])


def test_what_is_not_known_of_a_plug_in_is_not_guessed(monkeypatch):
    _timed(monkeypatch, accuracy=0.5)
    foreign = replace(parse("fgsm")[0], name="theirs", version="1.0")
    monkeypatch.setattr(attack_time.attacks, "parse", lambda names: (parse("pgd-5")[0], foreign))
    found = attack_time.estimate(_job("pgd-5"), say=lambda text: None)
    assert found.seconds["theirs"] is None and found.total == found.seconds["pgd-5"] + found.seconds["clean"]
    assert "theirs unknown" in str(found)


@pytest.mark.parametrize(("names", "left"), [("fgsm,pgd-2", "fgsm, pgd-2"),
                                             ("pgd-2,aa,square", "pgd-2, aa")])
def test_attacks_without_a_gradient_take_no_time_and_are_named(names, left):
    Path("blind.py").write_text(NO_GRADIENT)
    alone, plain = _job(names, arch="blind.py:blind"), _job(names)
    beside = replace(alone, loaded={"other": plain.loaded["model"], "model": alone.loaded["model"]})
    for job, timed in (alone, {"square"} & {*names.split(",")}), (beside, {*names.split(",")}):
        said = []
        found = attack_time.estimate(job, say=said.append)
        assert said[1:] == [f"warning: model lets no gradient through to its inputs; not run on it: {left}"]
        assert found.seconds.keys() == {"clean", *timed}
        assert all(seconds > 0 for seconds in found.seconds.values()) and str(found)


def test_a_plug_in_is_no_fault_where_there_is_no_gradient(monkeypatch):
    """Whether it needs one is not known."""
    Path("blind.py").write_text(NO_GRADIENT)
    foreign = replace(parse("fgsm")[0], name="theirs", version="1.0", needs_gradients=False)
    job = _job("pgd-2", arch="blind.py:blind")
    monkeypatch.setattr(attack_time.attacks, "parse", lambda names: (parse("pgd-5")[0], foreign))
    found = attack_time.estimate(job, say=lambda text: None)
    assert found.seconds.keys() == {"clean", "theirs"} and found.seconds["theirs"] is None


@pytest.mark.parametrize("names", ["fgsm", "square,fmn", "aa", "aa-mixed"])
def test_short_versions_are_attacks(names):
    """On a real network; what is said of it is in any case positive, and has its bounds."""
    said = []
    found = attack_time.estimate(_job(names), say=said.append)
    assert said == ["timing short versions of the attacks, on model"]
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.seconds.keys() == {"clean", *names.split(",")}
    assert found.to_json()["seconds_from"] < found.to_json()["seconds"] < found.to_json()["seconds_to"]


def test_the_costs_of_short_versions_are_what_their_passes_are():
    """Passes that are counted while they run, on samples that hold out: eps is next to nothing."""
    job = _job("fgsm")
    x = job.subject.dataset.test.batch(torch.arange(20))
    found = evaluate(job.subject.model, *x, attacks=[attack_time.PGD, *attack_time.SHORT.values()],
                     norm="linf", eps=1e-4)
    for attack in (attack_time.PGD, *attack_time.SHORT.values()):
        result = found[attack.name]
        passes = (result.forwards + 2 * result.backwards) / int(result.attacked.sum())
        assert 0.4 * attack.cost < passes < 2.0 * attack.cost, (attack.name, passes)
