"""Images that resemble each other, by the Hamming distance of their perceptual hashes.

In: 64-bit hashes. Out: index pairs that differ in few bits. For intervals, which treat such images as correlated; what
is a copy of what is decided by imaging/registration.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Bits of a 64-bit perceptual hash within which two images count as similar.
NEAR_BITS = 8


def parse_hashes(digits: Sequence[str]) -> NDArray[np.uint64]:
    """Perceptual hashes of 16 hexadecimal digits -> integers."""
    return np.array([int(text, 16) for text in digits], dtype=np.uint64)


def near_pairs(a: NDArray[np.uint64], b: NDArray[np.uint64], bits: int = NEAR_BITS) -> list[tuple[int, int]]:
    """Index pairs (i, j) with at most `bits` differing bits between a[i] and b[j]; at most 64 MB at a time."""
    pairs: list[tuple[int, int]] = []
    rows_per_block = max(1, (8 << 20) // max(1, len(b)))
    for start in range(0, len(a), rows_per_block):
        distance = np.bitwise_count(a[start : start + rows_per_block, None] ^ b[None, :])
        i, j = np.nonzero(distance <= bits)
        pairs.extend(zip((i + start).tolist(), j.tolist(), strict=True))
    return pairs
