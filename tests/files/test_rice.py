"""The Rice code of increasing positions."""
import numpy as np
import pytest

from pwoa_cli.files import rice


def test_rice_code_of_a_worked_example():
    """Positions 0, 5, 6, 19 have gaps 0, 4, 0, 12; with k = 2 quotients 0, 1, 0, 3 and remainders 0: the
    example of the docs."""
    hi, lo = rice.encode(np.array([0, 5, 6, 19]), k=2)
    assert hi.tolist() == [0b10001101] and lo.tolist() == [0]
    hi, lo = rice.encode(np.array([1, 4]), k=1)  # gaps 1, 2: quotients 0, 1 and remainders 1, 0
    assert hi.tolist() == [0b101] and lo.tolist() == [0b01]


def test_best_k_is_best_and_every_k_round_trips():
    rng = np.random.default_rng(0)
    for density in (0.001, 0.01, 0.1, 0.5, 1.0):
        positions = np.flatnonzero(rng.random(5000) < density)
        best, size = rice.best_k(positions)
        gaps = np.diff(positions, prepend=-1) - 1
        bit_counts = [int(sum((gap >> k) + 1 + k for gap in gaps.tolist())) for k in range(13)]
        assert best == bit_counts.index(min(bit_counts))
        for k in range(13):
            hi, lo = rice.encode(positions, k=k)
            assert np.array_equal(rice.decode(hi, lo, nnz=len(positions), k=k, numel=5000), positions)
            assert len(hi) + len(lo) == rice.size_bytes(len(positions), quotients=int((gaps >> k).sum()), k=k)
            assert k != best or size == len(hi) + len(lo)


def packed(bits):
    return np.packbits(np.array(bits, np.uint8), bitorder="little")


@pytest.mark.parametrize("k", [0, 1, 7, 8, 9, 16, 31, 32, 33, 57, 62])
def test_remainders_of_any_width(k):
    """Gaps of q 2^k + r, by hand."""
    draw = np.random.default_rng(k)
    gaps = [q * 2**k + int(draw.integers(2**min(k, 57))) for q in ((1, 0, 2) if k < 58 else (0,))]
    positions, at = [], -1
    for gap in gaps:
        at += gap + 1
        positions.append(at)
    hi = packed([bit for gap in gaps for bit in [0] * (gap >> k) + [1]])
    lo = packed([gap >> place & 1 for gap in gaps for place in range(k)])
    found = rice.decode(hi, lo, nnz=len(gaps), k=k, numel=2**63 - 1)
    assert found.dtype == np.int64 and found.tolist() == positions


@pytest.mark.parametrize("count", range(3, 9))
def test_sums_that_no_integer_holds_are_refused(count):
    """Gaps of 2^62 - 1: with two they fit, with four their sum is past 2^63, with eight past 2^64."""
    hi, lo = packed([1] * count), packed([1] * 62 * count)
    with pytest.raises(ValueError, match="the gaps run past the end"):
        rice.decode(hi, lo, nnz=count, k=62, numel=2**63 - 1)
    assert rice.decode(hi[:1] & 1, packed([1] * 62), nnz=1, k=62, numel=2**63 - 1).tolist() == [2**62 - 1]
