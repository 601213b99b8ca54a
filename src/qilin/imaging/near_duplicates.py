"""Near-duplicate images by their perceptual hashes.

In: hashes of 64 bits. Out: index pairs that differ in few bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# Bits of a 64-bit perceptual hash within which two images count as near-duplicates. On SLAKE-zh 8 bits find that
# 53 % of the validation images have a near-duplicate in training; the slices of one
# scan stand on both sides of its splits.
NEAR_BITS = 8


def hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Perceptual hashes of 16 hexadecimal digits -> integers."""
    return np.array([int(text, 16) for text in texts], dtype=np.uint64)


def near_pairs(a: NDArray[np.uint64], b: NDArray[np.uint64], bits: int = NEAR_BITS) -> list[tuple[int, int]]:
    """Index pairs (i, j) with at most `bits` differing bits between a[i] and b[j]; at most 64 MB at a time."""
    pairs: list[tuple[int, int]] = []
    rows = max(1, (8 << 20) // max(1, len(b)))
    for start in range(0, len(a), rows):
        distance = np.bitwise_count(a[start : start + rows, None] ^ b[None, :])
        i, j = np.nonzero(distance <= bits)
        pairs.extend(zip((i + start).tolist(), j.tolist(), strict=True))
    return pairs


def near_in(values: NDArray[np.uint64], bits: int) -> Iterator[tuple[int, int]]:
    """Every pair i < j of one list with at most `bits` differing bits, for few bits and many hashes.

    Of bits + 1 bands at least one is the same in both, so only images that share a band are compared: with 4 bits a
    million hashes make 5 bands of 4,096 to 8,192 heaps each. A pair comes once, with the first band it shares.
    """
    edges = [64 * band // (bits + 1) for band in range(bits + 2)]
    masks = [((1 << (high - low)) - 1) << low for low, high in zip(edges, edges[1:], strict=False)]
    bands = [values & np.uint64(mask) for mask in masks]
    for place, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order])) + 1
        for heap in np.split(order, starts):
            if len(heap) < 2:
                continue
            for i, j in near_pairs(values[heap], values[heap], bits):
                a, b = int(heap[i]), int(heap[j])
                if a < b and not any(earlier[a] == earlier[b] for earlier in bands[:place]):
                    yield a, b
