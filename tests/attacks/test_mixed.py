"""aa-mixed: what counts of a search in bfloat16, what closes it, and where it is aa bit for bit."""
from dataclasses import replace

import pytest
import torch
from helpers import attack_checks
from helpers.attack_checks import generator, linear, samples
from torch import nn

from pwoa_cli import attacks
from pwoa_cli.attacks import autoattack, base, mixed, reduced
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.evaluate import evaluate

EPS = {"linf": 0.1, "l2": 0.8, "l1": 3.0}
SHORT = {"steps": 8, "queries": 40}


@pytest.fixture(scope="module")
def trained():
    return attack_checks.trained()


@pytest.fixture(params=[True, False], ids=["bf16", "float32"])
def able(request, monkeypatch):
    """Whether the device has instructions for bfloat16."""
    monkeypatch.setattr(reduced, "multiplies_bf16", lambda device: request.param)
    return request.param


@pytest.fixture
def searches(monkeypatch):
    """A function: the copy to search on, None for none, whatever the device has."""
    return lambda copy: monkeypatch.setattr(mixed, "reduced", lambda *_: copy)


class Constant(nn.Module):
    """No gradient, and one class for all, 0 or 1."""

    def __init__(self, says):
        super().__init__()
        self.says = says

    def forward(self, x):
        return torch.eye(10)[self.says].expand(len(x), -1) + 0 * x.sum()


@pytest.mark.parametrize("norm", base.NORMS)
def test_what_counts_is_broken_in_float32_and_in_the_ball(trained, able, norm):
    model, x, y = trained
    x, y = x[:16], y[:16]
    adv = mixed.aa_mixed(model, x, y, eps=EPS[norm], norm=norm, generator=generator(7), **SHORT)
    changed = (adv != x).flatten(1).any(1)
    assert torch.equal(changed, base.wrong(model(adv), y) & ~base.wrong(model(x), y)) and changed.any()
    assert not base.outside(adv, x, eps=EPS[norm], norm=norm).any()


@pytest.mark.parametrize("norm", base.NORMS)
def test_without_a_copy_it_is_aa_bit_for_bit(trained, searches, norm):
    model, x, y = trained
    searches(None)
    ours, theirs = (run(model, x[:12], y[:12], eps=EPS[norm], norm=norm, generator=generator(7), **SHORT)
                    for run in (mixed.aa_mixed, autoattack.aa))
    assert torch.equal(ours, theirs) and not torch.equal(ours, x[:12])


def test_on_a_model_that_bfloat16_leaves_exact_it_is_aa_bit_for_bit(monkeypatch):
    monkeypatch.setattr(reduced, "multiplies_bf16", lambda device: True)
    model, x = linear(classes=10), samples(12)
    y, copies = model(x).argmax(1), []
    monkeypatch.setattr(mixed, "reduced", lambda *given: copies.append(reduced.reduced(*given)) or copies[0])
    ours, theirs = (run(model, x, y, eps=0.05, norm="linf", generator=generator(7), **SHORT)
                    for run in (mixed.aa_mixed, autoattack.aa))
    assert copies[0] is not None and torch.equal(ours, theirs) and not torch.equal(ours, x)


def test_a_find_that_is_none_in_float32_goes_on(trained, searches):
    """A copy that calls everything broken: every part sees every sample, and nothing counts that is not."""
    model, x, y = trained
    searches(Constant(1))
    zeros = y == 0
    seen = []

    def answer(name, inputs, labels, **_):
        seen.append((name, len(inputs)))
        return inputs + 1e-4

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixed, "component", answer)
        adv = mixed.aa_mixed(model, x[zeros], y[zeros], eps=0.1, norm="linf", generator=generator())
    standing = int((~base.wrong(model(x[zeros] + 1e-4), y[zeros])).sum())
    assert [n for _, n in seen[1:]] == [standing] * 4 and seen[0] == ("apgd-ce", len(x[zeros]))
    assert torch.equal((adv != x[zeros]).flatten(1).any(1), base.wrong(model(adv), y[zeros]))


def test_the_closing_finds_what_a_blind_search_leaves(trained, searches):
    """Oracle: APGD-T with as many steps in float32, from the same seed."""
    model, x, y = trained
    rows = (y == 0).nonzero().flatten()[:8]
    x, y = x[rows], y[rows]
    searches(Constant(0))  # right on all, no gradient
    ours = mixed.aa_mixed(model, x, y, eps=0.1, norm="linf", generator=generator(7), queries=3)
    theirs = autoattack.apgd_t(model, x, y, eps=0.1, norm="linf", generator=generator(7),
                               steps=mixed.CLOSING_STEPS)
    assert torch.equal(base.wrong(model(ours), y), base.wrong(model(theirs), y))
    assert base.wrong(model(ours), y).any()


def test_an_evaluation_has_the_parts_and_says_how_it_searched(trained, able):
    model, x, y = trained
    short = replace(attacks.FIXED["aa-mixed"], parts=("apgd-ce", "closing"))
    found = evaluate(model, x[:40], y[:40], attacks=[short], norm="linf", eps=0.1)
    line = found["aa-mixed"]
    assert list(line.parts) == ["apgd-ce", "closing"] and line.broken.any()
    assert torch.equal(sum(flags.int() for flags in line.parts.values()), line.broken.int())
    assert able or not line.parts["closing"].any()
    said, = (finding for finding in found.findings if finding.check == "mixed-precision")
    assert ("searched in bfloat16" in said.text) is able and ("is aa." in said.text) is not able
    assert not said.unreliable


def test_random_numbers_are_those_of_aa(trained, monkeypatch):
    monkeypatch.setattr(reduced, "multiplies_bf16", lambda device: False)
    model, x, y = trained
    flags = [evaluate(model, x[:20], y[:20], norm="linf", eps=0.08, keep_inputs=True,
                      attacks=[replace(attacks.FIXED[name], parts=("apgd-ce",))]).inputs
             for name in ("aa", "aa-mixed")]
    assert torch.equal(*flags)


def test_few_classes_are_refused_as_by_aa():
    model, x = linear(classes=3), samples(4)
    with pytest.raises(InputError, match="at least 4 classes, the model has 3"):
        mixed.aa_mixed(model, x, model(x).argmax(1), eps=0.1, norm="linf", generator=generator())


def test_it_comes_before_aa_which_goes_on_with_what_it_leaves():
    ours, theirs = attacks.FIXED["aa-mixed"], attacks.FIXED["aa"]
    assert ours.cost < theirs.cost and ours.cascade and theirs.cascade
    assert ours.cost == sum(part.cost for part in attacks.stages(ours))
    assert [part.name for part in attacks.stages(ours)] == [*autoattack.STANDARD, "closing"]
