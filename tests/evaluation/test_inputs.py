"""Each thing that an evaluation refuses before it spends a pass, as a user meets it."""
import pytest
import torch
from helpers.faults import Around
from helpers.problems import batch, linear
from torch import nn

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.inputs import OnCopies, left_as_they_were


def _spoiled(**change):
    model = linear()
    x, y = batch(model, 4)
    arguments = {"model": model, "inputs": x, "labels": y, "attacks": "fgsm", "norm": "linf", "eps": 0.1}
    spoil = {k: v(arguments[k]) if k in ("inputs", "labels") else v for k, v in change.items()}
    return {**arguments, **spoil}


def _nan_model():
    model = linear()
    model[1].weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize("change,says", [
    ({"inputs": lambda x: 2 * x - 1}, r"Inputs span \[-.*expected \[0, 1\]"),
    ({"inputs": lambda x: x * 255}, "expected"),
    ({"inputs": lambda x: x * torch.nan}, "Inputs span"),
    ({"inputs": lambda x: (x * 255).byte()}, "uint8"),
    ({"inputs": lambda x: x[0]}, "expected float"),
    ({"inputs": lambda x: x[:0], "labels": lambda y: y[:0]}, "n > 0"),
    ({"labels": lambda y: y[:3]}, r"Labels are .* expected integers \(4,\)"),
    ({"labels": lambda y: y.float()}, "expected integers"),
    ({"labels": lambda y: y + 7}, r"the model has 2 classes \(0..1\)"),
    ({"labels": lambda y: y - 2}, "Labels span -[12]"),
    ({"attacks": "aa"}, "aa needs at least 4 classes, the model has 2"),
    ({"attacks": "pdg"}, "Did you mean pgd"),
    ({"model": linear(classes=1)}, "2 classes or more"),
    ({"model": nn.Identity()}, "2 classes or more"),
    ({"model": _nan_model()}, "NaN or infinite logits on 4 of 4"),
    ({"norm": None}, "norm and eps are not given"),
    ({"eps": None}, "norm and eps are not given"),
    ({"norm": "l3"}, "Unknown norm"),
    ({"eps": 8}, "Did you mean 8/255"),
    ({"batch_size": 0}, "batch size is 0"),
])
def test_wrong_use_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        evaluate(**_spoiled(**change))


def test_a_network_that_leaves_its_inputs_is_taken_as_it_is():
    model = linear()
    x, _ = batch(model, 4)
    assert left_as_they_were(model, x) == (model, [])


@pytest.mark.parametrize("answer, changed", [
    (lambda net, x: net(x.mul_(0.5)), 4),
    (lambda net, x: net(x.clamp_(0, 1)), 0),
    (lambda net, x: net(x.masked_fill_(x > 0.99 * float(X.max()), 0)), 1)])
def test_a_network_that_changes_its_inputs_gets_copies(answer, changed):
    model = Around(linear(), answer)
    x, state = X.clone(), torch.get_rng_state()
    copies, found = left_as_they_were(model, x)
    assert torch.equal(x, X) and torch.equal(state, torch.get_rng_state())
    if not changed:
        assert (copies, found) == (model, [])
        return
    finding, = found
    assert isinstance(copies, OnCopies) and not finding.unreliable and f"{changed} of 4 tried" in finding.text
    wanted = model(x.clone())
    assert torch.equal(copies(x), wanted) and torch.equal(x, X)
    copies(x.requires_grad_()).sum().backward()
    assert x.grad.abs().sum() > 0


X, _ = batch(linear(), 4)
