"""Packed attention: documents apart, a picture's prefix shared by the questions that branch from it.

A pack is one row of tokens. Its layout is a table of documents; a document sees itself (causally) and, if it is a
branch, the whole prefix it names. transformers hands the layout through a model's forward to `packed_attention`, which
is registered under NAME; no model code is changed. On a CPU every document is attended to by itself (alike ones
together in one call); on an accelerator FlexAttention skips what is masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from qilin.errors import UserError

NAME = "qilin_packed"
SMALL = 1 << 16  # queries x keys up to which plain products beat PyTorch's flash kernel on a CPU
WASTE = 1.25  # documents are computed together while padding them to the longest costs at most this factor

# Letters: T tokens of the pack, D documents, N documents of one bucket, H heads, E width of a head.


@dataclass(frozen=True)
class Bucket:
    """Documents computed in one attention call, padded to a common length inside the call only."""

    queries: torch.Tensor  # (N, Lq) token indices; padding points at token 0
    keys: torch.Tensor  # (N, Lk)
    mask: torch.Tensor | None  # (N, 1, Lq, Lk) True: may see; None: plain causal


@dataclass(frozen=True)
class Layout:
    """How the documents of a pack see each other."""

    documents: torch.Tensor  # (D, 3) int64: first token, length, document that is the prefix (-1: none)
    buckets: tuple[Bucket, ...] = ()
    place: torch.Tensor | None = None  # (T,) where each token stands in the buckets' outputs laid end to end
    block_mask: Any = None  # FlexAttention's, on an accelerator
    longest: int = 0  # how far back a token may look

    @property
    def tokens(self) -> int:
        return int(self.documents[:, 1].sum())


def make_layout(documents: Sequence[tuple[int, int, int]], device: torch.device) -> Layout:
    """Documents (first token, length, prefix document or -1), in order and without gaps -> a Layout for `device`."""
    table = torch.tensor(documents, dtype=torch.int64).reshape(-1, 3)
    longest = max(key_length(table, row) for row in range(len(table)))
    if device.type == "cpu":
        buckets = [make_bucket(table, rows) for rows in alike(table)]
        where = torch.empty(int(table[:, 1].sum()), dtype=torch.int64)
        done = 0
        for bucket, rows in zip(buckets, alike(table), strict=True):
            width = bucket.queries.shape[1]
            for place, row in enumerate(rows):
                start, length, _ = table[row].tolist()
                where[start : start + length] = done + place * width + torch.arange(length)
            done += bucket.queries.numel()
        return Layout(table, tuple(buckets), where, longest=longest)
    return Layout(table.to(device), block_mask=make_block_mask(table, device), longest=longest)


def alike(table: torch.Tensor) -> list[list[int]]:
    """Rows of the table grouped so that padding each group to its longest costs little."""
    sizes = [(key_length(table, row), int(table[row, 1]), row) for row in range(len(table))]
    groups: list[list[int]] = []
    work = longest = 0
    for keys, queries, row in sorted(sizes, key=lambda s: (int(table[s[2], 2]) >= 0, s[0] * s[1], s[2])):
        area = keys * queries
        branch = int(table[row, 2]) >= 0
        same = bool(groups) and branch == (int(table[groups[-1][0], 2]) >= 0)
        if same and max(longest, area) * (len(groups[-1]) + 1) <= WASTE * (work + area):
            groups[-1].append(row)
            work += area
        else:
            groups.append([row])
            work = area
        longest = area if len(groups[-1]) == 1 else max(longest, area)
    return groups


def key_length(table: torch.Tensor, row: int) -> int:
    """How many tokens a document's last token sees: itself and its prefix."""
    prefix = int(table[row, 2])
    return int(table[row, 1]) + (int(table[prefix, 1]) if prefix >= 0 else 0)


def make_bucket(table: torch.Tensor, rows: Sequence[int]) -> Bucket:
    """The token indices and the mask of some documents; none where all see just themselves: their padding comes last,
    so looking back alone hides it, and PyTorch's kernel then does half of the work."""
    longest_q = max(int(table[row, 1]) for row in rows)
    longest_k = max(key_length(table, row) for row in rows)
    queries = torch.zeros(len(rows), longest_q, dtype=torch.int64)
    keys = torch.zeros(len(rows), longest_k, dtype=torch.int64)
    alone = all(int(table[row, 2]) < 0 for row in rows)
    mask = None if alone else torch.zeros(len(rows), 1, longest_q, longest_k, dtype=torch.bool)
    for i, row in enumerate(rows):
        start, length, prefix = table[row].tolist()
        own = torch.arange(start, start + length)
        before = torch.zeros(0, dtype=torch.int64)
        if prefix >= 0:
            first, size, _ = table[prefix].tolist()
            before = torch.arange(first, first + size)
        queries[i, :length] = own
        keys[i, : len(before) + length] = torch.cat([before, own])
        if mask is not None:
            mask[i, 0, :length, : len(before)] = True
            mask[i, 0, :length, len(before) : len(before) + length] = torch.ones(length, length).tril().bool()
            mask[i, 0, length:, 0] = True  # padding rows must see something, or their softmax is 0/0
    return Bucket(queries, keys, mask)


def make_block_mask(table: torch.Tensor, device: torch.device) -> Any:
    """FlexAttention's mask of the same rule: own document or own prefix, never a later token."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = int(table[:, 1].sum())
    numbers = torch.arange(len(table))
    document = torch.repeat_interleave(numbers, table[:, 1]).to(device)  # (T,)
    prefix = torch.repeat_interleave(table[:, 2], table[:, 1]).to(device)  # (T,) -1: none

    def sees(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & ((document[q] == document[k]) | (prefix[q] == document[k]))

    return create_block_mask(sees, None, None, tokens, tokens, device=device)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, T, E)
    key: torch.Tensor,  # (1, H of keys, T, E)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in each layer. Returns (1, T, H, E)."""
    assert layout is not None, f"attention {NAME!r} needs the pack's layout; use sdpa for anything but training"
    assert query.shape[0] == 1, "a pack is one row"
    if sliding_window and layout.longest > sliding_window:
        raise UserError(
            f"the language model looks back {sliding_window} tokens (sliding_window in its config.json), "
            f"but a sample has {layout.longest}; lower max_length to {sliding_window}, with overlong=cut or drop"
        )
    if layout.block_mask is not None:
        return flex(query, key, value, layout.block_mask, scaling), None
    assert layout.place is not None, "a layout is made for one kind of device"
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # (1, H, T, E) -> (T, H, E): one row a token, so that a document is a choice of rows
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    outputs = []
    for bucket in layout.buckets:
        chosen = take(q, bucket.queries), take(k, bucket.keys), take(v, bucket.keys)
        out = attend(*chosen, bucket.mask, scaling, dropout if module.training else 0.0)  # (N, H, Lq, E)
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # (N * Lq, H, E)
    return torch.cat(outputs).index_select(0, layout.place)[None], None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float | None, dropout: float
) -> torch.Tensor:
    """Attention of one bucket: (N, H, Lq, E), (N, H, Lk, E), (N, H, Lk, E) -> (N, H, Lq, E)."""
    if q.shape[2] * k.shape[2] > SMALL or dropout:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling
        )
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    scores = (q * (scaling or q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)  # (N, H, Lq, Lk)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


def take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(T, H, E) and (N, L) -> (N, H, L, E)."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float | None) -> torch.Tensor:
    """FlexAttention, compiled once. (1, H, T, E) -> (1, T, H, E)."""
    out = compiled_flex()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous()


def compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    global _compiled
    if _compiled is None:
        _compiled = torch.compile(flex_attention, dynamic=True)
    return _compiled


_compiled: Any = None
AttentionInterface.register(NAME, packed_attention)


def use_packed_attention(model: Any) -> None:
    """Let the language model of a Llava attend by the layout given to its forward."""
    model.model.language_model.set_attn_implementation(NAME)
    use_quick_vision(model.model.vision_tower)


def use_quick_vision(tower: Any) -> None:
    """A small vision encoder on a CPU attends by plain products too: 2.4 times faster than PyTorch's kernel in bf16."""
    tokens = (tower.config.image_size // tower.config.patch_size) ** 2
    if next(tower.parameters()).device.type == "cpu" and tokens**2 <= SMALL:
        tower.set_attn_implementation("eager")


def use_plain_attention(model: Any) -> None:
    """Back to PyTorch's own attention, for generation."""
    model.model.language_model.set_attn_implementation("sdpa")
    model.model.vision_tower.set_attn_implementation("sdpa")
