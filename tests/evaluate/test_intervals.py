"""Intervals and tests by cluster: known values, coverage, and controls that show the effect of ignoring clusters."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from qilin.evaluate.scoring.intervals import (
    Ratio,
    assign_clusters,
    compare_paired,
    compare_ratios,
    ratio_interval,
    share_interval,
)
from qilin.imaging.near_duplicates import near_pairs


def test_clusters_join_rows_by_image_group_and_hash() -> None:
    ids = [["a"], ["a"], ["b"], ["c", "d"], ["d"], ["e"], [], []]
    groups = ["", "", "g", "", "", "g", "", ""]
    clusters = assign_clusters(ids, groups)
    assert clusters.tolist() == [0, 0, 1, 2, 2, 1, 3, 4]  # numbered in order of first appearance
    with_hashes = assign_clusters(
        ids, groups, {"a": "00000000000000ff", "c": "00000000000000fe", "b": "ffffffffffffff00"}
    )
    assert with_hashes.tolist() == [0, 0, 1, 0, 0, 1, 2, 3]


def test_near_pairs_counts_differing_bits() -> None:
    a, b = np.array([0b1111], dtype=np.uint64), np.array([0b1111, 0b0, 0b1], dtype=np.uint64)
    assert near_pairs(a, b, bits=3) == [(0, 0), (0, 2)]


def test_interval_of_independent_rows_is_that_of_wilson() -> None:
    correct = np.arange(2000) < 1400
    expected = stats.binomtest(1400, 2000).proportion_ci(method="wilson")
    assert share_interval(correct, np.arange(2000)) == pytest.approx((expected.low, expected.high), abs=2e-4)


@pytest.mark.parametrize("clusters", [2, 5, 30])
def test_where_all_answers_are_right_the_interval_is_wilsons_over_clusters(clusters: int) -> None:
    expected = stats.binomtest(clusters, clusters).proportion_ci(method="wilson")
    cluster = np.repeat(np.arange(clusters), 6)
    assert share_interval(np.ones(6 * clusters), cluster) == pytest.approx((expected.low, 1.0))
    assert share_interval(np.zeros(6 * clusters), cluster) == pytest.approx((0.0, 1 - expected.low))


def test_clusters_widen_the_interval() -> None:
    # 100 images with 10 fully correlated questions each carry as much information as 100 questions, not 1,000.
    values = np.repeat(np.arange(100) < 70, 10)
    clustered, rows = share_interval(values, np.repeat(np.arange(100), 10)), share_interval(values, np.arange(1000))
    assert clustered is not None
    assert rows is not None
    assert (clustered[1] - clustered[0]) / (rows[1] - rows[0]) == pytest.approx(np.sqrt(10), rel=0.05)


def test_one_cluster_has_no_interval() -> None:
    assert share_interval([0.0, 1.0, 1.0], [0, 0, 0]) is None
    assert compare_paired([1, 1], [0, 0], [0, 0]).p_value == 1.0


# --- coverage ---------------------------------------------------------------------------------------------------------


def cluster_means(rng: np.random.Generator, clusters: int, share: float, correlation: float) -> NDArray[np.float64]:
    """The chance of a right answer at each image (C,): beta-distributed with this correlation within an image."""
    scale = (1 - correlation) / correlation
    return rng.beta(share * scale, (1 - share) * scale, clusters)


def coverage_of_accuracy(clusters: int, trials: int, share: float = 0.7, correlation: float = 0.2) -> float:
    """How often the interval covers the accuracy: 6 questions per image, correlated within the image."""
    covered = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        right = rng.binomial(6, cluster_means(rng, clusters, share, correlation)).astype(float)
        low, high = ratio_interval(Ratio(right, np.full(clusters, 6.0))) or (1, 0)
        covered += low <= share <= high
    return covered / trials


def coverage_of_micro_f1(clusters: int, trials: int) -> float:
    """The same for a ratio of sums: captions with 1 to 12 facts, of which a part that varies by image is stated."""
    covered = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        facts = rng.integers(1, 13, clusters)
        shared = rng.binomial(facts, cluster_means(rng, clusters, 0.7, 0.2))
        low, high = ratio_interval(Ratio(2.0 * shared, 2.0 * facts)) or (1, 0)
        covered += low <= 0.7 <= high
    return covered / trials


def coverage_of_difference(clusters: int, trials: int) -> float:
    """The same for a paired difference: only A is right on 0.3 of the questions, only B on 0.1."""
    covered = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        shares = rng.dirichlet(np.array([0.3, 0.1, 0.6]) * 4, clusters)
        only_a, only_b = rng.multinomial(6, shares).astype(float).T[:2]
        counts = np.full(clusters, 6.0)
        result = compare_ratios(Ratio(only_a, counts), Ratio(only_b, counts))
        assert result.interval is not None
        low, high = result.interval
        assert (result.p_value < 0.05) == (low > 0 or high < 0)
        covered += low <= 0.2 <= high
    return covered / trials


@pytest.mark.parametrize("clusters", [5, 10, 30])
@pytest.mark.parametrize("coverage", [coverage_of_accuracy, coverage_of_micro_f1, coverage_of_difference])
def test_intervals_cover(coverage: Callable[[int, int], float], clusters: int) -> None:
    # 600 trials: 0.95 has a standard error of 0.009. bench/coverage.py has the table of the docs.
    assert 0.92 <= coverage(clusters, 600) <= 0.98


@pytest.mark.long
@pytest.mark.parametrize("clusters", [5, 10, 30])
@pytest.mark.parametrize("coverage", [coverage_of_accuracy, coverage_of_micro_f1, coverage_of_difference])
def test_intervals_cover_within_0_93_and_0_97(coverage: Callable[[int, int], float], clusters: int) -> None:
    assert 0.93 <= coverage(clusters, 20_000) <= 0.97


def test_a_percentile_bootstrap_covers_too_rarely() -> None:
    """The control: the usual interval, at five images."""
    covered = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        means = rng.binomial(6, cluster_means(rng, 5, 0.7, 0.2)) / 6
        low, high = np.quantile(means[rng.integers(0, 5, (400, 5))].mean(axis=1), [0.025, 0.975])
        covered += low <= 0.7 <= high
    assert covered / 300 < 0.9


# --- paired tests -----------------------------------------------------------------------------------------------------


def test_compare_paired_detects_a_real_difference_only() -> None:
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(150), 6)
    chance = cluster_means(rng, 150, 0.5, 0.3)[cluster]
    a, b = (rng.random((2, 900)) < chance).astype(float)
    better = np.maximum(a, rng.random(900) < 0.2)
    equal, difference = compare_paired(a, b, cluster), compare_paired(better, b, cluster)
    assert equal.p_value > 0.05
    assert equal.interval is not None
    assert equal.interval[0] < 0 < equal.interval[1]
    assert difference.p_value < 0.01
    assert difference.clusters == 150
    same = compare_paired(a, a, cluster)
    assert (same.difference, same.p_value) == (0, 1.0)
    assert same.interval is not None
    assert same.interval[0] < 0 < same.interval[1]  # 150 equal images do not show that all images are


def test_tests_by_cluster_have_the_nominal_level() -> None:
    # Clusters of identical answers: a test over single questions rejects far more often than 5 times in 100.
    rejections = {"clusters": 0, "questions": 0}
    for trial in range(200):
        rng = np.random.default_rng(trial)
        difference = np.repeat(rng.choice([-1.0, 0.0, 1.0], size=30), 10)
        a, b, cluster = difference > 0, difference < 0, np.repeat(np.arange(30), 10)
        rejections["clusters"] += compare_paired(a, b, cluster).p_value < 0.05
        rejections["questions"] += compare_paired(a, b, np.arange(300)).p_value < 0.05
    assert rejections["clusters"] <= 20
    assert rejections["questions"] >= 60


@pytest.mark.parametrize(("clusters", "significant"), [(2, False), (4, False), (8, True)])
def test_a_difference_at_every_image_needs_several_images(clusters: int, significant: bool) -> None:
    result = compare_paired(np.ones(clusters), np.zeros(clusters), np.arange(clusters))
    assert (result.p_value < 0.05) == significant
    assert result.interval is not None
    assert (result.interval[0] > 0) == significant


def test_intervals_of_100_000_rows_take_less_than_2_seconds() -> None:
    values = np.random.default_rng(0).random(100_000)
    start = time.process_time()
    share_interval(values, np.arange(100_000) // 5)
    assert time.process_time() - start < 2  # 0.02 s here
