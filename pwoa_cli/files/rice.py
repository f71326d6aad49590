"""Rice code of increasing positions: each gap g = p_i - p_{i-1} - 1 (p_{-1} = -1) as quotient g >> k and
k-bit remainder.

Rice & Plaass 1971; Golomb 1966. Geometric gaps, which random zeros give, cost within 2% of their entropy. Two
bit streams, both LSB first, instead of one: `hi` holds the quotients in unary (q zeros, then a one), `lo` the
remainders in k bits each, so that numpy decodes both without a loop over the elements.
Legend: nnz number of positions, numel their upper bound.
"""
import numpy as np


def size_bytes(nnz: int, *, quotients: int, k: int) -> int:
    """Bytes of both streams: ceil((nnz + sum of quotients) / 8) + ceil(nnz k / 8)."""
    return -(-(nnz + quotients) // 8) - (-(nnz * k) // 8)


def best_k(positions: np.ndarray) -> tuple[int, int]:
    """Remainder width k with the fewest bits, and the bytes of both streams, for increasing positions (nnz,)
    int64.

    Bits(k) = nnz (1 + k) + sum(g >> k) is convex in k: the first k that a wider one does not beat is the
    best.
    """
    nnz, quotients, k = len(positions), _gaps(positions), 0
    total = int(quotients.sum())
    while nnz + (narrower := int((quotients >> 1).sum())) < total:
        quotients, total, k = quotients >> 1, narrower, k + 1
    return k, size_bytes(nnz, quotients=total, k=k)


def encode(positions: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The streams hi and lo (uint8) of strictly increasing positions (nnz,) int64 >= 0; unused last bits are
    zero."""
    gaps = _gaps(positions)
    ends = np.cumsum((gaps >> k) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    low_bytes = gaps.astype("<i8").view(np.uint8).reshape(-1, 8)
    low_bits = np.unpackbits(low_bytes, axis=1, count=k, bitorder="little")
    return np.packbits(unary, bitorder="little"), np.packbits(low_bits.ravel(), bitorder="little")


def decode(hi: np.ndarray, lo: np.ndarray, *, nnz: int, k: int, numel: int) -> np.ndarray:
    """Positions (nnz,) int64, strictly increasing and in 0..numel-1, of streams (uint8) that need not be
    trusted.

    Memory is bounded by the lengths of the streams. Raises: ValueError (what, got, expected) unless 2^k <=
    numel and the streams are exactly those that `encode` writes for such positions.
    """
    if not 0 <= k < max(1, numel).bit_length():
        raise ValueError(f"the Rice parameter is {k}, expected 0..{max(1, numel).bit_length() - 1}")
    positions = _ends(hi, nnz=nnz, most=(numel - nnz) >> k)
    before = np.arange(nnz)
    positions -= before  # the sum of the quotients so far
    positions <<= k
    positions += np.cumsum(_remainders(lo, nnz=nnz, k=k), dtype=np.int64)
    positions += before
    # A step is at most 2 numel < 2^62, so a sum that wraps around passes through negative numbers.
    if nnz and (positions.min() < 0 or positions.max() >= numel):
        raise ValueError(f"the gaps run past the end, to position {positions.max()}, expected at most "
                         f"{numel - 1}")
    return positions


def of_mask(packed: np.ndarray, *, nnz: int, numel: int) -> np.ndarray:
    """Positions (nnz,) int64 of the ones in a mask (ceil(numel / 8),) uint8, one bit an element, LSB first.
    Raises: ValueError unless there are nnz, all of them below numel."""
    positions = _ones(packed)
    beyond = int(np.count_nonzero(positions >= numel))
    if len(positions) != nnz or beyond:
        raise ValueError(f"the mask has {len(positions)} ones, {beyond} of them after its end, expected "
                         f"{nnz} and 0")
    return positions


def _gaps(positions: np.ndarray) -> np.ndarray:
    return np.diff(positions, prepend=-1) - 1


def _ones(packed: np.ndarray) -> np.ndarray:
    """Places (n,) int64 of the ones in a bit stream. numpy finds them in booleans 9 times as fast as in
    bytes."""
    return np.flatnonzero(np.unpackbits(packed, bitorder="little").view(bool))


def _ends(hi: np.ndarray, *, nnz: int, most: int) -> np.ndarray:
    """Where each quotient ends (nnz,) in the unary stream; their sum may be `most`."""
    if len(hi) > size_bytes(nnz, quotients=most, k=0):
        raise ValueError(f"gap_hi has {len(hi)} bytes, expected at most "
                         f"{size_bytes(nnz, quotients=most, k=0)}")
    ends = _ones(hi)
    if len(ends) != nnz:
        raise ValueError(f"gap_hi ends {len(ends)} gaps, expected {nnz}")
    used = int(ends[-1]) + 1 if nnz else 0
    if len(hi) != -(-used // 8):
        raise ValueError(f"gap_hi has {len(hi)} bytes, expected {-(-used // 8)}")
    if used - nnz > most:
        raise ValueError(f"the gaps run past the end, their quotients sum to {used - nnz}, expected at most "
                         f"{most}")
    return ends


def _remainders(lo: np.ndarray, *, nnz: int, k: int) -> np.ndarray:
    """Remainders (nnz,) of k bits each, unsigned."""
    if len(lo) != -(-nnz * k // 8):
        raise ValueError(f"gap_lo has {len(lo)} bytes, expected {-(-nnz * k // 8)} ({nnz} gaps of {k} bits)")
    bits = np.unpackbits(lo, bitorder="little")
    if bits[nnz * k:].any():
        raise ValueError("gap_lo has ones after its last gap, expected zeros")
    remainders = np.zeros(nnz, np.min_scalar_type(2**k - 1))
    for place in range(k):  # k is about log2 of the mean gap: a few passes over bytes
        remainders |= bits[place:nnz * k:k].astype(remainders.dtype) << remainders.dtype.type(place)
    return remainders
