"""The order of all samples of a run, fixed before it starts: a pure function of data, seed and recipe.

In: the lengths of all samples. Out: a Plan, samples -> steps -> packs. A seeded shuffle of images fills the steps
with `batch_size` samples each; samples of one image stay together. Within a step, images are packed into at most
`pack_tokens` tokens (best fit). The plan does not depend on devices, and a position in the run is one integer: the
steps done.
"""

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from qilin.core.errors import UserError


@dataclass(frozen=True)
class Lengths:
    """Lengths of N samples; all arrays (N,), in tokens with images expanded."""

    total: np.ndarray
    prefix: np.ndarray  # tokens up to and with the last image, which the samples of a prefix group share; 0: none
    answer_tokens: np.ndarray  # tokens that the loss is computed on
    prefix_group: np.ndarray  # samples with the same number start with the same images and tokens
    source: np.ndarray  # index of the dataset folder
    images: np.ndarray  # images of the sample, shared or not
    image_tokens: np.ndarray | None = None  # tokens of these images; None: not counted


@dataclass(frozen=True)
class WorkCounts:
    """The amount of computation, independent of the machine."""

    tokens: int = 0  # a shared prefix counts once
    answer_tokens: int = 0
    images: int = 0
    attention_pairs: int = 0  # (token, token it attends to)
    answer_pairs: int = 0  # the same for answer tokens alone, as if all were at the end of their sample
    image_tokens: int = 0

    def scaled(self, factor: float) -> "WorkCounts":
        """The work of `factor` times as many such samples."""
        return WorkCounts(*(round(count * factor) for count in astuple(self)))


@dataclass(frozen=True)
class PackedGroup:
    """Samples of one prefix group in one pack: the prefix once, then the rest of each sample."""

    samples: tuple[int, ...]  # indices into Lengths
    tokens: int


@dataclass(frozen=True)
class Plan:
    """The order of all samples over all epochs, divided into steps."""

    order: np.ndarray  # (samples of the run,) indices into Lengths
    starts: np.ndarray  # (steps + 1,) step i is order[starts[i] : starts[i + 1]]
    lengths: Lengths
    pack_tokens: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def hash(self) -> str:
        """Identity of the plan: the same data, seed and recipe give the same hash."""
        digest = hashlib.sha256()
        for array in (self.order, self.starts, self.lengths.total, self.lengths.prefix, self.lengths.prefix_group):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        digest.update(str(self.pack_tokens).encode())
        return digest.hexdigest()

    def samples(self, step: int) -> np.ndarray:
        """The samples of a step."""
        return self.order[self.starts[step] : self.starts[step + 1]]

    def groups(self, step: int) -> list[PackedGroup]:
        """The samples of a step, those of one image together."""
        return group_samples(self.samples(step), self.lengths, self.pack_tokens)

    def packs(self, step: int, num_ranks: int = 1, similar: bool = False) -> list[list[list[PackedGroup]]]:
        """The packs of a step for each rank; every rank gets the same number, some possibly empty.

        `similar`: for one rank, packs of similar length instead of full ones and a remainder, if they are not more.
        """
        groups = self.groups(step)
        if num_ranks > 1:
            return balance_ranks(groups, self.pack_tokens, num_ranks)
        full = best_fit(groups, self.pack_tokens)
        even = balance_ranks(groups, self.pack_tokens, 1) if similar else []
        return even if similar and len(even[0]) <= len(full) else [full]

    def counts(self) -> WorkCounts:
        """The work of the complete run."""
        totals = np.zeros(len(fields(WorkCounts)), dtype=np.int64)
        for step in range(
            len(self)
        ):  # one step at a time: the groups of a long run take far more memory than its order
            totals += np.array(astuple(count_work(self.groups(step), self.lengths)))
        return WorkCounts(*totals.tolist())


def make_plan(
    lengths: Lengths,
    weights: Sequence[float],
    *,
    batch_size: int,
    num_epochs: float,
    pack_tokens: int,
    seed: int,
    max_steps: int | None = None,
) -> Plan:
    """Plan a run. `weights`: per source, how often its samples occur in an epoch.

    The plan is the first `max_steps` steps of as many epochs as they take; without it, those of `num_epochs` epochs, a
    started step included. Raises UserError if the weights leave no sample.
    """
    orders: list[np.ndarray] = []
    starts: list[int] = []
    num_samples, num_steps = 0, max_steps
    while num_steps is None or len(starts) < num_steps:
        random = np.random.default_rng([seed, len(orders)])
        order = shuffle_groups(draw_epoch(lengths.source, weights, random), lengths.prefix_group, random)
        if not len(order):
            raise UserError(
                f"the weights of the data ({', '.join(map(str, weights))}) leave none of {len(lengths.source)} "
                "samples to train on; raise them"
            )
        orders.append(order)
        starts += range(num_samples, num_samples + len(order), batch_size)
        num_samples += len(order)
        if num_steps is None:  # every epoch has as many steps as the first; rounded, since 1.1 * 10 is above 11
            num_steps = max(1, math.ceil(round(num_epochs * len(starts), 6)))
    bounds = np.array([*starts, num_samples])[: num_steps + 1]
    return Plan(np.concatenate(orders)[: bounds[-1]], bounds, lengths, pack_tokens)


def count_work(groups: Iterable[PackedGroup], lengths: Lengths) -> WorkCounts:
    """The work of some groups."""
    groups = list(groups)
    samples = np.array([index for group in groups for index in group.samples], dtype=np.int64)
    first = np.array([group.samples[0] for group in groups], dtype=np.int64)  # one prefix and one set of images each
    shared = lengths.prefix[samples]
    rest = lengths.total[samples] - shared  # each sample attends to itself and to its prefix
    prefix = lengths.prefix[first]
    answers = lengths.answer_tokens[samples]
    return WorkCounts(
        tokens=int(rest.sum() + prefix.sum()),
        answer_tokens=int(answers.sum()),
        images=int(lengths.images[first].sum()),
        attention_pairs=int((rest * (rest + 1) // 2 + rest * shared).sum() + (prefix * (prefix + 1) // 2).sum()),
        answer_pairs=int((answers * lengths.total[samples] - answers * (answers - 1) // 2).sum()),
        image_tokens=0 if lengths.image_tokens is None else int(lengths.image_tokens[first].sum()),
    )


def draw_epoch(source: np.ndarray, weights: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """The samples of one epoch: each source as often as its weight says, the fractional part drawn at random."""
    drawn = []
    for index, weight in enumerate(weights):
        samples = np.flatnonzero(source == index)
        times = int(weight)
        remainder = round((weight - times) * len(samples))
        drawn += [np.tile(samples, times), np.sort(random.permutation(samples)[:remainder])]
    return np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)


def shuffle_groups(samples: np.ndarray, prefix_group: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Samples in a random order of prefix groups, and in a random order within their group."""
    samples = random.permutation(samples)
    groups, inverse = np.unique(prefix_group[samples], return_inverse=True)
    rank = random.permutation(len(groups))[inverse]
    return samples[np.argsort(rank, kind="stable")]


def group_samples(samples: np.ndarray, lengths: Lengths, max_tokens: int) -> list[PackedGroup]:
    """Consecutive samples of one prefix group -> PackedGroups of at most `max_tokens`, unless a single sample exceeds
    it."""
    groups: list[PackedGroup] = []
    current: list[int] = []
    current_group, tokens = None, 0
    for index in samples.tolist():
        group, total = int(lengths.prefix_group[index]), int(lengths.total[index])
        prefix = int(lengths.prefix[index])
        if group == current_group and tokens + total - prefix <= max_tokens and prefix > 0:
            current.append(index)
            tokens += total - prefix
            continue
        if current:
            groups.append(PackedGroup(tuple(current), tokens))
        current_group, current, tokens = group, [index], total
    return [*groups, PackedGroup(tuple(current), tokens)] if current else groups


def best_fit(groups: Sequence[PackedGroup], max_tokens: int) -> list[list[PackedGroup]]:
    """Best-fit decreasing: longest first, each group into the pack with the least sufficient space."""
    packs: list[list[PackedGroup]] = []
    space: list[int] = []
    for group in sorted(groups, key=lambda group: -group.tokens):
        fitting = [index for index, free in enumerate(space) if free >= group.tokens]
        if fitting:
            best = min(fitting, key=lambda index: space[index])
            packs[best].append(group)
            space[best] -= group.tokens
        else:
            packs.append([group])
            space.append(max_tokens - group.tokens)
    return packs


def balance_ranks(groups: Sequence[PackedGroup], max_tokens: int, num_ranks: int) -> list[list[list[PackedGroup]]]:
    """The packs of each rank: equally many for every rank and of similar length, since ranks compute in parallel.

    Longest group first, each into the pack with the fewest tokens; one more pack per rank as long as one exceeds
    `max_tokens`.
    """
    longest_first = sorted(groups, key=lambda group: -group.tokens)
    packs_per_rank = max(1, -(-sum(group.tokens for group in groups) // (max_tokens * num_ranks)))
    while True:
        packs: list[list[PackedGroup]] = [[] for _ in range(packs_per_rank * num_ranks)]
        heap = [(0, index) for index in range(len(packs))]
        for group in longest_first:
            tokens, index = heap[0]
            packs[index].append(group)
            heapq.heapreplace(heap, (tokens + group.tokens, index))
        if max(tokens for tokens, _ in heap) <= max_tokens or packs_per_rank >= len(groups):
            break
        packs_per_rank += 1
    packs.sort(key=lambda pack: -sum(group.tokens for group in pack))  # packs of similar length run in parallel
    return [packs[rank::num_ranks] for rank in range(num_ranks)]


def imbalance(packs: Sequence[Sequence[Sequence[PackedGroup]]]) -> float:
    """Step time relative to perfectly equal work (1 is best): every pack waits for the longest one that runs in
    parallel."""
    sizes = [[sum(group.tokens for group in pack) for pack in rank_packs] for rank_packs in packs]
    return sum(map(max, zip(*sizes, strict=True))) * len(packs) / max(1, sum(map(sum, sizes)))


def format_saving(figures: Mapping[str, Any]) -> str:
    """What prefix sharing saves, in parentheses after the number of tokens; "" if it saves nothing."""
    ratio = figures["tokens_unshared"] / max(1, figures["tokens"])
    return f" (prefix sharing saves a factor of {ratio:.1f})" if ratio >= 1.05 else ""
