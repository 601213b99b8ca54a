"""The keys and values of the requests that are being answered, in one batch.

In: the cache of a prefilled request (one row). Out: a transformers cache whose rows are left-padded to one length, so
that one forward pass extends all of them. Rows join and leave between two passes.

Letters: B rows, H key-value heads, T tokens, D width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

GROWTH = 128  # columns by which buffers grow: one copy per so many passes instead of one per pass
SHRINK = 4  # buffers with so many times the rows in use give their memory back


class RowLayer(DynamicLayer):
    """One layer's keys and values of all rows, in buffers (R, H, C, D) with free rows and columns. In use are the first
    `rows`, and the columns from `start` to `end`; every row's tokens end at `end`."""

    def __init__(self, sample: torch.Tensor, rows: int, columns: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = sample.dtype, sample.device, True
        # zeros: the padding is masked, but the mask would not hide a NaN from uninitialized memory
        self.key_buffer = sample.new_zeros(rows, sample.shape[1], columns, sample.shape[3])
        self.value_buffer = torch.zeros_like(self.key_buffer)
        self.show(0, 0, 0)

    def show(self, rows: int, start: int, end: int) -> None:
        """Let `keys` and `values` be this part of the buffers."""
        self.rows, self.start, self.end = rows, start, end
        self.keys, self.values = self.key_buffer[:rows, :, start:end], self.value_buffer[:rows, :, start:end]

    def write(self, row: int, end: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put tokens (H, T, D) into a row, with zeros before them."""
        for buffer, tensor in ((self.key_buffer, keys), (self.value_buffer, values)):
            buffer[row, :, : end - tensor.shape[1]] = 0
            buffer[row, :, end - tensor.shape[1] : end] = tensor

    def tokens(self, row: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The last keys and values of a row, (H, count, D) each."""
        first = self.end - count
        return self.key_buffer[row, :, first : self.end], self.value_buffer[row, :, first : self.end]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.end + key_states.shape[-2]
        self.key_buffer[: self.rows, :, self.end : end] = key_states
        self.value_buffer[: self.rows, :, self.end : end] = value_states
        self.show(self.rows, self.start, end)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values


class RowBatch:
    """The key-value rows of the running requests. `lengths[i]` counts the tokens of row i without its padding.

    A row joins and leaves in place: only its own tokens are copied, or those of the row that takes its place.
    `max_tokens` bounds the free rows that buffers have in reserve.
    """

    def __init__(self, max_tokens: int = 0) -> None:
        self.max_tokens = max_tokens
        self.lengths: list[int] = []
        self.layers: list[RowLayer] = []
        self.cache: Cache | None = None
        self.end = 0

    @property
    def capacity(self) -> tuple[int, int]:
        """Rows and columns of the buffers."""
        shape = self.layers[0].key_buffer.shape if self.layers else (0, 0, 0, 0)
        return shape[0], shape[2]

    def join(self, cache: Cache) -> None:
        """Append the row of a prefilled request. Nothing has changed if memory ends."""
        self.lengths.append(cache.get_seq_length())
        samples: Sequence[Any] = cache.layers
        try:
            if len(self.lengths) > self.capacity[0] or self.lengths[-1] > self.end:
                self.rebuild(len(self.lengths) - 1, samples)
            for layer, sample in zip(self.layers, samples, strict=True):
                layer.write(len(self.lengths) - 1, self.end, sample.keys[0], sample.values[0])
        except BaseException:
            self.lengths.pop()
            raise
        finally:
            self.show()

    def leave(self, keep: Sequence[int]) -> list[int]:
        """Drop all rows but these; rows from the end take the places that become free. Returns the new order: which row
        is now the first, the second, …"""
        order = list(range(len(keep)))
        free = sorted(set(order) - set(keep))
        for target, source in zip(free, sorted(set(keep) - set(order)), strict=True):
            order[target] = source
            for layer in self.layers:
                layer.write(target, self.end, *layer.tokens(source, self.lengths[source]))
        self.lengths = [self.lengths[row] for row in order]
        if len(self.lengths) * SHRINK <= self.capacity[0]:
            self.rebuild(len(self.lengths), self.layers)
        self.show()
        return order

    def reserve(self) -> None:
        """Make room for one more token in each row."""
        if self.end == self.capacity[1]:
            self.rebuild(len(self.lengths), self.layers)
            self.show()

    def advance(self) -> None:
        """Count the token that a forward pass has added to each row."""
        self.lengths = [length + 1 for length in self.lengths]
        self.end += 1

    def rebuild(self, rows: int, samples: Sequence[Any]) -> None:
        """Buffers for all rows and as many in reserve, with the first `rows` copied; none without rows. `samples` have
        the layers' shapes."""
        if not self.lengths:
            self.layers, self.end = [], 0
            return
        count, longest = len(self.lengths), max(self.lengths)
        columns = longest + GROWTH
        capacity = max(count, min(2 * count, self.max_tokens // columns))
        old, new = self.layers, list[RowLayer]()
        for number, sample in enumerate(samples):
            layer = RowLayer(sample.keys, capacity, columns)
            for row in range(rows):
                layer.write(row, longest, *old[number].tokens(row, self.lengths[row]))
            new.append(layer)
        self.layers, self.end = new, longest

    def show(self) -> None:
        """Let the cache be the rows and columns in use; common padding is cut."""
        longest = max(self.lengths, default=0)
        for layer in self.layers:
            layer.show(len(self.lengths), self.end - longest, self.end)
        self.cache = Cache(layers=list(self.layers)) if self.layers else None

    def attention_mask(self, device: torch.device) -> torch.Tensor | None:
        """(B, T + 1), zero at the padding, for a pass that adds a token to each row; None without any padding."""
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        positions = torch.arange(longest + 1, device=device)
        padding = torch.tensor([longest - length for length in self.lengths], device=device)
        return (positions >= padding[:, None]).long()


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
