"""The keys and values of the requests that are being answered, in one batch.

In: the cache of a prefilled request (one row). Out: a transformers cache whose rows are left-padded to one length, so
that one forward pass extends all of them. Rows join and leave between two passes.

Letters: B rows, H key-value heads, T tokens, D width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

GROWTH = 128  # tokens by which a buffer grows: one copy per so many passes instead of one per pass


class BufferedLayer(DynamicLayer):
    """A cache layer that writes new tokens into a buffer with free space instead of copying everything."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.key_buffer, self.value_buffer, self.length = keys, values, length
        self.show()

    def show(self) -> None:
        """Let `keys` and `values` be the filled part of the buffers."""
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new_length = self.length + key_states.shape[-2]
        if new_length > self.key_buffer.shape[-2]:
            self.key_buffer = grow(self.key_buffer, new_length + GROWTH)
            self.value_buffer = grow(self.value_buffer, new_length + GROWTH)
        self.key_buffer[:, :, self.length : new_length] = key_states
        self.value_buffer[:, :, self.length : new_length] = value_states
        self.length = new_length
        self.show()
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values


def grow(buffer: torch.Tensor, length: int) -> torch.Tensor:
    """The same content in a buffer for `length` tokens. (B, H, T, D) -> (B, H, length, D)"""
    larger = buffer.new_zeros(*buffer.shape[:2], length, buffer.shape[3])
    larger[:, :, : buffer.shape[2]] = buffer
    return larger


class RowBatch:
    """The key-value rows of the running requests. `lengths[i]` counts the tokens of row i without its padding."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.cache: Cache | None = None

    def change(self, keep: Sequence[int], joining: Sequence[Cache]) -> None:
        """Keep these rows, in this order, and append the rows of prefilled requests; common padding is cut."""
        rows: list[tuple[Any, int, int]] = [(self.cache, index, self.lengths[index]) for index in keep]
        rows += [(cache, 0, cache.get_seq_length()) for cache in joining]
        self.lengths = [length for _, _, length in rows]
        if not rows:
            self.cache = None
            return
        longest = max(self.lengths)
        layers: list[Any] = []
        for number in range(len(rows[0][0].layers)):
            parts = [(cache.layers[number], index, length) for cache, index, length in rows]
            keys = align([(layer.keys, index, length) for layer, index, length in parts], longest)
            values = align([(layer.values, index, length) for layer, index, length in parts], longest)
            layers.append(BufferedLayer(keys, values, longest))
        self.cache = Cache(layers=layers)

    def attention_mask(self, device: torch.device) -> torch.Tensor | None:
        """(B, T + 1), zero at the padding, for a pass that adds a token to each row; None without any padding."""
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        positions = torch.arange(longest + 1, device=device)
        padding = torch.tensor([longest - length for length in self.lengths], device=device)
        return (positions >= padding[:, None]).long()


def align(rows: Sequence[tuple[torch.Tensor, int, int]], length: int) -> torch.Tensor:
    """The last tokens of each row, aligned at the right end. Rows of (B, H, T, D) -> (len(rows), H, length + GROWTH, D)

    The padding is zero: it is masked, but the mask would not hide a NaN from uninitialized memory.
    """
    sample = rows[0][0]
    buffer = sample.new_zeros(len(rows), sample.shape[1], length + GROWTH, sample.shape[3])
    for target, (tensor, index, count) in enumerate(rows):
        buffer[target, :, length - count : length] = tensor[index, :, -count:]
    return buffer


def can_batch(cache: Cache) -> bool:
    """Whether rows of this cache can be joined: full attention in all layers (no sliding windows, no recurrence)."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def can_continue(cache: Cache) -> bool:
    """Whether a prompt may run in pieces on this cache: attention alone, also with sliding windows. Stock models with
    recurrent layers continue from a state by one token at a time only."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def copy_prefix(cache: Any, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Copies of each layer's first `length` keys and values, (1, H, length, D) each."""
    return [(layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone()) for layer in cache.layers]


def from_prefix(prefix: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    """A new cache that starts with a stored prefix; the stored tensors are copied, not shared."""
    return DynamicCache(ddp_cache_data=[(keys, values) for keys, values in prefix])


def prefix_bytes(prefix: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """The memory that a stored prefix takes."""
    return sum(tensor.numel() * tensor.element_size() for pair in prefix for tensor in pair)
