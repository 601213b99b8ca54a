"""Packed attention: documents apart, an image's prefix shared by the questions that branch from it.

A pack is one row of tokens. Its layout is a table of documents; a document sees itself (causally) and, if it is a
branch, the whole prefix it names. transformers hands the layout through a model's forward to `packed_attention`, which
is registered under NAME; no model code is changed. On a CPU alike documents are computed together, by blocks.py; on an
accelerator FlexAttention skips what is masked.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qilin.core.errors import UserError
from qilin.train.cpu_attention import Bucket, block_attention, make_buckets, open_buckets, rounded
from qilin.train.skip_unused import skip_unread, skip_unread_no_more

NAME, VISION = "qilin_packed", "qilin_vision"

# Letters: T tokens of the pack, D documents, R tokens that are read, P images, H heads, E width of a head.


@dataclass(frozen=True)
class Layout:
    """How the documents of a pack see each other."""

    documents: torch.Tensor  # (D, 3) int64: first token, length, document that is the prefix (-1: none)
    read: torch.Tensor | None = None  # (R,) tokens whose last hidden states are read; None: all are
    buckets: tuple[Bucket, ...] = ()  # on a CPU
    last: tuple[Bucket, ...] = ()  # the same for the last layer: of tokens not read, only keys and values count
    block_mask: Any = None  # FlexAttention's, on an accelerator
    longest: int = 0  # how far back a token may look

    @property
    def tokens(self) -> int:
        return int(self.documents[:, 1].sum())


@dataclass(frozen=True)
class Span:
    """Some tokens of one document, end to end, and what they see: the last one all of it, the one before one less …"""

    start: int
    queries: int
    seen: int
    keys: tuple[tuple[int, int], ...]  # (first token, one past the last): the prefix, if any, and the document so far


def make_layout(
    documents: Sequence[tuple[int, int, int]], device: torch.device, read: Sequence[int] | None = None
) -> Layout:
    """Documents (first token, length, prefix document or -1), in order and without gaps -> a Layout for `device`.

    `read`: the tokens whose last hidden states somebody reads, None for all.
    """
    table = torch.tensor(documents, dtype=torch.int64).reshape(-1, 3)
    asked = None if read is None else sorted(set(read))
    whole = [span_of(documents, row, 0, length) for row, (_, length, _) in enumerate(documents)]
    longest = max(span.seen for span in whole)
    tokens = None if asked is None else torch.tensor(asked, dtype=torch.int64, device=device)
    if device.type != "cpu":
        return Layout(table.to(device), tokens, block_mask=make_block_mask(table, device), longest=longest)
    buckets = buckets_of(whole)
    last = buckets if asked is None else buckets_of(list(spans_read(documents, asked)))
    return Layout(table, tokens, buckets, last, longest=longest)


def span_of(documents: Sequence[tuple[int, int, int]], row: int, begin: int, end: int) -> Span:
    """The queries of a document from its token `begin` up to before `end`."""
    start, _, prefix = documents[row]
    keys = [(documents[place][0], sum(documents[place][:2])) for place in [prefix] if place >= 0]
    seen = sum(stop - start for start, stop in keys) + end
    return Span(start + begin, end - begin, seen, (*keys, (start, start + end)))


def spans_read(documents: Sequence[tuple[int, int, int]], read: Sequence[int]) -> Iterator[Span]:
    """Of each document the tokens from the first one read to the last one."""
    place = 0
    for row, (start, length, _) in enumerate(documents):
        mine = place
        while place < len(read) and read[place] < start + length:
            place += 1
        if place > mine:
            yield span_of(documents, row, read[mine] - start, read[place - 1] - start + 1)


def buckets_of(spans: Sequence[Span]) -> tuple[Bucket, ...]:
    """Spans of the same rounded lengths together."""
    alike = defaultdict(list)
    for span in spans:
        queries = torch.arange(span.start, span.start + span.queries)
        keys = torch.cat([torch.arange(start, stop) for start, stop in span.keys])
        alike[rounded(span.queries), rounded(span.seen)].append((queries, keys))
    return tuple(bucket for size in sorted(alike) for bucket in make_buckets(alike[size]))


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
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in each layer. Returns (1, T, H, E); in the last layer rows of tokens that
    are not read hold anything."""
    assert layout is not None, f"attention {NAME!r} needs the pack's layout; use sdpa for anything but training"
    assert query.shape[0] == 1, "a pack is one row"
    if sliding_window and layout.longest > sliding_window:
        raise UserError(
            f"the language model looks back {sliding_window} tokens (sliding_window in its config.json), "
            f"but a sample has {layout.longest}; lower max_length to {sliding_window}, with overlong=cut or drop"
        )
    if layout.block_mask is not None:
        return flex(query, key, value, layout.block_mask, scaling), None
    assert layout.buckets, "a layout is made for one kind of device"
    buckets = layout.last if is_last(module) else layout.buckets
    return block_attention(query[0], key[0], value[0], buckets, scaling).transpose(0, 1)[None], None


def is_last(module: Any) -> bool:
    """Whether an attention module stands in the last layer."""
    return bool(module.layer_idx + 1 == module.config.num_hidden_layers)


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


def vision_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (P, H, T, E)
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """A vision encoder's, in which every patch sees all; on an accelerator it is PyTorch's. Returns (P, T, H, E)."""
    assert attention_mask is None, "images are not masked"
    if query.device.type != "cpu":  # asked here: of many devices' model the weights lie on the host at first
        return sdpa_attention_forward(module, query, key, value, None, dropout, scaling, is_causal=False)
    images, heads, tokens, width = query.shape
    q, k, v = (x.transpose(0, 1).flatten(1, 2) for x in (query, key, value))  # (H, P * T, E): end to end, as in a pack
    out = block_attention(q, k, v, tuple(open_buckets(images, tokens)), scaling)
    return out.transpose(0, 1).reshape(images, tokens, heads, width), None


AttentionInterface.register(VISION, vision_attention)


def use_packed_attention(model: Any) -> None:
    """Let the language model of a Llava attend by the layout given to its forward, and skip what nobody reads.

    Raises UserError for a model that asks for dropout of attention weights, which packs do not do.
    """
    dropout = getattr(model.config.text_config, "attention_dropout", 0)
    if dropout:
        raise UserError(f"config.json: attention_dropout is {dropout}, which training does not do; set it to 0")
    model.model.language_model.set_attn_implementation(NAME)
    model.model.vision_tower.set_attn_implementation(VISION)
    skip_unread(model)


def use_plain_attention(model: Any) -> None:
    """Back to PyTorch's own attention, for generation."""
    model.model.language_model.set_attn_implementation("sdpa")
    model.model.vision_tower.set_attn_implementation("sdpa")
    skip_unread_no_more(model)
