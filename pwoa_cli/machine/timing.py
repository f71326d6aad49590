"""Times of several things side by side: in turn, warmed up, as medians with their spread, since a machine is
not equally fast from minute to minute."""
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WARM_UP = 2  # calls
LEAST, MOST = 5, 200  # rounds


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some numbers."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (inclusive, as numpy's percentile takes them)."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (
        values[0],) * 3
    return Spread(middle, low, high)


def alternating(calls: Mapping[str, Callable[[], object]], *, seconds: float,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each call in each round; every other round goes backwards, so that none is always first.

    Args: seconds: for all rounds together, after WARM_UP calls of each; at least LEAST rounds, at most MOST.
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, start = list(calls), clock()
    for number in range(MOST):
        for name in names if number % 2 == 0 else reversed(names):
            before = clock()
            calls[name]()
            times[name].append(clock() - before)
        if number + 1 >= LEAST and clock() - start >= seconds:
            break
    return times


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as fast ours is: the spread of theirs / ours, round by round."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])
