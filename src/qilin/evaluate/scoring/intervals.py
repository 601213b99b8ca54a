"""Confidence intervals and paired tests over independent images instead of questions.

Questions about one image, its near-duplicates and one patient are correlated, so they form one cluster. The variance of
a score is that of the delete-one-cluster jackknife; the interval is Wilson's with the effective sample size of that
variance and the quantiles of Student's t with C - 1 degrees of freedom, the p-value of a difference inverts the same
interval. Inputs: values and one cluster number per row. Outputs: intervals and p-values.
N rows, C clusters, K repetitions of a control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtr, stdtrit

from qilin.dataset.splits import connected_components
from qilin.imaging.near_duplicates import NEAR_BITS, near_pairs, parse_hashes

LEVEL = 0.95
METHOD = "Wilson interval with the effective sample size of a delete-one-cluster jackknife, t quantiles; 95 %"
Array = NDArray[np.float64]


# --- clusters ---------------------------------------------------------------------------------------------------------


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


def sum_by_cluster(values: ArrayLike, cluster: ArrayLike) -> Array:
    """The sum of the values (N,) in each cluster: (C,)."""
    values, cluster = np.asarray(values, dtype=np.float64), np.asarray(cluster)
    assert values.shape == cluster.shape, f"{values.shape} values for {cluster.shape} cluster numbers"
    _, number = np.unique(cluster, return_inverse=True)
    return np.bincount(number, weights=values).astype(np.float64)


def count_clusters(cluster: ArrayLike) -> int:
    """How many clusters there are among the rows."""
    return len(np.unique(np.asarray(cluster)))


# --- estimates: a ratio of sums, and its jackknife variance ---------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """A score that is a ratio of sums: numerators and denominators by cluster, each (C,) or (K, C).

    A mean has the number of rows as denominator; a micro F1 has 2 x shared over stated + true facts. With K repetitions
    (one per derangement) the estimate is the mean of their ratios.
    """

    numerators: Array
    denominators: Array

    def value(self) -> float:
        """The estimate."""
        return float(_divide(self.numerators.sum(axis=-1), self.denominators.sum(axis=-1)).mean())

    def without_each_cluster(self) -> Array:
        """The estimates without one cluster: (C,)."""
        numerators = self.numerators.sum(axis=-1, keepdims=True) - self.numerators
        denominators = self.denominators.sum(axis=-1, keepdims=True) - self.denominators
        return _divide(numerators, denominators).reshape(-1, numerators.shape[-1]).mean(axis=0)


def mean_of(values: ArrayLike, cluster: ArrayLike) -> Ratio:
    """The mean of the values (N,) as a Ratio."""
    return Ratio(sum_by_cluster(values, cluster), sum_by_cluster(np.ones(len(np.asarray(values))), cluster))


def _divide(numerators: Array, denominators: Array) -> Array:
    """A ratio of nothing to nothing is 1: no fact to state and none stated."""
    return np.where(denominators > 0, numerators / np.where(denominators > 0, denominators, 1), 1.0)


def jackknife_variance(estimate: float, without_each: Array) -> float:
    """Variance of an estimate from the estimates without one cluster (C,)."""
    size = len(without_each)
    return float((size - 1) / size * ((without_each - estimate) ** 2).sum())


# --- intervals ------------------------------------------------------------------------------------------------------


def wilson_interval(share: float, variance: float, clusters: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share (0 to 1) with that variance over that many clusters.

    Where all clusters are equal the variance says nothing; the interval is then Wilson's for `clusters` equal answers
    out of `clusters`, and the share of other answers that it allows may have any value.
    """
    if variance <= 1e-15 or share * (1 - share) <= 1e-15:
        return _equal_clusters(share, 0.0, 1.0, float(ndtri((1 + level) / 2)), clusters)
    quantile = float(stdtrit(clusters - 1, (1 + level) / 2))
    return _wilson(share, share * (1 - share) / variance, quantile)


def _wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    squared = quantile**2
    center = (share + squared / (2 * size)) / (1 + squared / size)
    half = quantile / (1 + squared / size) * np.sqrt(share * (1 - share) / size + squared / (4 * size**2))
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def _equal_clusters(value: float, low: float, high: float, quantile: float, clusters: int) -> tuple[float, float]:
    at_least = clusters / (clusters + quantile**2)  # Wilson's lower end for C of C
    return at_least * value + (1 - at_least) * low, at_least * value + (1 - at_least) * high


def ratio_interval(ratio: Ratio, level: float = LEVEL) -> tuple[float, float] | None:
    """Interval of a ratio between 0 and 1; None for fewer than 2 clusters."""
    clusters = ratio.numerators.shape[-1]
    if clusters < 2:
        return None
    share = min(max(ratio.value(), 0.0), 1.0)
    return wilson_interval(share, jackknife_variance(share, ratio.without_each_cluster()), clusters, level)


def share_interval(values: ArrayLike, cluster: ArrayLike, level: float = LEVEL) -> tuple[float, float] | None:
    """Interval of the mean of `values` (N,), each from 0 to 1; None for fewer than 2 clusters."""
    return ratio_interval(mean_of(values, cluster), level)


# --- paired differences ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedDifference:
    """Difference a - b, its interval, and the two-sided p-value: below 0.05 exactly if the interval excludes 0."""

    difference: float
    interval: tuple[float, float] | None
    p_value: float
    clusters: int

    def to_json(self) -> dict[str, Any]:
        """The fields other than `difference`, which scores.json names by its context."""
        interval = list(self.interval) if self.interval else None
        return {"interval": interval, "p_value": self.p_value, "clusters": self.clusters}


def compare_ratios(a: Ratio, b: Ratio, level: float = LEVEL) -> PairedDifference:
    """The difference of two ratios between 0 and 1 over the same clusters.

    The difference d is treated as the share (1 + d) / 2, whose interval stays within its bounds. p = 1 for one cluster.
    """
    clusters = a.numerators.shape[-1]
    difference = a.value() - b.value()
    if clusters < 2:
        return PairedDifference(difference, None, 1.0, clusters)
    variance = jackknife_variance(difference, a.without_each_cluster() - b.without_each_cluster()) / 4
    share = (1 + difference) / 2
    quantile = float(stdtrit(clusters - 1, (1 + level) / 2))
    if variance <= 1e-15 or share * (1 - share) <= 1e-15:
        low, high = _equal_clusters(difference, -1.0, 1.0, quantile, clusters)
        statistic = np.sqrt(clusters * abs(difference))  # the quantile at which the interval reaches 0
    else:
        size = share * (1 - share) / variance
        low, high = (2 * end - 1 for end in _wilson(share, size, quantile))
        statistic = abs(difference) * np.sqrt(size)
    p_value = float(2 * stdtr(clusters - 1, -statistic))
    return PairedDifference(difference, (low, high), p_value, clusters)


def compare_paired(a: ArrayLike, b: ArrayLike, cluster: ArrayLike, level: float = LEVEL) -> PairedDifference:
    """Two systems on the same rows (a, b: (N,), each value from 0 to 1)."""
    return compare_ratios(mean_of(a, cluster), mean_of(b, cluster), level)
