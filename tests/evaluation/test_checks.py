"""Each fault planted in a small model fires its check and no other; honest models fire none."""
import copy

import pytest
import torch
from helpers import faults
from helpers.attack_checks import generator
from helpers.faults import Around, only
from helpers.small_models import learn, lenet, resnet
from torch import nn

from pwoa_cli.evaluation import checks


@pytest.fixture(scope="module")
def residual():
    """With batch norms."""
    return learn(resnet(num_classes=10), channels=3)


@pytest.fixture(scope="module")
def colour():
    return faults.samples(channels=3)


def of(answer, trained, data, **options):
    return checks.of_model(Around(trained, answer).eval(), *data, **options)


def largest(model, x):
    return float(model(x).detach().abs().max())


# --- honest models ---------------------------------------------------------------


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
    # confident, yet its gradients are above 1e-38
    lambda net, x: 60 * net(x) / largest(net, x[:1].clamp(0.2, 0.2)),
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
    assert (all(m.training for m in net.modules())
            and all(p.requires_grad and p.grad is None for p in net.parameters()))
    assert (all(torch.equal(before[k], v) for k, v in net.state_dict().items())
            and torch.equal(state, torch.get_rng_state()))


# --- faults of models ---------------------------------------------------------------


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
    assert (not fires
            or f"{blind} of 32 ({100 * blind / 32:.1f}%)" in only(found, "zero-gradients", unreliable=True))


def test_a_scale_that_masks_cross_entropy_is_caught(trained, data):
    text = only(of(lambda net, x: 1000 * net(x), trained, data), "masked-cross-entropy", unreliable=True)
    assert "32 of 32 (100.0%)" in text and "apgd-ce" in text


@pytest.mark.parametrize("attacks, unreliable", [
    (("pgd-20", "cw", "aa"), False), (("pgd-20", "apgd-ce"), True)])
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
        # class 10 copies the value of class 0
        return torch.cat([z, z[:, :1].detach() + (z[:, 1:2] - z[:, 1:2].detach())], 1)

    zeros = int((trained(data[0]).bfloat16().argmax(1) == 0).sum())
    assert f"{zeros} of 64 (" in only(of(tied, trained, data), "coarse-logits", unreliable=True)


def test_a_bfloat16_network_is_not_taken_for_a_batch_dependent_one(trained, data):
    half = learn(lenet(num_classes=10)).bfloat16()
    found = checks.of_model(Around(half, lambda net, x: net(x.bfloat16()).float()), *data)
    only(found, "coarse-logits", unreliable=False)


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
    found = of(lambda net, x: net(x) * (1 + 0.1 * torch.rand((), generator=own)), trained, data)
    only(found, "random-model", unreliable=True)


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


# --- two networks ---------------------------------------------------------------


def test_one_function_is_one_up_to_the_order_of_summation(trained, data):
    same = Around(trained, lambda net, x: net(x.double().float()))
    assert checks.same_function(trained, same, data[0]) is None
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
    few = Around(trained, lambda net, x: net(x)[:, :4])
    none = Around(trained, lambda net, x: net(x) * float("nan"))
    assert "(64, 4)" in checks.same_function(few, trained, data[0]).text
    assert checks.same_function(none, trained, data[0]).unreliable


# --- threat and chance ---------------------------------------------------------------


@pytest.mark.parametrize("eps, near", [
    (0.031, "8/255"), (8 / 256, "8/255"), (0.016, "4/255"), (0.0039, "1/255"), (0.063, "16/255")])
def test_rounded_radii_are_said(eps, near):
    text = only(checks.of_threat(eps, "linf", pixels=784), "rounded-eps", unreliable=False)
    assert f"eps is {eps:g}" in text and f"--eps {near}" in text


def test_a_rounded_radius_is_said_with_its_figures():
    text = only(checks.of_threat(0.031, "linf", pixels=784), "rounded-eps", unreliable=False)
    assert text == "eps is 0.031, 1.2% off 8/255 = 0.031373; figures of others are for 8/255 (--eps 8/255)."


@pytest.mark.parametrize("eps", [8 / 255, 4 / 255, 0.0314, 0.03, 0.3, 0.1, 0.06, 0.01, 0.02, 0.499, 12 / 255])
def test_radii_of_the_literature_are_not_doubted(eps):
    assert checks.of_threat(eps, "linf", pixels=784) == []


def test_radii_of_other_norms_are_not_255ths():
    for eps, norm in ((0.031, "l2"), (0.5, "l2"), (12.0, "l1"), (13.9, "l2")):
        assert checks.of_threat(eps, norm, pixels=784) == []
    for eps, norm in ((14.0, "l2"), (392.0, "l1"), (300.0, "l2")):
        assert "grey" in only(checks.of_threat(eps, norm, pixels=784), "large-eps", unreliable=False)


@pytest.mark.parametrize("eps", [0.5, 0.9])
def test_a_radius_that_reaches_grey_is_said(eps):
    assert "grey" in only(checks.of_threat(eps, "linf", pixels=784), "large-eps", unreliable=False)


@pytest.mark.parametrize("norm, least", [
    # 1e-6; + sqrt(784) 2^-24; + 784 2^-24
    ("linf", 1e-6), ("l2", 1e-6 + 28 * 2**-24), ("l1", 1e-6 + 784 * 2**-24)])
def test_a_radius_that_float32_cannot_express_is_unreliable(norm, least):
    text = only(checks.of_threat(0.999 * least, norm, pixels=784), "tiny-eps", unreliable=True)
    assert f"below {least:.2g}" in text and "784 pixels" in text
    assert checks.of_threat(1.001 * least, norm, pixels=784) == []


def test_below_that_radius_pixels_near_white_do_not_move():
    white = torch.tensor(1 - 2**-24)
    assert white + 2**-26 == white and white - 1e-6 != white


@pytest.mark.parametrize("correct, n, classes, stops", [
    # 100 + 3 sqrt(90) = 128.46
    (100, 1000, 10, True), (128, 1000, 10, True), (129, 1000, 10, False), (0, 1000, 10, True),
    (19, 100, 10, True), (20, 100, 10, False), (65, 100, 2, True), (66, 100, 2, False),
    (14, 1000, 1000, False), (3, 1000, 1000, True), (1, 1, 10, False), (9, 9, 2, False), (10, 10, 2, False)])
def test_near_chance_is_three_standard_deviations(correct, n, classes, stops):
    assert ("near-chance" in [finding.check for finding in checks.of_accuracy(correct, n, classes)]) == stops


@pytest.mark.parametrize("correct, says", [
    (100, "near-chance"), (125, "near-chance"), (300, "low-accuracy"), (499, "low-accuracy"), (500, None)])
def test_clean_accuracy_is_doubted(correct, says):
    found = checks.of_accuracy(correct, 1000, 10)
    assert [finding.check for finding in found] == ([says] if says else [])
    assert all(finding.unreliable == (says == "near-chance") for finding in found)
