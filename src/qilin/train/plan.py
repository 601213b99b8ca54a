"""Samples -> steps -> packs: the whole run known before it starts, a pure function of data, seed and settings.

A seeded shuffle of images fills the steps with `batch` samples each; samples of one image stay together. Inside a
step, images are laid into packs of at most `pack_tokens` tokens (best fit). The plan knows nothing of devices, and a
position in the run is one integer: the number of steps done.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from qilin.core.errors import UserError


@dataclass(frozen=True)
class Lengths:
    """What the plan needs to know of N samples; all arrays (N,), in tokens with images expanded."""

    total: np.ndarray
    prefix: np.ndarray  # tokens up to and with the last image, shareable by samples of one unit; 0 where none
    learnt: np.ndarray
    unit: np.ndarray  # samples with the same number share their prefix
    source: np.ndarray  # index of the dataset folder
    images: np.ndarray  # a sample's own, shared or not


@dataclass(frozen=True)
class Counts:
    """What is computed: the measure of work, whatever the machine."""

    tokens: int = 0  # shared ones once
    answers: int = 0  # tokens that are learnt
    images: int = 0
    pairs: int = 0  # (token, token it sees)
    answer_pairs: int = 0  # the same of learnt tokens alone, as if they all stood at their sample's end


@dataclass(frozen=True)
class Piece:
    """Samples of one unit laid into one pack: the prefix once, then each sample's rest."""

    samples: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Plan:
    """The order of all samples over all epochs, cut into steps."""

    order: np.ndarray  # (samples of the run,) indices into Lengths
    starts: np.ndarray  # (steps + 1,) step i is order[starts[i] : starts[i + 1]]
    lengths: Lengths
    pack_tokens: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def hash(self) -> str:
        """The identity of the plan: the same data, seed and settings give the same hash."""
        digest = hashlib.sha256()
        for array in (self.order, self.starts, self.lengths.total, self.lengths.prefix, self.lengths.unit):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        digest.update(str(self.pack_tokens).encode())
        return digest.hexdigest()

    def samples(self, step: int) -> np.ndarray:
        """The samples of a step."""
        return self.order[self.starts[step] : self.starts[step + 1]]

    def pieces(self, step: int) -> list[Piece]:
        """The samples of a step, those of one image together."""
        return pieces_of(self.samples(step), self.lengths, self.pack_tokens)

    def counts(self) -> Counts:
        """The work of the whole run."""
        found = np.zeros(len(fields(Counts)), dtype=np.int64)
        for step in range(len(self)):  # one at a time: the pieces of a long run take much more room than its order
            found += np.array(astuple(counts_of(self.pieces(step), self.lengths)))
        return Counts(*found.tolist())

    def packs(self, step: int, rank: int = 0, ranks: int = 1) -> list[list[Piece]]:
        """The packs of a step that rank number `rank` of `ranks` computes."""
        return self.shares(step, ranks)[rank]

    def shares(self, step: int, ranks: int) -> list[list[list[Piece]]]:
        """The packs of a step by rank: as many for each, some perhaps empty."""
        if ranks == 1:
            return [pack(self.pieces(step), self.pack_tokens)]
        return spread(self.pieces(step), self.pack_tokens, ranks)


def make_plan(
    lengths: Lengths, weights: Sequence[float], *, batch_size: int, num_epochs: int, pack_tokens: int, seed: int
) -> Plan:
    """Lay out a whole run. `weights` are by source: how often its samples come in an epoch.

    Raises UserError where the weights leave no sample at all.
    """
    orders, starts, done = [], [], 0
    for epoch in range(num_epochs):
        random = np.random.default_rng([seed, epoch])
        order = shuffle_units(choose(lengths.source, weights, random), lengths.unit, random)
        orders.append(order)
        starts.append(done + np.arange(0, len(order), batch_size))
        done += len(order)
    if not done:
        raise UserError(
            f"the weights of the data ({', '.join(map(str, weights))}) leave no sample of "
            f"{len(lengths.source)} to learn from; raise them"
        )
    bounds = np.concatenate([*starts, np.array([done])])
    return Plan(np.concatenate(orders), bounds, lengths, pack_tokens)


def counts_of(pieces: Sequence[Piece], lengths: Lengths) -> Counts:
    """The work of some pieces."""
    samples = np.array([index for piece in pieces for index in piece.samples], dtype=np.int64)
    heads = np.array([piece.samples[0] for piece in pieces], dtype=np.int64)  # one prefix and one set of images each
    shared = lengths.prefix[samples]
    own = lengths.total[samples] - shared  # each sample sees itself and its prefix
    prefix = lengths.prefix[heads]
    learnt = lengths.learnt[samples]
    return Counts(
        tokens=int(own.sum() + prefix.sum()),
        answers=int(learnt.sum()),
        images=int(lengths.images[heads].sum()),
        pairs=int((own * (own + 1) // 2 + own * shared).sum() + (prefix * (prefix + 1) // 2).sum()),
        answer_pairs=int((learnt * lengths.total[samples] - learnt * (learnt - 1) // 2).sum()),
    )


def choose(source: np.ndarray, weights: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """The samples of one epoch: each source's samples as often as its weight says, the fraction drawn at random."""
    chosen = []
    for index, weight in enumerate(weights):
        mine = np.flatnonzero(source == index)
        whole = int(weight)
        part = round((weight - whole) * len(mine))
        chosen += [np.tile(mine, whole), np.sort(random.permutation(mine)[:part])]
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)


def shuffle_units(samples: np.ndarray, unit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Samples in a random order of units, and in a random order within their unit."""
    samples = random.permutation(samples)
    units, inverse = np.unique(unit[samples], return_inverse=True)
    place = random.permutation(len(units))[inverse]
    return samples[np.argsort(place, kind="stable")]


def pieces_of(samples: np.ndarray, lengths: Lengths, budget: int) -> list[Piece]:
    """Consecutive samples of one unit -> pieces, each within the budget where a single sample is."""
    pieces: list[Piece] = []
    open_unit, mine, tokens = None, [], 0  # type: ignore[var-annotated]
    for index in samples.tolist():
        unit, total, prefix = int(lengths.unit[index]), int(lengths.total[index]), int(lengths.prefix[index])
        if unit == open_unit and tokens + total - prefix <= budget and prefix > 0:
            mine.append(index)
            tokens += total - prefix
            continue
        if mine:
            pieces.append(Piece(tuple(mine), tokens))
        open_unit, mine, tokens = unit, [index], total
    return [*pieces, Piece(tuple(mine), tokens)] if mine else pieces


def pack(pieces: Sequence[Piece], budget: int) -> list[list[Piece]]:
    """Best fit, longest first: each piece goes where it leaves the least room."""
    packs: list[list[Piece]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda p: -p.tokens):
        fits = [i for i, free in enumerate(room) if free >= piece.tokens]
        if fits:
            best = min(fits, key=lambda i: room[i])
            packs[best].append(piece)
            room[best] -= piece.tokens
        else:
            packs.append([piece])
            room.append(budget - piece.tokens)
    return packs


def spread(pieces: Sequence[Piece], budget: int, ranks: int) -> list[list[list[Piece]]]:
    """The packs of each rank: as many for every rank and as alike in length as can be, since they compute side by side.

    The longest piece goes first, each where the fewest tokens lie; one pack a rank more as long as one is too full.
    """
    order = sorted(pieces, key=lambda piece: -piece.tokens)
    rounds = max(1, -(-sum(piece.tokens for piece in pieces) // (budget * ranks)))
    while True:
        packs: list[list[Piece]] = [[] for _ in range(rounds * ranks)]
        heap = [(0, index) for index in range(len(packs))]
        for piece in order:
            tokens, index = heap[0]
            packs[index].append(piece)
            heapq.heapreplace(heap, (tokens + piece.tokens, index))
        if max(tokens for tokens, _ in heap) <= budget or rounds >= len(pieces):
            break
        rounds += 1
    packs.sort(key=lambda mine: -sum(piece.tokens for piece in mine))  # alike ones side by side
    return [packs[rank::ranks] for rank in range(ranks)]


def imbalance(packs: Sequence[Sequence[Sequence[Piece]]]) -> float:
    """How many times longer a step takes than with equal work: each pack waits for the longest one beside it."""
    sizes = [[sum(piece.tokens for piece in pack) for pack in mine] for mine in packs]
    return sum(map(max, zip(*sizes, strict=True))) * len(packs) / max(1, sum(map(sum, sizes)))
