"""Attention of a pack on a CPU: similar sequences together, by blocks of queries, as plain matrix products.

In bf16 it takes 0.5 to 0.9 of the time of PyTorch's flash kernel (bench/results/attention.json). In fp32 it takes up
to 2.5 times as long, but runs are not slower: with that kernel a step took 0 to 2 % less in four configurations and 4
% more in one (measurements that no file keeps).

In: queries, keys and values of all tokens, and buckets that define which query attends to which keys. Out: the
attention output, with gradients. A query attends to the keys up to its own position; a block of queries is multiplied
with no more keys than its last query needs, which saves almost half of the work, and of long sequences only one
block's weights exist at a time. Shapes are rounded up, because oneDNN takes half a millisecond for each new shape of
a bf16 product, and caches it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

BLOCK = 128  # queries per block (others in bench/results/attention.json)
BUCKET_WEIGHTS = 1 << 18  # attention weights of one head and block computed at once: they fit into the CPU's cache
STORED_KEYS = 2048  # up to this many keys, attention weights are stored for the backward pass; beyond, recomputed

# Letters: T tokens, H heads, G key heads, E width of a head; N sequences of a bucket, M = H * N, Q queries, K keys, B
# queries of a block.


@dataclass(frozen=True)
class Block:
    """Some queries (the same rows of all sequences) and the keys they are multiplied with."""

    rows: slice
    keys: int  # the first so many keys
    visible: int  # of these, every query of the block attends to the first so many
    mask: torch.Tensor | None  # (N or 1, B, keys - visible) True where a query does not attend; None: it attends to all


@dataclass(frozen=True)
class Bucket:
    """Sequences that are computed together, padded at the end to a common length; padding refers to token 0."""

    queries: torch.Tensor  # (N * Q,) tokens
    keys: torch.Tensor  # (N * K,)
    count: int  # N
    real: torch.Tensor | None  # indices of the queries that are not padding; None: all
    blocks: tuple[Block, ...]

    @property
    def tokens(self) -> torch.Tensor:
        """The queries that are not padding."""
        return self.queries if self.real is None else self.queries[self.real]


def round_length(length: int) -> int:
    """Round up to a multiple of 16; above 128, of 64."""
    step = 16 if length <= 128 else 64
    return -(-length // step) * step


QueryRows = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # query tokens, key tokens, ranges of keys


def make_buckets(sequences: Sequence[QueryRows]) -> Iterator[Bucket]:
    """Sequences with equal rounded lengths -> buckets of 1, 2, 4, … sequences, for few different shapes.

    The ranges (Q, 2) are the first and the last key that each query attends to. None: the last query attends to all
    keys, each earlier one to one key less.
    """
    width = round_length(max(len(queries) for queries, _, _ in sequences))
    depth = round_length(max(len(keys) for _, keys, _ in sequences))
    max_count = max(1, BUCKET_WEIGHTS // (min(BLOCK, width) * depth))
    done = 0
    while done < len(sequences):
        count = 1 << (min(max_count, len(sequences) - done).bit_length() - 1)
        queries, keys, ranges = zip(*sequences[done : done + count], strict=True)
        first = [len(k) - len(q) for q, k in zip(queries, keys, strict=True)]
        if all(range_ is None for range_ in ranges):
            blocks = causal_blocks(width, depth, first)
        else:
            blocks = range_blocks(width, depth, [
                causal_ranges(len(q), start) if range_ is None else range_
                for q, start, range_ in zip(queries, first, ranges, strict=True)
            ])  # fmt: skip
        real = torch.arange(width) < torch.tensor([len(tokens) for tokens in queries])[:, None]  # (N, Q)
        yield Bucket(
            pad_sequences(queries, width),
            pad_sequences(keys, depth),
            count,
            None if bool(real.all()) else real.flatten().nonzero()[:, 0],
            tuple(blocks),
        )
        done += count


def pad_sequences(sequences: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """(N * length,) the tokens of all sequences, padded at the end."""
    out = torch.zeros(len(sequences), length, dtype=torch.int64)
    for row, tokens in enumerate(sequences):
        out[row, : len(tokens)] = tokens
    return out.flatten()


def causal_blocks(queries: int, keys: int, first: Sequence[int]) -> Iterator[Block]:
    """`first`: for each sequence the position of its first query among its keys; query j sees keys up to first + j."""
    positions = torch.tensor(first if len(set(first)) > 1 else first[:1])
    for start in range(0, queries, BLOCK):
        stop = min(queries, start + BLOCK)
        visible, num_keys = min(first) + start + 1, min(keys, round_length(max(first) + stop))
        last = positions[:, None] + torch.arange(start, stop)  # (N or 1, B) the last key of each query
        yield Block(slice(start, stop), num_keys, visible, torch.arange(visible, num_keys) > last[..., None])


def causal_ranges(queries: int, first: int) -> torch.Tensor:
    """(Q, 2) ranges in which query j attends to the keys up to first + j."""
    last = torch.arange(first, first + queries)
    return torch.stack([torch.zeros_like(last), last], dim=1)


def range_blocks(queries: int, keys: int, ranges: Sequence[torch.Tensor]) -> Iterator[Block]:
    """As `causal_blocks`, for any ranges of keys."""
    table = torch.zeros(len(ranges), queries, 2, dtype=torch.int64)
    for row, key_range in enumerate(ranges):
        table[row, : len(key_range)] = key_range
        table[row, len(key_range) :] = key_range[-1]  # padding: any keys, its result is not used
    for start in range(0, queries, BLOCK):
        stop = min(queries, start + BLOCK)
        first, last = table[:, start:stop].unbind(-1)  # (N, B)
        num_keys = min(keys, round_length(int(last.max()) + 1))
        visible = int(last.min()) + 1 if int(first.max()) == 0 else 0
        index = torch.arange(visible, num_keys)
        yield Block(slice(start, stop), num_keys, visible, (index > last[..., None]) | (index < first[..., None]))


def uniform_buckets(count: int, length: int) -> Iterator[Bucket]:
    """`count` sequences of `length` tokens end to end, one per bucket; every query attends to every key."""
    ends = [*range(0, length, BLOCK), length]
    blocks = tuple(Block(slice(a, b), length, length, None) for a, b in zip(ends, ends[1:], strict=False))
    for tokens in torch.arange(count * length).split(length):
        yield Bucket(tokens, tokens, 1, None, blocks)


def bucketed_attention(
    query: torch.Tensor,  # (H, T, E)
    key: torch.Tensor,  # (G, T, E)
    value: torch.Tensor,
    buckets: Sequence[Bucket],
    scaling: float | None = None,
) -> torch.Tensor:
    """(H, T, E) in the dtype of `value`. A token is a query once at most; the others get zeros."""
    scale = scaling or query.shape[-1] ** -0.5
    # contiguous: selecting rows of anything else would copy all of it for each bucket
    q, k, v = (x.to(value.dtype).contiguous() for x in (query, key, value))
    out: torch.Tensor = BucketedAttention.apply(q, k, v, tuple(buckets), scale)
    return out


class BucketedAttention(torch.autograd.Function):
    """(H, T, E), (G, T, E), (G, T, E), buckets, scale -> (H, T, E)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, buckets: tuple[Bucket, ...], scale: float
    ) -> torch.Tensor:
        ctx.buckets, ctx.scale = buckets, scale
        out = query.new_zeros(query.shape)
        stored = []
        with torch.autocast("cpu", enabled=False):  # its softmax would return fp32
            for bucket in buckets:
                q, k, v = select_bucket(query, key, value, bucket, scale)
                attended = torch.empty_like(q)
                for block in bucket.blocks:
                    weights = attention_weights(q, k, block, bucket.count)
                    attended[:, block.rows] = torch.bmm(weights, v[:, : block.keys])
                    if stores_weights(k) and any(ctx.needs_input_grad):
                        stored.append(weights)
                scatter_queries(out, attended, bucket)
        ctx.save_for_backward(query, key, value, *stored)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_out = gradients[0].contiguous()
        query, key, value, *stored = ctx.saved_tensors
        stored_weights = iter(stored)
        grad_query, grad_key, grad_value = (x.new_zeros(x.shape) for x in (query, key, value))
        for bucket in ctx.buckets:
            q, k, v = select_bucket(query, key, value, bucket, ctx.scale)
            grad = gather_queries(grad_out, bucket).view(q.shape)
            grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for block in bucket.blocks:
                weights = next(stored_weights) if stores_weights(k) else attention_weights(q, k, block, bucket.count)
                rows, keys = block.rows, block.keys
                grad_v[:, :keys].baddbmm_(weights.transpose(1, 2), grad[:, rows])
                grad_weights = torch.bmm(grad[:, rows], v[:, :keys].transpose(1, 2))
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_q[:, rows] = torch.bmm(grad_scores, k[:, :keys])
                grad_k[:, :keys].baddbmm_(grad_scores.transpose(1, 2), q[:, rows])
            scatter_queries(grad_query, grad_q.mul_(ctx.scale), bucket)
            for total, part in ((grad_key, grad_k), (grad_value, grad_v)):
                by_head = part.view(len(query), -1, part.shape[-1])  # (H, N * K, E)
                if len(by_head) > len(total):  # sum over the query heads of a key head
                    by_head = by_head.unflatten(0, (len(total), -1)).sum(1)
                total.index_add_(1, bucket.keys, by_head)
        return grad_query, grad_key, grad_value, None, None


def stores_weights(keys: torch.Tensor) -> bool:
    """Whether the weights over keys (M, K, E) are stored for the backward pass, or computed again there."""
    return keys.shape[1] <= STORED_KEYS


def select_bucket(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bucket: Bucket, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bucket's rows: (M, Q, E) scaled, (M, K, E), (M, K, E); key heads repeated for each of their query heads."""
    heads = len(query)
    selected = []
    for tensor, tokens in ((query, bucket.queries), (key, bucket.keys), (value, bucket.keys)):
        rows = tensor.index_select(1, tokens)
        if len(tensor) < heads:
            rows = rows.repeat_interleave(heads // len(tensor), dim=0)
        selected.append(rows.view(heads * bucket.count, -1, tensor.shape[-1]))
    return selected[0].mul_(scale), selected[1], selected[2]


def attention_weights(query: torch.Tensor, key: torch.Tensor, block: Block, count: int) -> torch.Tensor:
    """(M, B, keys of the block): softmax of the scores."""
    scores = torch.bmm(query[:, block.rows], key[:, : block.keys].transpose(1, 2))
    if block.mask is not None:
        scores.unflatten(0, (-1, count))[..., block.visible :].masked_fill_(block.mask, float("-inf"))
    return torch.softmax(scores, -1)


def scatter_queries(out: torch.Tensor, rows: torch.Tensor, bucket: Bucket) -> None:
    """Write (M, Q, E), without padding, to the bucket's tokens in `out` (H, T, E)."""
    by_head = rows.view(len(out), -1, rows.shape[-1])
    out.index_copy_(1, bucket.tokens, by_head if bucket.real is None else by_head.index_select(1, bucket.real))


def gather_queries(gradient: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(H, T, E) -> (H, N * Q, E), with zeros for padding."""
    if bucket.real is None:
        return gradient.index_select(1, bucket.queries)
    out = gradient.new_zeros(len(gradient), len(bucket.queries), gradient.shape[-1])
    return out.index_copy_(1, bucket.real, gradient.index_select(1, bucket.tokens))
