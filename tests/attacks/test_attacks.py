"""Attacks by name: what a name stands for, and which names and norms are refused."""
import pytest

from pwoa_cli import attacks
from pwoa_cli.errors import InputError


@pytest.mark.parametrize("given,resolved", [
    ("pgd", "pgd-20"), ("cw", "cw"), ("cw-20", "cw"), ("cw-40", "cw-40"), ("PGD-10", "pgd-10"),
    ("pgd-40-r5", "pgd-40-r5"), ("pgd-40-r1", "pgd-40"), ("pgd-40-s0.01", "pgd-40-s0.01"),
    ("pgd-40-r5-s2/255", "pgd-40-r5-s2/255"), ("cw-r5", "cw-20-r5"), (" aa ", "aa"), ("aa-fast", "aa-fast"),
    ("AA-mixed", "aa-mixed"),
    ("pgd,pgd-20, cw ,cw", "pgd-20,cw"), ("clean, fgsm", "fgsm"), ("clean", "")])
def test_names_resolve(given, resolved):
    assert ",".join(a.name for a in attacks.parse(given)) == resolved


def test_names_carry_their_settings():
    options = attacks.parse(["pgd-40-r5-s2/255"])[0].run.keywords
    assert options == {"steps": 40, "restarts": 5, "step_size": pytest.approx(2 / 255), "loss": "ce"}
    expected = {"steps": 20, "restarts": 1, "step_size": None, "loss": "margin"}
    assert attacks.parse("cw")[0].run.keywords == expected


@pytest.mark.parametrize("text,names", [
    ("pgd,cw-20", {"pgd": "pgd-20", "cw-20": "cw", "pgd-20": "pgd-20", "cw": "cw"}),
    ("clean, fgsm", {"fgsm": "fgsm"}), ("clean", {})])
def test_what_may_be_typed_for_each_attack(text, names):
    """`clean` is no attack, and is always measured."""
    assert attacks.typed(text) == names


@pytest.mark.parametrize("given,steps", [("fmn", 100), ("fmn-100", 100), ("fmn-30", 30)])
def test_fmn_takes_its_steps_from_its_name(given, steps):
    attack, = attacks.parse(given)
    assert attack.minimum_norm and attack.run.keywords == {"steps": steps}
    assert attack.name == ("fmn" if steps == 100 else given)


@pytest.mark.parametrize("name,says", [
    ("pdg", "Did you mean pgd"), ("appgd-ce", "Did you mean apgd-ce"),
    ("autoattack", "Unknown attack 'autoattack'"), ("pgd-0", "must be above 0"),
    ("pgd-10-r0", "must be above 0"), ("pgd-10-s0", "must be above 0"), ("pgd-10-s1/0", "must be above 0"),
    ("pgd-", "Unknown"), ("fgsm-3", "Unknown"), ("", "No attack"), ("pgd,,cw", "An attack has no name")])
def test_wrong_names_are_refused(name, says):
    with pytest.raises(InputError, match=says) as caught:
        attacks.parse(name)
    assert caught.value.hint


def test_norms_that_an_attack_does_not_know_are_refused():
    attacks.check_norm(attacks.parse("fgsm,pgd,cw,fmn,apgd-ce,apgd-t,fab-t,square,aa,aa-fast,aa-mixed"), "l1")
    for norm in ("linf", "l1"):
        with pytest.raises(InputError, match=f"cw-l2 attacks in l2, the norm asked for is {norm}") as caught:
            attacks.check_norm(attacks.parse("pgd,cw-l2"), norm)
        assert "pgd" in caught.value.hint


@pytest.mark.parametrize("given,loss", [
    ("fgsm", "pgd"), ("pgd", "pgd"), ("pgd-5", "pgd"), ("pgd-10-r2", "pgd"), ("pgd-10-s0.05", "pgd"),
    ("cw", "cw"), ("cw-40", "cw")])
def test_a_plan_is_what_the_name_runs(given, loss):
    attack, = attacks.parse(given)
    settings = {"steps": 1, "restarts": 1, "loss": "ce"} if given == "fgsm" else attack.run.keywords
    assert attacks.plan(attack.name) == (loss, settings["steps"], settings["restarts"])
    assert settings["loss"] == {"pgd": "ce", "cw": "margin"}[loss]
    assert attack.cost == 3 * settings["steps"] * settings["restarts"]


@pytest.mark.parametrize("name", ["apgd-ce", "fmn"])
def test_other_attacks_have_no_plan(name):
    attack, = attacks.parse(name)
    assert attacks.plan(attack.name) is None
