"""Shares and errors as sentences show them."""
import pytest

from pwoa_cli.evaluation.words import first_line, percent, share


@pytest.mark.parametrize("fraction,shown", [
    (0, "0.0%"), (1, "100.0%"), (1 / 3, "33.3%"), (0.0005, "0.1%"), (0.00049, "0.05%"), (2e-6, "0.0002%")])
def test_small_shares_keep_a_digit(fraction, shown):
    assert percent(fraction) == shown


def test_a_share_says_of_how_many():
    assert share(3, 200) == "3 of 200 (1.5%)"


@pytest.mark.parametrize("error,said", [
    (ValueError("No such size. Try another one."), "No such size"), (KeyError(), "KeyError"),
    (RuntimeError("at once.\nThen more"), "at once"), (ValueError("x" * 100), "x" * 80)])
def test_an_error_is_its_first_sentence(error, said):
    assert first_line(error) == said
