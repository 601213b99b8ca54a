"""Attention of a pack on a CPU: alike sequences together, by blocks of queries, in plain products.

In bf16 these take 0.5 to 0.9 of the time of PyTorch's flash kernel (bench/results/attention.json). In fp32 they take up
to 2.5 times as much, but a run is no slower: with that kernel in their place a step took 0 to 2 % less in four settings
and 4 % more in one (trials that no file keeps).

In: queries, keys and values of all tokens, and buckets that say who sees whom. Out: what each query attends to, with
gradients. A query sees the keys up to its own place; a block of queries is multiplied with no more keys than its last
one sees, so that nearly half of the work falls away; of long sequences no more than a block's weights exist at once.

Shapes are rounded up, for oneDNN takes half a millisecond for each new shape of a product in bf16, and keeps it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

BLOCK = 128  # queries at once (others in bench/results/attention.json)
TOGETHER = 1 << 18  # weights of one head and block computed at once: what stays near the processor
KEPT = 2048  # keys up to which weights are kept for the backward pass: half of what a large model's layer keeps besides

# Letters: T tokens, H heads, G heads of keys, E width of a head; N sequences of a bucket, M = H * N, Q queries, K keys,
# B queries of a block.


@dataclass(frozen=True)
class Block:
    """Some queries (the same rows of all sequences) and the keys that they are multiplied with."""

    rows: slice
    keys: int  # the first so many
    free: int  # of these, the first so many are seen by every query of the block …
    hidden: torch.Tensor | None  # … (N or 1, B, keys - free) True: one of the others that is not; None: all are seen


@dataclass(frozen=True)
class Bucket:
    """Sequences computed together, padded behind to a common length; padding points at token 0."""

    queries: torch.Tensor  # (N * Q,) tokens
    keys: torch.Tensor  # (N * K,)
    count: int  # N
    real: torch.Tensor | None  # which of the queries are no padding; None: all
    blocks: tuple[Block, ...]

    @property
    def tokens(self) -> torch.Tensor:
        """The queries that are no padding."""
        return self.queries if self.real is None else self.queries[self.real]


def rounded(length: int) -> int:
    """Up to the next multiple of 16; above 128 of 64."""
    grain = 16 if length <= 128 else 64
    return -(-length // grain) * grain


def make_buckets(sequences: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[Bucket]:
    """Tokens of the queries and the keys of sequences that are alike (equal when rounded): the last query of each sees
    all its keys, the one before one less … In buckets of 1, 2, 4, … sequences, for few different shapes."""
    width, depth = (rounded(max(map(len, part))) for part in zip(*sequences, strict=True))
    most = max(1, TOGETHER // (min(BLOCK, width) * depth))
    done = 0
    while done < len(sequences):
        count = 1 << (min(most, len(sequences) - done).bit_length() - 1)
        queries, keys = zip(*sequences[done : done + count], strict=True)
        first = [len(k) - len(q) for q, k in zip(queries, keys, strict=True)]
        real = torch.arange(width) < torch.tensor([len(tokens) for tokens in queries])[:, None]  # (N, Q)
        yield Bucket(
            laid(queries, width),
            laid(keys, depth),
            count,
            None if bool(real.all()) else real.flatten().nonzero()[:, 0],
            tuple(make_blocks(width, depth, first)),
        )
        done += count


def laid(sequences: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """(N * length,) the tokens of all sequences, padded behind."""
    out = torch.zeros(len(sequences), length, dtype=torch.int64)
    for number, tokens in enumerate(sequences):
        out[number, : len(tokens)] = tokens
    return out.flatten()


def make_blocks(queries: int, keys: int, first: Sequence[int]) -> Iterator[Block]:
    """`first`: for each sequence the place of its first query among its keys; query j sees the keys up to first + j."""
    places = torch.tensor(first if len(set(first)) > 1 else first[:1])
    for start in range(0, queries, BLOCK):
        stop = min(queries, start + BLOCK)
        free, most = min(first) + start + 1, min(keys, rounded(max(first) + stop))
        last = places[:, None] + torch.arange(start, stop)  # (N or 1, B) the last key that each query sees
        hidden = torch.arange(free, most) > last[..., None]
        yield Block(slice(start, stop), most, free, hidden)


def open_buckets(count: int, length: int) -> Iterator[Bucket]:
    """`count` sequences of `length` tokens end to end, one a bucket, in which every query sees every key."""
    ends = [*range(0, length, BLOCK), length]
    blocks = tuple(Block(slice(a, b), length, length, None) for a, b in zip(ends, ends[1:], strict=False))
    for tokens in torch.arange(count * length).split(length):
        yield Bucket(tokens, tokens, 1, None, blocks)


def block_attention(
    query: torch.Tensor,  # (H, T, E)
    key: torch.Tensor,  # (G, T, E)
    value: torch.Tensor,
    buckets: Sequence[Bucket],
    scaling: float | None = None,
) -> torch.Tensor:
    """(H, T, E), in the kind of number of `value`. A token is asked for once, or not at all: then it gets zeros."""
    kind = value.dtype
    scale = scaling or query.shape[-1] ** -0.5
    # end to end: choosing rows of anything else would copy all of it for each bucket
    q, k, v = (x.to(kind).contiguous() for x in (query, key, value))
    out: torch.Tensor = Blocks.apply(q, k, v, tuple(buckets), scale)
    return out


class Blocks(torch.autograd.Function):
    """(H, T, E), (G, T, E), (G, T, E), buckets, scale -> (H, T, E)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, buckets: tuple[Bucket, ...], scale: float
    ) -> torch.Tensor:
        ctx.buckets, ctx.scale = buckets, scale
        out = query.new_zeros(query.shape)
        kept = []
        with torch.autocast("cpu", enabled=False):  # its softmax would hand on fp32
            for bucket in buckets:
                q, k, v = chosen(query, key, value, bucket, scale)
                found = torch.empty_like(q)
                for block in bucket.blocks:
                    weights = weights_of(q, k, block, bucket.count)
                    found[:, block.rows] = torch.bmm(weights, v[:, : block.keys])
                    if keeps(k) and any(ctx.needs_input_grad):
                        kept.append(weights)
                collect(out, found, bucket)
        ctx.save_for_backward(query, key, value, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        query, key, value, *kept = ctx.saved_tensors
        remembered = iter(kept)
        to_query, to_key, to_value = (x.new_zeros(x.shape) for x in (query, key, value))
        for bucket in ctx.buckets:
            q, k, v = chosen(query, key, value, bucket, ctx.scale)
            come = spread(gradient, bucket).view(q.shape)
            to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for block in bucket.blocks:
                weights = next(remembered) if keeps(k) else weights_of(q, k, block, bucket.count)
                rows, keys = block.rows, block.keys
                to_v[:, :keys].baddbmm_(weights.transpose(1, 2), come[:, rows])
                to_weights = torch.bmm(come[:, rows], v[:, :keys].transpose(1, 2))
                to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
                to_q[:, rows] = torch.bmm(to_scores, k[:, :keys])
                to_k[:, :keys].baddbmm_(to_scores.transpose(1, 2), q[:, rows])
            collect(to_query, to_q.mul_(ctx.scale), bucket)
            for total, part in ((to_key, to_k), (to_value, to_v)):
                came = part.view(len(query), -1, part.shape[-1])  # (H, N * K, E)
                if len(came) > len(total):  # a head of keys takes from all its heads of queries
                    came = came.unflatten(0, (len(total), -1)).sum(1)
                total.index_add_(1, bucket.keys, came)
        return to_query, to_key, to_value, None, None


def keeps(keys: torch.Tensor) -> bool:
    """Whether the weights over (M, K, E) are kept for the backward pass, or made again there."""
    return keys.shape[1] <= KEPT


def chosen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bucket: Bucket, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bucket's own: (M, Q, E) scaled, (M, K, E), (M, K, E); a head of keys once for each head of queries."""
    heads = len(query)
    found = []
    for rows, tokens in ((query, bucket.queries), (key, bucket.keys), (value, bucket.keys)):
        mine = rows.index_select(1, tokens)
        if len(rows) < heads:
            mine = mine.repeat_interleave(heads // len(rows), dim=0)
        found.append(mine.view(heads * bucket.count, -1, rows.shape[-1]))
    return found[0].mul_(scale), found[1], found[2]


def weights_of(query: torch.Tensor, key: torch.Tensor, block: Block, count: int) -> torch.Tensor:
    """(M, B, keys of the block): how much of each key each query takes."""
    scores = torch.bmm(query[:, block.rows], key[:, : block.keys].transpose(1, 2))
    if block.hidden is not None:
        scores.unflatten(0, (-1, count))[..., block.free :].masked_fill_(block.hidden, float("-inf"))
    return torch.softmax(scores, -1)


def collect(out: torch.Tensor, found: torch.Tensor, bucket: Bucket) -> None:
    """(M, Q, E) into the places of their tokens in `out` (H, T, E), padding left out."""
    rows = found.view(len(out), -1, found.shape[-1])
    out.index_copy_(1, bucket.tokens, rows if bucket.real is None else rows.index_select(1, bucket.real))


def spread(gradient: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(H, T, E) -> (H, N * Q, E); nothing comes back to padding."""
    if bucket.real is None:
        return gradient.index_select(1, bucket.queries)
    out = gradient.new_zeros(len(gradient), len(bucket.queries), gradient.shape[-1])
    return out.index_copy_(1, bucket.real, gradient.index_select(1, bucket.tokens))
