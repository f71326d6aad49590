"""The probes of gradients: closed forms on linear networks, planted liars caught, honest networks left
alone."""
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import faults
from helpers.faults import Around
from helpers.odd_networks import HONEST, PLANTED
from helpers.problems import right_on
from helpers.small_models import learn, lenet, resnet
from torch import nn

from pwoa_cli.attacks import parse
from pwoa_cli.attacks.base import frozen, wrong
from pwoa_cli.attacks.bounded import Bounded
from pwoa_cli.evaluation import checks, gradients
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.results import Finding


@pytest.fixture(scope="module")
def linear():
    """A linear network of 4x4 images in float64, its inputs and the labels that it gives."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double().requires_grad_(False).eval()
    x = torch.rand(32, 1, 4, 4, dtype=torch.float64)
    return net, x, net(x).argmax(1)


def probed(linear, answer):
    net, x, y = linear
    return gradients.probe(Around(net, answer), x, y)


# --- closed forms ---------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.5, -3.0])
def test_the_slope_of_a_linear_network_is_what_its_gradient_leaves_out(linear, factor):
    """The gradient is `factor` times the true one, so the finite difference is 1 / |factor| of the prediction
    along its sign."""
    found = probed(linear, lambda net, x: factor * net(x) + (1 - factor) * net(x).detach())
    assert found.slope == pytest.approx(1 / factor, rel=1e-3) and found.blind == found.zeros == 0
    assert found.other < 1e-6 and not found.margins.any()


@pytest.mark.parametrize("hidden", [0, 1, 5, 16])
def test_the_blind_share_counts_pixels_that_are_read_without_gradient(linear, hidden):
    mask = (torch.arange(16) < hidden).view(1, 1, 4, 4)
    found = probed(linear, lambda net, x: net(torch.where(mask, x.detach(), x)) + 0 * x.sum())
    assert found.blind == found.zeros == pytest.approx(hidden / 16)
    assert np.isnan(found.slope) == (hidden == 16)


@pytest.mark.parametrize("unread", [1, 8, 15, 16])
def test_pixels_that_nothing_reads_are_not_blind(linear, unread):
    mask = (torch.arange(16) >= unread).view(1, 1, 4, 4)
    found = probed(linear, lambda net, x: net(x * mask))
    assert found.zeros == pytest.approx(unread / 16) and found.blind == 0


def test_the_blind_share_is_of_the_pixels_read(linear):
    """4 of 16 pixels are not read, 6 of the other 12 have a gradient above 0.3 only: 94% of these are seen
    far away (1 - 0.5^4: half a pixel of 0.1 and half of a uniform one, four times)."""
    place = torch.arange(16).view(1, 1, 4, 4)

    def dark(net, x):
        return net(torch.where(place < 10, (x - 0.3).relu(), x) * (place >= 4))

    net, x, _ = linear
    x = torch.where(place < 10, 0.1, x)
    found = gradients.probe(Around(net, dark), x, dark(net, x).argmax(1))
    assert found.blind == pytest.approx(6 * 15 / 16 / (12 - 6 / 16), abs=0.03)
    assert found.zeros == pytest.approx(10 / 16)


def test_the_slope_is_that_of_the_step_which_speaks_best_for_the_gradient():
    found = gradients.Probe(torch.zeros(8), torch.zeros(8), 0.0, 0.0, (0.1, 0.8, 4.0), 0.0, 1e-3)
    assert found.slope == 0.8
    assert replace(found, slopes=(-1.0, float("nan"), -0.2)).slope == -0.2
    assert replace(found, slopes=(0.5, 1.5, float("nan"))).slope == 1.5
    assert np.isnan(replace(found, slopes=(float("nan"),)).slope)


# --- planted and honest networks ---------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_planted_networks_are_caught(trained, data, name):
    answer, check = PLANTED[name]
    found = checks.of_model(Around(trained, answer).eval(), *right_ones(trained, answer, data))
    assert check in [finding.check for finding in found]
    assert all(finding.unreliable and finding.text.endswith(".") for finding in found)


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("make", [lenet, resnet])
def test_honest_networks_are_not_accused(data, make, name):
    channels = {lenet: 1, resnet: 3}[make]
    net, answer = learn(make(num_classes=10), channels=channels), HONEST[name]
    found = checks.of_model(Around(net, answer).eval(), *right_ones(net, answer, faults.samples(channels)))
    assert [finding.check for finding in found if finding.check not in ("coarse-logits",)] == []


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_pruned_networks_on_flat_backgrounds_are_not_accused(sparsity, act):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), act(), nn.Linear(64, 4))
    x, y = faults.samples()
    x = (x - 0.4).clamp(0, 1)  # noise is gone: black around a bright quadrant
    net = learn(net)
    with torch.no_grad():
        weight = net[1].weight
        weight.mul_(weight.abs() >= weight.abs().flatten().quantile(sparsity))
    with frozen(net):
        y = net(x).argmax(1)
        found = gradients.probe(net, x[:32], y[:32])
    assert list(found.faults()) == []


def test_random_and_batch_dependent_networks_are_not_probed_further(trained, data):
    for answer, check in ((lambda net, x: net(x + 0.1 * torch.randn_like(x)), "random-model"),
                          (lambda net, x: net(x - 0.3 * x.mean(0)), "batch-dependent")):
        found = checks.of_model(Around(trained, answer).eval(), *data)
        assert [finding.check for finding in found] == [check]


def right_ones(net, answer, data):
    """Inputs with the labels that the network gives."""
    with torch.no_grad():
        return data[0], answer(net, data[0]).argmax(1)


# --- what is done about it ---------------------------------------------------------------


LINF = {"norm": "linf", "eps": 0.3}


@pytest.fixture(scope="module")
def reversed_(trained, data):
    answer, _ = PLANTED["reversed gradient"]
    return Around(trained, answer).eval(), *right_ones(trained, answer, data)


def test_where_a_probe_fires_square_runs_on_a_subset_and_both_figures_are_said(reversed_):
    model, x, y = reversed_
    finding, = evaluate(model, x, y, attacks="fgsm", **LINF).findings
    assert finding.check == "wrong-gradients" and finding.unreliable
    square = replace(parse("square")[0], run=partial(parse("square")[0].run, queries=gradients.QUERIES))
    whole = evaluate(model, x[:gradients.SUBSET], y[:gradients.SUBSET], attacks=[square], **LINF)
    broken = int(whole["square"].broken.sum())
    said = int(finding.text.partition("broke ")[2].split()[0])
    assert f"broke {said} of 50 (" in finding.text and "1000 queries" in finding.text
    assert abs(said - broken) <= 5 and said > 25  # another seed, the same search
    assert f"{gradients.probe(model, *right_first(model, x, y)).slope:.2f} of what" in finding.text


def right_first(model, x, y):
    with torch.no_grad():
        rows = (~wrong(model(x), y)).nonzero().flatten()[:checks.PROBE]
    return x[rows], y[rows]


@pytest.mark.parametrize("norm, eps", [("l2", 2.0), ("l1", 8.0)])
def test_the_subset_is_attacked_in_other_norms_too(reversed_, norm, eps, monkeypatch):
    monkeypatch.setattr(gradients, "QUERIES", 50)
    finding, = evaluate(*reversed_, attacks="fgsm", norm=norm, eps=eps).findings
    assert " of 50 (" in finding.text and "with 50 queries" in finding.text


def test_square_on_the_subset_moves_no_flag_of_the_attacks_and_no_count(reversed_, monkeypatch):
    model, x, y = reversed_
    state = torch.get_rng_state()
    found = evaluate(model, x, y, attacks="fgsm,pgd-3", **LINF)
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr(gradients, "with_square", lambda findings, *_, **__: list(findings))
    without = evaluate(model, x, y, attacks="fgsm,pgd-3", **LINF)
    for name in found:
        assert torch.equal(found[name].correct, without[name].correct)
        assert (found[name].forwards, found[name].backwards) == (without[name].forwards,
                                                                 without[name].backwards)


@pytest.mark.parametrize("asked", ["square", "aa"])
def test_square_is_not_run_twice(reversed_, asked):
    model, x, y = reversed_
    found = [Finding("wrong-gradients", "a fault.", True)]
    assert gradients.with_square(found, parse(f"fgsm,{asked}"), Bounded(model, 64), x, y, seed=0,
                                 **LINF) == found


def test_an_honest_model_costs_no_square(trained, data):
    found = [Finding("few-classes", "a note.", False)]
    model = Bounded(trained, 64)
    assert gradients.with_square(found, parse("fgsm"), model, *data, seed=0, **LINF) == found
    assert model.meter.forwards == 0


@pytest.mark.parametrize("lie", [None, "gradient through a part"])
def test_pixels_without_gradient_mislead_only_where_square_breaks_what_pgd_leaves(trained, data, lie):
    """A robust LeNet pruned to 90% has no gradient at 87% of its pixels, and PGD is right about it."""
    model, (x, y) = trained, data
    if lie:
        model, (x, y) = Around(trained, PLANTED[lie][0]).eval(), right_ones(trained, PLANTED[lie][0], data)
    found, = gradients.with_square([Finding("blind-pixels", "A fault.", True)], parse("fgsm,square"),
                                   Bounded(model, 64), x, y, seed=0, **LINF)
    assert found.unreliable == bool(lie) and "PGD-20 left" in found.text


def test_images_too_small_for_square_are_said():
    model, x, y = right_on(8, size=4)
    found = gradients.with_square([Finding("wrong-gradients", "A fault.", True)], parse("fgsm"),
                                  Bounded(model, 8), x, y, eps=1.0, norm="l2", seed=0)
    assert "Square, which needs no gradient, could not be run: square with norm l2 needs" in found[0].text


def numpy_inside(net, x):
    return net(torch.from_numpy(np.asarray(x) * 1))


def in_place(net, x):
    return net(x.mul_(0.9).add_(0.05))


def foreign_error(net, x):
    if x.requires_grad:
        raise KeyError("no such layer")
    return net(x)


@pytest.mark.parametrize("answer", [numpy_inside, torch.no_grad()(lambda net, x: net(x)), foreign_error],
                         ids=["numpy", "no_grad", "another error"])
def test_without_gradients_there_is_one_sentence_and_the_figure_of_square(trained, data, answer):
    found = evaluate(Around(trained, answer).eval(), *right_ones(trained, answer, data), attacks="fgsm,pgd",
                     **LINF)
    assert list(found) == ["clean"] and not found.unfinished
    finding, = found.findings
    assert finding.check == "no-gradient" and finding.unreliable and "\n" not in finding.text
    assert "fgsm and pgd-20 were not run." in finding.text and " of 50 (" in finding.text


# --- inputs changed in place ---------------------------------------------------------------


def test_a_network_that_changes_its_inputs_gets_copies_and_honest_figures(trained, data):
    x, y = data
    kept, honest = x.clone(), Around(trained, lambda net, x: net(x * 0.9 + 0.05)).eval()
    changing = Around(trained, in_place).eval()
    wanted = evaluate(honest, x, y, attacks="fgsm,pgd-5,fmn-10", norm="linf", eps=0.1)
    found = evaluate(changing, x, y, attacks="fgsm,pgd-5,fmn-10", norm="linf", eps=0.1)
    assert torch.equal(x, kept)
    assert [(finding.check, finding.unreliable) for finding in found.findings] == [("changes-inputs", False)]
    for name in wanted:
        assert torch.equal(found[name].correct, wanted[name].correct)
        far = found[name].distance[found[name].broken]
        assert name in ("fmn-10", "worst case") or not len(far) or float(far.max()) <= 0.1 + 1e-6
