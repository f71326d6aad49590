"""Differences between answers, and what rounding explains of them."""
import pytest
import torch

from pwoa_cli.evaluation.rounding import gap, precision, rounding, unit


def test_the_gap_is_the_largest_difference_over_the_largest_logit():
    one, other = torch.tensor([[1.0, -4.0]]), torch.tensor([[1.5, -5.0]])
    assert gap(one, other) == pytest.approx(1 / 5) and gap(other, one) == pytest.approx(1 / 4)
    nan = torch.tensor([[1.0, float("nan")]])
    assert gap(nan, nan) == 0 and gap(nan, torch.tensor([[1.0, 2.0]])) == 1
    assert gap(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


@pytest.mark.parametrize("dtype, step", [(torch.bfloat16, 2**-7), (torch.float16, 2**-10),
                                         (torch.float32, 2**-23), (torch.float64, 2**-52)])
def test_the_precision_is_that_of_the_numbers(dtype, step):
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    assert precision(logits) == dtype and unit(logits) == step
    assert rounding(logits) == max(1e-3, 8 * step)
    back = logits.float() if dtype != torch.float64 else logits
    assert precision(back) == dtype


def test_whole_numbers_prove_nothing():
    assert precision(torch.arange(6.0).view(2, 3)) == torch.float32
