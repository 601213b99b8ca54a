"""Bootstrap intervals and paired significance tests that resample independent images instead of questions.

Questions about one image, its near-duplicates and one patient are correlated, so they form one cluster and clusters
are resampled. Inputs: one value and one cluster number per row. Outputs: intervals and p-values.
N rows, C clusters, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qilin.dataset.splits import connected_components
from qilin.imaging.near_duplicates import NEAR_BITS, near_pairs, parse_hashes

SIGN_ROWS_PER_BLOCK = 256
INDICES_PER_BLOCK = 4 << 20  # 32 MB of resampled cluster indices


def assign_clusters(
    image_ids: Sequence[Sequence[str]],
    groups: Sequence[str] | None = None,
    phash: Mapping[str, str] | None = None,
    bits: int = NEAR_BITS,
) -> NDArray[np.int64]:
    """One cluster number per row (N,), 0 to C-1: rows that share an image, a near-duplicate or a group are joined.

    A row without image and group is its own cluster. `phash` maps image_id to 16 hexadecimal digits.
    """
    representative: dict[str, str] = {}
    if phash:
        hashed = sorted({i for ids in image_ids for i in ids if phash.get(i)})
        groups_by_leader = leader_clusters(parse_hashes([phash[i] for i in hashed]), bits)
        representative = {hashed[i]: hashed[leader] for leader, members in groups_by_leader.items() for i in members}
    key_indices: dict[tuple[str, str], int] = {}
    edges: list[tuple[int, int]] = []  # (row, key)
    for row, ids in enumerate(image_ids):
        keys = [("image", representative.get(image_id, image_id)) for image_id in ids]
        if groups is not None and groups[row]:
            keys.append(("group", groups[row]))
        edges += [(row, key_indices.setdefault(key, len(key_indices))) for key in keys]
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    labels = connected_components(rows, columns, len(image_ids), len(key_indices))[: len(image_ids)]
    _, first_rows, numbers = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_rows))[numbers].astype(np.int64)  # numbered in order of first appearance


def leader_clusters(hashes: NDArray[np.uint64], bits: int) -> dict[int, list[int]]:
    """Index of a leader -> indices of the other hashes within `bits` of it; each hash belongs to one leader.

    Single linkage would chain similar images without end: at 8 bits it joined 60 of the 546 SLAKE-zh images, and 79 of
    360 synthetic ones, into one cluster.
    """
    neighbors: dict[int, list[int]] = {}
    for i, j in near_pairs(hashes, hashes, bits):
        neighbors.setdefault(i, []).append(j)
    unassigned = set(range(len(hashes)))
    members: dict[int, list[int]] = {}
    for leader in range(len(hashes)):
        if leader in unassigned:
            members[leader] = [j for j in neighbors[leader] if j in unassigned and j != leader]
            unassigned -= {leader, *members[leader]}
    return members


def bootstrap_interval(
    values: ArrayLike, cluster: ArrayLike, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of the mean of `values` (N,), resampled by cluster; None for fewer than 2 clusters."""
    sums, counts = _sum_by_cluster(np.asarray(values, dtype=np.float64), np.asarray(cluster))
    if len(counts) < 2:
        return None
    means = _resampled_means(sums, counts, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference a - b, its bootstrap interval, and the two-sided p-value of the sign-flip test."""

    difference: float
    interval: tuple[float, float] | None
    p_value: float
    clusters: int

    def to_json(self) -> dict[str, float | list[float] | None]:
        """The fields other than `difference`, which scores.json names by its context."""
        interval = list(self.interval) if self.interval else None
        return {"interval": interval, "p_value": self.p_value, "clusters": self.clusters}


def compare_paired(
    a: ArrayLike, b: ArrayLike, cluster: ArrayLike, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> PairedDifference:
    """Two systems on the same rows (a, b: (N,)): paired bootstrap interval and sign-flip test, both by cluster.

    The test flips the sign of entire clusters: under the null hypothesis the two systems are exchangeable.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    sums, _ = _sum_by_cluster(difference, np.asarray(cluster))
    rng = np.random.default_rng(seed)
    at_least_as_large = 0
    for start in range(0, resamples, SIGN_ROWS_PER_BLOCK):
        size = (min(SIGN_ROWS_PER_BLOCK, resamples - start), len(sums))
        signs = rng.integers(0, 2, size=size, dtype=np.int8) * 2 - 1  # (b, C)
        at_least_as_large += int(np.sum(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9))
    return PairedDifference(
        float(difference.mean()),
        bootstrap_interval(difference, cluster, resamples, seed, level),
        (1 + at_least_as_large) / (1 + resamples),
        len(sums),
    )


def _sum_by_cluster(
    values: NDArray[np.float64], cluster: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values in each cluster: (C,), (C,)."""
    assert values.shape == cluster.shape, f"{values.shape} values for {cluster.shape} cluster numbers"
    _, number = np.unique(cluster, return_inverse=True)
    return np.bincount(number, weights=values).astype(np.float64), np.bincount(number).astype(np.float64)


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """The mean in each of B resamples of C clusters: (B,)."""
    rng = np.random.default_rng(seed)
    size = len(counts)
    resamples_per_block = max(1, INDICES_PER_BLOCK // size)
    means = []
    for start in range(0, resamples, resamples_per_block):
        drawn = rng.integers(0, size, size=(min(resamples_per_block, resamples - start), size))  # (b, C)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
