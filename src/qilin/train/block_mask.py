"""FlexAttention's mask of a pack, from its table of documents: which blocks of keys each block of queries attends to.

In: documents (first token, length, prefix). Out: small integer arrays on the host, and from them, moved to a device
together with the rest of a pack, a BlockMask. create_block_mask of torch evaluates all T x T pairs: 0.7 GB of the
device's memory at 8,192 tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

BLOCK = 128  # tokens of a block; FlexAttention's default

# Letters: T tokens, R runs (tokens of one document in one block), B blocks.


def mask_arrays(documents: Sequence[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    """The arrays that `block_mask` needs, on the host."""
    table = np.array(documents, dtype=np.int64).reshape(-1, 3)
    partial, full = block_pairs(table)
    arrays = {
        "document": np.repeat(np.arange(len(table)), table[:, 1]).astype(np.int32),  # (T,)
        "prefix": np.repeat(table[:, 2], table[:, 1]).astype(np.int32),  # (T,) -1: none
    }
    for name, pairs in (("kv", partial), ("full_kv", full), ("q", partial.T), ("full_q", full.T)):
        arrays[f"{name}_num_blocks"], arrays[f"{name}_indices"] = sort_blocks(pairs)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def block_pairs(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, B) pairs of a block of queries and one of keys: those of which some elements are attended to, and those of
    which all are.

    A token attends to two intervals: its prefix, and its document up to itself. Within a run only the end of the second
    one moves, so the run's first and last token tell what any and all of its tokens attend to.
    """
    starts, lengths, prefixes = table.T
    tokens = int(lengths.sum())
    blocks = -(-tokens // BLOCK)
    edges = np.arange(blocks) * BLOCK
    runs = np.unique(np.concatenate([starts[lengths > 0], edges]))
    ends = np.append(runs[1:], tokens)
    document = np.searchsorted(starts, runs, side="right") - 1
    prefix = prefixes[document]
    prefix_start = np.where(prefix >= 0, starts[prefix], 0)
    prefix_end = np.where(prefix >= 0, starts[prefix] + lengths[prefix], 0)

    def attended(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """(R, B) tokens of each block of keys in the run's interval."""
        return np.clip(np.minimum(edges + BLOCK, end[:, None]) - np.maximum(edges, start[:, None]), 0, None)

    of_prefix = attended(prefix_start, prefix_end)
    by_last = of_prefix + attended(starts[document], ends)
    by_first = of_prefix + attended(starts[document], runs + 1)
    first_runs = np.searchsorted(runs, edges)
    some = np.logical_or.reduceat(by_last > 0, first_runs)
    full = np.logical_and.reduceat(by_first == BLOCK, first_runs)
    if tokens % BLOCK:
        full[-1] = False  # the last block of queries is not complete
    return some & ~full, full


def sort_blocks(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, B) pairs -> per row their number (1, 1, B) and their columns first (1, 1, B, B), int32."""
    order = np.argsort(~pairs, axis=-1, kind="stable")
    return pairs.sum(-1, dtype=np.int32)[None, None], order.astype(np.int32)[None, None]


def block_mask(arrays: Mapping[str, torch.Tensor]) -> Any:
    """FlexAttention's BlockMask: a token attends to its document up to itself, and to its prefix."""
    from torch.nn.attention.flex_attention import BlockMask

    document, prefix = arrays["document"], arrays["prefix"]

    def may_attend(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & ((document[q] == document[k]) | (prefix[q] == document[k]))

    blocks: dict[str, Any] = {
        f"{name}_{field}": arrays[f"{name}_{field}"]
        for name in ("kv", "full_kv", "q", "full_q")
        for field in ("num_blocks", "indices")
    }
    tokens = len(document)
    return BlockMask(seq_lengths=(tokens, tokens), BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=may_attend, **blocks)


def general_block_mask(
    table: torch.Tensor, images: Sequence[tuple[int, int]], window: int | None, device: torch.device
) -> Any:
    """The BlockMask of layers in which a token also attends to all of its image, or to no more than the last `window`
    tokens of its sample; by torch, from all pairs of tokens."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = int(table[:, 1].sum())
    document = torch.repeat_interleave(torch.arange(len(table)), table[:, 1]).to(device)  # (T,)
    prefix = torch.repeat_interleave(table[:, 2], table[:, 1]).to(device)  # (T,) -1: none
    image = torch.full((tokens,), -1)
    for number, (start, end) in enumerate(images):
        image[start:end] = number
    before = torch.where(table[:, 2] >= 0, table[table[:, 2], 1], 0) - table[:, 0]
    index = (torch.arange(tokens) + torch.repeat_interleave(before, table[:, 1])).to(device)  # in the sample
    image, width = image.to(device), tokens if window is None else window

    def may_attend(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        earlier = (q >= k) & ((document[q] == document[k]) | (prefix[q] == document[k]))
        same_image = (image[q] == image[k]) & (image[q] >= 0)
        return (earlier | same_image) & (index[q] - index[k] < width)

    return create_block_mask(may_attend, None, None, tokens, tokens, device=device)
