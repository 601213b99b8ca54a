"""The plan: whatever the data, nothing is lost or taken twice, and every pack keeps within its budget."""

import dataclasses
import math
import resource
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qilin.core.errors import UserError
from qilin.train.plan import Lengths, PackedGroup, imbalance, make_plan, pack, group_samples

BUDGET = 120


@st.composite
def lengths(draw: st.DrawFn, sources: int = 1) -> Lengths:
    """Images with one to six samples on each, and samples without an image; none longer than BUDGET."""
    total, prefix, unit, source = [], [], [], []
    for image, (shared, rests) in enumerate(
        draw(
            st.lists(
                st.tuples(st.integers(0, 60), st.lists(st.integers(1, 60), min_size=1, max_size=6)),
                min_size=1,
                max_size=20,
            )
        )
    ):
        mine = image % sources
        for rest in rests:
            unit.append(image if shared else -1 - len(total))
            total.append(shared + rest)
            prefix.append(shared)
            source.append(mine)
    arrays = [
        np.array(a, dtype=np.int64) for a in (total, prefix, np.ones(len(total)), unit, source, np.ones(len(total)))
    ]
    return Lengths(*arrays)


sizes = st.integers(1, 40)
seeds = st.integers(0, 10_000)


def cost(piece: PackedGroup, found: Lengths) -> int:
    """Tokens of a piece, counted anew."""
    shared = int(found.prefix[piece.samples[0]])
    return shared + sum(int(found.total[i]) - shared for i in piece.samples)


@settings(max_examples=60, deadline=None)
@given(found=lengths(), batch=sizes, epochs=st.integers(1, 3), seed=seeds)
def test_each_epoch_takes_each_sample_once(found: Lengths, batch: int, epochs: int, seed: int) -> None:
    plan = make_plan(found, [1.0], batch_size=batch, num_epochs=epochs, pack_tokens=BUDGET, seed=seed)
    samples = len(found.total)
    assert len(plan) == epochs * math.ceil(samples / batch)
    steps = [plan.samples(step) for step in range(len(plan))]
    assert all(0 < len(step) <= batch for step in steps)
    an_epoch = len(plan) // epochs
    for epoch in range(epochs):
        taken = np.concatenate(steps[epoch * an_epoch : (epoch + 1) * an_epoch])
        assert sorted(taken.tolist()) == list(range(samples))


@settings(max_examples=60, deadline=None)
@given(found=lengths(), batch=sizes, seed=seeds)
def test_packs_hold_their_step_and_keep_within_the_budget(found: Lengths, batch: int, seed: int) -> None:
    plan = make_plan(found, [1.0], batch_size=batch, num_epochs=1, pack_tokens=BUDGET, seed=seed)
    for step in range(len(plan)):
        packs = plan.packs(step)[0]
        laid = [i for pieces in packs for piece in pieces for i in piece.samples]
        assert sorted(laid) == sorted(plan.samples(step).tolist())
        for pieces in packs:
            assert 0 < sum(piece.tokens for piece in pieces) <= BUDGET
            for piece in pieces:
                assert piece.tokens == cost(piece, found)
                assert len({int(found.prefix_group[i]) for i in piece.samples}) == 1
                assert len(piece.samples) == 1 or found.prefix[piece.samples[0]] > 0


@settings(max_examples=60, deadline=None)
@given(found=lengths(), batch=sizes, seed=seeds, ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_no_sample_is_lost_or_repeated_at_any_number_of_ranks(
    found: Lengths, batch: int, seed: int, ranks: list[int]
) -> None:
    """A run that goes on with another number of ranks at every step takes each sample once all the same."""
    plan = make_plan(found, [1.0], batch_size=batch, num_epochs=1, pack_tokens=BUDGET, seed=seed)
    taken: list[int] = []
    for step in range(len(plan)):
        size = ranks[step % len(ranks)]
        packs = [plan.packs(step, rank, size) for rank in range(size)]
        assert len({len(mine) for mine in packs}) == 1  # devices that compute side by side take as many packs
        laid = [i for mine in packs for pieces in mine for piece in pieces for i in piece.samples]
        assert sorted(laid) == sorted(plan.samples(step).tolist())
        assert all(sum(piece.tokens for piece in pieces) <= BUDGET for mine in packs for pieces in mine)
        assert imbalance(packs) >= 1 - 1e-9
        taken += laid
    assert sorted(taken) == list(range(len(found.total)))


def test_ranks_take_even_shares_where_there_is_something_to_share() -> None:
    plan = make_plan(some(240), [1.0], batch_size=120, num_epochs=1, pack_tokens=400, seed=0)
    for ranks in (2, 4, 8):
        packs = [plan.packs(0, rank, ranks) for rank in range(ranks)]
        assert 1 <= imbalance(packs) < 1.15
    one_by_one = [[[PackedGroup((i,), 100)] if i == 0 else []] for i in range(4)]
    assert imbalance(one_by_one) == 4  # control: one computes, three wait


@settings(max_examples=60, deadline=None)
@given(found=lengths(), batch=sizes, seed=seeds)
def test_samples_of_an_image_stay_together(found: Lengths, batch: int, seed: int) -> None:
    """In the order they stand side by side, so only a step's end or a full pack divides them."""
    plan = make_plan(found, [1.0], batch_size=batch, num_epochs=1, pack_tokens=10_000, seed=seed)
    units = found.prefix_group[plan.order].tolist()
    runs = 1 + sum(a != b for a, b in zip(units, units[1:], strict=False))
    assert runs == len(set(units))
    for step in range(len(plan)):
        mine = {int(u) for u in found.prefix_group[plan.samples(step)]}
        pieces = [piece for pieces in plan.packs(step)[0] for piece in pieces]
        assert len(pieces) == len(mine)  # with room enough, one prefix an image and step


@settings(max_examples=40, deadline=None)
@given(found=lengths(), batch=sizes, seed=seeds)
def test_same_in_same_out(found: Lengths, batch: int, seed: int) -> None:
    def plan() -> tuple[str, list[list[list[PackedGroup]]]]:
        made = make_plan(found, [1.0], batch_size=batch, num_epochs=2, pack_tokens=BUDGET, seed=seed)
        return made.hash, [made.packs(step) for step in range(len(made))]

    assert plan() == plan()


@settings(max_examples=60, deadline=None)
@given(
    found=lengths(sources=3),
    weights=st.tuples(*[st.floats(0.1, 3).map(lambda w: round(w, 2))] * 3),
    seed=seeds,
)
def test_weights_say_how_often_a_source_comes(found: Lengths, weights: tuple[float, float, float], seed: int) -> None:
    expected = [round(w * np.count_nonzero(found.source == i)) for i, w in enumerate(weights)]
    if not any(expected):
        return
    plan = make_plan(found, weights, batch_size=8, num_epochs=2, pack_tokens=BUDGET, seed=seed)
    for order in np.split(plan.order, 2):
        taken = Counter(order.tolist())
        for index, weight in enumerate(weights):
            mine = np.flatnonzero(found.source == index).tolist()
            assert abs(sum(taken[i] for i in mine) - weight * len(mine)) <= 0.5 + 1e-9
            assert all(math.floor(weight) <= taken[i] <= math.ceil(weight) for i in mine)


def some(samples: int = 60) -> Lengths:
    """Three samples an image, 40 tokens shared and 10 to 29 of their own."""
    index = np.arange(samples)
    none = np.zeros(samples, dtype=int)
    return Lengths(50 + index % 20, np.full(samples, 40), np.full(samples, 5), index // 3, none, none + 1)


def test_another_seed_epoch_or_fact_gives_another_plan() -> None:
    def made(found: Lengths, **changes: int) -> str:
        options = {"batch_size": 8, "num_epochs": 2, "pack_tokens": 200, "seed": 0} | changes
        return make_plan(found, [1.0], **options).hash  # type: ignore[arg-type]

    base = some()
    longer = dataclasses.replace(base, total=base.total + (np.arange(60) == 7))
    hashes = [
        made(base),
        made(longer),
        *(
            made(base, **{key: value})
            for key, value in [("seed", 1), ("batch", 9), ("epochs", 1), ("pack_tokens", 201)]
        ),
    ]
    assert len(set(hashes)) == len(hashes)
    plan = make_plan(base, [1.0], batch_size=8, num_epochs=2, pack_tokens=200, seed=0)
    first, second = np.split(plan.order, 2)
    assert not np.array_equal(first, second)  # epochs are shuffled anew
    assert made(base) == made(some())


def test_separate_samples_pay_for_their_images_branches_once() -> None:
    branches = some()
    alone = np.arange(len(branches.prefix_group))
    separate = dataclasses.replace(branches, prefix=np.zeros_like(branches.prefix), prefix_group=-1 - alone)

    def tokens(found: Lengths) -> tuple[int, set[int]]:
        plan = make_plan(found, [1.0], batch_size=60, num_epochs=1, pack_tokens=4000, seed=0)
        pieces = [piece for pieces in plan.packs(0)[0] for piece in pieces]
        return sum(piece.tokens for piece in pieces), {len(piece.samples) for piece in pieces}

    assert tokens(separate) == (int(branches.total.sum()), {1})
    assert tokens(branches) == (int(branches.total.sum()) - 40 * 40, {3})  # 40 of 60 samples do without the prefix


def test_an_image_with_more_questions_than_a_pack_holds_pays_its_prefix_again() -> None:
    found = some(3)  # 40 shared, then 10, 11 and 12
    assert group_samples(np.array([0, 1, 2]), found, 62) == [PackedGroup((0, 1), 61), PackedGroup((2,), 52)]
    assert group_samples(np.array([], dtype=int), found, 62) == []


def test_a_sample_without_prefix_that_comes_twice_shares_nothing() -> None:
    """Weight 2 puts a sample beside itself; with no prefix each copy needs its own images."""
    found = dataclasses.replace(some(1), prefix=np.zeros(1, dtype=int))
    assert group_samples(np.array([0, 0]), found, 1000) == [PackedGroup((0,), 50), PackedGroup((0,), 50)]


def test_pieces_are_laid_where_they_leave_the_least_room() -> None:
    pieces = [PackedGroup((i,), tokens) for i, tokens in enumerate((30, 70, 60, 40, 20))]
    laid = [[piece.tokens for piece in mine] for mine in pack(pieces, 100)]
    assert laid == [[70, 30], [60, 40], [20]]


def test_weights_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"weights.*no sample of 3"):
        make_plan(some(3), [0.1], batch_size=8, num_epochs=1, pack_tokens=200, seed=0)


@pytest.mark.long
def test_a_million_samples_are_planned_within_a_minute_and_a_gigabyte() -> None:
    random = np.random.default_rng(0)
    count = 1_000_000
    own, unit = random.integers(5, 60, count), random.integers(0, count // 3, count)
    found = Lengths(600 + own, np.full(count, 600), own, unit, *np.repeat([[0], [1]], count, axis=1))
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    plan = make_plan(found, [1.0], batch_size=32, num_epochs=1, pack_tokens=8192, seed=0)
    assert plan.hash
    seen = 0
    for step in range(len(plan)):
        for pieces in plan.packs(step)[0]:
            assert sum(piece.tokens for piece in pieces) <= 8192
            seen += sum(len(piece.samples) for piece in pieces)
    assert seen == count
    assert time.process_time() - begun < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
