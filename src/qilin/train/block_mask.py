"""FlexAttention's mask of a pack, from its table of documents: which blocks of keys each block of queries attends to.

In: documents (first token, length, prefix), images and a sliding window. Out: small integer arrays on the host, and
from them, moved to a device together with the rest of a pack, a BlockMask. create_block_mask of torch evaluates all
T x T pairs: 0.7 GB of the device's memory at 8,192 tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

BLOCK = 128  # tokens of a block; FlexAttention's default

# Letters: T tokens, R runs (tokens of one document in one block), B blocks.


def mask_arrays(
    documents: Sequence[tuple[int, int, int]], images: Sequence[tuple[int, int]] = (), window: int | None = None
) -> dict[str, torch.Tensor]:
    """The arrays that `block_mask` needs, on the host.

    `images`: (first token, end) of images whose tokens attend to each other in both directions. `window`: tokens of its
    sample that a token attends to at most.
    """
    table = np.array(documents, dtype=np.int64).reshape(-1, 3)
    spans = np.array(sorted(images), dtype=np.int64).reshape(-1, 2)
    partial, full = block_pairs(table, spans, window)
    arrays = {
        "document": np.repeat(np.arange(len(table)), table[:, 1]).astype(np.int32),  # (T,)
        "prefix": np.repeat(table[:, 2], table[:, 1]).astype(np.int32),  # (T,) -1: none
    }
    if len(spans) or window is not None:
        tokens = np.arange(len(arrays["document"]))
        arrays["image"] = image_of(tokens, spans).astype(np.int32)  # (T,) -1: none
        arrays["index"] = (tokens + np.repeat(tokens_before(table), table[:, 1])).astype(np.int32)  # (T,) in the sample
    for name, pairs in (("kv", partial), ("full_kv", full), ("q", partial.T), ("full_q", full.T)):
        arrays[f"{name}_num_blocks"], arrays[f"{name}_indices"] = sort_blocks(pairs)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def image_of(tokens: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The number of the image that each token belongs to; -1: none."""
    if not len(images):
        return np.full_like(tokens, -1)
    number = np.searchsorted(images[:, 0], tokens, side="right") - 1
    return np.where((number >= 0) & (tokens < images[number, 1]), number, -1)


def tokens_before(table: np.ndarray) -> np.ndarray:
    """(D,) what is added to a token's place in the pack for its place in its sample, whose prefix comes first."""
    starts, lengths, prefixes = table.T
    return np.where(prefixes >= 0, lengths[prefixes], 0) - starts


def block_pairs(table: np.ndarray, images: np.ndarray, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(B, B) pairs of a block of queries and one of keys: those of which some elements are attended to, and those of
    which all are.

    A token attends to two intervals: its prefix, and its document up to itself, in an image to the image's end; a
    window cuts both at their beginnings. Within a run the ends of the intervals move token by token or not at all, so
    the run's first and last token tell what any and all of its tokens attend to.
    """
    starts, lengths, prefixes = table.T
    tokens = int(lengths.sum())
    blocks = -(-tokens // BLOCK)
    edges = np.arange(blocks) * BLOCK
    borders = images[images < tokens]  # first tokens and ends
    runs = np.unique(np.concatenate([starts[lengths > 0], edges, borders]))
    ends = np.append(runs[1:], tokens)
    document = np.searchsorted(starts, runs, side="right") - 1
    prefix = prefixes[document]
    prefix_start = np.where(prefix >= 0, starts[prefix], 0)
    prefix_length = np.where(prefix >= 0, lengths[prefix], 0)
    image = image_of(runs, images)
    image_end = images[image, 1] if len(images) else ends
    # of the run's first and last token: the end of what it attends to, and its earliest key in the sample
    until = [np.where(image >= 0, image_end, token + 1) for token in (runs, ends - 1)]
    before = tokens_before(table)[document]
    since = [np.clip(token + before - (window or tokens) + 1, 0, None) for token in (runs, ends - 1)]

    def attended(since: np.ndarray, until: np.ndarray) -> np.ndarray:
        """(R, B) keys of each block in the run's prefix and document, from `since` in the sample to `until`."""
        parts = (
            (prefix_start + since, prefix_start + prefix_length),
            (starts[document] + np.clip(since - prefix_length, 0, None), until),
        )
        return sum(
            np.clip(np.minimum(edges + BLOCK, end[:, None]) - np.maximum(edges, start[:, None]), 0, None)
            for start, end in parts
        )

    by_any, by_all = attended(since[0], until[1]), attended(since[1], until[0])
    first_runs = np.searchsorted(runs, edges)
    some = np.logical_or.reduceat(by_any > 0, first_runs)
    full = np.logical_and.reduceat(by_all == BLOCK, first_runs)
    if tokens % BLOCK:
        full[-1] = False  # the last block of queries is not complete
    return some & ~full, full


def sort_blocks(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, B) pairs -> per row their number (1, 1, B) and their columns first (1, 1, B, B), int32."""
    order = np.argsort(~pairs, axis=-1, kind="stable")
    return pairs.sum(-1, dtype=np.int32)[None, None], order.astype(np.int32)[None, None]


def block_mask(arrays: Mapping[str, torch.Tensor], window: int | None = None) -> Any:
    """FlexAttention's BlockMask: a token attends to its document up to itself, to its prefix, and to all of its image,
    of these to no more than the last `window` tokens of its sample."""
    from torch.nn.attention.flex_attention import BlockMask

    document, prefix = arrays["document"], arrays["prefix"]
    tokens = len(document)

    def may_attend(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & ((document[q] == document[k]) | (prefix[q] == document[k]))

    def may_attend_in_window(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        same_image = (image[q] == image[k]) & (image[q] >= 0)
        return (may_attend(batch, head, q, k) | same_image) & (index[q] - index[k] < width)

    is_plain = "image" not in arrays
    if not is_plain:
        image, index, width = arrays["image"], arrays["index"], tokens if window is None else window
    blocks: dict[str, Any] = {
        f"{name}_{field}": arrays[f"{name}_{field}"]
        for name in ("kv", "full_kv", "q", "full_q")
        for field in ("num_blocks", "indices")
    }
    mask_mod = may_attend if is_plain else may_attend_in_window
    return BlockMask(seq_lengths=(tokens, tokens), BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=mask_mod, **blocks)
