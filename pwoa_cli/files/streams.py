"""Byte streams of a sparse file (format 2 in docs/sparse-file.md): numbers as byte planes, raw or deflated.

Weights that survive pruning have magnitudes above a threshold, so their exponents are few and far from evenly
spread: with the sign rotated out of the way they are one plane of bytes that costs about 1.4 bits a value
(measured on a ResNet-18 at 90%), while planes of the mantissa are as good as random. DEFLATE (RFC 1951) codes
such a plane with Huffman codes and matches.
"""
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

SAMPLE, PAYS = 2**16, 0.98  # bytes that are tried; what they must shrink to
SIGN = 1  # bits that a word is rotated by to the left: the top byte is then the exponent's


def planes(words: np.ndarray) -> list[np.ndarray]:
    """Byte planes (n,) uint8 of floats seen as unsigned words (n,), the least significant first; the sign is
    the lowest bit of the first."""
    width = 8 * words.itemsize
    rotated = (words << words.dtype.type(SIGN)) | (words >> words.dtype.type(width - SIGN))
    return list(rotated.astype(rotated.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, words.itemsize).T)


def words(parts: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The words (n,) of `planes`, joined and rotated back in place."""
    joined = parts[-1].astype(dtype)
    for part in parts[-2::-1]:
        joined <<= dtype.type(8)
        joined |= part
    sign = joined << dtype.type(8 * dtype.itemsize - SIGN)
    joined >>= dtype.type(SIGN)
    joined |= sign
    return joined


def deflated(data: bytes) -> bytes:
    """Raw DEFLATE of some bytes; the level makes an index or an exponent plane hardly smaller beyond 6."""
    coder = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL)
    return coder.compress(data) + coder.flush()


def inflated(data: bytes | memoryview, *, most: int) -> bytes:
    """The bytes of `deflated`, at most `most` of them in memory. Raises: ValueError unless it is one whole
    stream of at most that size."""
    coder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = coder.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(f"a stream cannot be inflated ({error}), expected DEFLATE data") from error
    if len(found) > most or not coder.eof or coder.unused_data:
        raise ValueError(f"a stream of {len(data)} bytes inflates to {len(found)} without its end, expected "
                         f"at most {most} and its end")
    return found


def stored(raw: bytes, *, compact: bool) -> tuple[int, bytes]:
    """How a stream is written: its length and bytes; the length is negative where they are deflated.

    Planes as good as random are known by their beginning: DEFLATE of megabytes in vain takes half a second.
    """
    trial = raw[:SAMPLE]
    if not compact or len(deflated(trial)) > PAYS * len(trial):
        return len(raw), raw
    small = deflated(raw)
    return (-len(small), small) if len(small) < len(raw) else (len(raw), raw)


def cut(data: memoryview, lengths: Sequence[int], sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """The streams, each of the size that is expected of it, from where they lie one after the other."""
    at = 0
    for length, size in zip(lengths, sizes, strict=True):
        part = data[at:at + abs(length)]
        at += abs(length)
        if length >= 0 and length != size:
            raise ValueError(f"a stream has {length} bytes, expected {size}")
        whole = part if length >= 0 else inflated(part, most=size)
        if len(whole) != size:
            raise ValueError(f"a stream inflates to {len(whole)} bytes, expected {size}")
        yield np.frombuffer(whole, np.uint8)
