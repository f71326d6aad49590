"""Numbers for people, each kind in one form."""
import math

import pytest

from pwoa_cli.reports import numbers


@pytest.mark.parametrize(("seconds", "text"),
                         [(0, "0.0s"), (3.21, "3.2s"), (9.96, "10s"), (59.6, "1m 00s"), (104, "1m 44s"),
                          (725, "12m"), (7500, "2h 05m"), (math.inf, "?"), (math.nan, "?")])
def test_duration(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(("eps", "text"),
                         [(0.3, "0.3"), (8 / 255, "8/255"), (0.031, "0.031"), (0.2, "0.2"),
                          (1 / 255, "1/255"),
                          (0.5, "0.5"), (0.0131, "0.0131"), (1, "1"), (0.123456789, "0.1235")])
def test_radius(eps, text):
    assert numbers.radius(eps) == text


@pytest.mark.parametrize(("sparsity", "text"), [(0, "0"), (0.9, "90"), (0.9975, "99.75"), (1 / 3, "33.33"),
                                                (0.999996, "99.9996"), (1, "100")])
def test_percent_of_weights(sparsity, text):
    assert numbers.percent_of_weights(sparsity) == text


@pytest.mark.parametrize(("count", "text"),
                         [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"),
                          (999_951, "1.0 MB"),
                          (2_293_000, "2.3 MB"), (3.2e13, "32.0 TB"), (3.2e17, "320000.0 TB")])
def test_size(count, text):
    assert numbers.size(count) == text


@pytest.mark.parametrize(("a", "b", "text"),
                         [(2.6e6, 2.4e5, "10.8"), (101, 100, "1.01"), (1200, 10, "120"), (1, 0, "-")])
def test_ratio(a, b, text):
    assert numbers.ratio(a, b) == text
