"""Intervals and tests by cluster: known answers, coverage, and controls that show what ignoring clusters would do."""

import time

import numpy as np
import pytest
from scipy import stats

from qilin.evaluate.scoring.bootstrap import bootstrap_interval, clusters, compare, near_pairs


def test_clusters_join_by_image_group_and_hash() -> None:
    ids = [["a"], ["a"], ["b"], ["c", "d"], ["d"], ["e"], [], []]
    groups = ["", "", "g", "", "", "g", "", ""]
    found = clusters(ids, groups)
    assert found[0] == found[1]
    assert found[2] == found[5]
    assert found[3] == found[4]
    assert len(set(found.tolist())) == 5
    near = clusters(ids, groups, {"a": "00000000000000ff", "c": "00000000000000fe", "b": "ffffffffffffff00"})
    assert near[0] == near[3]
    assert near[2] != near[0]
    assert len(set(near.tolist())) == 4


def test_near_pairs_counts_bits() -> None:
    a, b = np.array([0b1111], dtype=np.uint64), np.array([0b1111, 0b0, 0b1], dtype=np.uint64)
    assert near_pairs(a, b, bits=3) == [(0, 0), (0, 2)]


def test_interval_of_independent_rows_is_the_textbook_one() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random(2000) < 0.7).astype(float)
    low, high = bootstrap_interval(values, np.arange(2000), resamples=4000) or (0, 0)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    assert low == pytest.approx(values.mean() - half, abs=0.003)
    assert high == pytest.approx(values.mean() + half, abs=0.003)


def test_clusters_widen_the_interval() -> None:
    # 100 images with 10 questions that stand or fall together: as sure as 100 questions, not as 1,000.
    rng = np.random.default_rng(2)
    values = np.repeat((rng.random(100) < 0.7).astype(float), 10)
    clustered = bootstrap_interval(values, np.repeat(np.arange(100), 10))
    pretended = bootstrap_interval(values, np.arange(1000))
    assert clustered is not None
    assert pretended is not None
    ratio = (clustered[1] - clustered[0]) / (pretended[1] - pretended[0])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_interval_matches_scipy() -> None:
    values = np.random.default_rng(3).random(300)
    ours = bootstrap_interval(values, np.arange(300), resamples=5000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_interval_is_seeded_and_needs_two_clusters() -> None:
    values = [0.0, 1.0, 1.0]
    assert bootstrap_interval(values, [0, 1, 2], seed=5) == bootstrap_interval(values, [0, 1, 2], seed=5)
    assert bootstrap_interval(values, [0, 0, 0]) is None


def test_compare_finds_a_difference_and_no_more() -> None:
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(150), 6)
    image = rng.normal(size=150)[cluster] * 0.3
    a = image + rng.normal(size=900) * 0.3
    b = image + rng.normal(size=900) * 0.3
    same, better = compare(a, b, cluster), compare(a + 0.1, b, cluster)
    assert same.p_value > 0.05
    assert same.interval is not None
    assert same.interval[0] < 0 < same.interval[1]
    assert better.p_value < 0.01
    assert better.difference == pytest.approx(same.difference + 0.1)
    assert better.clusters == 150


def test_sign_flips_keep_their_level_under_the_null() -> None:
    # Clusters of equal answers: a test that flipped questions would reject far more often than 5 times in 100.
    rejected = {"clusters": 0, "questions": 0}
    for trial in range(200):
        rng = np.random.default_rng(trial)
        difference = np.repeat(rng.choice([-1.0, 0.0, 1.0], size=30), 10)
        zero, cluster = np.zeros(300), np.repeat(np.arange(30), 10)
        rejected["clusters"] += compare(difference, zero, cluster, resamples=200).p_value < 0.05
        rejected["questions"] += compare(difference, zero, np.arange(300), resamples=200).p_value < 0.05
    assert rejected["clusters"] <= 20
    assert rejected["questions"] >= 60


def test_bootstrap_is_quick() -> None:
    values = np.random.default_rng(0).random(100_000)
    start = time.process_time()
    bootstrap_interval(values, np.arange(100_000) // 5, resamples=1000)
    assert time.process_time() - start < 10
