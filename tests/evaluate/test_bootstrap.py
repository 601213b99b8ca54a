"""Intervals and tests by cluster: known values, coverage, and controls that show the effect of ignoring clusters."""

import time

import numpy as np
import pytest
from scipy import stats

from qilin.evaluate.scoring.bootstrap import assign_clusters, bootstrap_interval, compare_paired
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


def test_interval_of_independent_rows_is_the_normal_approximation() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random(2000) < 0.7).astype(float)
    low, high = bootstrap_interval(values, np.arange(2000), resamples=4000) or (0, 0)
    half_width = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    assert low == pytest.approx(values.mean() - half_width, abs=0.003)
    assert high == pytest.approx(values.mean() + half_width, abs=0.003)


def test_clusters_widen_the_interval() -> None:
    # 100 images with 10 fully correlated questions each carry as much information as 100 questions, not 1,000.
    rng = np.random.default_rng(2)
    values = np.repeat((rng.random(100) < 0.7).astype(float), 10)
    clustered = bootstrap_interval(values, np.repeat(np.arange(100), 10))
    unclustered = bootstrap_interval(values, np.arange(1000))
    assert clustered is not None
    assert unclustered is not None
    ratio = (clustered[1] - clustered[0]) / (unclustered[1] - unclustered[0])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_interval_matches_scipy() -> None:
    values = np.random.default_rng(3).random(300)
    interval = bootstrap_interval(values, np.arange(300), resamples=5000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert interval == pytest.approx((expected.low, expected.high), abs=0.004)


def test_interval_is_seeded_and_needs_two_clusters() -> None:
    values = [0.0, 1.0, 1.0]
    assert bootstrap_interval(values, [0, 1, 2], seed=5) == bootstrap_interval(values, [0, 1, 2], seed=5)
    assert bootstrap_interval(values, [0, 0, 0]) is None


def test_compare_paired_detects_a_real_difference_only() -> None:
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(150), 6)
    image_effect = rng.normal(size=150)[cluster] * 0.3
    a = image_effect + rng.normal(size=900) * 0.3
    b = image_effect + rng.normal(size=900) * 0.3
    equal, better = compare_paired(a, b, cluster), compare_paired(a + 0.1, b, cluster)
    assert equal.p_value > 0.05
    assert equal.interval is not None
    assert equal.interval[0] < 0 < equal.interval[1]
    assert better.p_value < 0.01
    assert better.difference == pytest.approx(equal.difference + 0.1)
    assert better.clusters == 150


def test_sign_flips_by_cluster_have_the_nominal_level() -> None:
    # Clusters of identical answers: a test that flips single questions rejects far more often than 5 times in 100.
    rejections = {"clusters": 0, "questions": 0}
    for trial in range(200):
        rng = np.random.default_rng(trial)
        difference = np.repeat(rng.choice([-1.0, 0.0, 1.0], size=30), 10)
        zero, cluster = np.zeros(300), np.repeat(np.arange(30), 10)
        rejections["clusters"] += compare_paired(difference, zero, cluster, resamples=200).p_value < 0.05
        rejections["questions"] += compare_paired(difference, zero, np.arange(300), resamples=200).p_value < 0.05
    assert rejections["clusters"] <= 20
    assert rejections["questions"] >= 60


def test_bootstrap_of_100_000_rows_takes_less_than_10_seconds() -> None:
    values = np.random.default_rng(0).random(100_000)
    start = time.process_time()
    bootstrap_interval(values, np.arange(100_000) // 5, resamples=1000)
    assert time.process_time() - start < 10
