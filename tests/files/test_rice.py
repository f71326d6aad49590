"""The Rice code of increasing positions."""
import numpy as np

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
