"""Packed attention: documents are separate, and questions that branch from an image share its prefix.

A pack is one row of tokens. Its layout is a table of documents; a document attends to itself (causally) and, if it is
a branch, to all of the prefix it names. transformers passes the layout through the model's forward to
`packed_attention`, which is registered as PACKED; no model code changes. On a CPU, cpu_attention.py computes
documents of similar length together; on an accelerator FlexAttention skips what is masked.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qilin.core.errors import UserError
from qilin.model.architectures import language_of, vision_of
from qilin.train.block_mask import block_mask, mask_arrays
from qilin.train.compiled_layers import compile_layers, remove_compiled_layers
from qilin.train.cpu_attention import Bucket, bucketed_attention, make_buckets, round_length, uniform_buckets
from qilin.train.patch_embedding import multiply_patches, plain_patches
from qilin.train.skip_unused import add_skip_hooks, remove_skip_hooks
from qilin.train.transfer import copy_together
from qilin.train.unpacked import join_samples, separate_samples

PACKED, VISION = "qilin_packed", "qilin_vision"  # names in transformers' AttentionInterface
Document = tuple[int, int, int]  # first token, length, index of the prefix document (-1: none)

# Letters: T tokens of the pack, D documents, U used tokens, P images, H heads, E width of a head.


@dataclass(frozen=True)
class Layout:
    """Which documents of a pack attend to which."""

    documents: torch.Tensor  # (D, 3) int64: rows are Documents
    used: torch.Tensor | None = None  # (U,) tokens whose last hidden states are used; None: all
    buckets: tuple[Bucket, ...] = ()  # on a CPU
    last_layer_buckets: tuple[Bucket, ...] = ()  # queries of used tokens only
    block_mask: Any = None  # FlexAttention's, on an accelerator
    max_context: int = 0  # most tokens that a token attends to
    window: int = 0  # tokens that the layers with a sliding window attend to, if some sample has more
    windowed: "Layout | None" = None  # the layout in these layers

    @property
    def tokens(self) -> int:
        return int(self.documents[:, 1].sum())


@dataclass(frozen=True)
class QuerySpan:
    """Consecutive queries of one document. The last one attends to all `context` keys, each earlier one to one key
    less."""

    start: int
    length: int
    context: int
    key_ranges: tuple[tuple[int, int], ...]  # (first token, end): the prefix, if any, and the document so far
    visible: torch.Tensor | None = None  # (queries, 2) first and last of these keys for each query; None: as above


def make_layout(
    documents: Sequence[Document],
    device: torch.device,
    used: Sequence[int] | None = None,
    images: Sequence[tuple[int, int]] = (),
    window: int | None = None,
) -> Layout:
    """Documents in order and without gaps -> a Layout for `device`.

    `used`: the tokens whose last hidden states are used, None for all. `images`: (first token, end) of images whose
    tokens attend to each other in both directions. `window`: the sliding window of some layers.
    """
    layout = make_layout_of(documents, device, used, images)
    if window is None or layout.max_context <= window:
        return layout
    return replace(layout, window=window, windowed=make_layout_of(documents, device, used, images, window))


def make_layout_of(
    documents: Sequence[Document],
    device: torch.device,
    used: Sequence[int] | None,
    images: Sequence[tuple[int, int]],
    window: int | None = None,
) -> Layout:
    """The layout of layers without a sliding window, or of those with one."""
    is_plain_causal = not images and window is None
    if device.type != "cpu" and is_plain_causal:
        return device_layout(documents, copy_together(layout_arrays(documents, used), device))
    table, by_document = document_table(documents), images_by_document(documents, images)
    used_sorted = None if used is None else sorted(set(used))
    used_tokens = None if used_sorted is None else torch.tensor(used_sorted, dtype=torch.int64, device=device)
    spans = [
        limit_keys(span, by_document.get(index, ()), window) for index, span in enumerate(document_spans(documents))
    ]
    context = max_context(spans)
    if device.type != "cpu":
        mask = block_mask(copy_together(mask_arrays(documents, images, window), device), window)
        return Layout(table, used_tokens, block_mask=mask, max_context=context)
    last = buckets = bucket_spans(spans)
    if used_sorted is not None:
        last = bucket_spans(
            [limit_keys(span, by_document.get(index, ()), window) for index, span in used_spans(documents, used_sorted)]
        )
    return Layout(table, used_tokens, buckets, last, max_context=context)


def layout_arrays(documents: Sequence[Document], used: Sequence[int] | None) -> dict[str, torch.Tensor]:
    """What a Layout on an accelerator is made from, on the host, so that a pack is moved at once."""
    used_tokens = {} if used is None else {"used": torch.tensor(sorted(set(used)), dtype=torch.int64)}
    return mask_arrays(documents) | used_tokens


def device_layout(documents: Sequence[Document], arrays: Mapping[str, torch.Tensor]) -> Layout:
    """A Layout from the `layout_arrays` on an accelerator; its table of documents stays on the host."""
    context = max_context(document_spans(documents))
    return Layout(document_table(documents), arrays.get("used"), block_mask=block_mask(arrays), max_context=context)


def document_table(documents: Sequence[Document]) -> torch.Tensor:
    return torch.tensor(documents, dtype=torch.int64).reshape(-1, 3)


def document_spans(documents: Sequence[Document]) -> list["QuerySpan"]:
    return [query_span(documents, index, 0, length) for index, (_, length, _) in enumerate(documents)]


def max_context(spans: Sequence["QuerySpan"]) -> int:
    return max(span.context for span in spans)


def query_span(documents: Sequence[Document], index: int, start: int, end: int) -> QuerySpan:
    """The queries `start` up to before `end` of a document."""
    first, _, prefix = documents[index]
    prefix_range = [(documents[prefix][0], sum(documents[prefix][:2]))] if prefix >= 0 else []
    context = sum(stop - begin for begin, stop in prefix_range) + end
    return QuerySpan(first + start, end - start, context, (*prefix_range, (first, first + end)))


def used_spans(documents: Sequence[Document], used: Sequence[int]) -> Iterator[tuple[int, QuerySpan]]:
    """For each document its index and the tokens from its first used one to its last."""
    position = 0
    for index, (start, length, _) in enumerate(documents):
        first = position
        while position < len(used) and used[position] < start + length:
            position += 1
        if position > first:
            yield index, query_span(documents, index, used[first] - start, used[position - 1] - start + 1)


def images_by_document(
    documents: Sequence[Document], images: Sequence[tuple[int, int]]
) -> dict[int, list[tuple[int, int]]]:
    """The images within each document that has some."""
    starts = [start for start, _, _ in documents]
    grouped: dict[int, list[tuple[int, int]]] = {}
    for image in images:
        grouped.setdefault(bisect_right(starts, image[0]) - 1, []).append(image)
    return grouped


def limit_keys(span: QuerySpan, images: Sequence[tuple[int, int]], window: int | None) -> QuerySpan:
    """A span whose queries see their image to its end, and of the keys no more than the last `window` before them."""
    if not images and (window is None or span.context <= window):
        return span
    position = torch.arange(span.context - span.length, span.context)  # index of each query among the keys
    last = position.clone()
    for start, end in images:  # a query of an image: up to the image's last token
        inside = slice(max(start - span.start, 0), max(end - span.start, 0))
        last[inside] = position[0] + end - 1 - span.start
    first = torch.zeros_like(position) if window is None else (position - window + 1).clamp_min(0)
    missing = max(int(last.max()) + 1 - span.context, 0)  # tokens of an image behind the last query
    *before, (begin, stop) = span.key_ranges
    return replace(
        span,
        context=span.context + missing,
        key_ranges=(*before, (begin, stop + missing)),
        visible=torch.stack([first, last], dim=1),
    )


def bucket_spans(spans: Sequence[QuerySpan]) -> tuple[Bucket, ...]:
    """Spans of equal rounded lengths in common buckets."""
    by_size = defaultdict(list)
    for span in spans:
        queries = torch.arange(span.start, span.start + span.length)
        keys = torch.cat([torch.arange(start, stop) for start, stop in span.key_ranges])
        by_size[round_length(span.length), round_length(span.context)].append((queries, keys, span.visible))
    return tuple(bucket for size in sorted(by_size) for bucket in make_buckets(by_size[size]))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, T, E)
    key: torch.Tensor,  # (1, key heads, T, E)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in each layer. Returns (1, T, H, E); in the last layer the rows of unused
    tokens are undefined. Raises UserError if a sample is longer than the model's sliding window, and for attention with
    a soft cap or sinks."""
    assert layout is not None, f"attention {PACKED!r} needs the pack's layout; use sdpa for anything but training"
    if softcap is not None or s_aux is not None:
        kind = "sinks (s_aux)" if softcap is None else f"a soft cap ({softcap}, attn_logit_softcapping in config.json)"
        raise UserError(
            f"the language model's attention has {kind}, which packed training does not compute; choose another"
        )
    assert query.shape[0] == 1, "a pack is one row"
    if sliding_window and layout.max_context > sliding_window and layout.window == sliding_window:
        assert layout.windowed is not None, "made with the window"
        layout = layout.windowed
    elif sliding_window and layout.max_context > sliding_window:
        raise UserError(
            f"the language model attends to {sliding_window} tokens (sliding_window in its config.json), but a "
            "sample has "
            f"{layout.max_context}; lower max_length to {sliding_window}, with on_overlength=truncate or drop"
        )
    width = value.shape[-1]
    if width < query.shape[-1]:  # DeepSeek's values are narrower than its keys
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
        wide, _ = packed_attention(module, query, key, value, attention_mask, scaling, layout)
        return wide[..., :width].contiguous(), None
    if layout.block_mask is not None:
        return flex(query, key, value, layout.block_mask, scaling), None
    assert layout.buckets, "a layout is made for one type of device"
    buckets = layout.last_layer_buckets if is_last_layer(module) else layout.buckets
    return bucketed_attention(query[0], key[0], value[0], buckets, scaling).transpose(0, 1)[None], None


def is_last_layer(module: Any) -> bool:
    """Whether an attention module belongs to the last layer."""
    return bool(module.layer_idx + 1 == module.config.num_hidden_layers)


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float | None) -> torch.Tensor:
    """FlexAttention. (1, H, T, E) -> (1, T, H, E)."""
    from torch.nn.attention.flex_attention import flex_attention

    # within a compiled layer it becomes a part of that layer's graph
    attend = flex_attention if torch.compiler.is_compiling() else compiled_flex()
    options = {
        "block_mask": mask,
        "scale": scaling,
        "enable_gqa": query.shape[1] != key.shape[1],
        # else packs below 128 tokens with grouped heads take the kernel for decoding, which has no configuration for
        # some of them (NoValidChoicesError)
        "kernel_options": {"FORCE_USE_FLEX_ATTENTION": True},
    }
    out: torch.Tensor = attend(query, key, value, **options)
    return out.transpose(1, 2).contiguous()


@lru_cache
def compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


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
    """Bidirectional attention of a vision encoder; PyTorch's on an accelerator. Returns (P, T, H, E)."""
    assert attention_mask is None, "images are not masked"
    if query.device.type != "cpu":  # checked here, since a model for many devices is on the host while it is set up
        return sdpa_attention_forward(module, query, key, value, None, dropout, scaling, is_causal=False)
    images, heads, tokens, width = query.shape
    q, k, v = (x.transpose(0, 1).flatten(1, 2) for x in (query, key, value))  # (H, P * T, E): end to end, as in a pack
    out = bucketed_attention(q, k, v, tuple(uniform_buckets(images, tokens)), scaling)
    return out.transpose(0, 1).reshape(images, tokens, heads, width), None


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(VISION, vision_attention)


@dataclass(frozen=True)
class Shortcuts:
    """Which computation is replaced by a faster one; guard.py leaves off what does not fit a model."""

    vision: bool = True  # the encoder's attention and patch embedding, and skipping its layers behind the features
    last_layer: bool = True  # in the language model, only the tokens that predict something
    packing: bool = True  # all samples of a pack together; else one by one
    compiled: bool = False  # the language model's layers; on a GPU (model_setup.use_compiled_layers)
    memory_budget: float = 1.0  # of compiled layers

    def __str__(self) -> str:
        names = {"the encoder": self.vision, "the last layer": self.last_layer, "packing": self.packing}
        return " and ".join(name for name, used in names.items() if not used)


def use_packed_attention(model: Any, shortcuts: Shortcuts = Shortcuts()) -> None:
    """Let the language model of a Llava attend by the layout given to its forward, and skip unused computation.

    Raises UserError for a model with dropout of attention weights, which packed attention does not have.
    """
    dropout = getattr(model.config.text_config, "attention_dropout", 0)
    if dropout:
        raise UserError(f"config.json: attention_dropout is {dropout}, which training does not support; set it to 0")
    if shortcuts.packing:
        language_of(model).set_attn_implementation(PACKED)
    else:
        set_plain_attention(language_of(model))
        separate_samples(language_of(model))
    if shortcuts.vision:
        vision_of(model).set_attn_implementation(VISION)
        multiply_patches(vision_of(model))
    add_skip_hooks(model, vision=shortcuts.vision, last_layer=shortcuts.last_layer and shortcuts.packing)
    if shortcuts.compiled and shortcuts.packing:
        compile_layers(language_of(model), shortcuts.memory_budget)


def use_plain_attention(model: Any) -> None:
    """Return to PyTorch's attention, for generation; to the model's own code where it has no other."""
    for part in (language_of(model), vision_of(model)):
        set_plain_attention(part)
    join_samples(language_of(model))
    plain_patches(vision_of(model))
    remove_compiled_layers(language_of(model))
    remove_skip_hooks(model)


def set_plain_attention(part: Any) -> None:
    try:
        part.set_attn_implementation("sdpa")
    except ValueError:
        part.set_attn_implementation("eager")
