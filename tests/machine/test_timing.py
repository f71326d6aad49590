"""Times side by side: the order of calls, and medians and quartiles against numpy."""
import numpy as np
import pytest

from pwoa_cli.machine.timing import LEAST, MOST, alternating, ratios, spread


class Clock:
    """A clock that only calls move."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds
        return run


def test_calls_alternate_backwards_and_forwards_after_their_warm_up():
    clock = Clock()
    times = alternating({"a": clock.call("a", 1), "b": clock.call("b", 2)}, seconds=0, clock=clock)
    assert clock.order == ["a", "a", "b", "b", *(["a", "b", "b", "a"] * LEAST)[:2 * LEAST]]
    assert times == {"a": [1] * LEAST, "b": [2] * LEAST}


def test_rounds_end_with_the_time_and_at_the_most():
    clock = Clock()
    assert len(alternating({"a": clock.call("a", 1)}, seconds=20, clock=clock)["a"]) == 20
    assert len(alternating({"a": Clock().call("a", 0)}, seconds=9, clock=lambda: 0.0)["a"]) == MOST


@pytest.mark.parametrize("count", [1, 2, 5, 101])
def test_medians_and_quartiles_are_numpys(count):
    values = np.random.default_rng(0).lognormal(size=count).tolist()
    found = spread(values)
    assert [found.low, found.median, found.high] == pytest.approx(
        np.percentile(values, [25, 50, 75]).tolist())


def test_ratios_are_taken_round_by_round():
    assert ratios([1, 2, 4], [2, 4, 8]).median == ratios([1, 2, 4], [2, 4, 8]).high == 2
