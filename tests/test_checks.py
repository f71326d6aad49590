"""Each fault planted in a small model or in its results fires its check and no other; honest models fire none."""
import copy
from fractions import Fraction
from math import comb
from types import SimpleNamespace

import pytest
import torch
from attack_checks import generator
from small_models import images, learn, lenet, resnet
from torch import nn

from pwoa_cli import checks
from pwoa_cli.attacks import autoattack, gradient
from pwoa_cli.attacks.base import contain, distance, wrong

EPS = 0.17  # breaks some of the samples


class Around(nn.Module):
    """A network inside a function (net, x) -> logits: where faults are planted."""

    def __init__(self, net, answer):
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x):
        return self.answer(self.net, x)


@pytest.fixture(scope="module")
def trained():
    return learn(lenet(num_classes=10))


@pytest.fixture(scope="module")
def data():
    x, y = images(64, seed=1)
    return torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.tensor(y)


@pytest.fixture(scope="module")
def residual():
    """With batch norms."""
    return learn(resnet(num_classes=10), channels=3)


@pytest.fixture(scope="module")
def colour():
    x, y = images(64, channels=3, seed=1)
    return torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.tensor(y)


def of(answer, trained, data, **options):
    return checks.of_model(Around(trained, answer).eval(), *data, **options)


def only(found, check, *, unreliable):
    """The text of the one finding."""
    assert [(f.check, f.unreliable) for f in found] == [(check, unreliable)]
    assert "\n" not in found[0].text and found[0].text.endswith(".")
    return found[0].text


def largest(model, x):
    return float(model(x).detach().abs().max())


# --- honest models -----------------------------------------------------------------------------------------------------

def test_nothing_fires_on_honest_networks(trained, data, residual, colour):
    x, y = data
    assert (trained(x).argmax(1) == y).float().mean() > 0.9
    assert checks.of_model(trained, x, y) == checks.of_model(lenet(num_classes=10).eval(), x, y) == []
    assert checks.of_model(residual, *colour) == []


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_nothing_fires_on_few_samples(trained, data, n):
    assert checks.of_model(trained, data[0][:n], data[1][:n]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_no_pass_is_larger_than_memory_allows(trained, data, batch_size):
    sizes = []

    def noted(net, x):
        sizes.append(len(x))
        return net(x)

    assert of(noted, trained, data, batch_size=batch_size) == []
    assert max(sizes) == max(2, batch_size)  # company takes two
    with pytest.raises(torch.OutOfMemoryError):
        of(out_of_memory, trained, data)


def out_of_memory(net, x):
    if torch.is_grad_enabled():
        raise torch.OutOfMemoryError("CUDA out of memory")
    return net(x)


def test_nothing_fires_when_no_sample_is_right(trained, data):
    assert checks.of_model(trained, data[0], torch.full_like(data[1], 9)) == []


@pytest.mark.parametrize("answer", [
    lambda net, x: 60 * net(x) / largest(net, x[:1].clamp(0.2, 0.2)),  # confident, yet its gradients are above 1e-38
    lambda net, x: net(x).log_softmax(1),
    lambda net, x: net(x) + 1000,
    lambda net, x: net(x).double(),
    lambda net, x: net(x.clamp(0, 1)),
], ids=["confident", "log-probabilities", "shifted", "float64", "clamped"])
def test_nothing_fires_on_unusual_but_honest_outputs(trained, data, answer):
    assert of(answer, trained, data) == []


def test_nothing_fires_on_black_and_white_images(trained, data):
    x = (data[0] > 0.45).float()
    assert of(lambda net, x: net(x.clamp(0, 1)), trained, (x, trained(x).argmax(1))) == []


def test_the_model_and_the_generator_come_back_as_they_were(residual, colour):
    net = Around(copy.deepcopy(residual), lambda net, x: net(x + torch.rand_like(x))).train()
    net.zero_grad()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    checks.of_model(net, *colour)
    assert all(m.training for m in net.modules()) and all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()) and torch.equal(state, torch.get_rng_state())


# --- faults of models --------------------------------------------------------------------------------------------------

def test_training_mode_is_said(trained, data):
    found = checks.of_model(trained, *data, was_training=True)
    assert "training mode" in only(found, "training-mode", unreliable=False)


def test_few_classes_are_said_where_targets_are_tried(data):
    net = learn(lenet())
    for attacks in (None, ("pgd-20", "aa"), ("fab-t",)):
        text = only(checks.of_model(net, *data, attacks=attacks), "few-classes", unreliable=False)
        assert "4 classes" in text and "3 targets" in text
    assert checks.of_model(net, *data, attacks=("pgd-20", "cw", "square")) == []


@pytest.mark.parametrize("answer", [
    lambda net, x: net((x * 31).round() / 31),
    lambda net, x: net((x > 0.45).float() + 0 * x),
    lambda net, x: net((x - x).sqrt() + x),
], ids=["rounded", "binarised", "nan gradient"])
def test_inputs_without_gradient_are_caught(trained, data, answer):
    assert "32 of 32 (100.0%)" in only(of(answer, trained, data), "zero-gradients", unreliable=True)


@pytest.mark.parametrize("answer, said", [
    (lambda net, x: net(x.detach()), "does not require grad"),
    (lambda net, x: net(torch.from_numpy(x.numpy() * 1)), "Can't call numpy() on Tensor"),
    (torch.no_grad()(lambda net, x: net(x)), "does not require grad"),
    (torch.inference_mode()(lambda net, x: net(x)), "does not require grad"),
    (lambda net, x: net(NoBackward.apply(x)), "backward"),
], ids=["detached", "numpy", "no_grad", "inference_mode", "no backward"])
def test_models_that_give_no_gradient_at_all_are_caught(trained, data, answer, said):
    text = only(of(answer, trained, data), "no-gradient", unreliable=True)
    assert said in text and "square" in text


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


@pytest.mark.parametrize("blind, fires", [(3, False), (4, True), (10, True)])  # 3 of 32 are 9.4%
def test_gradients_missing_on_some_samples_are_counted(trained, data, blind, fires):
    def some(net, x):
        return net(torch.where(x[:, :, -1:, -1:] > 0.5, (x * 31).round() / 31, x))

    x = data[0].clone()
    x[:, :, -1, -1] = (torch.arange(64) < blind)[:, None].float()
    found = of(some, trained, (x, trained(x).argmax(1)))
    assert bool(found) == fires
    assert not fires or f"{blind} of 32 ({100 * blind / 32:.1f}%)" in only(found, "zero-gradients", unreliable=True)


def test_a_scale_that_masks_cross_entropy_is_caught(trained, data):
    text = only(of(lambda net, x: 1000 * net(x), trained, data), "masked-cross-entropy", unreliable=True)
    assert "32 of 32 (100.0%)" in text and "apgd-ce" in text


@pytest.mark.parametrize("attacks, unreliable", [(("pgd-20", "cw", "aa"), False), (("pgd-20", "apgd-ce"), True)])
def test_a_masking_scale_spoils_only_attacks_that_climb_cross_entropy(trained, data, attacks, unreliable):
    found = of(lambda net, x: 1000 * net(x), trained, data, attacks=attacks)
    only(found, "masked-cross-entropy", unreliable=unreliable)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("back", [False, True], ids=["as it is", "as float32"])
def test_coarse_logits_are_said(trained, data, dtype, back):
    found = of(lambda net, x: net(x).to(dtype).to(torch.float32 if back else dtype), trained, data)
    assert str(dtype).removeprefix("torch.") in only(found, "coarse-logits", unreliable=False)


def test_ties_of_coarse_logits_are_unreliable(trained, data):
    def tied(net, x):
        z = net(x).bfloat16()
        return torch.cat([z, z[:, :1].detach() + (z[:, 1:2] - z[:, 1:2].detach())], 1)  # class 10 copies the value of class 0

    zeros = int((trained(data[0]).bfloat16().argmax(1) == 0).sum())
    assert f"{zeros} of 64 (" in only(of(tied, trained, data), "coarse-logits", unreliable=True)


def test_a_bfloat16_network_is_not_taken_for_a_batch_dependent_one(trained, data):
    half = learn(lenet(num_classes=10)).bfloat16()
    only(checks.of_model(Around(half, lambda net, x: net(x.bfloat16()).float()), *data), "coarse-logits", unreliable=False)


@pytest.mark.parametrize("answer", [
    lambda net, x: net(x + 1e-3 * torch.randn_like(x)),
    lambda net, x: net(nn.functional.dropout(x, 0.3)),
    lambda net, x: net(x) + 1e-5 * torch.rand(()),  # below any rounding, but drawn
], ids=["noise", "dropout", "tiny"])
def test_random_models_are_caught(trained, data, answer):
    text = only(of(answer, trained, data), "random-model", unreliable=True)
    assert "same 8 samples" in text and "EOT" in text


def test_a_model_that_draws_from_a_generator_of_its_own_is_caught(trained, data):
    own = generator()
    only(of(lambda net, x: net(x) * (1 + 0.1 * torch.rand((), generator=own)), trained, data), "random-model", unreliable=True)


def test_numbers_that_are_drawn_and_not_used_are_no_fault(trained, data):
    assert of(lambda net, x: net(x + 0 * torch.rand_like(x)), trained, data) == []


def batch_norm_on_the_batch(net, x):
    return net(nn.functional.batch_norm(x, None, None, training=True) * 0.2 + 0.3)


def noise_by_position(net, x):
    return net(x + 0.05 * torch.randn(x.shape, generator=generator()))


@pytest.mark.parametrize("answer", [
    lambda net, x: net(x - 0.3 * x.mean(0)),
    batch_norm_on_the_batch,
    noise_by_position,
    lambda net, x: net(x) / net(x).abs().max(),
], ids=["minus mean", "batch norm", "by position", "scaled"])
def test_batch_dependent_models_are_caught(trained, data, answer):
    text = only(of(answer, trained, data), "batch-dependent", unreliable=True)
    assert "beside 8 others" in text and "%" in text


@pytest.mark.parametrize("n", [1, 20])
def test_a_model_that_refuses_a_single_sample_is_caught(trained, data, n):
    def picky(net, x):
        if len(x) == 1 and n > 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return net(x - 0.3 * x.mean(0))

    text = only(of(picky, trained, (data[0][:n], data[1][:n])), "batch-dependent", unreliable=True)
    assert n == 1 or "fails on one alone (Expected more than 1 value" in text


def test_batch_norm_that_keeps_no_statistics_is_caught(residual, colour):
    net = copy.deepcopy(residual)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    only(checks.of_model(net, *colour), "batch-dependent", unreliable=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_caught(trained, data, dtype):
    found = of(lambda net, x: (net(x) / 4).to(dtype).softmax(1), trained, data)
    assert "64 samples" in only(found, "probabilities", unreliable=True)


def test_outputs_in_the_unit_interval_that_do_not_sum_to_one_are_no_probabilities(trained, data):
    assert of(lambda net, x: (net(x) / 4).sigmoid(), trained, data) == []


# --- two networks ------------------------------------------------------------------------------------------------------

def test_one_function_is_one_up_to_the_order_of_summation(trained, data):
    assert checks.same_function(trained, Around(trained, lambda net, x: net(x.double().float())), data[0]) is None
    wide = Around(learn(lenet(num_classes=10)).double(), lambda net, x: net(x.double()).float())
    assert checks.same_function(trained, wide, data[0]) is None


def test_two_functions_are_told_apart(trained, data):
    with torch.no_grad():
        other = Around(trained, lambda net, x: net(x) * 1.1)
        found = checks.same_function(other, trained, data[0])
        assert found.unreliable and "10.0% of the largest, and 0 of 64 (0.0%) labels change" in found.text
        z = trained(data[0])
        rolled = checks.same_function(Around(trained, lambda net, x: net(x).roll(1, 1)), trained, data[0])
    gap = 100 * float((z.roll(1, 1) - z).abs().max() / z.abs().max())
    assert f"{gap:.1f}% of the largest, and 64 of 64 (100.0%) labels" in rolled.text


def test_other_shapes_and_nan_are_other_functions(trained, data):
    assert "(64, 4)" in checks.same_function(Around(trained, lambda net, x: net(x)[:, :4]), trained, data[0]).text
    assert checks.same_function(Around(trained, lambda net, x: net(x) * float("nan")), trained, data[0]).unreliable


# --- threat and chance -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("eps, near", [(0.031, "8/255"), (8 / 256, "8/255"), (0.016, "4/255"), (0.0039, "1/255"),
                                       (0.063, "16/255")])
def test_rounded_radii_are_said(eps, near):
    text = only(checks.of_threat(eps, "linf", pixels=784), "rounded-eps", unreliable=False)
    assert f"eps is {eps:g}" in text and f"--eps {near}" in text


def test_a_rounded_radius_is_said_with_its_figures():
    assert checks.of_threat(0.031, "linf", pixels=784)[0].text == ("eps is 0.031, 1.2% off 8/255 = 0.031373; figures of others are for 8/255"
                                                       " (--eps 8/255).")


@pytest.mark.parametrize("eps", [8 / 255, 4 / 255, 0.0314, 0.03, 0.3, 0.1, 0.06, 0.01, 0.02, 0.499, 12 / 255])
def test_radii_of_the_literature_are_not_doubted(eps):
    assert checks.of_threat(eps, "linf", pixels=784) == []


def test_radii_of_other_norms_are_not_255ths():
    assert checks.of_threat(0.031, "l2", pixels=784) == checks.of_threat(0.5, "l2", pixels=784) == checks.of_threat(12.0, "l1", pixels=784) == checks.of_threat(13.9, "l2", pixels=784) == []
    for eps, norm in ((14.0, "l2"), (392.0, "l1"), (300.0, "l2")):
        assert "grey" in only(checks.of_threat(eps, norm, pixels=784), "large-eps", unreliable=False)


@pytest.mark.parametrize("eps", [0.5, 0.9])
def test_a_radius_that_reaches_grey_is_said(eps):
    assert "grey" in only(checks.of_threat(eps, "linf", pixels=784), "large-eps", unreliable=False)


@pytest.mark.parametrize("correct, n, classes, stops", [
    (100, 1000, 10, True), (128, 1000, 10, True), (129, 1000, 10, False), (0, 1000, 10, True),  # 100 + 3 sqrt(90) = 128.46
    (19, 100, 10, True), (20, 100, 10, False), (65, 100, 2, True), (66, 100, 2, False), (14, 1000, 1000, False),
    (3, 1000, 1000, True), (1, 1, 10, False), (9, 9, 2, False), (10, 10, 2, False)])
def test_near_chance_is_three_standard_deviations(correct, n, classes, stops):
    assert checks.near_chance(correct, n, classes) == stops


# --- results -----------------------------------------------------------------------------------------------------------

def result(name, n, broken=(), *, attacked=None, parts=None, nonfinite=0, outside=0):
    """broken: indices, or a count from the start."""
    flags = torch.zeros(n, dtype=torch.bool)
    flags[list(range(broken)) if isinstance(broken, int) else list(broken)] = True
    attacked = torch.ones(n, dtype=torch.bool) if attacked is None else attacked
    return SimpleNamespace(name=name, n=n, broken=flags, attacked=attacked, correct=attacked & ~flags, nonfinite=nonfinite,
                           accuracy=float((attacked & ~flags).float().mean()), outside=outside, parts=parts or {})


def results(*each):
    return {r.name: r for r in each}


def clean(n):
    return result("clean", n)


def attacked(model, x, y, **runs):
    """Results of attacks (model, x, y) -> adv, each on its own on all that are right."""
    right, found = ~wrong(model(x), y), [clean(len(x))]
    for name, run in runs.items():
        name = name.replace("_", "-")
        adv = run(model, x, y)
        outside = int((distance(adv - x, "linf") > EPS + 1e-6).sum())
        broken = right & wrong(model(contain(adv, x, eps=EPS, norm="linf")), y)
        found.append(result(name, len(x), broken.nonzero().flatten().tolist(), attacked=right, outside=outside))
    return results(*found)


def fgsm(model, x, y):
    return gradient.fgsm(model, x, y, eps=EPS, norm="linf")


def pgd(model, x, y, **options):
    return gradient.pgd(model, x, y, eps=EPS, norm="linf", generator=generator(), **options)


def cw(model, x, y):
    return pgd(model, x, y, loss="margin")


def apgd_t(model, x, y):
    return autoattack.apgd_t(model, x, y, eps=EPS, norm="linf", generator=generator(), steps=5)


def fab_t(model, x, y):
    return autoattack.fab_t(model, x, y, eps=EPS, norm="linf", generator=generator(), steps=5)


def square(model, x, y):
    return autoattack.square(model, x, y, eps=EPS, norm="linf", generator=generator(), queries=300)


def test_nothing_fires_on_attacks_of_an_honest_network(trained, data):
    found = attacked(trained, *data, fgsm=fgsm, pgd_20=pgd, cw=cw, apgd_t=apgd_t, fab_t=fab_t, square=square)
    assert 0 < found["square"].broken.sum() < found["pgd-20"].broken.sum() < 64
    assert checks.of_results(found) == [] and checks.of_results(results(clean(10))) == [] and checks.of_results({}) == []


@pytest.mark.parametrize("white", [{}, {"apgd_t": apgd_t, "fab_t": fab_t}], ids=["pgd and cw", "autoattack"])
def test_square_on_quantised_inputs_is_caught(trained, data, white):
    quantised = Around(trained, lambda net, x: net((x * 15).round() / 15 + 0 * x)).eval()
    found = attacked(quantised, *data, pgd_20=pgd, cw=cw, **white, square=square)
    text = only(checks.of_results(found), "square-alone", unreliable=True)
    alone = int((found["square"].broken & ~torch.stack([r.broken for r in found.values() if r.name != "square"]).any(0)).sum())
    assert text == (f"Square broke {100 * alone / 64:.1f}% ({alone} of 64) that white-box attacks did not;"
                    " gradients may be masked.")


@pytest.mark.parametrize("n, alone, fires", [(100, 1, False), (100, 2, False), (100, 3, True), (1000, 6, False), (1000, 8, True),
                                             (10000, 20, False), (10000, 80, True)])
def test_square_as_the_last_part_of_autoattack(n, alone, fires):
    parts = {"apgd-ce": range(20), "apgd-t": range(20, 22), "fab-t": (), "square": range(50, 50 + alone)}
    parts = {name: result(name, n, rows).broken for name, rows in parts.items()}
    found = checks.of_results(results(clean(n), result("aa", n, [*range(22), *range(50, 50 + alone)], parts=parts)))
    assert bool(found) == fires
    if fires:
        assert f"{100 * alone / n:.1f}% ({alone} of {n})" in only(found, "square-alone", unreliable=True)


def test_square_counts_only_where_others_were_run_and_failed():
    some = torch.arange(100) < 10
    thorough = result("apgd-t", 100, 2), result("fab-t", 100)
    assert checks.of_results(results(result("apgd-t", 100, attacked=some), result("square", 100, range(10, 100)))) == []
    assert checks.of_results(results(result("square", 100, 90))) == []
    few_steps = result("fgsm", 100, 5), result("pgd-3", 100)
    assert checks.of_results(results(result("square", 100, 90), *few_steps)) == []
    assert checks.of_results(results(result("square", 100, 50), *thorough, result("pgd-20", 100, 50))) == []
    assert checks.of_results(results(result("square", 100, 5), *thorough)) != []


@pytest.mark.parametrize("alone, fires", [(4, False), (11, False), (12, True)])
@pytest.mark.parametrize("weak", ["pgd-20", "cw", "fmn", "apgd-ce", "apgd-t"])
def test_square_may_break_a_little_more_than_attacks_that_leave_honest_samples_over(weak, alone, fires):
    found = results(result(weak, 100, 10), result("square", 100, range(5, 10 + alone)))
    assert bool(checks.of_results(found)) == fires


class TurnedOffGrid(torch.autograd.Function):
    """x, with a gradient that points the wrong way unless all pixels are 255ths: fgsm on images never notices."""

    @staticmethod
    def forward(ctx, x):
        ctx.sign = torch.where((x * 255 - (x * 255).round()).abs().flatten(1).amax(1) < 1e-3, 1.0, -1.0)[:, None, None, None]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.sign * gradient


def test_one_step_that_beats_many_on_masked_gradients_is_caught(trained, data):
    masked = Around(trained, lambda net, x: net(TurnedOffGrid.apply(x))).eval()
    assert checks.of_model(masked, *data) == []
    found = attacked(masked, *data, fgsm=fgsm, pgd_20=pgd)
    won = int((found["fgsm"].broken & ~found["pgd-20"].broken).sum())
    text = only(checks.of_results(found), "fewer-steps-win", unreliable=True)
    assert f"fgsm broke {won} of 64 ({100 * won / 64:.1f}%) samples that pgd-20" in text and "against 0 the other way" in text


def test_a_wrong_step_is_caught(trained, data):
    short = {"pgd_40_s1e-5": lambda *a: pgd(*a, steps=40, step_size=1e-5)}
    found = attacked(trained, *data, pgd_10=lambda *a: pgd(*a, steps=10), **short)
    assert "pgd-40-s1e-5" in only(checks.of_results(found), "fewer-steps-win", unreliable=True)


@pytest.mark.parametrize("won, lost, fires", [(6, 0, False), (7, 0, True), (10, 2, False), (14, 2, True), (30, 25, False),
                                               (0, 9, False)])
def test_fewer_steps_win_by_more_than_chance(won, lost, fires):
    few, many = result("fgsm", 100, range(won)), result("pgd-20", 100, range(60, 60 + lost))
    assert bool(checks.of_results(results(few, many))) == fires
    exact = sum(Fraction(comb(won + lost, i), 2 ** (won + lost)) for i in range(won, won + lost + 1))
    assert fires == (exact < Fraction(1, 100))


@pytest.mark.parametrize("few, many, comparable", [
    ("fgsm", "cw", True), ("fgsm", "pgd-40-r5-s0.01", True), ("pgd-10", "pgd-40", True), ("cw-10", "cw", True),
    ("pgd-20", "cw-40", False), ("pgd-20-r5", "pgd-40", False), ("pgd-40", "pgd-20", False), ("fgsm", "fmn", False),
    ("fgsm", "apgd-ce", False), ("pgd-20", "aa", False)])
def test_only_attacks_of_one_loss_are_compared(few, many, comparable):
    found = checks.of_results(results(result(few, 100, 50), result(many, 100, 10, parts={"apgd-t": torch.arange(100) < 10})))
    assert [f.check for f in found] == ["fewer-steps-win"] * comparable


def test_samples_that_the_longer_attack_was_not_given_do_not_count():
    left = torch.arange(100) >= 50
    assert checks.of_results(results(result("fgsm", 100, 50), result("pgd-20", 100, range(50, 55), attacked=left))) == []


def test_nonfinite_logits_and_answers_outside_the_ball_are_said():
    found = results(result("pgd-20", 200, 10, nonfinite=3))
    text = only(checks.of_results(found), "nonfinite-logits", unreliable=False)
    assert "pgd-20 met NaN or infinite logits on 3 of 200 (1.5%)" in text
    found = results(result("mine", 200, 10, outside=7))
    assert "mine gave 7 of 200 (3.5%) answers outside" in only(checks.of_results(found), "outside-ball", unreliable=False)


def test_shares_are_of_the_samples_that_are_done():
    done = torch.arange(1000) < 100  # time ran out
    broken = {"apgd-t": 5, "fab-t": 0, "square": range(5, 8)}
    found = results(*(result(name, 1000, rows, attacked=done) for name, rows in broken.items()))
    for r in found.values():
        r.n = 100
    assert "3.0% (3 of 100)" in only(checks.of_results(found), "square-alone", unreliable=True)


def test_the_worst_case_is_no_attack():
    worst = result("worst case", 100, 50)
    assert checks.of_results(results(result("pgd-20", 100, 10), result("square", 100, 50), worst)) != []


def test_an_attack_that_leaves_the_ball_is_said(trained, data):
    found = attacked(trained, *data, wide=lambda model, x, y: x + 2 * EPS)
    assert "wide gave 64 of 64 (100.0%)" in only(checks.of_results(found), "outside-ball", unreliable=False)


def test_unreliable_findings_come_first():
    found = results(result("pgd-20", 100, 2, nonfinite=1), result("fgsm", 100, 30))
    assert [f.check for f in checks.of_results(found)] == ["fewer-steps-win", "nonfinite-logits"]


@pytest.mark.parametrize("k, n, p", [(0, 5, 0.5), (3, 100, 0.002), (7, 7, 0.5), (8, 1000, 0.002), (510, 1000, 0.5)])
def test_tails_are_those_of_the_binomial(k, n, p):
    top, bottom = Fraction(str(p)).as_integer_ratio()
    exact = Fraction(sum(comb(n, i) * top**i * (bottom - top) ** (n - i) for i in range(k, n + 1)), bottom**n)
    assert checks._tail(k, n, p) == pytest.approx(float(exact), rel=1e-9)


def test_tails_of_many_samples_are_near_the_normal_distribution():
    upper = torch.special.ndtr(torch.tensor(-(5100 - 0.5 - 5000) / 50, dtype=torch.float64))
    assert checks._tail(5100, 10000, 0.5) == pytest.approx(float(upper), rel=1e-2)


@pytest.mark.parametrize("correct, says", [(100, "near-chance"), (125, "near-chance"), (300, "low-accuracy"), (499, "low-accuracy"), (500, None)])
def test_clean_accuracy_is_doubted(correct, says):
    found = checks.of_accuracy(correct, 1000, 10)
    assert [finding.check for finding in found] == ([says] if says else []) and all(f.unreliable == (says == "near-chance") for f in found)
