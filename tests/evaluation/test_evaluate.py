"""The evaluator against closed forms: no batch, block or cheat changes a flag, and the model stays itself."""
import json
from functools import partial

import pytest
import torch
from helpers.problems import batch, linear
from torch import nn

from pwoa_cli.attacks import Attack, parse
from pwoa_cli.evaluation.evaluate import BLOCK, evaluate
from pwoa_cli.evaluation.intervals import wilson
from pwoa_cli.evaluation.results import to_json


def robust_by_closed_form(model, x, y, eps):
    """Two classes, linf: right even at the best corner of ball and box."""
    slope = (model[1].weight[1 - y] - model[1].weight[y]).detach().view_as(x)
    worst = torch.where(slope > 0, (x + eps).clamp_max(1), (x - eps).clamp_min(0))
    return model(worst).argmax(1) == y


@pytest.mark.parametrize("n", [1, 3, 8, 450])
def test_flags_are_the_closed_form(n):
    model = linear()
    x, y = batch(model, n, wrong=[0] if n > 1 else [])
    results = evaluate(model, x, y, attacks="fgsm,pgd,cw,apgd-ce", norm="linf", eps=0.06)
    assert list(results) == ["clean", "fgsm", "pgd-20", "cw", "apgd-ce", "worst case"]
    assert torch.equal(results["clean"].correct, model(x).argmax(1) == y)
    for name in ("fgsm", "pgd-20", "cw", "apgd-ce"):
        assert torch.equal(results[name].correct, robust_by_closed_form(model, x, y, 0.06)), name
    r = results["pgd-20"]
    assert (r.n == n and r.accuracy == float(r.correct.double().mean())
            and r.ci95 == wilson(int(r.correct.sum()), n))
    assert r.seconds > 0 and r.nonfinite == 0


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


@pytest.mark.parametrize("attack", ["pgd-5", "cw-5", "apgd-ce", "fab-t"])
def test_flags_do_not_depend_on_the_batch_size_or_on_later_blocks(attack):
    model = net().eval()
    x = torch.rand(230, 1, 8, 8)
    y = model(x).detach().argmax(1)
    resolved = parse(attack)[0]
    short = {"steps": 5} if attack in ("apgd-ce", "fab-t") else {}
    chosen = [Attack(attack, partial(resolved.run, **short), resolved.min_classes)]
    options = {"attacks": chosen, "norm": "linf", "eps": 0.01, "seed": 3}
    n = 230 if attack != "fab-t" else 40
    whole = evaluate(model, x[:n], y[:n], **options)[attack].correct
    assert 0 < whole.sum() < n
    for size in (7, 64, 1000):
        assert torch.equal(evaluate(model, x[:n], y[:n], batch_size=size, **options)[attack].correct, whole)
    if n > BLOCK:
        assert torch.equal(evaluate(model, x[:BLOCK], y[:BLOCK], **options)[attack].correct, whole[:BLOCK])


def test_the_model_comes_back_as_it_was():
    model = net().train()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 10
    evaluate(model, x, y, attacks="pgd-2,apgd-ce,fab-t", norm="l2", eps=0.1, batch_size=5)
    assert model.training and model[0].training and not model[1].training
    assert model[4].weight.requires_grad and not model[4].bias.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_failing_attack_leaves_the_model_as_it_was():
    def broken_attack(model, inputs, labels, **_):
        raise RuntimeError("planted")

    model = linear().train()
    x, y = batch(model, 4)
    with pytest.raises(RuntimeError, match="planted"):
        evaluate(model, x, y, attacks=[Attack("bad", broken_attack)], norm="linf", eps=0.1)
    assert model.training and model[1].weight.requires_grad


@pytest.mark.parametrize("cheat", ["outside the ball", "outside the box", "nan"])
def test_an_answer_outside_the_rules_does_not_count(cheat):
    model = linear()
    x, y = batch(model, 30)
    slope = (model[1].weight[1 - y] - model[1].weight[y]).detach().view_as(x)

    def cheating(model, inputs, labels, **_):
        if cheat == "nan":
            return torch.full_like(inputs, float("nan"))
        return inputs + slope * (1000 if cheat == "outside the box" else 0.5)

    flags = evaluate(model, x, y, attacks=[Attack("cheat", cheating)], norm="linf", eps=1e-6)["cheat"].correct
    assert flags.sum() >= 29  # eps allows next to nothing


def test_only_samples_that_are_right_when_clean_are_attacked():
    model = linear()
    x, y = batch(model, 10, wrong=[2, 7])
    seen = []

    def spy(model, inputs, labels, **_):
        seen.append(len(inputs))
        return inputs

    results = evaluate(model, x, y, attacks=[Attack("spy", spy)], norm="linf", eps=0.1)
    assert seen == [8] and torch.equal(results["spy"].correct, results["clean"].correct)


class NanWhenBright(nn.Module):
    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean * 0 + 1 - mean, torch.where(mean > 0.5, torch.nan, mean)], 1)


@pytest.mark.parametrize("attack", ["pgd", "cw", "fgsm"])
def test_nan_logits_never_look_robust(attack):
    x = torch.full((3, 1, 4, 4), 0.45)
    y = torch.zeros(3, dtype=torch.long)
    result = list(evaluate(NanWhenBright(), x, y, attacks=[attack], norm="linf", eps=0.1).values())[1]
    assert result.accuracy == 0 and result.nonfinite == 3


def test_progress_and_json():
    model, calls = linear(), []
    x, y = batch(model, 250)
    results = evaluate(model, x, y, attacks="pgd-2,fgsm", norm="linf", eps=0.1,
                       progress=lambda *a: calls.append(a))
    shares = [share for _, share in calls]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(set(shares)) > 4
    # the cheap one first
    assert [name for name, _ in calls][-1] == "pgd-2" and ("fgsm", pytest.approx(3 / 18)) in calls
    shown = json.loads(json.dumps(to_json(results)))
    assert shown["clean"] == {"accuracy": 1.0, "n": 250, "ci95": [pytest.approx(0.98487, abs=1e-4), 1.0]}
    assert (shown["fgsm"]["attacked"] == 250
            and shown["fgsm"]["broken"] == round(250 * (1 - shown["fgsm"]["accuracy"])))


def test_clean_only_needs_no_threat():
    model = linear()
    x, y = batch(model, 4)
    assert list(evaluate(model, x, y, attacks=[], norm=None, eps=None)) == ["clean"]
