"""Near-duplicate images by Hamming distance of their perceptual hashes.

In: 64-bit hashes. Out: index pairs that differ in few bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# Bits of a 64-bit perceptual hash within which two images count as near-duplicates. With 8 bits, 53 % of SLAKE-zh's
# validation images have a near-duplicate in training: slices of one scan are on both sides of its splits.
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


def near_pairs_among(hashes: NDArray[np.uint64], bits: int) -> Iterator[tuple[int, int]]:
    """Every pair i < j of one list with at most `bits` differing bits, for few bits and many hashes.

    Of bits + 1 bands at least one is equal in both hashes (pigeonhole), so only images that share a band are compared:
    with 4 bits, a million hashes fall into 4,096 to 8,192 buckets per band. Each pair is yielded once.
    """
    edges = [64 * band // (bits + 1) for band in range(bits + 2)]
    masks = [((1 << (high - low)) - 1) << low for low, high in zip(edges, edges[1:], strict=False)]
    bands = [hashes & np.uint64(mask) for mask in masks]
    for band_index, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        boundaries = np.flatnonzero(np.diff(band[order])) + 1
        for bucket in np.split(order, boundaries):
            if len(bucket) < 2:
                continue
            for i, j in near_pairs(hashes[bucket], hashes[bucket], bits):
                a, b = int(bucket[i]), int(bucket[j])
                if a < b and not any(earlier[a] == earlier[b] for earlier in bands[:band_index]):
                    yield a, b
