"""The plan: no sample is lost or repeated, and every pack stays within its limit."""

import dataclasses
import math
import resource
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qilin.core.errors import UserError
from qilin.train.plan import Lengths, PackedGroup, Plan, best_fit, group_samples, imbalance, make_plan

MAX_TOKENS = 120


@st.composite
def random_lengths(draw: st.DrawFn, sources: int = 1) -> Lengths:
    """Images with one to six samples each, and samples without an image; none longer than MAX_TOKENS."""
    rows: list[tuple[int, ...]] = []
    images = st.tuples(st.integers(0, 60), st.lists(st.integers(1, 60), min_size=1, max_size=6))
    for image, (shared, rests) in enumerate(draw(st.lists(images, min_size=1, max_size=20))):
        for rest in rests:
            prefix_group = image if shared else -1 - len(rows)
            rows.append((shared + rest, shared, 1, prefix_group, image % sources, 1))
    return Lengths(*np.array(rows, dtype=np.int64).T)


batch_sizes = st.integers(1, 40)
seeds = st.integers(0, 10_000)


def three_per_image(samples: int = 60) -> Lengths:
    """Three samples per image, with 40 shared tokens and 10 to 29 of their own."""
    index = np.arange(samples)
    zeros = np.zeros(samples, dtype=int)
    return Lengths(50 + index % 20, np.full(samples, 40), np.full(samples, 5), index // 3, zeros, zeros + 1)


def plan_of(lengths: Lengths, **options: Any) -> Plan:
    defaults = {"batch_size": 8, "num_epochs": 1, "pack_tokens": MAX_TOKENS, "seed": 0}
    return make_plan(lengths, [1.0], **(defaults | options))


def tokens_of(group: PackedGroup, lengths: Lengths) -> int:
    """Tokens of a group, counted independently."""
    shared = int(lengths.prefix[group.samples[0]])
    return shared + sum(int(lengths.total[i]) - shared for i in group.samples)


@settings(max_examples=60, deadline=None)
@given(lengths=random_lengths(), batch_size=batch_sizes, epochs=st.integers(1, 3), seed=seeds)
def test_each_epoch_uses_each_sample_once(lengths: Lengths, batch_size: int, epochs: int, seed: int) -> None:
    plan = plan_of(lengths, batch_size=batch_size, num_epochs=epochs, seed=seed)
    samples = len(lengths.total)
    assert len(plan) == epochs * math.ceil(samples / batch_size)
    steps = [plan.samples(step) for step in range(len(plan))]
    assert all(0 < len(step) <= batch_size for step in steps)
    steps_per_epoch = len(plan) // epochs
    for epoch in range(epochs):
        used = np.concatenate(steps[epoch * steps_per_epoch : (epoch + 1) * steps_per_epoch])
        assert sorted(used.tolist()) == list(range(samples))


@settings(max_examples=60, deadline=None)
@given(lengths=random_lengths(), batch_size=batch_sizes, seed=seeds, share=st.floats(0.05, 2.5))
def test_max_steps_gives_the_first_steps_of_the_same_plan(
    lengths: Lengths, batch_size: int, seed: int, share: float
) -> None:
    complete = plan_of(lengths, batch_size=batch_size, num_epochs=3, seed=seed)
    max_steps = max(1, round(share * len(complete) / 3))
    plan = plan_of(lengths, batch_size=batch_size, num_epochs=1, seed=seed, max_steps=max_steps)
    assert len(plan) == max_steps  # over as many epochs as they take
    assert [plan.packs(step) for step in range(max_steps)] == [complete.packs(step) for step in range(max_steps)]


def test_max_steps_equal_to_whole_epochs_is_the_same_plan() -> None:
    complete = plan_of(three_per_image(), num_epochs=2)
    assert plan_of(three_per_image(), max_steps=len(complete)).hash == complete.hash
    assert plan_of(three_per_image(), max_steps=len(complete) - 1).hash != complete.hash


@settings(max_examples=60, deadline=None)
@given(lengths=random_lengths(), batch_size=batch_sizes, seed=seeds)
def test_packs_contain_their_step_within_the_limit(lengths: Lengths, batch_size: int, seed: int) -> None:
    plan = plan_of(lengths, batch_size=batch_size, seed=seed)
    for step in range(len(plan)):
        (packs,) = plan.packs(step)
        packed = [i for pack in packs for group in pack for i in group.samples]
        assert sorted(packed) == sorted(plan.samples(step).tolist())
        for pack in packs:
            assert 0 < sum(group.tokens for group in pack) <= MAX_TOKENS
            for group in pack:
                assert group.tokens == tokens_of(group, lengths)
                assert len({int(lengths.prefix_group[i]) for i in group.samples}) == 1
                assert len(group.samples) == 1 or lengths.prefix[group.samples[0]] > 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=random_lengths(),
    batch_size=batch_sizes,
    seed=seeds,
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_no_sample_is_lost_or_repeated_at_any_number_of_ranks(
    lengths: Lengths, batch_size: int, seed: int, sizes: list[int]
) -> None:
    """Also where the run continues with another number of ranks at every step."""
    plan = plan_of(lengths, batch_size=batch_size, seed=seed)
    used: list[int] = []
    for step in range(len(plan)):
        packs = plan.packs(step, sizes[step % len(sizes)])
        assert len({len(rank_packs) for rank_packs in packs}) == 1  # ranks that run in parallel have as many packs
        packed = [i for rank_packs in packs for pack in rank_packs for group in pack for i in group.samples]
        assert sorted(packed) == sorted(plan.samples(step).tolist())
        assert all(sum(group.tokens for group in pack) <= MAX_TOKENS for rank_packs in packs for pack in rank_packs)
        assert imbalance(packs) >= 1 - 1e-9
        used += packed
    assert sorted(used) == list(range(len(lengths.total)))


@settings(max_examples=30, deadline=None)
@given(lengths=random_lengths(), batch_size=batch_sizes, seed=seeds)
def test_similar_packs_are_as_few_and_differ_less(lengths: Lengths, batch_size: int, seed: int) -> None:
    plan = plan_of(lengths, batch_size=batch_size, seed=seed)
    for step in range(len(plan)):
        (full,), (even,) = plan.packs(step), plan.packs(step, similar=True)
        assert len(even) <= len(full)
        assert sorted(i for pack in even for group in pack for i in group.samples) == sorted(plan.samples(step))
        sizes = [[sum(group.tokens for group in pack) for pack in packs] for packs in (full, even)]
        assert 0 < max(sizes[1]) <= MAX_TOKENS
        assert min(sizes[1]) >= min(sizes[0]) or len(even) < len(full)


def test_ranks_are_balanced() -> None:
    plan = plan_of(three_per_image(240), batch_size=120, pack_tokens=400)
    for ranks in (2, 4, 8):
        assert 1 <= imbalance(plan.packs(0, ranks)) < 1.15
    one_busy_rank = [[[PackedGroup((i,), 100)] if i == 0 else []] for i in range(4)]
    assert imbalance(one_busy_rank) == 4  # control: one computes, three wait


@settings(max_examples=60, deadline=None)
@given(lengths=random_lengths(), batch_size=batch_sizes, seed=seeds)
def test_samples_of_an_image_stay_together(lengths: Lengths, batch_size: int, seed: int) -> None:
    """They are adjacent in the order, so only the end of a step or a full pack separates them."""
    plan = plan_of(lengths, batch_size=batch_size, pack_tokens=10_000, seed=seed)
    groups = lengths.prefix_group[plan.order].tolist()
    assert 1 + sum(a != b for a, b in zip(groups, groups[1:], strict=False)) == len(set(groups))
    for step in range(len(plan)):
        packed_groups = [group for pack in plan.packs(step)[0] for group in pack]
        assert len(packed_groups) == len({int(g) for g in lengths.prefix_group[plan.samples(step)]})


@settings(max_examples=40, deadline=None)
@given(lengths=random_lengths(), batch_size=batch_sizes, seed=seeds)
def test_the_same_input_gives_the_same_plan(lengths: Lengths, batch_size: int, seed: int) -> None:
    first, second = (plan_of(lengths, batch_size=batch_size, num_epochs=2, seed=seed) for _ in range(2))
    assert first.hash == second.hash
    assert [first.packs(step) for step in range(len(first))] == [second.packs(step) for step in range(len(second))]


@settings(max_examples=60, deadline=None)
@given(
    lengths=random_lengths(sources=3),
    weights=st.tuples(*[st.floats(0.1, 3).map(lambda w: round(w, 2))] * 3),
    seed=seeds,
)
def test_weights_set_how_often_a_source_occurs(
    lengths: Lengths, weights: tuple[float, float, float], seed: int
) -> None:
    if not any(round(w * np.count_nonzero(lengths.source == i)) for i, w in enumerate(weights)):
        return
    plan = make_plan(lengths, weights, batch_size=8, num_epochs=2, pack_tokens=MAX_TOKENS, seed=seed)
    for order in np.split(plan.order, 2):
        counts = Counter(order.tolist())
        for index, weight in enumerate(weights):
            samples = np.flatnonzero(lengths.source == index).tolist()
            assert abs(sum(counts[i] for i in samples) - weight * len(samples)) <= 0.5 + 1e-9
            assert all(math.floor(weight) <= counts[i] <= math.ceil(weight) for i in samples)


def test_another_seed_epoch_or_length_gives_another_plan() -> None:
    base = three_per_image()
    longer = dataclasses.replace(base, total=base.total + (np.arange(60) == 7))
    options = {"num_epochs": 2, "pack_tokens": 200}
    changes = [{"seed": 1}, {"batch_size": 9}, {"num_epochs": 1}, {"pack_tokens": 201}, {"max_steps": 3}]
    hashes = [plan_of(base, **options).hash, plan_of(longer, **options).hash]
    hashes += [plan_of(base, **(options | change)).hash for change in changes]
    assert len(set(hashes)) == len(hashes)
    first, second = np.split(plan_of(base, **options).order, 2)
    assert not np.array_equal(first, second)  # every epoch is shuffled again
    assert hashes[0] == plan_of(three_per_image(), **options).hash


def test_separate_samples_repeat_their_images_and_shared_ones_do_not() -> None:
    shared = three_per_image()
    own_group = -1 - np.arange(len(shared.prefix_group))
    separate = dataclasses.replace(shared, prefix=np.zeros_like(shared.prefix), prefix_group=own_group)

    def packed(lengths: Lengths) -> tuple[int, set[int]]:
        plan = plan_of(lengths, batch_size=60, pack_tokens=4000)
        groups = [group for pack in plan.packs(0)[0] for group in pack]
        return sum(group.tokens for group in groups), {len(group.samples) for group in groups}

    assert packed(separate) == (int(shared.total.sum()), {1})
    assert packed(shared) == (int(shared.total.sum()) - 40 * 40, {3})  # 40 of 60 samples need no prefix


def test_an_image_with_more_samples_than_fit_into_a_pack_repeats_its_prefix() -> None:
    lengths = three_per_image(3)  # 40 shared, then 10, 11 and 12
    assert group_samples(np.array([0, 1, 2]), lengths, 62) == [PackedGroup((0, 1), 61), PackedGroup((2,), 52)]
    assert group_samples(np.array([], dtype=int), lengths, 62) == []


def test_a_repeated_sample_without_prefix_shares_nothing() -> None:
    """Weight 2 puts a sample next to itself; without a prefix each copy needs its own images."""
    lengths = dataclasses.replace(three_per_image(1), prefix=np.zeros(1, dtype=int))
    assert group_samples(np.array([0, 0]), lengths, 1000) == [PackedGroup((0,), 50), PackedGroup((0,), 50)]


def test_groups_are_packed_where_they_leave_the_least_space() -> None:
    groups = [PackedGroup((i,), tokens) for i, tokens in enumerate((30, 70, 60, 40, 20))]
    packed = [[group.tokens for group in pack] for pack in best_fit(groups, 100)]
    assert packed == [[70, 30], [60, 40], [20]]


@pytest.mark.parametrize("max_steps", [None, 5])
def test_weights_that_leave_no_sample_are_refused(max_steps: int | None) -> None:
    with pytest.raises(UserError, match=r"weights.*0\.1.*none of 3"):
        make_plan(three_per_image(3), [0.1], batch_size=8, num_epochs=1, pack_tokens=200, seed=0, max_steps=max_steps)


@pytest.mark.long
def test_a_million_samples_are_planned_within_a_minute_and_a_gigabyte() -> None:
    random = np.random.default_rng(0)
    count = 1_000_000
    rest, image = random.integers(5, 60, count), random.integers(0, count // 3, count)
    lengths = Lengths(600 + rest, np.full(count, 600), rest, image, *np.repeat([[0], [1]], count, axis=1))
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    plan = plan_of(lengths, batch_size=32, pack_tokens=8192)
    assert plan.hash
    packed = 0
    for step in range(len(plan)):
        for pack in plan.packs(step)[0]:
            assert sum(group.tokens for group in pack) <= 8192
            packed += sum(len(group.samples) for group in pack)
    assert packed == count
    assert time.process_time() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
