"""PGD whose iterates repeat: the answer of the whole run in fewer passes, and no answer changed."""
import pytest
import torch
from helpers import attack_checks
from helpers.attack_checks import generator, linear, samples
from torch import nn

from pwoa_cli.attacks import base, gradient
from pwoa_cli.attacks.bounded import Bounded

BATCHES = (1, 3, 8)


def whole_run(model, x, y, *, eps, alpha, steps, start):
    """Every step of one sample after the other: the first misclassified iterate, or the last one."""
    answers = []
    for i in range(len(x)):
        adv = start[i:i + 1]
        for step in range(steps + 1):
            grad, _, logits = gradient.ascent(model, adv, y[i:i + 1], loss="ce")
            if step == steps or logits.argmax(1) != y[i]:
                break
            adv = torch.clamp(adv + alpha * grad.sign(), x[i:i + 1] - eps, x[i:i + 1] + eps).clamp(0, 1)
        answers.append(adv)
    return torch.cat(answers)


class Circling(nn.Module):
    """Class 1 of 2 never wins, and the slope of a pixel is towards 1/2: iterates jump about there."""

    def forward(self, x):
        far = (x - 0.5).abs().flatten(1).sum(1)
        return torch.stack([far + 1, torch.zeros_like(far)], dim=1)


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("steps", [1, 17, 60, 61, 62, 63, 200])
def test_the_answer_is_that_of_all_steps(n, steps):
    """In 64ths sums are exact, so the answers are equal bit for bit whoever is beside a sample."""
    x = (samples(n, low=0.2, high=0.8) * 64).round() / 64
    y, start = torch.zeros(n).long(), (x + 1 / 64 * torch.arange(n).view(-1, 1, 1, 1)).clamp(0, 1)
    alpha, eps = 3 / 64, 16 / 64
    ours, broken = gradient._ascend(Circling(), start, x, y, eps=eps, norm="linf", alpha=alpha, steps=steps,
                                    loss="ce", targeted=False, every_step=False)
    assert torch.equal(ours, whole_run(Circling(), x, y, eps=eps, alpha=alpha, steps=steps, start=start))
    assert not broken.any()


def test_both_points_of_a_cycle_are_answers():
    """The oracle above sees a cycle of more than one point: one step more ends elsewhere."""
    x = torch.full((1, 1, 2, 2), 33 / 64)
    one, other = (gradient.pgd(Circling(), x, torch.zeros(1).long(), eps=0.25, norm="linf", step_size=3 / 64,
                               generator=generator(), steps=steps, random_start=False)
                  for steps in (100, 101))
    assert torch.equal(one, x) and torch.equal(other, torch.full_like(x, 30 / 64))


@pytest.mark.parametrize("norm,eps", [("linf", 0.06), ("l2", 0.5), ("l1", 2.0)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_trained_network_gives_the_flags_of_single_runs(norm, eps, loss):
    model, x, y = attack_checks.trained()
    x, y = x[:8], y[:8]
    run = {"eps": eps, "norm": norm, "alpha": eps / 8, "steps": 150, "loss": loss, "targeted": False}
    ours, broken = gradient._ascend(model, x, x, y, **run, every_step=False)
    last, _ = gradient._ascend(model, x, x, y, **run, every_step=True)
    torch.testing.assert_close(ours[~broken], last[~broken], atol=1e-4, rtol=0)
    assert base.wrong(model(ours), y).equal(broken) and (~broken).any()


def test_a_sample_in_a_cycle_costs_no_more_passes():
    bounded = Bounded(Circling(), 8)
    x = samples(8)
    gradient.pgd(bounded, x, torch.zeros(8).long(), eps=0.25, norm="linf", generator=generator(), steps=1000)
    assert bounded.meter.forwards <= 8 * 40 and bounded.meter.backwards <= 8 * 40


def test_without_a_gradient_one_kept_iterate_is_enough():
    dead = nn.Sequential(nn.Flatten(), nn.Threshold(2.0, 0.0), nn.Linear(16, 3))  # inputs never exceed 2
    bounded, x = Bounded(dead, 8), samples(3)
    gradient.pgd(bounded, x, dead(x).argmax(1), eps=0.2, norm="linf", generator=generator(), steps=100)
    assert bounded.meter.forwards == 2 * 3


def test_adversarial_training_goes_all_the_way():
    """`every_step` gives last iterates of samples in any order, none leaves."""
    bounded, x = Bounded(linear(), 8), samples(3)
    gradient.pgd(bounded, x, torch.zeros(3).long(), eps=0.2, norm="linf", generator=generator(), steps=30,
                 every_step=True)
    assert bounded.meter.forwards == 31 * 3
